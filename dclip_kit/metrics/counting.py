"""How many candidates beat each answer, both ways from one product of features.

Counting needs no sorting, and one product of texts and images serves both directions: the scores
of a tile are compared along its rows for text→image and along its columns for image→text.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

SIDES = 1024, 512  # of a tile, at most: its scores and flags, 4 MB in float32, fit two caches
KEPT = 1 << 24  # numbers, 64 MB: so many are brought to unit length once, not tile by tile


@dataclass(frozen=True, eq=False)
class Rivals:
    """What each query's answer competes with. On the CPU, in double precision.

    Attributes:
        score: the cosine of query and answer.
        higher: candidates that score higher with the query.
        tied: candidates within the tolerance, the answer itself among them.
        higher_back: queries that score higher with the answer; 0 if not asked for.
        tied_back: queries within the tolerance, this one among them; 0 if not asked for.
    """

    score: Float[Tensor, "query"]
    higher: Float[Tensor, "query"]
    tied: Float[Tensor, "query"]
    higher_back: Float[Tensor, "query"]
    tied_back: Float[Tensor, "query"]


def count_rivals(
    queries: Float[Tensor, "query embed"],
    candidates: Float[Tensor, "candidate embed"],
    answer: Int[Tensor, "query"],
    tolerance: float,
    tile: int,
    both: bool = True,
) -> Rivals:
    """Counts each answer's rivals among the candidates and, the other way, among the queries.

    A pair's own score is computed apart from the tiles that it is compared in, and may differ there
    in the last bits: the tolerance, far above these, makes it tie with itself.

    Args:
        queries: need not be normalised.
        candidates: as wide.
        answer: the candidate that is right for each query.
        tolerance: largest difference of cosines that still counts as a tie.
        tile: most scores to hold at once.
        both: whether to count the other way too, where candidates search among the queries.
    """
    rows = max(1, min(SIDES[0], tile, len(queries)))
    columns = max(1, min(SIDES[1], tile // rows, len(candidates)))
    dtype = torch.promote_types(queries.dtype, candidates.dtype)
    exact = max(len(queries), len(candidates)) < 1 << 24  # whole numbers in float32
    dtype = torch.promote_types(dtype, torch.float32 if exact else torch.float64)
    unit_queries, unit_candidates = _UnitRows(queries, dtype), _UnitRows(candidates, dtype)
    tops = [slice(top, top + rows) for top in range(0, len(queries), rows)]
    score = torch.cat([(unit_queries[t] * unit_candidates[answer[t]]).sum(dim=1) for t in tops])
    above, least = score + tolerance, score - tolerance
    found = score.new_zeros(4, len(score))  # higher, at least; and back
    scores, flags = score.new_empty(2, rows * columns)
    ones = score.new_ones(max(rows, columns))
    layers = _layers(answer, len(candidates), columns, above, least) if both else {}
    for mine in tops:
        query = unit_queries[mine]
        bounds, counts = (above[mine, None], least[mine, None]), found[:2, mine].unbind()
        for left in range(0, len(candidates), columns):
            candidate = unit_candidates[left : left + columns]
            shape = len(query), len(candidate)
            part = torch.mm(query, candidate.T, out=scores[: shape[0] * shape[1]].view(shape))
            flag = flags[: part.numel()].view(shape)
            down, across = ones[: shape[0]], ones[: shape[1]]  # their product sums up quickest
            counts[0].addmv_(torch.gt(part, bounds[0], out=flag), across)
            counts[1].addmv_(torch.ge(part, bounds[1], out=flag), across)
            for layer in layers.get(left, ()):
                own = part
                if len(layer.column) < shape[1]:
                    own = part[:, layer.column]
                    flag = flags[: own.numel()].view(own.shape)
                layer.higher.addmv_(torch.gt(own, layer.above, out=flag).T, down)
                layer.at_least.addmv_(torch.ge(own, layer.least, out=flag).T, down)
    for layer in (layer for own in layers.values() for layer in own):
        found[2, layer.pair], found[3, layer.pair] = layer.higher, layer.at_least
    higher, least_as_high, higher_back, least_back = found.double().cpu()
    back = higher_back, least_back - higher_back
    return Rivals(score.double().cpu(), higher, least_as_high - higher, *back)


def _unit_rows(features: Tensor, dtype: torch.dtype) -> Tensor:
    """At unit length; squares neither overflow nor vanish."""
    x = features.detach().to(dtype)
    x = x / torch.maximum(x.amax(dim=1, keepdim=True), -x.amin(dim=1, keepdim=True))
    return x.div_(x.norm(dim=1, keepdim=True))  # in place: new memory takes longer than dividing


class _UnitRows:
    """Features at unit length: few all at once, of many those that are asked for."""

    def __init__(self, features: Tensor, dtype: torch.dtype) -> None:
        self.kept = features.numel() <= KEPT
        self.dtype = dtype
        self.features = _unit_rows(features, dtype) if self.kept else features

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        some = self.features[rows]
        return some if self.kept else _unit_rows(some, self.dtype)


@dataclass(eq=False)
class _Layer:
    """Of a tile's columns those with a k-th pair, these pairs, and what is counted for them."""

    column: Tensor
    pair: Tensor
    above: Tensor
    least: Tensor
    higher: Tensor
    at_least: Tensor


def _layers(
    answer: Tensor, candidates: int, columns: int, above: Tensor, least: Tensor
) -> dict[int, list[_Layer]]:
    """For each tile's first column: its columns with a first pair and these pairs, a second, …"""
    order = answer.argsort(stable=True)
    counts = answer.bincount(minlength=candidates)
    ends = counts.cumsum(0)
    place = torch.arange(len(answer), device=answer.device) - (ends - counts)[answer[order]]
    layers: dict[int, list[_Layer]] = {}
    for left in range(0, candidates, columns):
        right = min(left + columns, candidates)
        start, stop = int(ends[left] - counts[left]), int(ends[right - 1])
        pairs, depth = order[start:stop], place[start:stop]
        layers[left] = []
        for each in (pairs[depth == k] for k in range(int(counts[left:right].max()))):
            bounds = answer[each] - left, each, above[each], least[each]
            layers[left].append(_Layer(*bounds, *above.new_zeros(2, len(each))))
    return layers
