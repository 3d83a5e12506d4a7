"""What `make bench` times runs at all: each contender of the training; and how bars are read."""

from dataclasses import replace

import pytest

from dclip_kit.features.extract import extract_features
from dclip_kit.models.clip import load_clip
from tests.benchmarks import run, training


@pytest.mark.parametrize("name", training.CONTENDERS)
def test_each_contender_takes_its_steps(
    name, make_clip_folder, data, detector, monkeypatch
) -> None:
    vision = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
    clip = load_clip(make_clip_folder(vision_cfg=vision))
    features = extract_features(clip, detector, data.train, training.REGIONS)
    monkeypatch.setattr(training, "prepare", lambda: (clip, data.train, features))
    monkeypatch.setattr(training, "choose_detector", lambda *_: detector)
    monkeypatch.setattr(training, "PICTURES", len(data.train))
    monkeypatch.setattr(training, "TEACHER", replace(training.TEACHER, heads=4, batch_size=4))
    monkeypatch.setattr(training, "STUDENT", replace(training.STUDENT, batch_size=4, epochs=2))
    steps = training.CONTENDERS[name]()
    assert len(steps) >= 3 and all(seconds > 0 for seconds in steps)


@pytest.mark.parametrize(
    ("value", "at_least", "margin"),
    [(1.0, False, 2), (4.0, False, 0.5), (-0.01, False, 100), (1.0, True, 0.5), (500.0, True, 100)],
)
def test_a_bar_is_held_by_so_many_times(value, at_least, margin) -> None:
    assert run.Bar("retrieval", "a ratio", 2.0, at_least).margin(value) == margin
