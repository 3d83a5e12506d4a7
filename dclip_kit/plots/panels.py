"""Pictures inside figures: small data URIs on axes of their own, and boxes with labels on them."""

import base64
import html
import io
from collections.abc import Sequence

import plotly.graph_objects as go
from PIL import Image

from dclip_kit.models.regions import Regions
from dclip_kit.plots.style import PALETTE, Number, add_text, escape_text

MAX_SIDE = 256  # pixels a side of a stored picture
TAG_SIZE = 11
_CHARACTER, _LINE = 6.5, 16  # pixels that a label's letter and line take, about
_SHOWN = 130  # pixels that a picture is shown at, about, when its labels are placed

Span = tuple[Number, Number]
Box = tuple[Number, Number, Number, Number]


def data_uri(picture: Image.Image, side: int = MAX_SIDE, quality: int = 80) -> str:
    """The picture as a WebP data URI, at most `side` pixels a side.

    Smaller ones are magnified by a whole factor without smoothing, so that each of their pixels
    stays a square that one can see.
    """
    picture = picture.convert("RGB")
    factor = side // max(picture.size)
    if factor > 1:
        size = picture.width * factor, picture.height * factor
        picture = picture.resize(size, Image.Resampling.NEAREST)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    picture.save(encoded, format="WEBP", quality=quality)
    return f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode('ascii')}"


def add_axes(figure: go.Figure, x: Span, y: Span, x_axis: dict, y_axis: dict) -> dict[str, str]:
    """Adds a pair of axes in a part of the figure (shares from the lower left corner).

    Returns:
        What a trace takes to be drawn on them: {"xaxis": "x2", "yaxis": "y2"}.
    """
    number = _next_number(figure)
    fixed = {"fixedrange": True, "zeroline": False}
    figure.update_layout(
        {
            f"xaxis{number}": fixed | {"domain": list(x), "anchor": f"y{number}"} | x_axis,
            f"yaxis{number}": fixed | {"domain": list(y), "anchor": f"x{number}"} | y_axis,
        }
    )
    return {"xaxis": f"x{number}", "yaxis": f"y{number}"}


def _next_number(figure: go.Figure) -> str:
    """Plotly's first axes have no number, its second ones 2."""
    used = sum(key.startswith("xaxis") for key in figure.layout.to_plotly_json())
    return str(used + 1) if used else ""


def references(axes: dict[str, str]) -> dict[str, str]:
    """The same axes, as annotations, shapes and images name them."""
    return {"xref": axes["xaxis"], "yref": axes["yaxis"]}


def add_canvas(
    figure: go.Figure, x: Span, y: Span, size: Span, toward: str = "center"
) -> dict[str, str]:
    """Axes without lines, of square units, `size` wide and high from the upper left corner.

    They keep their proportions in whatever room the figure has.
    """
    partner = f"x{_next_number(figure)}"
    hidden = {"visible": False, "constrain": "domain"}
    axes = add_axes(
        figure,
        x,
        y,
        hidden | {"range": [0, size[0]], "constraintoward": toward},
        hidden | {"range": [size[1], 0], "scaleanchor": partner, "constraintoward": "top"},
    )
    figure.add_scatter(x=[None], y=[None], hoverinfo="skip", **axes)  # else it is not drawn at all
    return axes


def add_image(
    figure: go.Figure, picture: Image.Image, axes: dict[str, str], box: Box, side: int = MAX_SIDE
) -> None:
    """Stretches a picture over a part of a canvas: left, top, right, bottom in its units."""
    figure.add_layout_image(
        source=data_uri(picture, side),
        x=box[0],
        y=box[1],
        sizex=box[2] - box[0],
        sizey=box[3] - box[1],
        sizing="stretch",
        layer="below",
        **references(axes),
    )


def add_picture(
    figure: go.Figure, picture: Image.Image, x: Span, y: Span, caption: str = ""
) -> dict[str, str]:
    """A picture on a canvas of its own, in its pixels, with an escaped caption below it."""
    width, height = picture.size
    axes = add_canvas(figure, x, y, (width, height))
    add_image(figure, picture, axes, (0, 0, width, height))
    if caption:
        add_text(figure, caption, width / 2, height, yanchor="top", yshift=-2, **references(axes))
    return axes


