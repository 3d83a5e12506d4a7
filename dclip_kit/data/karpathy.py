"""Karpathy's splits of COCO and Flickr30k, which retrieval results are reported on."""

from pathlib import Path
from typing import Any

from dclip_kit.data.annotations import (
    Annotations,
    Checks,
    UsableImages,
    find_file,
    gather,
    load_json,
)


def read_karpathy(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads dataset_coco.json or dataset_flickr30k.json (or one of that form).

    A COCO picture has five captions, a few have more, and all are kept. What the file calls restval
    is of train, as is usual.

    Args:
        path: the file, or the folder with the only one.
        images: the folder that has val2014/ and train2014/ (COCO) or the pictures (Flickr30k); left
            out, it is looked for beside the file.
        split: train, val, test, several joined by "+", "all", or test_1k_0 to test_1k_4: the five
            thousands of COCO's test in the file's order, which many results are the mean of.
        checks: as in `drop_unusable`.

    Raises:
        ValueError: there is no such file or split, or it is of another form.
    """
    path = find_file(path, "dataset_*.json")
    record = load_json(path)
    entries = record.get("images") if isinstance(record, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f'Expected a list of "images" in {path}; name one of Karpathy\'s files.')
    source = str(record.get("dataset") or path.stem.removeprefix("dataset_"))
    numbered = list(enumerate(entries))
    if split.startswith("test_1k_"):
        numbered, split = _take_fold(numbered, split, path), "test"
    found = Annotations(splits_from="file")
    for index, entry in numbered:
        place = f"{path.name}:images[{index}]"
        sentences = entry.get("sentences") if isinstance(entry, dict) else None
        if not isinstance(sentences, list):
            found.unusable[place] = "expected an entry with filename, split and sentences"
            continue
        captions = [each.get("raw") if isinstance(each, dict) else None for each in sentences]
        name, image_id = entry.get("filename"), ""
        if "cocoid" in entry:
            image_id = f"coco:{entry['cocoid']}"
        elif source.startswith("flickr"):
            image_id = f"flickr:{Path(str(name)).stem}"
        if entry.get("filepath") and name:
            name = f"{entry['filepath']}/{name}"
        found.add(place, name, captions, image_id, entry.get("split"))
    if images is None:
        below = ("", "images", f"{source}_images", f"{source}-images", source)
        images = found.find_images(path, *below)
    return gather(found, images, split, source, checks)


def _take_fold(numbered: list[tuple[int, Any]], split: str, path: Path) -> list[tuple[int, Any]]:
    """A thousand of COCO's test; a picture that cannot be read leaves its fold smaller."""
    folds = [f"test_1k_{number}" for number in range(5)]
    test = [(i, each) for i, each in numbered if isinstance(each, dict)]
    test = [(i, each) for i, each in test if each.get("split") == "test"]
    if split not in folds or len(test) != 5000:
        raise ValueError(
            f"Expected one of {', '.join(folds)}, of a file with 5,000 test pictures, got "
            f"{split!r} and {len(test):,} in {path}; folds are COCO's, give --split test."
        )
    start = 1000 * folds.index(split)
    return test[start : start + 1000]
