"""A row of small pictures with a line of text below each."""

import io
from collections.abc import Sequence

import ipywidgets
from PIL import Image, ImageDraw, ImageFont

from dclip_kit.models.regions import Regions
from dclip_kit.plots.panels import label_colors

SIDE = 128  # pixels a side of a picture shown
RING = "4px solid #00A35C"
PLAIN = "4px solid transparent"  # as wide, so that nothing jumps


class PictureStrip:
    """A title and as many places for pictures as will ever be needed; text is never HTML.

    Attributes:
        title: a line above.
        images, notes: a picture and a line below it, for each place.
        cells: each place as a whole; hidden where nothing is shown.
        panel: all of it.
    """

    def __init__(self, size: int) -> None:
        self.title = ipywidgets.Label()
        self.images = [ipywidgets.Image(format="webp", width=SIDE) for _ in range(size)]
        self.notes = [ipywidgets.Label(layout={"max_width": f"{SIDE}px"}) for _ in range(size)]
        self.cells = [ipywidgets.VBox(pair) for pair in zip(self.images, self.notes, strict=True)]
        self.panel = ipywidgets.VBox(
            [self.title, ipywidgets.HBox(self.cells, layout={"flex_flow": "row wrap"})]
        )

    def show(self, pictures: Sequence[bytes], notes: Sequence[str], right: Sequence[bool]) -> None:
        """Fills the first places and hides the others.

        Args:
            pictures: from `make_thumbnail`.
            notes: a plain text for each.
            right: which of them to ring.
        """
        for place, cell in enumerate(self.cells):
            cell.layout.display = "" if place < len(pictures) else "none"
        shown = zip(pictures, notes, right, strict=True)
        for image, label, (picture, note, is_right) in zip(
            self.images, self.notes, shown, strict=False
        ):
            image.value = picture
            image.layout.border = RING if is_right else PLAIN
            label.value = note


def make_thumbnail(picture: Image.Image) -> bytes:
    """The picture as WebP, small, yet sharp on dense screens."""
    small = picture.copy()
    small.thumbnail((2 * SIDE, 2 * SIDE))
    encoded = io.BytesIO()
    small.save(encoded, format="WEBP", quality=85)
    return encoded.getvalue()


def draw_boxes(picture: Image.Image, regions: Regions) -> Image.Image:
    """A copy of a picture with its regions' outlines and labels in it."""
    drawn = picture.copy()
    pen = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(max(drawn.size) / 11)  # legible at the size shown
    for box, label, color in zip(
        regions.xyxy.tolist(), regions.label, label_colors(regions.label), strict=True
    ):
        pen.rectangle(box, outline=color, width=max(1, max(drawn.size) // 60))
        place = pen.textbbox((box[0], box[1]), label, font=font)
        pen.rectangle(place, fill=color)
        pen.text((box[0], box[1]), label, fill="white", font=font)
    return drawn
