"""An example of a user's own folder: pocket scenes, captions.csv and the usual flaws.

To try the kit on a folder of pictures without having one.
"""

import csv
import io
from pathlib import Path

from PIL import ExifTags, Image, ImageOps
from tqdm.auto import tqdm

from dclip_kit.data.pocket.scenes import render_scene
from dclip_kit.data.pocket.world import make_scene
from dclip_kit.runtime.files import write_atomically

_TRUNCATED, _EMPTY_CAPTION, _TWIN, _TURNED = 7, 8, 9, 10  # the scenes with flaws
_SHRUNKEN = range(11, 31)


def write_example(folder: Path, pictures: int = 400) -> Path:
    """Writes captioned pictures of pocket scenes, unless they exist already.

    One file is truncated; one caption is empty; one row names a missing picture; one
    picture exists twice under two names; one is stored on its side, with an EXIF
    orientation; and twenty exist once more at half the size.

    Args:
        folder: to write captions.csv and the pictures into.
        pictures: how many scenes, without the copies; at least 31, as the 31st is the last with a
            flaw.

    Returns:
        The folder.
    """
    scenes = [make_scene("train", index) for index in range(pictures)]
    captions = [list(texts) for _, texts in scenes]
    captions[_EMPTY_CAPTION][0] = " "
    scene_of = {f"scene_{index:03d}.jpg": index for index in range(pictures)} | {"twin.jpg": _TWIN}
    scene_of |= {f"small_{index:03d}.jpg": index for index in _SHRUNKEN}
    rows = [
        ("image", "caption"),
        *((name, text) for name, index in scene_of.items() for text in captions[index]),
        ("lost.jpg", "a picture that somebody moved elsewhere"),
    ]
    table = io.StringIO()
    csv.writer(table).writerows(rows)
    csv_bytes = table.getvalue().encode()
    table_path = folder / "captions.csv"  # written last: if it exists, everything does
    if table_path.is_file() and table_path.read_bytes() == csv_bytes:
        return folder
    for name, index in tqdm(scene_of.items(), desc="drawing the example", delay=2):
        picture = render_scene(scenes[index][0])
        if name.startswith("small"):
            picture = ImageOps.scale(picture, 0.5)
        content = _encode(picture, turned=index == _TURNED)
        length = len(content) // 2 if index == _TRUNCATED else len(content)
        write_atomically(folder / name, content[:length])
    write_atomically(table_path, csv_bytes)
    return folder


def _encode(picture: Image.Image, turned: bool = False) -> bytes:
    """A JPEG; if turned, its EXIF orientation says to rotate it clockwise by 90 degrees."""
    exif = Image.Exif()
    if turned:
        picture = picture.transpose(Image.Transpose.ROTATE_90)
        exif[ExifTags.Base.Orientation] = 6
    encoded = io.BytesIO()
    picture.save(encoded, format="JPEG", quality=92, exif=exif)
    return encoded.getvalue()
