"""What features are made from: each thing that decides them changes its own entry, no other."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch

from dclip_kit.config import RegionSettings
from dclip_kit.features.source import describe_source, differing_entries
from dclip_kit.models.clip import load_clip


@pytest.fixture
def given(clip, captioned, detector, tmp_path) -> dict:
    """All that features are made from; pictures and weights in folders of the test's own."""
    paths = [Path(shutil.copy2(path, tmp_path / path.name)) for path in captioned.paths]
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "a").write_bytes(b"1")
    (weights / "b").write_bytes(b"2")
    return {
        "bundle": clip,
        "dataset": replace(captioned, paths=tuple(paths)),
        "settings": RegionSettings(),
        "detector": replace(detector, source=weights),
    }


def project(given) -> None:
    with torch.no_grad():
        given["bundle"].model.text_projection[0, 0] += 1e-3


def write_into(name: str, content: bytes):
    return lambda given: (given["detector"].source / name).write_bytes(content)


def touch(given) -> None:
    path = given["dataset"].paths[3]
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


def grow(given) -> None:
    path, stat = given["dataset"].paths[0], given["dataset"].paths[0].stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def swap_pictures(given) -> None:
    one, other, *rest = given["dataset"].paths
    shutil.copy2(other, one)  # of one state, so that their places are all that changes
    given["dataset"] = replace(given["dataset"], paths=(one, other, *rest))
    given["before"] = describe_source(**{k: v for k, v in given.items() if k != "before"})
    given["dataset"] = replace(given["dataset"], paths=(other, one, *rest))


def caption(*captions):
    def change(given) -> None:
        given["dataset"] = replace(given["dataset"], captions=captions)

    return change


def setting(part: str, **changes):
    def change(given) -> None:
        given[part] = replace(given[part], **changes)

    return change


def preprocess(given) -> None:
    given["bundle"].model.visual.preprocess_cfg = {
        **open_clip.model.get_model_preprocess_cfg(given["bundle"].model.visual),
        "interpolation": "bicubic",
    }
    visual = given["bundle"].model.visual
    assert open_clip.model.get_model_preprocess_cfg(visual)["interpolation"] == "bicubic"


OF_CAPTIONED = (
    ("a red ball", "the ball"),
    ("two dogs on a very long road to a far town by the sea with sand",),
    (),
    ("boats", "three boats at sea!?"),
    ("a box",),
    ("it", "an apple"),
)


@pytest.mark.parametrize(
    ("change", "entries"),
    [
        (project, {"clip.weights"}),
        (preprocess, {"clip.preprocessing.interpolation"}),
        (lambda given: given["bundle"].model.double(), {"dtype", "clip.weights"}),
        (setting("bundle", precision="bf16"), {"dtype"}),
        (write_into("a", b"3"), {"detector.weights"}),
        (write_into("c", b""), {"detector.weights"}),
        (setting("detector", confidence=0.3), {"detector.confidence"}),
        (setting("detector", max_regions=3), {"detector.max_regions"}),
        (setting("detector", image_size=96), {"detector.image_size"}),
        (setting("settings", margin=0.2), {"regions.margin"}),
        (setting("settings", square=False), {"regions.square"}),
        (setting("settings", whole_image=True), {"regions.whole_image"}),
        (setting("settings", normalized_crops=False), {"regions.normalized_crops"}),
        (setting("settings", undetected_as_zeros=True), {"regions.undetected_as_zeros"}),
        (setting("settings", weighted=False), set()),  # weighs features, and makes none
        (touch, {"pictures.sizes_and_times"}),
        (grow, {"pictures.sizes_and_times"}),
        (swap_pictures, {"pictures.paths"}),
        (lambda given: given["dataset"].paths[2].unlink(), {"pictures.sizes_and_times"}),
        (caption(("a red ball",), *OF_CAPTIONED[1:]), {"captions"}),
        (caption(("a red ball", "the", "ball"), *OF_CAPTIONED[1:]), {"captions"}),
        (caption(*OF_CAPTIONED[:2], OF_CAPTIONED[3], (), *OF_CAPTIONED[4:]), {"captions"}),
        (
            lambda given: given.update(dataset=given["dataset"].select(range(5))),
            {"pictures.count", "pictures.paths", "pictures.sizes_and_times", "captions"},
        ),
        (setting("dataset", split="other", source="elsewhere"), set()),
    ],
)
def test_what_decides_features_changes_its_own_entry(change, entries, given) -> None:
    given["before"] = describe_source(**given)
    change(given)
    before = json.loads(json.dumps(given.pop("before")))
    differing = differing_entries(before, describe_source(**given))
    assert differing.keys() == entries


def test_the_architecture_and_the_vocabulary_count(given, make_clip_folder) -> None:
    folder = make_clip_folder()
    before = describe_source(**given)
    given["bundle"] = load_clip(folder)
    assert differing_entries(before, describe_source(**given)) == {}
    quick = replace(
        given["bundle"], model_config=given["bundle"].model_config | {"quick_gelu": True}
    )
    names = differing_entries(before, describe_source(**given | {"bundle": quick})).keys()
    assert names == {"clip.architecture.quick_gelu"}
    other = folder / "other.gz"
    other.write_bytes(b"other")
    worded = replace(given["bundle"], merges=other)
    names = differing_entries(before, describe_source(**given | {"bundle": worded})).keys()
    assert names == {"clip.vocabulary"}


def test_without_the_detector_its_weights_and_thresholds_are_those_of_the_settings(
    given, detector
) -> None:
    given["detector"] = detector
    kept = describe_source(**given)
    settings = replace(given["settings"], confidence=0.25, max_regions=10)
    unloaded = describe_source(given["bundle"], given["dataset"], settings)
    assert differing_entries(kept, unloaded, partial=True) == {}
    assert differing_entries(kept, unloaded) == {"detector.image_size": "64, now None"}
    stricter = describe_source(given["bundle"], given["dataset"], replace(settings, confidence=0.5))
    assert differing_entries(kept, stricter, partial=True) == {
        "detector.confidence": "0.25, now 0.5"
    }


def test_entries_are_told_by_their_path_in_the_record() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "d": None, "gone": 0}
    new = {"a": {"b": 1, "c": (1, 3)}, "d": None, "new": "x"}
    told = {"a.c": "[1, 2], now [1, 3]", "new": "None, now 'x'"}
    assert differing_entries(old, new, partial=True) == told
    assert differing_entries(old, new) == told | {"gone": "0, now None"}
