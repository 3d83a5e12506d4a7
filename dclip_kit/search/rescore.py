"""Rescoring: similarities made fairer to candidates that are near everything; needs no training."""

import torch
from jaxtyping import Float
from torch import Tensor


def rescore(
    similarity: Float[Tensor, "query candidate"],
    reference: Float[Tensor, "reference_query _candidate"],
    method: str = "nnn",
    k: int = 128,
    alpha: float = 0.75,
) -> Float[Tensor, "query candidate"]:
    """Takes from each candidate's score what it gets from reference queries anyway.

    Nearest-neighbour normalisation (NNN, arXiv 2410.24114): `score(q, c) − alpha · mean of the k
    highest score(q', c) over reference queries q'`. It is one number a candidate, so nothing has to
    be known of the other queries that are asked.

    Args:
        similarity: cosines of queries and candidates.
        reference: cosines of reference queries and the same candidates. They come from training
            data: captions to rescore text→image, pictures for image→text.
        method: "nnn".
        k: how many of a candidate's reference scores are averaged; all, where there are fewer.
        alpha: share of their mean that is taken away; 0 changes nothing.

    Raises:
        ValueError: the method is unknown, there is no reference query, they are of other
            candidates, or k is below 1.
    """
    if method != "nnn":
        raise ValueError(f"Expected a method out of nnn, got {method!r}; name one.")
    if len(reference) == 0 or reference.shape[1] != similarity.shape[1] or k < 1:
        raise ValueError(
            f"Expected reference scores of the {similarity.shape[1]} candidates and a k from 1, "
            f"got {tuple(reference.shape)} and {k}; score the same candidates by training data."
        )
    return similarity - nnn_bias(reference, k, alpha)


def nnn_bias(
    reference: Float[Tensor, "reference_query candidate"], k: int = 128, alpha: float = 0.75
) -> Float[Tensor, "candidate"]:
    """What nearest-neighbour normalisation takes from each candidate's scores; see `rescore`."""
    return alpha * reference.topk(min(k, len(reference)), dim=0).values.mean(dim=0)


def add_bias(
    queries: Float[Tensor, "query embed"],
    candidates: Float[Tensor, "candidate embed"],
    bias: Float[Tensor, "candidate"],
) -> tuple[Float[Tensor, "query wider"], Float[Tensor, "candidate wider"]]:
    """Vectors whose cosines rank candidates by `query · candidate − bias`.

    So a bias needs no more than an index that ranks by cosine. One dimension holds it, and another
    makes all candidates equally long.

    Args:
        queries, candidates: of length 1.
        bias: to take from each candidate's scores.

    Returns:
        Queries and candidates, two dimensions wider.
    """
    rest = (bias.square().max() - bias.square()).sqrt()
    wider = torch.cat([candidates, -bias[:, None], rest[:, None]], dim=1)
    ones = torch.ones_like(queries[:, :1])
    return torch.cat([queries, ones, torch.zeros_like(ones)], dim=1), wider
