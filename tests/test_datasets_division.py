"""Splits that a seed decides: of the right sizes, with copies together, the same everywhere."""

import shutil
from pathlib import Path

import pytest

from dclip_kit.datasets.division import draw_splits, halve_labelled
from dclip_kit.datasets.images import CaptionedImages, LabelledImages


def write(folder: Path, contents: dict[str, bytes]) -> CaptionedImages:
    """Files of these bytes; nothing here looks at the pictures themselves."""
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    paths = tuple(folder / name for name in contents)
    return CaptionedImages(paths, tuple((f"of {p.name}",) for p in paths), "all", folder.name)


@pytest.fixture
def dataset(tmp_path) -> CaptionedImages:
    return write(tmp_path / "own", {f"{i}.jpg": f"picture {i}".encode() for i in range(50)})


def names(dataset: CaptionedImages) -> list[str]:
    return [path.name for path in dataset.paths]


def test_a_tenth_goes_to_each_split_and_nothing_is_lost(dataset) -> None:
    parts = draw_splits(dataset, ["val", "test"])
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 40,
        "val": 5,
        "test": 5,
    }
    assert all(part.split == split for split, part in parts.items())
    everything = [name for part in parts.values() for name in names(part)]
    assert sorted(everything) == sorted(names(dataset))
    for part in parts.values():
        assert names(part) == [name for name in names(dataset) if name in names(part)]  # in order
        assert part.captions == tuple((f"of {name}",) for name in names(part))


def test_what_exists_is_not_drawn(dataset) -> None:
    assert draw_splits(dataset, []) == {"train": dataset}
    parts = draw_splits(dataset, ["val"])
    assert {split: len(part) for split, part in parts.items()} == {"train": 45, "val": 5}


def test_the_seed_decides_and_neither_names_nor_order_do(dataset, tmp_path) -> None:
    first = {split: set(names(part)) for split, part in draw_splits(dataset, ["val"], 7).items()}
    again = draw_splits(dataset.select(range(49, -1, -1)), ["val"], 7)
    assert {split: set(names(part)) for split, part in again.items()} == first
    assert set(names(draw_splits(dataset, ["val"], 8)["val"])) != first["val"]
    renamed = write(tmp_path / "b", {f"x{p.name}": p.read_bytes() for p in dataset.paths})
    moved = draw_splits(renamed, ["val"], 7)["val"]
    assert {name[1:] for name in names(moved)} == first["val"]


def test_copies_of_a_file_stay_together(dataset, tmp_path) -> None:
    for path in dataset.paths:
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    copies = tuple(path.with_name(f"copy of {path.name}") for path in dataset.paths)
    both = CaptionedImages(dataset.paths + copies, dataset.captions * 2, "all", "own")
    for part in draw_splits(both, ["val", "test"]).values():
        assert sum(name.startswith("copy") for name in names(part)) * 2 == len(part)


def test_too_few_different_pictures_are_refused(tmp_path) -> None:
    few = write(tmp_path / "own", {f"{i}.jpg": b"%d" % (i % 5) for i in range(9)})
    with pytest.raises(ValueError, match=r"at least 6 different .* train, val, test, got 5"):
        draw_splits(few, ["val", "test"])
    assert len(draw_splits(few, ["val"])["val"]) >= 2


def test_a_picture_that_has_gone_is_named(dataset) -> None:
    dataset.paths[3].unlink()
    with pytest.raises(ValueError, match=r"Expected to read .*3\.jpg"):
        draw_splits(dataset, ["val"])


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
