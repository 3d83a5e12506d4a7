"""The report on a folder where everything that can be wrong is, counted by hand."""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dclip_kit.data import inspect_data
from dclip_kit.data.splits import count_truncated, summarize
from tests.data.test_coco import write_coco


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((48, 48))


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    noise(1).save(folder / "a.png")
    noise(1).save(folder / "same.tif")
    noise(2).save(folder / "b.png")
    noise(3).save(folder / "000000391895.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:500])
    rows = [
        "image,caption",
        "a.png,a cat",
        "same.tif," + "cat " * 75,  # with start and end 77 tokens: the last that fit
        "b.png," + "cat " * 76,
        "b.png,",
        "000000391895.png,a man",
        "cut.png,cut",
        "gone.png,gone",
        "../up.png,up",
        "short",
    ]
    (folder / "captions.csv").write_text("\n".join(rows))
    return folder


def test_everything_is_counted_and_named(folder, tmp_path) -> None:
    pytest.importorskip("imagehash")
    evaluation = tmp_path / "test"
    evaluation.mkdir()
    noise(2).resize((96, 96)).save(evaluation / "held.jpg")
    noise(5).save(evaluation / "other.png")
    (evaluation / "captions.jsonl").write_text(
        "\n".join(json.dumps({"image": n, "caption": "x"}) for n in ("held.jpg", "other.png"))
    )
    karpathy = tmp_path / "dataset_coco.json"  # whose pictures are not there
    entries = [
        {"filename": f"COCO_val2014_{n:012d}.jpg", "cocoid": n, "split": split, "sentences": []}
        for n, split in [(391895, "test"), (9, "train")]
    ]
    karpathy.write_text(json.dumps({"images": entries, "dataset": "coco"}))

    with pytest.warns(UserWarning, match=r"^1 pictures were compared by name.*_000000391895\.jpg"):
        report = inspect_data(folder, against=[evaluation, str(karpathy)])
    reasons = {each["path"]: each["reason"] for each in report["pictures"].pop("unusable")}
    splits = report.pop("splits")
    assert splits.pop("from") == "digest" and sum(splits.values()) == 4
    leaks = [leak | {"by": leak["by"].split(" (")[0]} for leak in report.pop("leaks")]
    assert report == {
        "format": "csv",
        "pictures": {"usable": 4},
        "captions": {"usable": 4, "empty": 1, "truncated": 1},
        "linked": 0,
        "duplicates": [[f"{folder}/a.png", f"{folder}/same.tif"]],
    }
    assert reasons.keys() == {
        "../up.png",
        f"{folder}/gone.png",
        "captions.csv:10",
        f"{folder}/cut.png",
    }
    assert "leads out" in reasons["../up.png"] and "No such file" in reasons[f"{folder}/gone.png"]
    assert leaks == [
        {"picture": f"{folder}/b.png", "evaluation": f"{evaluation}/held.jpg", "by": "content"},
        {
            "picture": f"{folder}/000000391895.png",
            "evaluation": f"{tmp_path}/COCO_val2014_000000391895.jpg",
            "by": "coco 391895",
        },
    ]
    json.dumps(report)


def test_pictures_that_share_a_bare_number_are_told_by_their_content(tmp_path) -> None:
    for name, seeds in (("own", (1, 2)), ("test", (3, 2))):
        (tmp_path / name).mkdir()
        rows = [f"{number}.png,x" for number in (1, 2, 3)]
        (tmp_path / name / "captions.csv").write_text("\n".join(["image,caption", *rows]))
        for number, seed in enumerate(seeds, start=1):
            noise(seed).save(tmp_path / name / f"{number}.png")
    noise(4).save(tmp_path / "own/3.png")  # the test's third is missing: its name has to tell
    with pytest.warns(UserWarning, match="compared by name"):
        leaks = inspect_data(tmp_path / "own", against=[tmp_path / "test"])["leaks"]
    assert [leak["by"] for leak in leaks] == ["content (0 bits)", "coco 3"]


def test_a_file_that_cannot_be_used_at_all_is_reported(folder) -> None:
    (folder / "captions.csv").write_text("file,text\n")
    report = inspect_data(folder)
    (problem,) = report["pictures"]["unusable"]
    assert problem["path"] == str(folder) and "columns image and caption" in problem["reason"]
    assert report == {
        "format": "csv",
        "pictures": {"usable": 0, "unusable": [problem]},
        "captions": {"usable": 0, "empty": 0, "truncated": 0},
        "splits": {"from": "digest", "train": 0, "val": 0, "test": 0},
        "linked": 0,
        "duplicates": [],
        "leaks": [],
    }


def test_all_splits_are_looked_at(tmp_path) -> None:
    noise(1).save(tmp_path / "a.png")
    noise(2).save(tmp_path / "b.png")
    entries = [
        {"filename": name, "split": split, "sentences": [{"raw": "x"}]}
        for name, split in [("a.png", "train"), ("b.png", "test")]
    ]
    (tmp_path / "dataset_mine.json").write_text(json.dumps({"images": entries}))
    assert inspect_data(tmp_path)["pictures"] == {"usable": 2, "unusable": []}


def test_all_files_of_coco_are_looked_at_and_its_val_is_the_evaluation(tmp_path) -> None:
    write_coco(tmp_path, "train2017", "", [1, 2])
    write_coco(tmp_path, "val2017", "", [4, 5, 7])
    for number in (1, 2):  # no copies of val's
        plain = Image.new("RGB", (4, 4), (number, 0, 0))
        plain.save(tmp_path / f"train2017/{number:012d}.jpg", quality=100)
    with pytest.warns(UserWarning, match="compared by name"):  # they show nothing
        report = inspect_data(tmp_path, against=[tmp_path])
    assert report["pictures"] == {"usable": 5, "unusable": []}
    assert report["captions"]["usable"] == 1 + 2 + 1 + 2 + 1
    assert [leak["by"] for leak in report["leaks"]] == ["coco 4", "coco 5", "coco 7"]


def test_names_that_are_no_text_can_be_printed(folder) -> None:
    (folder / "captions.csv").unlink()
    (folder / "a.txt").write_text("a cat")
    bad = os.fsdecode(b"caf\xe9.png")
    noise(1).save(folder / bad)
    (folder / bad).with_suffix(".txt").write_text("a cafe")
    report = inspect_data(folder)
    assert report["format"] == "files" and report["pictures"]["usable"] == 1
    assert any(each["path"].endswith("caf\\udce9.png") for each in report["pictures"]["unusable"])
    json.dumps(report, ensure_ascii=False).encode()


def test_what_is_no_data_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match="found none that is recognised"):
        inspect_data(tmp_path)
    with pytest.raises(ValueError, match="a format of csv, jsonl"):
        inspect_data(tmp_path, format="parquet")


