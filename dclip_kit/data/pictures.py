"""The one place where pictures are opened: whole, as RGB, and as a person sees them."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

_ORIENTATION = 0x0112  # EXIF's tag
# How to turn a picture that was stored in another orientation; 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_ENOUGH = 4  # times the side that is needed: at twice, some features had a cosine of 0.995 to ours


def open_picture(path: Path | str, side: int | None = None) -> Image.Image:
    """Reads a picture whole, as RGB, and as a person sees it.

    That is: turned upright by its EXIF orientation, more than 8 bits a channel scaled down to 8,
    transparent parts over white, and of an animation the first frame. A plain RGB file arrives as
    it is stored. Colour profiles are not applied.

    Args:
        path: of the file.
        side: in pixels, where the picture is going to be scaled down to about that. A JPEG may then
            be decoded at a half, a quarter or an eighth of its size, which takes less time and
            memory: where that divides its sides and leaves four times as many pixels a side.
            Left out: all pixels, as boxes and crops need them.

    Raises:
        ValueError: it is missing, cut short, no picture, or has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS` (a small file may unfold into more than the memory holds).
    """
    try:
        with _begin(path, side) as picture:
            picture.load()
            return _as_seen(picture)
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise ValueError(
            f"Expected a whole picture at {name_with_link(path)}, but reading it failed ({error}); "
            "restore it, or leave it out."
        ) from error


def name_with_link(path: Path | str) -> str:
    """A path as errors name it: with what it is a link to."""
    return f"{path} (a link to {os.readlink(path)})" if os.path.islink(path) else str(path)


def count_links(paths: Iterable[Path], folder: Path) -> int:
    """How many pictures lie outside a folder, which has links to them or to their folders."""
    root = os.path.realpath(folder)
    return sum(not Path(os.path.realpath(path)).is_relative_to(root) for path in paths)


def count_pixels(path: Path | str, side: int | None = None) -> int:
    """How many pixels `open_picture` would decode, read off the file's header.

    1 where that cannot be read: what is wrong is told when the picture is opened.
    """
    try:
        with _begin(path, side) as picture:
            return picture.width * picture.height
    except Exception:  # as above
        return 1


def _begin(path: Path | str, side: int | None) -> Image.Image:
    """Reads a file's header, and sets how much of the picture is to be decoded."""
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError("it is no file")  # a named pipe would be waited for, for ever
    picture = Image.open(path)
    # Pillow itself only warns up to twice this size, which is 0.7 GB as RGBA.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.width * picture.height > limit:
        picture.close()
        raise ValueError(
            f"{picture.width}×{picture.height} pixels, more than the {limit} that "
            "PIL.Image.MAX_IMAGE_PIXELS allows: a decompression bomb?"
        )
    # A JPEG can be decoded at a part of its size; other formats cannot be, and stay as they are.
    least = float("inf") if side is None else _ENOUGH * side
    for part in (8, 4, 2):
        width, height = picture.width // part, picture.height // part
        whole = (width * part, height * part) == picture.size  # else its pixels would be moved
        if whole and min(width, height) >= least:
            picture.draft(None, (width, height))
            break
    return picture


def _as_seen(picture: Image.Image) -> Image.Image:
    orientation = _read_orientation(picture)
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _scale_to_8_bits(picture)
    elif picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    if picture.mode != "RGB":  # a conversion to the same mode would copy it
        picture = picture.convert("RGB")
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


def _read_orientation(picture: Image.Image) -> int:
    """EXIF's orientation, to be asked after loading, as Pillow turns TIFFs itself while it loads.

    Metadata that cannot be read turns no picture: viewers show such a file as it is stored.
    """
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # garbled metadata, for which Pillow raises many types too
        return 1


def _scale_to_8_bits(picture: Image.Image) -> Image.Image:
    """Gray of 16 or 32 bits or floats, which Pillow's own conversion would clip to white.

    Integers are of 16 bits, as PNG and PGM have them, and floats run to 1 or to 255; values out of
    that range say nothing about black and white, so that their own extremes stand for them.
    """
    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it has pixels that are not finite numbers")
    low, high = float(values.min()), float(values.max())
    tops = (1.0, 255.0) if picture.mode == "F" else (65535.0,)
    if fitting := [top for top in tops if low >= 0 and high <= top]:
        low, high = 0.0, fitting[0]
    scaled = (values - low) / ((high - low) or 1.0)
    clear = picture.info.get("transparency")
    if isinstance(clear, int):  # a PNG may name one gray that is transparent
        scaled[values == clear] = 1.0
    return Image.fromarray(np.rint(scaled * 255).astype(np.uint8))
