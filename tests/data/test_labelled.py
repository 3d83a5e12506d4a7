"""Labelled pictures, from files in their real formats that the tests write."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import open_clip
import pytest
from PIL import Image
from torchvision import datasets

from dclip_kit.data.labelled import (
    LABELLED_READERS,
    read_cifar,
    read_class_folders,
    read_labelled,
)
from dclip_kit.runtime.files import filling


def write_pictures(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), "red").save(root / name)
    return root


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes."""
    return write_pictures(tmp_path / "pets", ["tabby_cat/b.png", "tabby_cat/a.JPEG", "dog/c.jpg"])


# A folder a class


def test_a_folder_a_class_reads_as_torchvision_reads_it(folder) -> None:
    (folder / "dog/notes.md").write_text("no picture")
    found = read_class_folders(folder)
    assert [str(path.relative_to(folder)) for path in found.paths] == [
        "dog/c.jpg",
        "tabby_cat/a.JPEG",
        "tabby_cat/b.png",
    ]
    assert found.labels == (0, 1, 1) and found.class_names == ("dog", "tabby cat")
    assert found.in_domain == (True, True) and found.source == "pets"
    assert read_labelled(str(folder)) == read_labelled(folder) == found


def test_what_systems_leave_behind_is_no_class(folder) -> None:
    before = read_class_folders(folder)
    left = ["@eaDir/thumb.jpg", ".ipynb_checkpoints/x.png", "__MACOSX/dog/._c.jpg", "dog/._c.jpg"]
    left.append("dog/@eaDir/c.jpg/SYNOPHOTO_THUMB_XL.jpg")
    write_pictures(folder, left)
    assert read_class_folders(folder) == before


def test_pictures_of_every_format_are_read(folder) -> None:
    write_pictures(folder, ["dog/d.gif", "dog/e.webp"])
    assert [path.name for path in read_class_folders(folder).paths][:3] == [
        "c.jpg",
        "d.gif",
        "e.webp",
    ]


@pytest.mark.parametrize("names", [["train", "val"], ["Train", "testing"], ["images"]])
def test_folders_above_the_classes_are_no_classes(names, tmp_path) -> None:
    write_pictures(tmp_path, [f"{name}/{kind}/1.png" for name in names for kind in ("cat", "dog")])
    with pytest.raises(ValueError, match=f"at least two, got {', '.join(sorted(names))}; name the"):
        read_class_folders(tmp_path)


def test_classes_may_be_called_otherwise(folder) -> None:
    text = "tabby_cat tabby, a cat\n\ndog hot dog \nx y\n"
    (folder / "classes.txt").write_text(text, encoding="utf-8")
    assert read_class_folders(folder).class_names == ("hot dog", "tabby, a cat")


def test_folders_with_spaces_may_be_called_otherwise(folder) -> None:
    (folder / "dog").rename(folder / "dog x")
    (folder / "tabby_cat").rename(folder / "dog")
    (folder / "classes.txt").write_text("dog x a white bear\ndog a  cat\n")
    assert read_class_folders(folder).class_names == ("a  cat", "a white bear")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dog hot dog\n", "each of 2 classes in .*, got none for tabby_cat; add 1"),
        ("dog\ntabby_cat\n", "got none for dog, tabby_cat; add 2"),
    ],
)
def test_names_that_do_not_cover_the_classes_are_refused(text, says, folder) -> None:
    (folder / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=says):
        read_class_folders(folder)


@pytest.mark.parametrize("missing", ["all", "pictures", "classes"])
def test_a_folder_without_classes_or_pictures_is_named(missing, folder) -> None:
    if missing == "pictures":
        (folder / "empty").mkdir()
    place = {"all": folder / "nowhere", "pictures": folder, "classes": folder / "dog"}[missing]
    says = "found none of empty; add" if missing == "pictures" else str(place)
    with pytest.raises((FileNotFoundError, ValueError), match=says):
        read_class_folders(place)


@pytest.mark.parametrize("numbers", [("n01440764", "n01443537"), ("1", "102")], ids=str)
def test_numbers_are_no_names(numbers, tmp_path) -> None:
    write_pictures(tmp_path, [f"{each}/a.png" for each in numbers])
    with pytest.raises(ValueError, match=rf"got numbers \({numbers[0]}\); say their names in"):
        read_class_folders(tmp_path)
    write_pictures(tmp_path, [f"{numbers[0]} roses/a.png"])  # not a number alone
    assert f"{numbers[0]} roses" in read_class_folders(tmp_path).class_names


# ImageNet


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    """A picture of each class, in another order than that of the classes."""
    root = tmp_path_factory.mktemp("val")
    for index in reversed(range(1000)):
        (root / f"n{10_000_000 + index * 37}").mkdir()
    picture = write_pictures(root, ["one.JPEG"]) / "one.JPEG"
    for index, place in enumerate(sorted(path for path in root.iterdir() if path.is_dir())):
        (place / f"ILSVRC2012_val_{index:08d}.JPEG").hardlink_to(picture)
    picture.unlink()
    return root


