"""The exact nearest vectors by dot product: what every search of the kit finds its hits with.

Axes: query and candidate are what searches and what is found, k the places, embed their space.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from dclip_kit.metrics.ranking import TILE_SIZE

_QUERIES = 1024  # at once: the fewer times candidates are read, the faster is the product
_BLOCK = 32  # candidates whose maximum is looked at first
_LAST = 2**32 - 1  # a place counts down from it, so that of equal scores the earlier key is larger


@dataclass(frozen=True, eq=False)
class Nearest:
    """What is found, the best first; of equal scores the candidate with the lower index.

    Attributes:
        indices: of the candidates.
        scores: their dot products with the query, in float32.
    """

    indices: Int[Tensor, "query k"]
    scores: Float[Tensor, "query k"]


@torch.no_grad()
def find_nearest(
    queries: Float[Tensor, "query _embed"],
    candidates: Sequence[Float[Tensor, "_candidate _width"]],
    top_k: int,
    left_out: Bool[Tensor, "candidate"] | None = None,
    tile_size: int = TILE_SIZE,
) -> Nearest:
    """Finds the candidates with the largest dot products, exactly and in bounded memory.

    Equal scores are equal numbers: two products of the same vectors may differ in the last bit.

    Args:
        queries: of length 1, if scores shall be cosines.
        candidates: of length 1 likewise, in one tensor or several that are counted through; read
            once, from front to back.
        top_k: how many a query; fewer where there are not so many.
        left_out: True for candidates that must not be found.
        tile_size: most scores to hold at once; bounds the memory, not the result.

    Raises:
        ValueError: there is no candidate, top_k is below 1, widths differ, or a score is NaN.
    """
    counts = [len(each) for each in candidates]
    left = sum(counts) - (0 if left_out is None else int(left_out.sum()))
    if top_k < 1 or left < 1:
        raise ValueError(
            f"Expected top_k from 1 and something to find, got {top_k} and {left}; add vectors."
        )
    widths = {each.shape[1] for each in candidates}
    if widths != {queries.shape[1]}:
        raise ValueError(
            f"Expected queries as wide as what is searched, {sorted(widths)}, got "
            f"{queries.shape[1]}; encode both with one model."
        )
    top_k = min(top_k, left)
    if not len(queries):
        nothing = torch.empty(0, top_k, device=queries.device)
        return Nearest(nothing.long(), nothing)
    batches = queries.float().split(_QUERIES)
    columns = max(1, tile_size // min(_QUERIES, len(queries)))
    columns = max(columns % _BLOCK, columns - columns % _BLOCK)  # whole blocks, or not even one
    columns = min(columns, max(counts))
    best = [torch.empty(len(each), 0, dtype=torch.int64, device=each.device) for each in batches]
    room = batches[0].new_empty(len(batches[0]) * columns)  # new memory each time takes longer
    start = 0
    for tile in (tile for each in candidates for tile in each.split(columns)):
        out = None if left_out is None else left_out[start : start + len(tile)]
        for number, batch in enumerate(batches):
            shape = len(batch), len(tile)  # query candidate
            scores = room[: shape[0] * shape[1]].view(shape)
            torch.mm(batch, tile.float().T, out=scores)
            if out is not None and out.any():
                scores.masked_fill_(out.to(scores.device), -torch.inf)
            known = best[number]
            found = _best_keys(scores, start, top_k, known)
            best[number] = found.topk(min(top_k, found.shape[1])).values
        start += len(tile)
    keys = torch.cat(best)
    return Nearest(_LAST - (keys & _LAST), _to_scores(keys))


def _best_keys(
    scores: Tensor, start: int, top_k: int, known: Int[Tensor, "query _known"]
) -> Int[Tensor, "query some"]:
    """Keys among which are the top k of the scores and of what is known already.

    A block whose maximum does not beat the worst known hit holds nothing new, and a block that is
    not among the top k by its maximum holds none of the top k scores. So only the others are looked
    into, and the rest costs one pass for the maxima.
    """
    if scores.shape[1] <= top_k * _BLOCK and known.shape[1] < top_k:
        _refuse_nan(scores)
        places = torch.arange(start, start + scores.shape[1], device=scores.device)
        return torch.cat([known, _to_keys(scores, places)], dim=1)
    short = -scores.shape[1] % _BLOCK
    blocks = F.pad(scores, (0, short), value=-torch.inf) if short else scores
    blocks = blocks.unflatten(1, (-1, _BLOCK))  # query block column
    largest = blocks.amax(2)  # NaN where one is in the block
    _refuse_nan(largest)
    if known.shape[1] == top_k:  # by a higher score only: of equal ones, the earlier stays
        worst = _to_scores(known[:, -1:])
        query, block = (largest > worst).nonzero(as_tuple=True)
        inside = blocks[query, block]  # found column
        row, column = (inside > worst[query]).nonzero(as_tuple=True)
        places = start + block[row] * _BLOCK + column
        return _append(known, query[row], _to_keys(inside[row, column], places))
    each, columns = (torch.arange(size, device=scores.device) for size in blocks.shape[1:])
    keys = _to_keys(largest, each).topk(top_k, sorted=False).values
    chosen = (_LAST - (keys & _LAST))[:, :, None]  # query k 1
    inside = blocks.gather(1, chosen.expand(-1, -1, _BLOCK))  # query k column
    keys = _to_keys(inside, start + chosen * _BLOCK + columns).flatten(1)
    return torch.cat([known, keys], dim=1)


def _append(
    known: Int[Tensor, "query known"], query: Int[Tensor, "found"], keys: Int[Tensor, "found"]
) -> Int[Tensor, "query some"]:
    """Puts each key behind what is known of its query; queries come in order."""
    count = query.bincount(minlength=len(known))
    place = torch.arange(len(query), device=query.device) - (count.cumsum(0) - count)[query]
    below = torch.iinfo(known.dtype).min  # every key
    behind = known.new_full((len(known), int(count.max())), below)
    behind[query, place] = keys
    return torch.cat([known, behind], dim=1)


def _to_keys(scores: Tensor, places: Tensor) -> Tensor:
    """Whole numbers in the order of scores, then of places: no two are equal, so none is tied."""
    bits = (scores + 0.0).view(torch.int32)  # −0 becomes 0
    return (_flip(bits).long() << 32) | (_LAST - places)


def _to_scores(keys: Tensor) -> Tensor:
    return _flip((keys >> 32).int()).view(torch.float32)


def _flip(bits: Tensor) -> Tensor:
    """Float32 as int32 in the same order, and back: negative floats count downwards otherwise."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _refuse_nan(scores: Tensor) -> None:
    if scores.isnan().any():
        raise ValueError(
            "Expected scores that are numbers, got NaN; check the vectors for NaN and infinity."
        )
