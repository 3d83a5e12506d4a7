"""One random crop of each uncaptioned scene: `python -m assets.make.random_crops FOLDER`.

A student that learns from this folder sees the very crop that its teacher sees, and regions of it:
the arm `one_random_crop` of pocket_ablations.toml.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resized_crop
from tqdm.auto import tqdm

from dclip_kit.data import open_picture
from dclip_kit.data.pocket.world import load_further
from dclip_kit.runtime.files import write_atomically


def crop_at_random(
    picture: Image.Image, rng: np.random.Generator, least: float = 0.4
) -> Image.Image:
    """A square part of a square picture, enlarged to its size.

    Args:
        picture: any square picture.
        rng: decides size and place.
        least: the smallest share of the picture's area that is kept; shares are uniform.
    """
    side = round(picture.width * float(np.sqrt(rng.uniform(least, 1))))
    top, left = (int(rng.integers(picture.width - side + 1)) for _ in range(2))
    size = [picture.width, picture.width]
    return resized_crop(picture, top, left, side, side, size, InterpolationMode.BICUBIC)


def make_crops(folder: Path, count: int) -> None:
    """Writes what is missing of the first scenes' crops, each by the random numbers of its own."""
    for number, path in enumerate(tqdm(load_further("uncaptioned", count).paths, desc="crops")):
        place = folder / path.name
        if not place.exists():
            encoded = io.BytesIO()
            crop = crop_at_random(open_picture(path), np.random.default_rng([2026, number]))
            crop.save(encoded, format="JPEG", quality=92)
            write_atomically(place, encoded.getvalue())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=16_000)
    asked = parser.parse_args()
    make_crops(asked.folder, asked.count)
