"""Manifests are read back as they were written, and refused where they leak or are broken."""

import json
from pathlib import Path

import pytest

from dclip_kit.data.curate import FORMAT
from dclip_kit.data.images import CaptionedImages
from dclip_kit.data.manifest import read_manifest

ENTRIES = [
    {
        "path": "coco/COCO_train2014_000000000009.jpg",
        "id": "coco:9",
        "captions": ["a meal", "food in boxes"],
        "source": "coco",
        "split": "train",
    },
    {
        "path": "/data/flickr/36979.jpg",
        "id": "flickr:36979",
        "captions": ["a group"],
        "source": "flickr30k",
        "split": "val",
    },
]


@pytest.fixture
def file(tmp_path) -> Path:
    file = tmp_path / "mixture.json"
    file.write_text(json.dumps({"format": FORMAT, "seed": 3, "entries": ENTRIES}))
    return file


def evaluation(name: str) -> CaptionedImages:
    return CaptionedImages((Path("/eval") / name,), (("a",),), "test", "evaluation")


def test_a_manifest_is_read_back(file) -> None:
    found = read_manifest(file, [evaluation("000000000010.jpg")], by_content=False)
    assert found.train == CaptionedImages(
        (file.parent / ENTRIES[0]["path"],),
        (("a meal", "food in boxes"),),
        "train",
        "mixture",
        ("coco:9",),
    )
    assert found.val == CaptionedImages(
        (Path("/data/flickr/36979.jpg"),), (("a group",),), "val", "mixture", ("flickr:36979",)
    )
    assert (found.record["seed"], found.not_compared) == (3, {})


@pytest.mark.parametrize(
    ("name", "by"), [("000000000009.jpg", "coco 9"), ("36979.jpg", "flickr 36979")]
)
def test_leaks_of_either_part_are_refused(file, name, by) -> None:
    read_manifest(file, [])
    with pytest.raises(ValueError, match=f"without evaluation pictures, but 1 of 1 .* by {by};"):
        read_manifest(file, [evaluation("000000000010.jpg"), evaluation(name)], by_content=False)


def test_what_could_not_be_compared_is_reported(file) -> None:
    pytest.importorskip("imagehash")
    found = read_manifest(file, [evaluation("mine.jpg")])
    assert list(found.not_compared) == [Path("/eval/mine.jpg")]


@pytest.mark.parametrize(
    "change",
    [
        {"split": "test"},
        {"captions": []},
        {"captions": [" "]},
        {"captions": ["\ud83d"]},
        {"captions": "a meal"},
        {"path": None},
        {"id": 9},
        {"source": None},
    ],
)
def test_a_broken_entry_is_refused(file, change) -> None:
    entries = [ENTRIES[0], ENTRIES[1] | change]
    file.write_text(json.dumps({"format": FORMAT, "entries": entries}))
    with pytest.raises(ValueError, match=r"in entry 1 of .*mixture\.json.*with curate"):
        read_manifest(file, [])


@pytest.mark.parametrize("content", ["[]", "{", '{"format": "other", "entries": []}', "{}"])
def test_what_is_no_manifest_is_refused(file, content) -> None:
    file.write_text(content)
    with pytest.raises(ValueError, match=r"Expected (a manifest|to read) .*mixture\.json"):
        read_manifest(file, [])
