"""Odd but valid pictures, compared with what a person would see; expectations are by hand."""

import io
import itertools
import os
import struct
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from dclip_kit.data import open_picture
from dclip_kit.data.pictures import as_seen, count_pixels, decode_picture
from dclip_kit.models.clip import load_clip

# Two pixels high, three wide; letters are colours.
COLOURS = {"r": (255, 0, 0), "g": (0, 255, 0), "b": (0, 0, 255), "w": (255, 255, 255)}
COLOURS |= {"k": (0, 0, 0), "y": (255, 255, 0)}


def draw(*rows: str) -> Image.Image:
    return Image.fromarray(np.array([[COLOURS[c] for c in row] for row in rows], dtype=np.uint8))


def pixels(picture: Image.Image) -> list:
    return np.asarray(picture).tolist()


# EXIF's orientation says how the stored picture has to be turned to stand upright.
UPRIGHT = {
    1: ("rgb", "wky"),
    2: ("bgr", "ykw"),
    3: ("ykw", "bgr"),
    4: ("wky", "rgb"),
    5: ("rw", "gk", "by"),
    6: ("wr", "kg", "yb"),
    7: ("yb", "kg", "wr"),
    8: ("by", "gk", "rw"),
}


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize(("orientation", "rows"), UPRIGHT.items())
def test_a_picture_is_turned_upright_once(tmp_path, suffix, orientation, rows) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    draw("rgb", "wky").save(path, exif=exif, lossless=True)
    assert pixels(open_picture(path)) == pixels(draw(*rows))


def test_a_plain_jpeg_arrives_bit_for_bit(tmp_path) -> None:
    path = tmp_path / "plain.jpg"
    Image.effect_noise((61, 43), 90).convert("RGB").save(path, quality=70)
    with Image.open(path) as stored:
        assert open_picture(path).tobytes() == stored.convert("RGB").tobytes()


@pytest.mark.parametrize(
    "orientation", [b"\0\x03\0\0\0\x01\xff\xff\0\0", b"\0\x02\0\0\0\x03ab\0\0", None]
)
def test_metadata_that_says_nothing_turns_nothing(tmp_path, orientation) -> None:
    """An orientation of 65535, one that is the text "ab", and no EXIF at all inside the EXIF."""
    path = tmp_path / "garbled.jpg"
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12" + orientation if orientation else b"garbled"
    Image.new("RGB", (8, 4), "red").save(path, exif=b"Exif\0\0" + exif + b"\0" * 4)
    assert open_picture(path).size == (8, 4)


def test_a_note_that_cannot_be_written_again_keeps_no_picture_lying(tmp_path) -> None:
    """Beside the orientation, a number that is too large for what it is."""
    path = tmp_path / "sideways.jpg"
    notes = b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" + b"\x02\x13\0\x04\0\0\0\x01\0\x01\x11\x70"
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + notes + b"\0" * 4
    Image.new("RGB", (8, 4), "red").save(path, exif=exif)
    picture = open_picture(path)
    assert picture.size == as_seen(picture).size == (4, 8)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_to_8_and_not_clipped(tmp_path, suffix) -> None:
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16)).save(path)
    assert pixels(open_picture(path)) == [[[0] * 3, [1] * 3, [128] * 3, [255] * 3]]


def test_big_endian_16_bits_are_read_as_such(tmp_path) -> None:
    path = tmp_path / "deep.pgm"
    path.write_bytes(b"P5 3 1 65535\n" + struct.pack(">3H", 0, 32896, 65535))
    assert pixels(open_picture(path)) == [[[0] * 3, [128] * 3, [255] * 3]]


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 128.0, 255.0], [0, 128, 255]),
        ([-10.0, 0.0, 30.0], [0, 64, 255]),
        ([-3.0, -3.0, -3.0], [0, 0, 0]),
    ],
)
def test_floats_run_to_1_or_255_or_to_their_own_extremes(tmp_path, values, seen) -> None:
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "float.tif")
    assert pixels(open_picture(tmp_path / "float.tif")) == [[[v] * 3 for v in seen]]


def test_pixels_that_are_no_numbers_are_refused(tmp_path) -> None:
    Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(ValueError, match=r"nan\.tif, but .*not finite"):
        open_picture(tmp_path / "nan.tif")


