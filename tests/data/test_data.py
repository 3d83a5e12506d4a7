"""The two shapes of data, what they refuse, and pictures of any kind that are opened."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from dclip_kit.data import CaptionedImages, LabelledImages, open_picture

PATHS = (Path("a.jpg"), Path("b.jpg"), Path("c.jpg"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """One picture of each fate."""
    picture = Image.effect_noise((40, 30), 90).convert("RGB")
    for name, mode in [("whole.jpg", "RGB"), ("gray.png", "L"), ("clear.png", "RGBA")]:
        picture.convert(mode).save(tmp_path / name)
    picture.convert("P").save(tmp_path / "palette.gif")
    for name, format in [("cut.jpg", "JPEG"), ("cut.png", "PNG"), ("cut.webp", "WEBP")]:
        picture.save(tmp_path / name, format)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    picture.save(tmp_path / "odd.dds")  # Pillow raises ValueError where others raise OSError
    (tmp_path / "odd.dds").write_bytes((tmp_path / "odd.dds").read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    return tmp_path


READABLE = ("whole.jpg", "gray.png", "clear.png", "palette.gif")
UNREADABLE = ("cut.jpg", "cut.png", "cut.webp", "odd.dds", "text.jpg", "empty.jpg", "folder.jpg")


# Pictures


@pytest.mark.parametrize("name", READABLE)
def test_pictures_of_any_mode_arrive_as_rgb(folder, name) -> None:
    picture = open_picture(str(folder / name))
    assert picture.mode == "RGB" and picture.size == (40, 30)
    (folder / name).unlink()  # and whole: nothing more is read from the file
    assert picture.resize((4, 3)).getextrema()[0][1] > 0


@pytest.mark.parametrize("name", [*UNREADABLE, "missing.jpg"])
def test_an_unreadable_picture_is_named(folder, name) -> None:
    with pytest.raises(ValueError, match=rf"Expected a whole picture at .*{name}, but"):
        open_picture(folder / name)


def test_every_decoders_failure_is_told_the_same_way(folder, monkeypatch) -> None:
    def fail(*_) -> None:
        raise RuntimeError("Failed to decode frame 0")  # as Pillow's AVIF plugin does

    monkeypatch.setattr(JpegImageFile, "load", fail)
    with pytest.raises(ValueError, match=r"Expected a whole picture at .*Failed to decode frame 0"):
        open_picture(folder / "whole.jpg")


# Captioned pictures


def test_texts_and_their_owners_stand_picture_by_picture() -> None:
    dataset = CaptionedImages(PATHS, (("one", "two"), (), ("three",)), "val", "mine")
    assert len(dataset) == 3
    assert dataset.texts == ["one", "two", "three"]
    assert dataset.image_of_text.tolist() == [0, 0, 2]
    assert dataset.image_of_text.dtype == torch.int64


def test_each_picture_may_have_a_split_of_its_own() -> None:
    captions = (("one",), (), ("two",))
    dataset = CaptionedImages(PATHS, captions, "all", "mine", splits=("train", "", "val"))
    assert dataset.select([2, 1]).splits == ("val", "") and dataset.select([]).splits == ()
    assert CaptionedImages(PATHS, captions, "all", "mine").splits == ("", "", "")
    for splits, says in [
        (("train",), "splits for each of 3 pictures, got 1"),
        (("train", "dev", "val"), "one of train, val, test or empty, got 'dev'"),
    ]:
        with pytest.raises(ValueError, match=says):
            replace(dataset, splits=splits)


def test_ids_are_one_a_picture_and_follow_a_selection() -> None:
    dataset = CaptionedImages(PATHS[:2], (("a",), ("b",)), "val", "mine", ("coco:1", ""))
    assert dataset.select([1, 0]).image_ids == ("", "coco:1")
    assert replace(dataset, image_ids=()).image_ids == ("", "")
    with pytest.raises(ValueError, match="image_ids for each of 2 pictures, got 1"):
        replace(dataset, image_ids=("coco:1",))


def test_select_keeps_the_given_order_and_all_else() -> None:
    dataset = CaptionedImages(PATHS, (("one", "two"), ("three",), ("four",)), "val", "mine")
    assert dataset.texts  # cached before, and not carried over
    chosen = dataset.select([2, 0])
    assert chosen == CaptionedImages(
        (PATHS[2], PATHS[0]), (("four",), ("one", "two")), "val", "mine"
    )
    assert chosen.texts == ["four", "one", "two"]
    assert chosen.image_of_text.tolist() == [0, 1, 1]
    nothing = dataset.select([])
    assert (len(nothing), nothing.texts, nothing.image_of_text.tolist()) == (0, [], [])


@pytest.mark.parametrize(
    ("captions", "says"),
    [
        ((("one",),), "captions for each of 3 pictures, got 1;"),
        (("one", "two", "three"), "got a text; wrap each in a tuple"),
        ("abc", "got a text"),
        ((("one",), ("two", " \n"), ("",)), r"empty one at b.jpg \(and 1 more pictures\)"),
    ],
)
def test_captions_that_do_not_fit_are_refused(captions, says) -> None:
    # As a caller without a type checker would: the shape checks of these tests stand aside.
    dataset = object.__new__(CaptionedImages)
    values = {"paths": PATHS, "captions": captions, "split": "val", "source": "mine"}
    for name, value in values.items():
        object.__setattr__(dataset, name, value)
    with pytest.raises(ValueError, match=says):
        dataset.__post_init__()


# Labelled pictures

LABELLED = LabelledImages(PATHS, (1, 0, 1), ("cat", "dog"), (True, False), "mine")


def test_labelled_pictures_are_counted() -> None:
    assert len(LABELLED) == 3
    assert len(replace(LABELLED, paths=(), labels=())) == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": (0, 1)}, "got 2 for 3 pictures and 2 for 2 classes"),
        ({"in_domain": (True,)}, "got 3 for 3 pictures and 1 for 2 classes"),
        ({"labels": (0, 1, 2)}, "labels from 0 to 1, got 0 to 2"),
        ({"labels": (0, -1, 1)}, "labels from 0 to 1, got -1 to 1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(changes, says) -> None:
    with pytest.raises(ValueError, match=says):
        replace(LABELLED, **changes)


def test_a_few_pictures_of_each_class_keep_their_order_and_labels() -> None:
    paths = tuple(Path(f"{index}.png") for index in range(6))
    data = LabelledImages(paths, (1, 0, 1, 1, 0, 0), ("cat", "dog"), (True, False), "mine")
    few = data.take_per_class(2)
    assert few.paths == tuple(paths[i] for i in (0, 1, 2, 4)) and few.labels == (1, 0, 1, 0)
    assert (few.class_names, few.in_domain, few.source) == (("cat", "dog"), (True, False), "mine")
    assert data.take_per_class(9) == data
    with pytest.raises(ValueError, match=r"at least one picture .* got 0"):
        data.take_per_class(0)