def add_boxes(
    figure: go.Figure,
    regions: Regions,
    axes: dict[str, str],
    labels: Sequence[str],
    colors: Sequence[str],
    widths: Sequence[float] | None = None,
) -> None:
    """Outlines with a white rim, escaped labels where they hide each other least, area on hover."""
    widths = widths or [2.5] * len(regions)
    boxes = regions.xyxy.tolist()
    corners = [_outline(box) for box in boxes]
    figure.add_scatter(  # the rim, one trace for all
        x=[x for xs, _ in corners for x in [*xs, None]],
        y=[y for _, ys in corners for y in [*ys, None]],
        mode="lines",
        line={"color": "rgba(255,255,255,0.75)", "width": max(widths) + 2},
        hoverinfo="skip",
        **axes,
    )
    facts = zip(regions.label, regions.confidence.tolist(), regions.area.tolist(), strict=True)
    for index, (label, confidence, area) in enumerate(facts):
        xs, ys = corners[index]
        figure.add_scatter(
            x=xs,
            y=ys,
            mode="lines",
            line={"color": colors[index], "width": widths[index]},
            fill="toself",
            fillcolor="rgba(0,0,0,0)",
            hoveron="fills",
            hoverinfo="text",
            text=f"{escape_text(label)}<br>confidence {confidence:.2f}<br>area {area:.1%}",
            **axes,
        )
    for index, (x, y, anchor) in enumerate(_place_labels(boxes, labels, regions.image_size)):
        add_tag(figure, labels[index], axes, x, y, colors[index], anchor)


def add_tag(
    figure: go.Figure,
    text: str,
    axes: dict[str, str],
    x: Number,
    y: Number,
    color: str,
    anchor: str = "left",
) -> None:
    """A short escaped text in white on a colour, below y and at the named side of x."""
    look = {"bgcolor": color, "borderpad": 1, "font": {"color": "white", "size": TAG_SIZE}}
    add_text(figure, text, x, y, xanchor=anchor, yanchor="top", **look, **references(axes))


def require_size(picture: Image.Image, regions: Regions) -> None:
    """Raises ValueError unless the regions are of a picture of this size."""
    if picture.size != regions.image_size:
        raise ValueError(
            f"Expected a picture of the regions' {regions.image_size} pixels, got {picture.size}; "
            "detect the regions in this very picture."
        )


def label_colors(labels: Sequence[str]) -> list[str]:
    """A colour for each label, the same for the same label."""
    known = sorted(set(labels))
    return [PALETTE[1 + known.index(label) % (len(PALETTE) - 1)] for label in labels]


def _outline(box: Sequence[float]) -> tuple[list[float], list[float]]:
    left, top, right, bottom = box
    return [left, right, right, left, left], [top, top, bottom, bottom, top]


def _place_labels(
    boxes: Sequence[Sequence[float]], labels: Sequence[str], image_size: tuple[int, int]
) -> list[tuple[float, float, str]]:
    """For each label x, upper y and the side it is anchored at, where it hides least."""
    unit = max(image_size) / _SHOWN  # picture's pixels a pixel shown
    taken: list[tuple[float, float, float, float]] = []
    places = []
    for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
        wide, high = unit * (_CHARACTER * len(html.unescape(label)) + 4), unit * _LINE
        best = None
        for y in (top - high, top, bottom - high, bottom):
            for anchor, x in (("left", left), ("right", right)):
                start = x if anchor == "left" else x - wide
                rectangle = (start, y, start + wide, y + high)
                outside = wide * high - _overlap(rectangle, (0, 0, *image_size))
                hidden = sum(_overlap(rectangle, other) for other in taken)
                covered = sum(_overlap(rectangle, box) for box in boxes)
                cost = 4 * outside + 2 * hidden + covered
                if best is None or cost < best[0]:
                    best = (cost, rectangle, (x, y, anchor))
        assert best is not None
        taken.append(best[1])
        places.append(best[2])
    return places


def _overlap(a: Sequence[Number], b: Sequence[Number]) -> float:
    across = min(a[2], b[2]) - max(a[0], b[0])
    down = min(a[3], b[3]) - max(a[1], b[1])
    return max(across, 0.0) * max(down, 0.0)
