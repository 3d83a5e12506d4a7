"""The example folder: its flaws are those that it promises, and it is written once."""

import csv

import pytest
from PIL import ExifTags, Image

from dclip_kit.data import find_leaks, inspect_data, open_picture, read_captioned
from dclip_kit.data.pocket.example import write_example
from dclip_kit.data.pocket.world import make_scene

FEWEST = 40  # scenes, as few as are quick to draw


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_example(tmp_path_factory.mktemp("example") / "pictures", FEWEST)


def test_inspection_finds_its_flaws(folder) -> None:
    report = inspect_data(folder)
    reasons = {each["path"]: each["reason"] for each in report["pictures"]["unusable"]}
    cut, lost = str(folder / "scene_007.jpg"), str(folder / "lost.jpg")
    assert set(reasons) == {cut, lost}
    assert "truncated" in reasons[cut] and "No such file" in reasons[lost]
    assert report["pictures"]["usable"] == FEWEST + 20
    assert report["captions"]["empty"] == 1
    (twins,) = report["duplicates"]
    assert twins == [str(folder / "scene_009.jpg"), str(folder / "twin.jpg")]


def test_one_picture_lies_on_its_side(folder) -> None:
    turned = [
        path.name
        for path in folder.glob("*.jpg")
        if Image.open(path).getexif().get(ExifTags.Base.Orientation, 1) != 1
    ]
    assert turned == ["scene_010.jpg"]
    _, texts = make_scene("train", 10)
    with (folder / "captions.csv").open(newline="", encoding="utf-8") as file:
        listed = [row["caption"] for row in csv.DictReader(file) if row["image"] == turned[0]]
    assert listed == list(texts)
    stored, seen = Image.open(folder / turned[0]).convert("RGB"), open_picture(folder / turned[0])
    assert stored.transpose(Image.Transpose.ROTATE_270).tobytes() == seen.tobytes()


def test_only_a_look_at_the_pictures_finds_the_shrunken_ones(folder) -> None:
    found = read_captioned(folder, split="all").dataset
    small = [i for i, path in enumerate(found.paths) if path.name.startswith("small_")]
    large = [i for i in range(len(found)) if i not in small]
    training, evaluation = found.select(small), found.select(large)
    assert not find_leaks(training, [evaluation], by_content=False).leaks
    leaks = find_leaks(training, [evaluation]).leaks
    assert len(leaks) == len(small) == 20
    for leak in leaks:
        assert leak.picture.name.removeprefix("small") == leak.evaluation.name.removeprefix("scene")


def test_the_example_is_written_once_and_completed_after_an_interruption(folder, tmp_path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    write_example(folder, FEWEST)
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = tmp_path / "pictures"
    again.mkdir()
    (again / "scene_000.jpg").write_bytes(b"half")
    write_example(again, FEWEST)
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {
        p.name: p.read_bytes() for p in folder.iterdir()
    }
