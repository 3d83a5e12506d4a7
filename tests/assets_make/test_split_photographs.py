"""Which photographs teach the photo CLIP, which the arms, and which measure."""

import csv
import json
import sys

import pytest
from PIL import Image

from assets.make import split_photographs as split
from dclip_kit.data import read_captioned
from dclip_kit.data.splits import read_splits, read_uncaptioned
from dclip_kit.models.boxes import read_boxes

COUNTS = {"clip": 6, "val": 2, "train": 3}  # of 14 pictures, so that 3 are left


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Flickr8k in small: 14, 3 and 4 pictures in its lists, two in none, and a stray file."""
    folder = tmp_path / "photos" / "flickr8k"
    (folder / "Images").mkdir(parents=True)
    names = {
        "train": [f"t{index}.jpg" for index in range(14)],
        "dev": [f"d{index}.jpg" for index in range(3)],
        "test": [f"m{index}.jpg" for index in range(4)],
    }
    every = [name for listed in names.values() for name in listed] + ["x0.jpg", "x1.jpg"]
    for index, name in enumerate(every):
        Image.effect_noise((20 + index, 20), 90).convert("RGB").save(folder / "Images" / name)
    (folder / "Images" / "t0.jpg.1").write_bytes(b"stray")
    for part, listed in names.items():
        (folder / f"Flickr_8k.{part}Images.txt").write_text("\n".join(listed) + "\n")
    tokens = [f'{name}#{n}\tcaption {n} of "{name}", really' for name in every for n in range(5)]
    (folder / "Flickr8k.token.txt").write_text("\n".join(tokens) + "\n")
    box = {"xyxy": [0, 0, 10, 10], "confidence": 0.5, "label": "dog"}
    (folder / "boxes.json").write_text(json.dumps({name: [box] for name in every}))
    for other in ("imagenet_1000", "cifar10_test"):
        (tmp_path / "photos" / other).mkdir()
    monkeypatch.setattr(split, "COUNTS", COUNTS)
    monkeypatch.setattr(split, "OUT", tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["split_photographs", str(tmp_path / "photos")])
    return tmp_path / "photos" / "flickr8k", names


def test_no_picture_has_two_uses(photographs) -> None:
    folder, names = photographs
    used = split.split_names(folder)
    assert {use: len(pictures) for use, pictures in used.items()} == {
        **COUNTS,
        "uncaptioned": 3 + 2,
        "test": 7,
    }
    every = [name for pictures in used.values() for name in pictures]
    assert len(every) == len(set(every)) == 14 + 3 + 4 + 2
    assert {*used["test"]} == {*names["dev"], *names["test"]}
    assert {*used["clip"], *used["val"], *used["train"]} < {*names["train"]}
    assert {"x0.jpg", "x1.jpg"} < {*used["uncaptioned"]}
    assert used == split.split_names(folder)


def test_the_kit_reads_what_is_written(photographs) -> None:
    folder, _ = photographs
    split.main()
    used, out = split.split_names(folder), split.OUT
    splits = read_splits(out / "captions.csv", out / "Images", by_content=False)
    for name in ("train", "val", "test"):
        part = getattr(splits, name)
        assert {path.name for path in part.paths} == {*used[name]}
        assert all(len(captions) == 5 for captions in part.captions)
    pictures, left_out = read_uncaptioned(out / "uncaptioned.csv", (splits.val, splits.test), False)
    assert {path.name for path in pictures.paths} == {*used["uncaptioned"]} and not left_out.leaks
    clip = read_captioned(out / "clip.csv", out / "Images", split="all").dataset
    assert {path.name for path in clip.paths} == {*used["clip"]}
    assert len(read_boxes(out / "boxes.json").regions) == 23
    with (out / "captions.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert all(row["caption"].endswith(f'of "{row["image"]}", really') for row in rows)
    split.main()  # again, over the links
