"""Compositions differ in one respect, each caption is true of its own scene alone."""

from collections import Counter

import pytest
from PIL import Image

from dclip_kit.data.pocket.compositions import (
    KINDS,
    Composition,
    load_compositions,
    make_composition,
)
from dclip_kit.data.pocket.scenes import SIDE
from dclip_kit.data.pocket.sprites import load_nouns
from tests.data.pocket.test_captions import is_true


def make_many(kind: str) -> list[Composition]:
    return [make_composition(kind, index) for index in range(200)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_is_true_of_its_own_scene_alone(kind: str) -> None:
    for item in make_many(kind):
        true = [[is_true(caption, scene) for caption in item.captions] for scene in item.scenes]
        assert true == [[True, False], [False, True]], item.captions


@pytest.mark.parametrize("kind", KINDS)
def test_things_lie_in_the_picture_and_apart(kind: str) -> None:
    for item in make_many(kind):
        for scene in item.scenes:
            boxes = [thing.xyxy for thing in scene.objects]
            assert all(0 <= edge <= SIDE for box in boxes for edge in box)
            for number, (left, top, right, bottom) in enumerate(boxes):
                for other in boxes[:number]:
                    apart = right <= other[0] or other[2] <= left
                    assert apart or bottom <= other[1] or other[3] <= top


def test_each_kind_changes_what_it_says() -> None:
    domain = {noun.noun for noun in load_nouns() if noun.domain}
    assert domain
    for kind in KINDS:
        for item in make_many(kind):
            one, other = (caption.split() for caption in item.captions)
            scenes = item.scenes
            assert (scenes[0].place, scenes[0].background_seed) == (
                scenes[1].place,
                scenes[1].background_seed,
            )
            things = [[(t.noun, t.style, t.picture) for t in scene.objects] for scene in scenes]
            assert kind == "number" or things[0] == things[1]
            if kind == "order":
                assert Counter(one) == Counter(other) and one != other
            if kind in ("relation", "size"):
                assert sum(a != b for a, b in zip(one, other, strict=True)) == 1
            if kind == "number":
                assert abs(len(things[0]) - len(things[1])) == 1
            if kind == "attribute":
                assert Counter(one) == Counter(other)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_wording_comes_first_more_often(kind: str) -> None:
    first = Counter()
    for item in make_many(kind):
        words = [caption.replace(",", "").split() for caption in item.captions]
        first[min(words) == words[0]] += 1
    assert 60 < first[True] < 140


def test_items_are_drawn_once(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path))
    data = load_compositions("size", 3)
    assert len(data) == 6
    assert data.captions[4:] == tuple((each,) for each in make_composition("size", 2).captions)
    times = [path.stat().st_mtime_ns for path in data.paths]
    assert Image.open(data.paths[0]).size == (SIDE, SIDE)
    assert [path.stat().st_mtime_ns for path in load_compositions("size", 3).paths] == times


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="order, relation, size, number, attribute"):
        make_composition("colour", 0)


@pytest.mark.parametrize("count", [0, -1])
def test_no_items_are_refused(count) -> None:
    with pytest.raises(ValueError, match=f"one item or more of each kind, got {count}; ask for"):
        load_compositions("size", count)
