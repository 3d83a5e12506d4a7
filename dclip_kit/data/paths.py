"""Files of a data set: which are pictures, what lies below a folder, lines and JSON values."""

import json
import os
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dclip_kit.runtime.files import open_file

PICTURE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jfif",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".avif",
        ".ppm",
        ".pgm",
        # Which Pillow may not read: they are counted and reported, and not overlooked.
        ".heic",
        ".heif",
        ".jp2",
        ".jxl",
    }
)


def is_picture(name: str) -> bool:
    """Whether a file is called like a picture."""
    return Path(name).suffix.lower() in PICTURE_SUFFIXES


def walk_files(folder: Path) -> Iterator[str]:
    """Yields the paths of all files below a folder, relative to it, in order of their names.

    Links to folders are followed, unless they lead back to where the way to them has been.

    Raises:
        OSError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:  # else a folder that cannot be read would be an empty one
        raise type(error)(
            f"Expected to read all folders below {folder}, but {error.filename} cannot be read "
            f"({error.strerror}); name a folder that has pictures alone."
        ) from error

    above = {str(folder): {os.path.realpath(folder)}}
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        been = above.pop(place)
        real = {name: os.path.realpath(os.path.join(place, name)) for name in folders}
        folders[:] = sorted(name for name in folders if real[name] not in been)
        above |= {os.path.join(place, name): been | {real[name]} for name in folders}
        for name in sorted(files):
            yield os.path.relpath(os.path.join(place, name), folder)


def path_inside(folder: Path, name: str) -> Path:
    """The path of a name below a folder; links that lie there may lead anywhere.

    Raises:
        ValueError: the name itself leads out of the folder ("..", an absolute path) or nowhere.
    """
    below = Path(name)
    if below.anchor:  # absolute; on Windows a drive alone, too
        roots = [
            each for each in (folder.absolute(), folder.resolve()) if below.is_relative_to(each)
        ]
        below = below.relative_to(roots[0]) if roots else Path("..")
    if ".." in below.parts or "\0" in name:
        raise ValueError(
            f"Expected a path below {folder}, but {reprlib.repr(name)} leads out of it or has '..' "
            "in it; name the folder that holds the pictures, and write paths from there."
        )
    return folder / below


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yields each line that is not blank with its place ("results.csv:7").

    Bytes that are no UTF-8 fail `is_text`.
    """
    with open_file(path, "r", encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path.name}:{number}", line.rstrip("\n")


def load_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: it cannot be read, or is no JSON.
    """
    try:
        with open_file(path, "r", encoding="utf-8-sig") as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError) as error:  # brackets, thousands deep
        raise ValueError(
            f"Expected to read {path}, but it failed ({error}); restore the file or name another."
        ) from error


def is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8: no half characters, no bytes of another encoding."""
    return text.encode(errors="ignore").decode() == text
