"""Flickr30k as it is given out: results_20130124.token, and the results.csv that many have."""

import re
from pathlib import Path

from dclip_kit.data.annotations import (
    Annotations,
    Checks,
    UsableImages,
    find_file,
    gather,
    read_lines,
)

FILES = ("results_20130124.token", "results.csv")
_TOKEN = re.compile(r"([^\t]+)#\d+\t(.*)")
_CSV = re.compile(r"([^|]+)\|[^|]*\|(.*)")  # a comment may have bars


def read_flickr(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads all of Flickr30k; it has no splits of its own (Karpathy's file has).

    The known results.csv has one row (2199200615.jpg's fifth) that lacks the bar before the
    comment; such rows are left out and named.

    Args:
        path: the file, or the folder with the only one.
        images: the folder with the pictures; left out, it is looked for beside the file.
        split: what to call the data.
        checks: as in `drop_unusable`.

    Raises:
        ValueError: the folder has no such file, or both.
    """
    path = find_file(path, *FILES)
    row = _CSV if path.suffix == ".csv" else _TOKEN
    found = Annotations()
    for place, line in read_lines(path):
        match = row.fullmatch(line)
        if match and match[1] != "image_name":  # the header's
            name = match[1].strip()
            found.add(place, name, match[2], f"flickr:{Path(name).stem}")
        elif not match:
            found.unusable[place] = "expected a picture, its caption's number and a caption"
    if images is None:
        images = found.find_images(path, "flickr30k_images", "flickr30k-images", "", "images")
    return gather(found, images, split, "flickr30k", checks)
