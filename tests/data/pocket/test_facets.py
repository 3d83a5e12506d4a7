"""Facets of captions: their words, and the scenes behind them."""

import pytest
import torch

from dclip_kit.data.pocket.facets import (
    FACETS,
    query_facets,
    relation_words,
    things_in,
)
from dclip_kit.data.pocket.scenes import Scene, SceneObject
from dclip_kit.data.pocket.sprites import load_nouns

NOUN = {noun.noun: index for index, noun in enumerate(load_nouns())}


def thing(noun: str, size: str) -> SceneObject:
    return SceneObject(NOUN[noun], size, (0, 0, 50, 50), "noto", 0, False)


SCENES = [
    Scene("meadow", 0, (thing("dog", "large"), thing("cat", "small"), thing("cat", "medium"))),
    Scene("sea", 0, (thing("dog", "medium"),)),
]


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a dog to the left of a cat", "left or right"),
        ("a dog on the left and a cat on the right", "left or right"),
        ("a dog above a cat at sea", "above or below"),
        ("a dog below a cat", "above or below"),
        ("a cup on top of a box", "above or below"),
        ("a dog on the left side in the snow", "one thing’s place"),
        ("a dog at the bottom", "one thing’s place"),
        ("a dog in the middle", "one thing’s place"),
        ("a dog and a leftover cake in front of a brick wall", "none"),
        ("two dogs", "none"),
    ],
)
def test_words_for_where_things_are(caption, words) -> None:
    assert relation_words(caption) == words
    assert words in FACETS["words for where things are"]


def test_facets_are_those_of_the_scene_and_the_caption() -> None:
    texts = ["a dog", "two cats", "a dog above two cats", "a dog in the middle"]
    facets = query_facets(texts, torch.tensor([0, 0, 0, 1]), SCENES)
    assert facets == {
        "objects in the picture": ["three", "three", "three", "one"],
        "smallest object named": ["large", "small", "small", "medium"],
        "words for where things are": ["none", "none", "above or below", "one thing’s place"],
    }
    assert list(facets) == list(FACETS)
    assert all(set(groups) <= set(FACETS[facet]) for facet, groups in facets.items())


def test_without_scenes_only_the_words_count() -> None:
    facets = query_facets(["a man left of a car"], torch.tensor([0]))
    assert facets == {"words for where things are": ["left or right"]}


def test_things_are_kinds_and_counted_once() -> None:
    assert things_in(SCENES) == [{"dog", "cat"}, {"dog"}]
