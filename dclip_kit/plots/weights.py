"""DCLIP's region weights, taken apart."""

import plotly.graph_objects as go
from jaxtyping import Float
from PIL import Image
from plotly.colors import sample_colorscale
from torch import Tensor

from dclip_kit.plots.panels import add_axes, add_boxes, add_picture, references, require_size
from dclip_kit.plots.style import INK, PALETTE, SMALL, add_text, blank_figure, wrap_text
from dclip_kit.regions import Regions

_SCALE = [[0, "#7FA8C9"], [1, "#00335C"]]  # light to dark blue


def plot_region_weights(
    picture: Image.Image,
    regions: Regions,
    area: Float[Tensor, "_region"],
    confidence: Float[Tensor, "_region"],
    similarity: Float[Tensor, "_region"],
    weight: Float[Tensor, "_region"],
    caption: str,
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
    for name, values in quantities.items():
        if len(values) != len(regions) or not values.isfinite().all():
            raise ValueError(
                f"Expected a finite number for each of {len(regions)} regions, got "
                f"{len(values)} for {name}; leave padding out."
            )
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

    names = [f"{rank + 1} {wrap_text(regions.label[i], 10, 1)}" for rank, i in enumerate(order)]
    top = 1 - 20 / (height - 16)  # below the headings
    bottom = top - row * len(regions) / (height - 16)
    for column, (name, values) in enumerate(quantities.items()):
        bars = [values[index].item() for index in order]
        final = column == len(quantities) - 1
        ticks = {"tickvals": list(range(len(names))), "ticktext": names, "ticks": ""}
        start = 0.47 + 0.53 * column / len(quantities)
        axes = add_axes(
            figure,
            (start, start + 0.125),
            (bottom, top),
            {"visible": False, "range": [0, 2 * max(*bars, 1e-9)]},  # the other half is for text
            {"range": [len(bars) - 0.5, -0.5], "showgrid": False, "linecolor": INK}
            | (ticks if column == 0 else {"showticklabels": False}),
        )
        figure.add_bar(
            x=bars,
            y=list(range(len(bars))),
            orientation="h",
            width=0.7,
            marker={"color": [colors[i] for i in order] if final else PALETTE[0]},
            text=[f"{value:.0%}" if column in (0, 3) else f"{value:.2f}" for value in bars],
            textposition="outside",
            textfont={"size": SMALL},
            cliponaxis=False,
            hoverinfo="skip",
            **axes,
        )
        heading = f"<b>{name}</b>" if final else name
        where = {"xanchor": "left", "yanchor": "bottom", **references(axes)}
        add_text(figure, heading, 0, -0.5, xshift=-4, font={"size": 11}, **where)
    formula = "weight = area × confidence × similarity,<br>scaled to sum to 1"
    corner = {"xref": "paper", "yref": "paper", "xanchor": "right", "align": "right"}
    add_text(figure, formula, 1, bottom, yanchor="top", yshift=-8, **corner)
    return figure
