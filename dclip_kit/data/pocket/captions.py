"""Captions of scenes, written from templates."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dclip_kit.data.pocket.backgrounds import PLACES
from dclip_kit.data.pocket.scenes import SIDE, Scene, SceneObject
from dclip_kit.data.pocket.sprites import load_nouns

COUNT_WORDS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("to the left of", "to the right of", "above", "below")
POSITIONS = {  # of the centre of an object's box, as shares of the picture
    "on the left side": lambda x, y: x < 1 / 3,
    "on the right side": lambda x, y: x > 2 / 3,
    "at the top": lambda x, y: y < 1 / 3,
    "at the bottom": lambda x, y: y > 2 / 3,
    "in the middle": lambda x, y: 1 / 3 < x < 2 / 3 and 1 / 3 < y < 2 / 3,
}
OPENINGS = (
    "",
    "",
    "",
    "a picture of ",
    "a photo of ",
    "you can see ",
    "we see ",
    "a scene with ",
    "an image showing ",
)


@dataclass(frozen=True)
class Mention:
    """A noun as a caption names it: one means "at least one", more means "exactly so many"."""

    noun: int
    count: int = 1
    size: str | None = None


def related(first: SceneObject, relation: str, second: SceneObject) -> bool:
    """Whether a relation holds of the whole boxes: "left of" ends before the other begins."""
    a, b = first.xyxy, second.xyxy
    return {
        "to the left of": a[2] <= b[0],
        "to the right of": a[0] >= b[2],
        "above": a[3] <= b[1],
        "below": a[1] >= b[3],
    }[relation]


def _is_at(obj: SceneObject, position: str) -> bool:
    x1, y1, x2, y2 = obj.xyxy
    return POSITIONS[position]((x1 + x2) / 2 / SIDE, (y1 + y2) / 2 / SIDE)


def _phrase(mention: Mention) -> str:
    noun = load_nouns()[mention.noun]
    if mention.count > 1:
        return f"{COUNT_WORDS[mention.count]} {noun.plural}"
    return f"a {mention.size} {noun.noun}" if mention.size else noun.singular


def _join(phrases: Sequence[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _finish(body: str, scene: Scene, with_place: bool, rng: np.random.Generator) -> str:
    opening = OPENINGS[rng.integers(len(OPENINGS))]
    if not with_place:
        return opening + body
    phrases = PLACES[scene.place][1]
    place = phrases[rng.integers(len(phrases))]
    return f"{place}, {body}" if rng.random() < 0.2 else f"{opening}{body} {place}"


def _mention(obj: SceneObject, scene: Scene, sized: bool) -> Mention:
    count = sum(other.noun == obj.noun for other in scene.objects)
    if count > 1:
        return Mention(obj.noun, count)
    return Mention(obj.noun, 1, obj.size if sized and obj.size != "medium" else None)


def _single_objects(scene: Scene) -> list[SceneObject]:
    """The objects that are the only ones of their noun."""
    return [obj for obj in scene.objects if _mention(obj, scene, sized=False).count == 1]


def _list_text(scene: Scene, probability: float, sized: bool, rng: np.random.Generator) -> str:
    """Names one object of each noun: the first always, the others with a probability."""
    objects = list({obj.noun: obj for obj in scene.objects}.values())
    order = [objects[i] for i in rng.permutation(len(objects))]
    named = [order[0], *(obj for obj in order[1:] if rng.random() < probability)]
    return _join([_phrase(_mention(obj, scene, sized)) for obj in named])


def _relation_text(scene: Scene, rng: np.random.Generator) -> str | None:
    """The relation of two single objects; None if there are no two."""
    single = _single_objects(scene)
    options = [
        (a, relation, b)
        for a in single
        for b in single
        for relation in RELATIONS
        if a is not b and related(a, relation, b)
    ]
    if not options:
        return None
    first, relation, second = options[rng.integers(len(options))]
    a, b = (_phrase(_mention(obj, scene, rng.random() < 0.4)) for obj in (first, second))
    if relation == "to the left of" and rng.random() < 0.3:
        return f"{a} on the left and {b} on the right"
    return f"{a} {relation} {b}"


def _position_text(scene: Scene, rng: np.random.Generator) -> str | None:
    """Where a single object is; None if there is none, or it has no clear position."""
    options = [
        (obj, position)
        for obj in _single_objects(scene)
        for position in POSITIONS
        if _is_at(obj, position)
    ]
    if not options:
        return None
    obj, position = options[rng.integers(len(options))]
    return f"{_phrase(_mention(obj, scene, rng.random() < 0.4))} {position}"


def write_captions(scene: Scene, rng: np.random.Generator) -> tuple[str, ...]:
    """Writes five different true captions.

    In this order: all objects, all with sizes, a relation, some objects, a position or a relation.
    """
    captions: dict[str, None] = {}
    while len(captions) < 5:
        kind = len(captions)
        body: str | None = None
        if kind == 2:
            body = _relation_text(scene, rng)
        elif kind == 4:
            body = _position_text(scene, rng) if rng.random() < 0.5 else _relation_text(scene, rng)
        if body is None:
            probability = 0.5 if kind == 3 else 1.0
            body = _list_text(scene, probability, sized=kind in (1, 2), rng=rng)
        with_place = rng.random() < (0.5, 0.4, 0.3, 0.8, 0.5)[kind]
        captions[_finish(body, scene, with_place, rng)] = None
    return tuple(captions)
