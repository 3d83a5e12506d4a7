"""Pictures of your own: captions.csv, a JSONL, or a text file beside each picture."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dclip_kit.datasets.annotations import (
    Annotations,
    gather,
    is_text,
    parse_json,
    path_inside,
    read_lines,
)
from dclip_kit.datasets.usable import Checks, UsableImages

PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
)


def read_csv(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads a CSV with the columns image and caption; a picture may have several rows.

    Args:
        path: the file, or the folder with its captions.csv.
        images: the folder that the names are below; left out, the file's own.
        split: as in `CaptionedImages`.
        checks: as in `sort_out`.

    Raises:
        ValueError: there is no such file or it lacks a column.
    """
    path = path / "captions.csv" if path.is_dir() else path
    found = Annotations()
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
            _add_csv(found, path, lines)
    except OSError as error:
        raise ValueError(f"Expected a CSV at {path}, but reading it failed ({error}).") from error
    return gather(found, images or path.parent, split, _name(path.parent), checks)


def _add_csv(found: Annotations, path: Path, lines: Iterator[str]) -> None:
    # Strict, as a quote that is never closed would otherwise swallow the rows after it.
    rows = csv.reader(lines, strict=True)
    columns: list[str] | None = None
    while True:
        start = rows.line_num + 1
        place = f"{path.name}:{start}"
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            found.broken[place] = f"expected CSV, got {error} (up to line {rows.line_num})"
            continue
        if columns is None and row:
            columns = [column.strip().lower() for column in row]
            if not {"image", "caption"} <= set(columns):
                raise ValueError(
                    f"Expected the columns image and caption in {path}, got "
                    f"{ascii(columns)[:200]}; put a first line that names them, and save the file "
                    "with commas between columns and in UTF-8."
                )
        elif columns is None or not row:
            continue  # an empty line
        elif len(row) != len(columns):
            found.broken[place] = (
                f"expected {len(columns)} fields, got {len(row)}; quote captions with commas"
            )
        else:
            found.add(place, row[columns.index("image")].strip(), row[columns.index("caption")])
    if columns is None:
        raise ValueError(f"Expected the columns image and caption in {path}, got an empty file.")


def read_jsonl(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads a JSONL: an object a line with "image", and "caption" (a text) or "captions" (a list).

    Args:
        path: the file, or the folder with its only .jsonl.
        images: the folder that the names are below; left out, the file's own.
        split: as in `CaptionedImages`.
        checks: as in `sort_out`.

    Raises:
        ValueError: there is no such file, or several.
    """
    if path.is_dir():
        files = sorted(path.glob("*.jsonl"))
        if len(files) != 1:
            raise ValueError(f"Expected one .jsonl in {path}, got {len(files)}; name the file.")
        path = files[0]
    found = Annotations()
    for place, line in read_lines(path):
        try:
            row = parse_json(line)
        except ValueError as error:
            found.broken[place] = f"expected a JSON object, got {error}"
            continue
        if not isinstance(row, dict) or not {"caption", "captions"} & row.keys():
            found.broken[place] = 'expected an object with "image" and "caption" or "captions"'
            continue
        found.add(place, row.get("image"), row["captions" if "captions" in row else "caption"])
    return gather(found, images or path.parent, split, _name(path.parent), checks)


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
        path: the folder; folders in it are read too, links to folders are not.
        images: not for this layout, whose texts lie beside the pictures.
        split: as in `CaptionedImages`.
        checks: as in `sort_out`.
        source: as in `CaptionedImages`; left out, the folder's name.

    Raises:
        ValueError: there is no such folder, or `images` is another.
    """
    if images not in (None, path):
        raise ValueError(
            f"Expected the texts of {path} beside its pictures, got another folder of pictures "
            f"({images}); leave images out."
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
    return gather(found, path, split, source or _name(path), checks)


def walk_files(folder: Path) -> Iterator[str]:
    """Yields the paths of all files below a folder, relative to it, in order of their names.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"Expected a folder of pictures, got {folder}; name one that exists.")
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            yield os.path.relpath(os.path.join(place, name), folder)


def read_sample(folder: Path, stem: str) -> dict[str, Any]:
    """Reads what img2dataset notes about a picture, or nothing where there is no such note.

    Raises:
        ValueError: there is one, and it cannot be read.
    """
    note = path_inside(folder, f"{stem}.json")
    if not note.is_file():
        return {}
    sample = parse_json(note.read_text(encoding="utf-8-sig"))
    return sample if isinstance(sample, dict) else {}


def _add_sample(found: Annotations, folder: Path, name: str, stem: str) -> None:
    """Takes one picture with its caption."""
    try:
        sample = read_sample(folder, stem)
    except (OSError, ValueError) as error:
        found.broken[f"{stem}.json"] = (
            f"expected img2dataset's JSON, but reading it failed ({error})"
        )
        sample = {}
    status, url, caption = (sample.get(key) for key in ("status", "url", "caption"))
    if status not in (None, "success"):
        found.unusable[folder / name] = f"img2dataset notes that it is no success ({status!r})"
        return
    if not isinstance(caption, str):
        try:
            text = path_inside(folder, f"{stem}.txt").read_text(
                encoding="utf-8-sig", errors="surrogateescape"
            )
        except (OSError, ValueError) as error:
            found.unusable[folder / name] = (
                f"Expected its caption in {stem}.txt beside it, but reading that failed ({error})."
            )
            return
        caption = [line for line in text.splitlines() if line.strip()] or [""]
        if not is_text(text):
            found.unusable[folder / name] = f"Expected UTF-8 in {stem}.txt, got other bytes."
            return
    image_id = url if isinstance(url, str) and is_text(url) else ""
    found.add(name, name, caption, image_id)


def _name(folder: Path) -> str:
    return folder.resolve().name or "pictures"
