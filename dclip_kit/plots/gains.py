"""Gains with their intervals, held against zero."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from dclip_kit.metrics import Gain
from dclip_kit.plots.panels import add_axes, references
from dclip_kit.plots.style import (
    GRID,
    INK,
    SMALL,
    add_text,
    arm_colors,
    axis_title,
    blank_figure,
    escape_text,
    label_room,
)

_LINE, _HEADING, _BETWEEN = 17, 26, 5  # pixels


def plot_gains(
    gains: Mapping[str, Mapping[str, Sequence[Gain]]], unit: str = "points of Recall@1"
) -> go.Figure:
    """How much each arm gains over another: a point with its 95 % interval, and a line at zero.

    An interval that touches the line says that the arms are not known to differ there; such
    points are hollow. Where groups have different numbers of queries, these stand behind the names.

    Args:
        gains: by heading, then by arm, a gain for each group; the same groups for each arm.
        unit: of the horizontal axis; gains are fractions and shown times 100.

    Raises:
        ValueError: there is no gain, or the arms under a heading have different groups.
    """
    for heading, arms in gains.items():
        if len({tuple(gain.name for gain in each) for each in arms.values()}) != 1:
            raise ValueError(
                f"Expected the same groups for each arm under {heading!r}, got "
                f"{ {name: [gain.name for gain in each] for name, each in arms.items()} }."
            )
    every = [gain for arms in gains.values() for each in arms.values() for gain in each]
    if not every:
        raise ValueError("Expected at least one gain, got none; see gain_by_group.")
    names = list(dict.fromkeys(name for arms in gains.values() for name in arms))
    colors = arm_colors(names)
    places: dict[tuple[str, str, int], float] = {}  # heading, arm, group: pixels from the top
    labels: list[tuple[float, str]] = []
    headings: list[tuple[float, str]] = []
    y = float(_LINE)
    for heading, arms in gains.items():
        y += _HEADING
        headings.append((y, heading))
        first = next(iter(arms.values()))
        counted = len({gain.queries for gain in first}) > 1
        for group, gain in enumerate(first):
            count = f" ({gain.queries:,})" if counted else ""
            labels.append((y + _LINE * len(arms) / 2, f"{escape_text(gain.name)}{count}"))
            for row, name in enumerate(arms):
                places[heading, name, group] = y + _LINE * (row + 0.5)
            y += _LINE * len(arms) + _BETWEEN
    low = min(0.0, *(100 * gain.change.low for gain in every))
    high = max(0.0, *(100 * gain.change.high for gain in every))
    pad = 0.05 * (high - low) or 1.0
    figure = blank_figure(
        round(y) + 50, left=label_room(label for _, label in labels), right=14, bottom=46, top=4
    )
    axes = add_axes(
        figure,
        (0, 1),
        (0, 1),
        {"range": [low - pad, high + pad], "gridcolor": GRID, "tickfont": {"size": SMALL}}
        | {"title": axis_title(unit), "nticks": 8},
        {"range": [y, 0], "showgrid": False, "ticks": "", "tickfont": {"size": SMALL}}
        | {"tickvals": [place for place, _ in labels], "ticktext": [text for _, text in labels]}
        | {"ticklabelstandoff": 5},
    )
    line = {"color": INK, "width": 1.5, "dash": "dash"}
    figure.add_shape(type="line", x0=0, x1=0, y0=_LINE, y1=y, line=line, **references(axes))
    for name in names:
        _add_points(figure, name, colors[name], gains, places, axes)
    for place, heading in headings:
        where = {"xref": "paper", "yref": axes["yaxis"], "xanchor": "left", "yanchor": "bottom"}
        shift = 6 - figure.layout.margin.l
        add_text(figure, f"<b>{escape_text(heading)}</b>", 0, place, xshift=shift, **where)
    key = {"xref": "paper", "yref": axes["yaxis"], "xanchor": "left", "yanchor": "middle"}
    shift = 0
    for name in names:
        look = {"font": {"color": colors[name], "size": SMALL}, "xshift": shift}
        add_text(figure, f"<b>● {escape_text(name)}</b>", 0, _LINE / 2, **key, **look)
        shift += 34 + 7 * len(name)  # about as wide as the name
    return figure


def _add_points(
    figure: go.Figure,
    name: str,
    color: str,
    gains: Mapping[str, Mapping[str, Sequence[Gain]]],
    places: Mapping[tuple[str, str, int], float],
    axes: dict[str, str],
) -> None:
    own = [
        (places[heading, name, group], gain)
        for heading, arms in gains.items()
        for group, gain in enumerate(arms.get(name, ()))
    ]
    points = [gain.change for _, gain in own]
    figure.add_scatter(
        x=[100 * point.estimate for point in points],
        y=[place for place, _ in own],
        mode="markers",
        marker={
            "color": [color if gain.is_known else "white" for _, gain in own],
            "size": 9,
            "line": {"color": color, "width": 2},
        },
        error_x={
            "array": [100 * (point.high - point.estimate) for point in points],
            "arrayminus": [100 * (point.estimate - point.low) for point in points],
            "color": color,
            "thickness": 2,
            "width": 4,
        },
        hoverinfo="text",
        hovertext=[
            f"{escape_text(name)}, {escape_text(gain.name)}: {100 * gain.before:.1f} → "
            f"{100 * gain.after:.1f} %<br>{100 * gain.change.estimate:+.1f} points "
            f"[{100 * gain.change.low:+.1f}, {100 * gain.change.high:+.1f}]"
            for _, gain in own
        ],
        **axes,
    )
