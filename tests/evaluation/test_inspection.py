"""One picture beside one caption, as the batched ways have it; and what padding does."""

import pytest
import torch
from torch.nn import functional as F

from dclip_kit.config import RegionSettings
from dclip_kit.evaluation.inspection import (
    CaptionedRegions,
    attend,
    attend_to_regions,
    compare_masking,
    read_caption,
    reweight_regions,
)
from dclip_kit.models.encode import encode_images, encode_tokens
from dclip_kit.models.regions import Regions, crop_regions, region_weights
from dclip_kit.models.teacher import MetaTeacher, RegionTeacher
from dclip_kit.training import apply_teacher

CAPTION = "a red ball by the sea"


@pytest.fixture
def regions(pictures) -> Regions:
    boxes = torch.tensor([[2.0, 3, 20, 25], [5, 1, 29, 11], [20, 10, 39, 29]])
    return Regions(boxes, torch.tensor([0.9, 0.25, 0.6]), ("a", "b", "c"), pictures[0].size)


@pytest.fixture
def captioned(clip, pictures, regions) -> CaptionedRegions:
    return read_caption(clip, pictures[0], regions, CAPTION)


@pytest.fixture
def by_hand() -> CaptionedRegions:
    """Two regions of areas 1/4 and 1/2, confidences 1/2 and 1, similarities 1 and 1/4."""
    boxes = torch.tensor([[0.0, 0, 50, 50], [0, 0, 100, 50]])
    return CaptionedRegions(
        Regions(boxes, torch.tensor([0.5, 1.0]), ("a", "b"), (100, 100)),
        "it",
        ("it",),
        torch.eye(2, 4),
        torch.eye(1, 4),
        torch.tensor([1.0, 0.25]),
        torch.tensor([0.5, 0.5]),
    )


# What weights are made of


def test_it_reads_what_the_encoders_and_the_weights_say(clip, pictures, regions, captioned) -> None:
    crops = crop_regions(pictures[0], regions, RegionSettings().margin)
    features = encode_images(clip, crops)
    tokens = encode_tokens(clip, [CAPTION])
    assert torch.allclose(captioned.region_features, features, atol=1e-6)
    assert torch.equal(captioned.token_features, tokens.features[tokens.mask])
    assert len(captioned.tokens) == len(captioned.token_features)
    assert "".join(captioned.tokens) == CAPTION.replace(" ", "")
    cosine = features @ captioned.token_features.T
    assert torch.allclose(captioned.similarity, cosine.max(1).values.clamp(min=0), atol=1e-6)
    expected = region_weights(
        features[None],
        tokens.features,
        regions.area[None],
        regions.confidence[None],
        torch.ones(1, 3, dtype=torch.bool),
        tokens.mask,
    )
    assert torch.allclose(captioned.weight, expected[0], atol=1e-6)


def test_crops_are_cut_as_the_settings_say(clip, pictures, regions, captioned) -> None:
    settings = RegionSettings(margin=0.0, square=False)
    other = read_caption(clip, pictures[0], regions, CAPTION, settings)
    expected = encode_images(clip, crop_regions(pictures[0], regions, 0.0, square=False))
    assert torch.allclose(other.region_features, expected, atol=1e-6)
    assert not torch.allclose(other.region_features, captioned.region_features, atol=1e-3)


def test_a_caption_without_tokens_and_another_picture_are_refused(clip, pictures, regions) -> None:
    with pytest.raises(ValueError, match="empty"):
        read_caption(clip, pictures[0], regions, " ")
    with pytest.raises(ValueError, match="crop before resizing"):
        read_caption(clip, pictures[1], regions, CAPTION)


@pytest.mark.parametrize(
    ("powers", "expected"),
    [
        ({}, [0.5, 0.5]),  # 1/4 · 1/2 · 1 = 1/8, and 1/2 · 1 · 1/4 = 1/8
        ({"area": 0.0}, [2 / 3, 1 / 3]),
        ({"confidence": 0.0}, [2 / 3, 1 / 3]),
        ({"similarity": 0.0}, [0.2, 0.8]),
        ({"area": 0.0, "confidence": 0.0}, [0.8, 0.2]),
        ({"area": 0.0, "confidence": 0.0, "similarity": 0.5}, [2 / 3, 1 / 3]),
        ({"area": 0.0, "confidence": 0.0, "similarity": 2.0}, [16 / 17, 1 / 17]),
        ({"area": 0.0, "confidence": 0.0, "similarity": 0.0}, [0.5, 0.5]),
    ],
)
def test_powers_weigh_the_factors(by_hand, powers, expected) -> None:
    weights = reweight_regions(by_hand, **powers)
    assert weights.tolist() == pytest.approx(expected)


def test_powers_of_one_give_dclips_weights(captioned) -> None:
    assert torch.allclose(reweight_regions(captioned), captioned.weight, atol=1e-6)


def test_a_factor_of_zero_counts_unless_it_is_left_out(by_hand) -> None:
    by_hand.similarity[0] = 0.0
    assert reweight_regions(by_hand).tolist() == [0, 1]
    assert reweight_regions(by_hand, similarity=0.0).tolist() == pytest.approx([0.2, 0.8])


@pytest.mark.parametrize("power", [-0.5, float("nan"), float("inf")])
def test_powers_that_are_none_are_refused(by_hand, power) -> None:
    with pytest.raises(ValueError, match=rf"0 or more, got .*{power}"):
        reweight_regions(by_hand, confidence=power)


