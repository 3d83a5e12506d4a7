"""Hubs: candidates that come up for nearly every query, whatever it asks for."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dclip_kit.metrics.ranking import TIE_TOLERANCE


def k_occurrence(
    query_features: Float[Tensor, "query embed"],
    candidate_features: Float[Tensor, "candidate embed"],
    k: int = 10,
    tile_size: int = 2**22,
) -> Float[Tensor, "candidate"]:
    """How many queries have each candidate among their top k by cosine (Radovanović et al., 2010).

    Candidates that tie for the last places share them, so that no order of storage makes a hub and
    the sum is always k times the number of queries.

    Args:
        query_features: What searches; any length of vector.
        candidate_features: What is found.
        k: Places looked at.
        tile_size: Most scores to hold at once.

    Raises:
        ValueError: k is not within 1..candidates, or there is no query.
    """
    if not 1 <= k <= len(candidate_features) or len(query_features) == 0:
        raise ValueError(
            f"Expected a k in 1..{len(candidate_features)} (the candidates) and at least one "
            f"query, got {k} and {len(query_features)}; ask for fewer places."
        )
    candidates = F.normalize(candidate_features.float(), dim=-1)
    counts = torch.zeros(len(candidates), dtype=torch.double)
    for some in query_features.split(max(1, tile_size // len(candidates))):
        scores = F.normalize(some.float(), dim=-1) @ candidates.T  # query candidate
        last = scores.topk(k).values[:, -1:]
        higher = scores > last + TIE_TOLERANCE
        tied = (scores >= last - TIE_TOLERANCE) & ~higher
        left = (k - higher.sum(1, keepdim=True)) / tied.sum(1, keepdim=True)
        counts += (higher + tied * left).double().sum(0).cpu()
    return counts


def skewness(values: Float[Tensor, "item"]) -> float:
    """The third standardised moment: 0 for a symmetric spread, above 0 for a long tail upwards.

    Of k-occurrences it is the usual measure of hubness.

    Raises:
        ValueError: there are no two different finite values to compare.
    """
    centred = values.double() - values.double().mean()
    variance = centred.square().mean() if len(values) else torch.tensor(0.0)
    if not variance.isfinite() or variance == 0:
        raise ValueError(
            f"Expected finite values that differ, got {len(values)} without spread; give more "
            "candidates or queries."
        )
    return float(centred.pow(3).mean() / variance.pow(1.5))
