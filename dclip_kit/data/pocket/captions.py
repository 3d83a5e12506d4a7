"""Captions of scenes: written from templates, read back, and held against any scene.

Reading back is written apart from writing: it proves that every statement is true, and tells how
many other scenes a caption fits, which bounds the recall that a perfect model can reach.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from tqdm.auto import tqdm

from dclip_kit.data.pocket.backgrounds import PLACES
from dclip_kit.data.pocket.scenes import SIDE, Scene, SceneObject
from dclip_kit.data.pocket.sprites import load_nouns

COUNT_WORDS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("to the left of", "to the right of", "above", "below")
POSITIONS = {  # said of the middle of an object's box, in thirds of the picture
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


@dataclass(frozen=True)
class Statement:
    """What a caption says: things, perhaps a relation of the first two, a position, a place."""

    mentions: tuple[Mention, ...]
    relation: str | None = None
    position: str | None = None
    place: str | None = None


def related(first: SceneObject, relation: str, second: SceneObject) -> bool:
    """Whether the boxes lie so, wholly: "left of" means ends before the other begins."""
    a, b = first.xyxy, second.xyxy
    return {
        "to the left of": a[2] <= b[0],
        "to the right of": a[0] >= b[2],
        "above": a[3] <= b[1],
        "below": a[1] >= b[3],
    }[relation]


def holds(statement: Statement, scene: Scene) -> bool:
    """Whether everything that a caption states is true of a scene."""
    if statement.place is not None and statement.place != scene.place:
        return False
    candidates = []
    for mention in statement.mentions:
        same = [thing for thing in scene.objects if thing.noun == mention.noun]
        fitting = [thing for thing in same if mention.size in (None, thing.size)]
        if not fitting or (mention.count > 1 and len(same) != mention.count):
            return False
        candidates.append(fitting)
    if statement.position is not None:
        inside = POSITIONS[statement.position]
        candidates[0] = [
            thing
            for thing in candidates[0]
            if inside(
                (thing.xyxy[0] + thing.xyxy[2]) / 2 / SIDE,
                (thing.xyxy[1] + thing.xyxy[3]) / 2 / SIDE,
            )
        ]
    if statement.relation is not None:
        return any(
            related(first, statement.relation, second)
            for first in candidates[0]
            for second in candidates[1]
        )
    return bool(candidates[0])


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


def _mention(thing: SceneObject, scene: Scene, sized: bool) -> Mention:
    count = sum(other.noun == thing.noun for other in scene.objects)
    if count > 1:
        return Mention(thing.noun, count)
    return Mention(thing.noun, 1, thing.size if sized and thing.size != "medium" else None)


def _list_text(scene: Scene, share: float, sized: bool, rng: np.random.Generator) -> str:
    """Names the things, each kind once, or at least one of them and a share of the others."""
    kinds = list({thing.noun: thing for thing in scene.objects}.values())
    order = [kinds[i] for i in rng.permutation(len(kinds))]
    shown = [order[0], *(thing for thing in order[1:] if rng.random() < share)]
    return _join([_phrase(_mention(thing, scene, sized)) for thing in shown])


def _relation_text(scene: Scene, rng: np.random.Generator) -> str | None:
    """How two things that are each alone of their kind stand to each other; None if no two are."""
    single = [t for t in scene.objects if _mention(t, scene, False).count == 1]
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
    a, b = (_phrase(_mention(thing, scene, rng.random() < 0.4)) for thing in (first, second))
    if relation == "to the left of" and rng.random() < 0.3:
        return f"{a} on the left and {b} on the right"
    return f"{a} {relation} {b}"


def _position_text(scene: Scene, rng: np.random.Generator) -> str | None:
    """Where one thing is; None if nothing is alone of its kind and clearly somewhere."""
    options = [
        (thing, position)
        for thing in scene.objects
        for position in POSITIONS
        if _mention(thing, scene, False).count == 1
        and holds(Statement((Mention(thing.noun),), position=position), scene)
    ]
    if not options:
        return None
    thing, position = options[rng.integers(len(options))]
    return f"{_phrase(_mention(thing, scene, rng.random() < 0.4))} {position}"


def write_captions(scene: Scene, rng: np.random.Generator) -> tuple[str, ...]:
    """Writes five different true captions: full, sized, related, partial and positioned ones."""
    captions: dict[str, None] = {}
    while len(captions) < 5:
        kind = len(captions)
        body: str | None = None
        if kind == 2:
            body = _relation_text(scene, rng)
        elif kind == 4:
            body = _position_text(scene, rng) if rng.random() < 0.5 else _relation_text(scene, rng)
        if body is None:
            share = 0.5 if kind == 3 else 1.0
            body = _list_text(scene, share, sized=kind in (1, 2), rng=rng)
        with_place = rng.random() < (0.5, 0.4, 0.3, 0.8, 0.5)[kind]
        captions[_finish(body, scene, with_place, rng)] = None
    return tuple(captions)


@cache
def _mention_of() -> dict[str, Mention]:
    """Every phrase that can name a thing, with what it means."""
    phrases = {}
    for index, noun in enumerate(load_nouns()):
        phrases[noun.singular] = Mention(index)
        for size in ("small", "large"):
            phrases[f"a {size} {noun.noun}"] = Mention(index, 1, size)
        for count, word in COUNT_WORDS.items():
            phrases[f"{word} {noun.plural}"] = Mention(index, count)
    return phrases


def read_caption(caption: str) -> Statement:
    """Reads a caption back into what it states.

    Raises:
        ValueError: the caption is not of the templates' language.
    """
    body, place, relation, position = caption, None, None, None
    said = [(phrase, name) for name, (_, phrases) in PLACES.items() for phrase in phrases]
    for phrase, name in said:
        stripped = body.removeprefix(f"{phrase}, ").removesuffix(f" {phrase}")
        if stripped != body:
            body, place = stripped, name
            break
    for opening in sorted(OPENINGS, key=len, reverse=True):
        if opening and body.startswith(opening):
            body = body.removeprefix(opening)
            break
    for phrase in POSITIONS:
        if body.endswith(f" {phrase}"):
            body, position = body.removesuffix(f" {phrase}"), phrase
    sides = re.fullmatch(r"(.+) on the left and (.+) on the right", body)
    if sides:
        relation, parts = "to the left of", list(sides.groups())
    else:
        parts = re.split(r", | and ", body)
        for word in RELATIONS:
            if f" {word} " in body:
                relation, parts = word, body.split(f" {word} ", 1)
    unknown = [part for part in parts if part not in _mention_of()]
    if unknown:
        raise ValueError(
            f"Expected a pocket caption, but {unknown[0]!r} in {caption!r} names no known thing."
        )
    return Statement(tuple(_mention_of()[part] for part in parts), relation, position, place)


def count_matches(captions: Sequence[str], scenes: Sequence[Scene]) -> np.ndarray:
    """For each caption, how many of the scenes it is true of, int array of shape (caption,)."""
    having: dict[int, list[Scene]] = {}
    for scene in scenes:
        for noun in {thing.noun for thing in scene.objects}:
            having.setdefault(noun, []).append(scene)
    counts = np.zeros(len(captions), dtype=np.int64)
    for index, caption in enumerate(tqdm(captions, desc="caption ceiling", delay=2)):
        statement = read_caption(caption)
        rarest = min((having.get(m.noun, []) for m in statement.mentions), key=len)
        counts[index] = sum(holds(statement, scene) for scene in rarest)
    return counts
