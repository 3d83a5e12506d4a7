"""Rows become captioned pictures; what does not fit is named, and no name leads out."""

import os
import re
from pathlib import Path

import pytest
from PIL import Image

from dclip_kit.data.annotations import (
    Annotations,
    find_images,
    gather,
    load_json,
    path_inside,
    read_lines,
)
from dclip_kit.data.images import CaptionedImages


@pytest.fixture
def images(tmp_path) -> Path:
    (tmp_path / "images/deep").mkdir(parents=True)
    for name in ("images/a.png", "images/deep/b.png", "secret.png"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / name)
    (tmp_path / "images/link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "images/near.png").symlink_to("a.png")
    (tmp_path / "images/up").symlink_to(tmp_path)
    (tmp_path / "images/loop").symlink_to("loop")
    return tmp_path / "images"


def test_rows_of_one_picture_are_joined_in_order(images) -> None:
    found = Annotations()
    found.add("f:1", "deep/b.png", "one", "coco:7")
    found.add("f:2", "a.png", None)
    found.add("f:3", "./deep/b.png", [" two ", ""])
    result = gather(found, images, "val", "mine")
    assert result.dataset == CaptionedImages(
        (images / "deep/b.png", images / "a.png"),
        (("one", "two"), ()),
        "val",
        "mine",
        ("coco:7", ""),
    )
    assert (result.empty_captions, result.unreadable, result.broken_rows) == (2, {}, {})


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "/etc/passwd",
        "deep/../../secret.png",
        "up/../secret.png",
        "a\0.png",
    ],
)
@pytest.mark.parametrize("checks", ["pictures", "names"])
def test_names_that_lead_out_or_nowhere_are_refused(images, name, checks) -> None:
    found = Annotations()
    found.add("f:1", name, "a secret")
    found.add("f:2", "near.png", "a link within")
    result = gather(found, images, "val", "mine", checks)
    assert result.dataset.paths == (images / "near.png",)
    assert list(result.unreadable) == [Path(name)]
    assert str(result.unreadable[Path(name)]).startswith("Expected a path below ")


def test_links_below_the_folder_are_followed_and_counted_where_they_lead_out(images) -> None:
    found = Annotations()
    for name in ("link.png", "up/secret.png", "near.png", "a.png"):
        found.add("f:1", name, "a picture")
    result = gather(found, images, "val", "mine")
    names = ("link.png", "up/secret.png", "near.png", "a.png")
    assert result.dataset.paths == tuple(images / name for name in names)
    assert (result.unreadable, result.linked) == ({}, 2)
    (images / "again").symlink_to(images)  # the folder itself may be a link
    assert gather(found, images / "again", "val", "mine").linked == 2


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gone.png", r"gone\.png \(a link to nowhere\.png\), but found nothing"),
        ("pipe.png", r"pipe\.png \(a link to \.\./pipe\), but found something that is no file"),
        ("text.png", r"text\.png \(a link to \.\./text\), but reading it failed"),
        ("loop/a.png", r"a\.png \(.*loop is a link to loop\), but found nothing"),
        ("lost/a.png", r"a\.png \(.*lost is a link to nowhere\), but found nothing"),
    ],
)
def test_a_link_to_no_picture_is_named_as_a_link(images, tmp_path, name, says) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("no picture")
    for link, target in [("gone.png", "nowhere.png"), ("lost", "nowhere")]:
        (images / link).symlink_to(target)
    for each in ("pipe", "text"):
        (images / f"{each}.png").symlink_to(f"../{each}")
    found = Annotations()
    found.add("f:1", name, "a picture")
    result = gather(found, images, "val", "mine")
    assert list(result.unreadable) == [images / name] and result.linked == 0
    assert re.search(says, result.unreadable[images / name])


def test_an_absolute_name_below_the_folder_is_the_picture_there(images) -> None:
    found = Annotations()
    found.add("f:1", str(images / "a.png"), "one")
    found.add("f:2", "a.png", "two")
    assert gather(found, images, "val", "mine").dataset.captions == (("one", "two"),)
    (images.parent / "other").symlink_to(images)
    assert len(gather(found, images.parent / "other", "val", "mine").dataset) == 1


# Splits of the rows


