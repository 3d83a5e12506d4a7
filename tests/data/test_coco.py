"""COCO's caption files of both years in their real form, small."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dclip_kit.data import read_captioned, recognise_format
from dclip_kit.data.splits import read_splits
from tests.data.reading import read_coco


def write_coco(root: Path, subset: str, prefix: str, numbers: list[int], **changes) -> Path:
    """The annotation file of a subset, and its pictures; picture n has n % 3 captions."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / subset).mkdir(exist_ok=True)
    images, annotations = [], []
    for number in numbers:
        name = f"{prefix}{number:012d}.jpg"
        images.append({"license": 3, "file_name": name, "height": 4, "width": 4, "id": number})
        Image.new("RGB", (4, 4)).save(root / subset / name)
    # As in the real file, the captions of a picture do not stand together.
    for turn in range(2):
        for number in numbers:
            if turn < number % 3:
                text = f"Caption {turn} of {number}."
                annotations.append({"image_id": number, "id": len(annotations), "caption": text})
    record = {"info": {}, "images": images, "licenses": [], "annotations": annotations} | changes
    file = root / f"annotations/captions_{subset}.json"
    file.write_text(json.dumps(record))
    return file


@pytest.mark.parametrize(
    ("subset", "prefix"),
    [("val2014", "COCO_val2014_"), ("train2014", "COCO_train2014_"), ("val2017", "")],
)
def test_captions_come_to_their_pictures(tmp_path, subset, prefix) -> None:
    write_coco(tmp_path, subset, prefix, [391895, 12, 10])
    found = read_coco(tmp_path, split=subset[:-4])
    assert [path.name for path in found.dataset.paths] == [
        f"{prefix}000000391895.jpg",
        f"{prefix}000000000012.jpg",
        f"{prefix}000000000010.jpg",
    ]
    assert found.dataset.captions == (
        ("Caption 0 of 391895.", "Caption 1 of 391895."),
        (),
        ("Caption 0 of 10.",),
    )
    assert found.dataset.image_ids == ("coco:391895", "coco:12", "coco:10")
    assert (found.dataset.split, found.dataset.source) == (subset[:-4], tmp_path.name)
    assert (found.dataset.splits, found.splits_from) == ((subset[:-4],) * 3, "file")
    assert (found.unusable, found.empty_captions) == ({}, 0)


def test_pictures_are_found_beside_the_file_or_where_told(tmp_path) -> None:
    file = write_coco(tmp_path / "root", "val2017", "", [5])
    other = file.rename(tmp_path / "captions_val2017.json")
    assert read_coco(other, tmp_path / "root/val2017", "val").dataset.captions == (
        ("Caption 0 of 5.", "Caption 1 of 5."),
    )
    (tmp_path / "root/val2017").rename(tmp_path / "images")
    assert len(read_coco(other, split="all").dataset) == 1


def test_the_file_has_the_say_on_its_split(tmp_path) -> None:
    file = write_coco(tmp_path, "val2014", "COCO_val2014_", [1])
    with pytest.raises(ValueError, match=r"of captions_val2014 \(val\), .*'train'; give .*--split"):
        read_coco(file)
    with pytest.raises(ValueError, match=r"of .* \(val\), .* got 'train'"):
        read_coco(tmp_path)
    write_coco(tmp_path, "val2017", "", [1])
    with pytest.raises(
        ValueError, match=r"captions_val2014.json, .*captions_val2017.json.*name the"
    ):
        read_coco(tmp_path, split="val")
    assert read_coco(file, split="all").dataset.splits == ("val",)


