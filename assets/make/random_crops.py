"""One random crop of each uncaptioned scene: `python -m assets.make.random_crops FOLDER`.

A student that learns from this folder sees the same crop as its teacher, and regions of that crop:
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
from dclip_kit.data.pocket.world import load_captioned
from dclip_kit.runtime.files import write_atomically


def crop_at_random(
    picture: Image.Image, rng: np.random.Generator, least: float = 0.4
) -> Image.Image:
    """A random square part of a square picture, enlarged to the picture's size.

    Args:
        picture: any square picture.
        rng: decides the size and the position.
        least: the smallest share of the picture's area to keep; shares are uniform.
    """
    side = round(picture.width * float(np.sqrt(rng.uniform(least, 1))))
    top, left = (int(rng.integers(picture.width - side + 1)) for _ in range(2))
    size = [picture.width, picture.width]
    return resized_crop(picture, top, left, side, side, size, InterpolationMode.BICUBIC)


def make_crops(folder: Path, count: int) -> None:
    """Writes the missing crops of the first `count` scenes, each with a seed of its own."""
    for number, path in enumerate(tqdm(load_captioned("uncaptioned", count).paths, desc="crops")):
        target = folder / path.name
        if not target.exists():
            encoded = io.BytesIO()
            crop = crop_at_random(open_picture(path), np.random.default_rng([2026, number]))
            crop.save(encoded, format="JPEG", quality=92)
            write_atomically(target, encoded.getvalue())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=16_000)
    arguments = parser.parse_args()
    make_crops(arguments.folder, arguments.count)
