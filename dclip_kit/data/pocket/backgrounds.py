"""Ten procedural backgrounds, painted at any size from a random generator."""

from collections.abc import Callable

import numpy as np
from PIL import Image

Painter = Callable[[int, np.random.Generator], np.ndarray]


def _noise(side: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise in [-1, 1] of shape (side, side, 1), `cells` bumps across."""
    grid = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    smooth = Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(smooth)[..., None]


def _vertical(side: int, stops: list[tuple[float | int, tuple[int, ...]]]) -> np.ndarray:
    """A gradient from top (0) to bottom (1) through the given colours."""
    rows = np.linspace(0, 1, side)
    positions, colors = zip(*stops, strict=True)
    columns = [np.interp(rows, positions, [color[c] for color in colors]) for c in range(3)]
    return np.repeat(np.stack(columns, -1)[:, None], side, axis=1)


def _ground(ground: tuple[int, int, int], sky: tuple[int, int, int], roughness: int) -> Painter:
    """A horizon with sky above and textured ground below."""

    def paint(side: int, rng: np.random.Generator) -> np.ndarray:
        horizon = rng.uniform(0.2, 0.45)
        pale = tuple(min(255, c + 45) for c in sky)
        deep = tuple(int(c * 0.85) for c in ground)
        picture = _vertical(side, [(0, sky), (horizon, pale), (horizon + 0.01, ground), (1, deep)])
        below = (np.arange(side) > horizon * side)[:, None, None]
        texture = _noise(side, 40, rng) + 0.6 * _noise(side, 8, rng)
        return picture + below * roughness * texture

    return paint


def _beach(side: int, rng: np.random.Generator) -> np.ndarray:
    shore = rng.uniform(0.4, 0.55)
    picture = _vertical(
        side,
        [
            (0, (150, 205, 240)),
            (0.25, (205, 230, 245)),
            (0.26, (40, 130, 180)),
            (shore, (95, 190, 205)),
            (shore + 0.02, (240, 225, 180)),
            (1, (222, 195, 140)),
        ],
    )
    return picture + 7 * _noise(side, 50, rng)


def _sea(side: int, rng: np.random.Generator) -> np.ndarray:
    picture = _vertical(side, [(0, (60, 150, 200)), (1, (12, 70, 130))])
    rows = np.arange(side)[:, None, None] / side
    swell = np.sin(rows * rng.uniform(60, 90) + 3 * _noise(side, 6, rng))
    return picture + 16 * swell


def _sky(side: int, rng: np.random.Generator) -> np.ndarray:
    picture = _vertical(side, [(0, (70, 140, 225)), (1, (175, 215, 250))])
    clouds = np.clip(_noise(side, 5, rng) + 0.5 * _noise(side, 11, rng) - 0.15, 0, 0.8)
    return picture * (1 - clouds) + 250 * clouds


def _night(side: int, rng: np.random.Generator) -> np.ndarray:
    picture = _vertical(side, [(0, (10, 12, 40)), (1, (45, 40, 90))])
    stars = rng.integers(0, side, (45, 2))
    picture[stars[:, 0], stars[:, 1]] = rng.uniform(150, 255, (45, 1))
    return picture


def _table(side: int, rng: np.random.Generator) -> np.ndarray:
    planks = int(rng.integers(4, 7))
    row = np.arange(side) * planks / side
    tone = rng.uniform(-14, 14, planks)[row.astype(int)][:, None, None]
    seams = (np.abs(row - np.round(row)) < 0.03)[:, None, None]
    streaks = Image.fromarray(rng.uniform(-1, 1, (48, 3)).astype(np.float32))
    grain = np.asarray(streaks.resize((side, side), Image.Resampling.BICUBIC))[..., None]
    return np.array([165, 112, 66]) + tone + 12 * grain - 45 * seams


def _tablecloth(side: int, rng: np.random.Generator) -> np.ndarray:
    count = int(rng.integers(6, 10))
    stripe = (np.arange(side) * count // side) % 2
    checks = (stripe[:, None] + stripe[None, :])[..., None] / 2
    color = np.array([(200, 60, 60), (70, 110, 190), (80, 150, 90)][rng.integers(3)])
    return 248 * (1 - checks) + color * checks + 3 * _noise(side, 30, rng)


def _brick_wall(side: int, rng: np.random.Generator) -> np.ndarray:
    rows = int(rng.integers(7, 10))
    y, x = np.mgrid[0:side, 0:side] / side
    row = np.floor(y * rows)
    column = x * rows / 2 + 0.5 * (row % 2)
    mortar = (y * rows % 1 < 0.12) | (column % 1 < 0.06)
    tone = rng.uniform(-18, 18, (rows + 1, rows + 1))
    brick = np.array([170, 85, 65]) + tone[row.astype(int), column.astype(int)][..., None]
    return np.where(mortar[..., None], 200, brick) + 5 * _noise(side, 40, rng)


# Place -> (painter, its phrases in captions).
PLACES: dict[str, tuple[Painter, tuple[str, ...]]] = {
    "meadow": (_ground((105, 165, 70), (125, 190, 235), 14), ("on the grass", "in a meadow")),
    "snow": (_ground((238, 242, 248), (170, 190, 215), 6), ("in the snow", "on a snowy field")),
    "desert": (_ground((225, 170, 100), (240, 200, 150), 10), ("in the desert", "on desert sand")),
    "beach": (_beach, ("on the beach", "at the seaside")),
    "sea": (_sea, ("on the water", "at sea")),
    "sky": (_sky, ("in the sky", "among the clouds")),
    "night": (_night, ("at night", "under the stars")),
    "table": (_table, ("on a wooden table", "on wooden boards")),
    "tablecloth": (_tablecloth, ("on a checkered tablecloth", "on a checkered cloth")),
    "brick wall": (_brick_wall, ("in front of a brick wall", "by a brick wall")),
}


def paint_background(place: str, side: int, rng: np.random.Generator) -> Image.Image:
    """Paints the background of a place as an RGB picture of `side` by `side` pixels.

    Raises:
        ValueError: the place is unknown.
    """
    if place not in PLACES:
        raise ValueError(f"Expected a place out of {', '.join(PLACES)}, got {place!r}.")
    pixels = PLACES[place][0](side, rng)
    pixels = pixels * rng.uniform(0.88, 1.08) + rng.uniform(-8, 8, 3)  # daylight varies
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
