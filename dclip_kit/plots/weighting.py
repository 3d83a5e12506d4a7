"""DCLIP's region weights, taken apart; where a teacher looks, and what padding does to it."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from jaxtyping import Float
from PIL import Image
from plotly.colors import sample_colorscale
from torch import Tensor

from dclip_kit.evaluation.inspection import CaptionedRegions, MaskingEffect
from dclip_kit.models.regions import Regions, draw_boxes
from dclip_kit.models.teacher import TeacherOutput
from dclip_kit.plots.panels import add_picture
from dclip_kit.plots.style import PALETTE, PERCENT, new_figure, wrap_text

_BLUES = [[0, "#7FA8C9"], [1, "#00335C"]]  # light to dark, both legible on white
_ROW = 30  # pixels


def plot_region_weights(
    picture: Image.Image,
    regions: Regions,
    area: Float[Tensor, "_region"],
    confidence: Float[Tensor, "_region"],
    similarity: Float[Tensor, "_region"],
    weight: Float[Tensor, "_region"],
    caption: str,
    formula: str = "area × confidence × similarity",
) -> go.Figure:
    """What each region counts for a caption: area × confidence × similarity, made to sum to 1.

    Regions are numbered by falling weight; the darker a box, the more it weighs.

    Args:
        picture: with the regions.
        regions: of this picture.
        area: share of the picture (`Regions.area`).
        confidence: the detector's.
        similarity: from `region_similarity`.
        weight: from `region_weights`.
        caption: shown as plain text.
        formula: of the weights, shown as plain text below them.

    Raises:
        ValueError: a quantity has not one finite number a region, or the picture another size.
    """
    quantities = {"area": area, "confidence": confidence, "similarity": similarity}
    quantities["weight"] = weight
    _require_numbers(regions, quantities)
    order = weight.argsort(descending=True, stable=True).tolist()
    numbers = [str(order.index(region) + 1) for region in range(len(regions))]
    shares = (weight / weight.max().clamp(min=1e-12)).clamp(0, 1).tolist()
    colors = sample_colorscale(_BLUES, shares)
    height = max(_ROW * len(regions), 200) + 40
    figure = new_figure(
        height,
        ["", *quantities],
        cols=6,
        specs=[[{}, None, {}, {}, {}, {}]],  # the second has room for the regions' names
        column_widths=[5, 2, 2, 2, 2, 2],
        horizontal_spacing=0.01,
    )
    drawn = draw_boxes(picture, regions, numbers, colors, 300, font_size=18)
    add_picture(figure, drawn, wrap_text(f"“{caption}”", 28))
    for column, values in enumerate(quantities.values(), start=3):
        _add_bars(figure, column, regions, order, values, float(values.max()))
    figure.update_traces(marker_color=[colors[region] for region in order], col=6)
    figure.update_yaxes(showticklabels=True, col=3)
    text = f"weight = {wrap_text(formula, 60)}, scaled to sum to 1"
    place = {"x": 1, "xanchor": "right", "y": 0, "yanchor": "bottom", "pad": {"b": 8, "r": 12}}
    return figure.update_layout(title=place | {"text": text}, margin_b=34)


def plot_weightings(
    regions: Regions, weightings: Mapping[str, Float[Tensor, "_region"]]
) -> go.Figure:
    """What each region counts under several weightings side by side, a column of bars for each.

    Regions stand in one order, by falling weight in the first weighting, and keep its numbers.

    Args:
        regions: of one picture.
        weightings: by name, each with a weight for every region.

    Raises:
        ValueError: there is no weighting, or one has not one finite number a region.
    """
    if not weightings:
        raise ValueError("Expected at least one weighting, got none; see reweight_regions.")
    _require_numbers(regions, weightings)
    order = next(iter(weightings.values())).argsort(descending=True, stable=True).tolist()
    titles = [wrap_text(name, max(48 // len(weightings), 10)) for name in weightings]
    figure = new_figure(
        _ROW * len(regions) + 10, titles, cols=len(weightings), horizontal_spacing=0.02
    )
    limit = max(float(values.max()) for values in weightings.values())
    for column, values in enumerate(weightings.values(), start=1):
        _add_bars(figure, column, regions, order, values, limit)
    return figure.update_yaxes(showticklabels=True, col=1)


def _require_numbers(regions: Regions, quantities: Mapping[str, Tensor]) -> None:
    for name, values in quantities.items():
        if len(values) != len(regions) or not values.isfinite().all():
            raise ValueError(
                f"Expected a finite number for each of {len(regions)} regions, got "
                f"{len(values)} for {name}; leave padding out."
            )


def _number_labels(regions: Regions, order: Sequence[int]) -> list[str]:
    """The regions' words in this order, numbered."""
    return [f"{n} {wrap_text(regions.label[i], 12, 1)}" for n, i in enumerate(order, start=1)]


def _add_bars(
    figure: go.Figure,
    column: int,
    regions: Regions,
    order: Sequence[int],
    values: Float[Tensor, "_region"],
    limit: float,
) -> None:
    """A number for each region, on a bar; one of the length `limit` leaves room for its number."""
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
    seen, heard = output.region_to_token, output.token_to_region
    if seen is None or heard is None:
        raise ValueError(
            "Expected the output of a teacher that reads captions, got a caption-free one's: its "
            "regions attend to regions alone."
        )
    regions = captioned.regions
    expected = (1, len(regions), len(captioned.tokens))
    if tuple(seen.shape) != expected:
        raise ValueError(
            f"Expected attention of shape {expected}, got {tuple(seen.shape)}; attend to these "
            "very regions and tokens, with `attend`."
        )
    numbers = [str(number) for number in range(1, len(regions) + 1)]
    drawn = draw_boxes(picture, regions, numbers, side=400, font_size=18)
    panel = 24 * len(regions)
    height = 220 + 2 * panel + 180
    titles = [
        "",
        "<b>regions → tokens</b>: each row sums to 100 %",
        "<b>tokens → regions</b>: each column sums to 100 %",
    ]
    figure = new_figure(
        height,
        titles,
        rows=3,
        row_heights=[220, panel, panel],
        vertical_spacing=56 / height,
    )
    add_picture(figure, drawn, wrap_text(f"“{captioned.caption}”", 60))
    for row, weights in ((2, seen[0]), (3, heard[0].T)):
        shares = weights.detach().cpu()
        figure.add_heatmap(
            z=[[round(value, 4) for value in line] for line in shares.tolist()],
            y=_number_labels(regions, range(len(regions))),
            zmin=0,
            zmax=max(0.5, shares.max().item()),  # paler where attention is spread thin
            colorscale=[[0, "#FFFFFF"], [1, PALETTE[2]]],
            showscale=False,
            xgap=1,
            ygap=1,
            text=[[f"{100 * value:.0f}" for value in line] for line in shares.tolist()],
            texttemplate="%{text}",
            hoverinfo="skip",
            row=row,
            col=1,
        )
        figure.update_yaxes(autorange="reversed", showgrid=False, row=row)
        figure.update_xaxes(showticklabels=False, showgrid=False, row=row)
    tokens = [wrap_text(token, 12, 1) for token in captioned.tokens]
    ticks = {"tickvals": list(range(len(tokens))), "ticktext": tokens, "tickangle": -45}
    return figure.update_xaxes(showticklabels=True, row=3, **ticks)


def plot_masking(effect: MaskingEffect) -> go.Figure:
    """How far a pair's embedding in a batch is from its own, alone, by how much of it is padding.

    One point a pair: 1 means that its companions in the batch change nothing.
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
