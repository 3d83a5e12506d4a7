"""What is made ready once, on pocket splits of a few pictures and a tiny CLIP."""

from dataclasses import replace

import pytest
import torch

from dclip_kit.config import PROFILES, apply_recipe
from dclip_kit.evaluation import preparation
from dclip_kit.evaluation.preparation import prepare_evaluation, prepare_training
from dclip_kit.features.extract import extract_features
from dclip_kit.models.encode import encode_images
from dclip_kit.models.reading import read_pixels

POCKET = PROFILES["pocket"]


def train(policy: str):
    return replace(POCKET, student=replace(POCKET.student, train=policy))


@pytest.fixture
def features(clip, data, detector):
    return extract_features(clip, detector, data.train, POCKET.regions)


@pytest.fixture
def sets(clip, data):
    return prepare_evaluation(clip, data)


def test_too_many_pictures_for_the_memory_stay_on_disk(
    clip, data, features, sets, monkeypatch
) -> None:
    assert sets.val.pictures == data.val.paths  # nobody has looked at them
    made = prepare_training(train("all"), clip, data.train, features, sets)
    assert torch.equal(made.val.pictures, read_pixels(clip, data.val.paths))
    assert torch.equal(made.zero_shot_val.pictures, read_pixels(clip, data.zero_shot_val.paths))
    monkeypatch.setattr(preparation, "KEPT_BYTES", 3 * 32 * 32 * len(data.val) - 1)
    made = prepare_training(train("all"), clip, data.train, features, sets)
    assert made.val.pictures == data.val.paths
    assert made.zero_shot_val.pictures == data.zero_shot_val.paths


def test_crops_are_rehearsed_as_the_frozen_clip_saw_them(
    clip, data, features, sets, monkeypatch
) -> None:
    kept = prepare_training(train("all"), clip, data.train, features, sets)
    crops = kept.rehearsal.pictures
    assert crops.shape == (len(features.region), 3, 32, 32)
    torch.testing.assert_close(encode_images(clip, crops), features.region)
    monkeypatch.setattr(preparation, "KEPT_BYTES", kept.pictures.numel() - 1)
    cut = prepare_training(train("all"), clip, data.train, features, sets)
    assert cut.pictures == data.train.paths
    assert torch.equal(read_pixels(clip, cut.rehearsal.pictures), crops)
    for recipe in ("contrastive", "official_code"):
        other = apply_recipe(POCKET, recipe)
        assert prepare_training(other, clip, data.train, features, sets).rehearsal is None


def test_all_that_a_training_keeps_has_one_budget(clip, data, features, sets, monkeypatch) -> None:
    """The training's own pictures come first, then val, single objects, and crops at last."""
    each = 3 * 32 * 32
    train_bytes, val_bytes, objects, crops = (
        each * len(pictures)
        for pictures in (data.train, data.val, data.zero_shot_val, features.region)
    )

    def kept(budget: int) -> list[bool]:
        monkeypatch.setattr(preparation, "KEPT_BYTES", budget)
        made = prepare_training(train("all"), clip, data.train, features, sets)
        found = made.pictures, made.val.pictures, made.zero_shot_val.pictures
        return [isinstance(x, torch.Tensor) for x in (*found, made.rehearsal.pictures)]

    every = train_bytes + val_bytes + objects + crops
    assert kept(every) == [True] * 4
    assert kept(every - 1) == [True, True, True, False]
    assert kept(train_bytes + val_bytes) == [True, True, False, False]
    assert kept(train_bytes) == [True, False, False, False]
    assert kept(0) == [False] * 4
