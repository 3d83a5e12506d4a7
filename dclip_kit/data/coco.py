"""COCO's own caption files, of 2014 and of 2017."""

import re
from pathlib import Path
from typing import Any

from dclip_kit.data.annotations import Annotations, find_images, gather, load_json
from dclip_kit.data.usable import Checks, UsableImages

_NAME = re.compile(r"captions_(train|val|test)(.*)\.json")
_OBJECTS = re.compile(r"(instances|person_keypoints|panoptic|stuff)_(.*\.json)")
_OF_OBJECTS = {"bbox", "category_id", "keypoints", "segmentation", "segments_info"}


def read_coco(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads captions_train2014.json, captions_val2017.json and their like.

    Args:
        path: the file, or the folder of the data set, whose annotations/ has one file of the split.
        images: the folder with the pictures; left out, train2014/ and so on is looked for.
        split: "train" or "val", as the file's name says, or "all", which takes any.
        checks: as in `sort_out`.

    Raises:
        ValueError: there is no such file, it is of another split or of another form, or it has
            objects and no captions.
    """
    path = _find_file(path, split)
    if _OBJECTS.fullmatch(path.name):  # half a gigabyte, which need not be read to be refused
        raise ValueError(_say_objects(path))
    named = _NAME.fullmatch(path.name)
    if named and split not in (named[1], "all"):
        raise ValueError(
            f"Expected the captions of split {split!r}, but {path.name} has those of {named[1]!r}; "
            f"give --split {named[1]} (split={named[1]!r} in Python) or the other file."
        )
    record = load_json(path)
    parts = [record.get(key) for key in ("images", "annotations")] if _is_dict(record) else []
    if len(parts) != 2 or not all(isinstance(part, list) for part in parts):
        raise ValueError(
            f'Expected lists of "images" and "annotations" in {path}; name a COCO caption file.'
        )
    if any(_is_dict(each) and each.keys() & _OF_OBJECTS for each in parts[1]) and not any(
        "caption" in each for each in parts[1] if _is_dict(each)
    ):
        raise ValueError(_say_objects(path))
    found = _join(path, parts[0], parts[1], named[1] if named else "")
    if images is None:
        subset = f"{named[1]}{named[2]}" if named else ""
        near = [path.parent.parent, path.parent]
        candidates = [folder / below / subset for folder in near for below in ("", "images")]
        candidates += [folder / below for folder in near for below in ("", "images")]
        images = find_images(candidates, (row.name for row in found.rows))
    return gather(found, images, named[1] if named else split, "coco", checks)


def find_captions(path: Path) -> list[Path]:
    """The caption files of a data set's folder, in annotations/ or in itself."""
    places = [path / "annotations", path]
    return [f for place in places for f in sorted(place.glob("captions_*.json"))]


def _find_file(path: Path, split: str) -> Path:
    if not path.is_dir():
        return path
    every = find_captions(path)
    files = [f for f in every if split == "all" or f.name.startswith(f"captions_{split}")]
    if len(files) != 1:
        names = ", ".join(file.name for file in every) or "none"
        raise ValueError(
            f"Expected one caption file of split {split!r} in {path}, got {len(files)} (there: "
            f"{names}); name the file."
        )
    return files[0]


def _say_objects(path: Path) -> str:
    named = _OBJECTS.fullmatch(path.name)
    wanted = f"captions_{named[2]} beside it" if named else "a file such as captions_train2017.json"
    return f"Expected captions in {path}, got object annotations without any; give {wanted}."


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _join(path: Path, images: list[Any], annotations: list[Any], split: str) -> Annotations:
    """Brings each caption to its picture; a picture without captions stays."""
    found = Annotations(splits_from="file")
    names: dict[int, str] = {}
    captions: dict[int, list[Any]] = {}
    places: dict[int, str] = {}
    for index, entry in enumerate(images):
        place = f"{path.name}:images[{index}]"
        number = entry.get("id") if _is_dict(entry) else None
        if not isinstance(number, int) or not isinstance(entry.get("file_name"), str):
            found.broken[place] = "expected a picture with id and file_name"
            continue
        names[number], captions[number], places[number] = entry["file_name"], [], place
    for index, entry in enumerate(annotations):
        number = entry.get("image_id") if _is_dict(entry) else None
        place = f"{path.name}:annotations[{index}]"
        if not isinstance(number, int) or not isinstance(entry.get("caption"), str):
            found.broken[place] = "expected a caption with its image_id"
        elif number not in names:
            found.broken[place] = f"expected the id of a picture of this file, got {number}"
        else:
            captions[number].append(entry["caption"])
    for number, name in names.items():
        found.add(places[number], name, captions[number], f"coco:{number}", split)
    return found
