"""A closer look: at the things in scenes, at one picture beside one caption, and at teachers.

Axes: object, a thing of a scene; region, token, embed; pair, an image-caption pair of a batch.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou
from tqdm.auto import tqdm

from dclip_kit.config import RegionSettings, RegionTeacherSettings
from dclip_kit.data import open_picture
from dclip_kit.data.pocket.compositions import KINDS, load_compositions
from dclip_kit.data.pocket.scenes import Scene
from dclip_kit.features.extract import choose_detector, extract_features
from dclip_kit.features.store import FrozenFeatures
from dclip_kit.metrics import ranks, retrieval_metrics
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import encode_images, encode_tokens, read_tokens
from dclip_kit.models.regions import (
    Regions,
    crop_regions,
    region_similarity,
    scale_products,
)
from dclip_kit.models.teacher import MetaTeacher, RegionTeacher, TeacherOutput
from dclip_kit.training import (
    TeacherRun,
    apply_teacher,
    choose_lenders,
    embed_pictures,
    embed_with_teacher,
)

_SETTINGS = RegionSettings()  # how crops are cut unless said otherwise

# The things in scenes: found by a detector or not, named by CLIP or not


@dataclass(frozen=True, eq=False)
class SceneObjects:
    """The things of a number of scenes, scene by scene.

    Attributes:
        image: the scene that each stands in.
        label: each thing's noun, an index into `load_nouns()`.
        size: "small", "medium" or "large", of each.
        xyxy: each thing's box in pixels.
    """

    image: Int[Tensor, "object"]
    label: Int[Tensor, "object"]
    size: tuple[str, ...]
    xyxy: Float[Tensor, "object 4"]

    def __len__(self) -> int:
        return len(self.size)

    def of_size(self, size: str) -> Bool[Tensor, "object"]:
        """Which of them are of a size."""
        return torch.tensor([each == size for each in self.size])


def list_objects(scenes: Sequence[Scene]) -> SceneObjects:
    """All things of these scenes, scene by scene; there must be one."""
    things = [(index, thing) for index, scene in enumerate(scenes) for thing in scene.objects]
    return SceneObjects(
        torch.tensor([index for index, _ in things]),
        torch.tensor([thing.noun for _, thing in things]),
        tuple(thing.size for _, thing in things),
        torch.tensor([thing.xyxy for _, thing in things], dtype=torch.float32),
    )


def match_regions(
    objects: SceneObjects, regions: Sequence[Regions], least_overlap: float = 0.5
) -> Int[Tensor, "object"]:
    """For each thing the region that found it, by its number in its picture; -1 where none did.

    Region and thing belong together if they overlap enough, the best pairs first, each of them
    once. Labels decide nothing: the detector says where to look, and not what is there.

    Args:
        objects: of as many pictures as there are `regions`.
        regions: of each picture.
        least_overlap: intersection over union of both boxes, 0 to 1.
    """
    found = torch.full_like(objects.label, -1)
    for image in objects.image.unique().tolist():
        things = (objects.image == image).nonzero().flatten()
        overlap = box_iou(objects.xyxy[things], regions[image].xyxy)  # object region
        while overlap.numel() and overlap.max() >= least_overlap:
            thing, region = divmod(int(overlap.argmax()), overlap.shape[1])
            found[things[thing]] = region
            overlap[thing], overlap[:, region] = -1, -1
    return found


@dataclass(frozen=True, eq=False)
class NamedObjects:
    """Which things CLIP names, from the whole picture and from a crop of each.

    Attributes:
        found: whether the detector found the thing; without a crop it is not named from one.
        by_picture: whether the whole picture's features name it.
        by_crop: whether its crop's features name it.
    """

    found: Bool[Tensor, "object"]
    by_picture: Bool[Tensor, "object"]
    by_crop: Bool[Tensor, "object"]


def name_objects(
    clip: ClipBundle,
    paths: Sequence[Path],
    objects: SceneObjects,
    regions: Sequence[Regions],
    class_features: Float[Tensor, "class embed"],
    settings: RegionSettings = _SETTINGS,
) -> NamedObjects:
    """Asks CLIP for every thing of every picture, once of the picture and once of its crop.

    A thing is named if its noun is nearer than all nouns that the picture does *not* show. Those
    of the things beside it are no mistake, so they do not compete, and one vector of a picture
    may name all that it shows.

    Args:
        clip: whose image tower looks.
        paths: of the pictures.
        objects: their things.
        regions: what a detector found in each picture.
        class_features: of all nouns, from `encode_classes`.
        settings: how crops are cut; the defaults if left out.

    Raises:
        ValueError: paths and regions differ in number.
    """
    if len(paths) != len(regions):
        raise ValueError(
            f"Expected the regions of each of {len(paths)} pictures, got {len(regions)}; detect in "
            "these very pictures."
        )
    match = match_regions(objects, regions)
    found = match >= 0
    crops = []
    for image, path in enumerate(tqdm(paths, "cutting things out", delay=2)):
        every = crop_regions(open_picture(path), regions[image], settings.margin, settings.square)
        crops += [every[region] for region in match[found & (objects.image == image)].tolist()]
    picture_features = encode_images(clip, paths)[objects.image]
    crop_features = torch.zeros_like(picture_features)
    if crops:
        crop_features[found] = encode_images(clip, crops)
    return NamedObjects(
        found,
        _is_named(picture_features, objects, class_features),
        _is_named(crop_features, objects, class_features) & found,
    )


def _is_named(
    features: Float[Tensor, "object embed"],
    objects: SceneObjects,
    class_features: Float[Tensor, "class embed"],
) -> Bool[Tensor, "object"]:
    """Whether each thing's noun ranks first among the nouns that its picture lacks; no tie does."""
    present = torch.zeros(int(objects.image.max()) + 1, len(class_features), dtype=torch.bool)
    present[objects.image, objects.label] = True
    own = torch.nn.functional.one_hot(objects.label, len(class_features)).bool()
    cosines = (features @ class_features.T).masked_fill(present[objects.image] & ~own, -2.0)
    return ranks(cosines, own) <= 1  # -2 is below all