def test_imagenets_classes_are_in_the_order_of_their_numbers(imagenet) -> None:
    found = read_class_folders(imagenet, imagenet=True)
    assert len(found) == 1000 and found.labels == tuple(range(1000))
    assert [int(path.stem[-8:]) for path in found.paths] == list(range(1000))
    assert found.class_names == tuple(open_clip.IMAGENET_CLASSNAMES)
    assert found.class_names[0] == "tench" and found.source == "ImageNet-1k val"
    assert read_labelled(f"imagenet:{imagenet}") == found


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["n01440764/a.png", "n01443537/b.png"], r"exactly 1000 .*got 2 such and 0 others; sort"),
        (["n01440764/a.png", "tench/b.png"], r"exactly 1000 .*got 1 such and 1 others; sort"),
    ],
)
def test_not_all_of_imagenet_is_refused(names, says, tmp_path) -> None:
    with pytest.raises(ValueError, match=says):
        read_class_folders(write_pictures(tmp_path, names), imagenet=True)


def test_a_thousand_folders_of_something_else_are_refused(imagenet, tmp_path) -> None:
    root = tmp_path / "val"
    root.mkdir()
    places = sorted(imagenet.iterdir())
    for place in places[:-1]:
        (root / place.name).symlink_to(place)
    (root / "other").symlink_to(places[-1])
    with pytest.raises(ValueError, match="got 999 such and 1 others"):
        read_class_folders(root, imagenet=True)


# CIFAR


@pytest.fixture(params=[10, 100])
def cifar(request, tmp_path, monkeypatch) -> tuple[int, Path, np.ndarray]:
    """A data set's test batch in its published format, of five pictures.

    torchvision goes on checking digests, but those of these files.
    """
    kind = {10: datasets.CIFAR10, 100: datasets.CIFAR100}[request.param]
    place = tmp_path / "data" / kind.base_folder
    place.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    batch = {"data": pixels.transpose(0, 3, 1, 2).reshape(5, -1)}
    batch |= {"labels" if request.param == 10 else "fine_labels": [3, 1, 1, 0, 2]}
    meta = {kind.meta["key"]: ["airplane", "aquarium_fish", "bird", "cat"]}

    def write(name: str, content: dict) -> str:
        (place / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((place / name).read_bytes()).hexdigest()

    monkeypatch.setattr(kind, "train_list", [])
    name = kind.test_list[0][0]
    monkeypatch.setattr(kind, "test_list", [[name, write(name, batch)]])
    digest = write(kind.meta["filename"], meta)
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": digest})
    return request.param, tmp_path / "data", pixels


def test_cifars_test_pictures_get_paths(cifar) -> None:
    classes, root, pixels = cifar
    found = read_cifar(root, classes)
    assert found.labels == (3, 1, 1, 0, 2) and found.source == f"CIFAR-{classes} test"
    assert found.class_names == ("airplane", "aquarium fish", "bird", "cat")
    for path, expected in zip(found.paths, pixels, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), expected)
    stamp = found.paths[0].stat().st_mtime_ns
    assert read_labelled(f"cifar{classes}:{root}") == found
    assert found.paths[0].stat().st_mtime_ns == stamp  # unpacked once
    base = {10: datasets.CIFAR10, 100: datasets.CIFAR100}[classes].base_folder
    assert {path.name for path in root.iterdir()} == {base, f"cifar-{classes}-test"}


def test_another_process_may_unpack_first(cifar) -> None:
    classes, root, _ = cifar
    whole = read_cifar(root, classes)
    unpacked = whole.paths[0].parent
    with filling(unpacked) as late:
        Image.new("RGB", (1, 1)).save(late / "00000.png")
    assert Image.open(whole.paths[0]).size == (32, 32) and len(list(unpacked.iterdir())) == 5


def test_a_damaged_batch_is_refused(cifar) -> None:
    classes, root, _ = cifar
    batch = next(path for path in root.rglob("test*") if path.is_file())
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(FileNotFoundError, match=f"Expected CIFAR-{classes} whole in {root}"):
        read_cifar(root, classes)


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_that_is_not_there_is_one_sentence(classes, tmp_path) -> None:
    says = rf"CIFAR-{classes} whole in {tmp_path}.*; download https://.*cifar.* and unpack it in"
    with pytest.raises(FileNotFoundError, match=says):
        read_cifar(tmp_path, classes)
    assert not list(tmp_path.iterdir())


def test_each_kind_has_a_reader() -> None:
    assert list(LABELLED_READERS) == ["imagenet", "cifar10", "cifar100"]
    with pytest.raises(FileNotFoundError, match="imagenet21k:/x"):
        read_labelled("imagenet21k:/x")
