"""What commands check first: whether their output can be written."""

import os
from pathlib import Path

from dclip_kit.runtime.printing import printable


def require_writable(path: Path, kind: str = "file") -> None:
    """Checks, before the work begins, whether its result can be written.

    Args:
        path: of the result.
        kind: "file" or "folder".

    Raises:
        ValueError: something of another kind (a folder, a file, a device) is there, or the place is
            write-protected.
    """
    folder = path if kind == "folder" else path.absolute().parent
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    same_kind = path.is_dir() if kind == "folder" else path.is_file()
    if (
        (path.exists() and not same_kind)
        or not existing.is_dir()
        or not os.access(existing, os.W_OK)
    ):
        raise ValueError(
            f"Expected a {kind} that can be written at {printable(path)}, got a path that is no "
            f"{kind} or is write-protected; name another."
        )


def require_own_folder(path: Path, *marks: str) -> None:
    """Checks that a folder is empty or the command's own, so that its files do not mix with others.

    Args:
        path: of the folder, which need not exist yet.
        marks: patterns of file names; the command's own folders have a file that matches one.

    Raises:
        ValueError: it has other files.
    """
    require_writable(path, "folder")
    names = [] if not path.is_dir() else [name.name for name in path.iterdir()]
    # Hidden files do not count: so are named those that an interrupted run left half written.
    foreign = sorted(name for name in names if not name.startswith("."))
    if foreign and not any(any(path.glob(mark)) for mark in marks):
        raise ValueError(
            f"Expected a folder at {printable(path)} that is empty or that this command began, got "
            f"one with {printable(', '.join(foreign[:3]))}; name another."
        )
