"""Pictures with the boxes of their regions drawn on them."""

import contextlib
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torchvision.ops import box_iou

from dclip_kit.models.regions import Regions

# Each reads as text on white (contrast of at least 4.5), and any two stay apart for people who do
# not see red, green or blue (CIE76 difference of at least 20 under Machado's simulations).
BOX_COLORS = ("#BF5700", "#0072B2", "#442200", "#220088", "#8800CC", "#004444")


def draw_boxes(
    picture: Image.Image,
    regions: Regions,
    labels: Sequence[str] | None = None,
    colors: Sequence[str] | None = None,
    side: int | None = None,
    font_size: int | None = None,
) -> Image.Image:
    """Draws the boxes of a picture's regions, each with its label, on a copy.

    Args:
        picture: what the regions were found in.
        regions: of this picture.
        labels: a short text for each region; by default the detector's word and confidence.
        colors: one for each region; by default one for each word.
        side: pixels of the copy's longer side; by default as many as the picture has.
        font_size: of the labels, in pixels of the copy; by default a fortieth of its longer side.

    Returns:
        The copy, in RGB.

    Raises:
        ValueError: if the regions are of a picture of another size.
    """
    if picture.size != regions.image_size:
        raise ValueError(
            f"Expected a picture of the regions' {regions.image_size} pixels, got {picture.size}; "
            "detect the regions in this very picture."
        )
    side = side or max(picture.size)
    drawn = ImageOps.contain(picture.convert("RGB"), (side, side))
    pen = ImageDraw.Draw(drawn)
    font_size = font_size or max(side // 40, 12)
    font, line = _load_font(font_size), max(1, round(font_size / 6))
    found = zip(regions.label, regions.confidence.tolist(), strict=True)
    labels = labels or [f"{label} {confidence:.2f}" for label, confidence in found]
    colors = colors or label_colors(regions.label)
    boxes = (regions.xyxy * (drawn.width / picture.width)).tolist()
    for box, color in zip(boxes, colors, strict=True):
        pen.rectangle(box, outline=color, width=line)
    taken = torch.zeros(0, 4)  # by labels
    for box, color, label in zip(boxes, colors, labels, strict=True):
        _, _, width, height = pen.textbbox((line, line), label, font=font)
        left = max(min(box[0], drawn.width - width - line), 0.0)
        tops = (box[1] - height, box[1], box[3] - height, box[3])  # above, inside or below its box
        inside = [top for top in tops if 0 <= top <= drawn.height - height] or [0.0]
        places = torch.tensor([[left, top, left + width + line, top + height] for top in inside])
        place = places[box_iou(places, taken).sum(1).argmin()]  # where it hides others least
        taken = torch.cat([taken, place[None]])
        pen.rectangle(place.tolist(), fill=color)
        pen.text((left + line, float(place[1])), label, fill="white", font=font)
    return drawn


def label_colors(labels: Sequence[str]) -> list[str]:
    """Chooses a colour for each label, the same one for the same label."""
    known = sorted(set(labels))
    return [BOX_COLORS[known.index(label) % len(BOX_COLORS)] for label in labels]


def _load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font of the system, since the one that comes with Pillow knows English letters only."""
    for name in ("DejaVuSans.ttf", "Arial.ttf", "arial.ttf"):
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)
