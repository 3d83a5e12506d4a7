"""Every caption is true of its scene: a reader of this file holds it against the boxes.

The reader shares no line with what writes captions, and is itself tried on statements by hand.
"""

import json
import re
from collections import Counter
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest

from dclip_kit.data.pocket.backgrounds import PLACES
from dclip_kit.data.pocket.captions import (
    related,
    write_captions,
)
from dclip_kit.data.pocket.scenes import Scene, SceneObject, sample_scene
from dclip_kit.data.pocket.sprites import KNOWN_STYLES, load_nouns
from dclip_kit.data.pocket.world import RECALL_CEILING, SCENE_SPLITS, make_scene
from dclip_kit.runtime.files import asset_path

# The reader

PLACE_OF = {
    "on the grass": "meadow",
    "in a meadow": "meadow",
    "in the snow": "snow",
    "on a snowy field": "snow",
    "in the desert": "desert",
    "on desert sand": "desert",
    "on the beach": "beach",
    "at the seaside": "beach",
    "on the water": "sea",
    "at sea": "sea",
    "in the sky": "sky",
    "among the clouds": "sky",
    "at night": "night",
    "under the stars": "night",
    "on a wooden table": "table",
    "on wooden boards": "table",
    "on a checkered tablecloth": "tablecloth",
    "on a checkered cloth": "tablecloth",
    "in front of a brick wall": "brick wall",
    "by a brick wall": "brick wall",
}
NOUNS = json.loads(asset_path("sprites", "nouns.json").read_text(encoding="utf-8"))
THINGS = {}  # phrase -> (noun, least count, most count, least side, most side)
for _index, _noun in enumerate(NOUNS):
    THINGS[_noun["singular"]] = (_index, 1, 99, 0, 256)
    THINGS[f"a small {_noun['noun']}"] = (_index, 1, 99, 0, 54)
    THINGS[f"a large {_noun['noun']}"] = (_index, 1, 99, 108, 256)
    for _count, _word in enumerate(("two", "three", "four"), start=2):
        THINGS[f"{_word} {_noun['plural']}"] = (_index, _count, _count, 0, 256)

_PLACE = "|".join(PLACE_OF)
_OPENING = r"(?:a picture of |a photo of |you can see |we see |a scene with |an image showing )?"
_RELATION = "to the left of|to the right of|above|below"
_SPOT = "on the left side|on the right side|at the top|at the bottom|in the middle"
SENTENCE = re.compile(
    rf"(?:(?P<front>{_PLACE}), |{_OPENING})"
    rf"(?:(?P<one>[a-z ]+?) (?P<relation>{_RELATION}) (?P<other>[a-z ]+?)"
    rf"|(?P<left>[a-z ]+?) on the left and (?P<right>[a-z ]+?) on the right"
    rf"|(?P<placed>[a-z ]+?) (?P<spot>{_SPOT})"
    rf"|(?P<things>[a-z ]+?(?:, [a-z ]+?)*(?: and [a-z ]+?)?))"
    rf"(?: (?P<back>{_PLACE}))?"
)


def boxes_of(phrase: str, scene: Scene) -> list[tuple[int, ...]]:
    """Boxes of the things that a phrase may mean; none if the scene does not bear it out."""
    noun, least, most, smallest, largest = THINGS[phrase]
    same = [thing.xyxy for thing in scene.objects if thing.noun == noun]
    sides = [max(x2 - x1, y2 - y1) for x1, y1, x2, y2 in same]
    fit = [box for box, side in zip(same, sides, strict=True) if smallest <= side <= largest]
    return fit if least <= len(same) <= most else []


class Statement(NamedTuple):
    """What a caption says: phrases for things, and where these or the scene are."""

    phrases: tuple[str, ...]
    relation: str | None
    spot: str | None
    place: str | None


@cache
def read(caption: str) -> Statement:
    said = SENTENCE.fullmatch(caption)
    assert said, f"Not of the language: {caption}"
    place = PLACE_OF.get(said["front"] or said["back"])
    if said["left"]:
        return Statement((said["left"], said["right"]), "to the left of", None, place)
    if said["relation"]:
        return Statement((said["one"], said["other"]), said["relation"], None, place)
    if said["spot"]:
        return Statement((said["placed"],), None, said["spot"], place)
    return Statement(tuple(re.split(", | and ", said["things"])), None, None, place)


