"""What captions ask for, in words: to see for which of them search gets better.

Where the scenes behind the pictures are known (the pocket's are), their objects are facets too.
"""

import re
from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from dclip_kit.data.pocket.captions import read_caption
from dclip_kit.data.pocket.scenes import SIZES, Scene
from dclip_kit.data.pocket.sprites import load_nouns

# Words for where things are. A place "on the left side" is said of one thing; "to the left of"
# relates two.
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
    """Which words for where things are a caption has: one of the facet's groups, the first."""
    return next((group for group, words in _WORDS.items() if words.search(caption)), "none")


def query_facets(
    texts: Sequence[str],
    image_of_text: Int[Tensor, "_text"],
    scenes: Sequence[Scene] | None = None,
) -> dict[str, list[str]]:
    """The group of each caption under each facet.

    Args:
        texts: captions.
        image_of_text: each caption's picture.
        scenes: what is in each picture; None where nobody knows, which leaves only the facet that
            the captions' words decide.
    """
    words = {"words for where things are": [relation_words(text) for text in texts]}
    if scenes is None:
        return words
    owners, smallest = image_of_text.tolist(), []
    for text, owner in zip(texts, owners, strict=True):
        named = {mention.noun for mention in read_caption(text).mentions}
        sizes = {thing.size for thing in scenes[owner].objects if thing.noun in named}
        smallest.append(next(size for size in SIZES if size in sizes))
    counts = FACETS["objects in the picture"]
    number = [counts[len(scenes[owner].objects) - 1] for owner in owners]
    return {"objects in the picture": number, "smallest object named": smallest, **words}


def things_in(scenes: Sequence[Scene]) -> list[frozenset[str]]:
    """The kinds of things in each scene, by name."""
    nouns = load_nouns()
    return [frozenset(nouns[thing.noun].noun for thing in scene.objects) for scene in scenes]