def test_transparency_lies_over_white(tmp_path) -> None:
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    Image.fromarray(np.array([[[0, 255], [0, 0]]], dtype=np.uint8), "LA").save(tmp_path / "la.png")
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "palette.png", transparency=1)
    palette.save(tmp_path / "palette.gif", transparency=1)
    draw("rg").save(tmp_path / "key.png", transparency=(0, 255, 0))
    deep = Image.fromarray(np.array([[0, 32896]], dtype=np.uint16))
    deep.save(tmp_path / "deep.png", transparency=32896)

    assert pixels(open_picture(tmp_path / "clear.png")) == [[[255, 0, 0], [255] * 3, [127] * 3]]
    assert pixels(open_picture(tmp_path / "la.png")) == [[[0] * 3, [255] * 3]]
    for name in ("palette.png", "palette.gif", "key.png"):
        assert pixels(open_picture(tmp_path / name)) == [[[255, 0, 0], [255] * 3]], name
    assert pixels(open_picture(tmp_path / "deep.png")) == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_several_frames_the_first_is_seen(tmp_path, suffix) -> None:
    path = tmp_path / f"moving.{suffix}"
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime")]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    assert open_picture(path).getpixel((2, 1)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["CMYK", "L", "1", "P", "YCbCr"])
def test_other_modes_keep_their_colours(tmp_path, mode) -> None:
    path = tmp_path / ("mode.png" if mode in ("1", "P") else "mode.jpg")
    Image.new("RGB", (16, 16), "white").convert(mode).save(path)
    assert open_picture(path).getpixel((8, 8)) == (255, 255, 255)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_one_pixel_and_slivers_are_pictures(tmp_path, size) -> None:
    Image.new("RGB", size, "navy").save(tmp_path / "small.png")
    picture = open_picture(tmp_path / "small.png")
    assert picture.size == size and picture.getpixel((0, 0)) == (0, 0, 128)


