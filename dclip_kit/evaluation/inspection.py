"""A closer look at the things in scenes, at one picture with one caption, and at teachers.

Axes: object, a thing of a scene; region, token, embed; pair, an image-caption pair of a batch.
"""

import copy
from collections.abc import Mapping, Sequence
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
    """The things in several scenes, scene by scene.

    Attributes:
        image: each thing's scene.
        label: each thing's noun, an index into `load_nouns()`.
        size: each thing's: "small", "medium" or "large".
        xyxy: each thing's box in pixels.
    """

    image: Int[Tensor, "object"]
    label: Int[Tensor, "object"]
    size: tuple[str, ...]
    xyxy: Float[Tensor, "object 4"]

    def __len__(self) -> int:
        return len(self.size)

    def of_size(self, size: str) -> Bool[Tensor, "object"]:
        """Which of the things have this size."""
        return torch.tensor([own_size == size for own_size in self.size])


def list_objects(scenes: Sequence[Scene]) -> SceneObjects:
    """All things in the scenes, scene by scene; at least one."""
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
    """Each thing's region, by its number in its picture; -1 where the detector found none.

    A region and a thing are matched if they overlap enough, best pairs first, each at most once.
    Labels are ignored: the detector tells where to look, not what is there.

    Args:
        objects: of as many pictures as there are `regions`.
        regions: of each picture.
        least_overlap: intersection over union of both boxes, 0 to 1.
    """
    match = torch.full_like(objects.label, -1)
    for image in objects.image.unique().tolist():
        things = (objects.image == image).nonzero().flatten()
        overlap = box_iou(objects.xyxy[things], regions[image].xyxy)  # object region
        while overlap.numel() and overlap.max() >= least_overlap:
            thing, region = divmod(int(overlap.argmax()), overlap.shape[1])
            match[things[thing]] = region
            overlap[thing], overlap[:, region] = -1, -1
    return match


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
    """Lets CLIP name every thing of every picture, once from the picture and once from its crop.

    A thing is named if its noun is nearer than all nouns that the picture does *not* show. The
    nouns of the other things in it are true as well, so they do not compete, and one vector of a
    picture may name all that it shows.

    Args:
        clip: encodes the pictures and the crops.
        paths: of the pictures.
        objects: their things.
        regions: of each picture, from a detector.
        class_features: of all nouns, from `encode_classes`.
        settings: how crops are cut; the defaults if left out.

    Raises:
        ValueError: paths and regions differ in number.
    """
    if len(paths) != len(regions):
        raise ValueError(
            f"Expected the regions of each of {len(paths)} pictures, got {len(regions)}; run the "
            "detector on these pictures."
        )
    match = match_regions(objects, regions)
    found = match >= 0
    crops = []
    for image, path in enumerate(tqdm(paths, "cutting things out", delay=2)):
        image_crops = crop_regions(
            open_picture(path), regions[image], settings.margin, settings.square
        )
        crops += [
            image_crops[region] for region in match[found & (objects.image == image)].tolist()
        ]
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
    """Whether each thing's noun ranks first, without a tie, among the nouns its picture lacks."""
    present = torch.zeros(int(objects.image.max()) + 1, len(class_features), dtype=torch.bool)
    present[objects.image, objects.label] = True
    own_noun = torch.nn.functional.one_hot(objects.label, len(class_features)).bool()
    cosines = (features @ class_features.T).masked_fill(present[objects.image] & ~own_noun, -2.0)
    return ranks(cosines, own_noun) <= 1  # -2 is below all cosines


# One picture with one caption: the factors of its region weights, and a teacher's attention


