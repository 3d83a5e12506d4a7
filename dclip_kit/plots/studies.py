"""Studies: each arm's path between search and memory, its gains, and what these grow with."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from dclip_kit.evaluation.evaluate import WAYS
from dclip_kit.evaluation.study import RETENTION
from dclip_kit.plots.style import (
    DASHED,
    PERCENT,
    arm_colors,
    escape_text,
    legend_entry,
    new_figure,
)


def plot_frontiers(
    study: Mapping[str, Any], way: str = "text_to_image", names: Sequence[str] = ()
) -> go.Figure:
    """What each arm gains over the untouched CLIP against what it retains, as its weights mix in.

    A line runs from the untouched CLIP (at the right, no gain) to the arm's own weights. Where it
    falls to the retention at which arms are compared, a point has its 95 % interval.

    Args:
        study: as `summarise` made it.
        way: "text_to_image" or "image_to_text".
        names: the arms to draw; left out, all.

    Raises:
        ValueError: an arm is unknown.
    """
    arms = _choose(study, names)
    colors = arm_colors(arms)
    base = study["arms"]["clip"]["at_95_5"][way]["recall_at_1"]
    figure = new_figure(400, legend=True)
    for name, arm in arms.items():
        points = arm["frontier"]
        look = {"line_color": colors[name], **legend_entry(figure, name)}
        figure.add_scatter(
            x=[point["retention"] for point in points],
            y=[point[way] / base - 1 for point in points],
            mode="lines",
            hovertext=[f"{escape_text(name)}, α = {point['alpha']:g}" for point in points],
            **look,
        )
        gain = arm["at_95_5"][way]["vs"].get("clip")
        if gain is None:
            continue
        low, high = gain["ci95"]
        y = gain["relative"]
        spread = {"array": [high - y], "arrayminus": [y - low], "symmetric": False}
        figure.add_scatter(
            x=[max(RETENTION, points[-1]["retention"])],
            y=[y],
            error_y=spread | {"color": colors[name]},
            mode="markers",
            marker={"size": 9, "color": colors[name]},
            **legend_entry(figure, name),
        )
    figure.add_vline(RETENTION, line=DASHED, layer="below")
    figure.update_yaxes(tickformat="+.0%", title_text="gain over clip, Recall@1")
    title = f"zero-shot accuracy kept (dashed: {RETENTION:.1%}, where arms are compared)"
    return figure.update_xaxes(tickformat=".0%", title_text=title)


def plot_versus(study: Mapping[str, Any], rival: str, names: Sequence[str] = ()) -> go.Figure:
    """What each arm gains over one of them, both ways, with 95 % intervals.

    A hollow point's interval includes zero: the two are not known to differ.

    Args:
        study: as `summarise` made it.
        rival: the arm that the others are compared with.
        names: the arms to draw; left out, all.

    Raises:
        ValueError: an arm is unknown.
    """
    _choose(study, [rival])
    arms = {name: arm for name, arm in _choose(study, names).items() if name != rival}
    colors = arm_colors(arms)
    titles = [way.replace("_to_", " → ") for way in WAYS]
    figure = new_figure(
        26 * len(arms) + 40, titles, cols=2, shared_yaxes=True, horizontal_spacing=0.05
    )
    for column, way in enumerate(WAYS, start=1):
        for name, arm in arms.items():
            gain = arm["at_95_5"][way]["vs"][rival]
            (low, high), x = gain["ci95"], gain["relative"]
            spread = {"array": [high - x], "arrayminus": [x - low], "symmetric": False}
            known = low > 0 or high < 0
            figure.add_scatter(
                x=[x],
                y=[escape_text(name)],
                error_x=spread | {"color": colors[name]},
                mode="markers",
                marker={
                    "size": 9,
                    "color": colors[name] if known else "white",
                    "line": {"color": colors[name], "width": 2},
                },
                name=escape_text(name),
                row=1,
                col=column,
            )
        figure.add_vline(0, line=DASHED, row=1, col=column)
    figure.update_yaxes(autorange="reversed")
    unit = f"gain over {escape_text(rival)}, Recall@1"
    return figure.update_xaxes(title_text=unit, **PERCENT | {"tickformat": "+.0%"})


def plot_growth(
    study: Mapping[str, Any],
    amounts: Mapping[str, Mapping[str, int | float]],
    title: str,
    way: str = "text_to_image",
) -> go.Figure:
    """What arms gain over the untouched CLIP, with 95 % intervals, against what they were given.

    Args:
        study: as `summarise` made it.
        amounts: of whatever the arms differ in: for each line, the amount of each of its arms.
        title: of the axis of amounts.
        way: "text_to_image" or "image_to_text".

    Raises:
        ValueError: an arm is unknown.
    """
    colors = arm_colors(amounts)
    figure = new_figure(320, legend=True)
    for line, given in amounts.items():
        arms = _choose(study, list(given))
        gains = [arm["at_95_5"][way]["vs"]["clip"] for arm in arms.values()]
        spread = {
            "array": [gain["ci95"][1] - gain["relative"] for gain in gains],
            "arrayminus": [gain["relative"] - gain["ci95"][0] for gain in gains],
            "symmetric": False,
        }
        figure.add_scatter(
            x=list(given.values()),
            y=[gain["relative"] for gain in gains],
            error_y=spread | {"color": colors[line]},
            mode="lines+markers",
            marker_size=9,
            line_color=colors[line],
            **legend_entry(figure, line),
        )
    figure.update_yaxes(
        tickformat="+.0%", rangemode="tozero", title_text="gain over clip, Recall@1"
    )
    return figure.update_xaxes(title_text=escape_text(title))


def _choose(study: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    arms = study["arms"]
    if unknown := [name for name in names if name not in arms]:
        raise ValueError(
            f"Expected arms out of {', '.join(arms)}, got {unknown[0]!r}; name others."
        )
    return {name: arms[name] for name in names or arms}
