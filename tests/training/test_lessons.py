"""What students are shown: a teacher's embeddings of pictures, and crops to rehearse."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dclip_kit.config import PROFILES, RegionTeacherSettings, apply_recipe, control_of
from dclip_kit.features import extract as extraction
from dclip_kit.features.extract import encode_pictures
from dclip_kit.features.store import EncodedPictures
from dclip_kit.models import encode
from dclip_kit.models.encode import encode_images, read_pixels
from dclip_kit.models.teacher import MetaTeacher, RegionTeacher
from dclip_kit.models.weights import clone_clip
from dclip_kit.training import (
    apply_region_teacher,
    choose_region_teacher,
    embed_pictures,
    embed_with_teacher,
    train_teacher,
)
from dclip_kit.training.lessons import prepare_lessons, prepare_rehearsal

REGIONS = replace(PROFILES["pocket"].regions, whole_image=True)  # so that each has two
OWN = RegionTeacherSettings(width=24, heads=3)


@pytest.fixture
def encoded(data, clip, detector, monkeypatch) -> EncodedPictures:
    """The training data, with boxes by a picture's width."""
    monkeypatch.setattr(extraction, "load_detector", lambda *_, **__: detector)
    return encode_pictures(clip, data.train, REGIONS)


@pytest.fixture
def uncaptioned(data, clip, encoded) -> EncodedPictures:
    """Val's pictures, as if they had no captions."""
    bare = replace(data.val, captions=((),) * len(data.val), split="uncaptioned")
    return encode_pictures(clip, bare, REGIONS)


def test_lessons_are_what_a_teacher_makes_of_pictures(clip, encoded, uncaptioned) -> None:
    """A caption's is its picture's, unless the teacher reads captions."""
    owner, others = encoded.features.image_of_text, uncaptioned.features
    region = RegionTeacher(32, 24, 3)
    seen = RegionTeacherSettings(width=24, heads=3, regions="none")
    lessons, more = prepare_lessons(region, encoded, uncaptioned, REGIONS, seen)
    own = embed_pictures(region, encoded.features, seen)
    assert not torch.equal(own, embed_pictures(region, encoded.features, OWN))
    assert torch.equal(lessons, own[owner])
    assert more.pictures is uncaptioned.pictures
    expected = embed_pictures(region, others, seen)
    assert torch.equal(more.features, expected)

    tuned = clone_clip(clip)
    tuned.model.visual.proj.data += 0.1
    lessons, more = prepare_lessons(tuned, encoded, uncaptioned, REGIONS, OWN)
    assert torch.equal(lessons, encode_images(tuned, encoded.pictures)[owner])
    expected = encode_images(tuned, uncaptioned.pictures)
    assert torch.equal(more.features, expected)
    assert prepare_lessons(tuned, encoded, None, REGIONS, OWN)[1] is None

    reading = MetaTeacher(32, 2)
    lessons, more = prepare_lessons(reading, encoded, uncaptioned, REGIONS, OWN)
    expected = embed_with_teacher(reading, encoded.features, REGIONS)
    assert torch.equal(lessons, expected)
    assert more is None  # there is no caption to read
    plain = replace(REGIONS, weighted=False)
    others, _ = prepare_lessons(reading, encoded, None, plain, OWN)
    assert torch.equal(others, embed_with_teacher(reading, encoded.features, plain))
    assert not torch.equal(others, lessons)


