"""Files of a data set: finding pictures below a folder, reading lines and JSON values."""

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
        # Pillow may not read these: they are reported as unusable instead of overlooked.
        ".heic",
        ".heif",
        ".jp2",
        ".jxl",
    }
)


_SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir"})  # of thumbnails and the like


def is_hidden(name: str) -> bool:
    """Whether a file or folder is a system's or a program's own."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def is_picture(name: str) -> bool:
    """Whether a file has the suffix of a picture."""
    return Path(name).suffix.lower() in PICTURE_SUFFIXES


def walk_files(folder: Path) -> Iterator[str]:
    """Yields the paths of all files below a folder, relative to it, in order of their names.

    Links to folders are followed, unless they lead back to a folder on the way to them. Hidden
    files and folders (".thumbnails", macOS' "._1.jpg") and systems' own are passed by.

    Raises:
        OSError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:  # else an unreadable folder would pass for an empty one
        raise type(error)(
            f"Expected to read all folders below {folder}, but {error.filename} cannot be read "
            f"({error.strerror}); name a folder that has only pictures."
        ) from error

    ancestors_of = {str(folder): {os.path.realpath(folder)}}
    for current, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        ancestors = ancestors_of.pop(current)
        real_paths = {name: os.path.realpath(os.path.join(current, name)) for name in folders}
        folders[:] = sorted(
            name for name in folders if not is_hidden(name) and real_paths[name] not in ancestors
        )
        ancestors_of |= {
            os.path.join(current, name): ancestors | {real_paths[name]} for name in folders
        }
        for name in sorted(name for name in files if not is_hidden(name)):
            yield os.path.relpath(os.path.join(current, name), folder)


def path_inside(folder: Path, name: str) -> Path:
    """The path of a name below a folder; links inside the folder may lead anywhere.

    Raises:
        ValueError: the name itself leads out of the folder ("..", an absolute path), or has a null
            byte.
    """
    relative = Path(name)
    if relative.anchor:  # absolute; on Windows a drive alone, too
        roots = [
            root for root in (folder.absolute(), folder.resolve()) if relative.is_relative_to(root)
        ]
        relative = relative.relative_to(roots[0]) if roots else Path("..")
    if ".." in relative.parts or "\0" in name:
        raise ValueError(
            f"Expected a path below {folder}, but {reprlib.repr(name)} leads out of it or has '..' "
            "in it; name the folder that holds the pictures, and write paths from there."
        )
    return folder / relative


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yields the place ("results.csv:7") and text of each line that is not blank.

    Bytes that are not UTF-8 are kept, and fail `is_text`.
    """
    with open_file(path, "r", encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path.name}:{number}", line.rstrip("\n")


def load_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: it cannot be read, or is not JSON.
    """
    try:
        with open_file(path, "r", encoding="utf-8-sig") as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError) as error:  # brackets, thousands deep
        raise ValueError(
            f"Expected to read {path}, but it failed ({error}); restore the file or name another."
        ) from error


def is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8: no lone surrogates from bytes of other encodings."""
    return text.encode(errors="ignore").decode() == text
