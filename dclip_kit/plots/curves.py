"""Lines: training histories, and what each interpolation gains and forgets."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from dclip_kit.arms import Arm
from dclip_kit.plots.panels import add_axes, references
from dclip_kit.plots.style import (
    GRID,
    INK,
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
    "val_recall_at_1": ("text→image R@1<br>on val", True),
    "val_zero_shot": ("zero-shot top-1<br>on val", True),
}
_PLOT = 190  # height of the drawing itself, in pixels


def plot_history(histories: Mapping[str, Sequence[Mapping[str, Number]]]) -> go.Figure:
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


def plot_tradeoff(arms: Mapping[str, Arm], least_retention: float, split: str = "val") -> go.Figure:
    """What each interpolation of each arm gains in retrieval and keeps of zero-shot.

    A path begins at the untouched CLIP and goes on as more of the fine-tuned weights are mixed in;
    the chosen point is ringed: the highest that is right of the dashed line.

    Args:
        arms: by name; those without candidates (the untouched CLIP) are left out.
        least_retention: the rule's, as share of CLIP's zero-shot accuracy.
        split: which data the candidates were measured on, for the axes' titles.

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
    across = across or 0.01
    x = (min(retentions) - 0.04 * across, max(retentions) + 0.06 * across)
    y = (min(recalls) - 0.08 * up, max(recalls) + 0.16 * up)
    figure = blank_figure(380, left=64, bottom=50, top=10, right=14)
    titles = f"zero-shot retention on {split}", f"text→image Recall@1 on {split}"
    look = {"gridcolor": GRID, "tickformat": ".1%", "tickfont": {"size": SMALL}}
    axes = add_axes(
        figure,
        (0, 1),
        (0, 1),
        look | {"range": list(x), "title": axis_title(titles[0])},
        look | {"range": list(y), "title": axis_title(titles[1]), "nticks": 7},
    )
    line = {"color": INK, "width": 1.5, "dash": "dash"}
    ends = {"x0": least_retention, "x1": least_retention, "y0": 0, "y1": 1}
    figure.add_shape(type="line", xref=axes["xaxis"], yref="paper", line=line, **ends)
    at_left = least_retention < x[0] + 0.4 * (x[1] - x[0])  # where its text has no room
    add_text(
        figure,
        f"keep at least {least_retention:.1%}",
        least_retention,
        0,
        xref=axes["xaxis"],
        yref="paper",
        xanchor="left" if at_left else "right",
        yanchor="bottom",
        xshift=4 if at_left else -4,
    )
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
        add_text(
            figure,
            f"<b>{escape_text(name)}</b>, α = {path[-1].alpha:g}",
            path[-1].retention,
            path[-1].recall_at_1,
            xanchor="left",
            yanchor="bottom",
            xshift=-6,
            yshift=6,
            font={"color": colors[name], "size": SMALL},
            **references(axes),
        )
    start = min(points, key=lambda point: point.alpha)
    if start.alpha == 0:
        place = {"yanchor": "top", "yshift": -6, **references(axes)}
        add_text(figure, "clip", start.retention, start.recall_at_1, **place)
    chosen = {n: c for n, arm in paths.items() for c in arm.candidates if c.alpha == arm.alpha}
    heights = spread([point.recall_at_1 for point in chosen.values()], 16 / 320 * (y[1] - y[0]))
    for (name, point), height in zip(chosen.items(), heights, strict=True):
        ring = {"symbol": "circle-open", "size": 16, "color": INK, "line": {"width": 2.5}}
        figure.add_scatter(
            x=[point.retention],
            y=[point.recall_at_1],
            mode="markers",
            marker=ring,
            hoverinfo="skip",
            **axes,
        )
        if point.alpha == max(each.alpha for each in paths[name].candidates):
            continue  # the end of a path says its α already
        add_text(
            figure,
            f"<b>α = {point.alpha:g}</b>",
            point.retention,
            height,
            xanchor="left",
            xshift=10,
            yshift=10,
            font={"color": colors[name], "size": SMALL},
            **references(axes),
        )
    return figure
