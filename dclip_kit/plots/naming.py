"""What CLIP names from whole pictures, and what from crops."""

import plotly.graph_objects as go
import torch
from jaxtyping import Bool
from torch import Tensor

from dclip_kit.data.pocket.scenes import SIZES
from dclip_kit.evaluation.objects import NamedObjects, SceneObjects
from dclip_kit.metrics import paired_bootstrap
from dclip_kit.plots.panels import add_axes, references
from dclip_kit.plots.style import (
    GRID,
    PALETTE,
    SMALL,
    Number,
    add_text,
    blank_figure,
    label_room,
    spread,
)


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