# Where the teacher looks


def test_attention_is_that_of_the_teacher_in_a_batch(captioned) -> None:
    teacher = MetaTeacher(32, 4).train()
    output = attend(teacher, captioned)
    assert not teacher.training
    with torch.no_grad():
        expected = teacher(
            F.pad(captioned.region_features, (0, 0, 0, 2))[None],
            torch.tensor([[True] * 3 + [False] * 2]),
            captioned.token_features[None],
            torch.ones(1, len(captioned.tokens), dtype=torch.bool),
            F.pad(captioned.weight, (0, 2))[None],
        )
    assert torch.allclose(output.embedding, expected.embedding, atol=1e-6)
    assert output.region_to_token.shape == (1, 3, len(captioned.tokens))
    assert torch.allclose(output.region_to_token, expected.region_to_token[:, :3], atol=1e-6)
    assert torch.allclose(output.token_to_region.sum(2), torch.ones(1, len(captioned.tokens)))


def test_other_weights_are_used_and_equal_ones_change_nothing(captioned) -> None:
    teacher = MetaTeacher(32, 4)
    own = attend(teacher, captioned).embedding
    equal = attend(teacher, captioned, torch.full((3,), 1 / 3)).embedding
    with torch.no_grad():
        ones = torch.ones(1, 3, dtype=torch.bool)
        token_mask = torch.ones(1, len(captioned.tokens), dtype=torch.bool)
        plain = teacher(
            captioned.region_features[None], ones, captioned.token_features[None], token_mask
        ).embedding
    assert torch.allclose(equal, plain, atol=1e-6)
    assert not torch.allclose(own, equal, atol=1e-4)


def test_a_caption_free_teacher_is_given_no_weights(captioned) -> None:
    teacher = MetaTeacher(32, 4, caption_free=True)
    one = attend(teacher, captioned).embedding
    other = attend(teacher, captioned, torch.tensor([1.0, 0.0, 0.0])).embedding
    assert torch.equal(one, other)


# What padding does


@pytest.mark.parametrize("weighted", [True, False])
def test_masked_company_changes_nothing_and_unmasked_does(features, weighted) -> None:
    teacher = MetaTeacher(32, 4)
    settings = RegionSettings(weighted=weighted)
    texts = torch.arange(len(features.text))
    effect = compare_masking(teacher, features, texts, settings)
    assert torch.allclose(effect.masked, torch.ones(len(texts)), atol=1e-5)
    assert teacher.masked  # a copy took padding for real
    regions = features.region_count[features.image_of_text[texts]]
    room = int(regions.max() + features.token_count[texts].max())
    padding = 1 - (regions + features.token_count[texts]) / room
    assert torch.allclose(effect.padding, padding)
    full, padded = padding == 0, padding > 0.3
    assert full.any() and padded.any()
    assert torch.allclose(effect.unmasked[full], torch.ones(int(full.sum())), atol=1e-5)
    assert effect.unmasked[padded].max() < 0.9999
    assert torch.allclose(effect.attention_on_padding[regions == regions.max()], torch.tensor(0.0))
    assert (effect.attention_on_padding[regions < regions.max()] > 0).all()


def test_unmasked_is_what_the_padded_zeros_make_of_it(features) -> None:
    teacher, settings = MetaTeacher(32, 4), RegionSettings(weighted=False)
    texts = torch.arange(5)
    effect = compare_masking(teacher, features, texts, settings)
    region, _ = features.regions_of(features.image_of_text[texts])
    token, _ = features.tokens_of(texts)
    with torch.no_grad():
        everything = (torch.ones(x.shape[:2], dtype=torch.bool) for x in (region, token))
        mask, token_mask = everything
        together = teacher(region, mask, token, token_mask).embedding
        alone = [apply_teacher(teacher, features, text[None], settings).embedding for text in texts]
    assert torch.allclose(effect.unmasked, (together * torch.cat(alone)).sum(1), atol=1e-5)


def test_a_caption_free_teacher_has_no_such_comparison(features) -> None:
    with pytest.raises(ValueError, match="reads captions"):
        compare_masking(
            MetaTeacher(32, 4, caption_free=True), features, torch.arange(2), RegionSettings()
        )


def test_the_region_teacher_shows_what_it_looks_at(clip, pictures, regions) -> None:
    teacher = RegionTeacher(32, 24, 3)
    looks = attend_to_regions(teacher, clip, pictures[0], regions)
    assert looks.shape == (3,) and looks.sum().item() == pytest.approx(1) and (looks > 0).all()
    crops = crop_regions(pictures[0], regions, RegionSettings().margin)
    whole, own = encode_images(clip, [pictures[0]]), encode_images(clip, crops)
    boxes = torch.tensor([[2 / 40, 3 / 30, 20 / 40, 25 / 30, 0.9]])
    boxes = torch.cat([boxes, torch.tensor([[5 / 40, 1 / 30, 29 / 40, 11 / 30, 0.25]])])
    boxes = torch.cat([boxes, torch.tensor([[20 / 40, 10 / 30, 39 / 40, 29 / 30, 0.6]])])
    with torch.no_grad():
        _, weights = teacher(whole, own[None], torch.ones(1, 3, dtype=torch.bool), boxes[None])
    received = weights[0].sum(0)[1:]  # item 0 is the whole picture
    assert torch.allclose(looks, received / received.sum(), atol=1e-5)
