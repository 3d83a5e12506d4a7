"""Pictures inside figures: sheets of small ones, stored as JPEG."""

import base64
import io
from collections.abc import Collection, Sequence
from math import ceil

import plotly.graph_objects as go
from PIL import Image, ImageOps

from dclip_kit.plots.style import RING, Number


def tile_pictures(
    pictures: Sequence[Image.Image],
    columns: int,
    side: int,
    ringed: Collection[int] = (),
    smooth: bool = True,
) -> Image.Image:
    """Puts pictures on one white sheet, row by row, each in the middle of its square cell.

    Args:
        pictures: of any shapes.
        columns: cells in a row.
        side: of a cell, in pixels.
        ringed: which of the pictures, by number, have a green frame.
        smooth: whether pixels are blended; if not, one can see each.
    """
    sheet = Image.new("RGB", (columns * side, ceil(len(pictures) / columns) * side), "white")
    method = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    frame = max(2, side // 32)
    for number, picture in enumerate(pictures):
        room = side - 3 * frame
        cell = ImageOps.contain(picture.convert("RGB"), (room, room), method)
        cell = ImageOps.expand(cell, frame, RING if number in ringed else "white")
        row, column = divmod(number, columns)
        place = (side - cell.width) // 2, (side - cell.height) // 2
        sheet.paste(cell, (column * side + place[0], row * side + place[1]))
    return sheet


def encode_jpeg(picture: Image.Image) -> bytes:
    """The picture as a small JPEG."""
    encoded = io.BytesIO()
    picture.convert("RGB").save(encoded, format="JPEG", quality=60, progressive=True)
    return encoded.getvalue()


def add_picture(
    figure: go.Figure, picture: Image.Image, caption: str = "", row: int = 1, col: int = 1
) -> None:
    """Shows a picture in a cell of a figure, with an escaped caption below it."""
    source = f"data:image/jpeg;base64,{base64.b64encode(encode_jpeg(picture)).decode('ascii')}"
    width, height = picture.size
    place = {"row": row, "col": col}
    figure.add_image(source=source, zsmooth="fast", hoverinfo="skip", **place)
    # Without ranges, a text in the picture would make room around it.
    across = {"range": [-0.5, width - 0.5], "constrain": "domain", "title_text": caption}
    down = {"range": [height - 0.5, -0.5], "constrain": "domain", "constraintoward": "top"}
    figure.update_xaxes(showticklabels=False, showgrid=False, **across, **place)
    figure.update_yaxes(visible=False, **down, **place)


def add_tag(
    figure: go.Figure, text: str, x: Number, y: Number, color: str, row: int = 1, col: int = 1
) -> None:
    """Writes a short escaped text in white on a colour; x and y are its upper left corner."""
    figure.add_annotation(
        {"text": text, "x": x, "y": y, "xanchor": "left", "yanchor": "top", "showarrow": False}
        | {"bgcolor": color, "borderpad": 1, "font": {"color": "white", "size": 11}},
        row=row,
        col=col,
    )
