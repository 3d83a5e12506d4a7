"""Measured shares with their intervals, gains, scores, and how often pictures come up."""

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dclip_kit.data.pocket.scenes import SIDE, SIZES
from dclip_kit.evaluation.arms import ArmResult
from dclip_kit.evaluation.compare import WAYS
from dclip_kit.evaluation.inspection import NamedObjects, SceneObjects, ShortcutProbe
from dclip_kit.metrics import Gain, Interval, paired_bootstrap, skewness
from dclip_kit.plots.style import (
    DASHED,
    INK,
    PALE_BLUES,
    PALETTE,
    PERCENT,
    RING,
    arm_colors,
    escape_text,
    legend_entry,
    make_whiskers,
    new_figure,
    wrap_text,
)

_ROW = 24  # pixels that a bar takes


def plot_recall(results: Mapping[str, ArmResult], ceiling: float | None = None) -> go.Figure:
    """Recall of each arm, both ways, with 95 % intervals of a bootstrap over images.

    Each interval is for one arm; a difference between arms has a narrower one (`paired_bootstrap`).

    Args:
        results: by the arm's name, at least one, all with the same k.
        ceiling: text→image Recall@1 that a perfect model could reach, drawn as a dashed line.
    """
    ks = list(next(iter(results.values())).retrieval.text_to_image.recall_at)
    labels = [f"Recall@{k}" for k in ks]
    colors = arm_colors(results)
    figure = new_figure(
        _ROW * len(ks) * (len(results) + 1) + 40,
        list(WAYS.values()),
        legend=True,
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.05,
    )
    for column, way in enumerate(WAYS, start=1):
        for name, result in results.items():
            metrics = getattr(result.retrieval, way)
            bars = make_bars(labels, [metrics.recall_at[k] for k in ks], colors[name])
            intervals = [_interval(metrics.hits(k), metrics.image_of_query) for k in ks]
            bars.update(
                textposition="auto",  # the numbers leave the bars' ends to the whiskers
                error_x=make_whiskers(intervals),
                **legend_entry(figure, name),
            )
            figure.add_trace(bars, row=1, col=column)
    if ceiling is not None:  # across the first group of bars
        label = {
            "text": f"ceiling of Recall@1: {100 * ceiling:.1f} %",
            "textposition": "end",
            "textangle": 0,
            "xanchor": "right" if ceiling > 0.5 else "left",
        }
        ends = {"x0": ceiling, "x1": ceiling, "y0": -0.5, "y1": 0.5}
        figure.add_shape(type="line", line=DASHED, label=label, row=1, col=1, **ends)
    figure.update_layout(margin_r=24)  # for a tick's label at the right border
    figure.update_xaxes(**PERCENT)
    return figure.update_yaxes(autorange="reversed")


def plot_probe(probes: Mapping[str, ShortcutProbe]) -> go.Figure:
    """The shortcut probe of each teacher: does it need the picture's own regions?

    Bars of equal length mean that it reads the caption and ignores the picture. Their shades are of
    a colour that no arm has.

    Args:
        probes: by the teacher's name.
    """
    kinds = {
        "its own regions": ("own", "#8E1538"),
        "another picture’s": ("shuffled", "#D4738F"),
        "no regions": ("blank", "#EDC4D0"),
    }
    figure = new_figure(_ROW * 4 * len(probes) + 40, legend=True)
    for name, (kind, color) in kinds.items():
        shares = [getattr(probe, kind) for probe in probes.values()]
        teachers = [wrap_text(teacher, 24, 9) for teacher in probes]
        figure.add_trace(make_bars(teachers, shares, color).update(name=name))
    figure.update_layout(margin_r=44)  # for the longest bar's number
    figure.update_yaxes(autorange="reversed")
    return figure.update_xaxes(title_text="Recall@1 of the caption", **PERCENT)


def make_bars(names: Sequence[str], shares: Sequence[float], color: str) -> go.Bar:
    """Bars from the left, the first on top, each with its percentage on it."""
    return go.Bar(
        x=shares,
        y=names,
        orientation="h",
        marker_color=color,
        text=[f"{100 * share:.1f}" for share in shares],
        textposition="outside",
    )


