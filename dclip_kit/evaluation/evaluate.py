"""Measures retrieval, in a whole data set or in galleries, and zero-shot accuracy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import open_clip
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from dclip_kit.data import CaptionedImages, LabelledImages
from dclip_kit.data.pocket.compositions import KINDS, load_compositions
from dclip_kit.metrics import (
    DirectionMetrics,
    Interval,
    RetrievalMetrics,
    class_ranks,
    composition_scores,
    k_occurrence,
    paired_bootstrap,
    rank_queries,
    recall_at_k,
    retrieval_metrics,
    skewness,
    summarise_ranks,
)
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import (
    Pictures,
    encode_images,
    encode_texts,
    read_pixels,
    require_texts,
)
from dclip_kit.models.weights import same_text_tower
from dclip_kit.runtime.processes import is_main_process
from dclip_kit.search.rescoring import NNN, Rescoring, list_settings

# The directions, by their names in records.
WAYS = {"text_to_image": "text → image", "image_to_text": "image → text"}

Templates = Sequence[str] | Sequence[Callable[[str], str]]

# The pocket's class names include an article ("a pair of glasses"); others have none.
TEMPLATES = ("a photo of {}", "a picture of {}", "an image of {}", "{}", "a close-up of {}")
TEMPLATE_SETS: dict[str, Templates] = {
    "pocket": TEMPLATES,
    "paper": ("a photo of a {}.",),
    "imagenet": open_clip.OPENAI_IMAGENET_TEMPLATES,  # the 80 behind CLIP's published figures
}
_PROMPTS_AT_ONCE = 512  # so that ImageNet's 80,000, which take minutes, show a progress bar


@dataclass(frozen=True, eq=False)
class RetrievalSet:
    """A data set ready for retrieval.

    Attributes:
        pictures: or their bytes.
        text_features: of the captions.
        image_of_text: each caption's picture.
        texts: the captions, to encode them again for a model with a trained text tower.
        encoder: the CLIP that `text_features` came from; None if they fit every model.
    """

    pictures: Pictures
    text_features: Float[Tensor, "text embed"]
    image_of_text: Int[Tensor, "text"]
    texts: Sequence[str] = ()
    encoder: ClipBundle | None = None

    def features_for(self, bundle: ClipBundle) -> Float[Tensor, "text embed"]:
        """The captions' features by a model's own text tower."""
        if self.encoder is None or same_text_tower(bundle, self.encoder):
            return self.text_features
        return encode_texts(bundle, self.texts)


@dataclass(frozen=True, eq=False)
class ZeroShotSet:
    """A data set ready for zero-shot classification.

    Attributes:
        pictures: or their bytes.
        labels: each picture's class.
        class_features: from `encode_classes`.
        in_domain: whether each class occurs in fine-tuning.
        class_names, templates: what the classes were encoded from.
        encoder: the CLIP that encoded them; None if they fit every model.
    """

    pictures: Pictures
    labels: Int[Tensor, "image"]
    class_features: Float[Tensor, "class embed"]
    in_domain: Bool[Tensor, "class"]
    class_names: Sequence[str] = ()
    templates: Templates = TEMPLATES
    encoder: ClipBundle | None = None

    def features_for(self, bundle: ClipBundle) -> Float[Tensor, "class embed"]:
        """The classes' features by a model's own text tower."""
        if self.encoder is None or same_text_tower(bundle, self.encoder):
            return self.class_features
        return encode_classes(bundle, self.class_names, self.templates)

    def every(self, step: int) -> "ZeroShotSet":
        """Only every `step`-th picture."""
        return replace(self, pictures=self.pictures[::step], labels=self.labels[::step])


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """A zero-shot result; two results' `correct` give `metrics.retention`.

    Attributes:
        correct: for each picture.
        top1: share of correct pictures.
        top1_domain: over classes that occur in fine-tuning; None where there are none.
        top1_other: over classes that do not; None where there are none.
        top5: share of pictures whose class is among the five nearest; None for five classes or
            fewer.
    """

    correct: Bool[Tensor, "image"]
    top1: float
    top1_domain: float | None
    top1_other: float | None
    top5: float | None = None


def encode_classes(
    bundle: ClipBundle, class_names: Sequence[str], templates: Templates = TEMPLATES
) -> Float[Tensor, "class embed"]:
    """The mean of each class's prompts, L2-normalised (CLIP's prompt ensembling).

    Args:
        bundle: the CLIP.
        class_names: as a prompt has them.
        templates: texts with {} for the name, or functions of it, as open_clip's are.
    """
    require_texts(class_names)
    prompts = [
        template.format(name) if isinstance(template, str) else template(name)
        for name in class_names
        for template in templates
    ]
    starts = tqdm(
        range(0, len(prompts), _PROMPTS_AT_ONCE),
        "encoding classes",
        delay=2,
        disable=not is_main_process(),
    )
    parts = [encode_texts(bundle, prompts[start : start + _PROMPTS_AT_ONCE]) for start in starts]
    # The mean of each class's prompts.
    return F.normalize(torch.cat(parts).unflatten(0, (-1, len(templates))).mean(1), dim=-1)


def prepare_retrieval(
    bundle: ClipBundle, dataset: CaptionedImages, read: bool = True
) -> RetrievalSet:
    """Encodes the captions once, since most text towers stay frozen, and reads the pictures once.

    With `read=False` the pictures stay paths and are read at each measurement, which saves memory
    for sets that are seldom measured. Pictures that are read here fit only models with the same
    preprocessing: for others give `read=False`.
    """
    return RetrievalSet(
        read_pixels(bundle, dataset.paths) if read else dataset.paths,
        encode_texts(bundle, dataset.texts),
        dataset.image_of_text,
        dataset.texts,
        bundle,
    )


def prepare_zero_shot(
    bundle: ClipBundle,
    dataset: LabelledImages,
    read: bool = True,
    templates: Templates = TEMPLATES,
) -> ZeroShotSet:
    """Encodes the classes once, by `encode_classes`; reads the pictures as `prepare_retrieval`.

    Classes with the same name are merged; ImageNet has two such pairs.
    """
    class_index = {name: index for index, name in enumerate(dict.fromkeys(dataset.class_names))}
    return ZeroShotSet(
        read_pixels(bundle, dataset.paths) if read else dataset.paths,
        torch.tensor([class_index[dataset.class_names[label]] for label in dataset.labels]),
        encode_classes(bundle, tuple(class_index), templates),
        torch.tensor([dataset.in_domain[dataset.class_names.index(name)] for name in class_index]),
        tuple(class_index),
        templates,
        bundle,
    )


def nearest_classes(
    image_features: Float[Tensor, "image embed"],
    class_features: Float[Tensor, "class embed"],
    class_names: Sequence[str],
    top_k: int = 3,
) -> list[list[str]]:
    """Each image's nearest classes by name, nearest first; all features L2-normalised.

    Raises:
        ValueError: the numbers of names and classes differ.
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
    """Embeds the pictures, and the captions if the text tower differs; measures both ways."""
    return retrieval_metrics(
        encode_images(bundle, data.pictures, progress=progress),
        data.features_for(bundle),
        data.image_of_text,
    )


