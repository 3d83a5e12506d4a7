"""A small table of scores, to rank by hand."""

from collections.abc import Sequence

import plotly.graph_objects as go
from jaxtyping import Float, Int
from plotly.colors import sample_colorscale
from torch import Tensor

from dclip_kit.plots.panels import add_axes, references
from dclip_kit.plots.style import INK, SMALL, add_text, blank_figure, label_room, wrap_text

_SCALE = [[0, "#FFFFFF"], [1, "#8FC1E8"]]  # light enough for dark numbers
_CELL = 46  # pixels a row
_RING = "#00A35C"


def plot_scores(
    scores: Float[Tensor, "image text"],
    image_of_text: Int[Tensor, "text"],
    pictures: Sequence[str],
    captions: Sequence[str],
) -> go.Figure:
    """Every picture's score with every caption: the darker, the higher; pairs are framed.

    Args:
        scores: a row a picture and a column a caption, from 0 to 1.
        image_of_text: each caption's picture.
        pictures: names of the rows, shown as plain text.
        captions: names of the columns, likewise.

    Raises:
        ValueError: names and scores are not equally many, or scores are outside 0 to 1.
    """
    if tuple(scores.shape) != (len(pictures), len(captions)) or not (
        scores.numel() and scores.min() >= 0 and scores.max() <= 1
    ):
        raise ValueError(
            f"Expected scores from 0 to 1 of {len(pictures)} pictures and {len(captions)} captions,"
            f" got a table of {tuple(scores.shape)}."
        )
    rows, columns = scores.shape
    left, top = label_room(pictures), 66
    figure = blank_figure(rows * _CELL + top + 8, left=left, top=top)
    hidden = {"showgrid": False, "ticks": "", "tickfont": {"size": SMALL}}
    axes = add_axes(
        figure,
        (0, 1),
        (0, 1),
        hidden
        | {"range": [-0.5, columns - 0.5], "side": "top", "tickvals": list(range(columns))}
        | {
            "ticktext": [wrap_text(text, 7, 4) for text in captions],
            "tickangle": 0,
            "ticklabelstandoff": 3,
        },
        hidden
        | {"range": [rows - 0.5, -0.5], "tickvals": list(range(rows))}
        | {"ticktext": [wrap_text(text, 20) for text in pictures], "ticklabelstandoff": 5},
    )
    figure.add_scatter(x=[None], y=[None], hoverinfo="skip", **axes)
    highest = float(scores.max()) or 1.0
    for row, line in enumerate(scores.tolist()):
        for column, score in enumerate(line):
            own = int(image_of_text[column]) == row
            color = sample_colorscale(_SCALE, [score / highest])[0]
            inset = 0.46 if own else 0.48
            figure.add_shape(
                type="rect",
                x0=column - inset,
                x1=column + inset,
                y0=row - inset,
                y1=row + inset,
                fillcolor=color,
                layer="below",
                line={"color": _RING if own else color, "width": 4 if own else 0},
                **references(axes),
            )
            text = f"<b>{score:.2f}</b>" if own else f"{score:.2f}"
            add_text(figure, text, column, row, font={"color": INK, "size": 13}, **references(axes))
    return figure
