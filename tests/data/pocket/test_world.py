"""The splits' promises, and a cache that no interruption or order changes."""

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dclip_kit.data.pocket import world as data
from dclip_kit.data.pocket.scenes import SIDE, Scene, SceneObject, render_scene
from dclip_kit.data.pocket.sprites import HELD_OUT_STYLE, KNOWN_STYLES, load_nouns
from dclip_kit.runtime.files import asset_path

SCENES, SINGLES = dict(data.SCENE_SPLITS), dict(data.SINGLE_SPLITS)
NOUNS = load_nouns()
SIZES = SCENES | {split: per_noun * len(NOUNS) for split, (per_noun, _) in SINGLES.items()}


@pytest.fixture(scope="module")
def made() -> dict[str, list[Scene]]:
    """Every scene of every split."""
    return {
        split: [data.make_scene(split, number)[0] for number in range(size)]
        for split, size in SIZES.items()
    }


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """Splits of a few pictures, in a cache of the test's own."""
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "SCENE_SPLITS", {"train": 4, "val": 6, "test": 9})
    monkeypatch.setattr(
        data, "SINGLE_SPLITS", {split: (1, styles) for split, (_, styles) in SINGLES.items()}
    )
    return tmp_path / "cache"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# What the splits hold


def test_splits_are_as_large_as_promised() -> None:
    assert SCENES == {"train": 4000, "val": 500, "test": 1000}
    assert SIZES["zero_shot"] == SIZES["zero_shot_held_out"] == 30 * len(NOUNS) >= 4000


def test_no_scene_is_in_two_splits_or_twice_in_one(made) -> None:
    owners: dict[tuple, list[str]] = {}
    for split, scenes in made.items():
        for scene in scenes:
            owners.setdefault((scene.place, scene.objects), []).append(split)
    assert [where for where in owners.values() if len(where) > 1] == []
    assert len(owners) == sum(SCENES.values()) + (40 + 30 + 30) * len(NOUNS)


@pytest.mark.parametrize("split", SCENES)
def test_scenes_show_all_of_the_domain_and_nothing_else(made, split) -> None:
    shown = Counter(thing.noun for scene in made[split] for thing in scene.objects)
    assert set(shown) == {index for index, noun in enumerate(NOUNS) if noun.domain}
    if split == "train":
        assert max(shown.values()) < 2 * min(shown.values())


@pytest.mark.parametrize("split", SINGLES)
def test_zero_shot_shows_every_noun_equally_often_and_alone(made, split) -> None:
    assert {len(scene.objects) for scene in made[split]} == {1}
    shown = Counter(scene.objects[0].noun for scene in made[split])
    assert set(shown) == set(range(len(NOUNS)))
    assert set(shown.values()) == {SINGLES[split][0]}


@pytest.mark.parametrize("split", ["zero_shot", "zero_shot_held_out"])
def test_zero_shot_objects_span_a_quarter_to_three_quarters_uniformly(made, split) -> None:
    boxes = np.array([scene.objects[0].xyxy for scene in made[split]])
    spans = (boxes[:, 2:] - boxes[:, :2]).max(1) / SIDE
    assert spans.min() >= 0.25 and spans.max() <= 0.75
    share = np.histogram(spans, bins=5, range=(0.249, 0.751))[0] / len(spans)
    assert np.abs(share - 0.2).max() < 0.025  # four standard deviations


def test_the_held_out_style_is_held_out_of_all_but_its_own_split(made) -> None:
    for split, scenes in made.items():
        styles = {thing.style for scene in scenes for thing in scene.objects}
        assert styles == ({HELD_OUT_STYLE} if "held_out" in split else set(KNOWN_STYLES)), split


def test_the_data_are_those_that_published_figures_were_measured_on() -> None:
    """Whoever changes this changes every picture: retrain the weights and measure again."""
    scene, captions = data.make_scene("test", 4)
    assert scene == Scene(
        "beach",
        2075976560,
        (
            SceneObject(122, "small", (190, 219, 235, 256), "fluent", 0, True),
            SceneObject(122, "large", (90, 20, 208, 112), "twemoji", 0, True),
            SceneObject(103, "large", (40, 137, 172, 255), "twemoji", 0, True),
        ),
    )
    assert captions == (
        "a high heel and two telephones",
        "a large high heel and two telephones on the beach",
        "a scene with two telephones and a large high heel",
        "a picture of a high heel at the seaside",
        "two telephones and a high heel at the seaside",
    )


