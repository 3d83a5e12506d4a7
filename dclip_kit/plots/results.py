"""Bars of what was measured: recall of the arms, and the teacher's shortcut probe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import torch

from dclip_kit.evaluation.arms import ArmResult
from dclip_kit.evaluation.probe import ShortcutProbe
from dclip_kit.metrics import DirectionMetrics, Interval, paired_bootstrap
from dclip_kit.plots.panels import Span, add_axes, references
from dclip_kit.plots.style import (
    GRID,
    INK,
    PALETTE,
    SMALL,
    add_text,
    arm_colors,
    axis_title,
    blank_figure,
    escape_text,
    label_room,
)

_ROW, _HEADING = 24, 28  # pixels


@dataclass(frozen=True)
class _Bar:
    name: str
    color: str
    value: float
    interval: Interval | None = None


def plot_recall(
    results: Mapping[str, ArmResult], ceiling: float | None = None, resamples: int = 1000
) -> go.Figure:
    """Recall of each arm, both ways, with 95 % intervals of a bootstrap over images.

    The intervals are of each arm alone; a difference between arms has a narrower one
    (`paired_bootstrap`).

    Args:
        results: by the arm's name, all with the same k.
        ceiling: text→image Recall@1 that a perfect model could reach, drawn as a dashed line.
        resamples: of the bootstrap; 0 leaves the intervals out.

    Raises:
        ValueError: there is no result, or they report different k.
    """
    ks = {tuple(sorted(r.retrieval.text_to_image.recall_at)) for r in results.values()}
    if len(ks) != 1:
        raise ValueError(
            f"Expected results with one set of k, got {sorted(ks)}; evaluate all arms alike."
        )
    colors = arm_colors(results)

    def groups(direction: str) -> dict[str, list[_Bar]]:
        measured = {name: getattr(r.retrieval, direction) for name, r in results.items()}
        return {
            f"Recall@{k}": [
                _Bar(name, colors[name], found.recall_at[k], _interval(found, k, resamples))
                for name, found in measured.items()
            ]
            for k in next(iter(ks))
        }

    ways = {"text → image": groups("text_to_image"), "image → text": groups("image_to_text")}
    height = _panel_height(ways["text → image"])
    figure = blank_figure(height + 26 + 22, left=label_room(results), top=26, bottom=22)
    top = max(_end(bar) for groups in ways.values() for bars in groups.values() for bar in bars)
    limit = max(top, ceiling or 0)
    for (title, bars), x in zip(ways.items(), ((0, 0.48), (0.52, 1)), strict=True):
        axes = _add_groups(figure, bars, x, limit, named=x[0] == 0)
        add_text(
            figure,
            f"<b>{title}</b>, %",
            0,
            1,
            xref=axes["xaxis"],
            yref="paper",
            xanchor="left",
            yanchor="bottom",
        )
        if ceiling is not None and x[0] == 0:
            rows = _HEADING / _ROW, _HEADING / _ROW + len(results)
            line = {"color": INK, "width": 1.5, "dash": "dash"}
            figure.add_shape(
                type="line",
                x0=ceiling,
                x1=ceiling,
                y0=rows[0],
                y1=rows[1],
                line=line,
                **references(axes),
            )
            right = ceiling > 0.5
            add_text(
                figure,
                f"ceiling {100 * ceiling:.1f}",
                ceiling,
                rows[0],
                xanchor="right" if right else "left",
                yanchor="bottom",
                **references(axes),
            )
    return figure


def plot_probe(probes: Mapping[str, ShortcutProbe]) -> go.Figure:
    """The shortcut probe of each teacher: does it need the picture's own regions?

    Bars of one length mean that it reads the caption and does not look.

    Args:
        probes: by the teacher's name.

    Raises:
        ValueError: there is no probe.
    """
    if not probes:
        raise ValueError(
            "Expected the probe of at least one teacher, got none; see shortcut_probe."
        )
    groups = {
        escape_text(name): [
            _Bar("its own regions", PALETTE[2], probe.own),
            _Bar("another picture’s", PALETTE[1], probe.shuffled),
            _Bar("a blank picture’s", PALETTE[0], probe.blank),
        ]
        for name, probe in probes.items()
    }
    figure = blank_figure(_panel_height(groups) + 8 + 40, left=130, bottom=40)
    limit = max(bar.value for bars in groups.values() for bar in bars)
    _add_groups(figure, groups, (0, 1), limit, named=True)
    figure.update_xaxes(title=axis_title("Recall@1 of the caption, %"))
    return figure


def plot_shares(shares: Mapping[str, float], title: str) -> go.Figure:
    """A bar for each named share, largest possible 1.

    Args:
        shares: from 0 to 1, by name.
        title: of the axis, which counts in percent.

    Raises:
        ValueError: there is no share, or one is not from 0 to 1.
    """
    if not shares or not all(0 <= share <= 1 for share in shares.values()):
        raise ValueError(f"Expected shares from 0 to 1, got {dict(shares) or 'none'}.")
    groups = {"": [_Bar(name, PALETTE[2], share) for name, share in shares.items()]}
    figure = blank_figure(_panel_height(groups) + 40, left=label_room(shares) + 30, bottom=40)
    _add_groups(figure, groups, (0, 1), 1.0, named=True)
    figure.update_xaxes(title=axis_title(title))
    return figure


def _end(bar: _Bar) -> float:
    return bar.interval.high if bar.interval else bar.value


def _interval(found: DirectionMetrics, k: int, resamples: int) -> Interval | None:
    if resamples == 0:
        return None
    hits = found.hits(k).float()
    nothing = torch.zeros_like(hits)  # the mean itself is its difference to nothing
    return paired_bootstrap(nothing, hits, found.image_of_query, resamples=resamples)


def _panel_height(groups: Mapping[str, Sequence[_Bar]]) -> int:
    return sum(_HEADING + _ROW * len(bars) for bars in groups.values())


def _add_groups(
    figure: go.Figure, groups: Mapping[str, Sequence[_Bar]], x: Span, limit: float, named: bool
) -> dict[str, str]:
    """Groups of horizontal bars, a heading over each, on axes whose y counts rows of `_ROW`."""
    places: list[float] = []
    headings: list[float] = []
    y = 0.0
    for bars in groups.values():
        y += _HEADING / _ROW
        headings.append(y)
        places += [y + row + 0.5 for row in range(len(bars))]
        y += len(bars)
    every = [bar for bars in groups.values() for bar in bars]
    limit = max(limit, 0.01) * 1.25  # room for the numbers
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.25) if s >= min(limit, 1) / 5 or s == 0.25)
    percent = [n * step for n in range(round(1 / step) + 1) if n * step <= limit]
    axes = add_axes(
        figure,
        x,
        (0, 1),
        {"range": [0, limit], "gridcolor": GRID, "tickvals": percent}
        | {"ticktext": [f"{100 * p:.0f}" for p in percent], "tickfont": {"size": SMALL}},
        {"range": [y + 0.2, 0], "showgrid": False, "ticks": "", "showticklabels": named}
        | {"tickvals": places, "ticktext": [escape_text(bar.name) for bar in every]}
        | {"ticklabelstandoff": 5},
    )
    ends = [bar.interval or Interval(bar.value, bar.value, bar.value) for bar in every]
    figure.add_bar(
        x=[bar.value for bar in every],
        y=places,
        orientation="h",
        width=0.82,
        marker={"color": [bar.color for bar in every]},
        error_x={
            "array": [max(end.high - bar.value, 0) for bar, end in zip(every, ends, strict=True)],
            "arrayminus": [
                max(bar.value - end.low, 0) for bar, end in zip(every, ends, strict=True)
            ],
            "color": INK,
            "thickness": 1,
            "width": 3,
            "visible": any(bar.interval for bar in every),
        },
        hoverinfo="text",
        hovertext=[
            f"{escape_text(bar.name)} {100 * bar.value:.1f} %"
            + (f"<br>95 %: {100 * end.low:.1f} to {100 * end.high:.1f} %" if bar.interval else "")
            for bar, end in zip(every, ends, strict=True)
        ],
        **axes,
    )
    figure.add_scatter(
        x=[end.high for end in ends],
        y=places,
        mode="text",
        text=[f" {100 * bar.value:.1f}" for bar in every],
        textposition="middle right",
        textfont={"size": SMALL},
        cliponaxis=False,
        hoverinfo="skip",
        **axes,
    )
    for heading, where in zip(groups, headings, strict=True):
        add_text(figure, heading, 0, where, xanchor="left", yanchor="bottom", **references(axes))
    return axes