def evaluate_zero_shot(bundle: ClipBundle, data: ZeroShotSet, progress: bool = True) -> ZeroShot:
    """Embeds the pictures and ranks the classes by their nearness to each."""
    image_features = encode_images(bundle, data.pictures, progress=progress)
    ranks = class_ranks(image_features, data.features_for(bundle), data.labels)
    correct = ranks <= 1
    domain = data.in_domain[data.labels]

    def share(mask: Tensor) -> float | None:
        return correct[mask].float().mean().item() if mask.any() else None

    top5 = recall_at_k(ranks, 5) if len(data.class_features) > 5 else None
    return ZeroShot(correct, correct.float().mean().item(), share(domain), share(~domain), top5)


# Compositions: pairs that differ in one respect only


def score_compositions(
    bundle: ClipBundle, count: int = 1000
) -> dict[str, Float[Tensor, "item 2 2"]]:
    """Cosines of the two pictures and the two captions of each of the pocket's items.

    Args:
        bundle: the CLIP.
        count: items of each kind.

    Returns:
        By kind, as `composition_scores` takes them.

    Raises:
        ValueError: there is no item.
    """
    similarity = {}
    for kind in KINDS:
        items = load_compositions(kind, count)
        images = encode_images(bundle, items.paths).reshape(count, 2, -1)
        similarity[kind] = images @ encode_texts(bundle, items.texts).reshape(count, 2, -1).mT
    return similarity


