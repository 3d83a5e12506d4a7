"""Retrieval and zero-shot metrics as pure functions of tensors, with confidence intervals.

A positive's rank is 1 + the number of candidates that score higher, and ties count as the mean rank
of the tied group, or as the last if all candidates tie, so that a collapsed model, which gives
every pair the same score, gets at most chance. Recalls and precisions are fractions in [0, 1].
Inputs may be NumPy arrays.
Axes with a leading underscore are checked by hand, so that the error can say what to do.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import nan
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor
from torch.nn import functional as F

Array = Tensor | np.ndarray

TIE_TOLERANCE = 1e-6  # above a float32 cosine's rounding error, below any meaningful difference
TILE_SIZE = 2**19  # scores held at once: they and their flags, 4 MB in float32, fit into two caches
_WIDTH = 1024  # candidates in a tile, at most
COMPOSITION_CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}  # of scores drawn at random
_KEPT_COUNTS = 1 << 24  # bytes
_DRAWN_AT_ONCE = 1 << 17  # fits a processor's cache: three times as fast as TILE_SIZE


def take_finite(name: str, values: Shaped[Array, "..."], axes: str) -> Shaped[Tensor, "..."]:
    """Checks numbers and returns them as a tensor; a tensor is returned unchanged.

    Args:
        name: Of the values in an error.
        values: Tensor or NumPy array.
        axes: Names of the axes; a digit is the size of its axis.

    Raises:
        ValueError: The axes do not fit, or a number is not finite.
    """
    tensor, names = torch.as_tensor(values), axes.split()
    bad = ~tensor.isfinite()
    sizes = zip(names, tensor.shape, strict=False)
    sizes_fit = all(name == str(size) for name, size in sizes if name.isdigit())
    if tensor.ndim != len(names) or not sizes_fit or bad.any():
        raise ValueError(
            f"Expected {name} [{axes}] of finite numbers, got {tuple(tensor.shape)} with "
            f"{int(bad.sum())} not finite, such as {tensor[bad][:1].tolist()} at "
            f"{bad.nonzero()[:1].tolist()}; check what they were computed from."
        )
    return tensor


def require_strings(name: str, strings: Sequence[str]) -> None:
    """Checks that the value is a sequence of strings, not a single string.

    Raises:
        ValueError: It is not; the message calls it `name`.
    """
    bad = [value for value in strings if not isinstance(value, str)]
    if bad or isinstance(strings, str):
        raise ValueError(
            f"Expected {name} as a sequence of strings, got {[*bad, strings][0]!r}; give a list "
            "of strings."
        )


def ranks(
    scores: Float[Array, "query candidate"],
    positives: Bool[Array, "_query _candidate"],
    tolerance: float = TIE_TOLERANCE,
) -> Float[Tensor, "query"]:
    """Rank of each query's best positive: 1 is the top, a tied group shares its mean rank.

    If all candidates tie, it is the last: a mean rank within k would beat chance at Recall@k. A tie
    among positives alone costs nothing: a positive comes first in any case.

    Args:
        scores: Higher is better; any sign, any scale.
        positives: True where the candidate answers the query; at least one for each query.
        tolerance: Largest difference, in units of `scores`, that still counts as a tie.

    Raises:
        ValueError: Shapes differ, a score is NaN, positives are not booleans, or a query has none.
    """
    return rank_queries(scores, positives, tolerance)[0]


def rank_queries(
    scores: Float[Array, "query candidate"],
    positives: Bool[Array, "_query _candidate"],
    tolerance: float = TIE_TOLERANCE,
) -> tuple[Float[Tensor, "query"], Float[Tensor, "query"]]:
    """As `ranks`, with each query's average precision."""
    scores, positives = torch.as_tensor(scores), torch.as_tensor(positives)
    lacking = int((positives.any(dim=-1) == 0).sum())
    fits = scores.ndim == 2 and scores.shape == positives.shape and positives.dtype == torch.bool
    if not fits or lacking:
        raise ValueError(
            f"Expected boolean positives [query candidate] of {tuple(scores.shape)}, one or "
            f"more per query, got {tuple(positives.shape)} in {positives.dtype}, {lacking} of "
            f"{len(positives)} queries without; leave those queries out and report how many."
        )
    if scores.isnan().any():
        raise ValueError(
            f"Expected scores, got NaN for {int(scores.isnan().sum())} of {scores.numel()}; check "
            "the features they were computed from."
        )
    query, candidate = positives.nonzero(as_tuple=True)  # pair
    row, relevant = scores[query], positives[query]
    positive = scores[query, candidate][:, None]
    higher = row > positive + tolerance  # pair candidate
    tied = (row >= positive - tolerance) & ~higher  # includes the positive itself
    counts = [flags.sum(dim=1) for flags in (higher, tied, higher & relevant, tied & relevant)]
    return _rank_queries(torch.stack(counts).double().cpu(), query.cpu(), *scores.shape)


