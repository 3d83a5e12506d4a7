"""The nouns and their pictures: three drawn styles, photographs, and a held-out style."""

import json
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from dclip_kit.runtime.files import asset_path

TILE = 128  # pixels; a sprite's longer side in the atlas
ATLAS_COLUMNS = 12
KNOWN_STYLES = ("fluent", "noto", "twemoji", "photo")
HELD_OUT_STYLE = "openmoji"  # in no training data of any model


@dataclass(frozen=True)
class Noun:
    """One kind of object that can appear in a scene.

    Attributes:
        noun: class name, as zero-shot classification uses it ("pair of glasses").
        singular: with its article ("a pair of glasses").
        plural: without an article ("pairs of glasses").
        category: the super-category that the detector learns.
        codepoint: of the emoji that the drawn styles show.
        photos: file names of its photographs in their package; may be empty.
        domain: whether fine-tuning scenes may show it.
    """

    noun: str
    singular: str
    plural: str
    category: str
    codepoint: str
    photos: tuple[str, ...]
    domain: bool


@cache
def load_nouns() -> tuple[Noun, ...]:
    """Reads the nouns in their fixed order (the order of class indices)."""
    entries = json.loads(asset_path("sprites", "nouns.json").read_text(encoding="utf-8"))
    return tuple(Noun(**{**entry, "photos": tuple(entry["photos"])}) for entry in entries)


@cache
def load_categories() -> tuple[str, ...]:
    """The detector's labels, in order of first appearance."""
    return tuple(dict.fromkeys(noun.category for noun in load_nouns()))


def _trim(tile: Image.Image) -> Image.Image:
    box = tile.getchannel("A").point(lambda alpha: 255 * (alpha > 24)).getbbox()
    return tile.crop(box)


@cache
def load_sprites(style: str) -> tuple[tuple[Image.Image, ...], ...]:
    """Reads one atlas.

    Args:
        style: one of `KNOWN_STYLES` or `HELD_OUT_STYLE`.

    Returns:
        For each noun its RGBA sprites without transparent borders: one in a drawn style, none or
        several in the photographed one.

    Raises:
        ValueError: the style is unknown.
    """
    if style not in (*KNOWN_STYLES, HELD_OUT_STYLE):
        known = ", ".join((*KNOWN_STYLES, HELD_OUT_STYLE))
        raise ValueError(f"Expected a sprite style out of {known}, got {style!r}.")
    atlas = Image.open(asset_path("sprites", f"{style}.webp")).convert("RGBA")
    sprites, index = [], 0
    for noun in load_nouns():
        count = len(noun.photos) if style == "photo" else 1
        corners = [
            (i % ATLAS_COLUMNS * TILE, i // ATLAS_COLUMNS * TILE)
            for i in range(index, index + count)
        ]
        sprites.append(tuple(_trim(atlas.crop((x, y, x + TILE, y + TILE))) for x, y in corners))
        index += count
    return tuple(sprites)


def choose_sprite(
    noun_index: int, styles: tuple[str, ...], rng: np.random.Generator
) -> tuple[str, int]:
    """Samples a style that has the noun, then the number of one of its sprites there."""
    available = [style for style in styles if load_sprites(style)[noun_index]]
    style = available[rng.integers(len(available))]
    return style, int(rng.integers(len(load_sprites(style)[noun_index])))