def test_each_row_may_say_its_split_in_any_of_the_usual_words(images) -> None:
    found = Annotations()
    for number, (name, word) in enumerate([("a.png", " Dev"), ("deep/b.png", "restval")]):
        found.add(f"f:{number}", name, "a picture", split=word)
    result = gather(found, images, "all", "mine")
    assert (result.dataset.splits, result.splits_from) == (("val", "train"), "column")
    found.splits_from = "file"
    assert gather(found, images, "all", "mine").splits_from == "file"


def test_rows_without_a_known_split_are_broken_where_others_have_one(images) -> None:
    found = Annotations()
    for number, word in enumerate(["train", "holdout", "", None, 7, "TRAINING"]):
        found.add(f"f:{number}", "a.png", f"caption {number}", split=word)
    result = gather(found, images, "all", "mine")
    assert result.dataset.captions == (("caption 0", "caption 5"),)
    words = "train, training, restval, val, valid, validation, dev, test, testing"
    assert result.broken_rows == {
        "f:1": f"expected a split ({words}), got 'holdout'",
        "f:4": f"expected a split ({words}), got 7",
        "f:2": f"expected a split ({words}) as other rows have, got none",
        "f:3": f"expected a split ({words}) as other rows have, got none",
    }


def test_a_picture_of_two_splits_is_left_out_and_named(images) -> None:
    found = Annotations()
    found.add("f:1", "a.png", "one", split="train")
    found.add("f:2", "deep/b.png", "one", split="train")
    found.add("f:3", str(images / "a.png"), "two", split="test")
    result = gather(found, images, "all", "mine")
    assert result.dataset.paths == (images / "deep/b.png",)
    assert list(result.broken_rows) == ["f:3"]
    assert re.search(
        r"one split a picture, got train \(f:1\) and test for 'a.png'", result.broken_rows["f:3"]
    )


def test_no_row_with_a_split_is_no_split(images) -> None:
    found = Annotations()
    found.add("f:1", "a.png", "one", split=" ")
    result = gather(found, images, "all", "mine")
    assert (result.dataset.splits, result.splits_from, result.broken_rows) == ((), "", {})


@pytest.mark.parametrize(
    ("name", "captions", "reason"),
    [
        (None, "a", "expected the name of a picture, got None"),
        ("  ", "a", "expected the name of a picture"),
        ("a.png", 7, "expected captions as text, got 7"),
        ("a.png", ["a", 7], "expected captions as text"),
        ("a.png", {"a": "b"}, "expected captions as text"),
        ("a.png", "caf\udce9", "expected UTF-8"),
        ("\ud83d.png", "half a character", "expected UTF-8"),
    ],
)
def test_rows_that_cannot_be_understood_are_named(name, captions, reason) -> None:
    found = Annotations()
    found.add("captions.csv:7", name, captions)
    assert not found.rows and list(found.broken) == ["captions.csv:7"]
    assert found.broken["captions.csv:7"].startswith(reason)


def test_a_name_outside_is_outside(images) -> None:
    assert path_inside(images, "deep/b.png") == images / "deep/b.png"
    with pytest.raises(ValueError, match="leads out of it"):
        path_inside(images, "..")


def test_the_folder_that_has_the_pictures_is_found(images, tmp_path) -> None:
    candidates = [tmp_path / "none", images, images / "deep"]
    assert find_images(candidates, ["b.png"]) == images / "deep"
    assert find_images(candidates, ["../x.png", "no.png", "a.png"]) == images
    assert find_images(candidates, ["no.png"]) == candidates[0]


def test_lines_keep_their_numbers_and_their_bytes(tmp_path) -> None:
    (tmp_path / "f.txt").write_bytes(b"\xef\xbb\xbfone\r\n\ncaf\xe9\n")
    assert list(read_lines(tmp_path / "f.txt")) == [("f.txt:1", "one"), ("f.txt:3", "caf\udce9")]
    with pytest.raises(ValueError, match=r"Expected to read .*none\.txt"):
        list(read_lines(tmp_path / "none.txt"))


@pytest.mark.parametrize("content", [b"{", b"\xff{}", b"[" * 100_000, b""])
def test_what_is_no_json_is_told_in_a_sentence(tmp_path, content) -> None:
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"Expected to read .*f\.json, but it failed"):
        load_json(tmp_path / "f.json")
