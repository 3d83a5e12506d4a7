"""Rows become captioned pictures; what does not fit is named, and no name leads out."""

import os
import re
import reprlib
from pathlib import Path

import pytest
from open_clip import SimpleTokenizer
from PIL import Image

from dclip_kit.data.collect import (
    UsableImages,
    collect,
    drop_unusable,
    says_something,
    split_by_folder,
)
from dclip_kit.data.formats import read_captioned, read_format
from dclip_kit.data.paths import load_json, path_inside, read_lines
from dclip_kit.data.pictures import CaptionedImages
from dclip_kit.data.readers import Row
from dclip_kit.data.splits import count_truncated
from dclip_kit.models.encode import encode_tokens, real_tokens


class Annotations:
    """Rows as a reader yields them."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, where, picture, captions, image_id="", split=None) -> None:
        self.rows.append(Row(where, picture, captions, split, image_id))


def gather(found, images, split, source, checks="pictures", says="column") -> UsableImages:
    return collect([(row, images) for row in found.rows], split, source, checks, says)


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
    assert (result.empty_captions, result.unusable) == (2, {})


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
    assert list(result.unusable) == [name]
    assert result.unusable[name].startswith("Expected a path below ")


def test_links_below_the_folder_are_followed_and_counted_where_they_lead_out(images) -> None:
    found = Annotations()
    for name in ("link.png", "up/secret.png", "near.png", "a.png"):
        found.add("f:1", name, "a picture")
    result = gather(found, images, "val", "mine")
    names = ("link.png", "up/secret.png", "near.png", "a.png")
    assert result.dataset.paths == tuple(images / name for name in names)
    assert (result.unusable, result.linked) == ({}, 2)
    (images / "again").symlink_to(images)  # the folder itself may be a link
    assert gather(found, images / "again", "val", "mine").linked == 2


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "gone.png",
            r"gone\.png \(a link to nowhere\.png\), but reading it .*No such file",
        ),
        ("pipe.png", r"pipe\.png \(a link to \.\./pipe\), but reading it failed \(it is no file"),
        ("text.png", r"text\.png \(a link to \.\./text\), but reading it failed"),
        ("loop/a.png", r"loop/a\.png, but reading it failed \("),
        ("lost/a.png", r"lost/a\.png, but reading it failed \(.*No such file"),
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
    assert list(result.unusable) == [str(images / name)] and result.linked == 0
    assert re.search(says, result.unusable[str(images / name)])


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
    assert gather(found, images, "all", "mine", says="file").splits_from == "file"


def test_rows_without_a_known_split_are_broken_where_others_have_one(images) -> None:
    found = Annotations()
    for number, word in enumerate(["train", "holdout", "", None, 7, "TRAINING"]):
        found.add(f"f:{number}", "a.png", f"caption {number}", split=word)
    result = gather(found, images, "all", "mine")
    assert result.dataset.captions == (("caption 0", "caption 5"),)
    words = "train, training, restval, val, valid, validation, dev, test, testing"
    assert result.unusable == {
        "f:1": f"expected a split ({words}), got 'holdout'",
        "f:4": f"expected a split ({words}), got 7",
        "f:2": "expected a split, as other rows have, got none",
        "f:3": "expected a split, as other rows have, got none",
    }


def test_a_picture_of_two_splits_is_left_out_and_named(images) -> None:
    found = Annotations()
    found.add("f:1", "a.png", "one", split="train")
    found.add("f:2", "deep/b.png", "one", split="train")
    found.add("f:3", str(images / "a.png"), "two", split="test")
    result = gather(found, images, "all", "mine")
    assert result.dataset.paths == (images / "deep/b.png",)
    assert list(result.unusable) == ["f:3"]
    assert re.search(r"got train \(f:1\) and test for 'a.png'", result.unusable["f:3"])


def test_no_row_with_a_split_is_no_split(images) -> None:
    found = Annotations()
    found.add("f:1", "a.png", "one", split=" ")
    result = gather(found, images, "all", "mine")
    assert (result.dataset.splits, result.splits_from, result.unusable) == (("",), "", {})


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
def test_rows_that_cannot_be_understood_are_named(tmp_path, name, captions, reason) -> None:
    found = Annotations()
    found.add("captions.csv:7", name, captions)
    found.add("captions.csv:8", "a.png", "a dog")
    result = gather(found, tmp_path, "val", "mine", "names")
    assert result.dataset.texts == ["a dog"] and list(result.unusable) == ["captions.csv:7"]
    assert result.unusable["captions.csv:7"].startswith(reason)


def test_a_name_outside_is_outside(images) -> None:
    assert path_inside(images, "deep/b.png") == images / "deep/b.png"
    with pytest.raises(ValueError, match="leads out of it"):
        path_inside(images, "..")


FINDING = [
    (["b.png"], "images/deep"),
    (["../x.png", "a\\u0000", "n" * 300, "no.png", "a.png"], "images"),
    (["a.png", "b.png", "deep/b.png"], "images"),  # of two folders the one that has more
    (["no.png"], "list"),
]


@pytest.mark.parametrize(("names", "place"), FINDING)
def test_the_folder_that_has_the_pictures_is_found(images, tmp_path, names, place) -> None:
    """Beside the file or a folder further up, among folders that are usual."""
    rows = ", ".join(
        f'{{"filename": "{name}", "split": "train", "sentences": [{{"raw": "a"}}]}}'
        for name in names
    )
    file = tmp_path / "list/dataset_deep.json"
    file.parent.mkdir()
    file.write_text(f'{{"images": [{rows}]}}')
    found = read_format(file, None, "karpathy", "all", "names")
    assert {*found.dataset.paths} <= {tmp_path / place / name for name in names}
    assert len(found.dataset) >= 1


def test_a_tables_pictures_lie_in_its_folder_and_not_above_it(images, tmp_path) -> None:
    (tmp_path / "list").mkdir()
    (tmp_path / "list/captions.csv").write_text("image,caption\na.png,a picture\n")
    assert "a.png" in next(
        iter(read_format(tmp_path / "list", None, "csv", "all", "pictures").unusable)
    )
    (tmp_path / "captions.csv").write_text("image,caption\na.png,a picture\n")
    found = read_format(tmp_path, None, "csv", "all", "pictures")
    assert found.dataset.paths == (images / "a.png",)


def test_of_one_format_a_folder_has_one_file_or_which_is_told(tmp_path) -> None:
    for format, says in [
        ("karpathy", r"one file dataset_\*\.json in .*, got none; name the file"),
        ("flickr", r"one file results_20130124\.token or .* in .*, got results_20130124"),
    ]:
        for name in ("results_20130124.token", "results.csv"):
            (tmp_path / name).write_text("a.jpg| 0| a cat\n")
        with pytest.raises(ValueError, match=says):
            read_format(tmp_path, None, format, "all", "names")


def test_lines_keep_their_numbers_and_their_bytes(tmp_path) -> None:
    (tmp_path / "f.txt").write_bytes(b"\xef\xbb\xbfone\r\n\ncaf\xe9\n")
    assert list(read_lines(tmp_path / "f.txt")) == [("f.txt:1", "one"), ("f.txt:3", "caf\udce9")]


@pytest.mark.parametrize("content", [b"{", b"\xff{}", b"[" * 100_000, b""])
def test_what_is_no_json_is_told_in_a_sentence(tmp_path, content) -> None:
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"Expected to read .*f\.json, but it failed"):
        load_json(tmp_path / "f.json")


# Folders that are splits, folders that are not, and a data set read split by split


def write_texts(folder: Path, *names: str) -> Path:
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
    folder = write_texts(tmp_path / "mine", *names)
    with pytest.raises(
        ValueError, match=r"in folders of .*, got 2 of 5 elsewhere \(the first, '[bc].*move them"
    ):
        read_captioned(folder)


def test_so_they_are_in_a_folder_that_all_pictures_share() -> None:
    names = ("images/train/a.png", "images/val/a.png", "images/b.png")
    with pytest.raises(ValueError, match="got 1 of 3 elsewhere"):
        split_by_folder([Path("data") / name for name in names], Path("data"))


def test_a_table_takes_the_folders_unless_it_has_a_column(tmp_path) -> None:
    names = ("train/a.png", "val/a.png")
    folder = write_texts(tmp_path, *names)
    rows = [f"{name},a picture" for name in names]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    found = read_captioned(folder, split="all")
    assert (found.dataset.splits, found.splits_from) == (("train", "val"), "folders")
    rows = [f"{name},a picture,test" for name in names]
    (folder / "captions.csv").write_text("\n".join(["image,caption,split", *rows]))
    found = read_captioned(folder, split="all")
    assert (found.dataset.splits, found.splits_from) == (("test", "test"), "column")


def test_a_split_can_be_read_alone(tmp_path) -> None:
    folder = write_texts(tmp_path / "mine", "train/a.png", "train/b.png", "val/a.png")
    assert len(read_format(folder, None, "files", "all", "names").dataset) == 3
    for split, count in [("train", 2), ("val", 1), ("train+val", 3), ("all", 3)]:
        dataset = read_captioned(folder, split=split).dataset
        assert (len(dataset), dataset.split) == (count, split)
    for split in ("test", "mine"):
        with pytest.raises(ValueError, match=rf"of mine \(train, val\).*got '{split}'; .*--split"):
            read_captioned(folder, split=split)
    (folder / "val/a.png").unlink()
    (folder / "val/a.txt").unlink()
    assert len(read_captioned(folder, split="mine").dataset) == 2


# What is left out, how closely pictures are looked at, and the words when nothing is left


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "whole.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    names = ("whole", "broken", "folder", "pipe", "missing", "n" * 300)
    return [tmp_path / f"{name}.png" for name in names]


@pytest.mark.parametrize(("checks", "kept"), [("pictures", 1), ("names", 6)])
def test_pictures_are_looked_at_as_closely_as_asked(paths, checks, kept) -> None:
    ids = tuple(f"coco:{i}" for i in range(6))
    whole = CaptionedImages(tuple(paths), (("a",),) * 6, "val", "mine", ids, ("test",) * 6)
    found = drop_unusable(whole, checks)
    assert found.dataset == whole.select(range(kept))
    assert set(found.unusable) == {str(path) for path in paths[kept:]}
    if checks != "names":
        reasons = ["it is no file"] * 2 + ["No such file"] + ["File name too long"]
        for path, reason in zip(paths[2:], reasons, strict=True):
            said = found.unusable[str(path)]
            assert reason in said and "name the folder that has the pictures" in said


def test_nothing_usable_is_told_with_the_first_reason(tmp_path) -> None:
    folder = write_texts(tmp_path / "mine", "a.png", "b.png")
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text("" if name == "b" else "of a")
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError) as error:
        read_captioned(folder)
    assert str(error.value).startswith(
        "Expected captioned pictures in mine, but none was left (1 without a caption, 1 captions "
        f"without text, 1 unusable pictures or rows); the first, {folder / 'a.png'}: Expected a "
    )


def test_pictures_without_any_caption_are_not_usable(tmp_path) -> None:
    folder = write_texts(tmp_path / "mine", "a.png")
    assert len(read_captioned(folder).dataset) == 1
    (folder / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"none was left \(1 without a caption, .* rows\)\.$"):
        read_captioned(folder)


SILENT = ("&nbsp;", "\x07", "&amp;nbsp; ", "\ufeff", "<end_of_text> a dog", "&lt;end_of_text&gt;")


@pytest.mark.parametrize("silent", SILENT, ids=ascii)
def test_a_caption_of_which_a_tokenizer_reads_nothing_is_named(silent, clip, tmp_path) -> None:
    assert not real_tokens(SimpleTokenizer()([silent])).any()
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    found = Annotations()
    found.add("f:1", "a.png", silent)
    found.add("f:2", "a.png", ["a dog", silent, "..."])
    result = gather(found, tmp_path, "val", "mine")
    assert result.dataset.texts == ["a dog", "..."]
    assert list(result.unusable) == ["f:1", "f:2"]
    assert all(f"got {reprlib.repr(silent.strip())}" in why for why in result.unusable.values())
    encode_tokens(clip, result.dataset.texts)


@pytest.mark.parametrize("text", ["&", "...", "\u200b", "a\nb", "&nbsp;x", "\N{DOG}", "<", "1"])
def test_a_caption_of_which_a_tokenizer_reads_something_is_taken(text) -> None:
    assert real_tokens(SimpleTokenizer()([text])).any() and says_something(text)


def test_an_end_inside_a_caption_cuts_it() -> None:
    captions = ["a dog <end_of_text> on grass", "A &lt;END_OF_TEXT&gt; b", "the end of text", "x"]
    assert count_truncated(captions) == 2
    assert count_truncated([*captions, "cat " * 76]) == 3
