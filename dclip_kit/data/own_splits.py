"""The splits that data bring with them: what they are called, and folders that are splits."""

from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from dclip_kit.data.images import SPLITS

# What data sets call the splits; a folder or a column says them in capitals, too.
SPLIT_OF = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def is_split(folder: Path) -> bool:
    """Whether a folder is called like a split."""
    return folder.name.lower() in SPLIT_OF


def split_by_folder(paths: Sequence[Path], images: Path) -> list[str]:
    """The split of each picture, by the first folder on its way that is called like one.

    A folder train alone is no split: it may be a class of locomotives. Neither is a folder test
    somewhere further down, unless every picture is in such a folder (cat/train, dog/test).

    Returns:
        As `CaptionedImages.splits`: nothing where no folder is val or test.

    Raises:
        ValueError: some pictures lie in such folders, and others do not.
    """
    names = [path.relative_to(images) for path in paths]
    folders = [[each.lower() for each in name.parts[:-1]] for name in names]
    splits = [next((SPLIT_OF[each] for each in on if each in SPLIT_OF), "") for on in folders]
    if "" in splits:  # beside folders of splits others are a mistake; further down it is a name
        shared = takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False))
        depth = len(list(shared))
        splits = [SPLIT_OF.get("".join(on[depth : depth + 1]), "") for on in folders]
    if not {"val", "test"} & set(splits):
        return []
    if "" in splits:
        counts = Counter(splits)
        there = ", ".join(f"{counts[each]} in {each}" for each in SPLITS if counts[each])
        raise ValueError(
            f"Expected all pictures of {images} in folders of splits or none, got {there} and "
            f"{counts['']} elsewhere (the first, {str(names[splits.index('')])!a}); move "
            "them into train, val or test, or give a captions.csv with a column split."
        )
    return splits
