"""The same steps from a shell: `python -m dclip_kit COMMAND`.

Each command is a function, whose docstring is its help; it returns an exit code, or None for 0.
What takes seconds to import, the functions import when they run, so that help comes at once.
"""

import argparse
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from functools import partial
from inspect import Parameter, signature
from typing import Any, Literal

import tyro

from dclip_kit.commands.fit import distill, train_teacher
from dclip_kit.commands.measure import app, evaluate, probe, search
from dclip_kit.commands.prepare import curate, detect, embed, inspect
from dclip_kit.config import PROFILES, RECIPES, Profile, apply_recipe
from dclip_kit.runtime.printing import printable

PROGRAM = "python -m dclip_kit"
DESCRIPTION = """\
DCLIP from a shell: look at captioned pictures, fine-tune a CLIP on them, measure it,
search with it.

--profile pocket|base|paper, behind a command, chooses the defaults of its other
options, which its --help then shows: pocket (embedded, tiny, offline: the default),
base (OpenAI's ViT-B/32, for a laptop), paper (OpenAI's ViT-B/16 and the published
settings, for GPUs). --recipe changes how it learns: region_taught (the default) also
from pictures without captions, contrastive_rehearsal without a teacher, dclip as the
paper describes it, official_code as the published code does.

Exit codes: 0 done; 1 inspect found no usable picture with a caption; 2 what was asked
cannot be done, and a sentence on stderr says why."""

COMMANDS: dict[str, Callable[..., int | None]] = {
    "inspect": inspect,
    "curate": curate,
    "detect": detect,
    "embed": embed,
    "train-teacher": train_teacher,
    "distill": distill,
    "evaluate": evaluate,
    "probe": probe,
    "search": search,
    "app": app,
}
UNPROFILED = ("app",)  # whose model decides all that a profile would


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: instead of the shell's.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    return run_program(PROGRAM, lambda: _parse(given)())


def run_program(name: str, call: Callable[[], int | None]) -> int:
    """Runs a program's work; what cannot be done is said on stderr, in a sentence.

    Args:
        name: of the program.
        call: does the work, and returns an exit code or None for 0.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding lacks is shown as \u2192
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return call() or 0
        finally:
            sys.stdout.flush()  # at exit, a reader that is gone would be a traceback
    except BrokenPipeError:  # whoever read has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        why = str(error)
        if isinstance(error, RuntimeError):
            if type(error).__name__ != "OutOfMemoryError":  # PyTorch's, which is slow to import
                raise
            why = (
                f"Expected a device with more memory ({why.splitlines()[0]}); take smaller batches."
            )
        print(f"{name}: {printable(why)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: stopped; checkpoints that were written are whole.", file=sys.stderr)
        return 130


def _parse(given: list[str]) -> Callable[[], int | None]:
    """The command that was asked for, ready to run: its options are checked, and nothing is done.

    Raises:
        ValueError: a setting is out of its range.
        SystemExit: help was given, or something else was refused; all is said.
    """
    # The profile comes first, since what the help of the other options says depends on it.
    chooser = argparse.ArgumentParser(
        PROGRAM,
        f"{PROGRAM} COMMAND --profile NAME --recipe NAME …",
        add_help=False,
        allow_abbrev=False,
    )
    chooser.add_argument("--profile", choices=PROFILES)
    chooser.add_argument("--recipe", choices=RECIPES)
    chosen, rest = chooser.parse_known_args(given)
    if rest and rest[0] in UNPROFILED and (chosen.profile or chosen.recipe):
        raise ValueError(
            f"Expected no --profile and no --recipe for {rest[0]}, got "
            f"{chosen.profile or chosen.recipe}; its --model decides."
        )
    profile = PROFILES[chosen.profile or "pocket"]
    profile, said = apply_recipe(profile, chosen.recipe or Profile.recipe), io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(
                _with_defaults(profile),
                prog=PROGRAM,
                description=DESCRIPTION,
                args=rest or ["--help"],
                config=(tyro.conf.DisallowNone,),
            )
    except SystemExit as stop:
        # tyro frames what settings say of their values and puts a name before it that nobody typed.
        refused = stop.__context__ and stop.__context__.__context__
        if isinstance(refused, ValueError) and str(refused).startswith("Expected "):
            raise refused from None
        print(said.getvalue(), end="", file=sys.stderr)
        raise


def _with_defaults(profile: Profile) -> dict[str, Callable[..., Callable[[], int | None]]]:
    """The commands, with a profile's values for defaults."""
    clip = {"model": profile.clip, "pretrained": profile.pretrained}
    defaults: dict[str, dict[str, Any]] = {
        "detect": {
            name: getattr(profile.regions, name)
            for name in ("detector", "confidence", "max_regions")
        },
        "embed": {**clip, "regions": profile.regions},
        "train-teacher": {"settings": profile},
        "distill": {"settings": profile},
        "evaluate": {**clip, "model": (profile.clip,), "profile": profile.name},
        "probe": {"pretrained": profile.pretrained},
        "search": clip,
    }
    return {
        name: _Deferred(command, defaults.get(name, {}), "" if name in UNPROFILED else profile.name)
        for name, command in COMMANDS.items()
    }


class _Deferred:
    """A command's options, and --profile, for tyro to read; a call makes it ready to be run."""

    def __init__(
        self, command: Callable[..., int | None], defaults: dict[str, Any], profile: str
    ) -> None:
        own = signature(partial(command, **defaults))
        more = [Parameter("profile", Parameter.KEYWORD_ONLY, default=profile)] if profile else []
        known = {each.name: each for each in [*own.parameters.values(), *more]}
        self.command, self.names = command, list(own.parameters)
        self.__signature__ = own.replace(parameters=list(known.values()))
        self.__annotations__ = command.__annotations__ | {"profile": Literal[*PROFILES]}
        # tyro would show the texts of arguments line by line, as they are wrapped in the source.
        texts = re.sub(r"\n {12,}", " ", command.__doc__ or "").rstrip()
        said = "\n        profile: chooses the defaults of the other options.\n" if profile else ""
        self.__doc__ = texts + said

    def __call__(self, **options: Any) -> Callable[[], int | None]:
        return partial(self.command, **{name: options[name] for name in self.names})
