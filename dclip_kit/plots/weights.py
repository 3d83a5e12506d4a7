"""DCLIP's region weights, taken apart."""

import plotly.graph_objects as go
from jaxtyping import Float
from PIL import Image
from plotly.colors import sample_colorscale
from torch import Tensor

from dclip_kit.plots.panels import add_axes, add_boxes, add_picture, references, require_size
from dclip_kit.plots.style import INK, PALETTE, add_text, blank_figure, escape_text, wrap_text
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
        "× confidence": confidence,
        "× similarity": similarity,
        "→ weight": weight,
    }
    for name, values in quantities.items():
        if len(values) != len(regions) or not values.isfinite().all():
            raise ValueError(
                f"Expected a finite number for each of {len(regions)} regions, got "
                f"{len(values)} for {name.split()[-1]}; leave padding out."
            )
    order = weight.argsort(descending=True, stable=True).tolist()
    place = {region: rank for rank, region in enumerate(order)}
    shares = (weight / weight.max().clamp(min=1e-12)).clamp(0, 1).tolist()
    rows = max(len(regions), 6)
    height = max(330, 26 * rows + 80)
    figure = blank_figure(height)
    below = 66 / (height - 16)
    axes = add_picture(figure, picture, (0, 0.38), (below, 1), wrap_text(f"“{caption}”", 30))
    numbers = [str(place[index] + 1) for index in range(len(regions))]
    colors = sample_colorscale(_SCALE, shares)
    add_boxes(figure, regions, axes, numbers, colors, [2 + 3 * share for share in shares])

    names = [f"{rank + 1} {escape_text(regions.label[index])}" for rank, index in enumerate(order)]
    for column, (name, values) in enumerate(quantities.items()):
        bars = [values[index].item() for index in order]
        final = column == len(quantities) - 1
        ticks = {"tickvals": list(range(len(names))), "ticktext": names, "ticks": ""}
        start = 0.55 + 0.45 * column / len(quantities)
        axes = add_axes(
            figure,
            (start, start + 0.1),
            (0, 1 - 24 / (height - 16)),
            {"visible": False, "range": [0, max(*bars, 1e-9) * 1.9]},
            {"range": [rows - 0.5, -0.5], "showgrid": False, "linecolor": INK}
            | (ticks if column == 0 else {"showticklabels": False}),
        )
        figure.add_bar(
            x=bars,
            y=list(range(len(bars))),
            orientation="h",
            width=0.7,
            marker={"color": [colors[i] for i in order] if final else PALETTE[0]},
            text=[f"{value:.0%}" if final else f"{value:.2g}" for value in bars],
            textposition="outside",
            cliponaxis=False,
            hoverinfo="skip",
            **axes,
        )
        heading = f"<b>{name}</b>" if final else name
        add_text(figure, heading, 0, -0.5, xanchor="left", yanchor="bottom", **references(axes))
    return figure
