"""What is left out, how closely pictures are looked at, and the words when nothing is left."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dclip_kit.data.images import CaptionedImages
from dclip_kit.data.usable import (
    UsableImages,
    is_usable,
    join_usable,
    require_usable,
    sort_out,
)


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "whole.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    names = ("whole", "broken", "folder", "pipe", "missing", "n" * 300)
    return [tmp_path / f"{name}.png" for name in names]


@pytest.mark.parametrize(("checks", "kept"), [("pictures", 1), ("files", 2), ("names", 6)])
def test_pictures_are_looked_at_as_closely_as_asked(paths, checks, kept) -> None:
    ids = [f"coco:{i}" for i in range(6)]
    found = sort_out(paths, [["a", " "]] * 6, "val", "mine", ids, checks)
    assert found.dataset == CaptionedImages(
        tuple(paths[:kept]), (("a",),) * kept, "val", "mine", tuple(ids[:kept])
    )
    assert list(found.unreadable) == paths[kept:]
    assert found.empty_captions == kept
    told = sort_out(paths, [["a"]] * 6, "val", "mine", checks=checks, splits=["test"] * 6)
    assert told.dataset.splits == ("test",) * kept
    if checks != "names":
        assert "found something that is no file" in found.unreadable[paths[2]]
        assert "found nothing" in found.unreadable[paths[4]]


def test_ids_are_one_a_picture_and_follow_a_selection() -> None:
    paths = (Path("a.jpg"), Path("b.jpg"))
    dataset = CaptionedImages(paths, (("a",), ("b",)), "val", "mine", ("coco:1", ""))
    assert dataset.select([1, 0]).image_ids == ("", "coco:1")
    with pytest.raises(ValueError, match="no ids or one for each of 2 pictures, got 1"):
        CaptionedImages(paths, (("a",), ("b",)), "val", "mine", ("coco:1",))


def test_nothing_usable_is_told_with_the_first_reason() -> None:
    nothing = CaptionedImages((), (), "val", "mine")
    found = UsableImages(nothing, {Path("a.jpg"): "it is cut short"}, 2, {"a.csv:3": "no comma"})
    with pytest.raises(ValueError) as error:
        require_usable(found)
    assert str(error.value) == (
        "Expected captioned pictures in mine, but of 1 none was left (1 unreadable, 2 captions "
        "without text, 1 broken rows); the first reason: it is cut short"
    )


def test_pictures_without_any_caption_are_not_usable(paths) -> None:
    found = sort_out(paths[:1], [[]], "val", "mine")
    assert len(found.dataset) == 1 and not is_usable(found)
    with pytest.raises(
        ValueError, match=r"of 1 none was left \(.*, 1 pictures without a caption\)"
    ):
        require_usable(found)
    assert is_usable(sort_out(paths[:1], [["a"]], "val", "mine"))


def test_parts_are_put_together(paths) -> None:
    """What the parts say of captions, of what is broken, and of ids, which one may lack."""
    first = sort_out(paths[:1], [["a", ""]], "train", "mine", ["coco:1"])
    second = sort_out(paths[1:2], [["b"]], "val", "mine", checks="files")
    third = UsableImages(CaptionedImages((), (), "val", "mine"), {paths[2]: "odd"}, 2, {"x:1": "y"})
    whole = join_usable([first, second, third])
    assert whole.dataset == CaptionedImages(
        tuple(paths[:2]), (("a",), ("b",)), "all", "mine", ("coco:1", "")
    )
    assert (whole.empty_captions, whole.broken_rows) == (3, {"x:1": "y"})
    assert (whole.dataset.splits, whole.splits_from, whole.linked) == ((), "", 0)
    told = sort_out(paths[:1], [["c"]], "train", "mine", splits=["val"])
    both = join_usable([first, replace(told, splits_from="file", linked=2)])
    assert (both.dataset.splits, both.splits_from, both.linked) == (("", "val"), "file", 2)
    assert whole.unreadable == {paths[2]: "odd"}
