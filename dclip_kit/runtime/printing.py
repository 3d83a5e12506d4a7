"""What is printed: harmless to a terminal, and once where there are several processes."""

from pathlib import Path


def printable(text: Path | str) -> str:
    """A text that a terminal shows and does not obey: control characters, lone bytes escaped."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in str(text)
    )


def say(text: str) -> None:
    """Prints, in the main process alone."""
    from dclip_kit.runtime.processes import (
        is_main_process,  # with PyTorch: seconds, at a shell's --help
    )

    if is_main_process():
        print(text)
