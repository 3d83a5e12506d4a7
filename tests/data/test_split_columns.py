"""Columns that say splits are heeded whatever they are called, or refused; never passed over."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from dclip_kit.data import inspect_data, read_captioned, recognise_format
from dclip_kit.data.splits import read_splits

SUFFIXES = ("csv", "tsv", "jsonl")
WORDS = ("train", "Validation", "TEST", "dev", "training", "testing")
SPLITS = ("train", "val", "test", "val", "train", "test")


def write_table(folder: Path, suffix: str, **columns: Sequence[object]) -> Path:
    """A table with a picture a row, and these columns besides image and caption."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)]
    for number, row in enumerate(rows):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{number}.png")
        row |= {"image": f"{number}.png", "caption": f"picture {number}"}
    file = folder / f"captions.{suffix}"
    if suffix == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    else:
        between = "\t" if suffix == "tsv" else ","
        lines = [rows[0].keys(), *(row.values() for row in rows)]
        file.write_text("\n".join(between.join(map(str, line)) for line in lines))
    return folder


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "column", ["split", "splits", "set", "Set", "partition", "subset", "fold", "data_split"]
)
def test_a_usual_name_says_the_splits(tmp_path, suffix, column) -> None:
    folder = write_table(tmp_path / "own", suffix, **{column: WORDS})
    for place in (folder, folder / f"captions.{suffix}"):
        found = read_captioned(place, split="all")
        assert (found.dataset.splits, found.splits_from) == (SPLITS, "column")
        assert len(found.dataset) == len(WORDS) and not found.unusable
    splits = read_splits(folder)
    assert [path.name for path in splits.train.paths] == ["0.png", "4.png"]
    assert [path.name for path in splits.test.paths] == ["2.png", "5.png"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("column", "values"),
    [("fold", (0, 1, 2, 3, 4, 0)), ("subset", ("cc3m", "laion", "train", "cc3m", "laion", "sbu"))],
)
def test_a_fold_of_numbers_and_a_subset_of_sources_are_no_splits(
    tmp_path, suffix, column, values
) -> None:
    folder = write_table(tmp_path / "own", suffix, **{column: values})
    with pytest.warns(UserWarning, match=f"^Not taken for splits in .*: {column}\\.$"):
        found = read_captioned(folder, split="all")
    assert found.splits_from == "" and not found.unusable
    folder = write_table(tmp_path / "both", suffix, **{column: values}, split=WORDS)
    with pytest.warns(UserWarning, match=f"^Not taken for splits in .*: {column}\\.$"):
        assert read_captioned(folder, split="all").dataset.splits == SPLITS


def test_a_usual_column_with_tests_names_the_rows_that_it_leaves_open(tmp_path) -> None:
    folder = write_table(tmp_path, "csv", set=("train", "test", "extra"))
    found = read_captioned(folder, split="all")
    assert found.dataset.splits == ("train", "test")
    assert (
        list(found.unusable) == ["captions.csv:4"] and "extra" in found.unusable["captions.csv:4"]
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("phase", ("train", "test", "train")),
        ("usage", ("train", "val", "dev")),
        ("role", ("test", "", "train")),
        ("is_test", (0, 1, 0)),
        ("is_test", (True, False, False)),
        ("Test", ("no", "yes", "no")),
        ("for-training", ("True", "False", "True")),
    ],
)
def test_another_column_that_says_splits_is_refused(tmp_path, suffix, column, values) -> None:
    folder = write_table(tmp_path / "own", suffix, **{column: values})
    with pytest.raises(
        ValueError, match=f"(?i)Expected .*column called split.*{column}.*leave it out"
    ):
        read_captioned(folder, split="all")
    (problem,) = inspect_data(folder)["pictures"]["unusable"]
    assert column.lower() in problem["reason"].lower()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("label", ("train", "test", "train")),  # of COCO's classes one is called so
        ("category", ("train", "train", "dev")),
        ("role", ("train", "train", "train")),
        ("mode", ("train", "test", "car")),
        ("is_valid", (1, 0, 1)),
        ("tested", (1, 0, 1)),
        ("id", (1, 2, 3)),
    ],
)
def test_other_columns_say_nothing_of_splits(tmp_path, suffix, column, values, recwarn) -> None:
    found = read_captioned(write_table(tmp_path, suffix, **{column: values}), split="all")
    assert found.splits_from == "" and not found.unusable and not recwarn.list
    assert len(found.dataset) == len(values)


def test_two_columns_may_say_the_same_and_must_not_say_different_splits(tmp_path) -> None:
    same = write_table(tmp_path / "same", "csv", split=WORDS, phase=SPLITS, is_test=[0] * 6)
    assert read_captioned(same, split="all").dataset.splits == SPLITS
    other = write_table(tmp_path / "other", "csv", split=WORDS, set=SPLITS[::-1])
    with pytest.raises(ValueError, match=r"got 'set' with .*others in 'split'"):
        read_captioned(other, split="all")


def test_a_second_column_of_one_name_does_not_win_in_silence(tmp_path) -> None:
    folder = write_table(tmp_path, "csv", split=("train", "val", "test"))
    table = folder / "captions.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0] + ",split", *(line + ",train" for line in lines[1:])]))
    with pytest.raises(ValueError, match="'split', 'image', 'caption', 'split'"):
        read_captioned(folder, split="all")


def test_captions_that_are_called_like_splits_are_captions(tmp_path) -> None:
    folder = write_table(tmp_path, "csv", note=("x", "y"))
    (folder / "captions.csv").write_text("image,caption\n0.png,train\n1.png,test\n")
    found = read_captioned(folder, split="all")
    assert found.dataset.texts == ["train", "test"] and found.splits_from == ""


def test_a_tsv_with_other_columns_is_still_one_of_addresses(tmp_path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    (tmp_path / "0.json").write_text(json.dumps({"url": "http://a.example/0.png"}))
    (tmp_path / "list.tsv").write_text("caption\turl\na cat\thttp://a.example/0.png\n")
    found = read_captioned(tmp_path, split="all")
    assert found.dataset.texts == ["a cat"] and recognise_format(tmp_path) == "conceptual"


def test_a_table_is_not_taken_for_addresses(tmp_path) -> None:
    folder = write_table(tmp_path, "tsv", note=("x", "y"))
    with pytest.raises(ValueError, match=r"none was left"):
        read_captioned(folder, format="conceptual")
    assert read_captioned(folder / "captions.tsv").dataset.texts == ["picture 0", "picture 1"]