def test_an_untrained_teacher_is_the_picture_plus_its_regions_mean(encoded) -> None:
    """By a slow loop; its weight is the one that finds most on val."""
    settings, noise = replace(OWN, train="never"), torch.Generator().manual_seed(3)
    image, region = (
        F.normalize(torch.randn(given.shape, generator=noise), dim=1)
        for given in (encoded.features.image, encoded.features.region)
    )
    text = torch.randn(encoded.features.text.shape, generator=noise)
    text = text + 2 * image[encoded.features.image_of_text]
    features = replace(encoded.features, image=image, region=region, text=text)
    found = {}
    for weight in (0.3, 0.6, 1.0):
        vectors, begin = [], 0
        for image, count in enumerate(features.region_count.tolist()):
            mean = sum(features.region[begin + i] for i in range(count)) / count
            begin += count
            vectors.append(F.normalize(features.image[image] + weight * mean, dim=0))
        hits = [
            max(range(len(vectors)), key=lambda i, t=text: float(vectors[i] @ t)) == image
            for text, image in zip(features.text, features.image_of_text.tolist(), strict=True)
        ]
        found[weight] = sum(hits) / len(hits), torch.stack(vectors)
    run = choose_region_teacher(features, settings, features)
    best = max(share for share, _ in found.values())
    assert best > min(share for share, _ in found.values())
    assert run.history == [] and run.chosen["kept"] == "mean"
    assert found[run.chosen["weight"]][0] == best
    recalls = run.chosen["val_recall_at_1"]
    assert recalls == pytest.approx({f"mean, {w:g}": share for w, (share, _) in found.items()})
    embedding = embed_pictures(run.teacher, features, settings)
    torch.testing.assert_close(embedding, found[run.chosen["weight"]][1])
    blind = choose_region_teacher(features, settings, None)
    assert blind.chosen == {"kept": "mean", "weight": 1.0, "val_recall_at_1": {}}
    torch.testing.assert_close(embed_pictures(blind.teacher, features, settings), found[1.0][1])


def test_an_untrained_teachers_attention_is_equal_for_all_items(encoded) -> None:
    run = choose_region_teacher(encoded.features, replace(OWN, train="never"), None)
    images = torch.arange(len(encoded.features))
    _, weights = apply_region_teacher(run.teacher, encoded.features, images, OWN)
    for row, count in zip(weights[:, 0], encoded.features.region_count.tolist(), strict=True):
        expected = torch.zeros_like(row)
        expected[: count + 1] = 1 / (count + 1)
        torch.testing.assert_close(row, expected)


@pytest.mark.parametrize(("epochs", "rate", "kept"), [(12, 3e-3, "trained"), (1, 3.0, "mean")])
def test_a_teacher_trained_from_the_mean_is_kept_where_it_finds_more(
    epochs, rate, kept, encoded
) -> None:
    """It begins as the mean, so that a training at the rate 0 changes nothing."""
    features = encoded.features
    settings = replace(OWN, train="auto", epochs=epochs, learning_rate=rate, batch_size=3)
    run = choose_region_teacher(features, settings, features, seed=1)
    recalls = dict(run.chosen["val_recall_at_1"])
    trained = recalls.pop("trained")
    assert (trained > max(recalls.values())) == (kept == "trained") == bool(run.history)
    assert run.chosen["kept"] == kept
    still = train_teacher(features, replace(settings, learning_rate=0.0), REGIONS, mean_weight=0.6)
    mean = RegionTeacher(32, 24, 3)
    mean.start_from_mean(0.6)
    expected = embed_pictures(mean, features, settings)
    torch.testing.assert_close(embed_pictures(still.teacher, features, settings), expected)


def test_crops_are_rehearsed_as_the_frozen_clip_saw_them(clip, encoded, monkeypatch) -> None:
    made = prepare_rehearsal(clip, encoded, REGIONS)
    assert made.pictures.shape == (len(encoded.features.region), 3, 32, 32)
    assert torch.equal(made.features, encoded.features.region)
    torch.testing.assert_close(encode_images(clip, made.pictures), made.features)
    monkeypatch.setattr(encode, "KEPT_BYTES", made.pictures.numel() - 1)
    many = prepare_rehearsal(clip, encoded, REGIONS)  # too many for the memory
    assert not isinstance(many.pictures, torch.Tensor)
    assert torch.equal(read_pixels(clip, many.pictures), made.pictures)


def test_the_published_codes_control_rehearses_what_clip_makes_of_crops(
    clip, data, encoded
) -> None:
    """Its features of regions are others: of crops that are only resized."""
    profile = apply_recipe(PROFILES["pocket"], "official_code")
    profile = replace(profile, regions=replace(profile.regions, whole_image=True))
    captioned = encode_pictures(clip, data.train, profile.regions)
    usual = prepare_rehearsal(clip, encoded, REGIONS)
    found = prepare_rehearsal(clip, captioned, control_of(profile).regions)
    assert not torch.allclose(captioned.features.region, encoded.features.region, atol=1e-2)
    assert torch.equal(found.pictures, usual.pictures)
    torch.testing.assert_close(found.features, usual.features)