def _rank_queries(
    counts: Float[Tensor, "4 pair"], query: Int[Tensor, "pair"], queries: int, candidates: int
) -> tuple[Float[Tensor, "query"], Float[Tensor, "query"]]:
    """Ranks queries, given the number of candidates that compete with each positive.

    The precision at a positive is its rank among the positives over its rank among all candidates,
    both mean ranks when tied (our reading). With a single positive it is 1 / its mean
    rank, also where all candidates tie and `ranks` puts it last.

    Args:
        counts: For each positive, how many candidates score higher, how many tie with it (itself
            included), and how many of the former and of the latter are positives of the same query.
            In double precision.
        query: The query of each positive; every query has one.
        queries: Their number.
        candidates: Their number.

    Returns:
        The rank of each query's best positive, and its average precision.
    """
    higher, tied, right_higher, right_tied = counts
    rank = 1 + higher + (tied - 1) / 2
    precision = (1 + right_higher + (right_tied - 1) / 2) / rank
    first_place = torch.where(tied == right_tied, 1 + higher, rank)
    collapsed = (tied == candidates) & (tied > right_tied)
    first_place = torch.where(collapsed, float(candidates), first_place)
    zero = torch.zeros(queries, dtype=torch.double)
    best = zero.scatter_reduce(0, query, first_place, "amin", include_self=False)
    mean_precision = zero.index_add(0, query, precision) / query.bincount(minlength=queries)
    return best, mean_precision


def recall_at_k(ranks: Float[Array, "query"], k: int) -> float:
    """Share of queries whose best positive ranks k or better, as CLIP papers mean it."""
    if k < 1:
        raise ValueError(f"Expected a k from 1, got {k}; count places from 1.")
    return float((take_finite("ranks", ranks, "query") <= k).double().mean())


def k_occurrence(
    query_features: Float[Array, "query _embed"],
    candidate_features: Float[Array, "candidate _embed"],
    k: int = 10,
    rescore: Callable[[Tensor], Tensor] | None = None,
    tolerance: float = TIE_TOLERANCE,
) -> Float[Tensor, "candidate"]:
    """How many queries have each candidate among their top k by cosine (Radovanović et al., 2010).

    Candidates that tie for the last places share them, so that the order of storage cannot make a
    hub and the sum is always k times the number of queries.

    Args:
        query_features: Of the queries; need not be normalised.
        candidate_features: Of the candidates; need not be normalised.
        k: Number of top places to count.
        rescore: Turns cosines [query candidate] into the scores to rank by.
        tolerance: As in `ranks`.

    Raises:
        ValueError: k is not within 1..candidates, there is no query, or features differ in width
            or are not finite.
    """
    if not 1 <= k <= len(candidate_features) or len(query_features) == 0:
        raise ValueError(
            f"Expected a k in 1..{len(candidate_features)} (the candidates) and at least one "
            f"query, got {k} and {len(query_features)}; ask for fewer places."
        )
    queries = take_finite("query_features", query_features, "query embed")
    axes = f"candidate {queries.shape[1]}"
    candidates = take_finite("candidate_features", candidate_features, axes)
    queries, candidates = (F.normalize(x.float(), dim=-1) for x in (queries, candidates))
    counts = torch.zeros(len(candidates), dtype=torch.double)
    for batch in queries.split(1024):  # all scores at once would need gigabytes
        scores = batch @ candidates.T  # query candidate
        scores = rescore(scores) if rescore else scores
        kth_score = scores.topk(k).values[:, -1:]
        higher = scores > kth_score + tolerance
        tied = (scores >= kth_score - tolerance) & ~higher
        tie_share = (k - higher.sum(1, keepdim=True)) / tied.sum(1, keepdim=True)
        counts += (higher + tied * tie_share).double().sum(0).cpu()
    return counts