@dataclass(frozen=True, eq=False)
class CaptionedRegions:
    """A picture's regions with one caption, and the factors of DCLIP's region weights.

    Attributes:
        regions: with their areas and confidences.
        caption: the text.
        tokens: the caption's tokens, in readable form.
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
    """Encodes a picture's regions and a caption's tokens, and weights the regions by the tokens.

    Args:
        clip: the frozen CLIP.
        picture: the one with the regions.
        regions: from a detector.
        caption: any text; it need not describe the picture.
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
    """As `read_caption`, from regions and a caption that are already encoded.

    Args:
        clip: splits the caption into readable tokens.
        caption: the text.
        tokens: their features, from `encode_tokens` or `FrozenFeatures.tokens_of`.
        real: True at tokens, False at padding.
        regions: of this picture or of another.
        region_features: of these regions.
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

    Our addition, to show what each factor does: 1 for all gives DCLIP's weights, 0 leaves a factor
    out, and 0 for all gives every region the same weight.

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
    """The teacher's output for this picture and caption, as a batch of one.

    Args:
        teacher: trained with the CLIP that encoded both.
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
    """How the other pairs of a batch change a pair's embedding, with and without a mask.

    Attributes:
        padding: share of padding among the pair's regions and tokens in the batch.
        masked: cosine of its embeddings in the batch and alone; padding is masked.
        unmasked: the same; padding is attended to and pooled, as in the published code.
        attention_on_padding: share of the tokens' attention on padded regions, without the mask.
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
    """Embeds each pair alone and in a batch with the others, with padding masked and unmasked.

    Args:
        teacher: one that reads captions.
        features: of the frozen CLIP.
        texts: the batch: indices of captions, each paired with its own picture.
        settings: whether regions are weighted.
    """
    unmasked_teacher = copy.copy(teacher.eval())  # shares the weights
    unmasked_teacher.masked = False
    masked, unmasked = (
        apply_teacher(model, features, texts, settings) for model in (teacher, unmasked_teacher)
    )
    alone = torch.cat(
        [apply_teacher(teacher, features, text[None], settings).embedding for text in texts]
    )
    _, region = features.regions_of(features.image_of_text[texts])
    _, token = features.tokens_of(texts)
    padded_attention = (unmasked.token_to_region.cpu() * ~region[:, None, :]).sum(2)  # pair token
    return MaskingEffect(
        padding=1 - torch.cat([region, token], dim=1).float().mean(1),
        masked=(masked.embedding * alone).sum(1).cpu(),
        unmasked=(unmasked.embedding * alone).sum(1).cpu(),
        attention_on_padding=(padded_attention * token).sum(1) / token.sum(1),
    )


def stored_regions(
    features: FrozenFeatures, image: int, names: Sequence[str]
) -> tuple[Regions, Float[Tensor, "region embed"]]:
    """A picture's extracted regions and their vectors.

    Args:
        features: that include the picture's.
        image: the picture's number.
        names: of the detector's classes.
    """
    start = int(features.region_count[:image].sum())
    rows = slice(start, start + int(features.region_count[image]))
    width, height = features.size[image].tolist()
    labels = [
        names[label] if label >= 0 else "whole image" for label in features.label[rows].tolist()
    ]
    box, confidence = features.xyxy[rows], features.confidence[rows]
    return Regions(box, confidence, tuple(labels), (width, height)), features.region[rows]


# The shortcut probe: does a teacher use the picture, or only the caption?


@dataclass(frozen=True)
class ShortcutProbe:
    """The teacher's Recall@1 (embedding to caption) with its regions exchanged.

    Attributes:
        own: with the picture's own regions.
        shuffled: with another picture's regions.
        blank: without regions: a plain gray picture is the only region, or for a region teacher
            the whole picture.
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
    """Does the teacher use the picture? One caption per picture; all of these are candidates.

    If another picture's regions, or blank ones, score like the picture's own, the teacher reads the
    caption that it is given and ignores the picture.

    Args:
        teacher: trained.
        bundle: the frozen CLIP; encodes the blank picture.
        features: of pictures that it was not trained on.
        regions: as in training.
        seed: for choosing the pictures that lend their regions.

    Raises:
        ValueError: there are fewer than two captioned pictures.
    """
    teacher.eval()
    texts = features.first_texts()
    if len(texts) < 2:
        raise ValueError(f"Expected at least two captioned pictures, got {len(texts)}; give more.")
    lenders = features.image_of_text[texts][choose_lenders(len(texts), seed)]
    gray = encode_images(bundle, [Image.new("RGB", (64, 64), (128, 128, 128))])
    count = len(features)
    blank = replace(  # one region each, with an arbitrary box
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
        shuffled=score(apply_teacher(teacher, features, texts, regions, lenders)),
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
    """The probe for the teacher's kind; arguments as in `shortcut_probe`."""
    if isinstance(run.settings, RegionTeacherSettings):
        return region_probe(run.teacher, features, run.settings)
    return shortcut_probe(run.teacher, clip, features, regions)


def score_teachers(
    runs: Mapping[str, TeacherRun], clip: ClipBundle, regions: RegionSettings, count: int = 1000
) -> dict[str, dict[str, Float[Tensor, "item 2 2"]]]:
    """`score_compositions` for teachers; the captions' vectors are the frozen CLIP's.

    A teacher that reads captions embeds each of an item's pictures with each of its captions, and
    the cosine is the one with that caption's vector.

    Args:
        runs: with the teachers, by name.
        clip: the untouched CLIP.
        regions: how regions are found and cropped.
        count: items of each kind.

    Returns:
        By name and kind, as `composition_scores` takes them.

    Raises:
        ValueError: there is no item.
    """
    detector = choose_detector(regions, clip)
    cosines: dict[str, dict[str, Tensor]] = {name: {} for name in runs}
    for kind in KINDS:
        features = extract_features(clip, detector, load_compositions(kind, count), regions)
        text = features.text.reshape(count, 1, 2, -1)
        for name, run in runs.items():
            embedding = _embed_items(run, features, regions)
            cosines[name][kind] = (embedding * text).sum(-1)  # item picture caption
    return cosines


def _embed_items(run: TeacherRun, features: FrozenFeatures, regions: RegionSettings) -> Tensor:
    """A teacher's vectors (item, picture, caption, embed); a single caption if it reads none."""
    count = len(features.image) // 2
    if isinstance(run.settings, RegionTeacherSettings):
        return embed_pictures(run.teacher, features, run.settings).reshape(count, 2, 1, -1)
    item_images = torch.arange(2 * count).reshape(-1, 2)  # each item's pictures
    paired_features = [  # all captions with their item's first picture, then its second
        replace(features, image_of_text=item_images[:, [picture, picture]].flatten())
        for picture in (0, 1)
    ]
    embeddings = [embed_with_teacher(run.teacher, paired, regions) for paired in paired_features]
    return torch.stack([paired.reshape(count, 2, -1) for paired in embeddings], dim=1)