def test_captions_and_pictures_that_cannot_be_used_are_named_and_others_kept(tmp_path) -> None:
    images = [{"file_name": "a.jpg", "id": 1}, {"file_name": "../c.jpg", "id": 3}]
    images += [{"file_name": None, "id": 4}, {"file_name": "d.jpg", "id": 5}]
    annotations = [
        {"image_id": 1, "id": 0, "caption": "A cat."},
        {"image_id": 1, "id": 1, "caption": " "},
        {"image_id": 2, "id": 2, "caption": "Of nobody."},
        {"image_id": 3, "id": 4, "caption": "A secret."},
        {"image_id": 5, "id": 5, "caption": 7},
    ]
    file = write_coco(tmp_path, "val2017", "", [], images=images, annotations=annotations)
    Image.new("RGB", (4, 4)).save(tmp_path / "val2017/a.jpg")
    found = read_coco(file, split="val")
    assert found.dataset.captions == (("A cat.",),) and found.empty_captions == 1
    places = ("images[2]", "images[3]", "image_id 2")
    rows = {f"captions_val2017.json:{place}" for place in places}
    assert found.unusable.keys() == rows | {"../c.jpg"}


def test_numbers_of_data_that_is_not_cocos_are_nobody_elses(tmp_path) -> None:
    """A shop's export counts from 1 in each of its files."""
    seeds = iter(range(60))
    for subset in ("train", "val"):
        file = write_coco(tmp_path, subset, "", [n for n in range(1, 45) if n % 3])
        record = json.loads(file.read_text())
        for entry in record["images"]:
            entry["file_name"] = name = f"{subset}_{entry['id']}.png"
            noise = np.random.default_rng(next(seeds)).integers(256, size=(32, 32, 3))
            Image.fromarray(noise.astype(np.uint8)).save(tmp_path / subset / name)
        file.write_text(json.dumps(record))
    assert read_coco(tmp_path, split="all").dataset.image_ids == ("",) * 60
    splits = read_splits(tmp_path)
    assert not splits.left_out.leaks
    assert len(splits.train) + len(splits.val) + len(splits.test) == 60


def test_all_of_a_folder_is_train_and_val(tmp_path) -> None:
    write_coco(tmp_path, "train2017", "", [1, 3])
    write_coco(tmp_path, "val2017", "", [5])
    found = read_coco(tmp_path, split="all")
    assert found.dataset.image_ids == ("coco:1", "coco:3", "coco:5")
    assert (found.dataset.splits, found.splits_from) == (("train", "train", "val"), "file")
    assert found.dataset.paths[2] == tmp_path / "val2017/000000000005.jpg"
    alone = read_coco(tmp_path, split="val").dataset
    assert alone == replace(found.dataset.select([2]), split="val")


def test_a_file_of_another_name_has_no_splits(tmp_path) -> None:
    file = write_coco(tmp_path, "val2017", "", [5]).rename(tmp_path / "mine.json")
    found = read_coco(file, tmp_path / "val2017")
    assert (len(found.dataset), found.dataset.splits, found.splits_from) == (1, ("",), "")
    named = read_coco(file.rename(tmp_path / "captions_val_mine.json"), tmp_path / "val2017", "all")
    assert named.dataset.splits == ("val",)


@pytest.mark.parametrize("name", ["instances_val2017.json", "mine.json"])
def test_annotations_of_objects_are_refused(tmp_path, name) -> None:
    objects = [{"image_id": 5, "id": 1, "category_id": 3, "bbox": [0, 0, 2, 2], "area": 4}]
    file = write_coco(tmp_path, "val2017", "", [5], annotations=objects)
    file = file.rename(tmp_path / name)
    assert recognise_format(file) == "coco"
    with pytest.raises(
        ValueError,
        match=rf"captions in .*{name}, got another form .*caption.*; .* such as captions_",
    ):
        read_captioned(file, split="all")


@pytest.mark.parametrize(
    "changes",
    [
        {"images": None},
        {"annotations": None},
        {"images": [7]},
        {"images": [{"file_name": "b.jpg"}]},
        {"annotations": [{"image_id": 1}]},
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, changes) -> None:
    file = write_coco(tmp_path, "val2017", "", [1], **changes)
    with pytest.raises(ValueError, match=r"Expected COCO's captions in .*val2017\.json, got"):
        read_coco(file, split="val")
