"""Crops of scenes: of the right size, repeatable, and made only where they are missing."""

import numpy as np
from PIL import Image

from assets.make.random_crops import crop_at_random, make_crops


def ramp(side: int = 64) -> Image.Image:
    """A picture whose red and green tell a pixel's place."""
    rows, columns = np.mgrid[:side, :side] * 4
    return Image.fromarray(np.stack([rows, columns, rows * 0], -1).astype(np.uint8))


def test_a_crop_keeps_at_least_the_share_that_is_asked_for() -> None:
    for seed in range(20):
        crop = crop_at_random(ramp(), np.random.default_rng(seed), least=0.5)
        pixels = np.asarray(crop).astype(int)
        high, wide = np.ptp(pixels[..., 0]) / 4 + 1, np.ptp(pixels[..., 1]) / 4 + 1
        assert crop.size == (64, 64)
        assert abs(high - wide) <= 2 and high * wide >= 0.9 * 0.5 * 64 * 64


def test_crops_are_repeatable_and_differ() -> None:
    first, again, other = (crop_at_random(ramp(), np.random.default_rng(s)) for s in (1, 1, 2))
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_only_missing_crops_are_made(tmp_path) -> None:
    make_crops(tmp_path, 3)
    paths = sorted(tmp_path.iterdir())
    assert [Image.open(path).size for path in paths] == [(256, 256)] * 3
    made = paths[1].read_bytes()
    paths[0].write_bytes(b"kept")
    paths[1].unlink()
    make_crops(tmp_path, 3)
    assert paths[0].read_bytes() == b"kept" and paths[1].read_bytes() == made