def test_an_evaluation_set_of_nothing_is_an_error(folder, tmp_path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"Expected evaluation pictures at .*empty\.jsonl"):
        inspect_data(folder, against=[tmp_path / "empty.jsonl"])


@pytest.mark.parametrize(
    ("caption", "truncated"),
    [("cat " * 75, 0), ("cat " * 76, 1), ("!?" * 37 + " ä" * 76, 1), ("ä" * 200, 1), ("", 0)],
)
def test_truncated_means_longer_than_77_tokens(caption, truncated) -> None:
    assert count_truncated([caption, "a cat", caption]) == 2 * truncated


def write_table(folder: Path, splits: str) -> Path:
    """A captions.csv of a picture a letter: t, v and e stand for train, val and test."""
    words = {"t": "train", "v": "Validation", "e": "TEST"}
    rows = []
    for number, letter in enumerate(splits):
        noise(number).save(folder / f"{number}.png")
        rows.append(f"{number}.png,a picture,{words[letter]}")
    (folder / "captions.csv").write_text("\n".join(["image,caption,split", *rows]))
    return folder


def test_splits_are_counted_as_training_would_make_them(tmp_path) -> None:
    assert inspect_data(write_table(tmp_path, "tttvvee"))["splits"] == {
        "from": "column",
        "train": 3,
        "val": 2,
        "test": 2,
    }
    coco = tmp_path / "coco"
    write_coco(coco, "train2017", "", [1, 2, 4, 5])
    write_coco(coco, "val2017", "", [7, 8])
    with warnings.catch_warnings(record=True):
        found = inspect_data(coco)["splits"]
    assert (found["from"], found["test"], found["train"] + found["val"]) == ("file", 2, 4)
    folders = tmp_path / "folders"
    for number, place in enumerate(("train", "train", "dev", "test")):
        (folders / place).mkdir(parents=True, exist_ok=True)
        noise(number).save(folders / place / f"{number}.png")
        (folders / place / f"{number}.txt").write_text("a picture")
    expected = {"from": "folders", "train": 2, "val": 1, "test": 1}
    assert inspect_data(folders)["splits"] == expected


def test_what_is_drawn_from_the_datas_own_train_is_said(tmp_path) -> None:
    with pytest.warns(UserWarning, match=r"since it has no such split: val \d+\.$") as said:
        found = inspect_data(write_table(tmp_path, "t" * 40 + "ee"))["splits"]
    assert str(said[0].message).endswith(f"val {found['val']}.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inspect_data(write_table(tmp_path, "ttvvee"))


# What a person reads of it


def test_a_report_is_summed_up() -> None:
    report = {
        "format": "csv",
        "pictures": {
            "usable": 1200,
            "unusable": [{"path": "a", "reason": f"gone {number}"} for number in range(12)],
        },
        "captions": {"usable": 5, "empty": 1, "truncated": 2},
        "splits": {"from": "folders", "train": 1000, "val": 100, "test": 100},
        "linked": 3,
        "duplicates": [["a", "b\x1b"]],
        "leaks": [{"picture": "a", "evaluation": "b", "by": "path"}],
    }
    lines = list(summarize(report, compared=True))
    assert lines[:3] == ["Format: csv", "Pictures: 1,200 usable, 12 unusable", "  a: gone 0"]
    assert lines[12] == "  … and 2 more; --json FILE has all"
    assert lines[-6:] == [
        "Splits, from folders: train 1,000, val 100, test 100",
        "Links out of the folder were followed to 3 pictures",
        "Groups of equal pictures: 1",
        "  a = b\\x1b",
        "Leaks: 1 pictures that are evaluation pictures too",
        "  a is b, path",
    ]
    # What many share is said once.
    shared = [{"path": x, "reason": f"Expected {x}, gone"} for x in ("x/a.png", "b.png", "c.png")]
    shared += [{"path": "d.png", "reason": "Expected d.png, broken"}]
    report["pictures"]["unusable"] = shared
    lines = list(summarize(report, compared=True))
    assert lines[2:4] == ["  x/a.png and 2 more: Expected it, gone", "  d.png: Expected it, broken"]
    plain = report | {
        "linked": 0,
        "splits": report["splits"] | {"from": "digest"},
    }
    said = list(summarize(plain, compared=False))
    assert "Splits, from a digest of the files: train 1,000, val 100, test 100" in said
    assert not any("Links" in line or "Not taken" in line for line in said)
    assert not any("Leaks" in line for line in summarize(report, compared=False))
