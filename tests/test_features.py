"""Frozen features: each in its place, whatever the batches, and back from disk as they were."""

from dataclasses import fields, replace

import pytest
import torch

from dclip_kit.checkpoint import save_tensors
from dclip_kit.config import RegionSettings
from dclip_kit.embedding import encode_images, encode_texts, encode_tokens
from dclip_kit.extraction import extract_features
from dclip_kit.features import FrozenFeatures
from dclip_kit.regions import crop_regions

BOXES = {0: 1, 1: 0, 2: 2, 3: 1, 4: 0, 5: 0}  # what the fake detector finds in each picture


@pytest.mark.parametrize("whole_image", [False, True])
def test_features_are_those_of_each_picture_region_and_caption(
    whole_image, clip, detector, captioned, pictures
) -> None:
    settings = RegionSettings(margin=0.2, whole_image=whole_image)
    features = extract_features(clip, detector, captioned, settings, batch_size=4)
    assert len(features) == 6
    assert features.without_detections == 3
    assert torch.allclose(features.image, encode_images(clip, pictures), atol=1e-6)
    assert torch.equal(features.text, encode_texts(clip, captioned.texts))
    assert features.image_of_text.tolist() == [0, 0, 1, 3, 3, 4, 5, 5]

    found = detector.detect(pictures).regions
    for number, (picture, regions) in enumerate(zip(pictures, found, strict=True)):
        chosen = torch.tensor([number])
        crops, area = crop_regions(picture, regions, 0.2), regions.area.tolist()
        confidence = regions.confidence.tolist()
        assert len(crops) == max(1, BOXES[number])
        if whole_image and BOXES[number]:  # never twice
            crops, area, confidence = [*crops, picture], [*area, 1.0], [*confidence, 1.0]
        own = features.regions_of(chosen)
        assert own.mask.tolist() == [[True] * len(crops)]
        assert torch.allclose(own.features[0], encode_images(clip, crops), atol=1e-6)
        assert features.areas_of(chosen)[0].tolist() == pytest.approx(area)
        assert features.confidences_of(chosen)[0].tolist() == pytest.approx(confidence)

    tokens = encode_tokens(clip, captioned.texts)
    own = features.tokens_of(torch.arange(8))
    assert torch.equal(own.mask.sum(1), tokens.mask.sum(1))
    for number, mask in enumerate(tokens.mask):
        ours = own.features[number][own.mask[number]]
        assert ours.dtype == torch.float32
        assert torch.allclose(ours, tokens.features[number][mask], atol=1e-3)  # halves


def test_features_do_not_depend_on_batches(clip, detector, captioned) -> None:
    one, all_ = (
        extract_features(clip, detector, captioned, RegionSettings(), batch_size=size)
        for size in (1, 64)
    )
    for field in fields(FrozenFeatures):
        a, b = getattr(one, field.name), getattr(all_, field.name)
        assert a.dtype == b.dtype and torch.allclose(a.float(), b.float(), atol=1e-5), field.name


def test_any_choice_comes_in_its_order_and_padded(features) -> None:
    chosen = torch.tensor([5, 3, 5, 4])  # of 2, 4, 2 and 1 regions
    ends = features.region_count.cumsum(0)
    for name, got in (
        ("region", features.regions_of(chosen).features),
        ("area", features.areas_of(chosen)),
        ("confidence", features.confidences_of(chosen)),
    ):
        assert got.shape[:2] == (4, 4)
        for row, picture in enumerate(chosen.tolist()):
            end, count = int(ends[picture]), int(features.region_count[picture])
            own = getattr(features, name)[end - count : end]
            assert torch.equal(got[row, :count], own) and (got[row, count:] == 0).all(), name
    assert features.regions_of(chosen).mask.sum(1).tolist() == [2, 4, 2, 1]
    captions = torch.tensor([2, 0])
    assert features.tokens_of(captions).mask.sum(1).tolist() == [3, 1]
    assert torch.equal(features.tokens_of(captions).features[1, 0].half(), features.token[0])


def test_a_pictures_captions_are_found_wherever_they_stand(features) -> None:
    for picture in range(len(features)):
        own = features.texts_of(picture)
        assert len(own) == picture % 3
        assert (features.image_of_text[own] == picture).all()


def test_the_first_caption_of_each_captioned_picture(features) -> None:
    first = features.first_texts()
    owners = features.image_of_text[first].tolist()
    assert owners == sorted(set(features.image_of_text.tolist()))  # picture 0 has none
    for text, owner in zip(first.tolist(), owners, strict=True):
        assert text == features.image_of_text.tolist().index(owner)


def test_features_come_back_from_disk_as_they_were(features, tmp_path) -> None:
    path = tmp_path / "features.safetensors"
    features.save(path)
    back = FrozenFeatures.load(path)
    for field in fields(FrozenFeatures):
        was, now = getattr(features, field.name), getattr(back, field.name)
        assert was.dtype == now.dtype and torch.equal(was, now), field.name


@pytest.mark.parametrize("content", ["cut", "other"])
def test_a_file_of_something_else_is_named(content, features, tmp_path) -> None:
    path = tmp_path / "features.safetensors"
    features.save(path)
    if content == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        save_tensors({"image": features.image}, path)
    with pytest.raises(ValueError, match=r"features\.safetensors"):
        FrozenFeatures.load(path)


def test_an_unreadable_picture_is_named(clip, detector, captioned, tmp_path) -> None:
    bad = tmp_path / "cut.png"
    bad.write_bytes(captioned.paths[3].read_bytes()[:-60])
    paths = (*captioned.paths[:5], bad)
    with pytest.raises(ValueError, match=r"cut\.png"):
        extract_features(clip, detector, replace(captioned, paths=paths), RegionSettings())
