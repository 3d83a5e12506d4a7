"""A folder as people have them: pocket scenes with a captions.csv, and a flaw of each common kind.

For a first walk with pictures of one's own, by somebody who has none at hand.
"""

import csv
import io
from pathlib import Path

from PIL import ExifTags, Image
from tqdm.auto import tqdm

from dclip_kit.data.pocket.scenes import render_scene
from dclip_kit.data.pocket.world import make_scene
from dclip_kit.runtime.files import write_atomically

FEWEST = 40  # scenes, so that each of the flawed ones is another
_CUT, _SPEECHLESS, _TWIN, _TURNED = 7, 8, 9, 10  # which scene has which flaw
_SHRUNKEN = range(11, 31)


def write_example(folder: Path, pictures: int = 400) -> Path:
    """Writes captioned pictures of pocket scenes, unless they are there already.

    One file is cut off in the middle; one caption is empty; one row names a picture that is not
    there; one picture lies there twice under two names; one is stored on its side, with the EXIF
    entry that says so; and twenty lie there once more at half the size.

    Args:
        folder: to write captions.csv and the pictures into.
        pictures: how many scenes, without the copies.

    Returns:
        The folder.

    Raises:
        ValueError: fewer than `FEWEST` pictures are asked for.
    """
    if pictures < FEWEST:
        raise ValueError(f"Expected at least {FEWEST} pictures, got {pictures}.")
    made = [make_scene("train", index) for index in range(pictures)]
    names = [f"scene_{index:03d}.jpg" for index in range(pictures)]
    captions = [list(texts) for _, texts in made]
    captions[_SPEECHLESS][0] = " "
    copies = {"twin.jpg": _TWIN} | {f"small_{index:03d}.jpg": index for index in _SHRUNKEN}
    rows = [(name, text) for name, texts in zip(names, captions, strict=True) for text in texts]
    rows += [(name, text) for name, index in copies.items() for text in captions[index]]
    rows.append(("lost.jpg", "a picture that somebody moved elsewhere"))
    table = io.StringIO()
    csv.writer(table).writerows([("image", "caption"), *rows])
    listed = table.getvalue().encode()
    place = folder / "captions.csv"  # written last: where it is, all is
    if place.is_file() and place.read_bytes() == listed:
        return folder
    for index, (scene, _) in enumerate(tqdm(made, desc="drawing the example", delay=2)):
        picture = render_scene(scene)
        content = _encode(_turn(picture) if index == _TURNED else picture, index == _TURNED)
        cut = content[: len(content) // 2] if index == _CUT else content
        write_atomically(folder / names[index], cut)
        if index == _TWIN:
            write_atomically(folder / "twin.jpg", content)
        if index in _SHRUNKEN:
            half = picture.resize((picture.width // 2, picture.height // 2))
            write_atomically(folder / f"small_{index:03d}.jpg", _encode(half))
    write_atomically(place, listed)
    return folder


def _turn(picture: Image.Image) -> Image.Image:
    return picture.transpose(Image.Transpose.ROTATE_90)


def _encode(picture: Image.Image, turned: bool = False) -> bytes:
    """A JPEG; of a turned picture, with the note that a quarter turn clockwise sets it upright."""
    exif = Image.Exif()
    if turned:
        exif[ExifTags.Base.Orientation] = 6
    encoded = io.BytesIO()
    picture.save(encoded, format="JPEG", quality=92, exif=exif)
    return encoded.getvalue()