def composition_scores(
    similarity: Float[Array, "item _ _"],
) -> dict[str, Bool[Tensor, "item"]]:
    """Winoground's three scores (arXiv 2204.03162): for each, whether each item is right.

    An item's two pictures and two captions belong together in order. "text": both pictures are
    nearer to their own caption than to the other; "image": both captions are nearer to their own
    picture; "group": both. A tie is wrong. `COMPOSITION_CHANCE` has the scores of chance.

    Args:
        similarity: Of each picture (the second axis) with each caption.

    Raises:
        ValueError: The shape is another, or a number is not finite.
    """
    similarity = take_finite("similarity", similarity, "item 2 2")
    true_pairs = similarity.diagonal(dim1=1, dim2=2)
    text = (true_pairs > similarity.flip(2).diagonal(dim1=1, dim2=2)).all(1)
    image = (true_pairs > similarity.flip(1).diagonal(dim1=1, dim2=2)).all(1)
    return {"text": text, "image": image, "group": text & image}


def skewness(values: Float[Array, "item"]) -> float:
    """The third standardised moment: 0 for a symmetric spread, above 0 for a long tail upwards.

    For k-occurrences it is the usual measure of hubness. Without any spread it is NaN.
    """
    values = take_finite("values", values, "item").double()
    centred = values - values.mean()
    return float(centred.pow(3).mean() / centred.square().mean().pow(1.5))


@dataclass(frozen=True, eq=False)
class DirectionMetrics:
    """One direction's metrics, and the values per query that a paired bootstrap needs.

    Attributes:
        recall_at: k -> share of queries with any positive in the top k.
        ranks: Rank of each query's best positive, as `ranks` says; halves occur in ties. All
            tensors are on the CPU.
        average_precision: Over all positives of each query.
        image_of_query: The image of each query, which is resampled as a group.
    """

    recall_at: dict[int, float]
    mean_average_precision: float
    mean_reciprocal_rank: float
    median_rank: float
    candidates: int
    ranks: Float[Tensor, "query"]
    average_precision: Float[Tensor, "query"]
    image_of_query: Int[Tensor, "query"]

    def hits(self, k: int = 1) -> Bool[Tensor, "query"]:
        """True where any positive is in the top k: `recall_at[k]` is its mean."""
        return self.ranks <= k

    def as_dict(self) -> dict[str, object]:
        """The numbers without the tensors, ready for JSON."""
        numbers = {name: x for name, x in vars(self).items() if not isinstance(x, Tensor)}
        recall_at = {str(k): recall for k, recall in self.recall_at.items()}
        return numbers | {"recall_at": recall_at, "queries": len(self.ranks)}


@dataclass(frozen=True, eq=False)
class RetrievalMetrics:
    """Both directions, and the number of images without a caption, left out of image→text."""

    text_to_image: DirectionMetrics
    image_to_text: DirectionMetrics
    images_without_captions: int

    def as_dict(self) -> dict[str, object]:
        """The numbers without the tensors, ready for JSON."""
        return {
            "text_to_image": self.text_to_image.as_dict(),
            "image_to_text": self.image_to_text.as_dict(),
            "images_without_captions": self.images_without_captions,
        }


