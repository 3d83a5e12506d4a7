"""Pictures with their regions, and what CLIP receives of both."""

from collections.abc import Sequence
from math import ceil, sqrt

import plotly.graph_objects as go
from PIL import Image

from dclip_kit.config import RegionSettings
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.regions import Regions, crop_regions
from dclip_kit.plots.panels import (
    MAX_SIDE,
    add_boxes,
    add_canvas,
    add_image,
    add_picture,
    add_tag,
    label_colors,
    references,
    require_size,
)
from dclip_kit.plots.style import add_text, blank_figure, wrap_text


def plot_regions(
    pictures: Sequence[Image.Image],
    regions: Sequence[Regions],
    captions: Sequence[str] | None = None,
    columns: int = 4,
) -> go.Figure:
    """Pictures with their regions: label and confidence on each box, its area on hover.

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
    row_height, below = 640 // max(columns, 3), 58 if captions else 10
    height = rows * (row_height + below)
    figure = blank_figure(height + 16)
    for index, (picture, found) in enumerate(zip(pictures, regions, strict=True)):
        require_size(picture, found)
        row, column = divmod(index, columns)
        top = 1 - row * (row_height + below) / height
        axes = add_picture(
            figure,
            picture,
            ((column + 0.02) / columns, (column + 0.98) / columns),
            (top - row_height / height, top),
            wrap_text(captions[index], max(72 // columns, 14)) if captions else "",
        )
        room = max(60 // columns, 12) - 5  # letters; hovering shows the whole label
        labels = [
            f"{wrap_text(label, room, 1)} {confidence:.2f}"
            for label, confidence in zip(found.label, found.confidence.tolist(), strict=True)
        ]
        add_boxes(figure, found, axes, labels, label_colors(found.label))
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
    require_size(picture, regions)
    if max_crops < 1:
        raise ValueError(f"Expected max_crops from 1, got {max_crops}; regions are what it shows.")
    crops = crop_regions(picture, regions, margin)[:max_crops]
    seen = _as_received(picture, clip)
    size = f"{seen.width} × {seen.height}"
    share = "" if len(crops) == len(regions) else f" ({len(crops)} of {len(regions)} shown)"
    height, below = 300, 56
    figure = blank_figure(height)
    y = (below / (height - 16), 1)
    captions = (
        f"The picture: {picture.width} × {picture.height} pixels",
        f"All that CLIP gets of it: {size}",
        f"What CLIP gets of each region{share}: {size} again",
    )
    texts = [wrap_text(caption, 22, 4) for caption in captions]
    axes = add_picture(figure, picture, (0, 0.32), y, texts[0])
    numbers = [str(number + 1) for number in range(len(regions))]
    colors = label_colors(regions.label)
    add_boxes(figure, regions, axes, numbers, colors)
    add_picture(figure, seen, (0.34, 0.66), y, texts[1])

    columns = ceil(sqrt(len(crops)))
    axes = add_canvas(figure, (0.68, 1), y, (columns, columns))
    for index, crop in enumerate(crops):
        row, column = divmod(index, columns)
        box = (column + 0.02, row + 0.02, column + 0.98, row + 0.98)
        add_image(figure, _as_received(crop, clip), axes, box, MAX_SIDE // min(columns, 2))
        tag = numbers[index]
        if columns < 3:  # else there is no room
            tag += f" {wrap_text(regions.label[index], 28 // columns - 2, 1)}"
        add_tag(figure, tag, axes, box[0], box[1], colors[index])
    rows = ceil(len(crops) / columns)
    add_text(figure, texts[2], columns / 2, rows, yanchor="top", yshift=-2, **references(axes))
    return figure


def _as_received(picture: Image.Image, clip: ClipBundle) -> Image.Image:
    """The preprocessed picture, before normalisation."""
    return Image.fromarray(clip.to_pixels(picture).permute(1, 2, 0).numpy())
