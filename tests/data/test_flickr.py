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
    assert (found.dataset.split, found.dataset.source) == ("all of it", folder.name)
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
        read_captioned(folder, format="flickr")


def test_a_folder_without_captions_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"one file results_20130124\.token or .* in"):
        read_flickr(tmp_path)


# Flickr8k


@pytest.fixture
def small(tmp_path):
    """Flickr8k as it is published: captions, and each split's list of pictures."""
    captions = "".join(
        f"{name}.jpg#{number}\tA {name} number {number} .\n"
        for name in ("dog", "cat", "boat", "stray")
        for number in range(2)
    )
    (tmp_path / "Flickr8k.token.txt").write_text(captions)
    for split, name in (("train", "dog"), ("dev", "cat"), ("test", "boat")):
        (tmp_path / f"Flickr_8k.{split}Images.txt").write_text(f"{name}.jpg\n")
    return tmp_path


def draw(folder, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (4, 4)).save(folder / f"{name}.jpg")


@pytest.mark.parametrize("place", ["Images", "Flicker8k_Dataset", "../Flicker8k_Dataset"])
@pytest.mark.parametrize("file", ["", "Flickr8k.token.txt"])
def test_flickr8k_has_splits_and_captions(small, place, file) -> None:
    draw(small / place, "dog", "cat", "boat", "stray")
    found = read_captioned(small / file, split="all")
    assert [path.stem for path in found.dataset.paths] == ["dog", "cat", "boat"]
    assert found.dataset.splits == ("train", "val", "test") and found.splits_from == "file"
    assert found.dataset.captions[1] == ("A cat number 0 .", "A cat number 1 .")
    assert found.dataset.image_ids[0] == "flickr:dog"
    # A picture in no list is not used, and both its lines are named.
    assert [*found.unusable] == ["Flickr8k.token.txt:7", "Flickr8k.token.txt:8"]


def test_flickr8k_without_lists_has_no_splits(small) -> None:
    draw(small / "Images", "dog", "cat", "boat", "stray")
    for file in small.glob("Flickr_8k.*"):
        file.unlink()
    found = read_captioned(small, split="mine")
    assert len(found.dataset) == 4 and not any(found.dataset.splits) and not found.unusable


def test_flickr8k_as_it_is_passed_on(tmp_path) -> None:
    """A table called captions.txt beside Images, and captions with commas in quotes."""
    draw(tmp_path / "Images", "dog", "cat")
    table = 'image,caption\ndog.jpg,A dog .\ndog.jpg,"A dog , again ."\ncat.jpg,A cat .\n'
    (tmp_path / "captions.txt").write_text(table)
    for place in (tmp_path, tmp_path / "captions.txt"):
        found = read_captioned(place)
        assert found.dataset.captions == (("A dog .", "A dog , again ."), ("A cat .",))


def test_the_text_of_a_picture_called_captions_is_no_table(tmp_path) -> None:
    draw(tmp_path, "captions", "dog")
    (tmp_path / "captions.txt").write_text("words on a page\n")
    (tmp_path / "dog.txt").write_text("a dog\n")
    found = read_captioned(tmp_path)
    assert found.dataset.captions == (("words on a page",), ("a dog",))