# One picture beside one caption: what its region weights are made of, and where a teacher looks


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
    settings: RegionSettings = _SETTINGS,
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
    crops = crop_regions(picture, regions, settings.margin, settings.square)
    features = encode_images(clip, crops, progress=False)
    tokens = encode_tokens(clip, [caption])
    return beside_caption(clip, caption, tokens.features, tokens.mask, regions, features)


def beside_caption(
    clip: ClipBundle,
    caption: str,
    tokens: Float[Tensor, "1 token embed"],
    real: Bool[Tensor, "1 token"],
    regions: Regions,
    region_features: Float[Tensor, "region embed"],
) -> CaptionedRegions:
    """Regions beside a caption, both of which are encoded already; as `read_caption`.

    Args:
        clip: reads the caption as tokens.
        caption: its words.
        tokens: its features, from `encode_tokens` or `FrozenFeatures.tokens_of`.
        real: True at tokens, False where there is padding.
        regions: perhaps of another picture.
        region_features: of these.
    """
    similarity = region_similarity(region_features[None], tokens, real)[0]
    product = regions.area * regions.confidence * similarity
    mask = torch.ones(1, len(regions), dtype=torch.bool)
    return CaptionedRegions(
        regions,
        caption,
        read_tokens(clip, caption),
        region_features,
        tokens[real],
        similarity,
        scale_products(product[None], mask)[0],
    )


