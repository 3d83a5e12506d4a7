"""One look for all figures, small pictures, and text of others that is shown as it stands."""

import base64
import html
import io
import re

import pytest
import torch
from PIL import Image

from dclip_kit.plots.style import (
    ARM_COLORS,
    PALETTE,
    TEMPLATE,
    add_picture,
    add_tag,
    arm_colors,
    encode_jpeg,
    escape_text,
    legend_entry,
    new_figure,
    tile_pictures,
    wrap_text,
)

HOSTILE = '<a href="javascript:alert(1)">x</a><b>y</b>'
OUR_TAGS = re.compile(r"</?b>|<br>")


def texts(figure) -> list[str]:
    """All strings of a figure that plotly would read as markup."""
    found = []

    def visit(value) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                if key not in ("source", "font", "template", "offsetgroup"):
                    visit(item)
        elif isinstance(value, list | tuple):
            for item in value:
                visit(item)
        elif isinstance(value, str):
            found.append(value)

    visit(figure.to_plotly_json())
    return found


def shown(figure) -> list[str]:
    """All strings as a reader sees them, without line breaks."""
    return [html.unescape(OUR_TAGS.sub("", text)) for text in texts(figure)]


def assert_harmless(figure) -> None:
    """The hostile text is there, and no markup but our own is."""
    every = texts(figure)
    assert any("javascript" in html.unescape(text.replace("<br>", "")) for text in every)
    assert not [text for text in every if re.search("[<>]", OUR_TAGS.sub("", text))]
    assert not [text for text in every if "<b>y" in text]


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a <b>", "a &lt;b&gt;"),
        ("&lt;b&gt; & c", "&amp;lt;b&amp;gt; &amp; c"),
        ("costs $5$", "costs &#36;5&#36;"),  # would be a formula
        ("two\n lines\t\r", "two lines"),
        ('"it\'s"', '"it\'s"'),  # plotly knows no entity for quotes
    ],
)
def test_text_is_escaped_for_plotly(text, expected) -> None:
    assert escape_text(text) == expected


def test_wrapping_never_cuts_an_entity() -> None:
    for width in range(3, 30):
        wrapped = wrap_text("<&>$" * 40, width, 3)
        lines = [html.unescape(line) for line in wrapped.split("<br>")]
        assert not set(wrapped.replace("<br>", "")) & set("<>$")
        assert len(lines) == 3 and all(len(line) <= width for line in lines)
        assert lines[-1].endswith("…")


def test_arms_keep_their_colours_beside_any_other() -> None:
    names = ["mine", "dclip", "clip", "yours", "region_taught", "contrastive_rehearsal"]
    colors = arm_colors(names)
    assert list(colors) == names and len(set(colors.values())) == 6
    assert ARM_COLORS.items() <= colors.items()
    assert arm_colors(["dclip"]) == {"dclip": ARM_COLORS["dclip"]}


@pytest.mark.parametrize("color", PALETTE)
def test_colours_are_dark_enough_for_text(color) -> None:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    assert 1.05 / (luminance + 0.05) >= 4.5


def test_a_figure_has_the_template_and_room_above_for_what_stands_there() -> None:
    plain = new_figure(200)
    crowned = new_figure(200, ["a", "b<br>c"], legend=True, cols=2)
    assert plain.layout.template == TEMPLATE and not plain.layout.showlegend
    assert crowned.layout.showlegend and len(crowned.layout.annotations) == 2
    for figure in (plain, crowned):
        assert figure.layout.height - figure.layout.margin.t == 200
    assert crowned.layout.margin.t - plain.layout.margin.t > 50  # two lines and a legend
    assert len(plain.to_json()) < 2000


def test_a_name_stands_in_the_legend_once() -> None:
    figure = new_figure(200, ["", ""], cols=2)
    for column in (1, 2):
        figure.add_bar(x=[1], row=1, col=column, **legend_entry(figure, "<b>"))
    assert [bar.showlegend for bar in figure.data] == [True, False]
    assert [bar.name for bar in figure.data] == ["&lt;b&gt;"] * 2


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


def test_a_sliver_is_a_pixel_wide() -> None:
    sheet = tile_pictures([Image.new("RGB", (2000, 1))], 1, 96)
    assert sum(sheet.getpixel((48, y)) == (0, 0, 0) for y in range(96)) == 1


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
