"""A folder's pictures, with a text file beside each."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from dclip_kit.data.annotations import Annotations, gather, is_text, name_folder, parse_json
from dclip_kit.data.pictures import name_with_link
from dclip_kit.data.usable import Checks, UsableImages

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
        images: not for this layout, whose texts lie beside the pictures.
        split: as in `CaptionedImages`.
        checks: as in `sort_out`.
        source: as in `CaptionedImages`; left out, the folder's name.

    Raises:
        ValueError: there is no such folder, `images` is another, or as `gather`.
    """
    if images not in (None, path):
        raise ValueError(
            f"Expected the texts of {path} beside its pictures, got another folder of pictures "
            f"({images}); leave --images (images= in Python) out."
        )
    found = Annotations()
    with_picture = set()
    texts = []
    for name in walk_files(path):
        suffix = Path(name).suffix.lower()
        if suffix == ".txt":
            texts.append(name)
        elif suffix in PICTURE_SUFFIXES:
            stem = str(Path(name).with_suffix(""))
            with_picture.add(stem)
            _add_sample(found, path, name, stem)
    for name in texts:
        if str(Path(name).with_suffix("")) not in with_picture:
            found.broken[name] = "expected a picture of the same name beside it, found none"
    return gather(found, path, split, source or name_folder(path), checks)


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


def read_sample(folder: Path, stem: str) -> dict[str, Any]:
    """Reads what img2dataset notes about a picture, or nothing where there is no such note.

    Raises:
        ValueError: there is one, and it cannot be read.
    """
    text = _read_beside(folder / f"{stem}.json", "strict")
    sample = {} if text is None else parse_json(text)
    return sample if isinstance(sample, dict) else {}


def _add_sample(found: Annotations, folder: Path, name: str, stem: str) -> None:
    """Takes one picture with its caption."""
    try:
        sample = read_sample(folder, stem)
    except ValueError as error:
        found.broken[f"{stem}.json"] = f"expected img2dataset's JSON, but got none ({error})"
        sample = {}
    status, url, caption = (sample.get(key) for key in ("status", "url", "caption"))
    if status not in (None, "success"):
        found.unusable[folder / name] = f"img2dataset notes that it is no success ({status!r})"
        return
    if not isinstance(caption, str):
        try:
            text = _read_beside(folder / f"{stem}.txt", "surrogateescape")
        except ValueError as error:
            found.unusable[folder / name] = f"Expected its caption beside it, but {error}."
            return
        if text is None or not is_text(text):
            got = "found none" if text is None else "got other bytes than UTF-8"
            found.unusable[folder / name] = f"Expected its caption in {stem}.txt beside it, {got}."
            return
        caption = [line for line in text.splitlines() if line.strip()] or [""]
    image_id = url if isinstance(url, str) and is_text(url) else ""
    found.add(name, name, caption, image_id)


def _read_beside(path: Path, errors: Literal["strict", "surrogateescape"]) -> str | None:
    """Reads a file beside a picture, if there is one."""
    if not os.path.lexists(path):
        return None
    try:
        if not path.is_file():
            raise OSError("no file is there")  # a named pipe would be waited for, for ever
        return path.read_text(encoding="utf-8-sig", errors=errors)
    except (OSError, ValueError) as error:
        raise ValueError(f"reading {name_with_link(path)} failed ({error})") from error
