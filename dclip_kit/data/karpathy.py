"""Karpathy's splits of COCO and Flickr30k, which retrieval results are reported on."""

from pathlib import Path
from typing import Any

from dclip_kit.data.annotations import Annotations, find_images, gather, load_json
from dclip_kit.data.usable import Checks, UsableImages

SPLITS = ("train", "restval", "val", "test")
_FOLD = 1000  # pictures
FOLDS = tuple(f"test_1k_{fold}" for fold in range(5))


def read_karpathy(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads dataset_coco.json or dataset_flickr30k.json (or one of that form).

    A COCO picture has five captions, a few have more, and all are kept. COCO's five folds of a
    thousand are the thousands of its test split in the file's order; a picture that cannot be read
    leaves its fold smaller and moves no other.

    Args:
        path: the file, or the folder with the only one.
        images: the folder that has val2014/ and train2014/ (COCO) or the pictures (Flickr30k); left
            out, it is looked for beside the file.
        split: one of `SPLITS`, several joined by "+" ("train+restval" is the usual training set),
            one of `FOLDS`, or "all".
        checks: as in `sort_out`.

    Raises:
        ValueError: there is no such file or split, or it is of another form.
    """
    path = find_karpathy(path)
    record = load_json(path)
    entries = record.get("images") if isinstance(record, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f'Expected a list of "images" in {path}; name one of Karpathy\'s files.')
    source = str(record.get("dataset") or path.stem.removeprefix("dataset_"))
    found = Annotations(splits_from="file")
    for index, entry in select_split(entries, split, path):
        _add_entry(found, f"{path.name}:images[{index}]", entry, source)
    if images is None:
        beside = [path.parent, path.parent.parent]
        below = ("", "images", f"{source}_images", f"{source}-images", source)
        candidates = [folder / name for folder in beside for name in below]
        images = find_images(candidates, (row.name for row in found.rows))
    return gather(found, images, split, source, checks)


def find_karpathy(path: Path) -> Path:
    """The file itself, or a folder's only dataset_*.json.

    Raises:
        ValueError: the folder has none, or several.
    """
    if not path.is_dir():
        return path
    files = sorted(path.glob("dataset_*.json"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise ValueError(f"Expected one dataset_*.json in {path}, got {found}; name the file.")
    return files[0]


def select_split(entries: list[Any], split: str, path: Path) -> list[tuple[int, Any]]:
    """The entries of a split, with their places in the file.

    Raises:
        ValueError: there is no such split, or folds are asked of another test split than COCO's.
    """
    numbered = list(enumerate(entries))
    if split == "all":
        return numbered
    if split in FOLDS:
        test = [(i, each) for i, each in numbered if _split_of(each) == "test"]
        if len(test) != _FOLD * len(FOLDS):
            raise ValueError(
                f"Expected {_FOLD * len(FOLDS)} test pictures in {path} to take folds of, got "
                f"{len(test)}; folds are COCO's, take --split test (split='test' in Python)."
            )
        start = _FOLD * FOLDS.index(split)
        return test[start : start + _FOLD]
    wanted = set(split.split("+"))
    if not wanted <= set(SPLITS):
        known = ", ".join([*SPLITS, *FOLDS, "all"])
        raise ValueError(f"Expected a split of {known}, or some joined by '+', got {split!r}.")
    # An entry without any split is broken: it comes along, to be reported.
    return [(i, each) for i, each in numbered if _split_of(each) in wanted | {None}]


def _split_of(entry: Any) -> str | None:
    split = entry.get("split") if isinstance(entry, dict) else None
    return split if isinstance(split, str) else None


def _add_entry(found: Annotations, place: str, entry: Any, source: str) -> None:
    sentences = entry.get("sentences") if isinstance(entry, dict) else None
    name = entry.get("filename") if isinstance(entry, dict) else None
    if _split_of(entry) is None or not isinstance(sentences, list) or not isinstance(name, str):
        found.broken[place] = "expected an entry with filename, split and sentences"
        return
    captions = [each.get("raw") if isinstance(each, dict) else None for each in sentences]
    image_id = ""
    if "cocoid" in entry:
        image_id = f"coco:{entry['cocoid']}"
    elif source.startswith("flickr"):
        image_id = f"flickr:{Path(name).stem}"
    folder = entry.get("filepath")
    found.add(place, f"{folder}/{name}" if folder else name, captions, image_id, _split_of(entry))