def is_true(caption: str, scene: Scene) -> bool:
    said = read(caption)
    true = said.place in (None, scene.place)
    true &= all(boxes_of(phrase, scene) for phrase in said.phrases)
    if said.relation:
        true &= any(
            {
                "to the left of": max(range(*a[0::2])) < min(range(*b[0::2])),
                "to the right of": min(range(*a[0::2])) > max(range(*b[0::2])),
                "above": max(range(*a[1::2])) < min(range(*b[1::2])),
                "below": min(range(*a[1::2])) > max(range(*b[1::2])),
            }[said.relation]
            for a in boxes_of(said.phrases[0], scene)
            for b in boxes_of(said.phrases[1], scene)
        )
    if said.spot:
        true &= any(
            {
                "on the left side": x1 + x2 < 2 * 256 / 3,
                "on the right side": x1 + x2 > 4 * 256 / 3,
                "at the top": y1 + y2 < 2 * 256 / 3,
                "at the bottom": y1 + y2 > 4 * 256 / 3,
                "in the middle": max(abs(x1 + x2 - 256), abs(y1 + y2 - 256)) < 256 / 3,
            }[said.spot]
            for x1, y1, x2, y2 in boxes_of(said.phrases[0], scene)
        )
    return true


def kinds_of(caption: str) -> list[str]:
    """What kinds of things a caption says."""
    said = read(caption)
    words = [word for phrase in said.phrases for word in phrase.split()[:2]]
    kinds = ("a", "an", "two", "three", "four", "small", "large")
    return [*filter(None, said[1:]), *(word for word in words if word in kinds)]


@pytest.fixture(scope="module")
def made() -> list[tuple[Scene, tuple[str, ...]]]:
    """Every scene of every split, with its captions."""
    return [make_scene(split, i) for split, size in SCENE_SPLITS.items() for i in range(size)]


# What is written


def test_every_caption_of_every_split_is_true(made) -> None:
    false = [text for scene, texts in made for text in texts if not is_true(text, scene)]
    kinds = Counter(kind for _, texts in made for text in texts for kind in kinds_of(text))
    assert not false, false[:5]
    least = {kind: 100 for kind in (*_RELATION.split("|"), *_SPOT.split("|"), *PLACES)}
    least |= {"a": 100, "an": 100, "two": 100, "three": 20, "four": 1, "small": 100, "large": 100}
    assert not {kind: kinds[kind] for kind in least if kinds[kind] < least[kind]}
    assert set(kinds) == set(least)


def test_a_scene_has_five_different_captions_in_plain_letters(made) -> None:
    for _, texts in made:
        assert len(set(texts)) == len(texts) == 5
        assert all(re.fullmatch(r"[a-z, ]+", text) and "  " not in text for text in texts)


def test_where_two_things_are_each_alone_of_their_kind_a_caption_relates_them(made) -> None:
    """Alt-text never does: this is what fine-tuning can teach."""
    said = {True: [], False: []}
    for scene, texts in made:
        alone = [n for n, count in Counter(t.noun for t in scene.objects).items() if count == 1]
        said[len(alone) > 1].append(any(re.search(_RELATION + "|left and", t) for t in texts))
    assert all(said[True]) and len(said[True]) > 3000
    assert not any(said[False])


def test_captions_are_written_for_any_scene_however_plain() -> None:
    for seed in range(300):
        rng = np.random.default_rng([3, seed])
        scene = sample_scene(rng, range(len(NOUNS)), KNOWN_STYLES, repeat_probability=0.6)
        texts = write_captions(scene, rng)
        assert len(set(texts)) == 5 and all(is_true(text, scene) for text in texts)


def test_a_phrase_means_one_thing() -> None:
    phrases = Counter(noun[key] for noun in NOUNS for key in ("singular", "plural"))
    assert {p for p, n in phrases.items() if n > 1} == set()
    assert len(THINGS) == 6 * len(NOUNS)
    words = {word for phrase in THINGS for word in phrase.split()}
    assert not words & {"and", "on", "in", "at", "above", "below", "left", "right", "by"}


# The reader, on scenes written by hand


def thing(noun: str, size: str, *xyxy: int) -> SceneObject:
    index = [entry.noun for entry in load_nouns()].index(noun)
    return SceneObject(index, size, xyxy, "noto", 0, False)


