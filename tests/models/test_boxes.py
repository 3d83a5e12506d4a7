"""Drawn boxes: where they should be, on a copy, with labels that do not hide each other."""

import pytest
import torch
from PIL import Image, ImageColor

from dclip_kit.models.boxes import BOX_COLORS, draw_boxes, label_colors
from dclip_kit.models.regions import Regions

WHITE = (255, 255, 255)


def regions(*boxes: list[float], label: str = "a", size: int = 100) -> Regions:
    count = len(boxes)
    return Regions(torch.tensor(boxes), torch.ones(count), (label,) * count, (size, size))


def colored(picture: Image.Image, color: str) -> Image.Image:
    """Which pixels have exactly this colour."""
    sought = ImageColor.getrgb(color)
    mask = Image.new("1", picture.size)
    mask.putdata([pixel == sought for pixel in picture.get_flattened_data()])
    return mask


def test_boxes_are_drawn_where_they_are_on_a_copy() -> None:
    picture = Image.new("RGB", (100, 100), "white")
    drawn = draw_boxes(picture, regions([20.0, 40, 60, 90]), ["a"], ["#ff0000"])
    assert picture.getcolors() == [(10000, WHITE)]
    left, top, right, bottom = colored(drawn, "#ff0000").getbbox()
    assert (left, right, bottom) == (20, 61, 91) and top < 40  # the label stands above
    assert drawn.getpixel((40, 70)) == drawn.getpixel((80, 95)) == WHITE


def test_a_copy_of_another_size_has_its_boxes_in_the_same_place() -> None:
    picture = Image.new("RGB", (100, 100), "white")
    drawn = draw_boxes(picture, regions([20.0, 40, 60, 90]), colors=["#ff0000"], side=300)
    assert drawn.size == (300, 300)
    left, _, right, bottom = colored(drawn, "#ff0000").getbbox()
    assert (left, right, bottom) == (60, 181, 271)


def test_a_label_is_the_detectors_word_and_confidence() -> None:
    picture, found = Image.new("RGB", (100, 100), "white"), regions([20.0, 40, 60, 90])
    assert draw_boxes(picture, found) == draw_boxes(picture, found, ["a 1.00"])
    assert draw_boxes(picture, found) != draw_boxes(picture, found, ["a 0.50"])


def test_a_grey_picture_gets_coloured_boxes() -> None:
    drawn = draw_boxes(Image.new("L", (100, 100)), regions([20.0, 40, 60, 90]), colors=["#ff0000"])
    assert drawn.getpixel((20, 80)) == (255, 0, 0)


def test_labels_of_boxes_that_lie_alike_do_not_hide_each_other() -> None:
    picture = Image.new("RGB", (100, 100), "white")
    same = regions([20.0, 40, 60, 80], [20.0, 40, 60, 80])
    drawn = draw_boxes(picture, same, ["aa", "bb"], ["#ff0000", "#0000ff"])
    for color in ("#ff0000", "#0000ff"):
        box = colored(drawn, color).getbbox()
        assert box is not None and box[3] - box[1] > 8  # a label's height at least


def test_a_label_longer_than_the_picture_begins_inside_it() -> None:
    picture = Image.new("RGB", (100, 100), "white")
    for top in (0.0, 95.0):
        drawn = draw_boxes(picture, regions([90.0, top, 99, 99], label="long " * 40))
        assert drawn.getpixel((0, 2 if top == 0 else 90)) != WHITE


def test_a_label_has_one_colour_wherever_it_stands() -> None:
    colors = label_colors(["dog", "cat", "dog"])
    assert colors[0] == colors[2] != colors[1] and set(colors) <= set(BOX_COLORS)
    assert len(label_colors([str(number) for number in range(20)])) == 20


def test_regions_of_another_picture_are_refused() -> None:
    with pytest.raises(ValueError, match=r"regions' \(100, 100\) pixels, got \(10, 10\)"):
        draw_boxes(Image.new("RGB", (10, 10)), regions([0.0, 0, 5, 5]))
