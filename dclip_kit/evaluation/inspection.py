"""One picture beside one caption: what its region weights are made of, and where a teacher looks.

Axes: region, token, embed; pair, an image-caption pair of a batch.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from dclip_kit.config import RegionSettings
from dclip_kit.features.store import FrozenFeatures
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import encode_images, encode_tokens, read_tokens
from dclip_kit.models.regions import (
    Regions,
    crop_regions,
    region_similarity,
    region_weights,
    scale_products,
)
from dclip_kit.models.teacher import MetaTeacher, RegionTeacher, TeacherOutput
from dclip_kit.training import apply_teacher


@dataclass(frozen=True, eq=False)
class CaptionedRegions:
    """A picture's regions beside one caption, and what DCLIP weighs them by.

    Attributes:
        regions: with each one's area and confidence.
        caption: the text.
        tokens: the caption's tokens, as one reads them.
        region_features: of the crops, from the frozen CLIP.
        token_features: of the tokens, in the joint space.
        similarity: each region's best cosine with a token, at least 0.
        weight: area · confidence · similarity, scaled to sum to 1.
    """

    regions: Regions
    caption: str
    tokens: tuple[str, ...]
    region_features: Float[Tensor, "region embed"]
    token_features: Float[Tensor, "token embed"]
    similarity: Float[Tensor, "region"]
    weight: Float[Tensor, "region"]


def read_caption(
    clip: ClipBundle,
    picture: Image.Image,
    regions: Regions,
    caption: str,
    settings: RegionSettings | None = None,
) -> CaptionedRegions:
    """Encodes a picture's regions and a caption's tokens, and weighs the ones by the others.

    Args:
        clip: the frozen CLIP.
        picture: that the regions were found in.
        regions: from a detector.
        caption: need not be true of the picture.
        settings: how crops are cut; the defaults if left out.

    Raises:
        ValueError: the caption has no token, or the regions are of another picture's size.
    """
    settings = settings or RegionSettings()
    crops = crop_regions(picture, regions, settings.margin, settings.square)
    features = encode_images(clip, crops, progress=False)
    tokens = encode_tokens(clip, [caption])
    mask = torch.ones(1, len(regions), dtype=torch.bool)
    weight = region_weights(
        features[None],
        tokens.features,
        regions.area[None],
        regions.confidence[None],
        mask,
        tokens.mask,
    )
    return CaptionedRegions(
        regions,
        caption,
        read_tokens(clip, caption),
        features,
        tokens.features[tokens.mask],
        region_similarity(features[None], tokens.features, tokens.mask)[0],
        weight[0],
    )


def reweight_regions(
    captioned: CaptionedRegions,
    area: float = 1.0,
    confidence: float = 1.0,
    similarity: float = 1.0,
) -> Float[Tensor, "region"]:
    """Region weights from the same three factors, each raised to a power of its own.

    Ours, to see what each factor does: 1 for all gives DCLIP's weights, 0 leaves a factor out, and
    0 for all weighs every region the same.

    Raises:
        ValueError: an exponent is negative or not finite.
    """
    exponents = area, confidence, similarity
    if not all(math.isfinite(power) and power >= 0 for power in exponents):
        raise ValueError(
            f"Expected exponents of 0 or more, got {exponents}; 0 leaves a factor out."
        )
    regions = captioned.regions
    product = regions.area**area * regions.confidence**confidence * captioned.similarity**similarity
    return scale_products(product[None], torch.ones(1, len(regions), dtype=torch.bool))[0]


@torch.no_grad()
def attend(
    teacher: MetaTeacher,
    captioned: CaptionedRegions,
    weights: Float[Tensor, "_region"] | None = None,
) -> TeacherOutput:
    """The teacher on this one picture and caption: a batch of one.

    Args:
        teacher: of the CLIP that encoded both.
        captioned: from `read_caption`.
        weights: of the regions; left out, DCLIP's own.
    """
    device = next(teacher.parameters()).device
    weights = captioned.weight if weights is None else weights
    regions, tokens = captioned.region_features, captioned.token_features
    return teacher.eval()(
        regions[None].to(device),
        torch.ones(1, len(regions), dtype=torch.bool, device=device),
        tokens[None].to(device),
        torch.ones(1, len(tokens), dtype=torch.bool, device=device),
        None if teacher.caption_free else weights[None].to(device),
    )


@dataclass(frozen=True, eq=False)
class MaskingEffect:
    """What a pair's companions in its batch do to its embedding, with and without a mask.

    Attributes:
        padding: share of the pair's regions and tokens in the batch that are padding.
        masked: cosine of its embedding in the batch with the one it has alone; padding masked.
        unmasked: the same, where padding is attended to and pooled, as in the published code.
        attention_on_padding: share of the tokens' attention that goes to padded regions, unmasked.
    """

    padding: Float[Tensor, "pair"]
    masked: Float[Tensor, "pair"]
    unmasked: Float[Tensor, "pair"]
    attention_on_padding: Float[Tensor, "pair"]


@torch.no_grad()
def compare_masking(
    teacher: MetaTeacher,
    features: FrozenFeatures,
    texts: Int[Tensor, "pair"],
    settings: RegionSettings,
) -> MaskingEffect:
    """Embeds each pair alone and in a batch with the others, with padding masked and not.

    Args:
        teacher: one that reads captions.
        features: of the frozen CLIP.
        texts: captions, by index, each beside its own picture: the batch.
        settings: whether regions are weighted.

    Raises:
        ValueError: the teacher is caption-free: words attend to nothing in it.
    """
    if teacher.caption_free:
        raise ValueError(
            "Expected a teacher that reads captions, got a caption-free one; give the other."
        )
    careless = copy.copy(teacher.eval())  # of the same weights
    careless.masked = False
    masked, unmasked = (
        apply_teacher(each, features, texts, settings) for each in (teacher, careless)
    )
    alone = torch.cat(
        [apply_teacher(teacher, features, text[None], settings).embedding for text in texts]
    )
    _, region = features.regions_of(features.image_of_text[texts])
    _, token = features.tokens_of(texts)
    assert unmasked.token_to_region is not None  # it reads captions
    spent = (unmasked.token_to_region.cpu() * ~region[:, None, :]).sum(2)  # pair token
    return MaskingEffect(
        padding=1 - torch.cat([region, token], dim=1).float().mean(1),
        masked=(masked.embedding * alone).sum(1).cpu(),
        unmasked=(unmasked.embedding * alone).sum(1).cpu(),
        attention_on_padding=(spent * token).sum(1) / token.sum(1),
    )


@torch.no_grad()
def attend_to_regions(
    teacher: RegionTeacher,
    clip: ClipBundle,
    picture: Image.Image,
    regions: Regions,
    settings: RegionSettings | None = None,
) -> Float[Tensor, "region"]:
    """How much the region teacher's last layer looks at each region of a picture.

    Args:
        teacher: trained on features of this CLIP.
        clip: the frozen one.
        picture: that the regions were found in.
        regions: from a detector.
        settings: how crops are cut; the defaults if left out.

    Returns:
        The attention that each region receives from all items, the whole picture among them, as
        shares of what all regions receive.
    """
    settings = settings or RegionSettings()
    crops = crop_regions(picture, regions, settings.margin, settings.square)
    features = encode_images(clip, [picture, *crops], progress=False)
    shares = regions.xyxy / torch.tensor(picture.size).repeat(2)
    boxes = torch.cat([shares, regions.confidence[:, None]], dim=1)
    mask = torch.ones(1, len(regions), dtype=torch.bool)
    given = features[:1], features[None, 1:], mask, boxes[None]
    device = next(teacher.parameters()).device
    _, weights = teacher.eval()(*(each.to(device) for each in given))
    received = weights[0, :, 1:].sum(0).cpu()
    return received / received.sum()


def stored_regions(
    features: FrozenFeatures, image: int, names: Sequence[str]
) -> tuple[Regions, Float[Tensor, "region embed"]]:
    """A picture's regions and their vectors, as they were extracted.

    Args:
        features: with the picture.
        image: its number.
        names: of the detector's classes.
    """
    start = int(features.region_count[:image].sum())
    rows = slice(start, start + int(features.region_count[image]))
    width, height = features.size[image].tolist()
    labels = [names[each] if each >= 0 else "whole image" for each in features.label[rows].tolist()]
    found = Regions(features.xyxy[rows], features.confidence[rows], tuple(labels), (width, height))
    return found, features.region[rows]


def beside_caption(
    clip: ClipBundle,
    features: FrozenFeatures,
    text: int,
    caption: str,
    regions: Regions,
    region_features: Float[Tensor, "region embed"],
) -> CaptionedRegions:
    """Regions beside a caption whose tokens were extracted; as `read_caption`, encoding nothing.

    Args:
        clip: reads the caption as tokens.
        features: with the caption's.
        text: its number.
        caption: its words.
        regions: perhaps of another picture.
        region_features: of these.
    """
    tokens, real = features.tokens_of(torch.tensor([text]))
    similarity = region_similarity(region_features[None], tokens, real)[0]
    product = regions.area * regions.confidence * similarity
    mask = torch.ones(1, len(regions), dtype=torch.bool)
    return CaptionedRegions(
        regions,
        caption,
        read_tokens(clip, caption),
        region_features,
        tokens[0],
        similarity,
        scale_products(product[None], mask)[0],
    )
