"""Measuring: retrieval, zero-shot, the teacher's shortcut probe, and choosing an interpolation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from dclip_kit.config import RegionSettings, SelectionRule
from dclip_kit.embedding import Pictures, encode_images, encode_texts
from dclip_kit.encoders import ClipBundle
from dclip_kit.features import FrozenFeatures
from dclip_kit.metrics import RetrievalMetrics, retrieval_metrics, top1_accuracy
from dclip_kit.student import interpolate
from dclip_kit.teacher import MetaTeacher
from dclip_kit.train import apply_teacher

TEMPLATES = ("a photo of {}", "a picture of {}", "an image of {}", "{}", "a close-up of {}")


@dataclass(frozen=True, eq=False)
class RetrievalSet:
    """A data set ready for retrieval: pictures (or their bytes), caption features, owners."""

    pictures: Pictures
    text_features: Float[Tensor, "text embed"]
    image_of_text: Int[Tensor, "text"]


@dataclass(frozen=True, eq=False)
class ZeroShotSet:
    """A data set ready for zero-shot classification.

    Attributes:
        pictures: or their bytes.
        labels: each picture's class.
        class_features: from `encode_classes`.
        in_domain: for each class whether fine-tuning shows it.
    """

    pictures: Pictures
    labels: Int[Tensor, "image"]
    class_features: Float[Tensor, "class embed"]
    in_domain: Bool[Tensor, "class"]


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """A zero-shot result.

    Attributes:
        correct: for each picture.
        top1: share of correct pictures.
        top1_domain: over classes that fine-tuning shows.
        top1_other: over classes that it never shows; None where there are none.
    """

    correct: Bool[Tensor, "image"]
    top1: float
    top1_domain: float | None
    top1_other: float | None


def encode_classes(
    bundle: ClipBundle, class_names: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Float[Tensor, "class embed"]:
    """The mean of each class's prompts, L2-normalised (CLIP's prompt ensembling)."""
    prompts = [template.format(name) for name in class_names for template in templates]
    features = encode_texts(bundle, prompts).reshape(len(class_names), len(templates), -1)
    return F.normalize(features.mean(1), dim=-1)


def nearest_classes(
    image_features: Float[Tensor, "image embed"],
    class_features: Float[Tensor, "class embed"],
    class_names: Sequence[str],
    top_k: int = 3,
) -> list[list[str]]:
    """Each image's nearest classes by name, nearest first; all features L2-normalised.

    Raises:
        ValueError: there is not one name a class.
    """
    if len(class_names) != len(class_features):
        raise ValueError(
            f"Expected a name for each of {len(class_features)} classes, got {len(class_names)}; "
            "give the names that the features were encoded from."
        )
    best = (image_features @ class_features.T).topk(min(top_k, len(class_names))).indices
    return [[class_names[index] for index in row] for row in best.tolist()]


def evaluate_retrieval(
    bundle: ClipBundle, data: RetrievalSet, progress: bool = True
) -> RetrievalMetrics:
    """Embeds the pictures and measures both directions; the text tower is frozen, so given."""
    image_features = encode_images(bundle, data.pictures, progress=progress)
    return retrieval_metrics(image_features, data.text_features, data.image_of_text)


def evaluate_zero_shot(bundle: ClipBundle, data: ZeroShotSet, progress: bool = True) -> ZeroShot:
    """Embeds the pictures and gives each its nearest class."""
    image_features = encode_images(bundle, data.pictures, progress=progress)
    correct = top1_accuracy(image_features, data.class_features, data.labels)
    shown = data.in_domain[data.labels]

    def share(chosen: Tensor) -> float | None:
        return correct[chosen].float().mean().item() if chosen.any() else None

    return ZeroShot(correct, correct.float().mean().item(), share(shown), share(~shown))


@dataclass(frozen=True)
class ShortcutProbe:
    """The teacher's Recall@1 (embedding to caption) with its regions exchanged.

    Attributes:
        own: with the picture's own regions.
        shuffled: with another picture's regions.
        blank: with a plain gray picture as the one region.
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
    is given and ignores the picture (METHOD section 2, row 8).

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
    device = next(teacher.parameters()).device
    texts = features.first_texts()
    if len(texts) < 2:
        raise ValueError(f"Expected at least two captioned pictures, got {len(texts)}; give more.")
    own = features.image_of_text[texts]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(own), generator=generator)
    other = torch.empty_like(own)
    other[order] = own[order.roll(1)]  # one cycle: nobody keeps its own

    def score(embedding: Tensor) -> float:
        found = retrieval_metrics(embedding.cpu(), features.text[texts], torch.arange(len(texts)))
        return found.image_to_text.recall_at[1]

    gray = encode_images(bundle, [Image.new("RGB", (64, 64), (128, 128, 128))])
    tokens = features.tokens_of(texts)
    blank = teacher(
        gray.expand(len(texts), 1, -1).to(device),
        torch.ones(len(texts), 1, dtype=torch.bool, device=device),
        tokens.features.to(device),
        tokens.mask.to(device),
    )
    return ShortcutProbe(
        own=score(apply_teacher(teacher, features, texts, regions).embedding),
        shuffled=score(apply_teacher(teacher, features, texts, regions, other).embedding),
        blank=score(blank.embedding),
    )


@dataclass(frozen=True)
class Candidate:
    """One interpolation on val: its text→image Recall@1 and its zero-shot retention."""

    alpha: float
    recall_at_1: float
    retention: float


@dataclass(frozen=True, eq=False)
class Selection:
    """The chosen interpolation, its weight, and all candidates."""

    student: ClipBundle
    alpha: float
    candidates: tuple[Candidate, ...]


def select_alpha(
    before: ClipBundle,
    after: ClipBundle,
    retrieval: RetrievalSet,
    zero_shot: ZeroShotSet,
    rule: SelectionRule,
) -> Selection:
    """Chooses between before and after on val, by one rule for every arm.

    Of the interpolations that keep `rule.least_retention` of val's zero-shot accuracy, the one
    with the best text→image Recall@1; if none keeps it, alpha is 0: the untouched CLIP.

    Raises:
        ValueError: the untouched CLIP classifies nothing, so that there is nothing to retain.
    """
    base = evaluate_zero_shot(before, zero_shot, progress=False).top1
    if base == 0:
        raise ValueError(
            "Expected a CLIP that knows some of val's classes, got none right; give it classes "
            "that it can name."
        )
    untouched = evaluate_retrieval(before, retrieval, progress=False)
    candidates = [Candidate(0.0, untouched.text_to_image.recall_at[1], 1.0)]
    for alpha in tqdm(rule.alphas, desc="interpolations", delay=2):
        mixed = interpolate(before, after, alpha)
        found = evaluate_retrieval(mixed, retrieval, progress=False)
        kept = evaluate_zero_shot(mixed, zero_shot, progress=False).top1 / base
        candidates.append(Candidate(alpha, found.text_to_image.recall_at[1], kept))
    able = [c for c in candidates if c.retention >= rule.least_retention]
    best = max(able or candidates[:1], key=lambda candidate: candidate.recall_at_1)
    return Selection(interpolate(before, after, best.alpha), best.alpha, tuple(candidates))
