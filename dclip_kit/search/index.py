"""Exact search by cosine.

Axes: query for what is searched with, candidate for what is searched, k for the ranks, embed for
the features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dclip_kit.metrics import Array

_SCORES = 2**24  # in a block: 64 MB in float32


@dataclass(frozen=True)
class Hits:
    """The results of one query, the best first; of equal scores, the earlier candidate first.

    Attributes:
        images: indices of the candidates, from 0.
        scores: their cosines with the query, or rescored ones.
        ids: their paths, if embeddings in files were searched.
    """

    images: tuple[int, ...]
    scores: tuple[float, ...]
    ids: tuple[str, ...] = ()


def search_images(
    query: Float[Array, "*_one embed"],
    image_features: Float[Array, "image _embed"],
    top_k: int = 5,
    leave_out: Sequence[int] = (),
) -> Hits:
    """Finds the pictures whose vectors are nearest to that of a query.

    Args:
        query: a caption's vector, or a picture's from the same model.
        image_features: of all pictures.
        top_k: how many to find; all, if there are fewer.
        leave_out: indices of pictures to skip, such as the query itself.

    Raises:
        ValueError: widths differ, a vector is not finite or all zeros, top_k is below 1, or no
            picture is left.
    """
    query = torch.as_tensor(query)
    images = unit_vectors(image_features, query.numel())
    wanted = top_k + len(leave_out) if top_k > 0 else top_k  # the latter is refused
    scores, indices = find_nearest(unit_vectors(query.reshape(1, -1)), images, wanted)
    pairs = zip(indices[0].tolist(), scores[0].tolist(), strict=True)
    hits = [pair for pair in pairs if pair[0] not in leave_out][:top_k]
    if not hits:
        raise ValueError(
            f"Expected something to find, got 0 pictures beside the {len(leave_out)} left out; "
            "leave out fewer."
        )
    return Hits(*zip(*hits, strict=True))


def related_share(
    image_features: Float[Array, "image embed"], things: Sequence[frozenset[str]], k: int = 5
) -> Float[Tensor, "image"]:
    """For each picture, the share of its k nearest other pictures that show one of its things.

    Raises:
        ValueError: there is not one set of things for each picture, or k is below 1 or above the
            number of other pictures.
    """
    if len(things) != len(image_features) or not 1 <= k < len(things):
        raise ValueError(
            f"Expected the things in each of {len(image_features)} pictures and a k below that, "
            f"got {len(things)} and {k}; list each picture's things."
        )
    vectors = unit_vectors(image_features)
    nearest_images = find_nearest(vectors, vectors, k + 1)[1].tolist()  # mostly including itself
    neighbours = [
        [i for i in nearest if i != query][:k] for query, nearest in enumerate(nearest_images)
    ]
    related = [
        sum(bool(things[image] & things[query]) for image in nearest)
        for query, nearest in enumerate(neighbours)
    ]
    return torch.tensor(related) / k


def unit_vectors(
    vectors: Float[Array, "*_row _embed"], width: int | None = None
) -> Float[Tensor, "row _embed"]:
    """Scales vectors, or a single one, to length 1, in float32 on the CPU.

    Those that have it are returned as they are, without a copy.

    Raises:
        ValueError: they are of another width than `width`, or one is not finite or all zeros.
    """
    rows = torch.atleast_2d(torch.as_tensor(vectors)).detach().cpu().float()
    bad_count = int((~(rows.isfinite().all(-1) & rows.any(-1))).sum())
    if rows.ndim != 2 or width not in (None, rows.shape[1]) or bad_count:
        raise ValueError(
            f"Expected finite vectors of {width or rows.shape[-1]} numbers, not all zeros, got "
            f"{' of '.join(map(str, rows.shape))}, {bad_count} of them not finite, or all "
            "zeros; encode queries and candidates with one model."
        )
    is_unit = bool(((rows.norm(dim=1) - 1).abs() < 1e-6).all())
    return rows if is_unit else F.normalize(rows, dim=1)


@torch.no_grad()
def find_nearest(
    queries: Float[Tensor, "query embed"],
    candidates: Float[Tensor, "candidate embed"],
    top_k: int,
) -> tuple[Float[Tensor, "query k"], Int[Tensor, "query k"]]:
    """Finds the candidates with the largest dot products, exactly, in blocks of queries.

    Args:
        queries: in float32; of length 1, if scores are to be cosines.
        candidates: likewise.
        top_k: how many for each query; all, if there are fewer.

    Returns:
        Scores and indices as from `torch.topk`, but of equal scores the earlier candidate first.

    Raises:
        ValueError: there is no candidate, or top_k is below 1.
    """
    top_k = min(top_k, len(candidates))
    if top_k < 1:
        raise ValueError(f"Expected top_k from 1 and something to find, got {top_k}; add vectors.")
    batches = queries.split(max(1, _SCORES // len(candidates)))
    results = [stable_topk(batch @ candidates.T, top_k) for batch in batches]
    return torch.cat([best for best, _ in results]), torch.cat([rows for _, rows in results])


def stable_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`torch.topk`, but of equal scores it takes the earlier ones."""
    best, indices = scores.topk(min(k + 1, scores.shape[1]))
    tied = (best[:, 1:] == best[:, :-1]).any(1)
    if tied.any():
        exact, order = scores[tied].sort(dim=1, descending=True, stable=True)
        best[tied], indices[tied] = exact[:, : k + 1], order[:, : k + 1]
    return best[:, :k], indices[:, :k]
