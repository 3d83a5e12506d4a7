"""How all figures look: colours, type, and text that others wrote made harmless."""

import html
import itertools
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dclip_kit.models.regions import BOX_COLORS

Number = float | int

INK = "#222222"
RING = "#00A35C"  # around right answers
SMALL = 12
PERCENT = {"tickformat": ".0%", "hoverformat": ".1%"}  # an axis of shares
DASHED = {"color": INK, "width": 1.5, "dash": "dash"}

PALETTE = ("#6E6E6E", *BOX_COLORS)
ARM_COLORS = {
    "clip": PALETTE[0],
    "contrastive_rehearsal": PALETTE[1],
    "region_taught": PALETTE[2],
    "dclip": PALETTE[3],
}

_AXIS = {
    "automargin": True,
    "fixedrange": True,
    "zeroline": False,
    "gridcolor": "#E6E6E6",
    "ticks": "",
    "tickfont": {"size": SMALL},
    "title": {"font": {"size": SMALL}, "standoff": 6},
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, 'Segoe UI', Roboto, Arial, sans-serif", "color": INK},
        "colorway": PALETTE,
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top"},
        "title": {"font": {"size": SMALL}},
        "hovermode": "closest",
        "dragmode": False,
    },
    data={
        "bar": [{"insidetextanchor": "start", "textangle": 0, "cliponaxis": False}],
        "scatter": [{"cliponaxis": False, "textfont": {"size": SMALL}}],
    },
)


def new_figure(
    height: int, titles: Sequence[str] = ("",), legend: bool = False, **grid: Any
) -> go.Figure:
    """Makes an empty figure with a grid of axes, as wide as its place.

    Args:
        height: of the grid in pixels, without the titles and the legend above it.
        titles: of the cells, escaped.
        legend: whether there is one, above everything else.
        **grid: further settings of plotly's `make_subplots`, such as rows and cols.
    """
    figure = make_subplots(subplot_titles=titles, **grid)
    lines = max(title.count("<br>") + 1 if title else 0 for title in titles)
    top = 8 + 17 * lines + 26 * legend
    figure.update_annotations(font_size=SMALL)
    margin = {"l": 8, "r": 12, "t": top, "b": 8}
    return figure.update_layout(
        template=TEMPLATE, height=height + top, margin=margin, showlegend=legend
    )


def legend_entry(figure: go.Figure, name: str) -> dict[str, object]:
    """What names a trace, listed once in the legend however many cells have one of that name."""
    text = escape_text(name)
    first = all(trace.name != text for trace in figure.data)
    return {"name": text, "legendgroup": text, "showlegend": first}


def arm_colors(names: Iterable[str]) -> dict[str, str]:
    """Chooses a colour for each arm: the ones that come with the kit keep theirs."""
    spare = itertools.cycle(color for color in PALETTE if color not in ARM_COLORS.values())
    return {name: ARM_COLORS.get(name) or next(spare) for name in dict.fromkeys(names)}


def escape_text(text: str) -> str:
    """Makes text that plotly shows as it stands.

    Plotly would take tags for markup and $…$ for formulas. Quotes stay: it knows no entity for them
    and no place where they matter.
    """
    return html.escape(" ".join(text.split()), quote=False).replace("$", "&#36;")


def wrap_text(text: str, width: int, max_lines: int = 3) -> str:
    """`escape_text` in lines of at most `width` characters, cut with … after `max_lines`."""
    words = " ".join(text.split())
    lines = textwrap.wrap(words, width, max_lines=max_lines, placeholder="…")
    return "<br>".join(escape_text(line) for line in lines)
