"""Tables of one's own, CSV and JSONL, and those that Hugging Face calls metadata."""

import json
from pathlib import Path

import pytest
from PIL import Image

from dclip_kit.data import read_captioned
from dclip_kit.data.pictures import CaptionedImages
from tests.data.reading import read_table


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (4, 4), "red").save(folder / name)
    (folder / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    return folder


# CSV

CSV = (
    b'\xef\xbb\xbfCaption,Image\r\n"a cat, asleep",a.jpg\r\na dog,b.png\r\n a cat ,a.jpg\r\n\r\n'
    b'"two\nlines",b.png\r\n,b.png\r\ncut,cut.jpg\r\ngone,gone.jpg\r\nup,../mine/../x.jpg\r\n'
    b"caf\xe9,a.jpg\r\na cat, awake,a.jpg\r\nshort\r\na \xf0\x9f\x90\x88, b.png\r\n"
)


def test_csv_joins_the_rows_of_a_picture_and_names_what_it_cannot_use(folder) -> None:
    (folder / "captions.csv").write_bytes(CSV)
    found = read_table(folder, split="val")
    assert found.dataset == CaptionedImages(
        (folder / "a.jpg", folder / "b.png"),
        (("a cat, asleep", "a cat"), ("a dog", "two\nlines", "a \N{CAT}")),
        "val",
        "mine",
    )
    assert found.empty_captions == 1
    rows = {
        "captions.csv:12": "expected UTF-8, got other bytes; convert the file to UTF-8",
        "captions.csv:13": "expected 2 fields, got 3; quote captions with commas",
        "captions.csv:14": "expected 2 fields, got 1; quote captions with commas",
    }
    assert found.unusable.items() >= rows.items()
    pictures = {"../mine/../x.jpg", str(folder / "cut.jpg"), str(folder / "gone.jpg")}
    assert found.unusable.keys() == rows.keys() | pictures


def test_pandas_numbers_of_rows_are_no_splits(folder) -> None:
    """`DataFrame.to_csv()` writes them into a first column without a name."""
    (folder / "captions.csv").write_text(",image,caption\n0,a.jpg,a cat\n1,b.png,a dog")
    found = read_table(folder, split="val")
    assert found.dataset.texts == ["a cat", "a dog"] and not found.unusable


def test_a_printed_list_is_no_caption(folder) -> None:
    rows = [
        "image,caption,things",
        """a.jpg,"['a cat', 'a tabby']",x""",
        """b.png,"[""a dog"", ""two""]",x""",
        """b.png,"['a dog', ""a dog's toy""]",x""",
        "a.jpg,[unclear] a cat,\"['a', 'b']\"",
    ]
    (folder / "captions.csv").write_text("\n".join(rows))
    found = read_table(folder, split="val")
    assert found.dataset.captions == (("[unclear] a cat",),)
    expected = "expected a caption, got a list of them; give each a row"
    for line in (2, 3, 4):
        assert found.unusable[f"captions.csv:{line}"] == expected


def test_empty_lines_say_nothing(folder) -> None:
    (folder / "list.csv").write_text("\n\nimage,caption\n\na.jpg,a cat\n\n")
    found = read_table(folder / "list.csv")
    assert found.dataset.texts == ["a cat"] and not found.unusable


def test_quotes_may_follow_a_blank(folder) -> None:
    (folder / "list.csv").write_text('image, caption\na.jpg, "a cat, asleep"\n')
    assert read_table(folder / "list.csv").dataset.texts == ["a cat, asleep"]


def test_a_quote_left_open_swallows_nothing_in_silence(folder) -> None:
    text = 'image,caption\na.jpg,"a cat\nb.png,"a dog"\na.jpg,a cat again\n'
    (folder / "list.csv").write_text(text)
    found = read_table(folder / "list.csv")
    assert found.dataset.texts == ["a cat again"]
    assert list(found.unusable) == ["list.csv:2"]
    assert "up to line 3" in found.unusable["list.csv:2"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"file,text\na.jpg,a cat\n", r"columns image and caption \(or .*, got \['file', 'text'\]"),
        (b"", r"columns image and caption .*, got \[\]; put a first line"),
        (b'image,"caption\n', r"got \['unexpected end of data'\]"),
        (b"image,captions\na.jpg,['a dog']\n", r"and caption .* once in .*'captions'\]"),
        (b"image,caption,caption\na.jpg,a,b\n", "and caption .* once in .*'caption', 'caption'"),
        ("image,caption\na.jpg,a\n".encode("utf-16"), "columns image and caption .*in UTF-8"),
        (b"image;caption\na.jpg;a\n", r"got \['image;caption'\]; .*with commas"),
        (b"\n\n", r"got \[\]; put"),
        (None, r"Expected one file captions\.csv or .* in .*, got none; name the file"),
    ],
)
def test_csv_without_its_columns_is_refused(folder, content, says) -> None:
    if content is not None:
        (folder / "captions.csv").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_table(folder)


def test_a_csv_that_is_not_there_is_an_error(folder) -> None:
    with pytest.raises(ValueError, match=r"list\.csv, found nothing"):
        read_table(folder / "list.csv")


