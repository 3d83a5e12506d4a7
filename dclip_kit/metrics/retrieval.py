"""Retrieval and zero-shot accuracy of features, by cosine.

Axes with a leading underscore are checked by hand, so that the error can say what to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dclip_kit.metrics.counting import count_rivals
from dclip_kit.metrics.ranking import (
    TIE_TOLERANCE,
    TILE_SIZE,
    combine_counts,
    mean_average_precision,
    mean_reciprocal_rank,
    median_rank,
    recall_at_k,
)


@dataclass(frozen=True, eq=False)
class DirectionMetrics:
    """One direction's numbers, and per query what a paired bootstrap needs to compare two models.

    Attributes:
        recall_at: k -> share of queries with any positive in the top k.
        ranks: Rank of each query's best positive, from 1; halves when tied. On the CPU, as are all.
        average_precision: Over all positives of each query.
        undecided: Queries for which all candidates tie: no ranking, so a hit only if k takes all.
        image_of_query: The image each query belongs to, the group that is resampled together.
    """

    recall_at: dict[int, float]
    mean_average_precision: float
    mean_reciprocal_rank: float
    median_rank: float
    candidates: int
    ranks: Float[Tensor, "query"]
    average_precision: Float[Tensor, "query"]
    undecided: Bool[Tensor, "query"]
    image_of_query: Int[Tensor, "query"]

    def hits(self, k: int = 1) -> Bool[Tensor, "query"]:
        """True where any positive is in the top k: `recall_at[k]` is its mean."""
        return _decided(self.ranks, self.undecided, self.candidates) <= k

    def as_dict(self) -> dict[str, object]:
        """The numbers without the tensors, ready for JSON."""
        numbers = {name: x for name, x in vars(self).items() if not isinstance(x, Tensor)}
        recall_at = {str(k): recall for k, recall in self.recall_at.items()}
        counts = {"queries": len(self.ranks), "undecided_queries": int(self.undecided.sum())}
        return numbers | {"recall_at": recall_at} | counts


@dataclass(frozen=True, eq=False)
class RetrievalMetrics:
    """Both directions, and the number of images left out of image→text for want of a caption."""

    text_to_image: DirectionMetrics
    image_to_text: DirectionMetrics
    images_without_captions: int

    def as_dict(self) -> dict[str, object]:
        """The numbers without the tensors, ready for JSON."""
        both = {k: x.as_dict() for k, x in vars(self).items() if isinstance(x, DirectionMetrics)}
        return both | {"images_without_captions": self.images_without_captions}


def retrieval_metrics(
    image_features: Float[Tensor, "image embed"],
    text_features: Float[Tensor, "text _embed"],
    image_of_text: Int[Tensor, "_text"],
    recall_at: Sequence[int] = (1, 5, 10),
    tile_size: int = TILE_SIZE,
) -> RetrievalMetrics:
    """Text→image and image→text retrieval among all images and all texts.

    Args:
        image_features: Need not be normalised.
        text_features: As wide as the images'.
        image_of_text: The image, a row of `image_features`, that each text describes. An image
            without a text stays a candidate, but is left out of image→text and counted.
        recall_at: The k to report.
        tile_size: Most scores to hold at once.

    Raises:
        ValueError: Empty, NaN or all-zero features, widths or lengths that differ, an index out of
            range, or k below 1.
    """
    _check(text_features, image_features, image_of_text, "text", "image")
    own = image_of_text.to(image_features.device).long()
    found = count_rivals(text_features, image_features, own, TIE_TOLERANCE, tile_size)
    own = own.cpu()
    texts, images = len(text_features), len(image_features)
    asked, query = own.unique(return_inverse=True)
    text, one = torch.arange(texts), torch.ones(texts)
    of_text = combine_counts(found.higher, found.tied, 0 * one, one, text, texts, images)
    beside = _own_rivals(found.score, own)
    back = found.higher_back, found.tied_back, *beside
    of_image = combine_counts(*back, query, len(asked), texts)

    def direction(found: Tensor, candidates: int, image: Tensor) -> DirectionMetrics:
        rank, precision, undecided = found[0], found[1], found[2] > 0
        decided = _decided(rank, undecided, candidates)
        recall = {k: recall_at_k(decided, k) for k in recall_at}
        means = mean_average_precision(precision), mean_reciprocal_rank(rank), median_rank(rank)
        return DirectionMetrics(recall, *means, candidates, rank, precision, undecided, image)

    return RetrievalMetrics(
        text_to_image=direction(of_text, images, own),
        image_to_text=direction(of_image, texts, asked),
        images_without_captions=images - len(asked),
    )


def _own_rivals(score: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """For each text, how many texts of its image score higher, and tie with it."""
    # One sorted line in which an image's cosines, -1 to 1, lie 4 away from the next image's.
    place = image.double() * 4
    key = place + score.double()
    line = key.sort().values
    end = torch.searchsorted(line, place + 2)
    higher = end - torch.searchsorted(line, key + TIE_TOLERANCE, right=True)
    tied = end - torch.searchsorted(line, key - TIE_TOLERANCE) - higher
    return higher.double(), tied.double()


def class_ranks(
    image_features: Float[Tensor, "image embed"],
    class_features: Float[Tensor, "class _embed"],
    target: Int[Tensor, "_image"],
) -> Float[Tensor, "image"]:
    """Rank of each image's own class among all: `recall_at_k` of these is the top-k accuracy.

    Ties share their mean rank, and where all classes tie, the own one is last: a collapsed model
    gets nothing. Errors as in `retrieval_metrics`, with `target`, a row of `class_features` for
    each image, as the index.
    """
    _check(image_features, class_features, target, "image", "class")
    own = target.to(image_features.device).long()
    sides = image_features, class_features
    found = count_rivals(*sides, own, TIE_TOLERANCE, TILE_SIZE, both=False)
    rank, classes = 1 + found.higher + (found.tied - 1) / 2, len(class_features)
    return _decided(rank, found.tied == classes, classes)


def top1_accuracy(
    image_features: Float[Tensor, "image embed"],
    class_features: Float[Tensor, "class _embed"],
    target: Int[Tensor, "_image"],
) -> Bool[Tensor, "image"]:
    """True for each image nearer to its own class than to any other: the accuracy is the mean.

    A tie is not nearer. Arguments and errors as in `class_ranks`.
    """
    return class_ranks(image_features, class_features, target) <= 1


def _decided(ranks: Tensor, undecided: Tensor, candidates: int) -> Tensor:
    """Ranks, but last where all candidates tie: a mean rank within k would beat chance there."""
    return torch.where(undecided, float(candidates), ranks)


def _check(queries: Tensor, candidates: Tensor, index: Tensor, query: str, candidate: str) -> None:
    """That both sides and the index of queries into candidates are sound."""
    for name, features in ((query, queries), (candidate, candidates)):
        if features.numel() == 0:
            raise ValueError(f"{name}_features must not be empty, but is {tuple(features.shape)}.")
        peak = torch.cat([x.abs().amax(dim=1) for x in features.detach().split(4096)])
        bad = ~peak.isfinite() | (peak == 0)
        if bad.any():
            raise ValueError(
                f"every row of {name}_features must be finite and not all zeros, but "
                f"{int(bad.sum())} of {len(features)} are NaN, infinite or zeros, first row "
                f"{int(bad.int().argmax())}: encode those again, or leave them out and count them."
            )
    if queries.shape[1] != candidates.shape[1]:
        raise ValueError(
            f"{query}_features and {candidate}_features must be equally wide, but are "
            f"{queries.shape[1]} and {candidates.shape[1]}: encode both with the same model."
        )
    low, high = (int(index.min()), int(index.max())) if len(index) else (0, 0)
    if len(index) != len(queries) or low < 0 or high >= len(candidates):
        raise ValueError(
            f"each {query} needs the index of its {candidate}, so {len(queries)} of them from 0 to "
            f"{len(candidates) - 1}, but there are {len(index)} from {low} to {high}: "
            "count rows of the features passed, from 0."
        )
