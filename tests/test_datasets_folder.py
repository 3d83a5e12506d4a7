"""Pictures of your own: a CSV, a JSONL, or texts beside the pictures."""

import json
from pathlib import Path

import pytest
from PIL import Image

from dclip_kit.datasets.folder import read_csv, read_files, read_jsonl
from dclip_kit.datasets.images import CaptionedImages


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
    found = read_csv(folder, split="val")
    assert found.dataset == CaptionedImages(
        (folder / "a.jpg", folder / "b.png"),
        (("a cat, asleep", "a cat"), ("a dog", "two\nlines", "a \N{CAT}")),
        "val",
        "mine",
    )
    assert found.empty_captions == 1
    assert list(found.unreadable) == [
        Path("../mine/../x.jpg"),
        folder / "cut.jpg",
        folder / "gone.jpg",
    ]
    assert found.broken_rows == {
        "captions.csv:12": "expected UTF-8, got other bytes; convert the file to UTF-8",
        "captions.csv:13": "expected 2 fields, got 3; quote captions with commas",
        "captions.csv:14": "expected 2 fields, got 1; quote captions with commas",
    }


def test_empty_lines_say_nothing(folder) -> None:
    (folder / "list.csv").write_text("\n\nimage,caption\n\na.jpg,a cat\n\n")
    found = read_csv(folder / "list.csv")
    assert found.dataset.texts == ["a cat"] and not found.broken_rows


def test_a_quote_left_open_swallows_nothing_in_silence(folder) -> None:
    text = 'image,caption\na.jpg,"a cat\nb.png,"a dog"\na.jpg,a cat again\n'
    (folder / "list.csv").write_text(text)
    found = read_csv(folder / "list.csv")
    assert found.dataset.texts == ["a cat again"]
    assert list(found.broken_rows) == ["list.csv:2"]
    assert "up to line 3" in found.broken_rows["list.csv:2"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"file,text\na.jpg,a cat\n", r"columns image and caption in .*, got \['file', 'text'\]"),
        (b"", "got an empty file"),
        ("image,caption\na.jpg,a\n".encode("utf-16"), "columns image and caption .*in UTF-8"),
        (b"image;caption\na.jpg;a\n", r"got \['image;caption'\]; .*with commas"),
        (b"\n\n", "got an empty file"),
        (None, "Expected a CSV at .*failed"),
    ],
)
def test_csv_without_its_columns_is_refused(folder, content, says) -> None:
    if content is not None:
        (folder / "captions.csv").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_csv(folder)


def test_csv_takes_its_pictures_from_another_folder(folder, tmp_path) -> None:
    (tmp_path / "list.csv").write_text("image,caption\na.jpg,a cat\n")
    assert read_csv(tmp_path / "list.csv", folder).dataset.paths == (folder / "a.jpg",)


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
    found = read_jsonl(folder)
    assert found.dataset.captions == (("a cat", "asleep"), ("a dog", "it barks"))
    assert found.empty_captions == 1
    assert list(found.broken_rows) == [f"captions.jsonl:{n}" for n in range(4, 10)]


def test_several_jsonl_are_not_guessed_among(folder) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text("")
    with pytest.raises(ValueError, match=r"Expected one .jsonl in .*, got 2; name the file"):
        read_jsonl(folder)


# Texts beside the pictures


def write_sample(folder: Path, name: str, text: str | None, **note) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4), "blue").save(folder / name)
    if text is not None:
        (folder / name).with_suffix(".txt").write_text(text)
    if note:
        (folder / name).with_suffix(".json").write_text(json.dumps(note))


def test_files_pair_pictures_with_the_texts_beside_them(tmp_path) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    url = "https://somewhere/cat.jpg"
    write_sample(
        folder, "00000/000000000.jpg", "a cat", caption="a\ncat", url=url, status="success"
    )
    write_sample(folder, "00000/000000001.JPG", "a dog\n\nit barks\n")
    write_sample(folder, "00000/000000002.jpg", "x", caption="x", status="failed_to_resize")
    write_sample(folder, "00001/000010000.jpg", None)
    write_sample(folder, "00001/000010001.jpg", "")
    write_sample(folder, "00001/000010002.jpg", "no note")
    (folder / "00001/000010002.json").write_text("{")
    write_sample(folder, "00001/000010003.jpg", None)
    (folder / "00001/000010003.txt").write_bytes(b"caf\xe9")
    (folder / "00001/000010004.txt").write_text("no picture")
    (folder / "00000_stats.json").write_text('{"count": 3}')
    (tmp_path / "secret.txt").write_text("a secret")
    write_sample(folder, "00001/000010005.jpg", None)
    (folder / "00001/000010005.txt").symlink_to(tmp_path / "secret.txt")

    found = read_files(folder)
    assert [path.name for path in found.dataset.paths] == [
        "000000000.jpg",
        "000000001.JPG",
        "000010001.jpg",
        "000010002.jpg",
    ]
    assert found.dataset.captions == (("a\ncat",), ("a dog", "it barks"), (), ("no note",))
    assert found.dataset.image_ids == (url, "", "", "")
    assert (found.dataset.source, found.empty_captions) == ("web", 1)
    reasons = {path.name: reason for path, reason in found.unreadable.items()}
    assert list(reasons) == [f"0000{n}.jpg" for n in ("00002", "10000", "10003", "10005")]
    assert "failed_to_resize" in reasons["000000002.jpg"]
    assert "UTF-8" in reasons["000010003.jpg"] and "leads out" in reasons["000010005.jpg"]
    assert list(found.broken_rows) == ["00001/000010002.json", "00001/000010004.txt"]


def test_files_need_a_folder_and_no_other_one(folder, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"Expected a folder of pictures, got .*none"):
        read_files(tmp_path / "none")
    with pytest.raises(ValueError, match="leave images out"):
        read_files(folder, tmp_path)
