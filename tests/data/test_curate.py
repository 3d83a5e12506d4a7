"""The mixture: how many of what, the same every time, and without evaluation pictures."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dclip_kit.data.formats import read_captioned
from dclip_kit.data.pictures import CaptionedImages
from dclip_kit.data.readers import MANIFEST
from dclip_kit.data.splits import HELD_OUT, PAPER_MIXTURE, curate
from tests.data.reading import read_manifest

MIXTURE = {"coco": 20, "flickr30k": 10, "conceptual_captions": 5}


def write(folder: Path, name: str, count: int) -> CaptionedImages:
    """Pictures of noise, each of its own."""
    folder.mkdir(parents=True)
    ids = tuple(f"{name}:{number + 1}" for number in range(count))
    paths = tuple(folder / f"{number:03d}.png" for number in range(count))
    rng = np.random.default_rng(len(name))
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((32, 32)).save(path)
    captions = tuple((f"{name} {number}", "again") for number in range(count))
    return CaptionedImages(paths, captions, "train", name, ids)


@pytest.fixture
def datasets(tmp_path) -> dict[str, CaptionedImages]:
    return {
        "coco": write(tmp_path / "data/coco", "coco", 24),
        "flickr30k": write(tmp_path / "data/flickr", "flickr", 10),
    }


def test_the_papers_numbers() -> None:
    assert sum(PAPER_MIXTURE.values()) == 75_000
    held_out = {name: round(HELD_OUT * count) for name, count in PAPER_MIXTURE.items()}
    assert held_out == {"coco": 5_000, "flickr30k": 1_500, "conceptual_captions": 1_000}
    assert 75_000 - sum(held_out.values()) == 67_500


def test_the_mixture_is_drawn_and_written(datasets, tmp_path) -> None:
    file = tmp_path / "data/mixture.json"
    record = curate(datasets, file, [], mixture=MIXTURE, seed=3, by_content=False)
    assert json.loads(file.read_text()) == record
    assert [path.name for path in file.parent.iterdir() if path.is_file()] == ["mixture.json"]
    assert record["seed"] == 3
    assert record["recipe"] == {"mixture": MIXTURE, "held_out": 0.1, "by_content": False}
    assert record["counts"] == {
        "coco": {"asked": 20, "train": 18, "val": 2},
        "flickr30k": {"asked": 10, "train": 9, "val": 1},
        "conceptual_captions": {"asked": 5, "train": 0, "val": 0},
    }
    entries = record["entries"]
    assert Counter((each["source"], each["split"]) for each in entries) == {
        ("coco", "train"): 18,
        ("coco", "val"): 2,
        ("flickr30k", "train"): 9,
        ("flickr30k", "val"): 1,
    }
    assert len({each["path"] for each in entries}) == 30
    first = entries[0]
    number = int(first["id"].removeprefix("coco:")) - 1
    assert first == {
        "path": f"coco/{number:03d}.png",
        "id": f"coco:{number + 1}",
        "captions": [f"coco {number}", "again"],
        "source": "coco",
        "split": "train",
    }


def test_the_seed_decides_and_the_order_does_not(datasets, tmp_path) -> None:
    file = tmp_path / "mixture.json"
    turned = {name: each.select(range(len(each))[::-1]) for name, each in datasets.items()}
    first = curate(datasets, file, [], mixture=MIXTURE, by_content=False)
    assert curate(turned, file, [], mixture=MIXTURE, by_content=False) == first
    alone = {"coco": datasets["coco"]}
    entries = curate(alone, file, [], mixture=MIXTURE, by_content=False)["entries"]
    assert entries == first["entries"][:20]
    other = curate(datasets, file, [], mixture=MIXTURE, by_content=False, seed=1)
    assert {e["path"] for e in other["entries"]} != {e["path"] for e in first["entries"]}


def test_what_leaks_or_fails_is_named_and_made_up_for(datasets, tmp_path) -> None:
    pytest.importorskip("imagehash")
    coco = datasets["coco"]
    coco.paths[4].write_bytes(b"no picture")
    captions = tuple(() if i == 7 else group for i, group in enumerate(coco.captions))
    coco = CaptionedImages(coco.paths, captions, "train", "coco", coco.image_ids)
    copy = tmp_path / "copy.png"
    Image.open(coco.paths[11]).save(copy)
    evaluation = CaptionedImages(
        (copy, Path("COCO_val2014_000000000003.jpg")), (("a",), ("b",)), "test", "coco test"
    )
    file = tmp_path / "mixture.json"
    record = curate({"coco": coco}, file, [evaluation], mixture={"coco": 24})
    assert record["counts"] == {"coco": {"asked": 24, "train": 18, "val": 2}}
    left = {each["id"] for each in record["entries"]}
    assert left == {f"coco:{n + 1}" for n in range(24)} - {"coco:3", "coco:5", "coco:8", "coco:12"}
    assert {each["picture"]: each["by"] for each in record["leaks"]} == {
        str(coco.paths[2]): "coco 3",
        str(coco.paths[11]): "content (0 bits)",
    }
    reasons = {each["path"]: each["reason"] for each in record["unusable"]}
    assert set(reasons) == {str(coco.paths[4]), str(coco.paths[7])}
    assert reasons[str(coco.paths[7])] == "it has no caption"
    assert [each["path"] for each in record["not_compared"]] == ["COCO_val2014_000000000003.jpg"]
    # With enough others, their places are taken.
    few = curate({"coco": coco}, file, [evaluation], mixture={"coco": 20})
    assert few["counts"] == {"coco": {"asked": 20, "train": 18, "val": 2}}


@pytest.mark.parametrize(
    ("names", "changes", "says"),
    [
        (["mscoco"], {}, r"mixture \(coco, flickr30k, conceptual_captions\), got mscoco; name"),
        (["coco", "mscoco"], {}, "got mscoco; name"),
        (["coco"], {"mixture": {"coco": 0}}, "none was usable"),
        ([], {}, "from at least one data set"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_writes_nothing(tmp_path, names, changes, says) -> None:
    datasets = {name: write(tmp_path / name, name, 2) for name in names}
    with pytest.raises(ValueError, match=says):
        curate(datasets, tmp_path / "mixture.json", [], by_content=False, **changes)
    assert not (tmp_path / "mixture.json").exists()


# Manifests are read back as they were written, and refused where they are broken

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
    file.write_text(json.dumps({"format": MANIFEST, "seed": 3, "entries": ENTRIES}))
    return file


def test_a_manifest_is_read_back(file) -> None:
    found = read_captioned(file, split="all", checks="names")
    assert found.dataset == CaptionedImages(
        (file.parent / ENTRIES[0]["path"], Path("/data/flickr/36979.jpg")),
        (("a meal", "food in boxes"), ("a group",)),
        "all",
        "mixture",
        ("coco:9", "flickr:36979"),
        ("train", "val"),
    )
    assert found.splits_from == "file"
    alone = read_captioned(file, split="val", checks="names").dataset
    assert alone.paths == found.dataset.paths[1:]


@pytest.mark.parametrize(
    "change",
    [
        {"split": "holdout"},
        {"captions": [" "]},
        {"captions": None},
        {"captions": "meal"},
        {"captions": ["\ud83d"]},
        {"path": None},
        {"id": 9},
    ],
)
def test_a_broken_entry_is_refused(file, change) -> None:
    entries = [ENTRIES[0], ENTRIES[1] | change]
    file.write_text(json.dumps({"format": MANIFEST, "entries": entries}))
    with pytest.raises(ValueError, match=r"Expected (a manifest .*mixture|captions|each picture)"):
        read_manifest(file)


@pytest.mark.parametrize("content", ["[]", "{", '{"format": "other"}', "{}"])
def test_what_is_no_manifest_is_refused(file, content) -> None:
    file.write_text(content)
    with pytest.raises(ValueError, match=r"Expected (a manifest|to read) .*mixture\.json"):
        read_manifest(file)
