"""The splits that data bring with them: what they are called, and folders that are splits."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dclip_kit.datasets.images import SPLITS

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
    """The split of each picture, by the first folder on its way from the folder of pictures.

    A folder train alone is no split: it may be a class of locomotives.

    Returns:
        As `CaptionedImages.splits`: nothing where no folder is val or test.

    Raises:
        ValueError: some pictures lie in such folders, and others do not.
    """
    names = [path.relative_to(images) for path in paths]
    splits = [SPLIT_OF.get(n.parts[0].lower(), "") if len(n.parts) > 1 else "" for n in names]
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
