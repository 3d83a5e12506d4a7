"""The same steps from a shell: `python -m dclip_kit COMMAND`.

Each command is a function, whose docstring is its help; it returns an exit code, or None for 0.
Slow imports are inside the functions, so that --help answers at once.
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

from dclip_kit.commands.export import export
from dclip_kit.commands.fit import distill, pilot, train_teacher
from dclip_kit.commands.measure import app, evaluate, probe, search
from dclip_kit.commands.prepare import curate, detect, embed_shards, inspect
from dclip_kit.config import PROFILES, RECIPES, Profile, apply_recipe
from dclip_kit.runtime.printing import printable

PROGRAM = "python -m dclip_kit"
DESCRIPTION = """\
DCLIP from a shell: look at captioned pictures, fine-tune a CLIP on them, measure it,
search with it.

--profile pocket|base|paper, after a command, chooses the defaults of its other
options, which its --help then shows: pocket (embedded, tiny, offline: the default),
base (OpenAI's ViT-B/32, for a laptop), paper (OpenAI's ViT-B/16 and the published
settings, for GPUs). --recipe changes how it learns: region_taught (the default) also
from pictures without captions, contrastive_rehearsal without a teacher, dclip as the
paper describes it, official_code as the published code does.

Exit codes: 0 done; 1 inspect found no usable picture with a caption; 2 the command
cannot be carried out, and a sentence on stderr says why."""

COMMANDS: dict[str, Callable[..., int | None]] = {
    "inspect": inspect,
    "curate": curate,
    "detect": detect,
    "embed-shards": embed_shards,
    "pilot": pilot,
    "train-teacher": train_teacher,
    "distill": distill,
    "evaluate": evaluate,
    "probe": probe,
    "search": search,
    "app": app,
    "export": export,
}
UNPROFILED = ("app", "export")  # their model decides all that a profile would
TRAINING = ("pilot", "train-teacher", "distill")  # what a recipe changes
SHARED = ("train-teacher", "distill", "evaluate")  # several processes do them together


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: of the command line; the shell's if left out.

    Returns:
        The exit code.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    return run_program(PROGRAM, lambda: _parse(argv)())


def run_program(name: str, call: Callable[[], int | None]) -> int:
    """Runs a program, and reports on stderr, in one sentence, why it cannot do its work.

    Args:
        name: of the program.
        call: does the work, and returns an exit code or None for 0.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters it cannot encode become \u2192
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return call() or 0
        finally:
            sys.stdout.flush()  # at exit, a closed pipe would print a traceback
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        message = str(error)
        if isinstance(error, RuntimeError):
            if type(error).__name__ != "OutOfMemoryError":  # PyTorch's, which is slow to import
                raise
            reason = message.splitlines()[0]
            message = (
                f"Expected a device with more memory ({reason}); take smaller batches, where the "
                "command has an option for them, or --device cpu."
            )
        print(f"{name}: {printable(message)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: stopped; the checkpoints written so far are complete.", file=sys.stderr)
        return 130


def _parse(argv: list[str]) -> Callable[[], int | None]:
    """Parses a command line into a call that is ready to run; only the options are checked here.

    Raises:
        ValueError: a setting is out of its range.
        SystemExit: help was shown or an option was refused; the message is printed already.
    """
    # The profile is parsed first: the other options' defaults, which --help shows, depend on it.
    chooser = argparse.ArgumentParser(
        PROGRAM,
        f"{PROGRAM} COMMAND --profile NAME --recipe NAME …",
        add_help=False,
        allow_abbrev=False,
    )
    chooser.add_argument("--profile", choices=PROFILES)
    chooser.add_argument("--recipe", choices=RECIPES)
    chosen, rest = chooser.parse_known_args(argv)
    if rest and rest[0] in UNPROFILED and (chosen.profile or chosen.recipe):
        raise ValueError(
            f"Expected no --profile and no --recipe for {rest[0]}, got "
            f"{chosen.profile or chosen.recipe}; its model decides."
        )
    command = rest[0] if rest and rest[0] in COMMANDS else ""
    if command and command not in TRAINING and chosen.recipe:
        raise ValueError(
            f"Expected no --recipe for {command}, got {chosen.recipe}, which would change nothing; "
            "leave it out."
        )
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if command and command not in SHARED and processes > 1:
        raise ValueError(
            f"Expected one process for {command}, got {processes}; start it without accelerate, "
            f"which {', '.join(SHARED)} alone can use."
        )
    profile = PROFILES[chosen.profile or "pocket"]
    profile, messages = apply_recipe(profile, chosen.recipe or Profile.recipe), io.StringIO()
    try:
        with redirect_stderr(messages):
            return tyro.extras.subcommand_cli_from_dict(
                _with_defaults(profile),
                prog=PROGRAM,
                description=DESCRIPTION,
                args=rest or ["--help"],
                config=(tyro.conf.DisallowNone,),
            )
    except SystemExit as stop:
        # tyro would frame the settings' own messages, and prefix them with a name nobody typed.
        cause = stop.__context__ and stop.__context__.__context__
        if isinstance(cause, ValueError) and str(cause).startswith("Expected "):
            raise cause from None
        print(messages.getvalue(), end="", file=sys.stderr)
        raise


def _with_defaults(profile: Profile) -> dict[str, Callable[..., Callable[[], int | None]]]:
    """The commands, with a profile's values as defaults."""
    clip = {"model": profile.clip, "pretrained": profile.pretrained}
    defaults: dict[str, dict[str, Any]] = {
        "detect": {
            name: getattr(profile.regions, name)
            for name in ("detector", "confidence", "max_regions")
        },
        "embed-shards": clip,
        "pilot": {"settings": profile},
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
    """Shows tyro a command's options and --profile; calling it binds the values to the command."""

    def __init__(
        self, command: Callable[..., int | None], defaults: dict[str, Any], profile: str
    ) -> None:
        parsed = signature(partial(command, **defaults))
        profile_option = (
            [Parameter("profile", Parameter.KEYWORD_ONLY, default=profile)] if profile else []
        )
        parameters = {
            parameter.name: parameter
            for parameter in [*parsed.parameters.values(), *profile_option]
        }
        self.command, self.names = command, list(parsed.parameters)
        self.__signature__ = parsed.replace(parameters=list(parameters.values()))
        self.__annotations__ = command.__annotations__ | {"profile": Literal[*PROFILES]}
        # tyro would keep the source's line breaks in the arguments' descriptions.
        help_text = re.sub(r"\n {12,}", " ", command.__doc__ or "").rstrip()
        profile_help = (
            "\n        profile: chooses the defaults of the other options.\n" if profile else ""
        )
        self.__doc__ = help_text + profile_help

    def __call__(self, **options: Any) -> Callable[[], int | None]:
        return partial(self.command, **{name: options[name] for name in self.names})
