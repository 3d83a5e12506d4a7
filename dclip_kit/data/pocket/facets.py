"""Facets of captions, by what they ask for: to see for which of them search gets better.

Where the scenes behind the pictures are known (as for the pocket data), objects give facets too.
"""

import re
from collections.abc import Sequence
from functools import cache

from jaxtyping import Int
from torch import Tensor

from dclip_kit.data.pocket.scenes import SIZES, Scene
from dclip_kit.data.pocket.sprites import load_nouns

# Words for where things are: "on the left side" places one thing, "to the left of" relates two.
_WORDS = {
    "one thing’s place": re.compile(
        r"\b(on the (left|right) side|at the (top|bottom)|in the middle)\b"
    ),
    "left or right": re.compile(r"\b(left|right)\b"),
    "above or below": re.compile(r"\b(above|below|over|under|beneath|on top of)\b"),
}
# Each facet's groups, in the order in which figures show them.
FACETS = {
    "objects in the picture": ("one", "two", "three", "four"),
    "smallest object named": tuple(SIZES),
    "words for where things are": ("none", *_WORDS),
}


def relation_words(caption: str) -> str:
    """The first group of the facet "words for where things are" that fits a caption."""
    return next((group for group, words in _WORDS.items() if words.search(caption)), "none")


@cache
def _noun_names() -> tuple[re.Pattern[str], dict[str, int]]:
    """What finds the nouns in a caption, and the index of each by its singular and plural name."""
    index = {}
    for number, noun in enumerate(load_nouns()):
        index[noun.noun] = index[noun.plural] = number
    longest_first = sorted(index, key=len, reverse=True)  # "hot dog" before "dog"
    return re.compile(rf"\b({'|'.join(map(re.escape, longest_first))})\b"), index


def query_facets(
    texts: Sequence[str],
    image_of_text: Int[Tensor, "_text"],
    scenes: Sequence[Scene] | None = None,
) -> dict[str, list[str]]:
    """The group of each caption under each facet.

    Args:
        texts: captions.
        image_of_text: each caption's picture.
        scenes: what is in each picture; None if unknown, which leaves only the facet that depends
            on the captions' words.
    """
    words = {"words for where things are": [relation_words(text) for text in texts]}
    if scenes is None:
        return words
    pattern, index_of_noun = _noun_names()
    indices, smallest = image_of_text.tolist(), []
    for text, index in zip(texts, indices, strict=True):
        named_nouns = {index_of_noun[name] for name in pattern.findall(text)}
        sizes = {obj.size for obj in scenes[index].objects if obj.noun in named_nouns}
        smallest.append(next(size for size in SIZES if size in sizes))
    count_names = FACETS["objects in the picture"]
    object_counts = [count_names[len(scenes[index].objects) - 1] for index in indices]
    return {"objects in the picture": object_counts, "smallest object named": smallest, **words}


def things_in(scenes: Sequence[Scene]) -> list[frozenset[str]]:
    """The names of the nouns in each scene."""
    nouns = load_nouns()
    return [frozenset(nouns[obj.noun].noun for obj in scene.objects) for scene in scenes]
