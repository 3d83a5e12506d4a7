"""COCO's own caption files, of 2014 and of 2017."""

import re
from pathlib import Path
from typing import Any

from dclip_kit.data.annotations import (
    Annotations,
    Checks,
    UsableImages,
    find_file,
    find_files,
    gather,
    join_usable,
    load_json,
)

FILES = ("annotations/captions_*.json", "captions_*.json")
_NAME = re.compile(r"captions_(train|val|test)(.*)\.json")


def read_coco(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads captions_train2014.json, captions_val2017.json and their like.

    Args:
        path: the file, or the folder of the data set, whose annotations/ has one file a split.
        images: the folder with the pictures; left out, train2014/ and so on is looked for.
        split: "train" or "val", as a file's name says, or "all".
        checks: as in `drop_unusable`.

    Raises:
        ValueError: there is no such file, it is of another split or of another form, or it has
            objects and no captions.
    """
    splits = [split]
    if split == "all" and path.is_dir():
        splits = [each for each in ("train", "val") if find_files(path, *_name_files(each))]
    files = [find_file(path, *_name_files(each)) for each in splits or ["train"]]
    return join_usable([_read_file(file, images, split, checks) for file in files])


def _name_files(split: str) -> list[str]:
    return [name.replace("*", f"{split}*") for name in FILES]


def _read_file(path: Path, images: Path | None, split: str, checks: Checks) -> UsableImages:
    """Brings each caption to its picture; a picture without captions stays."""
    record = load_json(path)
    record = record if isinstance(record, dict) else {}
    listed, annotations = record.get("images"), record.get("annotations")
    if not isinstance(listed, list) or not isinstance(annotations, list):
        raise ValueError(
            f'Expected lists of "images" and "annotations" in {path}; name a COCO caption file.'
        )
    if annotations and not any(
        isinstance(each, dict) and "caption" in each for each in annotations
    ):
        raise ValueError(
            f"Expected captions in {path}, got annotations without any; name a file such as "
            "captions_train2017.json."
        )
    named = _NAME.fullmatch(path.name)
    found = Annotations(splits_from="file")
    pictures: dict[int, tuple[str, Any, list[str]]] = {}
    for index, entry in enumerate(listed):
        place = f"{path.name}:images[{index}]"
        if isinstance(entry, dict) and isinstance(entry.get("id"), int):
            pictures[entry["id"]] = place, entry.get("file_name"), []
        else:
            found.unusable[place] = "expected a picture with id and file_name"
    for index, entry in enumerate(annotations):
        said = entry if isinstance(entry, dict) else {}
        number, caption = said.get("image_id"), said.get("caption")
        if isinstance(caption, str) and isinstance(number, int) and number in pictures:
            pictures[number][2].append(caption)
        else:
            place = f"{path.name}:annotations[{index}]"
            found.unusable[place] = "expected a caption and the id of a picture of this file"
    for number, (place, name, captions) in pictures.items():
        found.add(place, name, captions, f"coco:{number}", named[1] if named else "")
    if images is None:
        subset = f"{named[1]}{named[2]}" if named else "images"
        images = found.find_images(path, subset, f"images/{subset}", "", "images")
    return gather(found, images, split, "coco", checks)
