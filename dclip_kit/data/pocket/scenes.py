"""Scenes: one to four objects on a procedural background, with exact boxes, all sampled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from dclip_kit.data.pocket.backgrounds import PLACES, paint_background
from dclip_kit.data.pocket.sprites import choose_sprite, load_sprites

SIDE = 256  # pixels of a scene's side; boxes are in these
SIZES = {"small": (40, 54), "medium": (68, 88), "large": (108, 136)}  # longer side, in pixels
GAP = 3  # pixels between two boxes, so that "left of" is never a matter of opinion


@dataclass(frozen=True)
class SceneObject:
    """One object in a scene.

    Attributes:
        noun: index into `load_nouns()`.
        size: "small", "medium" or "large".
        xyxy: its box in pixels.
        style: the sprite's style.
        picture: number of the sprite among the noun's pictures in that style.
        mirrored: whether left and right are swapped.
    """

    noun: int
    size: str
    xyxy: tuple[int, int, int, int]
    style: str
    picture: int
    mirrored: bool

    def sprite(self) -> Image.Image:
        """The sprite, RGBA, in the atlas's resolution."""
        sprite = load_sprites(self.style)[self.noun][self.picture]
        return ImageOps.mirror(sprite) if self.mirrored else sprite


@dataclass(frozen=True)
class Scene:
    """A place out of `PLACES`, the random seed that its background is painted with, and objects."""

    place: str
    background_seed: int
    objects: tuple[SceneObject, ...]


Box = tuple[int, int, int, int]


def _are_apart(box: Box, others: list[Box]) -> bool:
    return all(
        box[2] + GAP <= other[0]
        or other[2] + GAP <= box[0]
        or box[3] + GAP <= other[1]
        or other[3] + GAP <= box[1]
        for other in others
    )


def _place_object(
    shape: tuple[int, int], longer_side: int, taken: list[Box], rng: np.random.Generator
) -> Box | None:
    """A box of the sprite's shape that touches no other; None where twenty tries find no room."""
    width, height = (max(4, round(side * longer_side / max(shape))) for side in shape)
    for _ in range(20):
        x, y = int(rng.integers(SIDE - width + 1)), int(rng.integers(SIDE - height + 1))
        box = (x, y, x + width, y + height)
        if _are_apart(box, taken):
            return box
    return None


def _size_name(longer_side: int) -> str:
    """The nearest of the three sizes' names."""
    return min(SIZES, key=lambda name: abs(sum(SIZES[name]) / 2 - longer_side))


def sample_scene(
    rng: np.random.Generator,
    nouns: Sequence[int],
    styles: tuple[str, ...],
    count_probabilities: Sequence[float] = (0.15, 0.3, 0.3, 0.25),
    repeat_probability: float = 0.2,
    first: int | None = None,
) -> Scene:
    """Samples a scene.

    Args:
        rng: the only source of randomness.
        nouns: indices of the nouns that may appear.
        styles: sprite styles that may appear.
        count_probabilities: of one, two, … objects.
        repeat_probability: of an object to have the noun of the one before ("two dogs").
        first: the first object's noun, where the caller wants a certain one.
    """
    count = 1 + int(rng.choice(len(count_probabilities), p=count_probabilities))
    objects: list[SceneObject] = []
    boxes: list[Box] = []
    for _ in range(count):
        repeat = bool(objects) and rng.random() < repeat_probability
        noun = objects[-1].noun if repeat else nouns[int(rng.integers(len(nouns)))]
        if not objects and first is not None:
            noun = first
        style, picture = choose_sprite(noun, styles, rng)
        mirrored = rng.random() < 0.5
        size = str(rng.choice(list(SIZES)))
        low, high = SIZES[size]
        shape = load_sprites(style)[noun][picture].size
        box = _place_object(shape, int(rng.integers(low, high + 1)), boxes, rng)
        if box is None:  # a crowded picture keeps what it has
            continue
        objects.append(SceneObject(noun, size, box, style, picture, mirrored))
        boxes.append(box)
    place = str(rng.choice(list(PLACES)))
    return Scene(place, int(rng.integers(2**31)), tuple(objects))


def sample_single(
    rng: np.random.Generator,
    noun: int,
    styles: tuple[str, ...],
    span: tuple[float, float] = (0.25, 0.75),
) -> Scene:
    """Samples a scene with one object, its longer side uniform in `span` (shares of `SIDE`)."""
    style, picture = choose_sprite(noun, styles, rng)
    mirrored = rng.random() < 0.5
    longer_side = round(SIDE * rng.uniform(*span))
    box = _place_object(load_sprites(style)[noun][picture].size, longer_side, [], rng)
    assert box is not None  # an empty picture always has room
    obj = SceneObject(noun, _size_name(longer_side), box, style, picture, mirrored)
    return Scene(str(rng.choice(list(PLACES))), int(rng.integers(2**31)), (obj,))


def render_scene(
    scene: Scene, side: int = SIDE, alter: Callable[[Image.Image], Image.Image] | None = None
) -> Image.Image:
    """Draws a scene as an RGB picture of `side` by `side` pixels.

    Args:
        scene: what to draw.
        side: pixels; boxes are scaled to it.
        alter: augments each sprite before it is drawn.
    """
    picture = paint_background(scene.place, side, np.random.default_rng(scene.background_seed))
    scale = side / SIDE
    for obj in scene.objects:
        x1, y1, x2, y2 = (round(edge * scale) for edge in obj.xyxy)
        sprite = alter(obj.sprite()) if alter else obj.sprite()
        sprite = sprite.resize((max(1, x2 - x1), max(1, y2 - y1)), Image.Resampling.BICUBIC)
        picture.paste(sprite, (x1, y1), sprite)
    return picture
