"""Regions of frozen features as pictures: what the features were encoded from, and no other."""

from dataclasses import replace

import pytest
import torch

from dclip_kit.config import RegionSettings
from dclip_kit.data import open_picture
from dclip_kit.features.crops import RegionCrops
from dclip_kit.features.extract import extract_features
from dclip_kit.features.frozen import WHOLE_PICTURE
from dclip_kit.models.encode import encode_images
from dclip_kit.models.reading import read_pixels


@pytest.mark.parametrize("whole_image", [False, True])
@pytest.mark.parametrize("square", [False, True])
def test_crops_are_what_the_features_were_encoded_from(
    square, whole_image, clip, detector, captioned
) -> None:
    settings = RegionSettings(square=square, whole_image=whole_image)
    features = extract_features(clip, detector, captioned, settings)
    crops = RegionCrops(captioned.paths, features, settings)
    assert len(crops) == len(features.region) > len(captioned)
    torch.testing.assert_close(encode_images(clip, crops), features.region)
    whole = features.label == WHOLE_PICTURE
    assert whole.any() and not whole.all()
    owners = torch.arange(len(features)).repeat_interleave(features.region_count)
    for index in whole.nonzero().flatten().tolist():
        picture = open_picture(captioned.paths[int(owners[index])])
        assert crops[index].tobytes() == picture.tobytes()


def test_a_part_of_them_is_cut_like_all(clip, detector, captioned) -> None:
    features = extract_features(clip, detector, captioned, RegionSettings())
    crops = RegionCrops(captioned.paths, features, RegionSettings())
    every = read_pixels(clip, crops)
    assert torch.equal(read_pixels(clip, [crops[3], crops[1]]), every[[3, 1]])
    assert torch.equal(clip.to_pixels(crops[-1]), every[-1])
    with pytest.raises(IndexError):
        crops[len(crops)]


def test_features_of_other_pictures_are_refused(captioned, make_features) -> None:
    with pytest.raises(ValueError, match=rf"the 11 pictures.*got {len(captioned)}; give both"):
        RegionCrops(captioned.paths, make_features(), RegionSettings())


@pytest.mark.parametrize("published", [{"undetected_as_zeros": True}, {"normalized_crops": False}])
def test_features_that_clip_would_not_give_are_refused(published, captioned, make_features) -> None:
    settings = replace(RegionSettings(), **published)
    with pytest.raises(ValueError, match="normalized_crops=True and undetected_as_zeros=False"):
        RegionCrops(captioned.paths, make_features(len(captioned)), settings)
