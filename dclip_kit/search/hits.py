"""Searching pictures by a vector: exact, by cosine."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dclip_kit.metrics import ranks
from dclip_kit.search.nearest import find_nearest


@dataclass(frozen=True)
class Found:
    """What a search finds, the best first.

    Attributes:
        images: indices of the pictures.
        scores: their cosines with the query.
    """

    images: tuple[int, ...]
    scores: tuple[float, ...]


def search_images(
    query: Float[Tensor, "embed"],
    image_features: Float[Tensor, "image _embed"],
    top_k: int = 5,
    leave_out: Sequence[int] = (),
) -> Found:
    """Finds the pictures whose vectors are nearest to a query's.

    Args:
        query: a caption's vector, or a picture's from the same model.
        image_features: of all pictures.
        top_k: how many to find; fewer where there are not so many.
        leave_out: indices of pictures not to find, such as the query itself.

    Raises:
        ValueError: widths differ, the query is not finite or all zeros, top_k is below 1, or no
            picture is left.
    """
    if image_features.shape[1] != len(query) or not query.isfinite().all() or not query.any():
        raise ValueError(
            f"Expected a finite query of {image_features.shape[1]} numbers, not all zeros, got "
            f"{len(query)}; encode it with the pictures' own model."
        )
    left_out = torch.zeros(len(image_features), dtype=torch.bool)
    left_out[list(leave_out)] = True
    images, asked = F.normalize(image_features, dim=-1), F.normalize(query, dim=-1)
    best = find_nearest(asked[None], [images], top_k, left_out)
    return Found(tuple(best.indices[0].tolist()), tuple(best.scores[0].tolist()))


def rank_answer(
    query: Float[Tensor, "embed"],
    image_features: Float[Tensor, "image _embed"],
    answers: Sequence[int],
) -> float:
    """The rank of the best of several right pictures, from 1; ties count as their mean rank.

    Raises:
        ValueError: no answer is given.
    """
    if not answers:
        raise ValueError("Expected at least one right picture, got none; leave the rank out then.")
    scores = F.normalize(query, dim=-1) @ F.normalize(image_features, dim=-1).T
    positives = torch.zeros(1, len(image_features), dtype=torch.bool)
    positives[0, list(answers)] = True
    return float(ranks(scores[None].cpu(), positives)[0])


def top_k_overlap(
    one: Float[Tensor, "query embed"],
    other: Float[Tensor, "query embed"],
    image_features: Float[Tensor, "image embed"],
    k: int = 10,
) -> Float[Tensor, "query"]:
    """The share of k pictures that two wordings of each query both find: 1 if they find the same.

    Raises:
        ValueError: k is not within 1..pictures.
    """
    if not 1 <= k <= len(image_features):
        raise ValueError(f"Expected a k in 1..{len(image_features)} (the pictures), got {k}.")
    images = F.normalize(image_features, dim=-1)
    first, second = (
        find_nearest(F.normalize(each, dim=-1), [images], k).indices for each in (one, other)
    )
    return (first[:, :, None] == second[:, None, :]).any(2).float().mean(1)


def shared_things(
    found: Sequence[int], things: Sequence[frozenset[str]], query: int
) -> list[frozenset[str]]:
    """What each found picture shows of the things in the query picture."""
    return [things[image] & things[query] for image in found]


def related_share(
    image_features: Float[Tensor, "image embed"], things: Sequence[frozenset[str]], k: int = 5
) -> Float[Tensor, "image"]:
    """Each picture as a query: the share of its k nearest others that show one of its things.

    Raises:
        ValueError: not one set of things a picture, or k is not within 1..other pictures.
    """
    if len(things) != len(image_features) or not 1 <= k < len(things):
        raise ValueError(
            f"Expected the things in each of {len(image_features)} pictures and a k below that, "
            f"got {len(things)} and {k}."
        )
    images = F.normalize(image_features, dim=-1)
    nearest = find_nearest(images, [images], k + 1).indices.tolist()  # itself, mostly, among them
    others = [[i for i in found if i != query][:k] for query, found in enumerate(nearest)]
    return torch.tensor(
        [
            sum(bool(shared) for shared in shared_things(found, things, query)) / k
            for query, found in enumerate(others)
        ]
    )
