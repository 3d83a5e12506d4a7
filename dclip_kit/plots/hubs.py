"""How often each picture comes up, whatever is asked for."""

from collections.abc import Mapping

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from dclip_kit.metrics import skewness
from dclip_kit.plots.panels import add_axes
from dclip_kit.plots.style import (
    GRID,
    INK,
    SMALL,
    add_text,
    arm_colors,
    axis_title,
    blank_figure,
    escape_text,
)


def plot_occurrences(
    occurrences: Mapping[str, Float[Tensor, "candidate"]], k: int = 10
) -> go.Figure:
    """For each model the pictures in order of how often they come up: hubs stand on the left.

    Were no picture favoured, each line would be level, at the dashed one: the mean, which is the
    same for all models.

    Args:
        occurrences: by the model's name, from `k_occurrence` of the same queries and pictures.
        k: places looked at, for the axis's title.

    Raises:
        ValueError: there is no model, or they counted different queries or pictures.
    """
    totals = {(len(each), round(float(each.sum()))) for each in occurrences.values()}
    if len(totals) != 1:
        raise ValueError(
            f"Expected counts of the same queries and pictures for each model, got {len(totals)} "
            "different ones; count with one k."
        )
    colors = arm_colors(occurrences)
    number, total = next(iter(totals))
    mean = total / number
    top = max(float(each.max()) for each in occurrences.values())
    figure = blank_figure(330, left=58, bottom=48, top=12, right=16)
    look = {"gridcolor": GRID, "tickfont": {"size": SMALL}}
    axes = add_axes(
        figure,
        (0, 1),
        (0, 1),
        look
        | {"title": axis_title("pictures, the most frequent first"), "type": "log", "dtick": 1},
        look
        | {"title": axis_title(f"times among the top {k}"), "range": [0, 1.08 * top], "nticks": 6},
    )
    ends = {"x0": 0, "x1": 1, "y0": mean, "y1": mean}
    line = {"color": INK, "width": 1.5, "dash": "dash"}
    figure.add_shape(type="line", xref="paper", yref=axes["yaxis"], line=line, **ends)
    corner = {"xref": "paper", "yref": axes["yaxis"], "xanchor": "left", "yanchor": "top"}
    add_text(figure, f"mean {mean:g}", 0, mean, xshift=4, **corner)
    # A point for each step of the logarithmic axis: a thousand would only make the file larger.
    places = torch.logspace(0, torch.tensor(float(number)).log10().item(), 60).round().int()
    places = places.unique().clamp(1, number)
    for name, each in occurrences.items():
        falling = each.sort(descending=True).values
        figure.add_scatter(
            x=places.tolist(),
            y=[round(value, 1) for value in falling[places.long() - 1].tolist()],
            mode="lines",
            line={"color": colors[name], "width": 2.5},
            hoverinfo="text",
            hovertext=[f"{escape_text(name)}, picture {place}" for place in places.tolist()],
            **axes,
        )
    for row, (name, each) in enumerate(occurrences.items()):
        add_text(
            figure,
            f"<b>{escape_text(name)}</b>, skewness {skewness(each):.2f}",
            1,
            0.95 - 0.08 * row,
            xref="paper",
            yref="paper",
            xanchor="right",
            font={"color": colors[name], "size": SMALL},
        )
    return figure
