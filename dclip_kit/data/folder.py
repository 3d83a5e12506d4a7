"""A folder's pictures, with the texts or notes that img2dataset writes beside each."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dclip_kit.data.annotations import (
    Annotations,
    Checks,
    UsableImages,
    find_file,
    gather,
    is_text,
    parse_json,
    read_lines,
)
from dclip_kit.data.pictures import name_with_link

PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
)


def read_files(
    path: Path,
    images: Path | None = None,
    split: str = "train",
    checks: Checks = "pictures",
    source: str = "",
) -> UsableImages:
    """Reads pictures with a text file of the same name beside each: img2dataset's `files` layout.

    A text file holds one caption a line. Where img2dataset's .json lies beside it too, its caption
    is taken whole, its address is the picture's id, and a status other than "success" is a reason
    to leave the picture out.

    Args:
        path: the folder; folders in it are read too.
        images: unused, as the texts lie beside the pictures.
        split: as in `gather`.
        checks: as in `drop_unusable`.
        source: as in `CaptionedImages`; left out, the folder's name.

    Raises:
        ValueError: there is no such folder, or as `gather`.
    """
    found = Annotations()
    names = list(walk_files(path))
    for name, note in _read_notes(found, path, names):
        captions, url = note.get("caption"), note.get("url")
        if not isinstance(captions, str):
            try:
                lines = _read_beside((path / name).with_suffix(".txt")).splitlines()
            except ValueError as error:
                found.unusable[str(path / name)] = f"Expected its caption beside it, but {error}."
                continue
            captions = [line for line in lines if line.strip()] or [""]
        found.add(name, name, captions, url if isinstance(url, str) and is_text(url) else "")
    beside = {str(Path(name).with_suffix(".txt")) for name in names if is_picture(name)}
    for name in names:
        if name.endswith(".txt") and name not in beside:
            found.unusable[name] = "expected a picture of the same name beside it, found none"
    return gather(found, path, split, source or path.resolve().name, checks)


def read_conceptual(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads Conceptual Captions' TSV (caption, tab, address) over what img2dataset downloaded.

    Many of its addresses are dead by now: each row without a picture is named among what is
    unusable, and so is each picture that the list does not know.

    Args:
        path: the TSV, with or without a header, or the folder with the only one.
        images: the folder that img2dataset wrote with output_format="files", a .json beside each
            picture; left out, the TSV's own.
        split: as in `gather`.
        checks: as in `drop_unusable`.

    Raises:
        ValueError: there is no such file or folder, or there are several.
    """
    path = find_file(path, "*.tsv")
    folder = images or path.parent
    found = Annotations()
    pictures: dict[str, list[str]] = {}
    for name, note in _read_notes(found, folder, walk_files(folder)):
        pictures.setdefault(str(note.get("url")).strip(), []).append(name)
    listed = set()
    for place, line in read_lines(path):
        caption, _, url = (field.strip() for field in line.partition("\t"))
        listed.add(url)
        if url not in pictures and (caption, url) != ("caption", "url"):  # a header, if there is
            found.unusable[place] = f"its picture was not downloaded ({ascii(url)[1:-1]})"
        for name in pictures.get(url, ()):
            found.add(place, name, caption, url)
    found.unusable |= {
        str(folder / name): f"Expected its address in {path.name}, but {url!a} is not there."
        for url, names in pictures.items()
        for name in names
        if url not in listed
    }
    return gather(found, folder, split, "conceptual_captions", checks)


def walk_files(folder: Path) -> Iterator[str]:
    """Yields the paths of all files below a folder, relative to it, in order of their names.

    Links to folders are followed, unless they lead back to where the way to them has been.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"Expected a folder of pictures, got {folder}; name one that exists.")
    above = {str(folder): {os.path.realpath(folder)}}
    for place, folders, files in os.walk(folder, followlinks=True):
        been = above.pop(place)
        real = {name: os.path.realpath(os.path.join(place, name)) for name in folders}
        folders[:] = sorted(name for name in folders if real[name] not in been)
        above |= {os.path.join(place, name): been | {real[name]} for name in folders}
        for name in sorted(files):
            yield os.path.relpath(os.path.join(place, name), folder)


def is_picture(name: str) -> bool:
    """Whether a file is called like a picture."""
    return Path(name).suffix.lower() in PICTURE_SUFFIXES


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A folder to fill, there whole or not at all afterwards; another process may be first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
        place = Path(temporary) / folder.name
        place.mkdir()
        yield place
        try:
            place.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def _read_notes(
    found: Annotations, folder: Path, names: Iterable[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each picture with img2dataset's note beside it, but for those that it says failed."""
    for name in filter(is_picture, names):
        file = Path(name).with_suffix(".json")
        try:
            note = parse_json(
                _read_beside(folder / file) if os.path.lexists(folder / file) else "{}"
            )
        except ValueError as error:
            found.unusable[str(file)] = f"expected img2dataset's JSON, but got none ({error})"
            note = {}
        note = note if isinstance(note, dict) else {}
        if note.get("status") in (None, "success"):
            yield name, note
        else:
            reason = f"img2dataset notes that it is no success ({note['status']!r})"
            found.unusable[str(folder / name)] = reason


def _read_beside(path: Path) -> str:
    """Reads a file beside a picture."""
    try:
        if not path.is_file():
            raise OSError("no file is there")  # a named pipe would be waited for, for ever
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ValueError(f"reading {name_with_link(path)} failed ({error})") from error
