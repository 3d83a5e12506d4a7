"""Regions: what a detector finds, what CLIP gets of them, their weights and their attention."""

from collections.abc import Mapping, Sequence
from math import ceil, sqrt
from typing import Any

import plotly.graph_objects as go
from jaxtyping import Float
from PIL import Image
from plotly.colors import sample_colorscale
from torch import Tensor

from dclip_kit.config import RegionSettings
from dclip_kit.data.pictures import upright
from dclip_kit.evaluation.inspection import CaptionedRegions, MaskingEffect
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.regions import Regions, crop_regions, draw_boxes, label_colors
from dclip_kit.models.teacher import TeacherOutput
from dclip_kit.plots.results import make_bars
from dclip_kit.plots.style import (
    INK,
    PALE_BLUES,
    PALETTE,
    PERCENT,
    add_picture,
    add_tag,
    escape_text,
    new_figure,
    tile_pictures,
    wrap_text,
)

_BLUES = [[0, "#7FA8C9"], [1, "#00335C"]]  # light to dark, all legible on white
_ROW = 30  # pixels
_MOST_CROPS = 9  # shown per picture; the caption says how many


def plot_regions(
    pictures: Sequence[Image.Image],
    regions: Sequence[Regions],
    captions: Sequence[str] | None = None,
    columns: int = 4,
) -> go.Figure:
    """Pictures with their regions: label and confidence on each box.

    Args:
        pictures: at least one.
        regions: of each picture, in its pixels.
        captions: one for each picture, shown as plain text.
        columns: the number of pictures in a row.

    Raises:
        ValueError: the numbers of pictures, regions and captions differ, or regions are of another
            picture's size.
    """
    columns = min(columns, len(pictures))
    rows = ceil(len(pictures) / columns)
    below = 60 if captions else 0
    longer_side = 600 // max(columns, 2)  # pixels of a picture's longer side
    height = rows * (longer_side + below)
    figure = new_figure(
        height,
        rows=rows,
        cols=columns,
        horizontal_spacing=0.02,
        vertical_spacing=(below + 4) / height,
    )
    entries = zip(pictures, regions, captions or [""] * len(pictures), strict=True)
    for index, (picture, picture_regions, caption) in enumerate(entries):
        drawn = draw_boxes(picture, picture_regions, side=3 * longer_side // 2, font_size=14)
        row, column = divmod(index, columns)
        text = wrap_text(caption, 80 // columns)
        add_picture(figure, drawn, text, row=row + 1, col=column + 1)
    return figure


def plot_student_view(
    picture: Image.Image,
    regions: Regions,
    clip: ClipBundle,
    margin: float = RegionSettings.margin,
) -> go.Figure:
    """DCLIP's premise: the student's input from a picture, and its input from each region.

    From the left: the picture; CLIP's input from it, magnified without smoothing; CLIP's inputs
    from crops of its regions, each with as many pixels as the whole picture's.

    Args:
        picture: as stored.
        regions: of this picture.
        clip: the model whose preprocessing is shown.
        margin: around a crop, as a share of its side.

    Raises:
        ValueError: the regions are of another picture's size.
    """
    numbers = [str(number) for number in range(1, len(regions) + 1)]
    colors = label_colors(regions.label)
    crops = crop_regions(picture, regions, margin)[:_MOST_CROPS]
    # As CLIP's preprocessing makes them, before normalisation.
    pixels = [
        clip.to_pixels(image).permute(1, 2, 0).numpy() for image in (upright(picture), *crops)
    ]
    whole, *parts = map(Image.fromarray, pixels)
    size = f"{whole.width} × {whole.height}"
    share = "" if len(crops) == len(regions) else f" ({len(crops)} of {len(regions)} shown)"
    captions = (
        f"The picture: {picture.width} × {picture.height} pixels",
        f"All that CLIP gets of it: {size}",
        f"What CLIP gets of each region{share}: {size} again",
    )
    columns = ceil(sqrt(len(crops)))
    side = 300 // columns
    sheets = (
        draw_boxes(picture, regions, numbers, side=300, font_size=18),
        whole.resize((300, 300), Image.Resampling.NEAREST),
        tile_pictures(parts, columns, side, smooth=False),
    )
    figure = new_figure(260, cols=3, horizontal_spacing=0.02)
    for column, (sheet, caption) in enumerate(zip(sheets, captions, strict=True), start=1):
        add_picture(figure, sheet, wrap_text(caption, 26, 4), col=column)
    for index in range(len(crops)):
        label = wrap_text(regions.label[index], 26 // columns, 1) if columns < 3 else ""
        row, column = divmod(index, columns)
        tag = f"{numbers[index]} {label}".strip()
        add_tag(figure, tag, column * side + 4, row * side + 4, colors[index], col=3)
    return figure


def plot_patches(
    picture: Image.Image,
    regions: Regions,
    shares: Float[Tensor, "_row _column"],
    clip: ClipBundle,
) -> go.Figure:
    """A picture's regions, and beside them where a vision transformer looks.

    From the left: the picture with its regions; CLIP's input from it, magnified: the more
    attention a patch gets, the brighter it is.

    Args:
        picture: as stored.
        regions: of this picture.
        shares: of its patches, from `map_attention`.
        clip: the model whose attention is shown.

    Raises:
        ValueError: the regions are of another picture's size.
    """
    seen = Image.fromarray(clip.to_pixels(upright(picture)).permute(1, 2, 0).numpy())
    seen = seen.resize((300, 300), Image.Resampling.NEAREST)
    light = (255 * shares / shares.max().clamp(min=1e-12)).round().byte()
    mask = Image.fromarray(light.numpy()).resize(seen.size, Image.Resampling.NEAREST)
    lit = Image.composite(seen, seen.point(lambda value: value * 0.25), mask)
    figure = new_figure(260, cols=2, horizontal_spacing=0.02)
    add_picture(figure, draw_boxes(picture, regions, side=300, font_size=18), "its regions")
    many = f"its {shares.numel()} patches, the brightest with {shares.max():.0%} of the attention"
    add_picture(figure, lit, wrap_text(many, 40), col=2)
    return figure


def plot_average_precision(validation: Mapping[str, Any]) -> go.Figure:
    """Average precision of each category at an overlap of one half, best first, and their mean.

    Args:
        validation: from `assets/make/validate_detector.py`: "map50" and "map50_by_category".
    """
    best_first = sorted(validation["map50_by_category"].items(), key=lambda entry: -entry[1])
    names, shares = zip(("mean of all", validation["map50"]), *best_first, strict=True)
    figure = new_figure(22 * len(names) + 50)
    figure.add_trace(make_bars([*map(escape_text, names)], shares, PALETTE[2]))
    figure.update_traces(marker_color=[PALETTE[1], *[PALETTE[2]] * len(best_first)])
    figure.update_layout(margin_r=44)  # for the longest bar's number
    figure.update_yaxes(autorange="reversed")
    title = "average precision at half overlap (AP50)"
    return figure.update_xaxes(title_text=title, range=[0, 1], **PERCENT)


def plot_region_weights(
    picture: Image.Image,
    captioned: CaptionedRegions,
    weight: Float[Tensor, "_region"] | None = None,
    formula: str = "area × confidence × similarity",
) -> go.Figure:
    """Each region's weight for a caption: area × confidence × similarity, scaled to sum to 1.

    Regions are numbered by falling weight; a darker box has a higher weight.

    Args:
        picture: with the regions.
        captioned: the regions beside the caption, from `read_caption`.
        weight: of the regions; left out, DCLIP's own.
        formula: of the weights, shown as plain text below them.

    Raises:
        ValueError: the picture's size is not the regions'.
    """
    regions, weight = captioned.regions, captioned.weight if weight is None else weight
    quantities = {
        "area": regions.area,
        "confidence": regions.confidence,
        "similarity": captioned.similarity,
        "weight": weight,
    }
    order = weight.argsort(descending=True, stable=True).tolist()
    numbers = [str(order.index(region) + 1) for region in range(len(regions))]
    shares = (weight / weight.max().clamp(min=1e-12)).clamp(0, 1).tolist()
    colors = sample_colorscale(_BLUES, shares)
    figure = new_figure(
        max(_ROW * len(regions), 200) + 40,
        ["", *quantities],
        cols=6,
        specs=[[{}, None, {}, {}, {}, {}]],  # the second is space for the regions' names
        column_widths=[5, 2, 2, 2, 2, 2],
        horizontal_spacing=0.01,
    )
    drawn = draw_boxes(picture, regions, numbers, colors, 300, font_size=18)
    add_picture(figure, drawn, wrap_text(f"“{captioned.caption}”", 28))
    for column, values in enumerate(quantities.values(), start=3):
        _add_bars(figure, column, regions, order, values, float(values.max()))
    figure.update_traces(marker_color=[colors[region] for region in order], col=6)
    figure.update_yaxes(showticklabels=True, col=3)
    title = {
        "text": f"weight = {wrap_text(formula, 60)}, scaled to sum to 1",
        **{"x": 1, "xanchor": "right", "y": 0, "yanchor": "bottom", "pad": {"b": 8, "r": 12}},
    }
    return figure.update_layout(title=title, margin_b=34)


def _number_labels(regions: Regions, order: Sequence[int]) -> list[str]:
    """The regions' labels in this order, numbered."""
    return [f"{n} {wrap_text(regions.label[i], 12, 2)}" for n, i in enumerate(order, start=1)]


def _add_bars(
    figure: go.Figure,
    column: int,
    regions: Regions,
    order: Sequence[int],
    values: Float[Tensor, "_region"],
    limit: float,
) -> None:
    """A labelled bar for each region; a bar of length `limit` leaves room for its number."""
    bars = values[list(order)].tolist()
    figure.add_bar(
        x=bars,
        y=_number_labels(regions, order),
        orientation="h",
        marker_color=PALETTE[2],
        text=[f"{value:.2f}" for value in bars],
        textposition="outside",
        row=1,
        col=column,
    )
    figure.update_xaxes(visible=False, range=[0, 2 * max(limit, 1e-9)], col=column)
    figure.update_yaxes(autorange="reversed", showticklabels=False, showgrid=False, col=column)


def plot_attention(
    picture: Image.Image, captioned: CaptionedRegions, output: TeacherOutput
) -> go.Figure:
    """Attention both ways: a row per region, a column per token, darker for more attention.

    Regions are numbered by falling weight, as in `plot_region_weights`. In the upper panel, each
    region spreads its attention over the tokens, so that rows sum to 100 %; in the lower one, each
    token spreads its attention over the regions, so that columns do.

    Args:
        picture: with the regions.
        captioned: the teacher's input.
        output: the teacher's output, from `attend`.

    Raises:
        ValueError: the output is for other regions or tokens, or the picture's size is not the
            regions'.
    """
    region_attention, token_attention = output.region_to_token, output.token_to_region
    regions = captioned.regions
    shape = (1, len(regions), len(captioned.tokens))
    if region_attention.shape != shape:
        raise ValueError(
            f"Expected attention of shape {shape}, got {tuple(region_attention.shape)}; attend "
            "to these regions and tokens, with `attend`."
        )
    order = captioned.weight.argsort(descending=True, stable=True).tolist()
    numbers = [str(order.index(region) + 1) for region in range(len(regions))]
    drawn = draw_boxes(picture, regions, numbers, side=400, font_size=18)
    panel = _ROW * len(regions)
    height = 220 + 2 * panel + 180
    figure = new_figure(
        height,
        [
            "",
            "<b>regions → tokens</b>: each row sums to 100 %",
            "<b>tokens → regions</b>: each column sums to 100 %",
        ],
        rows=3,
        row_heights=[220, panel, panel],
        vertical_spacing=56 / height,
    )
    add_picture(figure, drawn, wrap_text(f"“{captioned.caption}”", 60))
    for row, weights in ((2, region_attention[0]), (3, token_attention[0].T)):
        shares = weights.detach().cpu()[order].tolist()
        figure.add_heatmap(
            z=[[round(value, 4) for value in line] for line in shares],
            y=_number_labels(regions, order),
            zmin=0,
            zmax=max(0.5, *map(max, shares)),  # paler where attention is spread out
            colorscale=PALE_BLUES,
            showscale=False,
            xgap=1,
            ygap=1,
            text=[[f"{100 * value:.0f}" for value in line] for line in shares],
            texttemplate="%{text}",
            textfont={"size": 13, "color": INK},
            hoverinfo="skip",
            row=row,
            col=1,
        )
        figure.update_yaxes(autorange="reversed", showgrid=False, row=row)
        figure.update_xaxes(showticklabels=False, showgrid=False, row=row)
    return figure.update_xaxes(
        showticklabels=True,
        tickvals=list(range(len(captioned.tokens))),
        ticktext=[wrap_text(token, 12, 1) for token in captioned.tokens],
        tickangle=-45,
        row=3,
    )


def plot_masking(effect: MaskingEffect) -> go.Figure:
    """Cosine of each pair's embeddings in a batch and alone, against its share of padding.

    One point per pair: at 1, the other pairs of the batch change nothing.
    """
    points = {
        "padding masked": (effect.masked, PALETTE[2]),
        "padding attended to": (effect.unmasked, PALETTE[1]),
    }
    figure = new_figure(300, legend=True)
    for name, (values, color) in points.items():
        figure.add_scatter(
            x=[round(value, 4) for value in effect.padding.tolist()],
            y=[round(value, 4) for value in values.tolist()],
            mode="markers",
            marker={"color": color, "size": 6, "opacity": 0.6},
            name=name,
        )
    figure.update_yaxes(title_text="cosine with its embedding alone")
    return figure.update_xaxes(title_text="padding in the pair’s row of the batch", **PERCENT)