PARK = Scene(
    "meadow",
    0,
    (
        thing("pig", "small", 0, 0, 50, 40),  # left, top
        thing("pig", "large", 20, 120, 150, 250),  # left of the middle, bottom
        thing("owl", "medium", 180, 90, 240, 170),  # right, at middle height
    ),
)
SKY = Scene("sky", 0, tuple(thing("owl", "small", x, 0, x + 50, 40) for x in (0, 90, 200)))
CRAB = Scene("beach", 0, (thing("crab", "medium", 90, 90, 170, 170),))


@pytest.mark.parametrize(
    ("caption", "scene", "true"),
    [
        ("a pig", PARK, True),
        ("an owl", PARK, True),
        ("a crab", PARK, False),
        ("two pigs", PARK, True),
        ("three pigs", PARK, False),
        ("two owls", PARK, False),
        ("a small pig", PARK, True),
        ("a large pig", PARK, True),
        ("a large owl", PARK, False),
        ("a small owl", PARK, False),
        ("two pigs and an owl", PARK, True),
        ("a crab, two pigs and an owl", PARK, False),
        ("two pigs and an owl in a meadow", PARK, True),
        ("an owl on the grass", PARK, True),
        ("an owl in the snow", PARK, False),
        ("on the grass, two pigs", PARK, True),
        ("at sea, two pigs", PARK, False),
        ("a photo of a pig to the left of an owl", PARK, True),
        ("an owl to the right of a large pig", PARK, True),
        ("an owl to the left of a pig", PARK, False),
        ("a small pig above an owl", PARK, True),
        ("a large pig above an owl", PARK, False),
        ("a large pig below an owl", PARK, False),  # it begins before the owl ends
        ("a large pig below a small pig", PARK, True),
        ("a crab to the left of an owl", PARK, False),
        ("a pig on the left and an owl on the right", PARK, True),
        ("an owl on the left and a pig on the right in a meadow", PARK, False),
        ("an owl on the right side", PARK, True),
        ("an owl on the left side", PARK, False),
        ("an owl at the top", PARK, False),
        ("an owl in the middle", PARK, False),
        ("a pig at the top", PARK, True),
        ("a large pig at the top", PARK, False),
        ("a large pig at the bottom in a meadow", PARK, True),
        ("an owl", SKY, True),
        ("two owls", SKY, False),  # exactly two
        ("three owls", SKY, True),
        ("four owls", SKY, False),
        ("a crab in the middle", CRAB, True),
        ("a crab in the middle at the seaside", CRAB, True),
        ("a crab in the middle at night", CRAB, False),
        ("a crab at the bottom", CRAB, False),
    ],
)
def test_statements_written_by_hand(caption, scene, true) -> None:
    assert is_true(caption, scene) is true


@pytest.mark.parametrize(("edge", "true"), [(99, True), (100, True), (101, False)])
def test_left_of_ends_where_the_other_begins(edge, true) -> None:
    first, second = (
        thing("pig", "medium", 0, 0, edge, 80),
        thing("owl", "medium", 100, 0, 180, 80),
    )
    assert related(first, "to the left of", second) is true
    assert related(second, "to the right of", first) is true
    assert is_true("a pig to the left of an owl", Scene("sea", 0, (first, second))) is true


# How many scenes a caption fits


def test_the_stored_ceiling_is_that_of_the_test_scenes(made) -> None:
    """A perfect model finds a caption's own scene among those that it fits, by chance."""
    test = made[-SCENE_SPLITS["test"] :]
    scenes_of: dict[int, list[Scene]] = {}
    for scene, _ in test:
        for noun in {obj.noun for obj in scene.objects}:
            scenes_of.setdefault(noun, []).append(scene)
    matches = []
    for own, texts in test:
        for text in texts:
            nouns = [THINGS[phrase][0] for phrase in read(text).phrases]
            rarest = min((scenes_of[noun] for noun in nouns), key=len)
            assert own in rarest
            matches.append(sum(is_true(text, scene) for scene in rarest))
    assert len(matches) == 5000 and min(matches) == 1 and max(matches) > 20
    ceiling = sum(1 / count for count in matches) / len(matches)  # nothing tells them apart
    assert ceiling == pytest.approx(RECALL_CEILING, abs=5e-5)
