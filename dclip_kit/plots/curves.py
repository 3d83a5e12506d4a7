"""Lines: training histories, and what each interpolation gains and forgets."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from dclip_kit.arms import Arm
from dclip_kit.evaluate import Candidate
from dclip_kit.plots.panels import add_axes, references
from dclip_kit.plots.style import (
    GRID,
    INK,
    SMALL,
    add_text,
    arm_colors,
    blank_figure,
    escape_text,
    spread,
)
from dclip_kit.train import History

_PANELS = {  # row's key, heading, whether it is a share
    "loss": ("training loss", False),
    "val_recall_at_1": ("text→image R@1, val", True),
    "val_zero_shot": ("zero-shot top-1, val", True),
}
_PLOT = 190  # height of the drawing itself, in pixels


def plot_history(histories: Mapping[str, History]) -> go.Figure:
    """Loss and figures on val, epoch by epoch, a line for each arm (or teacher).

    Losses of arms that add up different terms are no measure of each other.

    Args:
        histories: by name; rows have "epoch", "loss" and perhaps "val_recall_at_1" and
            "val_zero_shot".

    Raises:
        ValueError: there is no history, one is empty or a row lacks "epoch" or "loss".
    """
    lacking = [n for n, rows in histories.items() if not rows or {"epoch", "loss"} - rows[0].keys()]
    if not histories or lacking:
        raise ValueError(
            f"Expected histories with rows of epoch and loss, got none for {lacking or 'any arm'}; "
            "leave untrained arms out."
        )
    keys = [key for key in _PANELS if any(key in rows[0] for rows in histories.values())]
    colors = arm_colors(histories)
    figure = blank_figure(_PLOT + 30 + 42, left=44, right=88, top=30, bottom=42)
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
            {"gridcolor": GRID, "dtick": max(1, epochs // 4), "title": {"text": "epoch"}}
            | {"tickfont": {"size": SMALL}},
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
                y,
                xanchor="left" if rightmost else "right",
                yanchor="middle" if rightmost else "bottom",
                xshift=6 if rightmost else 0,
                font={"color": colors[name], "size": SMALL},
                **references(axes),
            )
    return figure


def _add_line(
    figure: go.Figure,
    name: str,
    rows: Sequence[Mapping[str, float]],
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


def plot_tradeoff(arms: Mapping[str, Arm], least_retention: float) -> go.Figure:
    """What each interpolation of each arm gains in retrieval and keeps of zero-shot, on val.

    A path begins at the untouched CLIP and goes on as more of the fine-tuned weights are mixed in;
    the chosen point is ringed: the highest that is right of the dashed line.

    Args:
        arms: by name; those without candidates (the untouched CLIP) are left out.
        least_retention: the rule's, as share of CLIP's zero-shot accuracy.

    Raises:
        ValueError: no arm has candidates.
    """
    paths = {name: arm for name, arm in arms.items() if arm.candidates}
    if not paths:
        raise ValueError(
            "Expected an arm with candidates, got none; train_arm and load_arm give such arms."
        )
    colors = arm_colors(arms)
    points = [candidate for arm in paths.values() for candidate in arm.candidates]
    retentions = [*(point.retention for point in points), least_retention]
    recalls = [point.recall_at_1 for point in points]
    across, up = max(retentions) - min(retentions), max(recalls) - min(recalls) or 0.01
    x = (min(retentions) - 0.04 * across, max(retentions) + 0.04 * across)
    y = (min(recalls) - 0.08 * up, max(recalls) + 0.16 * up)
    figure = blank_figure(380, left=64, bottom=50, top=10, right=14)
    titles = "zero-shot retention on val", "text→image Recall@1 on val"
    look = {"gridcolor": GRID, "tickformat": ".0%", "tickfont": {"size": SMALL}}
    axes = add_axes(
        figure,
        (0, 1),
        (0, 1),
        look | {"range": list(x), "title": {"text": titles[0], "standoff": 8}},
        look | {"range": list(y), "title": {"text": titles[1], "standoff": 8}, "nticks": 7},
    )
    line = {"color": INK, "width": 1.5, "dash": "dash"}
    ends = {"x0": least_retention, "x1": least_retention, "y0": 0, "y1": 1}
    figure.add_shape(type="line", xref="x", yref="paper", line=line, **ends)
    for name, arm in paths.items():
        path = sorted(arm.candidates, key=lambda candidate: candidate.alpha)
        figure.add_scatter(
            x=[point.retention for point in path],
            y=[point.recall_at_1 for point in path],
            mode="lines+markers",
            line={"color": colors[name], "width": 2},
            marker={"color": colors[name], "size": 7},
            hoverinfo="text",
            hovertext=[
                f"{escape_text(name)}, α = {point.alpha:g}<br>Recall@1 {point.recall_at_1:.1%}, "
                f"retention {point.retention:.1%}"
                for point in path
            ],
            **axes,
        )
        _mark_ends(figure, name, path, colors[name], axes)
    chosen = {n: c for n, arm in paths.items() for c in arm.candidates if c.alpha == arm.alpha}
    heights = spread([point.recall_at_1 for point in chosen.values()], 16 / 320 * (y[1] - y[0]))
    for (name, point), height in zip(chosen.items(), heights, strict=True):
        ring = {"symbol": "circle-open", "size": 16, "line": {"width": 2.5, "color": INK}}
        figure.add_scatter(
            x=[point.retention],
            y=[point.recall_at_1],
            mode="markers",
            marker=ring,
            hoverinfo="skip",
            **axes,
        )
        add_text(
            figure,
            f"<b>{escape_text(name)}</b>, α = {point.alpha:g}: {point.recall_at_1:.1%}",
            point.retention,
            height,
            xanchor="left",
            xshift=14,
            font={"color": colors[name], "size": SMALL},
            **references(axes),
        )
    return figure


def _mark_ends(
    figure: go.Figure, name: str, path: Sequence[Candidate], color: str, axes: dict[str, str]
) -> None:
    for point in (path[0], path[-1]):
        add_text(
            figure,
            "clip" if point.alpha == 0 else f"{escape_text(name)}, α = {point.alpha:g}",
            point.retention,
            point.recall_at_1,
            yanchor="top" if point.alpha == 0 else "bottom",
            yshift=-5 if point.alpha == 0 else 5,
            font={"color": INK if point.alpha == 0 else color, "size": SMALL},
            **references(axes),
        )
