"""Tables of pictures and captions: CSV and JSONL of one's own, and Hugging Face's metadata."""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dclip_kit.data.annotations import (
    Annotations,
    Checks,
    UsableImages,
    find_file,
    find_files,
    gather,
    parse_json,
    read_lines,
)

# The names of a column, or of a JSON's key.
PICTURE = ("image", "file_name")
CAPTION = ("captions", "caption", "text")
CSV_FILES = ("captions.csv", "metadata.csv")
JSONL_FILES = ("*.jsonl",)


def read_csv(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads a CSV with the columns image (or file_name), caption (or text) and perhaps split.

    A picture may have several rows. Hugging Face's metadata.csv is such a file.

    Args:
        path: the file, or the folder with its captions.csv or metadata.csv, or the folder whose
            folders train, val and test have a metadata.csv each.
        images: the folder that the names are below; left out, the file's own.
        split: as in `gather`.
        checks: as in `drop_unusable`.

    Raises:
        ValueError: there is no such file or two, it lacks a column, or as `gather`.
    """
    return _read_tables(path, images, split, checks, CSV_FILES, _read_csv_rows)


def read_jsonl(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads a JSONL: an object a line with image (or file_name), caption (or text), perhaps split.

    A caption may be a list of several, and be called captions. Hugging Face's metadata.jsonl is
    such a file. Arguments and errors are those of `read_csv`; a folder has one .jsonl of any name.
    """
    return _read_tables(path, images, split, checks, JSONL_FILES, _read_jsonl_rows)


def _read_tables(
    path: Path,
    images: Path | None,
    split: str,
    checks: Checks,
    patterns: Sequence[str],
    read_rows: Callable[[Path, str], Iterator[tuple[str, dict[str, Any] | str]]],
) -> UsableImages:
    folder = path if path.is_dir() else path.parent
    files = find_files(path, *patterns, in_splits=True)
    if not files or files[0].parent == folder:
        files = [find_file(path, *patterns)]
    found = Annotations()
    for file in files:
        # Names in a table in the folder of a split are below that folder.
        below = "" if file.parent == folder else file.parent.name
        for place, row in read_rows(file, os.path.join(below, file.name)):
            if isinstance(row, str):
                found.unusable[place] = row
                continue
            name, caption = (
                next((row[key] for key in keys if key in row), None) for keys in (PICTURE, CAPTION)
            )
            if isinstance(name, str) and name.strip():
                name = os.path.join(below, name.strip())
            found.add(place, name, caption, split=row.get("split"))
    return gather(found, images or folder, split, folder.resolve().name, checks)


def _read_csv_rows(path: Path, called: str) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Yields each row with its place, or why it is none."""
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
        # Strict, as a quote that is never closed would otherwise swallow the rows after it.
        rows = csv.reader(lines, strict=True)
        try:
            columns = [column.strip().lower() for column in next(filter(None, rows), [])]
        except csv.Error as error:
            columns = [str(error)]
        if not {*PICTURE} & {*columns} or not {*CAPTION} & {*columns}:
            raise ValueError(
                f"Expected the columns image and caption (or file_name and text) in {path}, "
                f"got {ascii(columns)[:200]}; put a first line that names them, and save the "
                "file with commas between columns and in UTF-8."
            )
        row: list[str] | None = []
        while row is not None:
            place = f"{called}:{rows.line_num + 1}"
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield place, f"expected CSV, got {error} (up to line {rows.line_num})"
                continue
            if row and len(row) == len(columns):
                yield place, dict(zip(columns, row, strict=True))
            elif row:
                got = f"expected {len(columns)} fields, got {len(row)}"
                yield place, f"{got}; quote captions with commas"


def _read_jsonl_rows(path: Path, called: str) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Yields each row with its place, or why it is none."""
    for place, line in read_lines(path, called):
        try:
            row = parse_json(line)
        except ValueError as error:
            row = str(error)
        if not isinstance(row, dict) or not {*CAPTION} & {*row}:
            wanted = "expected an object with image (or file_name) and caption (or captions, text)"
            row = f"{wanted}, got {ascii(row)[:60]}"
        yield place, row
