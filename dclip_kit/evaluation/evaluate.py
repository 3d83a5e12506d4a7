"""Measuring retrieval, in all of a data set or in galleries, and zero-shot accuracy."""

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

# The pocket's classes bring their article, "a pair of glasses"; those of the others have none.
TEMPLATES = ("a photo of {}", "a picture of {}", "an image of {}", "{}", "a close-up of {}")
TEMPLATE_SETS: dict[str, Templates] = {
    "pocket": TEMPLATES,
    "paper": ("a photo of a {}.",),
    "imagenet": open_clip.OPENAI_IMAGENET_TEMPLATES,  # the 80 that CLIP's own figures come from
}
_PROMPTS_AT_ONCE = 512  # so that ImageNet's 80,000 show a bar while they take their minutes


@dataclass(frozen=True, eq=False)
class RetrievalSet:
    """A data set ready for retrieval.

    Attributes:
        pictures: or their bytes.
        text_features: of the captions.
        image_of_text: each caption's picture.
        texts: the captions, to encode them anew for a model whose text tower has been trained.
        encoder: the CLIP that `text_features` came from; None says that they fit every model.
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
        in_domain: for each class whether fine-tuning shows it.
        class_names, templates: what the classes were encoded from.
        encoder: the CLIP that encoded them; None says that they fit every model.
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
        """Each `step`-th picture only."""
        return replace(self, pictures=self.pictures[::step], labels=self.labels[::step])


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """A zero-shot result; `metrics.retention` of two results' `correct` says what was kept.

    Attributes:
        correct: for each picture.
        top1: share of correct pictures.
        top1_domain: over classes that fine-tuning shows.
        top1_other: over classes that it never shows; None where there are none.
        top5: share of pictures whose class is among the five nearest; None where there are no more
            than five.
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
        class_names: as they stand in a prompt.
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
    # Of each class's prompts the mean.
    return F.normalize(torch.cat(parts).unflatten(0, (-1, len(templates))).mean(1), dim=-1)


