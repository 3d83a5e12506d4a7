"""Printing: safe for a terminal, and from one of several processes only."""

import time
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


class Steps:
    """Prints a line for each step that is done, with the time taken and an estimate of the rest."""

    def __init__(self, shares: dict[str, float | int], quiet: bool = False) -> None:
        """Starts the clock.

        Args:
            shares: the steps in their order, and the usual duration of each in any unit.
            quiet: whether nothing is printed.
        """
        self.shares, self.quiet, self.began = shares, quiet, time.monotonic()

    def done(self, name: str) -> None:
        """Prints the line of a step.

        Raises:
            ValueError: there is no such step.
        """
        if name not in self.shares:
            raise ValueError(f"Expected a step out of {', '.join(self.shares)}, got {name!r}.")
        names = list(self.shares)
        before = sum(self.shares[each] for each in names[: names.index(name) + 1])
        rest = self.seconds * (sum(self.shares.values()) / before - 1)
        if not self.quiet:
            taken, left = (f"{int(x) // 60}:{int(x) % 60:02d}" for x in (self.seconds, rest))
            say(f"{name:24s} {taken} so far, about {left} to go")

    @property
    def seconds(self) -> float:
        """The time since the start."""
        return time.monotonic() - self.began


def as_code(text: str) -> str:
    """Text in a Markdown code span, where no character has another meaning."""
    return f"`{printable(text).replace('`', '’')}`"
