"""What is made ready once, on pocket splits of a few pictures and a tiny CLIP."""

from dataclasses import replace

import pytest
import torch

from dclip_kit import preparation
from dclip_kit.config import PROFILES, apply_recipe
from dclip_kit.embedding import encode_images
from dclip_kit.extraction import extract_features
from dclip_kit.preparation import prepare_evaluation, prepare_training
from dclip_kit.reading import read_pixels

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
    assert kept.front is None and crops.shape == (len(features.region), 3, 32, 32)
    torch.testing.assert_close(encode_images(clip, crops), features.region)
    monkeypatch.setattr(preparation, "KEPT_BYTES", kept.pictures.numel() - 1)
    cut = prepare_training(train("all"), clip, data.train, features, sets)
    assert cut.pictures == data.train.paths
    assert torch.equal(read_pixels(clip, cut.rehearsal.pictures), crops)
    for recipe in ("contrastive", "official_code"):
        other = apply_recipe(POCKET, recipe)
        assert prepare_training(other, clip, data.train, features, sets).rehearsal is None


def test_blocks_that_no_arm_changes_are_run_once(clip, data, features, sets, monkeypatch) -> None:
    profile = train("last_blocks(1)")
    # Test's pictures are not there: whoever looked at them would fail.
    unseen = {
        name: replace(getattr(sets, name), pictures=[])
        for name in ("test", "zero_shot", "zero_shot_held_out")
    }
    sets = replace(sets, **unseen)
    made = prepare_training(profile, clip, data.train, features, sets)
    rest = made.front.rest(clip)
    for behind, pictures in (
        (made.pictures, data.train.paths),
        (made.val.pictures, data.val.paths),
        (made.zero_shot_val.pictures, data.zero_shot_val.paths),
    ):
        assert behind.dtype == torch.float16
        expected = encode_images(clip, pictures)
        torch.testing.assert_close(encode_images(rest, behind), expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(
        encode_images(rest, made.rehearsal.pictures), features.region, atol=2e-3, rtol=0
    )
    kept = (made.pictures, made.rehearsal.pictures, made.val.pictures, made.zero_shot_val.pictures)
    assert all(len(pictures) for pictures in kept)
    monkeypatch.setattr(preparation, "KEPT_BYTES", sum(each.nbytes for each in kept))
    assert prepare_training(profile, clip, data.train, features, sets).front
    monkeypatch.setattr(preparation, "KEPT_BYTES", sum(each.nbytes for each in kept) - 1)
    assert prepare_training(profile, clip, data.train, features, sets).front is None
