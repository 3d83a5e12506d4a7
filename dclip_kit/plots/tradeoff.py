"""What each interpolation between before and after gains and forgets."""

from collections.abc import Mapping

import plotly.graph_objects as go

from dclip_kit.evaluation.arms import Arm
from dclip_kit.plots.panels import add_axes, references
from dclip_kit.plots.style import (
    GRID,
    HALO,
    INK,
    SMALL,
    add_text,
    arm_colors,
    axis_title,
    blank_figure,
    escape_text,
    spread,
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
            **HALO,
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
        at_right = point.retention > x[1] - 0.12 * (x[1] - x[0])  # where its text has no room
        add_text(
            figure,
            f"<b>α = {point.alpha:g}</b>",
            point.retention,
            height,
            xanchor="right" if at_right else "left",
            xshift=-10 if at_right else 10,
            yshift=10,
            font={"color": colors[name], "size": SMALL},
            **HALO,
            **references(axes),
        )
    return figure