# Drawing them


def draw(split: str, cache: Path) -> Path:
    """Draws a split into a cache; gives the folder of the pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCLIP_CACHE", str(cache))
        return data.load_captioned(split).paths[0].parent


def test_the_order_of_drawing_changes_no_byte(small, tmp_path) -> None:
    data.load_captioned("val", 2, first=3)  # two are there already, drawn before the others
    parts, whole = draw("val", small), draw("val", tmp_path / "whole")
    assert contents(parts) == contents(whole)
    assert sorted(contents(whole)) == [f"{i:06d}.jpg" for i in range(6)]


def test_pictures_are_the_scenes_drawn(small) -> None:
    for index, path in enumerate(data.load_captioned("val").paths):
        drawn = np.asarray(render_scene(data.make_scene("val", index)[0])).astype(float)
        with Image.open(path) as stored:
            assert np.abs(np.asarray(stored) - drawn).mean() < 6  # JPEG


def test_a_cache_cut_off_half_way_is_noticed_and_finished(small) -> None:
    folder = draw("val", small)
    whole = contents(folder)
    for name in ("000000.jpg", "000002.jpg", "000005.jpg"):
        (folder / name).unlink()
    (folder / "000002.tmp").write_bytes(b"half of")
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.jpg")}
    found = contents(draw("val", small))
    found.pop("000002.tmp")
    assert found == whole
    assert kept == {path: path.stat().st_mtime_ns for path in kept}  # what was whole stays


def test_an_interruption_leaves_whole_pictures(small, tmp_path, monkeypatch) -> None:
    whole = contents(draw("test", tmp_path / "whole"))
    drawn = []

    def run_out(scene: Scene) -> Image.Image:
        drawn.append(scene)
        if len(drawn) == 5:
            raise OSError("no space left on device")
        return render_scene(scene)

    with monkeypatch.context() as patch:
        patch.setattr(data, "render_scene", run_out)
        with pytest.raises(OSError, match="no space"):
            data.load_captioned("test")
    cut = contents(data.cache_folder() / "test")
    assert 4 <= len(cut) < 9 and all(whole[name] == content for name, content in cut.items())
    assert contents(draw("test", small)) == whole


def test_a_whole_cache_is_not_drawn_again(small, monkeypatch) -> None:
    folder = draw("train", small)
    monkeypatch.setattr(data, "render_scene", None)
    assert draw("train", small) == folder


def test_two_who_draw_the_same_split_at_once_do_not_disturb_each_other(small, tmp_path) -> None:
    whole = contents(draw("test", tmp_path / "alone"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: data.load_captioned("test"), range(4)))
    assert contents(data.cache_folder() / "test") == whole


# Reading them


@pytest.mark.slow
@pytest.mark.parametrize("stream", data.STREAMS)
def test_further_scenes_are_of_no_split_and_no_other_stream(made, stream) -> None:
    known = {(scene.place, scene.objects) for scenes in made.values() for scene in scenes}
    others = [each for each in data.STREAMS if each != stream]
    known |= {_look(each, number) for each in others for number in range(2000)}
    own = {_look(stream, number) for number in range(2000)}
    assert len(own) == 2000 and not own & known


@cache
def _look(stream: str, number: int) -> tuple:
    scene = data.make_scene(stream, number)[0]
    return scene.place, scene.objects


def test_further_scenes_are_drawn_when_they_are_asked_for(small, monkeypatch) -> None:
    few = data.load_captioned("further_val", 3)
    before = {path: path.stat().st_mtime_ns for path in few.paths}
    more = data.load_captioned("further_val", 4, first=1)
    assert more.paths[:2] == few.paths[1:] and more.captions[:2] == few.captions[1:]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert more.captions == tuple(data.make_scene("further_val", n)[1] for n in range(1, 5))
    assert more.image_ids[-1] == "pocket:further_val/4"
    monkeypatch.setattr(data, "write_captions", lambda *_: pytest.fail("a caption was written"))
    plain = data.load_captioned("uncaptioned", 3)
    assert plain.captions == ((), (), ()) and all(path.is_file() for path in plain.paths)
    with pytest.raises(ValueError, match="out of train, val, test, got 'uncaptioned'"):
        data.load_captioned("uncaptioned")  # it has no end


def test_a_part_of_a_split_is_drawn_alone_and_equals_the_whole(small) -> None:
    few, later = data.load_captioned("test", 3), data.load_captioned("test", 2, first=7)
    assert sorted(path.name for path in few.paths[0].parent.iterdir()) == [
        f"{number:06d}.jpg" for number in (0, 1, 2, 7, 8)
    ]
    assert data.load_captioned("test").select(range(3)) == few
    assert data.load_captioned("test").select(range(7, 9)) == later
    for count, first, asked in [(0, 0, "0 to -1"), (10, 0, "0 to 9"), (3, 7, "7 to 9")]:
        with pytest.raises(ValueError, match=f"scenes of test from 0 to 8, got {asked}; ask for"):
            data.load_captioned("test", count, first)
    with pytest.raises(ValueError, match="from 0 to 8, got 9 to 8"):
        data.load_captioned("test", first=9)


def test_a_few_pictures_of_each_noun_are_those_of_the_whole(small, monkeypatch) -> None:
    monkeypatch.setitem(data.SINGLE_SPLITS, "zero_shot", (3, KNOWN_STYLES))
    few = data.load_labelled("zero_shot", 2)
    assert len(list(few.paths[0].parent.iterdir())) == 2 * len(NOUNS)
    assert data.load_labelled("zero_shot").take_per_class(2) == few
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"1 to 3 pictures a noun, got {count}; ask for fewer"):
            data.load_labelled("zero_shot", count)


def test_captioned_pictures_come_as_they_were_made(small) -> None:
    dataset = data.load_captioned("test")
    made = [data.make_scene("test", index) for index in range(9)]
    assert data.load_scenes("test") == [scene for scene, _ in made]
    assert dataset.captions == tuple(captions for _, captions in made)
    assert [path.name for path in dataset.paths] == [f"{index:06d}.jpg" for index in range(9)]
    assert all(path.is_file() and small in path.parents for path in dataset.paths)
    assert dataset.split == "test" and len(dataset.texts) == 45


def test_labelled_pictures_come_as_they_were_made(small) -> None:
    dataset = data.load_labelled("zero_shot_held_out")
    assert dataset.labels == tuple(range(len(NOUNS)))
    assert dataset.class_names[dataset.labels[4]] == "a horse"
    assert dataset.in_domain == tuple(noun.domain for noun in NOUNS)
    assert all(path.is_file() and small in path.parents for path in dataset.paths)


@pytest.mark.parametrize(
    ("call", "split", "known"),
    [
        (data.load_scenes, "tests", "train, val, test, got"),
        (lambda split: data.make_scene(split, 0), "tests", "train, val, test, zero_shot_val"),
        (data.load_captioned, "zero_shot", "train, val, test, got 'zero_shot'"),
        (data.load_labelled, "train", "zero_shot_val, zero_shot, zero_shot_held_out, got 'train'"),
    ],
)
def test_an_unknown_split_is_answered_with_the_known_ones(small, call, split, known) -> None:
    with pytest.raises(ValueError, match=f"Expected a pocket split out of {known}"):
        call(split)
    assert not small.exists()  # and leaves nothing behind


# Where they lie


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch) -> None:
    for variable in ("DCLIP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    name = data.cache_folder().name
    assert data.cache_folder() == tmp_path / "home" / ".cache" / "dclip_kit" / name
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data.cache_folder() == tmp_path / "xdg" / "dclip_kit" / name
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path / "mine"))
    assert data.cache_folder() == tmp_path / "mine" / name
    assert name.startswith("pocket-") and os.listdir(tmp_path) == []


def test_another_sprite_means_another_cache_and_another_licence_text_does_not(
    tmp_path, monkeypatch
) -> None:
    for path in asset_path("sprites").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(data, "asset_path", lambda *parts: tmp_path.joinpath(*parts[1:]))
    name = data._fingerprint.__wrapped__
    before = name()
    (tmp_path / "LICENSES.md").write_text("other words")
    assert name() == before
    nouns = json.loads((tmp_path / "nouns.json").read_text())
    (tmp_path / "nouns.json").write_text(json.dumps(nouns[:-1]))
    without_snowman = name()
    (tmp_path / "noto.webp").write_bytes(b"other pixels")
    assert len({before, without_snowman, name()}) == 3


def test_the_command_draws_every_split(small, capsys) -> None:
    data.main()
    shown = capsys.readouterr().out.splitlines()
    assert [Path(line).name for line in shown] == [*data.SCENE_SPLITS, *data.SINGLE_SPLITS]
    assert all(any(Path(line).glob("*.jpg")) for line in shown)
