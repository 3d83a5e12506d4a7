"""Both files that Flickr30k is given out with, and the row that is known to be broken."""

from pathlib import Path

import pytest
from PIL import Image

from dclip_kit.data import read_captioned
from tests.data.reading import read_flickr

# The first line, the spaces and the broken row are those of the known file.
CSV = """image_name| comment_number| comment
1000092795.jpg| 0| Two young guys with shaggy hair look at their hands .
1000092795.jpg| 1| Two young , White males | are outside near many bushes .
2199200615.jpg| 3| A dog runs .
2199200615.jpg| 4   A dog runs across the grass .
36979.jpg| 0|
36979.jpg| 1| A group .
"""
TOKEN = (
    "1000092795.jpg#0\tTwo young guys .\n1000092795.jpg#1\tTwo males .\n"
    "2199200615.jpg#4\tA dog runs across the grass .\n36979.jpg 0 A group .\n"
)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "flickr30k_images").mkdir()
    for name in ("1000092795.jpg", "2199200615.jpg", "36979.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / "flickr30k_images" / name)
    (tmp_path / "results.csv").write_text(CSV)
    return tmp_path


def test_the_row_without_a_comment_is_counted_and_named(folder) -> None:
    found = read_flickr(folder, split="all of it")
    assert found.dataset.captions == (
        (
            "Two young guys with shaggy hair look at their hands .",
            "Two young , White males | are outside near many bushes .",
        ),
        ("A dog runs .",),
        ("A group .",),
    )
    assert found.dataset.image_ids == ("flickr:1000092795", "flickr:2199200615", "flickr:36979")
    assert (found.dataset.split, found.dataset.source) == ("all of it", "flickr30k")
    assert found.unusable == {
        "results.csv:5": "expected a picture, its caption's number and a caption"
    }
    assert found.empty_captions == 1


def test_the_token_file_is_read_too(folder) -> None:
    (folder / "results_20130124.token").write_text(TOKEN)
    with pytest.raises(ValueError, match=r"got results_20130124\.token, results\.csv; name the"):
        read_flickr(folder)
    found = read_flickr(folder / "results_20130124.token")
    assert found.dataset.captions == (
        ("Two young guys .", "Two males ."),
        ("A dog runs across the grass .",),
    )
    assert list(found.unusable) == ["results_20130124.token:4"]
    assert len(read_flickr(folder / "results.csv").dataset) == 3


@pytest.mark.parametrize("place", ["flickr30k-images", ".", "../flickr30k_images"])
def test_pictures_are_found_where_they_usually_lie(folder, place) -> None:
    (folder / "captions").mkdir()
    target = folder / "captions" / place
    if place != "../flickr30k_images":
        for picture in (folder / "flickr30k_images").iterdir():
            target.mkdir(exist_ok=True)
            picture.rename(target / picture.name)
    file = (folder / "results.csv").rename(folder / "captions/results.csv")
    assert len(read_flickr(file).dataset) == 3
    assert len(read_flickr(file, target).dataset) == 3


@pytest.mark.parametrize(
    ("content", "says"),
    [("a,b\n", r"the first, results\.csv:1: expected a picture, its"), ("", "none was left")],
)
def test_a_csv_of_another_form_has_nothing_to_use(folder, content, says) -> None:
    (folder / "results.csv").write_text(content)
    with pytest.raises(ValueError, match=says):
        read_captioned(folder)


def test_a_folder_without_captions_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"one file results_20130124\.token or results\.csv in"):
        read_flickr(tmp_path)
