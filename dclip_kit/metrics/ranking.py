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
    if scores.shape != positives.shape or not positives.any(dim=1).all():
        raise ValueError(
            f"Expected positives of {tuple(scores.shape)}, one or more a query, got "
            f"{tuple(positives.shape)}, {int((~positives.any(dim=1)).sum())} of {len(positives)} "
            "queries without; leave those queries out and report how many."
        )
    if scores.isnan().any():
        raise ValueError("Expected scores, got NaN; check the features they were computed from.")
    query, candidate = positives.nonzero(as_tuple=True)  # pair
    row, own, right = scores[query], scores[query, candidate][:, None], positives[query]
    higher = row > own + tolerance  # pair candidate
    tied = (row >= own - tolerance) & ~higher  # the positive itself is among them
    counts = [each.sum(dim=1) for each in (higher, tied, higher & right, tied & right)]
    return rank_queries(torch.stack(counts).double().cpu(), query.cpu(), *scores.shape)[0]


def rank_queries(
    counts: Float[Tensor, "4 pair"], query: Int[Tensor, "pair"], queries: int, candidates: int
) -> tuple[Float[Tensor, "query"], Float[Tensor, "query"], Bool[Tensor, "query"]]:
    """Ranks queries from what competes with each of their positives.

    The precision at a positive is its rank among the positives over its rank among all candidates,
    both mean ranks when tied (our reading). With a single positive it is 1 / rank.

    Args:
        counts: For each positive, how many candidates score higher, how many tie with it (itself
            among them), and how many of these and of those are positives of the same query. In
            double precision.
        query: Whose positive it is; every query has one.
        queries: How many there are.
        candidates: How many there are.

    Returns:
        The rank of each query's best positive, its average precision, and whether all candidates
        tie although not all are positives.
    """
    higher, tied, right_higher, right_tied = counts
    rank = 1 + higher + (tied - 1) / 2
    precision = (1 + right_higher + (right_tied - 1) / 2) / rank
    first_place = torch.where(tied == right_tied, 1 + higher, rank)
    undecided = ((tied == candidates) & (tied > right_tied)).double()
    zero = torch.zeros(queries, dtype=torch.double)
    best = zero.scatter_reduce(0, query, first_place, "amin", include_self=False)
    mean_precision = zero.index_add(0, query, precision) / query.bincount(minlength=queries)
    return best, mean_precision, zero.index_add(0, query, undecided) > 0


def recall_at_k(ranks: Float[Tensor, "query"], k: int) -> float:
    """Share of queries whose best positive ranks k or better, as CLIP papers mean it."""
    if k < 1:
        raise ValueError(f"Expected a k from 1, got {k}; count places from 1.")
    return float((ranks <= k).double().mean())


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
            f"Expected k from 1 and positives in 1..{candidates} (the candidates), got {k} and "
            f"{positives}; count only queries with a positive."
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
            "Expected k from 1 and captions that each match one image or more (their own), got "
            f"{k} and {len(matches)} captions, {int((matches < 1).sum())} of which match nothing; "
            "leave those out."
        )
    return float((k / matches.double()).clamp(max=1).mean())
