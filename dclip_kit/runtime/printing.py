"""Printing: safe for a terminal, and from one of several processes only."""

from pathlib import Path


def printable(text: Path | str) -> str:
    """Escapes control characters and lone bytes, so that a terminal does not obey them."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in str(text)
    )


def say(text: str) -> None:
    """Prints in the main process only."""
    from dclip_kit.runtime.processes import (
        is_main_process,  # imports PyTorch, which would slow --help by seconds
    )

    if is_main_process():
        print(text)