def reweight_regions(
    captioned: CaptionedRegions,
    area: int | float = 1.0,
    confidence: int | float = 1.0,
    similarity: int | float = 1.0,
) -> Float[Tensor, "region"]:
    """Region weights from the same three factors, each raised to a power of its own.

    Ours, to see what each factor does: 1 for all gives DCLIP's weights, 0 leaves a factor out, and
    0 for all weighs every region the same.

    Raises:
        ValueError: a power is negative or not finite.
    """
    if not all(0 <= power < float("inf") for power in (area, confidence, similarity)):
        raise ValueError(
            f"Expected powers of 0 or more, got area {area}, confidence {confidence} and "
            f"similarity {similarity}; give 0 to leave a factor out."
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
        weights[None].to(device),
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
    """
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
    spent = (unmasked.token_to_region.cpu() * ~region[:, None, :]).sum(2)  # pair token
    return MaskingEffect(
        padding=1 - torch.cat([region, token], dim=1).float().mean(1),
        masked=(masked.embedding * alone).sum(1).cpu(),
        unmasked=(unmasked.embedding * alone).sum(1).cpu(),
        attention_on_padding=(spent * token).sum(1) / token.sum(1),
    )


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
    box, confidence = features.xyxy[rows], features.confidence[rows]
    return Regions(box, confidence, tuple(labels), (width, height)), features.region[rows]


# The shortcut probe: does a teacher look at the picture, or read the caption?


@dataclass(frozen=True)
class ShortcutProbe:
    """The teacher's Recall@1 (embedding to caption) with its regions exchanged.

    Attributes:
        own: with the picture's own regions.
        shuffled: with another picture's regions.
        blank: without them: with a plain gray picture as the one region, or for a region teacher
            with the whole picture alone.
    """

    own: float
    shuffled: float
    blank: float


@torch.no_grad()
def shortcut_probe(
    teacher: MetaTeacher,
    bundle: ClipBundle,
    features: FrozenFeatures,
    regions: RegionSettings,
    seed: int = 0,
) -> ShortcutProbe:
    """Does the teacher look? One caption a picture; candidates are all these captions.

    If another picture's regions, or blank ones, score like its own, it reads the caption that it
    is given and ignores the picture.

    Args:
        teacher: trained.
        bundle: the frozen CLIP; says what a blank picture looks like.
        features: of pictures that it was not trained on.
        regions: as in training.
        seed: of which other picture lends its regions.

    Raises:
        ValueError: there are not two captioned pictures to exchange the regions of.
    """
    teacher.eval()
    texts = features.first_texts()
    if len(texts) < 2:
        raise ValueError(f"Expected at least two captioned pictures, got {len(texts)}; give more.")
    other = features.image_of_text[texts][choose_lenders(len(texts), seed)]
    gray = encode_images(bundle, [Image.new("RGB", (64, 64), (128, 128, 128))])
    count = len(features)
    blank = replace(  # with one region each, whose box says nothing
        features,
        region=gray.expand(count, -1),
        region_count=torch.ones(count, dtype=torch.long),
        xyxy=features.xyxy[:count],
        area=features.area[:count],
        confidence=features.confidence[:count],
        label=features.label[:count],
    )

    def score(output: TeacherOutput) -> float:
        candidates, own_text = features.text[texts], torch.arange(len(texts))
        return retrieval_metrics(
            output.embedding.cpu(), candidates, own_text
        ).image_to_text.recall_at[1]

    return ShortcutProbe(
        own=score(apply_teacher(teacher, features, texts, regions)),
        shuffled=score(apply_teacher(teacher, features, texts, regions, other)),
        blank=score(apply_teacher(teacher, blank, texts, regions)),
    )


def region_probe(
    teacher: RegionTeacher, features: FrozenFeatures, settings: RegionTeacherSettings
) -> ShortcutProbe:
    """Does the region teacher use the regions? All captions are candidates.

    Args:
        teacher: trained.
        features: of pictures that it was not trained on, with captions.
        settings: as in training.
    """

    def score(regions: Literal["own", "another", "none"]) -> float:
        embedding = embed_pictures(teacher, features, replace(settings, regions=regions))
        return retrieval_metrics(
            embedding, features.text, features.image_of_text
        ).image_to_text.recall_at[1]

    return ShortcutProbe(own=score("own"), shuffled=score("another"), blank=score("none"))


def probe_teacher(
    run: TeacherRun, clip: ClipBundle, features: FrozenFeatures, regions: RegionSettings
) -> ShortcutProbe:
    """The probe that fits the kind of a teacher; arguments as `shortcut_probe`'s."""
    if isinstance(run.settings, RegionTeacherSettings):
        return region_probe(run.teacher, features, run.settings)
    return shortcut_probe(run.teacher, clip, features, regions)


def score_teacher(
    run: TeacherRun, clip: ClipBundle, regions: RegionSettings, count: int = 1000
) -> dict[str, Float[Tensor, "item 2 2"]]:
    """Asks a teacher what `score_compositions` asks a CLIP; captions' vectors are frozen CLIP's.

    A teacher that reads captions embeds each of an item's pictures beside each of its captions, and
    the cosine is that with the vector of this caption.

    Args:
        run: of the teacher.
        clip: the untouched one.
        regions: how they are made.
        count: items of each kind.

    Returns:
        By kind, as `composition_scores` takes them.

    Raises:
        ValueError: there is no item.
    """
    detector = choose_detector(regions, clip)
    found: dict[str, Tensor] = {}
    item = torch.arange(2 * count).reshape(-1, 2)  # its pictures, by number
    for kind in KINDS:
        features = extract_features(clip, detector, load_compositions(kind, count), regions)
        if isinstance(run.settings, RegionTeacherSettings):
            embedding = embed_pictures(run.teacher, features, run.settings)
            embedding = embedding.reshape(count, 2, 1, -1)
        else:
            beside = [  # all captions beside the first picture of their item, and the second
                replace(features, image_of_text=item[:, [place, place]].flatten())
                for place in (0, 1)
            ]
            pairs = [embed_with_teacher(run.teacher, each, regions) for each in beside]
            embedding = torch.stack([each.reshape(count, 2, -1) for each in pairs], dim=1)
        text = features.text.reshape(count, 1, 2, -1)
        found[kind] = (embedding * text).sum(-1)  # item picture caption
    return found
