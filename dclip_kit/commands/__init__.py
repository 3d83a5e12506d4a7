"""The same steps from a shell: `python -m dclip_kit COMMAND`.

Each command is a function, whose docstring is its help. What takes seconds to import, the functions
import when they run, so that help comes at once.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tyro

from dclip_kit.commands.data import curate, embed, inspect
from dclip_kit.commands.models import evaluate, export
from dclip_kit.commands.pictures import detect, search
from dclip_kit.commands.training import distill, train_teacher
from dclip_kit.config import PROFILES, RECIPES, Profile, apply_recipe
from dclip_kit.printing import printable

PROGRAM = "python -m dclip_kit"
DESCRIPTION = """\
DCLIP from a shell: look at captioned pictures, fine-tune a CLIP on them, measure it,
search with it.

--profile pocket|base|paper, behind any command, chooses the defaults of its other
options, which its --help then shows: pocket (embedded, tiny, offline: the default),
base (OpenAI's ViT-B/32, for a laptop), paper (OpenAI's ViT-B/16 and the published
settings, for GPUs). --recipe official_code changes them to what the published code does
where that parts from its description; rehearsal leaves the teacher out.

Exit codes: 0 done; 1 inspect found nothing usable; 2 what was asked cannot be done, and
a sentence on stderr says why."""

COMMANDS: dict[str, Callable[..., int]] = {
    "inspect": inspect,
    "curate": curate,
    "detect": detect,
    "embed": embed,
    "train-teacher": train_teacher,
    "distill": distill,
    "evaluate": evaluate,
    "export": export,
    "search": search,
}
for _command in COMMANDS.values():
    # tyro would show the texts of arguments line by line, as they are wrapped in the source.
    _command.__doc__ = re.sub(r"\n {12,}", " ", _command.__doc__ or "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: instead of the shell's.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # The profile comes first, since what the help of the other options says depends on it.
    chooser = argparse.ArgumentParser(
        PROGRAM,
        f"{PROGRAM} COMMAND --profile NAME --recipe NAME …",
        add_help=False,
        allow_abbrev=False,
    )
    chooser.add_argument("--profile", choices=PROFILES, default="pocket")
    chooser.add_argument("--recipe", choices=RECIPES, default="dclip")
    chosen, rest = chooser.parse_known_args(given)
    profile = apply_recipe(PROFILES[chosen.profile], chosen.recipe)
    try:
        code = tyro.extras.subcommand_cli_from_dict(
            _with_defaults(profile),
            prog=PROGRAM,
            description=DESCRIPTION,
            args=rest or ["--help"],
            config=(tyro.conf.DisallowNone,),
        )
        sys.stdout.flush()  # at exit, a reader that has gone would make a traceback
        return code
    except BrokenPipeError:  # whoever read has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError) as error:
        print(f"{PROGRAM}: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped; checkpoints that were written are whole.", file=sys.stderr)
        return 130


def _with_defaults(profile: Profile) -> dict[str, Callable[..., int]]:
    """The commands, with a profile's values for defaults."""
    clip = {"model": profile.clip, "pretrained": profile.pretrained}
    found = ("detector", "confidence", "max_regions")
    defaults: dict[str, dict[str, Any]] = {
        "detect": {name: getattr(profile.regions, name) for name in found},
        "embed": {**clip, "regions": profile.regions},
        "train-teacher": {"settings": profile},
        "distill": {"settings": profile},
        "evaluate": {**clip, "model": (profile.clip,), "profile": profile.name},
        "export": {"pretrained": profile.pretrained},
        "search": clip,
    }
    return {name: partial(each, **defaults.get(name, {})) for name, each in COMMANDS.items()}
