"""Training histories: loss and figures on val, epoch by epoch."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from dclip_kit.plots.panels import add_axes
from dclip_kit.plots.style import (
    GRID,
    HALO,
    SMALL,
    Number,
    add_text,
    arm_colors,
    axis_title,
    blank_figure,
    escape_text,
    label_room,
    spread,
)

_PANELS = {  # row's key, heading, whether it is a share
    "loss": ("training loss", False),
    "contrastive": ("contrastive term", False),
    "distillation": ("distillation term", False),
    "rehearsal": ("rehearsal term", False),
    "val_recall_at_1": ("text→image R@1<br>on val", True),
    "val_zero_shot": ("zero-shot top-1<br>on val", True),
}
_PLOT = 190  # height of the drawing itself, in pixels


def plot_history(
    histories: Mapping[str, Sequence[Mapping[str, Number]]],
    panels: Sequence[str] = ("loss", "val_recall_at_1", "val_zero_shot"),
) -> go.Figure:
    """Loss and figures on val, epoch by epoch, a line for each arm (or teacher).

    Losses of arms that add up different terms are no measure of each other.

    Args:
        histories: by name; rows have "epoch", "loss" and perhaps "val_recall_at_1" and
            "val_zero_shot".
        panels: which of the rows' figures to draw, in this order; "contrastive", "distillation"
            and "rehearsal" are the student's loss term by term. What no row has is left out.

    Raises:
        ValueError: there is no history, one is empty or a row lacks "epoch" or "loss", or no row
            has any of the panels' figures.
    """
    lacking = [n for n, rows in histories.items() if not rows or {"epoch", "loss"} - rows[0].keys()]
    if not histories or lacking:
        raise ValueError(
            f"Expected histories with rows of epoch and loss, got none for {lacking or 'any arm'}; "
            "leave untrained arms out."
        )
    keys = [key for key in panels if any(key in rows[0] for rows in histories.values())]
    if not keys or not set(keys) <= set(_PANELS):
        raise ValueError(
            f"Expected panels out of {', '.join(_PANELS)} that the histories have, got "
            f"{', '.join(panels) or 'none'}."
        )
    colors = arm_colors(histories)
    figure = blank_figure(_PLOT + 44 + 42, left=44, right=label_room(histories), top=44, bottom=42)
    room = 0.12 if len(keys) > 1 else 0.0  # between panels, for tick labels
    width = (1 - room * (len(keys) - 1)) / len(keys)
    for number, key in enumerate(keys):
        heading, is_share = _PANELS[key]
        drawn = {name: rows for name, rows in histories.items() if key in rows[0]}
        values = [row[key] for rows in drawn.values() for row in rows]
        low, high = min(values), max(values)
        pad = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        epochs = max(len(rows) for rows in drawn.values())
        start = number * (width + room)
        axes = add_axes(
            figure,
            (start, start + width),
            (0, 1),
            {"gridcolor": GRID, "dtick": max(1, epochs // 4), "title": axis_title("epoch")}
            | {"tickfont": {"size": SMALL}, "range": [1 - 0.06 * epochs, epochs * 1.06]},
            {"gridcolor": GRID, "range": [low - pad, high + pad], "nticks": 5}
            | {"tickfont": {"size": SMALL}}
            | ({"tickformat": ".0%" if high - low > 0.04 else ".1%"} if is_share else {}),
        )
        add_text(
            figure,
            heading,
            0,
            1,
            xref=f"{axes['xaxis']} domain",
            yref="paper",
            xanchor="left",
            yanchor="bottom",
            yshift=4,
            align="left",
        )
        for name, rows in drawn.items():
            _add_line(figure, name, rows, key, colors[name], is_share, axes)
        ending = [
            n for n, rows in drawn.items() if not any(k in rows[0] for k in keys[number + 1 :])
        ]
        gap = 15 / _PLOT * (high - low + 2 * pad)
        heights = spread([drawn[name][-1][key] for name in ending], gap)
        for name, y in zip(ending, heights, strict=True):
            rightmost = number == len(keys) - 1
            add_text(
                figure,
                escape_text(name),
                drawn[name][-1]["epoch"],
                (y - low + pad) / (high - low + 2 * pad),
                xref=axes["xaxis"],
                yref="paper",  # in the axis's units, one pushed out of its range would vanish
                xanchor="left" if rightmost else "center",
                yanchor="middle" if rightmost else "bottom",
                xshift=6 if rightmost else 0,
                yshift=0 if rightmost else 6,
                font={"color": colors[name], "size": SMALL},
                **HALO,
            )
    return figure


def _add_line(
    figure: go.Figure,
    name: str,
    rows: Sequence[Mapping[str, Number]],
    key: str,
    color: str,
    is_share: bool,
    axes: dict[str, str],
) -> None:
    kept = [row for row in rows if key in row]
    shown = [f"{100 * row[key]:.1f} %" if is_share else f"{row[key]:.3f}" for row in kept]
    figure.add_scatter(
        x=[row["epoch"] for row in kept],
        y=[row[key] for row in kept],
        mode="lines+markers",
        line={"color": color, "width": 2},
        marker={"color": color, "size": 6},
        hoverinfo="text",
        hovertext=[
            f"{escape_text(name)}, epoch {row['epoch']:.0f}: {text}"
            for row, text in zip(kept, shown, strict=True)
        ],
        **axes,
    )
