"""What is odd in data is handled alike in all formats: one table of oddities, one of formats."""

import csv
import io
import json
import os
import re
import tarfile
import textwrap
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dclip_kit import config
from dclip_kit.data import formats, open_picture, readers
from dclip_kit.data.collect import UsableImages
from dclip_kit.data.formats import READERS, read_captioned, read_format, recognise_format
from dclip_kit.data.readers import MANIFEST

# Pictures, by the names that rows give them.


def _plain(path: Path) -> None:
    Image.new("RGB", (8, 4), "red").save(path, format="PNG")


def _turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4), "red").save(path, exif=exif)


def _cmyk(path: Path) -> None:
    Image.new("CMYK", (8, 4)).save(path)


def _deep(path: Path) -> None:
    Image.fromarray(np.full((4, 8), 40_000, dtype=np.uint16)).save(path)


def _moving(path: Path) -> None:
    frames = [Image.new("RGB", (8, 4), color) for color in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def _broken(path: Path) -> None:
    _plain(path)
    path.write_bytes(path.read_bytes()[:40])


def _link_out(path: Path) -> None:
    _plain(path.parent.parent / "elsewhere.png")
    path.symlink_to(path.parent.parent / "elsewhere.png")


# How each is made, and whether it can be used.
PICTURES: dict[str, tuple[Callable[[Path], None], bool]] = {
    "plain.png": (_plain, True),
    "7.png": (_plain, True),
    "two words.png": (_plain, True),
    unicodedata.normalize("NFC", "caf\u00e9.png"): (_plain, True),
    unicodedata.normalize("NFD", "the\u0301.png"): (_plain, True),
    "turned.jpg": (_turned, True),
    "cmyk.jpg": (_cmyk, True),
    "deep.png": (_deep, True),
    "moving.gif": (_moving, True),
    "linked.png": (_link_out, True),
    "broken.png": (_broken, False),
    "gone.png": (lambda path: None, False),
    "../above.png": (lambda path: _plain(path), False),
}
# What rows say, and what is read of it: a caption, none of an empty text, or a reason.
CAPTIONS: dict[str, str | None] = {
    "a red dog": "a red dog",
    "None": "None",
    "NA": "NA",
    "null": "null",
    "7": "7",
    " a dog in space  ": "a dog in space",
    'a "dog", or so; and a cat': 'a "dog", or so; and a cat',
    "a \N{DOG FACE}": "a \N{DOG FACE}",
    "": None,
    "   ": None,
    "&nbsp;": None,
}
Rows = list[tuple[str, str]]  # a picture's name and a caption

# Formats, each with the folder's name that its pictures lie in beside the file.


def write_csv(
    folder: Path, rows: Rows, suffix: str = "csv", head: str = "", end: str = "\n"
) -> Path:
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t" if suffix == "tsv" else ",", lineterminator=end)
    table.writerows([("image", "caption"), *rows])
    (folder / f"captions.{suffix}").write_text(head + text.getvalue(), "utf-8", newline="")
    return folder


def write_tsv(folder: Path, rows: Rows) -> Path:
    return write_csv(folder, rows, "tsv")


def write_csv_of_windows(folder: Path, rows: Rows) -> Path:
    return write_csv(folder, rows, head="\ufeff", end="\r\n")


def write_jsonl(folder: Path, rows: Rows) -> Path:
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


def write_texts(folder: Path, rows: Rows) -> Path:
    texts: dict[str, list[str]] = {}
    for name, text in rows:
        texts.setdefault(name, []).append(text)
    for name, own in texts.items():
        (folder / name).with_suffix(".txt").write_text("\n".join(own), "utf-8")
    return folder


def write_karpathy(folder: Path, rows: Rows) -> Path:
    images = [
        {"filename": name, "split": "train", "sentences": [{"raw": text}]} for name, text in rows
    ]
    (folder / "dataset_mine.json").write_text(json.dumps({"images": images}))
    return folder


def write_coco(folder: Path, rows: Rows) -> Path:
    names = list(dict.fromkeys(name for name, _ in rows))
    images = [{"id": names.index(name), "file_name": name} for name in names]
    notes = [{"image_id": names.index(name), "caption": text} for name, text in rows]
    record = {"images": images, "annotations": notes}
    (folder / "captions_train.json").write_text(json.dumps(record))
    return folder


def write_flickr_bars(folder: Path, rows: Rows) -> Path:
    lines = [f"{name}| {number}| {text}" for number, (name, text) in enumerate(rows)]
    text = "\n".join(["image_name| comment_number| comment", *lines])
    (folder / "results.csv").write_text(text, "utf-8")
    return folder


def write_flickr_tokens(folder: Path, rows: Rows) -> Path:
    lines = [f"{name}#{number}\t{text}" for number, (name, text) in enumerate(rows)]
    (folder / "results_20130124.token").write_text("\n".join(lines), "utf-8")
    return folder


def write_conceptual(folder: Path, rows: Rows) -> Path:
    for name, _ in rows:
        note = {"url": f"http://a.example/{name}", "status": "success"}
        (folder / name).with_suffix(".json").write_text(json.dumps(note))
    lines = [f"{text}\thttp://a.example/{name}" for name, text in rows]
    (folder / "list.tsv").write_text("\n".join(lines), "utf-8")
    return folder


def write_shards(folder: Path, rows: Rows) -> Path:
    write_texts(folder, rows)
    place = folder.parent / "shards"
    place.mkdir()
    with tarfile.open(place / "00000.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name in dict.fromkeys(name for name, _ in rows):
            for file in (folder / name, (folder / name).with_suffix(".txt")):
                if file.is_file():
                    archive.add(file, os.path.join(os.path.dirname(name), file.name))
    return place


def write_manifest(folder: Path, rows: Rows) -> Path:
    entries = [
        {"path": name, "id": "", "captions": [text], "source": "mine", "split": "train"}
        for name, text in rows
    ]
    (folder / "m.json").write_text(json.dumps({"format": MANIFEST, "entries": entries}))
    return folder / "m.json"


def write_parquet(folder: Path, rows: Rows) -> Path:
    datasets = pytest.importorskip("datasets")
    files = [(folder / name).read_bytes() if (folder / name).is_file() else b"" for name, _ in rows]
    pictures = [
        {"bytes": content, "path": name} for content, (name, _) in zip(files, rows, strict=True)
    ]
    made = datasets.Dataset.from_dict({"image": pictures, "text": [text for _, text in rows]})
    made.cast_column("image", datasets.Image()).to_parquet(folder / "train.parquet")
    return folder / "train.parquet"


FORMATS: dict[str, tuple[str, Callable[[Path, Rows], Path]]] = {
    "csv": ("csv", write_csv),
    "csv of Windows": ("csv", write_csv_of_windows),
    "tsv": ("csv", write_tsv),
    "jsonl": ("jsonl", write_jsonl),
    "files": ("files", write_texts),
    "karpathy": ("karpathy", write_karpathy),
    "coco": ("coco", write_coco),
    "flickr's csv": ("flickr", write_flickr_bars),
    "flickr's token": ("flickr", write_flickr_tokens),
    "conceptual": ("conceptual", write_conceptual),
    "shards": ("shards", write_shards),
    "manifest": ("manifest", write_manifest),
    "datasets": ("datasets", write_parquet),
}
# What cannot be said in a format, or means something else there.
EXCEPT = {
    ("files", "gone.png"): "a text without a picture is named itself",
    ("files", "../above.png"): "the folder is walked, and nothing above it is seen",
    ("conceptual", "gone.png"): "its note would lie beside no picture",
    ("conceptual", "../above.png"): "as files",
    ("shards", "gone.png"): "as files",
    ("shards", "linked.png"): "links in shards are refused by their own test",
    ("manifest", "../above.png"): "it says itself where pictures lie",
    ("datasets", "linked.png"): "pictures lie in the file",
    ("datasets", "../above.png"): "as linked.png",
}


def test_every_format_is_in_the_table() -> None:
    assert {kind for kind, _ in FORMATS.values()} == set(READERS) == {*config.FORMATS, "manifest"}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def read(name: str, folder: Path, rows: Rows) -> UsableImages:
    kind, write = FORMATS[name]
    return read_format(write(folder, rows), None, kind, "all", "pictures")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_recognised_and_read(name, folder) -> None:
    """By its folder, where it has one, and by its file."""
    kind, write = FORMATS[name]
    _plain(folder / "a.png")
    source = write(folder, [("a.png", "A cat.")])
    assert recognise_format(source) == kind
    found = read_captioned(source).dataset
    assert found.captions == (("A cat.",),) and found.split == "train"
    assert read_captioned(source, format=kind).dataset == found
    if kind == "files":
        with pytest.raises(ValueError, match="found none that is recognised"):
            recognise_format(source / "a.txt")
    elif source.is_dir():
        (file,) = (each for each in source.iterdir() if each.stem != "a")
        assert recognise_format(file) == kind


@pytest.mark.parametrize("picture", PICTURES, ids=ascii)
@pytest.mark.parametrize("name", FORMATS)
def test_an_odd_picture_is_taken_or_named(name, picture, folder) -> None:
    if (why := EXCEPT.get((name, picture))) is not None:
        pytest.skip(why)
    make, usable = PICTURES[picture]
    _plain(folder / "other.png")
    make(folder / picture)
    found = read(name, folder, [(picture, "an odd one"), ("other.png", "another")])
    texts = found.dataset.texts
    assert sorted(texts) == (["an odd one", "another"] if usable else ["another"])
    assert bool(found.unusable) == (not usable)
    if usable:
        opened = open_picture(found.dataset.paths[texts.index("an odd one")])
        assert opened.mode == "RGB" and opened.size == ((4, 8) if "turned" in picture else (8, 4))
    assert found.linked == (picture == "linked.png" and name != "manifest")


@pytest.mark.parametrize("caption", CAPTIONS, ids=ascii)
@pytest.mark.parametrize("name", FORMATS)
def test_an_odd_caption_is_read_as_it_is_or_counted(name, caption, folder) -> None:
    if name == "manifest" and CAPTIONS[caption] is None:
        pytest.skip("curate writes none, and what it did not write is refused")
    for each in ("a.png", "b.png"):
        _plain(folder / each)
    found = read(name, folder, [("a.png", caption), ("b.png", "another")])
    expected = CAPTIONS[caption]
    assert found.dataset.texts == ([] if expected is None else [expected]) + ["another"]
    if expected is None:
        assert found.empty_captions + len(found.unusable) == 1
    else:
        assert (found.empty_captions, found.unusable) == (0, {})


@pytest.mark.parametrize("name", ["csv", "tsv", "jsonl", "flickr's csv", "flickr's token"])
def test_a_file_in_another_encoding_is_no_text(name, folder) -> None:
    _plain(folder / "a.png")
    FORMATS[name][1](folder, [("a.png", "un caf\u00e9"), ("a.png", "a cafe")])
    (file,) = (each for each in folder.iterdir() if each.suffix != ".png")
    file.write_bytes(file.read_bytes().replace(b"\\u00e9", b"\xe9").replace(b"\xc3\xa9", b"\xe9"))
    found = read_format(folder, None, FORMATS[name][0], "all", "pictures")
    assert found.dataset.texts == ["a cafe"]
    assert "UTF-8" in next(iter(found.unusable.values()))


def test_the_reader_that_contributing_shows_reads(folder, monkeypatch) -> None:
    """Recognised by its file, its rows checked, a bad one named: for nothing but those lines."""
    page = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(block.splitlines()) <= 20
    monkeypatch.setattr(formats, "READERS", dict(READERS))
    exec(textwrap.dedent(block), vars(readers) | vars(formats))
    _plain(folder / "a.png")
    (folder / "mine.bars").write_text("a.png | a dog\nno bar\n../b.png|a cat\n")
    for source in (folder, folder / "mine.bars"):
        found = read_captioned(source)
        assert found.dataset.captions == (("a dog",),)
        assert {*found.unusable} == {"mine.bars:2", "../b.png"}


def test_a_quoted_header_is_a_tables(folder) -> None:
    _plain(folder / "a.png")
    (folder / "captions.tsv").write_text('"image"\t"caption"\n"a.png"\t"a dog"\n')
    for source in (folder, folder / "captions.tsv"):
        assert read_captioned(source).dataset.captions == (("a dog",),)


def test_a_table_may_name_its_pictures_from_the_root(folder) -> None:
    _plain(folder / "a.png")
    (folder / "captions.csv").write_text(f"image,caption\n{folder / 'a.png'},a dog\n")
    found = read_captioned(folder)
    assert found.dataset.captions == (("a dog",),) and not found.unusable


def test_each_split_may_have_a_table_of_any_usual_name(folder) -> None:
    for split in ("train", "test"):
        (folder / split).mkdir()
        _plain(folder / split / "a.png")
        (folder / split / "captions.csv").write_text("image,caption\na.png,a dog\n")
    assert read_captioned(folder, split="all").dataset.splits == ("test", "train")


def test_notes_of_older_data_sets_of_hugging_face_are_not_karpathys(folder) -> None:
    columns = {"sentences": [{"raw": {"dtype": "string"}}]}
    (folder / "dataset_infos.json").write_text(json.dumps({"default": {"features": columns}}))
    _plain(folder / "a.png")
    (folder / "captions.csv").write_text("image,caption\na.png,a dog\n")
    assert read_captioned(folder).dataset.captions == (("a dog",),)
