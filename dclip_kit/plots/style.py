"""How all figures look: colours, type, and text that others wrote made harmless."""

import html
import textwrap
from collections.abc import Iterable, Sequence

import plotly.graph_objects as go

Number = float | int

INK = "#222222"
GRID = "#E6E6E6"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
FONT_SIZE = 13
SMALL = 12

# Each reads as text on white (contrast of at least 4.5), and any two stay apart for people who do
# not see red, green or blue (CIE76 difference of at least 20 under Machado's simulations).
PALETTE = ("#6E6E6E", "#BF5700", "#0072B2", "#442200", "#220088", "#8800CC", "#004444")
ARM_COLORS = {"clip": PALETTE[0], "contrastive": PALETTE[1], "dclip": PALETTE[2]}


def arm_colors(names: Iterable[str]) -> dict[str, str]:
    """A colour for each arm: the three that are always there keep theirs in every figure."""
    spare = [color for color in PALETTE if color not in ARM_COLORS.values()]
    colors: dict[str, str] = {}
    for name in names:
        others = len(colors.keys() - ARM_COLORS.keys())
        colors[name] = ARM_COLORS.get(name, spare[others % len(spare)])
    return colors


def escape_text(text: str) -> str:
    """Text that plotly shows as it stands; it would take tags for markup and $…$ for formulas.

    Quotes stay: plotly knows no entity for them and no place where they matter.
    """
    return html.escape(" ".join(text.split()), quote=False).replace("$", "&#36;")


def wrap_text(text: str, width: int, max_lines: int = 3) -> str:
    """`escape_text` in lines of at most `width` characters, cut with … after `max_lines`."""
    words = " ".join(text.split())
    lines = textwrap.wrap(words, width, max_lines=max_lines, placeholder="…")
    return "<br>".join(escape_text(line) for line in lines)


def blank_figure(
    height: int, left: int = 8, right: int = 8, top: int = 8, bottom: int = 8
) -> go.Figure:
    """An empty figure of fixed height, as wide as its place; margins in pixels."""
    return go.Figure(
        layout={
            "template": "none",  # plotly's default one adds 7 KB to every figure
            "height": height,
            "margin": {"l": left, "r": right, "t": top, "b": bottom, "pad": 0},
            "font": {"family": FONT, "size": FONT_SIZE, "color": INK},
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "showlegend": False,
            "hovermode": "closest",
            "hoverlabel": {"bgcolor": "white", "font": {"color": INK, "size": SMALL}},
            "dragmode": False,
        }
    )


def axis_title(text: str) -> dict[str, object]:
    """An axis's title in the size of the other text; plotly's own is larger."""
    return {"text": text, "standoff": 6, "font": {"size": FONT_SIZE}}


HALO = {"bgcolor": "rgba(255, 255, 255, 0.75)"}  # of a label that a line may run through


def add_text(figure: go.Figure, text: str, x: Number, y: Number, **more: object) -> None:
    """Adds a text without an arrow; `text` must be escaped already."""
    figure.add_annotation(
        {"text": text, "x": x, "y": y, "showarrow": False, "font": {"size": SMALL}} | more
    )


def label_room(names: Iterable[str]) -> int:
    """Pixels of margin for names in small type, within reason."""
    return min(20 + 7 * max((len(name) for name in names), default=0), 160)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Moves values apart, as little as needed, until neighbours are `gap` apart: for labels."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    groups: list[tuple[float, int]] = []  # centre and size of labels that touch
    for index in order:
        groups.append((values[index], 1))
        while len(groups) > 1:
            (low, below), (high, above) = groups[-2:]
            if high - low >= gap * (below + above) / 2:
                break
            groups[-2:] = [((low * below + high * above) / (below + above), below + above)]
    places = [
        centre + gap * (place - (size - 1) / 2) for centre, size in groups for place in range(size)
    ]
    return [place for _, place in sorted(zip(order, places, strict=True))]
