"""Tables of pictures and captions: CSV and JSONL of one's own, and Hugging Face's metadata."""

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from dclip_kit.data.annotations import Annotations, gather, name_folder, parse_json, read_lines
from dclip_kit.data.own_splits import is_split
from dclip_kit.data.usable import Checks, UsableImages

PICTURE = ("image", "file_name")  # the names of a column, or of a JSON's key
CAPTION = ("caption", "text")


def read_csv(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads a CSV with the columns image (or file_name), caption (or text) and perhaps split.

    A picture may have several rows. Hugging Face's metadata.csv is such a file.

    Args:
        path: the file, or the folder with its captions.csv or metadata.csv, or the folder whose
            folders train, val and test have a metadata.csv each.
        images: the folder that the names are below; left out, the file's own.
        split: what to call the data; it selects nothing.
        checks: as in `sort_out`.

    Raises:
        ValueError: there is no such file or two, it lacks a column, or as `gather`.
    """
    found = Annotations()
    files = _require_tables(path, ".csv")
    for file, folder in files.items():
        try:
            with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
                _add_csv(found, file, folder, lines)
        except OSError as error:
            raise ValueError(
                f"Expected a CSV at {file}, but reading it failed ({error}); name another."
            ) from error
    return _gather_tables(found, path, images, split, checks)


def _add_csv(found: Annotations, path: Path, folder: str, lines: Iterator[str]) -> None:
    # Strict, as a quote that is never closed would otherwise swallow the rows after it.
    rows = csv.reader(lines, strict=True)
    columns: list[str] | None = None
    name = caption = ""
    called = os.path.join(folder, path.name)
    while True:
        start = rows.line_num + 1
        place = f"{called}:{start}"
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            found.broken[place] = f"expected CSV, got {error} (up to line {rows.line_num})"
            continue
        if columns is None and row:
            columns = [column.strip().lower() for column in row]
            name, caption = (_choose(columns, names) for names in (PICTURE, CAPTION))
            if not name or not caption:
                raise ValueError(
                    f"Expected the columns image and caption (or file_name and text) in {path}, "
                    f"got {ascii(columns)[:200]}; put a first line that names them, and save the "
                    "file with commas between columns and in UTF-8."
                )
        elif columns is None or not row:
            continue  # an empty line
        elif len(row) != len(columns):
            found.broken[place] = (
                f"expected {len(columns)} fields, got {len(row)}; quote captions with commas"
            )
        else:
            said = dict(zip(columns, row, strict=True))
            picture = _below(folder, said[name].strip())
            found.add(place, picture, said[caption], split=said.get("split"))
    if columns is None:
        raise ValueError(f"Expected the columns image and caption in {path}, got an empty file.")


def read_jsonl(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads a JSONL: an object a line with image (or file_name), caption (or text), perhaps split.

    Instead of caption there may be "captions", a list. Hugging Face's metadata.jsonl is such a
    file.

    Args:
        path: the file, or the folder with its only .jsonl, or the folder whose folders train, val
            and test have a metadata.jsonl each.
        images: the folder that the names are below; left out, the file's own.
        split: what to call the data; it selects nothing.
        checks: as in `sort_out`.

    Raises:
        ValueError: there is no such file, or several, or as `gather`.
    """
    found = Annotations()
    for file, folder in _require_tables(path, ".jsonl").items():
        for place, line in read_lines(file, os.path.join(folder, file.name)):
            try:
                row = parse_json(line)
            except ValueError as error:
                found.broken[place] = f"expected a JSON object, got {error}"
                continue
            caption = _choose(row, ("captions", *CAPTION)) if isinstance(row, dict) else ""
            if not caption:
                found.broken[place] = (
                    "expected an object with image (or file_name) and caption (or captions, text)"
                )
                continue
            picture = _below(folder, row.get(_choose(row, PICTURE)))
            found.add(place, picture, row[caption], split=row.get("split"))
    return _gather_tables(found, path, images, split, checks)


def find_tables(folder: Path, suffix: Literal[".csv", ".jsonl"]) -> list[Path]:
    """A folder's captions.csv and metadata.csv, or its .jsonl; else the metadata of its splits."""
    own = sorted(folder.glob("*.jsonl"))
    if suffix == ".csv":
        own = [folder / name for name in ("captions.csv", "metadata.csv")]
    below = [each for each in folder.glob(f"*/metadata{suffix}") if is_split(each.parent)]
    return [each for each in own if each.is_file()] or sorted(below)


def _require_tables(path: Path, suffix: Literal[".csv", ".jsonl"]) -> dict[Path, str]:
    """The tables at a path, each with the folder that its names are below: a split's, or none."""
    files = find_tables(path, suffix) if path.is_dir() else [path]
    if not files or (len(files) > 1 and files[0].parent == path):
        wanted = "captions.csv or metadata.csv" if suffix == ".csv" else "one .jsonl"
        names = f"{len(files)} ({', '.join(file.name for file in files)})" if files else "none"
        raise ValueError(f"Expected {wanted} in {path}, got {names}; name the file.")
    return {file: file.parent.name if file.parent.parent == path else "" for file in files}


def _below(folder: str, name: object) -> object:
    """A name, below a folder if there is one; what is no name stays, to be reported."""
    return os.path.join(folder, name) if isinstance(name, str) and name.strip() else name


def _gather_tables(
    found: Annotations, path: Path, images: Path | None, split: str, checks: Checks
) -> UsableImages:
    folder = path if path.is_dir() else path.parent
    return gather(found, images or folder, split, name_folder(folder), checks)


def _choose(known: Iterable[str], names: Sequence[str]) -> str:
    """The first of some names that is known, else nothing."""
    return next((name for name in names if name in known), "")
