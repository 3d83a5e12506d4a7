"""What a detector finds, how well, and what CLIP makes of it."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Bool
from torch import Tensor

from dclip_kit.metrics import paired_bootstrap
from dclip_kit.plots.panels import add_axes, references
from dclip_kit.plots.style import (
    GRID,
    PALETTE,
    SMALL,
    Number,
    add_text,
    axis_title,
    blank_figure,
    escape_text,
    label_room,
    spread,
)
from dclip_kit.pocket.objects import NamedObjects, SceneObjects
from dclip_kit.pocket.scenes import SIZES
from dclip_kit.regions import Regions

_AREAS = (0.0, 0.02, 0.04, 0.08, 0.16, 0.32, 1.0)  # ends of the bars, each twice the one before
_CONFIDENCES = tuple(number / 10 for number in range(11))
_PLOT = 190  # height of the drawing itself, in pixels


def plot_region_statistics(regions: Sequence[Regions]) -> go.Figure:
    """How many regions pictures have, how large they are, and how sure the detector is of them.

    Pictures without a detection are counted as having none; the whole picture that stands in for
    its regions is left out of the other two panels.

    Args:
        regions: of each picture.

    Raises:
        ValueError: there is no picture.
    """
    if not regions:
        raise ValueError("Expected the regions of at least one picture, got none.")
    counts = [0 if found.is_whole_image else len(found) for found in regions]
    detected = [found for found in regions if not found.is_whole_image]
    nothing = torch.zeros(0)
    area = torch.cat([nothing, *(found.area for found in detected)])
    confidence = torch.cat([nothing, *(found.confidence for found in detected)])
    most = max(counts)
    panels = [  # title, of what shares are, ends of the bars, how they are written, shares
        (
            "regions found",
            "pictures",
            [number - 0.5 for number in range(most + 2)],
            {float(number): str(number) for number in range(most + 1)},
            [counts.count(number) / len(counts) for number in range(most + 1)],
        ),
        (
            "area, %",
            "regions",
            list(range(len(_AREAS))),  # each twice as large as the one before, drawn alike
            {float(place): f"{100 * end:g}" for place, end in enumerate(_AREAS)},
            _shares(area, _AREAS),
        ),
        (
            "confidence",
            "regions",
            _CONFIDENCES,
            {end: f"{end:g}" for end in (0.0, 0.5, 1.0)},
            _shares(confidence, _CONFIDENCES),
        ),
    ]
    figure = blank_figure(_PLOT + 30 + 46, left=40, top=30, bottom=46)
    for number, (title, whole, ends, ticks, shares) in enumerate(panels):
        start = number * 0.35
        axes = add_axes(
            figure,
            (start, start + 0.3),
            (0, 1),
            {"tickvals": list(ticks), "ticktext": list(ticks.values()), "showgrid": False}
            | {"tickfont": {"size": 11}, "title": axis_title(title), "tickangle": 0}
            | {"range": [ends[0], ends[-1]]},
            {"gridcolor": GRID, "tickformat": ".0%", "tickfont": {"size": SMALL}, "nticks": 5}
            | {"range": [0, 1.12 * max(*shares, 0.01)]},
        )
        place = {"xref": f"{axes['xaxis']} domain", "yref": "paper"}
        corner = {"xanchor": "left", "yanchor": "bottom", "yshift": 4}
        add_text(figure, f"share of {whole}", 0, 1, **corner, **place)
        bars = list(pairwise(ends))
        figure.add_bar(
            x=[(low + high) / 2 for low, high in bars],
            y=shares,
            width=[0.9 * (high - low) for low, high in bars],
            marker={"color": PALETTE[2]},
            hoverinfo="y",
            **axes,
        )
    return figure


def _shares(values: Tensor, ends: Sequence[float]) -> list[float]:
    """Shares of the values from one end up to, not including, the next; the last holds its own."""
    inner = torch.tensor(ends[1:-1])
    bins = torch.bucketize(values, inner, right=True)
    return (torch.bincount(bins, minlength=len(ends) - 1) / max(len(values), 1)).tolist()


def plot_average_precision(validation: Mapping[str, Any]) -> go.Figure:
    """Average precision of each category at an overlap of one half, best first, and their mean.

    Args:
        validation: as `pocket.validate_detector` saves it: "map50" and "map50_by_category".

    Raises:
        ValueError: an entry is missing, or there is no category.
    """
    by_category = validation.get("map50_by_category")
    if not by_category or "map50" not in validation:
        raise ValueError(
            f"Expected map50 and map50_by_category, got {sorted(validation)}; "
            "pocket.validate_detector makes both."
        )
    ordered = sorted(by_category.items(), key=lambda entry: -entry[1])
    names = ["mean of all", *(name for name, _ in ordered)]
    values = [validation["map50"], *(value for _, value in ordered)]
    figure = blank_figure(19 * len(names) + 50, left=label_room(names), bottom=42)
    axes = add_axes(
        figure,
        (0, 1),
        (0, 1),
        {"range": [0, 1.1], "tickformat": ".0%", "gridcolor": GRID, "tickfont": {"size": SMALL}}
        | {"tickvals": [0, 0.25, 0.5, 0.75, 1]}
        | {"title": axis_title("average precision at half overlap (AP50)")},
        {"range": [len(names) - 0.4, -0.6], "showgrid": False, "ticks": ""}
        | {"tickvals": list(range(len(names))), "tickfont": {"size": SMALL}}
        | {"ticktext": [f"<b>{names[0]}</b>", *map(escape_text, names[1:])]},
    )
    figure.add_bar(
        x=values,
        y=list(range(len(names))),
        orientation="h",
        width=0.8,
        marker={"color": [PALETTE[1], *[PALETTE[2]] * len(ordered)]},
        text=[f"{100 * value:.1f}" for value in values],
        textposition="outside",
        textfont={"size": SMALL},
        cliponaxis=False,
        hoverinfo="skip",
        **axes,
    )
    return figure


def plot_naming(named: NamedObjects, objects: SceneObjects, resamples: int = 1000) -> go.Figure:
    """The share of things that CLIP names, by their size: from the picture, and from a crop.

    A thing that the detector missed has no crop and counts as not named from one. Whiskers are
    95 % intervals of a bootstrap over pictures.

    Args:
        named: from `name_objects`.
        objects: that it was asked for.
        resamples: of the bootstrap.

    Raises:
        ValueError: the numbers of things differ.
    """
    if len(named.found) != len(objects):
        raise ValueError(
            f"Expected both of the same things, got {len(named.found)} and {len(objects)}; name "
            "the things that are given here."
        )
    lines = {
        "found by the detector": (named.found, PALETTE[0], "dot"),
        "named from its crop": (named.by_crop, PALETTE[2], "solid"),
        "named from the picture": (named.by_picture, PALETTE[1], "solid"),
    }
    sizes = [size for size in SIZES if size in objects.size]
    ticks = [
        f"{size}<br>{SIZES[size][0]}–{SIZES[size][1]} px<br>{objects.size.count(size):,} things"
        for size in sizes
    ]
    figure = blank_figure(340, left=48, right=label_room(lines), top=10, bottom=62)
    last = len(sizes) - 1
    axes = add_axes(
        figure,
        (0, 1),
        (0, 1),
        {"tickvals": list(range(len(sizes))), "ticktext": ticks, "range": [-0.3, last + 0.15]}
        | {"showgrid": False, "tickfont": {"size": SMALL}},
        {"range": [0, 1.03], "tickformat": ".0%", "gridcolor": GRID, "tickfont": {"size": SMALL}},
    )
    ends: list[Number] = []
    for name, (hits, color, dash) in lines.items():
        shares = [_share(hits, objects, size, resamples) for size in sizes]
        ends.append(shares[-1][0])
        figure.add_scatter(
            x=list(range(len(sizes))),
            y=[share for share, _, _ in shares],
            mode="lines+markers",
            line={"color": color, "width": 2, "dash": dash},
            marker={"color": color, "size": 8},
            error_y={
                "array": [high - share for share, _, high in shares],
                "arrayminus": [share - low for share, low, _ in shares],
                "color": color,
                "thickness": 1.5,
                "width": 4,
            },
            hoverinfo="text",
            hovertext=[
                f"{size}, {name}: {share:.1%}<br>95 %: {low:.1%} to {high:.1%}"
                for size, (share, low, high) in zip(sizes, shares, strict=True)
            ],
            **axes,
        )
    for (name, (_, color, _)), height in zip(lines.items(), spread(ends, 0.06), strict=True):
        add_text(
            figure,
            name,
            last,
            height,
            xanchor="left",
            xshift=10,
            font={"color": color, "size": SMALL},
            **references(axes),
        )
    return figure


def _share(
    hits: Bool[Tensor, "object"], objects: SceneObjects, size: str, resamples: int
) -> tuple[float, float, float]:
    """The share of hits among things of a size, and its interval's ends."""
    chosen = objects.of_size(size)
    values = hits[chosen].float()
    found = paired_bootstrap(
        torch.zeros_like(values), values, objects.image[chosen], resamples=resamples
    )
    return found.estimate, found.low, found.high
