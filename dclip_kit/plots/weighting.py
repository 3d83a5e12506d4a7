"""DCLIP's region weights, taken apart."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from jaxtyping import Float
from PIL import Image
from plotly.colors import sample_colorscale
from torch import Tensor

from dclip_kit.models.regions import Regions
from dclip_kit.plots.panels import (
    Span,
    add_axes,
    add_boxes,
    add_picture,
    references,
    require_size,
)
from dclip_kit.plots.style import INK, PALETTE, SMALL, add_text, blank_figure, label_room, wrap_text

_SCALE = [[0, "#7FA8C9"], [1, "#00335C"]]  # light to dark blue


def plot_region_weights(
    picture: Image.Image,
    regions: Regions,
    area: Float[Tensor, "_region"],
    confidence: Float[Tensor, "_region"],
    similarity: Float[Tensor, "_region"],
    weight: Float[Tensor, "_region"],
    caption: str,
    formula: str = "area × confidence × similarity",
) -> go.Figure:
    """What each region counts for a caption: area × confidence × similarity, made to sum to 1.

    Regions are numbered by falling weight; the thicker and darker a box, the more it weighs.

    Args:
        picture: with the regions.
        regions: of this picture.
        area: share of the picture (`Regions.area`).
        confidence: the detector's.
        similarity: from `region_similarity`.
        weight: from `region_weights`.
        caption: shown as plain text.
        formula: of the weights, shown as plain text below them.

    Raises:
        ValueError: a quantity has not one finite number a region, or the picture another size.
    """
    require_size(picture, regions)
    quantities = {
        "area": area,
        "confidence": confidence,
        "similarity": similarity,
        "weight": weight,
    }
    _require_numbers(regions, quantities)
    order = weight.argsort(descending=True, stable=True).tolist()
    place = {region: rank for rank, region in enumerate(order)}
    shares = (weight / weight.max().clamp(min=1e-12)).clamp(0, 1).tolist()
    row = 34 if len(regions) < 8 else 26  # pixels
    height = max(310, row * len(regions) + 84)
    figure = blank_figure(height)
    below = 66 / (height - 16)
    axes = add_picture(figure, picture, (0, 0.3), (below, 1), wrap_text(f"“{caption}”", 24))
    numbers = [str(place[index] + 1) for index in range(len(regions))]
    colors = sample_colorscale(_SCALE, shares)
    add_boxes(figure, regions, axes, numbers, colors, [2 + 3 * share for share in shares])

    top = 1 - 20 / (height - 16)  # below the headings
    bottom = top - row * len(regions) / (height - 16)
    drawn = [(name, [values[i].item() for i in order]) for name, values in quantities.items()]
    ordered = [colors[i] for i in order]
    _add_columns(figure, drawn, _names(regions, order), (0.48, 1), (bottom, top), ordered)
    below_bars = f"weight = {wrap_text(formula, 40)},<br>scaled to sum to 1"
    corner = {"xref": "paper", "yref": "paper", "xanchor": "right", "align": "right"}
    add_text(figure, below_bars, 1, bottom, yanchor="top", yshift=-8, **corner)
    return figure


def plot_weightings(
    regions: Regions, weightings: Mapping[str, Float[Tensor, "_region"]]
) -> go.Figure:
    """What each region counts under several weightings side by side, a column of bars for each.

    Regions stand in one order, by falling weight in the first weighting, and keep its numbers.

    Args:
        regions: of one picture.
        weightings: by name, each with a weight for every region.

    Raises:
        ValueError: there is no weighting, or one has not one finite number a region.
    """
    if not weightings:
        raise ValueError("Expected at least one weighting, got none; see reweight_regions.")
    _require_numbers(regions, weightings)
    first = next(iter(weightings.values()))
    order = first.argsort(descending=True, stable=True).tolist()
    row = 34 if len(regions) < 8 else 26  # pixels
    headings = [wrap_text(name, max(48 // len(weightings), 10), 3) for name in weightings]
    above = 8 + 15 * max(heading.count("<br>") + 1 for heading in headings)
    names = _names(regions, order)
    figure = blank_figure(
        row * len(regions) + above + 8, left=label_room(names), right=0, top=above
    )
    columns = [
        (heading, [values[index].item() for index in order])
        for heading, values in zip(headings, weightings.values(), strict=True)
    ]
    scale = max(max(values) for _, values in columns)
    colors = [PALETTE[2]] * len(order)
    _add_columns(figure, columns, names, (0, 1), (0, 1), colors, scale)
    return figure


def _require_numbers(regions: Regions, quantities: Mapping[str, Tensor]) -> None:
    for name, values in quantities.items():
        if len(values) != len(regions) or not values.isfinite().all():
            raise ValueError(
                f"Expected a finite number for each of {len(regions)} regions, got "
                f"{len(values)} for {name}; leave padding out."
            )


def _names(regions: Regions, order: Sequence[int]) -> list[str]:
    """Numbered labels, in this order."""
    return [f"{rank + 1} {wrap_text(regions.label[i], 10, 1)}" for rank, i in enumerate(order)]


def _add_columns(
    figure: go.Figure,
    columns: Sequence[tuple[str, Sequence[float]]],
    names: Sequence[str],
    x: Span,
    y: Span,
    colors: Sequence[str],
    scale: float | None = None,
) -> None:
    """Columns of horizontal bars, one row a region, with escaped headings; weights in `colors`.

    Each column has its own scale, unless one is given: then all are weights.
    """
    width = (x[1] - x[0]) / len(columns)
    for column, (heading, bars) in enumerate(columns):
        final = scale is None and column == len(columns) - 1
        shares = scale is not None or column in (0, 3)
        ticks = {"tickvals": list(range(len(names))), "ticktext": names, "ticks": ""} | {
            "tickfont": {"size": SMALL},
            "ticklabelstandoff": 3,
        }
        start = x[0] + width * column
        axes = add_axes(
            figure,
            (start, start + 0.94 * width),
            y,
            {
                "visible": False,
                "range": [0, 2.3 * max(scale or max(bars), 1e-9)],
            },  # the rest is for text
            {"range": [len(bars) - 0.5, -0.5], "showgrid": False, "linecolor": INK}
            | (ticks if column == 0 else {"showticklabels": False}),
        )
        figure.add_bar(
            x=bars,
            y=list(range(len(bars))),
            orientation="h",
            width=0.7,
            marker={"color": list(colors) if final or scale is not None else PALETTE[0]},
            text=[f"{value:.0%}" if shares else f"{value:.2f}" for value in bars],
            textposition="outside",
            textfont={"size": SMALL},
            cliponaxis=False,
            hoverinfo="skip",
            **axes,
        )
        where = {"xanchor": "left", "yanchor": "bottom", "align": "left", **references(axes)}
        shown = f"<b>{heading}</b>" if final else heading
        add_text(figure, shown, 0, -0.5, xshift=-4, font={"size": 11}, **where)