def test_csv_takes_its_pictures_from_another_folder(folder, tmp_path) -> None:
    (tmp_path / "list.csv").write_text("image,caption\na.jpg,a cat\n")
    assert read_table(tmp_path / "list.csv", folder).dataset.paths == (folder / "a.jpg",)


# JSONL


def test_jsonl_takes_one_caption_or_several(folder) -> None:
    lines = [
        json.dumps({"image": "a.jpg", "caption": "a cat"}),
        json.dumps({"image": "b.png", "captions": ["a dog", "", "it barks"]}),
        json.dumps({"image": "a.jpg", "captions": "asleep"}),
        "{",
        json.dumps(["a.jpg", "a cat"]),
        json.dumps({"image": "a.jpg"}),
        json.dumps({"image": 3, "caption": "a cat"}),
        '{"image": "a.jpg", "caption": "\\ud83d"}',
        "[" * 100_000,
    ]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    found = read_table(folder, format="jsonl")
    assert found.dataset.captions == (("a cat", "asleep"), ("a dog", "it barks"))
    assert found.empty_captions == 1
    assert set(found.unusable) == {f"captions.jsonl:{n}" for n in range(4, 10)}
    assert "got 'maximum recursion depth exceeded" in found.unusable["captions.jsonl:9"]


def test_several_jsonl_are_not_guessed_among(folder) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text("")
    with pytest.raises(
        ValueError, match=r"Expected one file \*.jsonl in .*, got a.jsonl, b.jsonl; name the"
    ):
        read_table(folder, format="jsonl")


# Splits, and Hugging Face's names


@pytest.mark.parametrize("picture", ["image", "file_name"])
@pytest.mark.parametrize("caption", ["caption", "text"])
def test_both_names_of_a_column_are_known_and_splits_are_read(folder, picture, caption) -> None:
    rows = [("a.jpg", "a cat", "train"), ("b.png", "a dog", "Validation")]
    lines = [f"{caption},split,{picture}", *(f"{text},{word},{name}" for name, text, word in rows)]
    (folder / "metadata.csv").write_text("\n".join(lines))
    objects = [{picture: name, caption: text, "split": word} for name, text, word in rows]
    (folder / "list").mkdir()
    (folder / "list/metadata.jsonl").write_text("\n".join(map(json.dumps, objects)))
    for place in (folder, folder / "list"):
        each = read_captioned(place, folder, split="all")
        assert each.dataset.paths == (folder / "a.jpg", folder / "b.png")
        assert each.dataset.texts == ["a cat", "a dog"]
        assert (each.dataset.splits, each.splits_from) == (("train", "val"), "column")


def test_jsonl_names_rows_without_their_split(folder) -> None:
    rows = [{"image": "a.jpg", "text": ["a cat"], "split": "test"}, {"image": "b.png", "text": "x"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_table(folder, split="all", format="jsonl")
    assert found.dataset.splits == ("test",) and list(found.unusable) == ["metadata.jsonl:2"]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("metadata.csv", "file_name,text\n0.png,one\n0.png,two\n\n,nameless\n"),
        (
            "metadata.jsonl",
            '{"file_name": "0.png", "captions": ["one", "two"]}\n\n{"caption": "nameless"}\n',
        ),
    ],
)
def test_metadata_in_the_folders_of_splits_is_one_data_set(tmp_path, name, rows) -> None:
    data = tmp_path / "data"
    for split in ("train", "validation", "test"):
        (data / split).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(data / split / "0.png")
        (data / split / name).write_text(rows)
    found = read_captioned(data, split="all")
    assert found.dataset.paths == tuple(
        data / split / "0.png" for split in ("test", "train", "validation")
    )
    assert found.dataset.captions == (("one", "two"),) * 3
    assert (found.dataset.splits, found.splits_from) == (("test", "train", "val"), "folders")
    assert found.dataset.source == "data" and len(found.unusable) == 3
    assert all(place.startswith(("train/", "validation/", "test/")) for place in found.unusable)
    alone = read_captioned(data / "test", split="mine").dataset
    assert alone.paths == (data / "test/0.png",) and alone.splits == ("",)


def test_two_tables_in_a_folder_are_not_guessed_among(folder) -> None:
    for name in ("captions.csv", "metadata.csv"):
        (folder / name).write_text("image,caption\na.jpg,a cat\n")
    with pytest.raises(ValueError, match=r"got captions.csv, metadata.csv; name the file"):
        read_captioned(folder)
    assert read_captioned(folder / "metadata.csv").dataset.texts == ["a cat"]
    (folder / "captions.csv").rename(folder / "metadata.jsonl")
    with pytest.raises(ValueError, match=r"csv \(metadata.csv\), jsonl \(metadata.jsonl\)"):
        read_captioned(folder)


def test_a_data_set_of_links_is_read(tmp_path) -> None:
    """As Hugging Face's cache has them: names that are links into a store of contents."""
    (tmp_path / "blobs").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "blobs/1f", format="PNG")
    (tmp_path / "blobs/2e").write_text("file_name,text\na.png,a cat\n")
    data = tmp_path / "snapshots/train"
    data.mkdir(parents=True)
    for name, blob in [("a.png", "1f"), ("metadata.csv", "2e")]:
        (data / name).symlink_to(f"../../blobs/{blob}")
    found = read_captioned(tmp_path / "snapshots")
    assert found.dataset.paths == (data / "a.png",) and found.linked == 1
