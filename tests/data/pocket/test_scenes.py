"""Scenes: where things stand, how large they are, and that boxes are exact to the pixel."""

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageOps

from dclip_kit.data.pocket.backgrounds import PLACES, paint_background
from dclip_kit.data.pocket.scenes import SIDE, Scene, SceneObject, render_scene
from dclip_kit.data.pocket.scenes import sample_scene as sample
from dclip_kit.data.pocket.scenes import sample_single as single
from dclip_kit.data.pocket.sprites import HELD_OUT_STYLE, KNOWN_STYLES, load_nouns, load_sprites

NOUNS = range(len(load_nouns()))
STYLES = (*KNOWN_STYLES, HELD_OUT_STYLE)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample(np.random.default_rng(seed), NOUNS, STYLES) for seed in range(800)]


@pytest.fixture(scope="module")
def singles() -> list[Scene]:
    return [single(np.random.default_rng([1, i]), i % len(NOUNS), STYLES) for i in range(3000)]


# Where things are


def test_boxes_lie_inside_the_picture_and_apart(scenes, singles) -> None:
    for scene in [*scenes, *singles]:
        boxes = [thing.xyxy for thing in scene.objects]
        assert all(0 <= x1 < x2 <= SIDE and 0 <= y1 < y2 <= SIDE for x1, y1, x2, y2 in boxes)
        for a, b in combinations(boxes, 2):
            gaps = (b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3])
            assert max(gaps) >= 3, scene


def test_sizes_mean_what_they_say_and_shapes_are_kept(scenes) -> None:
    pixels = {"small": (40, 54), "medium": (68, 88), "large": (108, 136)}
    for thing in (thing for scene in scenes for thing in scene.objects):
        width, height = thing.xyxy[2] - thing.xyxy[0], thing.xyxy[3] - thing.xyxy[1]
        low, high = pixels[thing.size]
        assert low <= max(width, height) <= high
        sprite = load_sprites(thing.style)[thing.noun][thing.picture]
        scale = max(width, height) / max(sprite.size)
        expected = [max(4, side * scale) for side in sprite.size]
        assert np.abs(np.subtract(expected, (width, height))).max() <= 0.5


def test_all_that_can_be_drawn_is_drawn(scenes) -> None:
    things = [thing for scene in scenes for thing in scene.objects]
    for counts, expected in [
        (Counter(scene.place for scene in scenes), set(PLACES)),
        (Counter(thing.size for thing in things), {"small", "medium", "large"}),
        (Counter(thing.style for thing in things), set(STYLES)),
        (Counter(thing.mirrored for thing in things), {True, False}),
    ]:
        assert set(counts) == expected
        assert min(counts.values()) > 0.3 * counts.total() / len(counts), counts
    assert {thing.noun for thing in things} == set(NOUNS)


def test_one_to_four_things_as_often_as_asked_but_for_want_of_room(scenes) -> None:
    counts = Counter(len(scene.objects) for scene in scenes)
    assert set(counts) == {1, 2, 3, 4}
    asked = np.cumsum((0.25, 0.3, 0.3))  # four things, three or more, two or more
    found = np.cumsum([counts[number] for number in (4, 3, 2)]) / len(scenes)
    assert ((found < asked + 0.05) & (found > asked - 0.15)).all(), found


@pytest.mark.parametrize(
    ("changes", "nouns"),
    [
        ({"repeat_probability": 1.0}, lambda nouns: len(set(nouns)) == 1),
        ({"repeat_probability": 0.0, "nouns": range(3, 5)}, lambda nouns: set(nouns) <= {3, 4}),
        ({"first": 77}, lambda nouns: nouns[0] == 77),
        ({"nouns": [5, 9], "first": 77}, lambda nouns: nouns[0] == 77 and {*nouns} <= {5, 9, 77}),
        ({"count_probabilities": (1.0,)}, lambda nouns: len(nouns) == 1),
    ],
)
def test_a_caller_decides_what_appears(changes, nouns) -> None:
    arguments = {"nouns": NOUNS, "styles": ("noto",)} | changes
    for seed in range(40):
        scene = sample(np.random.default_rng(seed), **arguments)
        assert nouns([thing.noun for thing in scene.objects]), scene
        assert {thing.style for thing in scene.objects} == {"noto"}


def test_a_crowded_picture_keeps_what_has_room() -> None:
    scene = sample(np.random.default_rng(0), NOUNS, STYLES, [0.0] * 59 + [1.0])
    boxes = [thing.xyxy for thing in scene.objects]
    assert 5 < len(boxes) < 60
    assert len(set(boxes)) == len(boxes)


def test_a_seed_decides_the_scene() -> None:
    def draw(seed: int) -> Scene:
        return sample(np.random.default_rng(seed), NOUNS, STYLES)

    assert draw(3) == draw(3) != draw(4)


