"""Weak alt-text names what is there and relates nothing; its pictures vary and stay pictures."""

import re

import numpy as np
import pytest
from PIL import Image, ImageOps

from assets.make.weak_pairs import NAMED_BESIDE, augment_sprite, weak_pair, weak_text
from dclip_kit.data.pocket import scenes, sprites
from dclip_kit.data.pocket.backgrounds import PLACES
from dclip_kit.data.pocket.captions import POSITIONS, RELATIONS
from dclip_kit.data.pocket.scenes import sample_scene, sample_single
from dclip_kit.data.pocket.sprites import HELD_OUT_STYLE, KNOWN_STYLES, load_nouns, load_sprites

NOUNS = load_nouns()
# Longest first, so that "a tropical fish" is not read as a fish.
NAMES = sorted(
    ((name, index) for index, noun in enumerate(NOUNS) for name in {noun.noun, noun.plural}),
    key=lambda entry: -len(entry[0]),
)
PHRASES = {phrase: place for place, (_, phrases) in PLACES.items() for phrase in phrases}


@pytest.fixture(scope="module")
def texts() -> list[tuple[scenes.Scene, str]]:
    """Alt-text of single objects and of several, half of each."""
    pairs = []
    for seed in range(2400):
        rng, noun = np.random.default_rng([5, seed]), seed % len(NOUNS)
        if seed % 2:
            scene = sample_single(rng, noun, KNOWN_STYLES)
        else:
            scene = sample_scene(rng, range(len(NOUNS)), KNOWN_STYLES, (0.0, 0.5, 0.5), first=noun)
        pairs.append((scene, weak_text(scene, rng)))
    return pairs


def named(text: str) -> tuple[set[int], str]:
    """The nouns that a text names, and the words that are left."""
    found = set()
    for name, index in NAMES:
        if re.search(rf"\b{name}\b", text):
            found.add(index)
            text = re.sub(rf"\b{name}\b", "", text)
    return found, text


def test_alt_text_names_the_main_thing_and_only_what_is_there(texts) -> None:
    complete = 0
    for scene, text in texts:
        for phrase, place in PHRASES.items():
            if phrase in text:
                assert place == scene.place, text
                text = text.replace(phrase, "")
        found, _ = named(text)
        there = {thing.noun for thing in scene.objects}
        assert scene.objects[0].noun in found and found <= there, (text, there)
        complete += found == there and len(there) > 1
    assert 0.2 < complete / (len(texts) / 2) < 0.6  # it leaves out much


def test_what_is_small_beside_the_main_thing_is_seldom_named(texts) -> None:
    """Of pairs of two different nouns, whose second is named as often as its size says."""
    seen: dict[str, list[bool]] = {size: [] for size in NAMED_BESIDE}
    for scene, text in texts:
        if len(scene.objects) == 2 and len({thing.noun for thing in scene.objects}) == 2:
            seen[scene.objects[1].size].append(scene.objects[1].noun in named(text)[0])
    for size, share in NAMED_BESIDE.items():
        assert len(seen[size]) > 50 and np.mean(seen[size]) == pytest.approx(share, abs=0.12)


def test_alt_text_counts_rightly(texts) -> None:
    words = {"two": 2, "three": 3, "four": 4}
    said = 0
    for scene, text in texts:
        for word, count in words.items():
            for plural in re.findall(
                rf"\b{word} ([a-z ]+?)(?= and |,| on | in | at | by |$)", text
            ):
                (index,) = named(plural)[0]
                assert sum(thing.noun == index for thing in scene.objects) == count, text
                said += 1
    assert said > 50


def test_alt_text_never_says_where_things_are_and_seldom_their_size(texts) -> None:
    for _, text in texts:
        assert not any(phrase in text for phrase in (*RELATIONS, *POSITIONS)), text
        for phrase in PHRASES:
            text = text.replace(phrase, "")
        left = set(re.findall("[a-z]+", named(text)[1]))
        assert not left & {"left", "right", "above", "below", "top", "bottom", "middle", "beside"}
    sizes = [(scene, re.search(r"\b(small|medium|large)\b", text)) for scene, text in texts]
    assert 0 < np.mean([bool(size) for _, size in sizes]) < 0.05
    assert all(scene.objects[0].size == size[0] for scene, size in sizes if size)


def test_the_held_out_style_is_never_drawn(monkeypatch) -> None:
    def guarded(style: str) -> tuple:
        assert style != HELD_OUT_STYLE, "drew the held-out style"
        return load_sprites(style)

    for module in (sprites, scenes):
        monkeypatch.setattr(module, "load_sprites", guarded)
    for seed in range(150):
        weak_pair(seed % len(NOUNS), 64, np.random.default_rng(seed), 0.5, (0.2, 0.95))
    with pytest.raises(AssertionError, match="held-out"):
        sample_single(np.random.default_rng(0), 0, (HELD_OUT_STYLE,))


def test_a_pair_is_decided_by_its_seed() -> None:
    def pair(seed: int) -> tuple[bytes, str]:
        picture, text = weak_pair(3, 64, np.random.default_rng(seed), 0.65, (0.2, 0.95))
        assert picture.size == (64, 64) and picture.mode == "RGB"
        return picture.tobytes(), text

    assert pair(1) == pair(1)
    assert len({pair(seed)[0] for seed in range(20)}) == 20


@pytest.mark.parametrize(("share", "counts"), [(1.0, {1}), (0.0, {2, 3, 4})])
def test_single_share_says_how_often_a_noun_is_alone(monkeypatch, share, counts) -> None:
    """By what is handed to the drawing; a crowded scene may lose things, so two may become one."""
    seen = []
    monkeypatch.setattr(
        "assets.make.weak_pairs.render_scene",
        lambda scene, side, alter: seen.append(scene) or Image.new("RGB", (side, side)),
    )
    for seed in range(60):
        weak_pair(7, 64, np.random.default_rng(seed), share, (0.5, 0.5))
    assert all(scene.objects[0].noun == 7 for scene in seen)
    if counts == {1}:
        assert {len(scene.objects) for scene in seen} == {1}
        spans = {max(np.subtract(s.objects[0].xyxy[2:], s.objects[0].xyxy[:2])) for s in seen}
        assert spans == {128}
    else:
        assert np.mean([len(scene.objects) in counts for scene in seen]) > 0.8
        for scene in seen:  # the noun is what the picture is about
            sides = [np.subtract(t.xyxy[2:], t.xyxy[:2]).max() for t in scene.objects]
            assert sides[0] == max(sides)


def test_augmented_sprites_vary_and_stay_sprites() -> None:
    sprite = load_sprites("noto")[5][0]
    before, plain = sprite.tobytes(), ImageOps.contain(sprite, (64, 64))
    results = [augment_sprite(sprite, 64, np.random.default_rng(seed)) for seed in range(60)]
    assert sprite.tobytes() == before
    assert all(r.mode == "RGBA" and r.getchannel("A").getextrema()[1] > 200 for r in results)
    assert all(r.width >= plain.width and r.height >= plain.height for r in results)
    assert any(r.tobytes() == plain.tobytes() for r in results)  # now and then as it is
    assert len({r.tobytes() for r in results}) > 40
    again = augment_sprite(sprite, 64, np.random.default_rng(0))
    assert again.tobytes() == results[0].tobytes()