@pytest.mark.parametrize("side", [20, 14, 11])  # Pillow would read 14 × 10 with a warning only
def test_a_decompression_bomb_is_an_error(tmp_path, monkeypatch, side) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("1", (side, 10)).save(tmp_path / "bomb.png")
    Image.new("1", (10, 10)).save(tmp_path / "fits.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(ValueError, match=r"bomb\.png, but reading it failed \(.*bomb"):
            open_picture(tmp_path / "bomb.png")
    assert open_picture(tmp_path / "fits.png").size == (10, 10)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("side", [None, 8])
def test_bytes_are_decoded_as_their_file_is(tmp_path, suffix, side) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(path, exif=exif)
    seen = decode_picture(path.read_bytes(), side)
    assert pixels(seen) == pixels(open_picture(path, side))
    assert (seen.width < seen.height) and (max(seen.size) < 128) == (suffix == "jpg" and side == 8)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bytes_that_are_no_picture_are_an_error(monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"Expected a whole picture, .* \(it is none\)\."):
        decode_picture(b"no")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    stream = io.BytesIO()
    Image.new("RGB", (2, 3)).save(stream, "PNG")
    with pytest.raises(ValueError, match="a decompression bomb"):
        decode_picture(stream.getvalue())


def test_an_opener_that_wants_a_package_names_none(monkeypatch, tmp_path) -> None:
    """As that of ultralytics does, for whatever Pillow cannot read."""

    def want(*_):
        raise ModuleNotFoundError("No module named 'pi_heif'")

    monkeypatch.setattr(Image, "open", want)
    (tmp_path / "a.jpg").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"a\.jpg, but .*\(cannot identify image file\)"):
        open_picture(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"\(it is none\)"):
        decode_picture(b"no")


def test_what_is_no_file_is_not_waited_for(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "folder.jpg"):
        with pytest.raises(ValueError, match=rf"{name}, but .*it is no file"):
            open_picture(tmp_path / name)


# Only as many pixels as are needed


def drawing(size: tuple[int, int]) -> Image.Image:
    """Lines and shapes of many sizes over a gradient."""
    rng, height = np.random.default_rng(sum(size)), size[1]
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for _ in range(40):
        x, y = rng.integers(0, size)
        r, colour = int(rng.integers(4, height // 3)), tuple(rng.integers(0, 256, 3).tolist())
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((int(x) - r, int(y) - r, int(x) + r, int(y) + r), fill=colour)
        draw.line(rng.integers(0, [*size, *size]).tolist(), fill=colour, width=int(r // 8 + 2))
    return picture


@pytest.mark.parametrize(
    ("size", "side", "seen"),
    [
        ((256, 192), 6, (32, 24)),
        ((256, 192), 7, (64, 48)),
        ((256, 192), 24, (128, 96)),
        ((192, 256), 24, (96, 128)),
        ((256, 192), 25, (256, 192)),  # a half would leave less than four times the side
        ((260, 196), 6, (65, 49)),  # an eighth would be 32.5 pixels
        ((257, 193), 1, (257, 193)),
        ((256, 192), None, (256, 192)),
    ],
)
def test_a_big_jpeg_is_decoded_reduced_where_a_side_is_given(tmp_path, size, side, seen) -> None:
    path = tmp_path / "big.jpg"
    drawing(size).save(path)
    picture, whole = open_picture(path, side), open_picture(path)
    assert picture.size == seen and whole.size == size
    assert count_pixels(path, side) == seen[0] * seen[1] and count_pixels(path) == size[0] * size[1]
    if seen == size:
        assert picture.tobytes() == whole.tobytes()
    else:  # the same picture, upright and in its place
        small = np.asarray(whole.resize(seen, Image.Resampling.BOX)).astype(float)
        assert np.abs(np.asarray(picture) - small).mean() < 3


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_reduced_jpeg_is_turned_upright_too(tmp_path, orientation) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    drawing((256, 192)).save(path, exif=exif)
    whole, picture = open_picture(path), open_picture(path, 12)
    assert picture.size == (whole.width // 4, whole.height // 4)
    small = np.asarray(whole.resize(picture.size, Image.Resampling.BOX)).astype(float)
    assert np.abs(np.asarray(picture) - small).mean() < 3


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_other_formats_are_read_whole(tmp_path, suffix) -> None:
    path = tmp_path / f"big.{suffix}"
    drawing((256, 192)).save(path, lossless=True)
    assert open_picture(path, 8).tobytes() == open_picture(path).tobytes()


def test_pixels_of_what_cannot_be_read_are_told_when_it_is_opened(tmp_path, monkeypatch) -> None:
    assert count_pixels(tmp_path / "missing.jpg") == 1
    drawing((256, 192)).save(tmp_path / "bomb.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 256 * 192 - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        assert count_pixels(tmp_path / "bomb.jpg") == 1
        with pytest.raises(ValueError, match=r"256×192 pixels, more than the 49151 .*bomb"):
            open_picture(tmp_path / "bomb.jpg", 6)  # though it would be decoded smaller


def test_reduced_pictures_have_nearly_the_features_of_whole_ones(tmp_path) -> None:
    """open_clip's own, by the pocket CLIP and by a ViT of random weights of their usual size."""
    clips = {"pocket": load_clip("pocket"), "vit": load_clip("ViT-M-32-alt", "untrained")}
    generator = torch.Generator().manual_seed(0)
    for parameter in clips["vit"].model.visual.parameters():
        if parameter.ndim > 1:
            scale = parameter[0].numel() ** -0.5
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    reduced = 0
    for name, clip in clips.items():
        own = []
        for part, size in itertools.product((2, 4, 8), ((1.0, 1.0), (1.5, 1.1), (1.2, 1.6))):
            if name == "vit" and part == 8:
                continue  # 7000 pixels a side
            width, height = (round(4 * clip.side * each) * part for each in size)
            path = tmp_path / f"{width}.jpg"
            drawing((width, height)).save(path, quality=85)
            reduced += count_pixels(path, clip.side) * part**2 == width * height
            pictures = open_picture(path), open_picture(path, clip.side)
            with torch.no_grad():
                given = torch.stack([clip.preprocess(each) for each in pictures])
                own.append(clip.model.encode_image(given, normalize=True))
        found = torch.stack(own)  # picture way embed
        near, far = (found[:, 0] * found[:, 1]).sum(1), found[:, 0] @ found[:, 0].T
        assert near.min() >= 0.999, f"{name}: {near}"
        assert far.mean() < 0.9  # or every cosine would be near 1
    assert reduced == 15
