"""Where a teacher looks, and what padding does to it."""

import plotly.graph_objects as go
from PIL import Image

from dclip_kit.evaluation.inspection import CaptionedRegions, MaskingEffect
from dclip_kit.models.teacher import TeacherOutput
from dclip_kit.plots.panels import (
    add_axes,
    add_boxes,
    add_picture,
    label_colors,
    references,
    require_size,
)
from dclip_kit.plots.style import (
    GRID,
    PALETTE,
    SMALL,
    add_text,
    axis_title,
    blank_figure,
    label_room,
    spread,
    wrap_text,
)

_SCALE = [[0, "#FFFFFF"], [1, "#0072B2"]]  # white to blue
_PICTURE, _ROW, _HEADING, _TOKENS = 230, 24, 30, 56  # pixels


def plot_attention(
    picture: Image.Image, captioned: CaptionedRegions, output: TeacherOutput
) -> go.Figure:
    """Attention both ways: a row a region, a column a token, the more the darker.

    Above, each region spreads its attention over the tokens, so that rows sum to 100 %; below,
    each token spreads its own over the regions, so that columns do.

    Args:
        picture: with the regions.
        captioned: what the teacher was given.
        output: what it made of it, from `attend`.

    Raises:
        ValueError: the teacher reads no caption, the output is of other regions or tokens, or the
            picture of another size.
    """
    require_size(picture, captioned.regions)
    seen, told = output.region_to_token, output.token_to_region
    if seen is None or told is None:
        raise ValueError(
            "Expected the output of a teacher that reads captions, got a caption-free one's: its "
            "regions attend to regions alone."
        )
    expected = (1, len(captioned.regions), len(captioned.tokens))
    if tuple(seen.shape) != expected:
        raise ValueError(
            f"Expected attention of shape {expected}, got {tuple(seen.shape)}; attend to these "
            "very regions and tokens, with `attend`."
        )
    regions = captioned.regions
    panel = _ROW * len(regions)
    height = _PICTURE + 2 * (panel + _HEADING) + _TOKENS
    names = [f"{n} {wrap_text(label, 14, 1)}" for n, label in enumerate(regions.label, start=1)]
    left = label_room(names)
    figure = blank_figure(height + 16, left=left)
    colors = label_colors(regions.label)
    axes = add_picture(
        figure,
        picture,
        (0, 1),
        ((height - _PICTURE + 22) / height, 1),
        wrap_text(f"“{captioned.caption}”", 60, 1),
    )
    numbers = [str(number + 1) for number in range(len(regions))]
    add_boxes(figure, regions, axes, numbers, colors)
    tokens = [wrap_text(token, 12, 1) for token in captioned.tokens]
    headings = (
        "<b>regions → tokens</b>: each row sums to 100 %",
        "<b>tokens → regions</b>: each column sums to 100 %",
    )
    top = height - _PICTURE
    for heading, weights, last in zip(headings, (seen[0], told[0].T), (False, True), strict=True):
        top -= _HEADING
        axes = add_axes(
            figure,
            (0, 1),
            ((top - panel) / height, top / height),
            {"tickvals": list(range(len(tokens))), "ticktext": tokens, "ticks": ""}
            | {"showticklabels": last, "tickangle": -45, "showgrid": False},
            {"tickvals": list(range(len(names))), "ticktext": names, "ticks": ""}
            | {"range": [len(names) - 0.5, -0.5], "showgrid": False, "tickfont": {"size": SMALL}},
        )
        shares = weights.detach().cpu()
        figure.add_heatmap(
            z=[[round(value, 4) for value in row] for row in shares.tolist()],
            zmin=0,
            zmax=max(0.5, shares.max().item()),  # paler where attention is spread thin
            colorscale=_SCALE,
            showscale=False,
            xgap=1,
            ygap=1,
            text=[[f"{100 * value:.0f}" for value in row] for row in shares.tolist()],
            texttemplate="%{text}",
            textfont={"size": 11},
            hoverinfo="skip",
            **axes,
        )
        place = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
        add_text(figure, heading, 0, top / height, xshift=8 - left, yshift=4, **place)
        top -= panel
    return figure


def plot_masking(effect: MaskingEffect) -> go.Figure:
    """How far a pair's embedding in a batch is from its own, alone, by how much of it is padding.

    One point a pair: 1 means that its companions in the batch change nothing.
    """
    points = {
        "padding masked": (effect.masked, PALETTE[2]),
        "padding attended to": (effect.unmasked, PALETTE[1]),
    }
    figure = blank_figure(320, left=64, right=label_room(points), top=10, bottom=48)
    low = min(values.min().item() for values, _ in points.values())
    low = min(low, 0.9) - 0.05
    most = effect.padding.max().item()
    axes = add_axes(
        figure,
        (0, 1),
        (0, 1),
        {"range": [-0.02, most + 0.02], "tickformat": ".0%", "gridcolor": GRID}
        | {
            "tickfont": {"size": SMALL},
            "title": axis_title("padding in the pair’s row of the batch"),
        },
        {"range": [low, 1.03], "gridcolor": GRID, "tickfont": {"size": SMALL}}
        | {"title": axis_title("cosine with its embedding alone")},
    )
    for values, color in points.values():
        figure.add_scatter(
            x=[round(value, 4) for value in effect.padding.tolist()],
            y=[round(value, 4) for value in values.tolist()],
            mode="markers",
            marker={"color": color, "size": 6, "opacity": 0.6},
            hoverinfo="skip",
            **axes,
        )
    means = [values.mean().item() for values, _ in points.values()]
    gap = 16 / 262 * (1.03 - low)
    for (name, (_, color)), height in zip(points.items(), spread(means, gap), strict=True):
        add_text(
            figure,
            name,
            1,
            height,
            xref="paper",
            yref=references(axes)["yref"],
            xanchor="left",
            xshift=6,
            font={"color": color, "size": SMALL},
        )
    return figure
