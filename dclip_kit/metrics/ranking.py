"""Ranks within a matrix of scores, what is counted from them, and what bounds them.

A positive's rank is 1 + the number of candidates that score higher, and ties count as the mean rank
of the tied group, so that a collapsed model, which gives every pair the same score, gets at most
chance. Recalls and precisions are fractions in [0, 1].
Axes with a leading underscore are checked by hand, so that the error can say what to do.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

TIE_TOLERANCE = 1e-6  # above the rounding of a float32 cosine, below any difference that means much
TILE_SIZE = 2**22  # scores held at once: 16 MB in float32; bounds the memory, not the result


def ranks(
    scores: Float[Tensor, "query candidate"],
    positives: Bool[Tensor, "_query _candidate"],
    tolerance: float = TIE_TOLERANCE,
) -> Float[Tensor, "query"]:
    """Rank of each query's best positive: 1 is the top, a tied group shares its mean rank.

    A tie among positives alone costs nothing: whichever of them comes first, a positive does.

    Args:
        scores: Higher is better; any sign, any scale.
        positives: True where the candidate answers the query; at least one a query.
        tolerance: Largest difference, in units of `scores`, that still counts as a tie.

    Raises:
        ValueError: Shapes differ, a score is NaN, or a query has no positive.
    """
    return rank_positives(scores, positives, tolerance)[0]


def average_precision(
    scores: Float[Tensor, "query candidate"],
    positives: Bool[Tensor, "_query _candidate"],
    tolerance: float = TIE_TOLERANCE,
) -> Float[Tensor, "query"]:
    """Mean over each query's positives of the precision at their rank; arguments as in `ranks`.

    That precision is the rank among the positives over the rank among all candidates, both mean
    ranks when tied (our reading). With a single positive it is 1 / rank.
    """
    return rank_positives(scores, positives, tolerance)[1]


def recall_at_k(ranks: Float[Tensor, "query"], k: int) -> float:
    """Share of queries whose best positive ranks k or better, as CLIP papers mean it."""
    if k < 1:
        raise ValueError(f"k must be a whole number from 1, not {k}.")
    return float((ranks <= k).double().mean())


def mean_reciprocal_rank(ranks: Float[Tensor, "query"]) -> float:
    """Mean of 1 / rank of each query's best positive."""
    return float((1 / ranks.double()).mean())


def median_rank(ranks: Float[Tensor, "query"]) -> float:
    """Median rank of the best positives; the mean of the middle two for an even number."""
    return float(ranks.double().quantile(0.5))


def mean_average_precision(average_precision: Float[Tensor, "query"]) -> float:
    """Mean over queries of their average precision."""
    return float(average_precision.double().mean())


def rank_positives(
    scores: Tensor, positives: Tensor, tolerance: float, tile: int = TILE_SIZE
) -> Tensor:
    """Best rank, average precision and undecided (0 or 1), as a double tensor [3, query]."""
    if scores.shape != positives.shape:
        raise ValueError(
            f"positives must have the shape of scores, {tuple(scores.shape)}, but has "
            f"{tuple(positives.shape)}: give one True or False for each score."
        )
    if scores.isnan().any():
        raise ValueError("scores must not be NaN: check the features they were computed from.")
    if (lacking := int((~positives.any(dim=1)).sum())) > 0:
        raise ValueError(
            f"every query needs a positive, but {lacking} of {len(scores)} have none: "
            "leave those queries out and report how many."
        )
    query, candidate = positives.nonzero(as_tuple=True)  # pair
    pairs_at_once = max(1, tile // scores.shape[1])
    counts = []
    for q, c in zip(query.split(pairs_at_once), candidate.split(pairs_at_once), strict=True):
        row, own = scores[q], scores[q, c][:, None]  # pair candidate, pair 1
        higher = row > own + tolerance
        tied = (row >= own - tolerance) & ~higher  # the positive itself is among them
        right = positives[q]
        four = higher.sum(1), tied.sum(1), (higher & right).sum(1), (tied & right).sum(1)
        counts.append(torch.stack(four).cpu())
    higher, tied, right_higher, right_tied = torch.cat(counts, dim=1).double()  # each: pair

    rival_counts = higher, tied, right_higher, right_tied
    return combine_counts(*rival_counts, query.cpu(), len(scores), scores.shape[1])


def combine_counts(
    higher: Float[Tensor, "pair"],
    tied: Float[Tensor, "pair"],
    right_higher: Float[Tensor, "pair"],
    right_tied: Float[Tensor, "pair"],
    query: Int[Tensor, "pair"],
    queries: int,
    candidates: int,
) -> Float[Tensor, "3 query"]:
    """From what competes with each positive: best rank, average precision, undecided (0 or 1).

    Args:
        higher: candidates that score higher than the positive; doubles on the CPU, as are all.
        tied: candidates that tie with it, itself among them.
        right_higher, right_tied: how many of these are positives of the same query.
        query: whose positive it is.
        queries, candidates: how many there are.
    """
    rank = 1 + higher + (tied - 1) / 2
    precision = (1 + right_higher + (right_tied - 1) / 2) / rank
    first_place = torch.where(tied == right_tied, 1 + higher, rank)
    undecided = ((tied == candidates) & (tied > right_tied)).double()
    zero = torch.zeros(queries, dtype=torch.double)
    best = zero.scatter_reduce(0, query, first_place, "amin", include_self=False)
    mean_precision = zero.index_add(0, query, precision) / query.bincount(minlength=queries)
    return torch.stack([best, mean_precision, zero.index_add(0, query, undecided) > 0])


def chance_recall(candidates: int, positives: Int[Tensor, "query"] | int, k: int = 1) -> float:
    """Recall@k that random scores reach on average: 1 - C(n - p, k) / C(n, k).

    Args:
        candidates: Number of candidates n.
        positives: Number of positives p among them, for each query or for all.
        k: Candidates looked at.

    Raises:
        ValueError: A number of positives outside 1..candidates, or k below 1.
    """
    p = torch.as_tensor(positives).reshape(-1, 1).double()  # query 1
    if k < 1 or p.numel() == 0 or p.min() < 1 or p.max() > candidates:
        raise ValueError(
            f"k must be at least 1 and positives in 1..{candidates} (the candidates), "
            f"but they are {k} and {positives}."
        )
    draw = torch.arange(min(k, candidates), dtype=torch.double)  # once none are left: a factor 0
    miss = ((candidates - p - draw) / (candidates - draw)).prod(dim=1)
    return float(1 - miss.mean())


def recall_ceiling(matches: Int[Tensor, "text"], k: int = 1) -> float:
    """Text→image Recall@k of a perfect model when a caption may fit several images.

    Only one of those is its positive and nothing tells which: the mean of min(1, k / matches).

    Args:
        matches: For each caption, how many candidate images it is true of, its own included.
        k: Candidates looked at.

    Raises:
        ValueError: No captions, a caption that matches no image, or k below 1.
    """
    if k < 1 or len(matches) == 0 or matches.min() < 1:
        raise ValueError(
            "k must be at least 1 and matches at least 1 for every caption (its own image), but k "
            f"is {k} and {int((matches < 1).sum())} of {len(matches)} captions match nothing."
        )
    return float((k / matches.double()).clamp(max=1).mean())
