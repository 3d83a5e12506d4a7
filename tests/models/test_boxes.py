"""Regions without a detector of ours: boxes in a file, and fixed crops."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from dclip_kit.models.boxes import CROP_NAMES, add_crops, read_boxes
from dclip_kit.models.detector import load_detector, locate_weights
from dclip_kit.models.regions import Regions


def region(label="dog", confidence=0.5, xyxy=(1, 2, 11, 12)) -> dict:
    return {"label": label, "confidence": confidence, "xyxy": [*xyxy]}


def write(file: Path, **regions: list[dict]) -> Path:
    """Boxes of 40 × 20 pictures by path, in which __ stands for a slash."""
    pictures = [
        {"path": name.replace("__", "/") + ".png", "width": 40, "height": 20, "regions": each}
        for name, each in regions.items()
    ]
    file.write_text(json.dumps({"detector": "theirs", "pictures": pictures}))
    return file


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "photos/sub/b.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(path)
    return path


def test_what_detect_writes_is_read_again(tmp_path, picture) -> None:
    stored = read_boxes(write(tmp_path / "boxes.json", a=[], sub__b=[region(), region("cat", 0.9)]))
    assert stored.names == ("cat", "dog")
    found = stored.find(picture, (40, 20))
    assert found.label == ("cat", "dog")  # most confident first
    assert found.xyxy.tolist() == [[1, 2, 11, 12]] * 2
    assert found.confidence.tolist() == pytest.approx([0.9, 0.5])
    assert stored.find("a.png", (40, 20)).is_whole_image


def test_paths_of_windows_are_understood(tmp_path, picture) -> None:
    file = write(tmp_path / "boxes.json", **{"sub\\b": [region()]})
    assert read_boxes(file).find(picture, (40, 20)).label == ("dog",)


def test_thresholds_are_those_of_the_settings(tmp_path) -> None:
    each = [region(str(number), number / 10) for number in range(1, 10)]
    file = write(tmp_path / "boxes.json", a=each)
    assert read_boxes(file, 0.5, 3).find("a.png", (40, 20)).label == ("9", "8", "7")
    assert read_boxes(file, 0.5).find("a.png", (40, 20)).label == ("9", "8", "7", "6")


def test_the_command_and_this_agree(tmp_path, picture, pictures) -> None:
    """Boxes of the embedded detector, written to a file and read again, are its own."""
    from dclip_kit.commands.prepare import detect

    for number, each in enumerate(pictures):
        each.save(picture.parent / f"{number}.png")
    file = tmp_path / "boxes.json"
    detect(tmp_path / "photos", out=file, detector="pocket", confidence=0.1, max_regions=4)
    paths = sorted(picture.parent.glob("*.png"))
    given = {"confidence": 0.1, "max_regions": 4}
    expected = load_detector("pocket", **given).detect(paths).regions
    found = load_detector(file, **given).detect(paths).regions
    assert sum(len(each) for each in expected) > len(paths)
    for one, other in zip(found, expected, strict=True):
        assert one.label == other.label and one.is_whole_image == other.is_whole_image
        torch.testing.assert_close(one.xyxy, other.xyxy)
        torch.testing.assert_close(one.confidence, other.confidence)


@pytest.mark.parametrize("root", ["", "/data/photos/", "photos/"])
def test_pictures_are_found_by_their_path_below_the_folder(root, tmp_path) -> None:
    """Wherever the folder was when the boxes were found."""
    each = {f"{root}{name}".replace("/", "__"): [region(name)] for name in ("a", "x/a", "x/y/b")}
    stored = read_boxes(write(tmp_path / "boxes.json", **each))
    for path, label in (
        ("elsewhere/a.png", "a"),
        ("/home/me/x/a.png", "x/a"),  # the longest that fits
        ("/home/me/x/y/b.png", "x/y/b"),
    ):
        assert stored.find(path, (40, 20)).label == (label,)
    for path in ("/home/me/b.png", "y/b.png", "a.jpg", "A.png"):
        assert stored.find(path, (40, 20)).is_whole_image


def test_unlisted_pictures_are_counted(tmp_path) -> None:
    stored = read_boxes(write(tmp_path / "boxes.json", a=[region()], x__b=[region()]))
    assert stored.count_unlisted([Path("/p/a.png"), Path("/p/x/b.png")]) == 0
    assert stored.count_unlisted([Path("/p/a.png"), Path("/p/c.png"), Path("/p/b.png")]) == 2


def test_two_pictures_do_not_share_boxes(tmp_path) -> None:
    stored = read_boxes(write(tmp_path / "boxes.json", a=[region()]))
    with pytest.raises(ValueError, match=r"x/a\.png and y/a\.png for a\.png"):
        stored.count_unlisted([Path("x/a.png"), Path("y/a.png")])


def test_another_folders_picture_of_that_name_is_not_listed(tmp_path) -> None:
    here, there, copied = (tmp_path / name / "0.png" for name in ("here", "there", "copied"))
    for path, colour in ((here, "red"), (there, "blue"), (copied, "red")):
        path.parent.mkdir()
        Image.new("RGB", (40, 20), colour).save(path)
    names = {str(path.with_suffix("")): [region()] for path in (here, here.with_name("1.png"))}
    stored = read_boxes(write(tmp_path / "boxes.json", **names))
    assert stored.find(here, (40, 20)).label == stored.find(copied, (40, 20)).label == ("dog",)
    assert stored.find(there, (40, 20)).is_whole_image
    assert stored.count_unlisted([there, here]) == 1
    here.unlink()  # a folder that has moved
    assert stored.find(there, (40, 20)).label == ("dog",)


def test_boxes_of_another_size_are_refused(tmp_path, picture) -> None:
    file = write(tmp_path / "boxes.json", b=[region()])
    Image.new("RGB", (20, 40)).save(picture)
    with pytest.raises(ValueError, match=r"40×20 pixels .* got 20×40"):
        load_detector(file).detect([picture])
    with pytest.raises(ValueError, match="the path of a picture"):
        load_detector(file).detect([Image.new("RGB", (40, 20))])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"pictures": 3}',
        '{"pictures": [{"path": "a.png", "width": 40, "height": 20}]}',
        '{"pictures": [{"path": "a.png", "width": 0, "height": 20, "regions": []}]}',
        json.dumps({"pictures": [{"path": "a", "width": 40, "height": 20, "regions": [{}]}]}),
    ],
)
def test_other_files_are_refused(content, tmp_path) -> None:
    file = tmp_path / "boxes.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"boxes\.json"):
        read_boxes(file)


@pytest.mark.parametrize(
    "change",
    [{"xyxy": (1, 2, 3)}, {"xyxy": "abcd"}, {"confidence": 2.0}, {"confidence": "high"}],
)
def test_bad_regions_are_refused(change, tmp_path) -> None:
    with pytest.raises(ValueError, match="detect writes them"):
        read_boxes(write(tmp_path / "boxes.json", a=[region(**change)]))


def test_shares_of_the_picture_are_no_pixels(tmp_path) -> None:
    shares = [region(xyxy=(0.1, 0.2, 0.5, 0.9)), region(xyxy=(0, 0, 1, 1))]
    with pytest.raises(ValueError, match="they are shares of the picture"):
        read_boxes(write(tmp_path / "boxes.json", a=shares, b=[]))
    found = read_boxes(write(tmp_path / "boxes.json", a=shares, b=[region()]))
    assert len(found.find("a.png", (40, 20))) == 2  # a small thing, in pixels
    assert len(read_boxes(write(tmp_path / "boxes.json", a=[])).find("a.png", (40, 20))) == 1


def test_a_picture_twice_is_refused(tmp_path) -> None:
    file = write(tmp_path / "boxes.json", a=[region()])
    record = json.loads(file.read_text())
    file.write_text(json.dumps({"pictures": record["pictures"] * 2}))
    with pytest.raises(ValueError, match=r"a\.png twice"):
        read_boxes(file)


def test_boxes_outside_the_picture_are_dropped_and_counted(tmp_path) -> None:
    outside = [region(xyxy=(50, 0, 60, 9)), region(xyxy=(30, 10, 99, 99))]
    found = read_boxes(write(tmp_path / "boxes.json", a=outside)).find("a.png", (40, 20))
    assert found.dropped == 1 and found.xyxy.tolist() == [[30, 10, 40, 20]]


# Crops


def test_crops_by_hand() -> None:
    """Of 100 × 50 pixels: 60 % of each side, in the corners and in the middle."""
    found = add_crops(Regions.whole_image((100, 50)))
    assert found.label == CROP_NAMES and not found.is_whole_image
    expected = [
        [0, 0, 60, 30],
        [40, 0, 100, 30],
        [0, 20, 60, 50],
        [40, 20, 100, 50],
        [20, 10, 80, 40],
    ]
    torch.testing.assert_close(found.xyxy, torch.tensor(expected).float())
    assert found.confidence.tolist() == [1] * 5
    assert found.area.tolist() == pytest.approx([0.36] * 5)


def test_crops_follow_boxes(tmp_path) -> None:
    stored = read_boxes(write(tmp_path / "boxes.json", a=[region()]))
    found = add_crops(stored.find("a.png", (40, 20)))
    assert found.label == ("dog", *CROP_NAMES) and found.xyxy[0].tolist() == [1, 2, 11, 12]


def test_crops_in_a_file_take_no_detections_place(tmp_path) -> None:
    found = [region(str(number), number / 10) for number in range(1, 4)]
    crops = [region(name, 1.0) for name in CROP_NAMES]
    stored = read_boxes(write(tmp_path / "boxes.json", a=found + crops), 0.0, 2)
    assert stored.find("a.png", (40, 20)).label == ("3", "2", *CROP_NAMES)


def test_a_detector_is_named_with_crops_or_without(tmp_path, picture) -> None:
    file = write(tmp_path / "boxes.json", b=[region()])
    expected = {
        "crops": CROP_NAMES,
        str(file): ("dog",),
        f"{file}+crops": ("dog", *CROP_NAMES),
    }
    for name, labels in expected.items():
        detector = load_detector(name)
        (found,) = detector.detect([picture]).regions
        assert found.label == detector.names == labels
    assert locate_weights("crops") is None and locate_weights(f"{file}+crops") == file
    assert locate_weights("pocket+crops") == locate_weights("pocket")
    both, alone = (load_detector(name) for name in ("pocket+crops", "pocket"))
    assert both.names == (*alone.names, *CROP_NAMES)
    (found,) = both.detect([picture]).regions
    assert found.label[-5:] == CROP_NAMES and not found.is_whole_image
    with pytest.raises(FileNotFoundError):
        locate_weights("nowhere.json+crops")
