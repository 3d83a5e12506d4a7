"""Trainings by epoch, retrieval against zero-shot retention, and the gains of a study's arms."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from dclip_kit.evaluation.arms import Arm
from dclip_kit.evaluation.compare import WAYS
from dclip_kit.evaluation.study_table import RETENTION
from dclip_kit.metrics import Interval
from dclip_kit.plots.style import (
    ARM_COLORS,
    DASHED,
    PERCENT,
    arm_colors,
    escape_text,
    legend_entry,
    make_whiskers,
    new_figure,
)

_PANELS = {  # a row's key: the panel's heading
    "loss": "training loss",
    "contrastive": "contrastive term",
    "distillation": "distillation term",
    "rehearsal": "rehearsal term",
    "val_recall_at_1": "text→image R@1 on val",
    "val_zero_shot": "zero-shot top-1 on val",
    "val_retention": "zero-shot retention on val",
}
_VARIANTS = {"text": "dash", "nnn": "dot"}  # the line by the ending of an arm's name


def plot_history(
    histories: Mapping[str, Sequence[Mapping[str, float | int]]],
    panels: Sequence[str] = ("loss", "val_recall_at_1", "val_zero_shot"),
) -> go.Figure:
    """Loss and figures on val by epoch, a line for each arm (or teacher).

    Losses of arms with different terms cannot be compared.

    Args:
        histories: by name; rows have "epoch", "loss" and perhaps "val_recall_at_1",
            "val_zero_shot" and "val_retention".
        panels: which of the rows' figures to draw, in this order; "contrastive", "distillation"
            and "rehearsal" are the terms of the student's loss. Those in no row are left out.

    Raises:
        ValueError: no row has any of the panels' figures, or a panel is unknown.
    """
    available = {key for rows in histories.values() for row in rows for key in row}
    keys = [key for key in panels if key in available]
    if not keys or not set(panels) <= set(_PANELS):
        raise ValueError(
            f"Expected panels out of {', '.join(_PANELS)} that the histories have, got "
            f"{', '.join(panels) or 'none'}."
        )
    colors = arm_colors(histories)
    figure = new_figure(
        230, [_PANELS[key] for key in keys], legend=True, cols=len(keys), horizontal_spacing=0.1
    )
    for column, key in enumerate(keys, start=1):
        for name, rows in histories.items():
            points = [row for row in rows if key in row]
            if not points:
                continue
            figure.add_scatter(
                x=[row["epoch"] for row in points],
                y=[row[key] for row in points],
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


def plot_tradeoff(arms: Mapping[str, Arm], least_retention: float) -> go.Figure:
    """Retrieval on val against zero-shot retention, for each interpolation of each arm.

    A path begins at the untouched CLIP and continues as more of the fine-tuned weights are mixed
    in. The chosen point, the highest one right of the dashed line, is ringed; the legend has its α.

    Args:
        arms: by name; those without candidates (the untouched CLIP) are left out.
        least_retention: the rule's, as a share of CLIP's zero-shot accuracy.

    Raises:
        ValueError: no arm has candidates.
    """
    paths = {name: arm for name, arm in arms.items() if arm.candidates}
    if not paths:
        raise ValueError(
            "Expected an arm with candidates, got none; give arms from train_arm or load_arm."
        )
    colors = arm_colors(arms)
    figure = new_figure(380, legend=True)
    for name, arm in paths.items():
        path = sorted(arm.candidates, key=lambda candidate: candidate.alpha)
        chosen = [point.alpha == arm.alpha for point in path]
        figure.add_scatter(
            x=[point.retention for point in path],
            y=[point.recall_at_1 for point in path],
            mode="lines+markers",
            line_color=colors[name],
            marker={
                "opacity": 1,
                "symbol": ["circle-open-dot" if ringed else "circle" for ringed in chosen],
                "size": [15 if ringed else 7 for ringed in chosen],
                "line_width": [2.5 if ringed else 0 for ringed in chosen],
            },
            hovertext=[f"α = {point.alpha:g}" for point in path],
            name=escape_text(f"{name}, α = {arm.alpha:g}"),
        )
    start = path[0]
    if start.alpha == 0:  # the untouched CLIP, where all paths begin
        figure.add_scatter(
            x=[start.retention],
            y=[start.recall_at_1],
            mode="markers+text",
            marker={"color": ARM_COLORS["clip"], "size": 9},
            text="clip",
            textposition="bottom center",
            showlegend=False,
        )
    figure.add_vline(least_retention, line=DASHED, layer="below")
    figure.update_yaxes(tickformat=".1~%", title_text="text→image Recall@1 on val")
    return figure.update_xaxes(
        tickformat=".1~%",
        title_text=f"zero-shot retention on val (dashed: keep at least {least_retention:.1%})",
    )


def _variant_colors(names: Iterable[str]) -> dict[str, str]:
    """Colours of arms; a variant has the colour of its base arm."""
    base_arms = {}
    for name in names:
        kind, _, suffix = name.rpartition("_")
        base_arms[name] = kind if suffix in _VARIANTS else name
    colors = arm_colors(base_arms.values())
    return {name: colors[kind] for name, kind in base_arms.items()}


def plot_frontiers(study: Mapping[str, Any], way: str = "text_to_image") -> go.Figure:
    """Each arm's gain over the untouched CLIP against its retention, as its weights mix in.

    A line runs from the untouched CLIP (at the right, no gain) to the arm's own weights. It is
    dashed for an arm whose text tower trains ("_text") and dotted for rescored search ("_nnn"), in
    the colour of the base arm. Where a line falls to the retention at which arms are compared, a
    point shows the 95 % interval; the points of several arms are placed side by side. An arm
    without weights of its own, such as CLIP with rescored search, has a diamond and no line.

    Args:
        study: the content of a study's JSON.
        way: "text_to_image" or "image_to_text".
    """
    arms = study["arms"]
    colors = _variant_colors(arms)
    base = arms["clip"]["at_95_5"][way]["recall_at_1"]
    figure = new_figure(400, legend=True)
    names = [name for name in arms if name != "clip"]  # it gains nothing over itself
    for name in names:
        points, suffix = arms[name]["frontier"], name.rpartition("_")[2]
        if len(points) > 1:
            figure.add_scatter(
                x=[point["retention"] for point in points],
                y=[point[way] / base - 1 for point in points],
                mode="lines",
                hovertext=[f"{escape_text(name)}, α = {point['alpha']:g}" for point in points],
                line={"color": colors[name], "dash": _VARIANTS.get(suffix, "solid")},
                **legend_entry(figure, name),
            )
    for number, name in enumerate(names):  # points over all lines
        gain, points = _read_gain(arms[name], way, "clip"), arms[name]["frontier"]
        # Side by side, so that no interval hides another.
        shifted = RETENTION + 0.002 * (number - (len(names) - 1) / 2)
        retention = points[-1]["retention"]
        figure.add_scatter(
            x=[retention if retention > RETENTION else shifted],
            y=[gain.estimate],
            error_y=make_whiskers([gain]) | {"color": colors[name]},
            mode="markers",
            marker={
                "size": 9 if len(points) > 1 else 12,
                "symbol": "circle" if len(points) > 1 else "diamond",
                "color": colors[name],
            },
            **legend_entry(figure, name),
        )
    figure.add_vline(RETENTION, line=DASHED, layer="below")
    figure.update_yaxes(tickformat="+.0%", title_text="gain over clip, Recall@1")
    return figure.update_xaxes(
        tickformat=".0%",
        title_text=f"zero-shot accuracy kept (dashed: {RETENTION:.1%}, where arms are compared)",
    )


def plot_versus(study: Mapping[str, Any], rival: str) -> go.Figure:
    """What each arm gains over one of them, both ways, with 95 % intervals.

    A hollow point's interval includes zero: the two are not known to differ on other pictures.
    Ticks show how much trainings differ: each is one training's gain over the rival's with the same
    seed, or over its only one.

    Args:
        study: the content of a study's JSON.
        rival: the arm that the others are compared with.

    Raises:
        ValueError: the study has no such arm.
    """
    arms = dict(study["arms"])
    if rival not in arms:
        raise ValueError(f"Expected an arm out of {', '.join(arms)}, got {rival!r}; name another.")
    rival_runs = {run["seed"]: run for run in arms.pop(rival)["runs"]}
    colors = _variant_colors(arms)
    figure = new_figure(
        26 * len(arms) + 40,
        list(WAYS.values()),
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.05,
    )
    for column, way in enumerate(WAYS, start=1):
        for name, arm in arms.items():
            only_run = len(rival_runs) == 1 and next(iter(rival_runs.values()))
            pairs = [(run, only_run or rival_runs.get(run["seed"])) for run in arm["runs"]]
            ratios = [run[way] / rival_run[way] - 1 for run, rival_run in pairs if rival_run]
            if len(ratios) > 1:
                figure.add_scatter(
                    x=ratios,
                    y=[escape_text(name)] * len(ratios),
                    mode="markers",
                    marker={"symbol": "line-ns-open", "size": 12, "color": colors[name]},
                    name=f"{escape_text(name)}, each training",
                    row=1,
                    col=column,
                )
            gain = _read_gain(arm, way, rival)
            differs = gain.low > 0 or gain.high < 0
            figure.add_scatter(
                x=[gain.estimate],
                y=[escape_text(name)],
                error_x=make_whiskers([gain]) | {"color": colors[name]},
                mode="markers",
                marker={
                    "size": 9,
                    "color": colors[name] if differs else "white",
                    "line": {"color": colors[name], "width": 2},
                },
                name=escape_text(name),
                row=1,
                col=column,
            )
        figure.add_vline(0, line=DASHED, row=1, col=column)
    figure.update_yaxes(autorange="reversed")
    return figure.update_xaxes(
        title_text=f"gain over {escape_text(rival)}, Recall@1",
        **PERCENT | {"tickformat": "+.0%"},
    )


def plot_growth(
    study: Mapping[str, Any], amounts: Mapping[str, Mapping[str, int]], title: str
) -> go.Figure:
    """What arms gain over the untouched CLIP, text→image with 95 % intervals, by what they had.

    Args:
        study: the content of a study's JSON.
        amounts: of what the arms differ in: for each line, the amount of each of its arms.
        title: of the axis of amounts.
    """
    colors = arm_colors(amounts)
    figure = new_figure(320, legend=True)
    for line, arm_amounts in amounts.items():
        gains = [_read_gain(study["arms"][name], "text_to_image", "clip") for name in arm_amounts]
        figure.add_scatter(
            x=list(arm_amounts.values()),
            y=[gain.estimate for gain in gains],
            error_y=make_whiskers(gains) | {"color": colors[line]},
            mode="lines+markers",
            marker_size=9,
            line_color=colors[line],
            **legend_entry(figure, line),
        )
    figure.update_yaxes(
        tickformat="+.0%", rangemode="tozero", title_text="gain over clip, Recall@1"
    )
    return figure.update_xaxes(title_text=escape_text(title))


def _read_gain(arm: Mapping[str, Any], way: str, rival: str) -> Interval:
    """The gain of a study's arm over a rival, as a share of the rival's Recall@1."""
    gain = arm["at_95_5"][way]["vs"][rival]
    return Interval(gain["relative"], *gain["ci95"])