def retrieval_metrics(
    image_features: Float[Array, "image embed"],
    text_features: Float[Array, "text _embed"],
    image_of_text: Int[Array, "_text"],
    recall_at: Sequence[int] = (1, 5, 10),
    tile_size: int = TILE_SIZE,
) -> RetrievalMetrics:
    """Text→image and image→text retrieval among all images and all texts.

    Args:
        image_features: Need not be normalised.
        text_features: As wide as the images'.
        image_of_text: The image, a row of `image_features`, that each text describes. An image
            without a text stays a candidate, but is left out of image→text and counted.
        recall_at: The values of k to report.
        tile_size: Most scores to hold at once.

    Raises:
        ValueError: Empty, NaN or all-zero features, widths or lengths that differ, an index out of
            range or not a whole number, or k or tile_size below 1.
    """
    if tile_size < 1:
        raise ValueError(f"Expected a tile_size from 1, got {tile_size}; leave it out.")
    own_scores, image_rivals, text_rivals = _count_rivals(
        text_features, image_features, image_of_text, "text", "image", tile_size
    )
    image_index = torch.as_tensor(image_of_text).cpu().long()
    texts, images = len(text_features), len(image_features)
    captioned, image_query = image_index.unique(return_inverse=True)
    # A caption has one image.
    text_positives = torch.tensor([[0.0], [1.0]]).double().expand(2, texts)
    image_positives = _count_beside(own_scores, image_index)

    of_texts = _rank_queries(
        torch.cat([image_rivals, text_positives]), torch.arange(texts), texts, images
    )
    of_images = _rank_queries(
        torch.cat([text_rivals, image_positives]), image_query, len(captioned), texts
    )
    return RetrievalMetrics(
        text_to_image=summarise_ranks(*of_texts, images, image_index, recall_at),
        image_to_text=summarise_ranks(*of_images, texts, captioned, recall_at),
        images_without_captions=images - len(captioned),
    )


def summarise_ranks(
    ranks: Float[Tensor, "query"],
    average_precision: Float[Tensor, "query"],
    candidates: int,
    image_of_query: Int[Tensor, "query"],
    recall_at: Sequence[int] = (1, 5, 10),
) -> DirectionMetrics:
    """One direction's metrics, from the results of `rank_queries`."""
    return DirectionMetrics(
        recall_at={k: recall_at_k(ranks, k) for k in recall_at},
        mean_average_precision=float(average_precision.mean()),
        mean_reciprocal_rank=float((1 / ranks).mean()),
        median_rank=float(ranks.quantile(0.5)),
        candidates=candidates,
        ranks=ranks,
        average_precision=average_precision,
        image_of_query=image_of_query,
    )


def class_ranks(
    image_features: Float[Array, "image embed"],
    class_features: Float[Array, "class _embed"],
    target: Int[Array, "_image"],
) -> Float[Tensor, "image"]:
    """Rank of each image's own class among all; `recall_at_k` of these is the top-k accuracy.

    Ties share their mean rank, and if all classes tie, the image's own is last: a collapsed model
    gets nothing. Errors as in `retrieval_metrics`, with `target`, a row of `class_features` for
    each image, as the index.
    """
    _, (higher, tied), _ = _count_rivals(
        image_features, class_features, target, "image", "class", TILE_SIZE, both=False
    )
    classes = len(class_features)
    return torch.where(tied == classes, float(classes), 1 + higher + (tied - 1) / 2)