def _interval(hits: Bool[Tensor, "query"], image: Int[Tensor, "query"]) -> Interval:
    """The share of hits, with a 95 % interval of a bootstrap over images."""
    # The mean is the difference to zeros.
    return paired_bootstrap(torch.zeros(len(hits)), hits.float(), image)


def plot_naming(named: NamedObjects, objects: SceneObjects) -> go.Figure:
    """The share of things that CLIP names, by their size: from the picture, and from a crop.

    A thing that the detector missed has no crop and counts as not named from one. Whiskers are
    95 % intervals of a bootstrap over pictures.

    Args:
        named: from `name_objects`.
        objects: that `name_objects` was called with.
    """
    lines = {
        "found by the detector": (named.found, PALETTE[0], "dot"),
        "named from its crop": (named.by_crop, PALETTE[2], "solid"),
        "named from the picture": (named.by_picture, PALETTE[1], "solid"),
    }
    sizes = [size for size in SIZES if size in objects.size]
    ticks = [
        f"{size}<br>{SIZES[size][0]}–{SIZES[size][1]} of {SIDE} px"
        f"<br>{objects.size.count(size):,} things"
        for size in sizes
    ]
    figure = new_figure(320, legend=True)
    for name, (hits, color, dash) in lines.items():
        intervals = [
            _interval(hits[of_size], objects.image[of_size])
            for of_size in map(objects.of_size, sizes)
        ]
        figure.add_scatter(
            x=ticks,
            y=[interval.estimate for interval in intervals],
            error_y=make_whiskers(intervals),
            line={"color": color, "dash": dash},
            marker_size=8,
            name=name,
        )
    figure.update_xaxes(range=[-0.4, len(sizes) - 0.6])
    return figure.update_yaxes(range=[0, 1.03], title="share of things", **PERCENT)


def plot_gains(
    gains: Mapping[str, Mapping[str, Sequence[Gain]]], unit: str = "points of Recall@1"
) -> go.Figure:
    """How much each arm gains over another: a point with its 95 % interval, and a line at zero.

    If an interval touches the line, the arms are not known to differ there, and the point is
    hollow. If groups have different numbers of queries, these follow the names.

    Args:
        gains: by heading, then by arm, a gain for each group; the same groups for each arm.
        unit: of the horizontal axis; gains are fractions and shown times 100.
    """
    sizes = [sum(map(len, arms.values())) for arms in gains.values()]
    colors = arm_colors(name for arms in gains.values() for name in arms)
    height = sum(18 * size + 36 for size in sizes) + 20
    figure = new_figure(
        height,
        [f"<b>{escape_text(heading)}</b>" for heading in gains],
        legend=True,
        rows=len(gains),
        row_heights=sizes,
        shared_xaxes=True,
        vertical_spacing=36 / height,
    )
    for row, arms in enumerate(gains.values(), start=1):
        for name, group_gains in arms.items():
            counted = len({gain.queries for gain in group_gains}) > 1
            figure.add_scatter(
                x=[100 * gain.change.estimate for gain in group_gains],
                y=[
                    escape_text(gain.name) + (f" ({gain.queries:,})" if counted else "")
                    for gain in group_gains
                ],
                error_x=make_whiskers([gain.change for gain in group_gains], scale=100)
                | {"color": colors[name]},
                mode="markers",
                orientation="h",
                offsetgroup=name,
                marker={
                    "color": [colors[name] if gain.is_known else "white" for gain in group_gains],
                    "size": 9,
                    "line": {"color": colors[name], "width": 2},
                },
                name=escape_text(name),
                showlegend=False,
                row=row,
                col=1,
            )
    for name, color in colors.items():  # filled in the legend, even if the first point is hollow
        marker = {"color": color, "size": 9}
        entry = {"name": escape_text(name), "showlegend": True}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, **entry)
    figure.add_vline(0, line=DASHED, row="all", col=1)
    # Arms side by side, like grouped bars, with space between rows.
    figure.update_layout(scattermode="group", scattergap=0.4)
    figure.update_yaxes(autorange="reversed")
    return figure.update_xaxes(title_text=escape_text(unit), row=len(gains))