# Single objects


def test_a_single_objects_span_is_uniform_from_a_quarter_to_three_quarters(singles) -> None:
    spans = []
    for index, scene in enumerate(singles):
        (thing,) = scene.objects
        x1, y1, x2, y2 = thing.xyxy
        spans.append(max(x2 - x1, y2 - y1))
        assert thing.noun == index % len(NOUNS)
        # Half-way between the sizes' middles, 47, 78 and 122.
        assert thing.size == (
            "medium" if 62.5 < spans[-1] <= 100 else "large" if spans[-1] > 100 else "small"
        )
    assert (min(spans), max(spans)) == (64, 192)
    share = np.histogram(spans, bins=np.linspace(63.5, 192.5, 9))[0] / len(spans)
    assert np.abs(share - 1 / 8).max() < 0.025  # four standard deviations


def test_a_single_object_takes_the_span_that_is_asked_for() -> None:
    for seed in range(20):
        (thing,) = single(np.random.default_rng(seed), 4, ("noto",), (1.0, 1.0)).objects
        assert max(np.subtract(thing.xyxy[2:], thing.xyxy[:2])) == SIDE


# Drawing


def background(scene: Scene, side: int = SIDE) -> np.ndarray:
    rng = np.random.default_rng(scene.background_seed)
    return np.asarray(paint_background(scene.place, side, rng))


def test_what_is_drawn_fills_its_boxes_exactly_and_nothing_else(scenes, singles) -> None:
    for scene in [*scenes[:60], *singles[:60]]:
        drawn = (np.asarray(render_scene(scene)) != background(scene)).any(-1)
        for x1, y1, x2, y2 in (thing.xyxy for thing in scene.objects):
            inside = drawn[y1:y2, x1:x2].copy()
            for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert edge.any(), scene  # the object reaches each side of its box
            drawn[y1:y2, x1:x2] = False
        assert not drawn.any(), scene


def test_a_small_picture_shows_the_same_scene(scenes) -> None:
    for scene in scenes[:20]:
        small = render_scene(scene, 64)
        assert small.size == (64, 64) and small.mode == "RGB"
        drawn = (np.asarray(small) != background(scene, 64)).any(-1)
        for thing in scene.objects:
            x1, y1, x2, y2 = (round(edge / 4) for edge in thing.xyxy)
            assert drawn[y1:y2, x1:x2].mean() > 0.15
            drawn[y1:y2, x1:x2] = False
        assert not drawn.any()


def test_each_thing_is_drawn_with_its_own_picture() -> None:
    """At the atlas's own size, opaque pixels arrive unchanged; a mirrored thing is swapped."""
    pig = [noun.noun for noun in load_nouns()].index("pig")
    sprite = load_sprites("photo")[pig][2]
    box = (10, 20, 10 + sprite.width, 20 + sprite.height)
    for mirrored in (False, True):
        thing = SceneObject(pig, "large", box, "photo", 2, mirrored)
        expected = ImageOps.mirror(sprite) if mirrored else sprite
        opaque = np.asarray(expected.getchannel("A")) == 255
        found = render_scene(Scene("sea", 0, (thing,))).crop(box)
        assert opaque.mean() > 0.2
        assert (np.asarray(found)[opaque] == np.asarray(expected)[opaque][:, :3]).all()


def test_alter_changes_every_sprite_but_no_box(scenes) -> None:
    scene = next(scene for scene in scenes if len(scene.objects) == 4)
    seen: list[Image.Image] = []

    def redden(sprite: Image.Image) -> Image.Image:
        seen.append(sprite)
        return Image.new("RGBA", (5, 5), (255, 0, 0, 255))

    drawn = np.asarray(render_scene(scene, alter=redden))
    assert seen == [thing.sprite() for thing in scene.objects]
    red = (drawn == (255, 0, 0)).all(-1)
    for x1, y1, x2, y2 in (thing.xyxy for thing in scene.objects):
        assert red[y1:y2, x1:x2].all()
        red[y1:y2, x1:x2] = False
    assert red.mean() < 0.01


def test_the_background_seed_changes_only_the_background(scenes) -> None:
    scene = scenes[0]
    other = replace(scene, background_seed=scene.background_seed + 1)
    same = (np.asarray(render_scene(scene)) == np.asarray(render_scene(other))).all(-1)
    for thing in scene.objects:
        x1, y1, x2, y2 = thing.xyxy
        opaque = thing.sprite().resize((x2 - x1, y2 - y1), Image.Resampling.BICUBIC)
        assert same[y1:y2, x1:x2][np.asarray(opaque.getchannel("A")) == 255].all()
        same[y1:y2, x1:x2] = False
    assert same.mean() < 0.9
