"""Trainings epoch by epoch, and what each mixture of before and after gains and forgets."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from dclip_kit.evaluation.experiment import Arm
from dclip_kit.plots.style import (
    DASHED,
    INK,
    Number,
    arm_colors,
    escape_text,
    legend_entry,
    new_figure,
)

_PANELS = {  # row's key, heading
    "loss": "training loss",
    "contrastive": "contrastive term",
    "distillation": "distillation term",
    "rehearsal": "rehearsal term",
    "val_recall_at_1": "text→image R@1 on val",
    "val_zero_shot": "zero-shot top-1 on val",
    "val_retention": "zero-shot retention on val",
}


def plot_history(
    histories: Mapping[str, Sequence[Mapping[str, Number]]],
    panels: Sequence[str] = ("loss", "val_recall_at_1", "val_zero_shot"),
) -> go.Figure:
    """Loss and figures on val, epoch by epoch, a line for each arm (or teacher).

    Losses of arms that add up different terms are no measure of each other.

    Args:
        histories: by name; rows have "epoch", "loss" and perhaps "val_recall_at_1",
            "val_zero_shot" and "val_retention".
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
    titles = [_PANELS[key] for key in keys]
    figure = new_figure(230, titles, legend=True, cols=len(keys), horizontal_spacing=0.1)
    for column, key in enumerate(keys, start=1):
        for name, rows in histories.items():
            drawn = [row for row in rows if key in row]
            if not drawn:
                continue
            figure.add_scatter(
                x=[row["epoch"] for row in drawn],
                y=[row[key] for row in drawn],
                mode="lines+markers",
                line_color=colors[name],
                row=1,
                col=column,
                **legend_entry(figure, name),
            )
        if key.startswith("val_"):
            figure.update_yaxes(tickformat=".1~%", col=column)
    epochs = max(len(rows) for rows in histories.values())
    figure.update_yaxes(nticks=6)
    return figure.update_xaxes(title_text="epoch", dtick=max(1, epochs // 4))


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
    colors, split = arm_colors(arms), escape_text(split)
    figure = new_figure(380, legend=True)
    for name, arm in paths.items():
        path = sorted(arm.candidates, key=lambda candidate: candidate.alpha)
        chosen = [point.alpha == arm.alpha for point in path]
        figure.add_scatter(
            x=[point.retention for point in path],
            y=[point.recall_at_1 for point in path],
            mode="lines+markers+text",
            line_color=colors[name],
            marker={
                "opacity": 1,
                "size": [13 if ringed else 7 for ringed in chosen],
                "line": {"color": INK, "width": [3 if ringed else 0 for ringed in chosen]},
            },
            text=[
                f"α = {point.alpha:g}" if ringed or point is path[-1] else ""
                for point, ringed in zip(path, chosen, strict=True)
            ],
            textposition="top right",
            hovertext=[f"α = {point.alpha:g}" for point in path],
            textfont_color=colors[name],
            name=escape_text(name),
        )
    start = min(
        (point for arm in paths.values() for point in arm.candidates), key=lambda each: each.alpha
    )
    if start.alpha == 0:
        place = {"x": start.retention, "y": start.recall_at_1, "yshift": -12, "showarrow": False}
        figure.add_annotation(text="clip", **place)
    figure.add_vline(least_retention, line=DASHED)
    figure.update_layout(margin_r=44)  # where a point on the right is named
    figure.update_yaxes(tickformat=".1~%", title_text=f"text→image Recall@1 on {split}")
    title = f"zero-shot retention on {split} (dashed: keep at least {least_retention:.1%})"
    return figure.update_xaxes(tickformat=".1~%", title_text=title)