def evaluate_compositions(
    found: Mapping[str, Float[Tensor, "item 2 2"]],
) -> dict[str, dict[str, Interval]]:
    """How often the two captions, and the two pictures, of the pocket's items are told apart.

    Args:
        found: from `score_compositions`, or for a teacher from `inspection.score_teachers`.

    Returns:
        By kind, then "text", "image" and "group" as `composition_scores`, with 95 % intervals.
    """
    return {
        kind: {
            score: paired_bootstrap(torch.zeros(len(right)), right, torch.arange(len(right)))
            for score, right in composition_scores(similarity).items()
        }
        for kind, similarity in found.items()
    }


# Rescored by training data


@dataclass(frozen=True, eq=False)
class References:
    """Queries to rescore candidates by, independent of the measured ones.

    Attributes:
        captions: features of training captions, for text→image.
        pictures: features of training pictures, for image→text.
    """

    captions: Float[Tensor, "text embed"]
    pictures: Float[Tensor, "image embed"]


def prepare_references(bundle: ClipBundle, train: CaptionedImages) -> References:
    """Encodes captions and pictures of the training data.

    Raises:
        ValueError: the data is another split: references must not contain what is measured.
    """
    if train.split != "train":
        raise ValueError(
            f"Expected reference queries of the training data, got those of {train.split!r}; "
            "give the training split, since measured data would leak its queries."
        )
    return References(encode_texts(bundle, train.texts), encode_images(bundle, train.paths))


def rescored_metrics(
    image_features: Float[Tensor, "image embed"],
    text_features: Float[Tensor, "text embed"],
    image_of_text: Int[Tensor, "text"],
    references: References,
    rescoring: Rescoring,
    back: Rescoring | None = None,
) -> RetrievalMetrics:
    """`retrieval_metrics` by rescored scores; features are of length 1.

    Args:
        image_features, text_features, image_of_text: as in `retrieval_metrics`.
        references: to rescore candidates by.
        rescoring: the method and its settings.
        back: those for image→text, if they differ.
    """

    def search(
        queries: Tensor,
        candidates: Tensor,
        reference_queries: Tensor,
        image_of_candidate: Tensor,
        image_of_query: Tensor,
        settings: Rescoring,
    ) -> DirectionMetrics:
        """A candidate answers the queries of the same image."""
        bias = settings.measure_bias(reference_queries, candidates)
        parts = [
            rank_queries(
                settings.apply(query_chunk @ candidates.T, bias),
                image_chunk[:, None] == image_of_candidate,
                settings.tolerance,
            )
            for query_chunk, image_chunk in zip(
                queries.split(200), image_of_query.split(200), strict=True
            )
        ]
        rank, precision = map(torch.cat, zip(*parts, strict=True))
        return summarise_ranks(rank, precision, len(candidates), image_of_query)

    image_indices, captioned_images = torch.arange(len(image_features)), image_of_text.unique()
    return RetrievalMetrics(
        search(
            text_features,
            image_features,
            references.captions,
            image_indices,
            image_of_text,
            rescoring,
        ),
        search(
            *(
                image_features[captioned_images],
                text_features,
                references.pictures,
                image_of_text,
                captioned_images,
            ),
            back or rescoring,
        ),
        len(image_indices) - len(captioned_images),
    )


def measure_hubness(
    image_features: Float[Tensor, "image embed"],
    text_features: Float[Tensor, "text embed"],
    references: References,
    rescoring: Rescoring,
    back: Rescoring | None = None,
) -> dict[str, dict[str, float]]:
    """The skewness of how often candidates are in the top ten; arguments as `rescored_metrics`.

    Returns:
        By direction, "before" and "after" rescoring; 0 if all come up equally often.
    """
    skewnesses = {}
    text_to_image = text_features, image_features, references.captions, rescoring
    image_to_text = image_features, text_features, references.pictures, back or rescoring
    for way, (queries, candidates, reference_queries, settings) in zip(
        WAYS, (text_to_image, image_to_text), strict=True
    ):
        k = min(10, len(candidates))
        score = partial(settings.apply, bias=settings.measure_bias(reference_queries, candidates))
        counts = {
            "before": k_occurrence(queries, candidates, k),
            "after": k_occurrence(queries, candidates, k, score, settings.tolerance),
        }
        skewnesses[way] = {
            name: skewness(occurrences) if (occurrences != occurrences[0]).any() else 0.0
            for name, occurrences in counts.items()
        }
    return skewnesses


