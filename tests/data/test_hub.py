"""Data sets of Hugging Face's library, read by its own rules and without a network."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dclip_kit.data import open_picture, read_captioned, recognise_format
from dclip_kit.data.hub import is_dataset
from dclip_kit.data.splits import inspect_data, read_splits, read_uncaptioned
from tests.data.test_shards import write_shard

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def make(count: int, seed: int = 0, **columns: list) -> "datasets.Dataset":
    """Pictures of noise; of their captions two look like missing ones, and one is."""
    noise = np.random.default_rng(seed).integers(0, 255, (count, 16, 16, 3), dtype=np.uint8)
    texts = ["None", "NA", None, *(f"noise {number}" for number in range(count))][:count]
    made = {"image": [Image.fromarray(each) for each in noise], "text": texts} | columns
    return datasets.Dataset.from_dict(made).cast_column("image", datasets.Image())


@pytest.fixture
def splits() -> "datasets.DatasetDict":
    sizes = {"train": 6, "validation": 4, "test": 5}
    return datasets.DatasetDict({n: make(size, size) for n, size in sizes.items()})


@pytest.fixture
def layout(splits, tmp_path) -> Path:
    """As repositories of the hub have it: parquet in data/, and a README that names the splits."""
    folder = tmp_path / "layout"
    (folder / "data").mkdir(parents=True)
    for name, rows in splits.items():
        rows.to_parquet(folder / f"data/{name}-00000-of-00001.parquet")
    return folder


COUNTS = ["train"] * 6 + ["val"] * 4 + ["test"] * 5


@pytest.mark.parametrize("kind", ["arrow", "layout", "hf"])
def test_a_data_set_is_read_with_its_splits(kind, splits, layout, tmp_path) -> None:
    splits.save_to_disk(tmp_path / "arrow")
    place = {"arrow": tmp_path / "arrow", "layout": layout, "hf": f"hf:{layout}"}[kind]
    assert recognise_format(place) == "datasets"
    found = read_captioned(place, split="all")
    assert found.dataset.splits == tuple(COUNTS) and found.splits_from == "column"
    assert found.dataset.captions[:4] == (("None",), ("NA",), (), ("noise 0",))
    assert (found.empty_captions, found.unusable) == (3, {})
    first = np.asarray(open_picture(found.dataset.paths[0]))
    assert (first == np.asarray(splits["train"][0]["image"])).all()


def test_one_split_of_it_may_be_named(layout) -> None:
    found = read_captioned(f"hf:{layout}:validation", split="all")
    assert found.dataset.splits == ("val",) * 4


def test_a_parquet_file_is_one_split(splits, tmp_path) -> None:
    splits["test"].to_parquet(tmp_path / "mine.parquet")
    found = read_captioned(tmp_path / "mine.parquet", split="all")
    assert len(found.dataset) == 5 and {*found.dataset.splits} == {"train"}  # as datasets has it


@pytest.mark.parametrize("column", ["split", "Data-Split"])
def test_the_only_split_may_have_a_column_that_says_more(column, tmp_path) -> None:
    said = ["train", "train", "test", "val", "test"]
    make(5, **{column: said}).to_parquet(tmp_path / "mine.parquet")
    found = read_captioned(tmp_path / "mine.parquet", split="all")
    assert found.dataset.splits == tuple(said) and found.splits_from == "column"
    make(5, set=list(range(5))).to_parquet(tmp_path / "others.parquet")
    found = read_captioned(tmp_path / "others.parquet", split="all")
    assert {*found.dataset.splits} == {"train"}


def test_it_is_trained_and_looked_at_as_other_data_is(layout) -> None:
    read = read_splits(layout, by_content=False)
    assert [len(each) for each in (read.train, read.val, read.test)] == [5, 3, 4]  # with captions
    report = inspect_data(layout)
    assert report["format"] == "datasets" and report["splits"]["from"] == "column"
    assert report["captions"] == {"usable": 12, "empty": 3, "truncated": 0}


def test_it_is_unpacked_once_for_a_version(splits, tmp_path, monkeypatch) -> None:
    file = tmp_path / "mine.parquet"
    splits["test"].to_parquet(file)
    before = read_captioned(file, split="all").dataset
    monkeypatch.setattr("dclip_kit.data.hub._write_pictures", None)  # would fail if called again
    assert read_captioned(file, split="all").dataset == before
    monkeypatch.undo()
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path / "cache"))
    splits["train"].to_parquet(file)
    assert len(read_captioned(file, split="all").dataset) == 6


def test_a_path_in_a_table_of_others_leads_to_no_file_of_mine(tmp_path, monkeypatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("private.png", "data/own.png"):
        Image.new("RGB", (16, 16), "red").save(tmp_path / name)
    (tmp_path / "data/link.png").symlink_to(tmp_path / "private.png")
    paths = [tmp_path / "private.png", "private.png", "data/../private.png", "data/link.png"]
    pictures = [{"bytes": None, "path": str(path)} for path in (*paths, tmp_path / "data/own.png")]
    made = datasets.Dataset.from_dict({"image": pictures, "text": list("abcde")})
    made.cast_column("image", datasets.Image()).to_parquet(tmp_path / "data/a.parquet")
    found = read_captioned(tmp_path / "data/a.parquet", split="all")
    assert found.dataset.texts == ["e"] and len(found.unusable) == 4


@pytest.mark.parametrize("kind", ["files", "shards"])
def test_notes_of_img2dataset_are_no_data_set(kind, tmp_path) -> None:
    """Beside each folder or tar it writes a parquet of addresses."""
    web, members = tmp_path / "web", {}
    for number in range(3):
        stream = io.BytesIO()
        Image.new("RGB", (16, 16), (50 * number, 0, 0)).save(stream, "JPEG")
        members |= {f"{number:09d}.jpg": stream.getvalue(), f"{number:09d}.txt": b"red"}
    if kind == "shards":
        write_shard(web / "00000.tar", members)
    else:
        (web / "00000").mkdir(parents=True)
        for name, content in members.items():
            (web / "00000" / name).write_bytes(content)
    notes = {"url": ["http://a"], "status": ["success"], "caption": ["red"]}
    datasets.Dataset.from_dict(notes).to_parquet(web / "00000.parquet")
    assert recognise_format(web) == kind
    assert read_captioned(web, split="all").dataset.texts == ["red"] * 3


def test_pictures_without_captions_may_be_one(layout, splits, tmp_path) -> None:
    splits.save_to_disk(tmp_path / "arrow")
    for place in (layout, tmp_path / "arrow", f"hf:{layout}", layout / "data"):
        found, _ = read_uncaptioned(place, ())
        assert len(found) == 15 and not any(found.captions)


@pytest.mark.parametrize("lacks", ["image", "text"])
def test_a_data_set_without_pictures_or_captions_is_refused(lacks, tmp_path) -> None:
    rows = make(3, label=[1, 2, 3]).remove_columns(lacks)
    rows.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"Expected columns of pictures .* and captions .*label"):
        read_captioned(tmp_path / "a.parquet")
    assert not list((tmp_path / "cache").glob("datasets/*"))


def test_what_cannot_be_had_is_said_in_a_sentence(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"at hf:nobody/nothing, but .*HF_HUB_OFFLINE\.$") as error:
        read_captioned("hf:nobody/nothing")
    assert "\n" not in str(error.value)
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"a\.parquet, but it cannot be read"):
        read_captioned(tmp_path / "a.parquet")


def test_without_the_library_one_sentence_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'dclip-kit\[hub\]'"):
        read_captioned("hf:organisation/name")


def test_folders_and_tables_are_none_of_its(tmp_path) -> None:
    (tmp_path / "captions.csv").write_text("image,caption\n")
    assert not is_dataset(tmp_path) and not is_dataset(tmp_path / "captions.csv")
    assert not is_dataset(tmp_path / "nowhere")


def test_pictures_keep_their_names_and_rows_of_one_picture_are_joined(tmp_path) -> None:
    """Names of a public data set tell the leak guard; a table may have a row for each caption."""
    noise = [np.full((8, 8, 3), 40 * number, np.uint8) for number in range(3)]
    folders = [tmp_path / "a", tmp_path / "b"]
    names = ["a/COCO_val2014_000000391895.png", "a/x.png", "b/x.png"]
    for folder in folders:
        folder.mkdir()
    for name, picture in zip(names, noise, strict=True):
        Image.fromarray(picture).save(tmp_path / name)
    rows = {
        "image": [str(tmp_path / name) for name in (*names, names[0])],
        "text": ["one", "two", "three", "again"],
    }
    made = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    made.to_parquet(tmp_path / "mine.parquet")
    found = read_captioned(tmp_path / "mine.parquet", split="all").dataset
    assert [path.name for path in found.paths] == [Path(names[0]).name, "x.png", "000000002.png"]
    assert found.captions == (("one", "again"), ("two",), ("three",))
    for path, expected in zip(found.paths, noise, strict=True):
        assert (np.asarray(open_picture(path)) == expected).all()


def test_a_single_split_may_be_divided_by_a_column_whatever_it_is_called(tmp_path) -> None:
    said = ["train", "val", "test", "train", "test"]
    made = datasets.DatasetDict({"test": make(5, split=said)})
    made.save_to_disk(tmp_path / "arrow")
    assert read_captioned(tmp_path / "arrow", split="all").dataset.splits == tuple(said)


def test_a_single_split_by_another_name_is_no_split(tmp_path) -> None:
    datasets.DatasetDict({"full": make(5)}).save_to_disk(tmp_path / "arrow")
    found = read_captioned(tmp_path / "arrow", split="all")
    assert found.splits_from == "" and len(found.dataset) == 5 and not found.unusable


def test_a_part_of_a_split_is_no_split(layout) -> None:
    found = read_captioned(f"hf:{layout}:train[:3]", split="all")
    assert found.splits_from == "" and len(found.dataset) == 3


def test_rows_without_a_picture_are_told_one_by_one(tmp_path) -> None:
    pictures = make(6).cast_column("image", datasets.Image(decode=False))["image"][3:]
    lacks = [None, None, {"bytes": None, "path": None}]
    rows = {"image": lacks + pictures, "text": [*"abcdef"]}
    lacking = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    lacking.to_parquet(tmp_path / "mine.parquet")
    found = read_captioned(tmp_path / "mine.parquet", split="all")
    assert len(found.unusable) == 3 and found.dataset.texts == ["d", "e", "f"]
