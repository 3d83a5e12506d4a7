"""Splits that a seed decides: of the right sizes, with copies together, the same everywhere."""

import shutil
from pathlib import Path

import pytest

from dclip_kit.data.division import draw_splits, halve_labelled
from dclip_kit.data.images import LabelledImages


def write(folder: Path, contents: dict[str, bytes]) -> list[Path]:
    """Files of these bytes; nothing here looks at the pictures themselves."""
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    return write(tmp_path / "own", {f"{i}.jpg": f"picture {i}".encode() for i in range(500)})


def names(paths: list[Path], splits: list[str], split: str) -> set[str]:
    return {path.name for path, own in zip(paths, splits, strict=True) if own == split}


def test_about_a_tenth_goes_to_each_split(paths) -> None:
    splits = draw_splits(paths, ["val", "test"])
    assert set(splits) == {"train", "val", "test"}
    for split in ("val", "test"):  # a binomial of 500: three standard deviations are 20
        assert 30 <= splits.count(split) <= 70


def test_what_exists_is_not_drawn(paths) -> None:
    assert set(draw_splits(paths, [])) == {"train"}
    both, val = draw_splits(paths, ["val", "test"]), draw_splits(paths, ["val"])
    assert set(val) == {"train", "val"}
    assert names(paths, val, "val") == names(paths, both, "val")  # the same, drawn alone
    test = draw_splits(paths, ["test"])
    assert names(paths, test, "test") == names(paths, both, "test")


def test_the_seed_decides_and_neither_names_nor_order_do(paths, tmp_path) -> None:
    first = names(paths, draw_splits(paths, ["val"], 7), "val")
    backwards = paths[::-1]
    assert names(backwards, draw_splits(backwards, ["val"], 7), "val") == first
    assert names(paths, draw_splits(paths, ["val"], 8), "val") != first
    renamed = write(tmp_path / "b", {f"x{p.name}": p.read_bytes() for p in paths})
    moved = names(renamed, draw_splits(renamed, ["val"], 7), "val")
    assert {name[1:] for name in moved} == first


def test_a_picture_keeps_its_split_whatever_is_added(paths, tmp_path) -> None:
    before = dict(zip(paths, draw_splits(paths, ["val", "test"]), strict=True))
    more = write(tmp_path / "own", {f"new {i}.jpg": f"more {i}".encode() for i in range(900)})
    after = dict(zip(paths + more, draw_splits(paths + more, ["val", "test"]), strict=True))
    assert {path: after[path] for path in paths} == before
    assert "test" in {after[path] for path in more}


def test_copies_of_a_file_stay_together(paths) -> None:
    copies = [path.with_name(f"copy of {path.name}") for path in paths]
    for path, copy in zip(paths, copies, strict=True):
        shutil.copy(path, copy)
    splits = draw_splits(paths + copies, ["val", "test"])
    assert splits[: len(paths)] == splits[len(paths) :]


def test_a_picture_that_has_gone_is_named(paths) -> None:
    paths[3].unlink()
    with pytest.raises(ValueError, match=r"divide all pictures .*3\.jpg"):
        draw_splits(paths, ["val"])


def labelled(labels: list[int]) -> LabelledImages:
    paths = tuple(Path(f"{i}.jpg") for i in range(len(labels)))
    return LabelledImages(paths, tuple(labels), ("a", "b", "c"), (True,) * 3, "own")


def test_labelled_pictures_are_halved_class_by_class() -> None:
    whole = labelled([0, 1, 2] * 20 + [0])
    val, test = halve_labelled(whole, 3)
    assert (len(val), len(test)) == (31, 30)
    assert set(val.paths) | set(test.paths) == set(whole.paths)
    assert not set(val.paths) & set(test.paths)
    labels = dict(zip(whole.paths, whole.labels, strict=True))
    for half in (val, test):
        assert all(abs(half.labels.count(label) - 10) <= 1 for label in range(3))
        assert half.labels == tuple(labels[path] for path in half.paths)
        assert (half.class_names, half.source) == (whole.class_names, whole.source)
    assert halve_labelled(whole, 3) == (val, test)
    assert halve_labelled(whole, 4)[0] != val
