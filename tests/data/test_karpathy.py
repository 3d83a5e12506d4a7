"""Karpathy's files in their real form, small; splits and what is broken in them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.data.reading import read_karpathy


def entry(name: str, split: str, *captions: str, **more) -> dict:
    sentences = [
        {"tokens": caption.lower().split(), "raw": caption, "imgid": 0, "sentid": number}
        for number, caption in enumerate(captions)
    ]
    numbers = list(range(len(captions)))
    return more | {
        "sentids": numbers,
        "imgid": 0,
        "filename": name,
        "split": split,
        "sentences": sentences,
    }


def coco_entry(number: int, folder: str, split: str, *captions: str) -> dict:
    name = f"COCO_{folder}_{number:012d}.jpg"
    return entry(name, split, *captions, filepath=folder, cocoid=number)


COCO = [
    coco_entry(391895, "val2014", "test", "A man on a bike.", "A man rides. "),
    coco_entry(522418, "val2014", "restval", "A woman cuts a cake."),
    coco_entry(184613, "train2014", "train", "A child with an umbrella.", " "),
    coco_entry(60623, "val2014", "val", "A girl eats."),
]


@pytest.fixture
def coco(tmp_path) -> Path:
    for each in COCO:
        (tmp_path / each["filepath"]).mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / each["filepath"] / each["filename"])
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": COCO, "dataset": "coco"}))
    return tmp_path


@pytest.mark.parametrize(
    ("split", "ids"),
    [
        ("test", ["coco:391895"]),
        ("val", ["coco:60623"]),
        ("train", ["coco:522418", "coco:184613"]),
        ("train+val", ["coco:522418", "coco:184613", "coco:60623"]),
        ("train+restval", ["coco:522418", "coco:184613"]),
        ("all", ["coco:391895", "coco:522418", "coco:184613", "coco:60623"]),
    ],
)
def test_each_split_has_its_pictures(coco, split, ids) -> None:
    found = read_karpathy(coco, split=split)
    assert list(found.dataset.image_ids) == ids
    assert (found.dataset.split, found.dataset.source) == (split, coco.name)
    assert found.unusable == {}
    own = {
        "coco:391895": "test",
        "coco:522418": "train",
        "coco:184613": "train",
        "coco:60623": "val",
    }
    assert found.dataset.splits == tuple(own[each] for each in ids) and found.splits_from == "file"


def test_captions_are_the_raw_ones(coco) -> None:
    found = read_karpathy(coco / "dataset_coco.json", split="test")
    assert found.dataset.paths == (coco / "val2014/COCO_val2014_000000391895.jpg",)
    assert found.dataset.captions == (("A man on a bike.", "A man rides."),)
    assert read_karpathy(coco, split="train").empty_captions == 1


def test_pictures_may_lie_elsewhere(coco, tmp_path_factory) -> None:
    place = tmp_path_factory.mktemp("annotations")
    file = (coco / "dataset_coco.json").rename(place / "dataset_coco.json")
    assert len(read_karpathy(file, coco, "val").dataset) == 1
    missing = read_karpathy(file, split="val")
    assert len(missing.dataset) == 0
    assert [Path(place).name for place in missing.unusable] == ["COCO_val2014_000000060623.jpg"]
    assert len(read_karpathy(file, split="val", checks="names").dataset) == 1


def test_flickr30k_has_neither_folders_nor_coco_ids(tmp_path) -> None:
    entries = [entry("1007129816.jpg", "test", "A man."), entry("36979.jpg", "train", "A group.")]
    (tmp_path / "flickr30k_images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "flickr30k_images/1007129816.jpg")
    file = tmp_path / "dataset_flickr30k.json"
    file.write_text(json.dumps({"images": entries, "dataset": "flickr30k"}))
    found = read_karpathy(file, split="test").dataset
    assert found.paths == (tmp_path / "flickr30k_images/1007129816.jpg",)
    assert (found.image_ids, found.source) == (("flickr:1007129816",), "dataset_flickr30k")


@pytest.mark.parametrize("split", ["mine", "train+mine", ""])
def test_an_unknown_split_lists_the_known_ones(coco, split) -> None:
    with pytest.raises(ValueError, match=r"of .* \(train, val, test\).* got .*; give .*--split"):
        read_karpathy(coco, split=split)


def test_pictures_that_cannot_be_used_are_named_and_others_kept(coco) -> None:
    record = {"images": [*COCO, entry("../up.jpg", "val", "A.")]}
    record["images"].append(entry("a.jpg", "val") | {"sentences": [{"raw": 7}]})
    (coco / "dataset_coco.json").write_text(json.dumps(record))
    found = read_karpathy(coco, split="val")
    assert len(found.dataset) == 1
    assert found.unusable.keys() == {"dataset_coco.json:images[5]", "../up.jpg"}


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"images": 3}', '{"images": [{"filename": "a.jpg"}]}']
)
def test_a_file_of_another_form_is_refused(coco, content) -> None:
    (coco / "dataset_coco.json").write_text(content)
    with pytest.raises(ValueError, match=r"Expected one of Karpathy's files at .*coco\.json"):
        read_karpathy(coco)
    (coco / "dataset_b.json").write_text(content)
    with pytest.raises(ValueError, match=r"got dataset_b\.json, dataset_coco\.json; name the file"):
        read_karpathy(coco)


def test_folds_are_thousands_of_the_test_split_in_the_files_order(tmp_path) -> None:
    entries = [coco_entry(9000, "train2014", "train", "A dog.")]
    entries += [coco_entry(number, "val2014", "test", "A cat.") for number in range(5000)]
    file = tmp_path / "dataset_coco.json"
    file.write_text(json.dumps({"images": entries, "dataset": "coco"}))
    for fold in range(5):
        found = read_karpathy(file, split=f"test_1k_{fold}", checks="names").dataset
        first = 1000 * fold
        assert found.image_ids == tuple(f"coco:{first + number}" for number in range(1000))
    with pytest.raises(ValueError, match=r"Expected one of test_1k_0, .*got 'test_1k_5'"):
        read_karpathy(file, split="test_1k_5", checks="names")
    file.write_text(json.dumps({"images": entries[:-1], "dataset": "coco"}))
    with pytest.raises(ValueError, match=r"5,000 test pictures, got 'test_1k_0' and 4,999"):
        read_karpathy(file, split="test_1k_0", checks="names")
