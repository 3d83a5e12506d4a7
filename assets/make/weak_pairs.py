"""Weak image-text pairs like CLIP's training data: alt-text that names and seldom describes."""

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from dclip_kit.data.pocket.backgrounds import PLACES
from dclip_kit.data.pocket.scenes import (
    Scene,
    SceneObject,
    render_scene,
    sample_scene,
    sample_single,
)
from dclip_kit.data.pocket.sprites import KNOWN_STYLES, load_nouns

ALT_TEXTS = (
    "{thing}",
    "{thing}",
    "a photo of {thing}",
    "a picture of {thing}",
    "an image of {thing}",
    "a photo of {thing} {place}",
    "{thing} {place}",
    "{thing} {place}",
    "{noun}",
    "my {noun}",
    "one {noun}",
    "a {size} {noun}",
    "the {noun}",
    "{thing} for sale",
    "stock photo of {thing}",
    "here is {thing}",
    "a close-up of {thing}",
    "{thing}, {place}",
)
LIST_TEXTS = (
    "{things}",
    "{things} {place}",
    "a photo of {things}",
    "{place}, {things}",
    "a picture with {things}",
    "there is {things}",
)
# How often a thing other than the main one is named: alt-text tells what a picture is about.
NAMED_BESIDE = {"small": 0.15, "medium": 0.4, "large": 0.75}


def weak_text(scene: Scene, rng: np.random.Generator) -> str:
    """Writes alt-text: names things and sometimes the place, omits much, and states no relation.

    The scene's first object is what the picture is about.
    """
    nouns = load_nouns()
    phrases = PLACES[scene.place][1]
    place = phrases[rng.integers(len(phrases))]
    if len(scene.objects) == 1:
        noun = nouns[scene.objects[0].noun]
        text = ALT_TEXTS[rng.integers(len(ALT_TEXTS))]
        return text.format(
            thing=noun.singular, noun=noun.noun, place=place, size=scene.objects[0].size
        )
    named = {scene.objects[0].noun}
    counts: dict[int, int] = {}
    for thing in scene.objects:
        counts[thing.noun] = counts.get(thing.noun, 0) + 1
        if rng.random() < NAMED_BESIDE[thing.size]:
            named.add(thing.noun)
    words = ("", "", "two ", "three ", "four ")
    things = [
        nouns[index].singular if count == 1 else words[count] + nouns[index].plural
        for index, count in counts.items()
        if index in named
    ]
    order = [things[i] for i in rng.permutation(len(things))]
    joined = ", ".join(order[:-1]) + " and " + order[-1] if len(order) > 1 else order[0]
    return LIST_TEXTS[rng.integers(len(LIST_TEXTS))].format(things=joined, place=place)


def draw_as_lines(sprite: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Redraws a sprite like a pen drawing: dark lines where colours meet, over paler fills."""
    smooth = sprite.convert("L").filter(ImageFilter.GaussianBlur(0.8))  # fur has no outlines
    edges = smooth.filter(ImageFilter.FIND_EDGES).point(lambda edge: 255 * (edge > 35))
    if rng.random() < 0.5:
        edges = edges.filter(ImageFilter.MaxFilter(3))
    alpha = sprite.getchannel("A")
    paper = Image.new("RGB", sprite.size, "white")
    fills = Image.blend(sprite.convert("RGB"), paper, float(rng.choice([0.0, 0.3, 0.6, 0.95])))
    fills.paste((15, 15, 15), mask=edges)
    fills.putalpha(alpha)
    return fills


def augment_sprite(
    sprite: Image.Image, side: int, rng: np.random.Generator, line_art: float = 0.0
) -> Image.Image:
    """Varies colours, rotation and outlines, so that shape counts and other styles are recognised.

    Args:
        sprite: RGBA, at the atlas's size.
        side: of the target picture, in pixels; the sprite needs no more.
        rng: the only source of randomness.
        line_art: how often the sprite is redrawn in lines.
    """
    sprite = ImageOps.contain(sprite, (side, side))
    lines = line_art > 0 and rng.random() < line_art
    if lines:
        sprite = draw_as_lines(sprite, rng)
    if rng.random() < 0.3:
        sprite = sprite.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR, expand=True)
    if lines or rng.random() < 0.3:  # an ink outline around the silhouette
        border = 3
        alpha = Image.new("L", (sprite.width + 2 * border, sprite.height + 2 * border))
        alpha.paste(sprite.getchannel("A"), (border, border))
        inked = Image.new("RGBA", alpha.size)
        inked.putalpha(alpha.filter(ImageFilter.MaxFilter(2 * int(rng.integers(1, 4)) + 1)))
        inked.paste(sprite, (border, border), sprite)
        sprite = inked
    if rng.random() < 0.6:
        pixels: np.ndarray = np.asarray(sprite, dtype=np.float32)
        color = pixels[..., :3]
        if rng.random() < 0.25:  # flat colours, as icons have
            levels = float(rng.integers(3, 6))
            color = np.round(color / 255 * levels) / levels * 255
        mix = np.eye(3) + rng.normal(0, 0.12, (3, 3))
        gray = color.mean(-1, keepdims=True)
        color = (color - gray) * rng.uniform(0, 1.4) + gray
        color = (color @ mix - 128) * rng.uniform(0.7, 1.3) + 128 + rng.uniform(-25, 25)
        pixels = np.concatenate([np.clip(color, 0, 255), pixels[..., 3:]], -1)
        sprite = Image.fromarray(pixels.astype(np.uint8), "RGBA")
    return sprite


def _longer_side(thing: SceneObject) -> int:
    x1, y1, x2, y2 = thing.xyxy
    return max(x2 - x1, y2 - y1)


def weak_pair(
    noun: int,
    side: int,
    rng: np.random.Generator,
    single_share: float,
    span: tuple[float, float],
    line_art: float = 0.0,
) -> tuple[Image.Image, str]:
    """One picture in which a noun appears, and its alt-text.

    Args:
        noun: index of the noun that is always shown.
        side: of the picture in pixels, CLIP's own input size.
        rng: the only source of randomness.
        single_share: how often the noun is alone.
        span: the smallest and the largest share of the side that a single object takes.
        line_art: how often a sprite is redrawn in lines.
    """
    if rng.random() < single_share:
        scene = sample_single(rng, noun, KNOWN_STYLES, span)
    else:
        everything = range(len(load_nouns()))
        while True:  # until the noun is the largest thing, the one that alt-text would name
            scene = sample_scene(rng, everything, KNOWN_STYLES, (0.0, 0.5, 0.3, 0.2), first=noun)
            if _longer_side(scene.objects[0]) == max(map(_longer_side, scene.objects)):
                break
    text = weak_text(scene, rng)
    picture = render_scene(scene, side, lambda sprite: augment_sprite(sprite, side, rng, line_art))
    if rng.random() < 0.2:  # small crops are enlarged, and therefore soft
        small = int(side * rng.uniform(0.4, 0.9))
        picture = picture.resize((small, small), Image.Resampling.BILINEAR)
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    return picture, text
