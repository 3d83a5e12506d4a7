"""Folders that are splits, folders that are not, and a data set read split by split."""

from pathlib import Path

import pytest
from PIL import Image

from dclip_kit.data import read_captioned
from dclip_kit.data.own_splits import split_by_folder
from dclip_kit.data.read import read_format


def write(folder: Path, *names: str) -> Path:
    """Pictures with a text beside each."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"of {name}")
    return folder


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train/a.png", "val/a.png", "test/a.png"], ["train", "val", "test"]),
        (["Training/a.png", "VALID/b/a.png"], ["train", "val"]),
        (["test/a.png"], ["test"]),
        (["train/a.png", "train/b.png"], []),  # locomotives
        (["train/a.png", "cat/a.png", "a.png"], []),
        (["00000/a.png", "00001/a.png"], []),
        (["cat/val/a.png", "val.png", "test"], []),
        (["images/train/a.png", "images/val/b/a.png"], ["train", "val"]),
        (["cat/train/a.png", "dog/old/test/a.png"], ["train", "test"]),
        (["cat/train/a.png", "dog/train/a.png"], []),
        (["cat/test/a.png", "dog/a.png"], []),
        ([], []),
    ],
)
def test_folders_are_splits_if_one_of_them_is_val_or_test(names, splits) -> None:
    assert split_by_folder([Path("data") / name for name in names], Path("data")) == splits


def test_pictures_beside_the_folders_of_splits_are_an_error(tmp_path) -> None:
    names = ("train/a.png", "train/b.png", "val/a.png", "cat/a.png", "b.png")
    folder = write(tmp_path / "mine", *names)
    with pytest.raises(
        ValueError, match=r"got 2 in train, 1 in val and 2 elsewhere \(the first, '[bc].*move them"
    ):
        read_captioned(folder)


def test_so_they_are_in_a_folder_that_all_pictures_share() -> None:
    names = ("images/train/a.png", "images/val/a.png", "images/b.png")
    with pytest.raises(ValueError, match="got 1 in train, 1 in val and 1 elsewhere"):
        split_by_folder([Path("data") / name for name in names], Path("data"))


def test_a_table_takes_the_folders_unless_it_has_a_column(tmp_path) -> None:
    names = ("train/a.png", "val/a.png")
    folder = write(tmp_path, *names)
    rows = [f"{name},a picture" for name in names]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    found = read_captioned(folder, split="all")
    assert (found.dataset.splits, found.splits_from) == (("train", "val"), "folders")
    rows = [f"{name},a picture,test" for name in names]
    (folder / "captions.csv").write_text("\n".join(["image,caption,split", *rows]))
    found = read_captioned(folder, split="all")
    assert (found.dataset.splits, found.splits_from) == (("test", "test"), "column")


def test_a_split_can_be_read_alone(tmp_path) -> None:
    folder = write(tmp_path / "mine", "train/a.png", "train/b.png", "val/a.png")
    assert len(read_format(folder, None, "files", "train", "files").dataset) == 3
    for split, count in [("train", 2), ("val", 1), ("train+val", 3), ("all", 3)]:
        dataset = read_captioned(folder, split=split).dataset
        assert (len(dataset), dataset.split) == (count, split)
    for split in ("test", "mine"):
        with pytest.raises(ValueError, match=rf"of mine are of \(train, val\).*got '{split}'"):
            read_captioned(folder, split=split)
    (folder / "val/a.png").unlink()
    (folder / "val/a.txt").unlink()
    assert len(read_captioned(folder, split="mine").dataset) == 2
