"""Rows become captioned pictures; what does not fit is named, and no name leads out."""

from pathlib import Path

import pytest
from PIL import Image

from dclip_kit.datasets.annotations import (
    Annotations,
    find_images,
    gather,
    load_json,
    path_inside,
    read_lines,
)
from dclip_kit.datasets.images import CaptionedImages


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
        "link.png",
        "up/secret.png",
        "deep/../../secret.png",
        "a\0.png",
        "loop/a.png",
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