def prepare_retrieval(
    bundle: ClipBundle, dataset: CaptionedImages, read: bool = True
) -> RetrievalSet:
    """Encodes the captions once, since text towers are mostly frozen, and reads the pictures once.

    Without `read` the pictures stay paths: read whenever they are measured, for sets that seldom
    are, they take no memory meanwhile. What is read fits models with this one's preprocessing: for
    others leave `read` out.
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

    Classes of equal names, of which ImageNet has two pairs, are one.
    """
    place = {name: index for index, name in enumerate(dict.fromkeys(dataset.class_names))}
    return ZeroShotSet(
        read_pixels(bundle, dataset.paths) if read else dataset.paths,
        torch.tensor([place[dataset.class_names[label]] for label in dataset.labels]),
        encode_classes(bundle, tuple(place), templates),
        torch.tensor([dataset.in_domain[dataset.class_names.index(name)] for name in place]),
        tuple(place),
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
    """Embeds the pictures, and the captions if the text tower is another; measures both ways."""
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

    def share(chosen: Tensor) -> float | None:
        return correct[chosen].float().mean().item() if chosen.any() else None

    top5 = recall_at_k(ranks, 5) if len(data.class_features) > 5 else None
    return ZeroShot(correct, correct.float().mean().item(), share(domain), share(~domain), top5)


# Compositions: what differs in one respect alone


def score_compositions(
    bundle: ClipBundle, count: int = 1000
) -> dict[str, Float[Tensor, "item 2 2"]]:
    """Cosines within each of the pocket's items: of its two pictures with its two captions.

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
        found: from `score_compositions`, or of a teacher from `inspection.score_teacher`.

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
    """Queries that have nothing to do with those that are measured, to rescore candidates by.

    Attributes:
        captions: features of training captions, for text→image.
        pictures: features of training pictures, for image→text.
    """

    captions: Float[Tensor, "text embed"]
    pictures: Float[Tensor, "image embed"]


def prepare_references(bundle: ClipBundle, train: CaptionedImages) -> References:
    """Encodes captions and pictures of the training data.

    Raises:
        ValueError: they are of another split: what is measured must not be known before.
    """
    if train.split != "train":
        raise ValueError(
            f"Expected reference queries of the training data, got those of {train.split!r}; "
            "measured data would tell what is asked."
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
    """As `retrieval_metrics`, by rescored scores; features are of length 1.

    Args:
        image_features, text_features, image_of_text: as there.
        references: to rescore candidates by.
        rescoring: how.
        back: how image→text is rescored, if otherwise.
    """

    def search(
        queries: Tensor,
        candidates: Tensor,
        asked: Tensor,
        owner: Tensor,
        image: Tensor,
        how: Rescoring,
    ) -> DirectionMetrics:
        """The image of a candidate, `owner`, is that of the queries that it answers."""
        bias = how.measure_bias(asked, candidates)
        parts = [
            rank_queries(
                how.apply(some @ candidates.T, bias),
                own[:, None] == owner,
                how.tolerance,
            )
            for some, own in zip(queries.split(200), image.split(200), strict=True)
        ]
        rank, precision, undecided = map(torch.cat, zip(*parts, strict=True))
        return summarise_ranks(rank, precision, undecided, len(candidates), image)

    every, asked = torch.arange(len(image_features)), image_of_text.unique()
    return RetrievalMetrics(
        search(text_features, image_features, references.captions, every, image_of_text, rescoring),
        search(
            *(image_features[asked], text_features, references.pictures, image_of_text, asked),
            back or rescoring,
        ),
        len(every) - len(asked),
    )


def measure_hubness(
    image_features: Float[Tensor, "image embed"],
    text_features: Float[Tensor, "text embed"],
    references: References,
    rescoring: Rescoring,
    back: Rescoring | None = None,
) -> dict[str, dict[str, float]]:
    """The skewness of how often candidates are among the first ten; arguments as above.

    Returns:
        By direction, "before" and "after" rescoring; 0 where all are found equally often.
    """
    found = {}
    forth = text_features, image_features, references.captions, rescoring
    other = image_features, text_features, references.pictures, back or rescoring
    for way, (queries, candidates, asked, how) in zip(WAYS, (forth, other), strict=True):
        k = min(10, len(candidates))
        score = partial(how.apply, bias=how.measure_bias(asked, candidates))
        counts = {
            "before": k_occurrence(queries, candidates, k),
            "after": k_occurrence(queries, candidates, k, score, how.tolerance),
        }
        found[way] = {
            name: skewness(each) if (each != each[0]).any() else 0.0
            for name, each in counts.items()
        }
    return found


def try_rescoring(
    method: str,
    image_features: Float[Tensor, "image embed"],
    text_features: Float[Tensor, "text embed"],
    image_of_text: Int[Tensor, "text"],
    references: References,
) -> dict[str, dict[Rescoring, float]]:
    """Settings of a method by direction, the best on val first, with the Recall@1 of each.

    The features are those of val; the rest is as in `rescored_metrics`.
    """
    features = image_features, text_features, image_of_text
    tried = {each: rescored_metrics(*features, references, each) for each in list_settings(method)}
    recalls = {
        way: {each: getattr(found, way).recall_at[1] for each, found in tried.items()}
        for way in WAYS
    }
    return {
        way: dict(sorted(each.items(), key=lambda pair: -pair[1])) for way, each in recalls.items()
    }


# Galleries: many pictures in groups of one size, so that figures can be compared


def prepare_galleries(
    clip: ClipBundle, dataset: CaptionedImages, size: int
) -> tuple[RetrievalSet, ...]:
    """Reads pictures and encodes captions, in groups of one size; the last may have fewer."""
    parts = torch.arange(len(dataset)).split(size)
    return tuple(prepare_retrieval(clip, dataset.select(part.tolist())) for part in parts)


@dataclass(frozen=True, eq=False)
class GalleryMetrics:
    """One direction in all galleries.

    Attributes:
        hits: for each query whether a right answer is found first.
        image: the picture that each query belongs to, counted over all galleries.
        figures: means over all queries: recall_at_1, recall_at_5, recall_at_10,
            mean_average_precision.
    """

    hits: Bool[Tensor, "query"]
    image: Int[Tensor, "query"]
    figures: dict[str, float]


# Of each gallery its pictures' features, its captions' features, and each caption's picture.
GalleryFeatures = Sequence[
    tuple[Float[Tensor, "_image embed"], Float[Tensor, "_text embed"], Int[Tensor, "_text"]]
]


def encode_galleries(clip: ClipBundle, galleries: Sequence[RetrievalSet]) -> GalleryFeatures:
    """Embeds what `prepare_galleries` has prepared."""
    return [
        (
            encode_images(clip, each.pictures, progress=False),
            each.features_for(clip),
            each.image_of_text,
        )
        for each in galleries
    ]


def measure_galleries(
    galleries: GalleryFeatures,
    references: References | None = None,
    rescoring: Rescoring = NNN,
) -> dict[str, GalleryMetrics]:
    """Retrieval both ways: in each gallery its own captions and pictures search for each other.

    Args:
        galleries: from `encode_galleries`.
        references: to rescore candidates by; None leaves scores as they are.
        rescoring: how.
    """
    found: dict[str, list[DirectionMetrics]] = {way: [] for way in WAYS}
    first = 0
    for features in galleries:
        if references is None:
            both = retrieval_metrics(*features)
        else:
            both = rescored_metrics(*features, references, rescoring)
        for way in WAYS:
            one: DirectionMetrics = getattr(both, way)
            found[way].append(replace(one, image_of_query=first + one.image_of_query))
        first += len(features[0])
    return {way: _join(each) for way, each in found.items()}


def _join(found: list[DirectionMetrics]) -> GalleryMetrics:
    values = {f"recall_at_{k}": torch.cat([each.hits(k) for each in found]) for k in (1, 5, 10)}
    values["mean_average_precision"] = torch.cat([each.average_precision for each in found])
    return GalleryMetrics(
        values["recall_at_1"],
        torch.cat([each.image_of_query for each in found]),
        {name: float(value.double().mean()) for name, value in values.items()},
    )
