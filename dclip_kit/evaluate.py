"""Measuring: retrieval, zero-shot, and choosing an interpolation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from dclip_kit.config import SelectionRule
from dclip_kit.datasets import CaptionedImages, LabelledImages
from dclip_kit.embedding import Pictures, encode_images, encode_texts, read_pixels
from dclip_kit.encoders import ClipBundle
from dclip_kit.metrics import RetrievalMetrics, retrieval_metrics, top1_accuracy
from dclip_kit.student import interpolate

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

    def every(self, step: int) -> "ZeroShotSet":
        """Each `step`-th picture only."""
        return replace(self, pictures=self.pictures[::step], labels=self.labels[::step])


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


def prepare_retrieval(
    bundle: ClipBundle, dataset: CaptionedImages, read: bool = True
) -> RetrievalSet:
    """Encodes the captions once, since the text tower is frozen, and reads the pictures once.

    Without `read` the pictures stay paths: read whenever they are measured, for sets that seldom
    are, they take no memory meanwhile.
    """
    pictures = read_pixels(bundle, dataset.paths) if read else dataset.paths
    return RetrievalSet(pictures, encode_texts(bundle, dataset.texts), dataset.image_of_text)


def prepare_zero_shot(
    bundle: ClipBundle, dataset: LabelledImages, read: bool = True
) -> ZeroShotSet:
    """Encodes the classes once; reads the pictures as `prepare_retrieval` does."""
    return ZeroShotSet(
        read_pixels(bundle, dataset.paths) if read else dataset.paths,
        torch.tensor(dataset.labels),
        encode_classes(bundle, dataset.class_names),
        torch.tensor(dataset.in_domain),
    )


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
