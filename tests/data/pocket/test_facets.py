"""Facets of captions: their words, and the scenes behind them."""

import pytest
import torch

from dclip_kit.data.pocket.captions import count_matches
from dclip_kit.data.pocket.facets import (
    FACETS,
    query_facets,
    relation_words,
    swap_relation,
    things_in,
)
from dclip_kit.data.pocket.scenes import Scene, SceneObject
from dclip_kit.data.pocket.sprites import load_nouns
from dclip_kit.data.pocket.world import make_scene

NOUN = {noun.noun: index for index, noun in enumerate(load_nouns())}


def thing(noun: str, size: str) -> SceneObject:
    return SceneObject(NOUN[noun], size, (0, 0, 50, 50), "noto", 0, False)


SCENES = [
    Scene("meadow", 0, (thing("dog", "large"), thing("cat", "small"), thing("cat", "medium"))),
    Scene("sea", 0, (thing("dog", "medium"),)),
]


@pytest.mark.parametrize(
    ("caption", "words", "swapped"),
    [
        ("a dog to the left of a cat", "left or right", "a dog to the right of a cat"),
        ("a dog on the left and a cat on the right", "left or right", None),
        ("a dog above a cat at sea", "above or below", "a dog below a cat at sea"),
        ("a dog below a cat", "above or below", "a dog above a cat"),
        ("a cup on top of a box", "above or below", None),  # no single word stands against it
        ("a dog on the left side in the snow", "one thing’s place", None),
        ("a dog at the bottom", "one thing’s place", None),
        ("a dog in the middle", "one thing’s place", None),
        ("a dog and a leftover cake in front of a brick wall", "none", None),
        ("two dogs", "none", None),
    ],
)
def test_words_for_where_things_are(caption, words, swapped) -> None:
    assert relation_words(caption) == words
    if "on the left and" in caption:
        swapped = "a dog on the right and a cat on the left"
    assert swap_relation(caption) == swapped
    assert words in FACETS["words for where things are"]


def test_swapping_twice_gives_the_caption_back_and_swapping_once_a_false_one() -> None:
    seen = 0
    for index in range(30):
        scene, captions = make_scene("val", index)
        for caption in captions:
            if (swapped := swap_relation(caption)) is not None:
                seen += 1
                assert swap_relation(swapped) == caption
                if " on the left and " in caption:
                    continue  # the reader knows this phrase in one order only
                matches = count_matches([caption, swapped], [scene]).tolist()
                assert matches == [1, 0]
    assert seen > 20


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
