"""What a detector finds, how well, and what CLIP gets of it."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil, sqrt
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from PIL import Image
from torch import Tensor

from dclip_kit.config import RegionSettings
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.regions import Regions, crop_regions, draw_boxes, label_colors
from dclip_kit.plots.panels import add_picture, add_tag, tile_pictures
from dclip_kit.plots.results import plot_shares
from dclip_kit.plots.style import PALETTE, PERCENT, new_figure, wrap_text

_AREAS = (0, 2, 4, 8, 16, 32, 100)  # percent: ends of the bars, most twice the one before


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
        captions: a line for each, shown as plain text.
        columns: pictures in a row.

    Raises:
        ValueError: the numbers of pictures, regions and captions differ or are 0, or regions are of
            another picture's size.
    """
    counts = {len(pictures), len(regions), len(pictures if captions is None else captions)}
    if len(counts) > 1 or not pictures or columns < 1:
        raise ValueError(
            f"Expected pictures, as many regions and captions, and columns from 1, got "
            f"{len(pictures)}, {len(regions)}, {None if captions is None else len(captions)} and "
            f"{columns}; give one of each a picture."
        )
    columns = min(columns, len(pictures))
    rows = ceil(len(pictures) / columns)
    below = 60 if captions else 0
    shown = 600 // max(columns, 3)  # pixels of a picture's longer side
    height = rows * (shown + below)
    figure = new_figure(
        height,
        rows=rows,
        cols=columns,
        horizontal_spacing=0.02,
        vertical_spacing=(below + 4) / height,
    )
    for index, (picture, found) in enumerate(zip(pictures, regions, strict=True)):
        drawn = draw_boxes(picture, found, side=3 * shown // 2, font_size=14)
        caption = wrap_text(captions[index], 80 // columns) if captions else ""
        row, column = divmod(index, columns)
        add_picture(figure, drawn, caption, row=row + 1, col=column + 1)
    return figure


def plot_student_view(
    picture: Image.Image,
    regions: Regions,
    clip: ClipBundle,
    margin: float = RegionSettings.margin,
    max_crops: int = 9,
) -> go.Figure:
    """DCLIP's premise: what the student gets of a picture, and what it would get of each region.

    From the left: the picture; CLIP's input made from it, magnified without smoothing; the inputs
    made from crops of its regions, each of as many pixels as the whole picture got.

    Args:
        picture: as stored.
        regions: of this picture.
        clip: whose preprocessing is shown.
        margin: kept around a crop, as share of its side.
        max_crops: shown; the caption counts them.

    Raises:
        ValueError: the regions are of another picture's size, or max_crops is below 1.
    """
    if max_crops < 1:
        raise ValueError(f"Expected max_crops from 1, got {max_crops}; regions are what it shows.")
    numbers = [str(number) for number in range(1, len(regions) + 1)]
    colors = label_colors(regions.label)
    boxes = draw_boxes(picture, regions, numbers, side=300, font_size=18)
    crops = crop_regions(picture, regions, margin)[:max_crops]
    seen, *parts = [_as_received(each, clip) for each in (picture, *crops)]
    size = f"{seen.width} × {seen.height}"
    share = "" if len(crops) == len(regions) else f" ({len(crops)} of {len(regions)} shown)"
    captions = (
        f"The picture: {picture.width} × {picture.height} pixels",
        f"All that CLIP gets of it: {size}",
        f"What CLIP gets of each region{share}: {size} again",
    )
    columns = ceil(sqrt(len(crops)))
    side = 300 // columns
    sheets = (
        boxes,
        seen.resize((300, 300), Image.Resampling.NEAREST),
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


def _as_received(picture: Image.Image, clip: ClipBundle) -> Image.Image:
    """The preprocessed picture, before normalisation."""
    return Image.fromarray(clip.to_pixels(picture).permute(1, 2, 0).numpy())


def plot_region_statistics(regions: Sequence[Regions]) -> go.Figure:
    """How many regions pictures have, how large they are, and how sure the detector is of them.

    Pictures without a detection are counted as having none; the whole picture that stands in for
    its regions is left out of the other two panels.

    Args:
        regions: of each picture.

    Raises:
        ValueError: there is no picture.
    """
    if not regions:
        raise ValueError("Expected the regions of at least one picture, got none.")
    counts = [0 if found.is_whole_image else len(found) for found in regions]
    detected = [found for found in regions if not found.is_whole_image]
    area = torch.cat([torch.zeros(0), *(found.area for found in detected)])
    confidence = torch.cat([torch.zeros(0), *(found.confidence for found in detected)])
    panels: dict[str, tuple[Sequence[float] | Tensor, Sequence[float], str]] = {
        "regions found": (counts, range(max(counts) + 2), "{:.0f}"),
        "area up to, %": (100 * area, _AREAS, "{1:g}"),
        "confidence from": (confidence, [n / 10 for n in range(11)], "{:.1f}"),
    }
    titles = ["share of pictures", "share of regions", "share of regions"]
    figure = new_figure(220, titles, cols=3, horizontal_spacing=0.1)
    for column, (title, (values, ends, name)) in enumerate(panels.items(), start=1):
        shares = np.histogram(values, ends)[0] / max(len(values), 1)
        names = [name.format(*pair) for pair in pairwise(ends)]
        figure.add_bar(x=names, y=shares, marker_color=PALETTE[2], row=1, col=column)
        figure.update_xaxes(title_text=title, type="category", showgrid=False, col=column)
        figure.update_xaxes(tickangle=0, dtick=ceil(len(names) / 7), col=column)
    figure.update_yaxes(rangemode="tozero", **PERCENT)
    return figure


def plot_average_precision(validation: Mapping[str, Any]) -> go.Figure:
    """Average precision of each category at an overlap of one half, best first, and their mean.

    Args:
        validation: as `assets/make/validate_detector.py` saves it: "map50" and "map50_by_category".

    Raises:
        ValueError: an entry is missing, or there is no category.
    """
    by_category = validation.get("map50_by_category")
    if not by_category or "map50" not in validation:
        raise ValueError(
            f"Expected map50 and map50_by_category, got {sorted(validation)}; "
            "assets/make/validate_detector.py makes both."
        )
    best_first = dict(sorted(by_category.items(), key=lambda entry: -entry[1]))
    figure = plot_shares(
        {"mean of all": validation["map50"]} | best_first,
        "average precision at half overlap (AP50)",
    )
    colors = [PALETTE[1], *[PALETTE[2]] * len(best_first)]
    return figure.update_traces(marker_color=colors)
