"""The look of all figures: colours, type, small pictures, and escaped text."""

import base64
import html
import io
import itertools
import textwrap
from collections.abc import Collection, Iterable, Sequence
from math import ceil
from typing import Any

import plotly.graph_objects as go
from PIL import Image, ImageOps
from plotly.subplots import make_subplots

from dclip_kit.metrics import Interval
from dclip_kit.models.regions import BOX_COLORS

INK = "#222222"
RING = "#00A35C"  # around right answers
SMALL = 12
PERCENT = {"tickformat": ".0%", "hoverformat": ".1%"}  # for an axis of shares
DASHED = {"color": INK, "width": 1.5, "dash": "dash"}
PALE_BLUES = [[0, "#FFFFFF"], [1, "#8FC1E8"]]  # light enough for dark numbers

PALETTE = ("#6E6E6E", *BOX_COLORS)
ARM_COLORS = {
    "clip": PALETTE[0],
    "contrastive_rehearsal": PALETTE[1],
    "region_taught": PALETTE[2],
    "dclip": PALETTE[3],
}

# Of further arms.
_OTHER_COLORS = ("#8800CC", "#009E73", "#CC79A7", "#220088", "#888800", "#C2185B", "#0097A7")

_AXIS = {
    "automargin": True,
    "fixedrange": True,
    "zeroline": False,
    "gridcolor": "#E6E6E6",
    "ticks": "",
    "tickfont": {"size": SMALL},
    "title": {"font": {"size": SMALL}, "standoff": 6},
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, 'Segoe UI', Roboto, Arial, sans-serif", "color": INK},
        "colorway": PALETTE,
        "xaxis": _AXIS,
        "yaxis": _AXIS | {"ticklabelstandoff": 5},
        "legend": {"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top"},
        "title": {"font": {"size": SMALL}},
        "hovermode": "closest",
        "dragmode": False,
    },
    data={
        "bar": [{"insidetextanchor": "start", "textangle": 0, "cliponaxis": False}],
        "scatter": [{"cliponaxis": False, "textfont": {"size": SMALL}}],
    },
)


def new_figure(
    height: int, titles: Sequence[str] = ("",), legend: bool = False, **grid: Any
) -> go.Figure:
    """Makes an empty figure with a grid of axes, as wide as its container.

    Args:
        height: of the grid in pixels, without the titles and the legend above it.
        titles: of the cells, escaped.
        legend: whether to show one, above everything else.
        **grid: further settings of plotly's `make_subplots`, such as rows and cols.
    """
    figure = make_subplots(subplot_titles=titles, **grid)
    lines = max(title.count("<br>") + 1 if title else 0 for title in titles)
    top = 8 + 17 * lines + 26 * legend
    figure.update_annotations(font_size=SMALL)
    return figure.update_layout(
        template=TEMPLATE,
        height=height + top,
        margin={"l": 8, "r": 12, "t": top, "b": 8},
        showlegend=legend,
    )


def legend_entry(figure: go.Figure, name: str) -> dict[str, object]:
    """A trace's name settings; the legend lists a name once even if several cells have it."""
    text = escape_text(name)
    first = all(trace.name != text for trace in figure.data)
    return {"name": text, "legendgroup": text, "showlegend": first}


def arm_colors(names: Iterable[str]) -> dict[str, str]:
    """A colour for each arm; the kit's own arms have fixed ones."""
    spare = itertools.cycle(_OTHER_COLORS)
    return {name: ARM_COLORS.get(name) or next(spare) for name in dict.fromkeys(names)}


def make_whiskers(intervals: Sequence[Interval], scale: int = 1) -> dict[str, Any]:
    """Plotly's error bars."""
    return {
        "array": [scale * (interval.high - interval.estimate) for interval in intervals],
        "arrayminus": [scale * (interval.estimate - interval.low) for interval in intervals],
        "thickness": 1.5,
        "width": 3,
    }


def escape_text(text: str) -> str:
    """Escapes text so that plotly shows it unchanged.

    Plotly would read tags as markup and $…$ as formulas. Quotes stay: plotly decodes no entity for
    them, and they have no meaning there.
    """
    return html.escape(" ".join(text.split()), quote=False).replace("$", "&#36;")


def wrap_text(text: str, width: int, max_lines: int = 3) -> str:
    """`escape_text` in lines of at most `width` characters, cut with … after `max_lines`."""
    words = " ".join(text.split())
    lines = textwrap.wrap(words, width, max_lines=max_lines, placeholder="…")
    return "<br>".join(escape_text(line) for line in lines)


def tile_pictures(
    pictures: Sequence[Image.Image],
    columns: int,
    side: int,
    ringed: Collection[int] = (),
    smooth: bool = True,
) -> Image.Image:
    """Puts pictures on one white sheet, row by row, each in the middle of its square cell.

    Args:
        pictures: of any shapes.
        columns: cells in a row.
        side: of a cell, in pixels.
        ringed: the numbers of the pictures that get a green frame.
        smooth: whether to blend pixels; if not, each is visible.
    """
    sheet = Image.new("RGB", (columns * side, ceil(len(pictures) / columns) * side), "white")
    method = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    frame = max(2, side // 32)
    for number, picture in enumerate(pictures):
        room = side - 3 * frame
        cell = fit_picture(picture.convert("RGB"), room, method)
        cell = ImageOps.expand(cell, frame, RING if number in ringed else "white")
        row, column = divmod(number, columns)
        offset = (side - cell.width) // 2, (side - cell.height) // 2
        sheet.paste(cell, (column * side + offset[0], row * side + offset[1]))
    return sheet


def fit_picture(
    picture: Image.Image, side: int, method: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """Resized into a square, whose side it reaches; even a sliver is a pixel wide."""
    share = side / max(picture.size)
    width, height = (max(1, round(share * length)) for length in picture.size)
    return picture.resize((width, height), method)


def encode_jpeg(picture: Image.Image) -> bytes:
    """The picture as a small JPEG."""
    encoded = io.BytesIO()
    picture.convert("RGB").save(encoded, format="JPEG", quality=60, progressive=True)
    return encoded.getvalue()


def add_picture(
    figure: go.Figure, picture: Image.Image, caption: str = "", row: int = 1, col: int = 1
) -> None:
    """Shows a picture in a cell of a figure, with an escaped caption below it."""
    source = f"data:image/jpeg;base64,{base64.b64encode(encode_jpeg(picture)).decode('ascii')}"
    width, height = picture.size
    cell = {"row": row, "col": col}
    figure.add_image(source=source, zsmooth="fast", hoverinfo="skip", **cell)
    # Without fixed ranges, a text in the picture would add space around it.
    across = {"range": [-0.5, width - 0.5], "constrain": "domain", "title_text": caption}
    down = {"range": [height - 0.5, -0.5], "constrain": "domain", "constraintoward": "top"}
    figure.update_xaxes(showticklabels=False, showgrid=False, **across, **cell)
    figure.update_yaxes(visible=False, **down, **cell)


def add_tag(
    figure: go.Figure, text: str, x: int, y: int, color: str, row: int = 1, col: int = 1
) -> None:
    """Writes a short escaped text in white on a colour; x and y are its upper left corner."""
    figure.add_annotation(
        {"text": text, "x": x, "y": y, "xanchor": "left", "yanchor": "top", "showarrow": False}
        | {"bgcolor": color, "borderpad": 1, "font": {"color": "white", "size": 11}},
        row=row,
        col=col,
    )
