"""Frozen features: any choice of them in its order, and back from disk as they were."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dclip_kit.features.frozen import FrozenFeatures
from dclip_kit.runtime.files import raw_bytes, save_tensors


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


def mapped_file(address: int) -> str:
    """The file whose mapping into this process's memory holds an address, if any does."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, _, *name = line.split(maxsplit=5)
        start, end = (int(each, 16) for each in span.split("-"))
        if start <= address < end:
            return "".join(name)
    raise AssertionError("Expected an address of this process.")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells mappings on Linux alone")
def test_features_on_disk_are_mapped_and_not_copied(features, tmp_path) -> None:
    path = tmp_path / "features.safetensors"
    features.save(path)
    back = FrozenFeatures.load(tmp_path)  # as the folder of a store
    for field in fields(FrozenFeatures):
        value = getattr(back, field.name)
        assert mapped_file(value.data_ptr()) == str(path)
        assert mapped_file(getattr(features, field.name).data_ptr()) != str(path)
    # Neither does a digest copy them, which is what the trainings begin with.
    assert np.frombuffer(raw_bytes(back.region), np.uint8).ctypes.data == back.region.data_ptr()


def test_pictures_without_detections_are_counted(features) -> None:
    """Of 1, 2, 3, 4, 1, … regions; that of the third picture is the whole of it beside others."""
    label = features.label.clone()
    label[[0, 5]] = -1  # the first picture's only one, and the third's last
    assert features.without_detections == 0
    assert replace(features, label=label).without_detections == 1


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