def _count_rivals(
    query_features: Array,
    candidate_features: Array,
    answer: Array,
    query: str,
    candidate: str,
    tile_size: int,
    both: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts each answer's rivals among the candidates and, the other way, among the queries.

    Counting needs no sorting, and one product serves both ways: the scores of a tile are compared
    along its rows and along its columns. A pair's own score is computed separately and may differ
    from the tile's in the last bits: the tolerance, far larger, makes it tie with itself.

    Args:
        query_features: Need not be normalised, like the candidates'.
        candidate_features: As wide as the queries'.
        answer: The right candidate for each query.
        query: Name of the queries in errors.
        candidate: Name of the candidates in errors.
        tile_size: Most scores to hold at once.
        both: Whether to count the other way too.

    Returns:
        The cosine of each query and its answer; how many candidates score higher or tie [2 query];
        and how many queries score higher or tie with the answer [2 query]. On the CPU, in double
        precision.
    """
    queries, candidates = torch.as_tensor(query_features), torch.as_tensor(candidate_features)
    norms = _measure_norms(queries, query), _measure_norms(candidates, candidate)
    if queries.shape[1] != candidates.shape[1]:
        raise ValueError(
            f"Expected {query}_features as wide as {candidate}_features, got {queries.shape[1]} "
            f"and {candidates.shape[1]}; encode both with the same model."
        )
    answer_index = torch.as_tensor(answer, device=queries.device)
    _require_answers(answer_index, len(queries), len(candidates), query, candidate)
    answer = answer_index.long()
    dtype = torch.promote_types(torch.promote_types(queries.dtype, candidates.dtype), torch.float32)

    def unit(features: Tensor, norm: Tensor, rows: slice | Tensor) -> Tensor:
        return features[rows].detach().to(dtype) / norm[rows].to(dtype)

    columns = min(_WIDTH, tile_size, len(candidates))
    height = tile_size // columns
    rows = [slice(top, top + height) for top in range(0, len(queries), height)]
    answer_scores = torch.cat(
        [
            (unit(queries, norms[0], tile) * unit(candidates, norms[1], answer[tile])).sum(dim=1)
            for tile in rows
        ]
    )
    candidate_rivals, query_rivals = torch.zeros(
        2, 2, len(answer_scores), dtype=torch.double, device=answer_scores.device
    )

    def count(scores: Tensor, pairs: slice | Tensor, rivals: Tensor) -> None:
        flags, ones = torch.empty_like(scores), scores.new_ones(scores.shape[1])
        pair_scores = answer_scores[pairs, None]
        # Summing booleans would take far longer than this product.
        rivals[0, pairs] += torch.gt(scores, pair_scores + TIE_TOLERANCE, out=flags) @ ones
        rivals[1, pairs] += torch.ge(scores, pair_scores - TIE_TOLERANCE, out=flags) @ ones

    order = answer.argsort(stable=True)
    column = answer[order]
    occurrence = torch.arange(len(order), device=order.device) - torch.searchsorted(column, column)
    for left in range(0, len(candidates), columns):
        block = unit(candidates, norms[1], slice(left, left + columns))
        inside = (column >= left) & (column < left + columns) & both
        # The first pair of each column, then the second, …
        layers = [order[inside & (occurrence == n)] for n in occurrence[inside].unique()]
        for tile in rows:
            scores = unit(queries, norms[0], tile) @ block.T
            count(scores, tile, candidate_rivals)
            for pairs in layers:
                columns_of_pairs = scores
                if len(pairs) != len(block):
                    columns_of_pairs = scores[:, answer[pairs] - left]
                count(columns_of_pairs.T, pairs, query_rivals)
    candidate_rivals[1] -= candidate_rivals[0]
    query_rivals[1] -= query_rivals[0]
    return answer_scores.double().cpu(), candidate_rivals.cpu(), query_rivals.cpu()


def _require_answers(
    index: Tensor, queries: int, candidates: int, query: str, candidate: str
) -> None:
    """Raises ValueError unless there is the index of a candidate for each query."""
    index_fits = index.shape == (queries,) and not index.is_floating_point()
    if not index_fits or index.min() < 0 or index.max() >= candidates:
        raise ValueError(
            f"Expected the index of a {candidate} for each {query}, {queries} of them from 0 "
            f"to {candidates - 1}, got {len(index)} from {sorted(index.tolist())[:1]} to "
            f"{sorted(index.tolist())[-1:]} in {index.dtype}; count rows of the features passed, "
            "from 0, in whole numbers."
        )


def _measure_norms(features: Tensor, name: str) -> Tensor:
    """Checks rows and returns their norms, in double precision to avoid over- and underflow."""
    parts = features.detach().split(4096)
    norms = torch.cat([part.double().norm(dim=-1, keepdim=True) for part in parts])
    bad = ~norms.isfinite() | (norms == 0)
    if features.ndim != 2 or features.numel() == 0 or bad.any():
        raise ValueError(
            f"Expected {name}_features with rows that are finite and not all zeros, got shape "
            f"{tuple(features.shape)} with {int(bad.sum())} of {len(features)} rows invalid, such "
            f"as {bad.nonzero()[:1, 0].tolist()}; encode them again, or leave them out and count "
            "them."
        )
    return norms


def _count_beside(score: Tensor, image: Tensor) -> Tensor:
    """For each text, how many texts of its image score higher or tie with it."""
    # One sorted list, in which each image's cosines (-1 to 1) are offset by 4 from the next one's.
    offset = image.double() * 4
    key = offset + score
    sorted_keys = key.sort().values
    end = torch.searchsorted(sorted_keys, offset + 2)
    higher = end - torch.searchsorted(sorted_keys, key + TIE_TOLERANCE, right=True)
    tied = end - torch.searchsorted(sorted_keys, key - TIE_TOLERANCE) - higher
    return torch.stack([higher, tied]).double()


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its bootstrap percentile interval.

    `undefined` counts the resamples left out because their ratio divides by 0.
    """

    estimate: float
    low: float
    high: float
    undefined: int = 0


@dataclass(frozen=True)
class Gain:
    """How the mean of some queries changes between two models.

    Attributes:
        name: of the group of queries.
        queries: their number.
        before, after: means under the two models.
        change: after - before, with the interval of a bootstrap over images.
    """

    name: str
    queries: int
    before: float
    after: float
    change: Interval

    @property
    def is_known(self) -> bool:
        """Whether the interval excludes zero."""
        return self.change.low > 0 or self.change.high < 0


def _draw_counts(groups: int, resamples: int, seed: int) -> Iterator[UInt8[Tensor, "some group"]]:
    """How often each resample draws each group."""
    generator = torch.Generator().manual_seed(seed)
    for batch in torch.arange(resamples).split(max(1, _DRAWN_AT_ONCE // groups)):
        drawn = torch.randint(groups, (len(batch), groups), generator=generator)
        counts = torch.zeros(len(batch), groups, dtype=torch.uint8)
        yield counts.scatter_add(1, drawn, torch.ones_like(drawn, dtype=torch.uint8))


@lru_cache(maxsize=2)  # a study compares hundreds of pairs on the same pictures
def _keep_counts(groups: int, resamples: int, seed: int) -> list[UInt8[Tensor, "some group"]]:
    return list(_draw_counts(groups, resamples, seed))


def paired_bootstrap(
    before: Shaped[Array, "query"],
    after: Shaped[Array, "_query"],
    group: Int[Array, "_query"],
    statistic: Literal["difference", "relative", "ratio"] = "difference",
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """How the mean over queries changes between two models, with a percentile interval.

    Whole groups are resampled, since the captions of one picture are not independent. A single
    group says nothing about others, so its interval's ends are NaN.

    Args:
        before: A value for each query, such as `DirectionMetrics.hits(1)` of the first model.
        after: The same queries, in the same order, under the second model.
        group: The group of each query, such as `DirectionMetrics.image_of_query`.
        statistic: "difference" after - before, "ratio" after / before, "relative" ratio - 1.
        resamples: Number of resamples.
        confidence: Share of the resamples within the interval.
        seed: Equal seeds draw equal resamples.

    Raises:
        ValueError: Lengths differ or are 0, a value is not finite, a setting is out of range, or a
            ratio divides by 0.
    """
    if not len(before) == len(after) == len(group) > 0:
        raise ValueError(
            "Expected before, after and group with one entry for each query, got "
            f"{len(before)}, {len(after)} and {len(group)}; pass the same queries to all three."
        )
    if statistic not in ("difference", "relative", "ratio"):
        raise ValueError(
            f"Expected a statistic of difference, relative or ratio, got {statistic!r}."
        )
    if resamples < 1 or resamples % 1 or not 0 < confidence < 1:
        raise ValueError(
            "Expected a whole number of resamples, at least 1, and a confidence between 0 and 1, "
            f"got {resamples} and {confidence}; 1000 and 0.95 are usual."
        )
    inputs = {"before": before, "after": after, "group": group}
    before, after, group = (take_finite(name, x, "query").cpu() for name, x in inputs.items())
    pairs = torch.stack([before.double(), after.double()], dim=1)
    old, new, queries = resample_sums(pairs, group, resamples, seed).unbind(dim=1)
    interval = change_of_means(old, new, queries, statistic, confidence)
    if (group == group[0]).all():  # every resample is the same, which would look certain
        return replace(interval, low=nan, high=nan)
    return interval


def resample_sums(
    values: Shaped[Array, "query column"],
    group: Int[Array, "_query"],
    resamples: int = 1000,
    seed: int = 0,
) -> Float[Tensor, "resample columns"]:
    """Sums over queries, of the sample itself and then of resamples of whole groups.

    Returns:
        In double precision; after the columns, one with the number of queries.
    """
    values = torch.as_tensor(values).cpu().double()
    _, group_index = torch.as_tensor(group).cpu().unique(return_inverse=True)
    groups = int(group_index.max()) + 1
    values = torch.cat([values, torch.ones(len(values), 1, dtype=torch.double)], dim=1)
    sums = values.new_zeros(groups, values.shape[1]).index_add(0, group_index, values)
    draw = _keep_counts if groups * resamples <= _KEPT_COUNTS else _draw_counts
    drawn = [counts.double() @ sums for counts in draw(groups, resamples, seed)]
    return torch.cat([sums.sum(dim=0, keepdim=True), *drawn])


def change_of_means(
    old: Float[Tensor, "resample"],
    new: Float[Tensor, "resample"],
    queries: Float[Tensor, "resample"],
    statistic: Literal["difference", "relative", "ratio"] = "difference",
    confidence: float = 0.95,
) -> Interval:
    """The change of a mean, by sums from `resample_sums`; other arguments as `paired_bootstrap`.

    Raises:
        ValueError: a ratio divides by 0.
    """
    if statistic == "difference":
        change = (new - old) / queries
    else:
        change = torch.where(old != 0, new / old - int(statistic == "relative"), torch.nan)
    defined = change[1:][change[1:].isfinite()]
    if change[0].isnan() or len(defined) == 0:
        raise ValueError(
            f"Expected a mean above 0 for a {statistic}, got 0; use statistic='difference'."
        )
    tail = (1 - confidence) / 2
    low, high = defined.quantile(torch.tensor([tail, 1 - tail], dtype=torch.double)).tolist()
    return Interval(float(change[0]), low, high, undefined=len(change) - 1 - len(defined))


def retention(
    before: Bool[Array, "image"],
    after: Bool[Array, "_image"],
) -> Interval:
    """Share of zero-shot accuracy that is kept: accuracy after / before.

    Args:
        before: Whether the original model names each image right: `class_ranks` within 1.
        after: The same for the fine-tuned model, on the same images.

    Raises:
        ValueError: As `paired_bootstrap`.
    """
    return paired_bootstrap(before, after, torch.arange(len(before)), "ratio")


def gain_by_group(
    before: Shaped[Array, "query"],
    after: Shaped[Array, "_query"],
    image_of_query: Int[Array, "_query"],
    groups: Sequence[str],
    order: Sequence[str] = (),
) -> tuple[Gain, ...]:
    """The gain of each group of queries, each with its own bootstrap over images.

    Args:
        before: A value for each query, such as `DirectionMetrics.hits(1)` of the first model.
        after: The same queries under the second model.
        image_of_query: The image of each query, which is resampled as a group.
        groups: Each query's group.
        order: Groups to list first, in this order; the others follow as they appear. Groups without
            a query are left out.

    Raises:
        ValueError: Lengths differ, or `groups` is one string; or as `paired_bootstrap`.
    """
    require_strings("groups", groups)
    if not len(before) == len(after) == len(image_of_query) == len(groups):
        raise ValueError(
            "Expected before, after, image_of_query and groups with one entry for each query, got "
            f"{len(before)}, {len(after)}, {len(image_of_query)} and {len(groups)}; pass the same "
            "queries to all four."
        )
    before, after, images = (torch.as_tensor(x).cpu() for x in (before, after, image_of_query))
    gains = []
    for name in dict.fromkeys([*(group for group in order if group in groups), *groups]):
        chosen = torch.tensor([group == name for group in groups])
        old, new, owners = before[chosen].double(), after[chosen].double(), images[chosen]
        change = paired_bootstrap(old, new, owners)
        gains.append(Gain(name, len(owners), float(old.mean()), float(new.mean()), change))
    return tuple(gains)