def plot_scores(
    scores: Float[Tensor, "image text"],
    image_of_text: Int[Tensor, "text"],
    pictures: Sequence[str],
    captions: Sequence[str],
) -> go.Figure:
    """Every picture's score with every caption: the darker, the higher; pairs are framed.

    Args:
        scores: from 0 to 1, a row per picture and a column per caption.
        image_of_text: each caption's picture.
        pictures: names of the rows, shown as plain text.
        captions: names of the columns, likewise.

    Raises:
        ValueError: the numbers of names and scores differ, or scores are outside 0 to 1.
    """
    if tuple(scores.shape) != (len(pictures), len(captions)) or not (
        scores.numel() and scores.min() >= 0 and scores.max() <= 1
    ):
        raise ValueError(
            f"Expected scores from 0 to 1 of {len(pictures)} pictures and {len(captions)} captions,"
            f" got a table of {tuple(scores.shape)}."
        )
    figure = new_figure(46 * len(pictures) + 60)
    figure.add_heatmap(
        z=scores.tolist(),
        zmin=0,
        zmax=float(scores.max()) or 1.0,
        colorscale=PALE_BLUES,
        showscale=False,
        texttemplate="%{z:.2f}",
        textfont={"size": 13, "color": INK},
        xgap=3,
        ygap=3,
        hoverinfo="skip",
    )
    for column, row in enumerate(image_of_text.tolist()):
        corners = {"x0": column - 0.46, "x1": column + 0.46, "y0": row - 0.46, "y1": row + 0.46}
        figure.add_shape(type="rect", line={"color": RING, "width": 4}, **corners)
    figure.update_xaxes(
        side="top",
        tickangle=0,
        tickvals=[*range(len(captions))],
        ticktext=[wrap_text(text, 7, 4) for text in captions],
    )
    return figure.update_yaxes(
        autorange="reversed",
        tickvals=[*range(len(pictures))],
        ticktext=[wrap_text(text, 20, 2) for text in pictures],
    )


def plot_occurrences(
    occurrences: Mapping[str, Float[Tensor, "candidate"]], k: int = 10
) -> go.Figure:
    """For each model, the pictures sorted by how often they come up, hubs on the left.

    If no picture were favoured, each line would be level, at the dashed one: the mean, which is the
    same for all models.

    Args:
        occurrences: by the model's name, from `k_occurrence` of the same queries and pictures.
        k: the number of places that count, for the axis's title.

    Raises:
        ValueError: there is no model, or numbers of pictures, queries or places differ.
    """
    totals = {(len(counts), round(float(counts.sum()))) for counts in occurrences.values()}
    if len(totals) != 1:
        raise ValueError(
            "Expected counts of the same queries and pictures for each model, got "
            f"{len(totals)} different ones; count with one k."
        )
    first_counts = next(iter(occurrences.values()))
    # Points evenly spaced on the logarithmic axis; more would only make the file larger.
    most = len(first_counts)
    places = torch.logspace(0, math.log10(most), 60, dtype=torch.float64).round().clamp(max=most)
    places = places.long().unique()
    colors = arm_colors(occurrences)
    figure = new_figure(320, legend=True)
    for name, counts in occurrences.items():
        sorted_counts = counts.sort(descending=True).values[places - 1].tolist()
        figure.add_scatter(
            x=places.tolist(),
            y=[round(value, 1) for value in sorted_counts],
            mode="lines",
            line={"color": colors[name], "width": 2.5},
            name=f"{escape_text(name)}, skewness {skewness(counts):.2f}",
        )
    mean = round(float(first_counts.sum())) / len(first_counts)
    figure.add_hline(mean, line=DASHED, annotation_text=f"mean {mean:g}")
    figure.update_xaxes(type="log", dtick=1, title_text="pictures, the most frequent first")
    return figure.update_yaxes(rangemode="tozero", title_text=f"times among the top {k}")
