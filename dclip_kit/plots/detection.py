"""What a detector finds, and how well."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor

from dclip_kit.models.regions import Regions
from dclip_kit.plots.panels import add_axes
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
)

_AREAS = (0.0, 0.02, 0.04, 0.08, 0.16, 0.32, 1.0)  # ends of the bars, each twice the one before
_CONFIDENCES = tuple(number / 10 for number in range(11))
_PLOT = 190  # height of the drawing itself, in pixels


@dataclass(frozen=True)
class _Histogram:
    """Its title, of what its bars are shares, the bars' ends, what is written where, the shares."""

    title: str
    whole: str
    ends: tuple[Number, ...]
    ticks: dict[Number, str]
    shares: list[float]


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
    panels = [
        _Histogram(
            "regions found",
            "pictures",
            tuple(number - 0.5 for number in range(most + 2)),
            {number: str(number) for number in range(most + 1)},
            [counts.count(number) / len(counts) for number in range(most + 1)],
        ),
        _Histogram(
            "area, %",
            "regions",
            tuple(range(len(_AREAS))),  # each twice as large as the one before, drawn alike
            {place: f"{100 * end:g}" for place, end in enumerate(_AREAS)},
            _shares(area, _AREAS),
        ),
        _Histogram(
            "confidence",
            "regions",
            _CONFIDENCES,
            {end: f"{end:g}" for end in (0, 0.5, 1)},
            _shares(confidence, _CONFIDENCES),
        ),
    ]
    figure = blank_figure(_PLOT + 30 + 46, left=40, top=30, bottom=46)
    for number, panel in enumerate(panels):
        start = number * 0.35
        axes = add_axes(
            figure,
            (start, start + 0.3),
            (0, 1),
            {
                "tickvals": list(panel.ticks),
                "ticktext": list(panel.ticks.values()),
                "showgrid": False,
            }
            | {"tickfont": {"size": 11}, "title": axis_title(panel.title), "tickangle": 0}
            | {"range": [panel.ends[0], panel.ends[-1]]},
            {"gridcolor": GRID, "tickformat": ".0%", "tickfont": {"size": SMALL}, "nticks": 5}
            | {"range": [0, 1.12 * max(*panel.shares, 0.01)]},
        )
        place = {"xref": f"{axes['xaxis']} domain", "yref": "paper"}
        corner = {"xanchor": "left", "yanchor": "bottom", "yshift": 4}
        add_text(figure, f"share of {panel.whole}", 0, 1, **corner, **place)
        bars = list(pairwise(panel.ends))
        figure.add_bar(
            x=[(low + high) / 2 for low, high in bars],
            y=panel.shares,
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
        validation: as `assets/make/validate_detector.py` saves it: "map50" and "map50_by_category".

    Raises:
        ValueError: an entry is missing, or there is no category.
    """
    by_category = validation.get("map50_by_category")
    if not by_category or "map50" not in validation:
        raise ValueError(
            f"Expected map50 and map50_by_category, got {sorted(validation)}; "
            "assets/make/validate_detector.py makes both."
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
