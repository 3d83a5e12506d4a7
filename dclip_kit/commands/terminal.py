"""What commands ask of their surroundings: whether a file can be written, and which device."""

import os
from pathlib import Path

from dclip_kit.runtime.printing import printable


def require_writable(path: Path, kind: str = "file") -> None:
    """Checks before the work whether its result can be written.

    Args:
        path: where to.
        kind: "file" or "folder".

    Raises:
        ValueError: something of another kind is there: a folder, a file, a device.
    """
    inside = path if kind == "folder" else path.absolute().parent
    above = next(each for each in (inside, *inside.absolute().parents) if each.exists())
    fits = path.is_dir() if kind == "folder" else path.is_file()
    if (path.exists() and not fits) or not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(
            f"Expected a {kind} that can be written at {printable(path)}, but something else is "
            "there or it must not be written; name another."
        )


def require_own_folder(path: Path, *marks: str) -> None:
    """Checks that a folder is empty or the command's own, so that nothing is strewn among others.

    Args:
        path: of the folder, which may not be there yet.
        marks: patterns of files, of which the command's own folders have one.

    Raises:
        ValueError: it has other things.
    """
    require_writable(path, "folder")
    there = [] if not path.is_dir() else [each.name for each in path.iterdir()]
    # A hidden file says nothing, nor does one that a stop left half written.
    others = sorted(each for each in there if not each.startswith(".") and each[-4:] != ".tmp")
    if others and not any(any(path.glob(mark)) for mark in marks):
        raise ValueError(
            f"Expected a folder at {printable(path)} that is empty or that this command began, got "
            f"one with {printable(', '.join(others[:3]))}; name another."
        )


def choose_device(name: str) -> str:
    """The device by its name; "auto" is a GPU of one's own if there is one, else the CPU.

    Raises:
        ValueError: there is no such device.
    """
    import torch

    from dclip_kit.models.clip import require_device

    if name == "auto":
        on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        if on_cpu or not torch.cuda.is_available():
            return "cpu"
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    require_device(name)
    return name