def try_rescoring(
    method: str,
    image_features: Float[Tensor, "image embed"],
    text_features: Float[Tensor, "text embed"],
    image_of_text: Int[Tensor, "text"],
    references: References,
) -> dict[str, dict[Rescoring, float]]:
    """By direction, a method's settings with their Recall@1 on val, best first.

    The features are those of val; the other arguments are as in `rescored_metrics`.
    """
    features = image_features, text_features, image_of_text
    tried = {
        settings: rescored_metrics(*features, references, settings)
        for settings in list_settings(method)
    }
    recalls = {
        way: {how: getattr(metrics, way).recall_at[1] for how, metrics in tried.items()}
        for way in WAYS
    }
    return {
        way: dict(sorted(recall_of.items(), key=lambda pair: -pair[1]))
        for way, recall_of in recalls.items()
    }


# Galleries: pictures in groups of equal size, so that figures can be compared


def prepare_galleries(
    clip: ClipBundle, dataset: CaptionedImages, size: int
) -> tuple[RetrievalSet, ...]:
    """Reads pictures and encodes captions in groups of equal size; the last may be smaller."""
    parts = torch.arange(len(dataset)).split(size)
    return tuple(prepare_retrieval(clip, dataset.select(part.tolist())) for part in parts)


@dataclass(frozen=True, eq=False)
class GalleryMetrics:
    """One direction in all galleries.

    Attributes:
        hits: whether each query finds a right answer first.
        image: each query's picture, numbered over all galleries.
        figures: means over all queries: recall_at_1, recall_at_5, recall_at_10,
            mean_average_precision.
    """

    hits: Bool[Tensor, "query"]
    image: Int[Tensor, "query"]
    figures: dict[str, float]


# For each gallery: its pictures' features, its captions' features, and each caption's picture.
GalleryFeatures = Sequence[
    tuple[Float[Tensor, "_image embed"], Float[Tensor, "_text embed"], Int[Tensor, "_text"]]
]


def encode_galleries(clip: ClipBundle, galleries: Sequence[RetrievalSet]) -> GalleryFeatures:
    """Embeds the galleries from `prepare_galleries`."""
    return [
        (
            encode_images(clip, gallery.pictures, progress=False),
            gallery.features_for(clip),
            gallery.image_of_text,
        )
        for gallery in galleries
    ]


def measure_galleries(
    galleries: GalleryFeatures,
    references: References | None = None,
    rescoring: Rescoring = NNN,
) -> dict[str, GalleryMetrics]:
    """Retrieval both ways, within each gallery.

    Args:
        galleries: from `encode_galleries`.
        references: to rescore candidates by; None leaves scores as they are.
        rescoring: the method and its settings.
    """
    metrics_by_way: dict[str, list[DirectionMetrics]] = {way: [] for way in WAYS}
    first_image = 0
    for features in galleries:
        if references is None:
            retrieval = retrieval_metrics(*features)
        else:
            retrieval = rescored_metrics(*features, references, rescoring)
        for way in WAYS:
            metrics: DirectionMetrics = getattr(retrieval, way)
            metrics_by_way[way].append(
                replace(metrics, image_of_query=first_image + metrics.image_of_query)
            )
        first_image += len(features[0])
    return {way: _join(parts) for way, parts in metrics_by_way.items()}


def _join(parts: list[DirectionMetrics]) -> GalleryMetrics:
    values = {
        f"recall_at_{k}": torch.cat([metrics.hits(k) for metrics in parts]) for k in (1, 5, 10)
    }
    values["mean_average_precision"] = torch.cat([metrics.average_precision for metrics in parts])
    return GalleryMetrics(
        values["recall_at_1"],
        torch.cat([metrics.image_of_query for metrics in parts]),
        {name: float(value.double().mean()) for name, value in values.items()},
    )
