"""Pictures in figures: sheets in which each has its place, stored small."""

import base64
import io

import torch
from PIL import Image
from test_style import texts

from dclip_kit.plots.panels import add_picture, add_tag, encode_jpeg, tile_pictures
from dclip_kit.plots.style import new_figure


def decode(source: str) -> Image.Image:
    head, _, content = source.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")


def look_alike(one: Image.Image, other: Image.Image) -> bool:
    """Whether two pictures of one size differ by no more than JPEG makes them."""
    assert one.size == other.size
    first, second = (
        torch.frombuffer(bytearray(each.convert("RGB").tobytes()), dtype=torch.uint8).float()
        for each in (one, other)
    )
    return bool((first - second).abs().mean() < 8)


def test_cells_stand_row_by_row_in_the_middle_of_their_squares() -> None:
    wide, high = Image.new("RGB", (40, 20), "red"), Image.new("RGB", (20, 40), "blue")
    sheet = tile_pictures([wide, high, wide], 2, 96)
    assert sheet.size == (192, 192)
    assert sheet.getpixel((48, 48)) == (255, 0, 0) == sheet.getpixel((48, 144))
    assert sheet.getpixel((144, 48)) == (0, 0, 255)
    white = (255, 255, 255)
    assert sheet.getpixel((48, 10)) == sheet.getpixel((106, 48)) == white  # above, left of them
    assert sheet.getpixel((144, 144)) == white  # no fourth
    red = [x for x in range(96) if sheet.getpixel((x, 48)) == (255, 0, 0)]
    assert abs(red[0] + red[-1] - 95) <= 1 and len(red) > 80


def test_ringed_cells_alone_have_a_frame() -> None:
    picture = Image.new("RGB", (10, 10), "gray")
    sheet = tile_pictures([picture] * 2, 2, 96, ringed=[1])
    green = [x for x in range(192) if sheet.getpixel((x, 48)) == (0, 163, 92)]
    assert green and min(green) > 96


def test_pixels_can_be_kept_apart() -> None:
    picture = Image.new("L", (2, 1))
    picture.putpixel((1, 0), 255)
    values = {
        smooth: {value for _, value in tile_pictures([picture], 1, 96, (), smooth).getcolors()}
        for smooth in (True, False)
    }
    assert values[False] == {(0, 0, 0), (255, 255, 255)} and len(values[True]) > 2


def test_a_stored_picture_looks_the_same_and_noise_is_still_small(pictures) -> None:
    smooth = pictures[0].resize((200, 150))
    assert look_alike(Image.open(io.BytesIO(encode_jpeg(smooth))), smooth)
    noise = torch.randint(0, 256, (300, 300, 3), dtype=torch.uint8)
    assert len(encode_jpeg(Image.fromarray(noise.numpy()))) < 70_000


def test_a_picture_fills_its_cell_and_keeps_its_proportions(pictures) -> None:
    figure = new_figure(200, ["", ""], cols=2)
    add_picture(figure, pictures[0], "a caption", col=2)
    add_tag(figure, "a tag", 3, 4, "black", col=2)
    (image,) = figure.data
    assert decode(image.source).size == (40, 30) and image.xaxis == "x2"
    across, down = figure.layout.xaxis2, figure.layout.yaxis2
    assert (across.range, down.range) == ((-0.5, 39.5), (29.5, -0.5))
    assert across.constrain == down.constrain == "domain"
    assert across.title.text == "a caption" and "a tag" in texts(figure)
    (tag,) = figure.layout.annotations
    assert (tag.x, tag.y, tag.xref, tag.yref) == (3, 4, "x2", "y2")
