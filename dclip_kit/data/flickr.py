"""Flickr30k as it is given out: results_20130124.token, and the results.csv that many have."""

import re
from pathlib import Path

from dclip_kit.data.annotations import Annotations, find_images, gather, read_lines
from dclip_kit.data.usable import Checks, UsableImages

FILES = ("results_20130124.token", "results.csv")
_HEADER = ["image_name", "comment_number", "comment"]


def read_flickr(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads all of Flickr30k; it has no splits of its own (Karpathy's file has).

    The known results.csv has one row (2199200615.jpg's fifth) that lacks the bar before the
    comment; such rows are left out and named.

    Args:
        path: the file, or its folder, where the .token goes first as it has no broken row.
        images: the folder with the pictures; left out, it is looked for beside the file.
        split: what to call the data; it selects nothing.
        checks: as in `sort_out`.

    Raises:
        ValueError: there is no such file, or it lacks its columns.
    """
    if path.is_dir():
        there = [path / name for name in FILES if (path / name).is_file()]
        if not there:
            raise ValueError(f"Expected one of {', '.join(FILES)} in {path}; name the file.")
        path = there[0]
    found = _read_csv(path) if path.suffix == ".csv" else _read_token(path)
    if images is None:
        below = ("flickr30k_images", "flickr30k-images", "", "images")
        folders = [folder / name for folder in (path.parent, path.parent.parent) for name in below]
        images = find_images(folders, (row.name for row in found.rows))
    return gather(found, images, split, "flickr30k", checks)


def _read_csv(path: Path) -> Annotations:
    found = Annotations()
    columns: list[str] | None = None
    for place, line in read_lines(path):
        fields = [field.strip() for field in line.split("|", 2)]  # a comment may have bars
        if columns is None:
            columns = [field.lower() for field in fields]
            if columns != _HEADER:
                raise ValueError(
                    f"Expected the columns {'| '.join(_HEADER)} in {path}, got {ascii(line)[:100]}."
                )
        elif len(fields) != 3:
            found.broken[place] = f"expected three fields, got {len(fields)}: no comment field"
        else:
            _add(found, place, fields[0], fields[2])
    if columns is None:
        raise ValueError(f"Expected the columns {'| '.join(_HEADER)} in {path}, got an empty file.")
    return found


def _read_token(path: Path) -> Annotations:
    found = Annotations()
    for place, line in read_lines(path):
        match = re.fullmatch(r"([^\t]+)#\d+\t(.*)", line)
        if match is None:
            found.broken[place] = "expected a picture, #, the caption's number, a tab and a caption"
        else:
            _add(found, place, match[1], match[2])
    return found


def _add(found: Annotations, place: str, name: str, caption: str) -> None:
    found.add(place, name, caption, f"flickr:{Path(name).stem}")
