"""Pairs of scenes and captions that differ in one respect alone: positions, sizes or numbers.

After Winoground (arXiv 2204.03162): of each item's two captions the first is true of the first
scene alone, and the second of the second. Each caption is compared with each scene, so a caption
that sounds likelier without a picture gains nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from dclip_kit.data import CaptionedImages
from dclip_kit.data.pocket.backgrounds import PLACES
from dclip_kit.data.pocket.captions import COUNT_WORDS, OPENINGS
from dclip_kit.data.pocket.scenes import SIDE, SIZES, Scene, SceneObject
from dclip_kit.data.pocket.sprites import KNOWN_STYLES, choose_sprite, load_nouns, load_sprites
from dclip_kit.data.pocket.world import SEED, cache_folder, draw_scenes

# What the two captions of an item differ in, after ARO and SugarCrepe.
KINDS = ("order", "relation", "size", "number", "attribute")
_SWAPPED = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}
_STREAM = 1000  # keeps its random numbers apart from those of the other pocket data


@dataclass(frozen=True)
class Composition:
    """Two scenes, and for each a caption that is true of it and false of the other."""

    scenes: tuple[Scene, Scene]
    captions: tuple[str, str]


def make_composition(kind: str, index: int) -> Composition:
    """The item with a number, of one kind.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"Expected a kind out of {', '.join(KINDS)}, got {kind!r}.")
    rng = np.random.default_rng([SEED, _STREAM + KINDS.index(kind), index])
    nouns = load_nouns()
    first, second = rng.permutation([i for i, noun in enumerate(nouns) if noun.domain])[:2].tolist()
    a, b = nouns[first], nouns[second]
    objects: list[tuple[SceneObject, ...]]
    if kind in ("order", "relation"):
        relation = str(rng.choice(list(_SWAPPED)))
        near, far = _two_centers(relation, rng)
        one, other = _sample(first, "medium", near, rng), _sample(second, "medium", far, rng)
        objects = [(one, other), (_move(one, far), _move(other, near))]
        texts = [f"{a.singular} {relation} {b.singular}", f"{b.singular} {relation} {a.singular}"]
        if kind == "relation":
            texts[1] = f"{a.singular} {_SWAPPED[relation]} {b.singular}"
    elif kind == "size":
        center = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7)
        obj = _sample(first, "small", center, rng)
        objects = [(obj,), (_resize(obj, "large", center, rng),)]
        texts = [f"a small {a.noun}", f"a large {a.noun}"]
    elif kind == "number":
        corners = [(x, y) for x in (0.25, 0.75) for y in (0.25, 0.75)]
        centers = [corners[i] for i in rng.permutation(4)]
        same = tuple(_sample(first, "medium", center, rng) for center in centers)
        few = int(rng.integers(2, 4))
        objects = [same[:few], same[: few + 1]]
        texts = [f"{COUNT_WORDS[count]} {a.plural}" for count in (few, few + 1)]
    else:
        left, right = (0.18, rng.uniform(0.3, 0.7)), (0.65, rng.uniform(0.3, 0.7))
        small, large = _sample(first, "small", left, rng), _sample(second, "large", right, rng)
        left, right = (1 - right[0], right[1]), (1 - left[0], left[1])
        exchanged = _resize(small, "large", left, rng), _resize(large, "small", right, rng)
        objects = [(small, large), exchanged]
        texts = [
            f"a small {a.noun} and a large {b.noun}",
            f"a large {a.noun} and a small {b.noun}",
        ]
    place, seed = str(rng.choice(list(PLACES))), int(rng.integers(2**31))
    opening = OPENINGS[rng.integers(len(OPENINGS))]
    order = [0, 1] if rng.random() < 0.5 else [1, 0]  # neither comes first more often
    scenes = [Scene(place, seed, objects[i]) for i in order]
    captions = [opening + texts[i] for i in order]
    return Composition((scenes[0], scenes[1]), (captions[0], captions[1]))


Center = tuple[float, float]  # of an object, as shares of the picture's sides


def _two_centers(relation: str, rng: np.random.Generator) -> tuple[Center, Center]:
    """The centres of two objects of medium size, the first in a relation to the second."""
    near, far = rng.uniform(0.18, 0.31), rng.uniform(0.69, 0.82)
    across = rng.uniform(0.18, 0.82, 2)
    if relation in ("to the right of", "below"):
        near, far = far, near
    if relation in ("above", "below"):
        return (across[0], near), (across[1], far)
    return (near, across[0]), (far, across[1])


def _sample(noun: int, size: str, center: Center, rng: np.random.Generator) -> SceneObject:
    style, picture = choose_sprite(noun, KNOWN_STYLES, rng)
    obj = SceneObject(noun, size, (0, 0, 0, 0), style, picture, bool(rng.random() < 0.5))
    return _resize(obj, size, center, rng)


def _resize(obj: SceneObject, size: str, center: Center, rng: np.random.Generator) -> SceneObject:
    shape = load_sprites(obj.style)[obj.noun][obj.picture].size
    longer = int(rng.integers(SIZES[size][0], SIZES[size][1] + 1))
    width, height = (max(4, round(side * longer / max(shape))) for side in shape)
    return _move(replace(obj, size=size, xyxy=(0, 0, width, height)), center)


def _move(obj: SceneObject, center: Center) -> SceneObject:
    width, height = obj.xyxy[2] - obj.xyxy[0], obj.xyxy[3] - obj.xyxy[1]
    x, y = round(center[0] * SIDE - width / 2), round(center[1] * SIDE - height / 2)
    return replace(obj, xyxy=(x, y, x + width, y + height))


def load_compositions(kind: str, count: int = 1000) -> CaptionedImages:
    """Items of one kind as pictures, two an item, each with its true caption.

    Missing pictures are drawn now, into `cache_folder()`.

    Raises:
        ValueError: the kind is unknown, or there is no item.
    """
    if count < 1:
        raise ValueError(f"Expected one item or more of each kind, got {count}; ask for 1000.")
    items = [make_composition(kind, index) for index in range(count)]
    fingerprint = sha256(Path(__file__).read_bytes()).hexdigest()[:8]  # as `cache_folder`'s
    folder = cache_folder() / f"compositions-{fingerprint}" / kind
    scenes = [scene for item in items for scene in item.scenes]
    paths = [folder / f"{number // 2:05d}-{number % 2}.jpg" for number in range(len(scenes))]
    draw_scenes(paths, scenes.__getitem__, f"drawing compositions ({kind})")
    captions: Sequence[str] = [caption for item in items for caption in item.captions]
    source = f"pocket compositions ({kind})"
    return CaptionedImages(tuple(paths), tuple((each,) for each in captions), "test", source)
