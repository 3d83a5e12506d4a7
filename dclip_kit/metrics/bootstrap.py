"""How sure a difference between two models is, over all queries and in groups of them.

Axes with a leading underscore are checked by hand, so that the error can say what to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

_DRAWN_AT_ONCE = 1 << 17  # fit a processor's cache: three times as fast as retrieval's tiles


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its bootstrap percentile interval.

    `undefined` counts the resamples left out because a ratio would have divided by 0.
    """

    estimate: float
    low: float
    high: float
    undefined: int = 0


@dataclass(frozen=True)
class Gain:
    """How the mean of some queries changes between two models.

    Attributes:
        name: what the queries have in common.
        queries: how many they are.
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
        """Whether the interval leaves out zero."""
        return self.change.low > 0 or self.change.high < 0


def paired_bootstrap(
    before: Shaped[Tensor, "query"],
    after: Shaped[Tensor, "_query"],
    group: Int[Tensor, "_query"],
    statistic: Literal["difference", "relative", "ratio"] = "difference",
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """How the mean over queries changes between two models, with a percentile interval.

    Groups are resampled whole: the captions of one picture are not independent.

    Args:
        before: A value for each query, such as `DirectionMetrics.hits(1)` of the first model.
        after: The same queries, in the same order, under the second model.
        group: What each query belongs to, such as `DirectionMetrics.image_of_query`.
        statistic: "difference" after - before, "ratio" after / before, "relative" ratio - 1.
        resamples: Number of resamples.
        confidence: Share of the resamples that the interval holds.
        seed: Equal seeds draw equal resamples.

    Raises:
        ValueError: Lengths differ or are 0, values not finite, settings out of range, a ratio to 0.
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
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            "Expected resamples of at least 1 and a confidence between 0 and 1, got "
            f"{resamples} and {confidence}."
        )
    values = torch.stack([x.double().cpu() for x in (before, after)], dim=1)  # query 2
    if not values.isfinite().all():
        raise ValueError("Expected finite values, got others; look for NaN in what was measured.")

    _, place = group.cpu().unique(return_inverse=True)
    groups = int(place.max()) + 1
    values = torch.cat([values, torch.ones(len(values), 1)], dim=1)
    sums = torch.zeros(groups, 3, dtype=torch.double).index_add(0, place, values)
    generator = torch.Generator().manual_seed(seed)
    totals = [sums.sum(dim=0, keepdim=True)]  # of the sample itself, then of the resamples
    for some in torch.arange(resamples).split(max(1, _DRAWN_AT_ONCE // groups)):
        drawn = torch.randint(groups, (len(some), groups), generator=generator)
        times = torch.zeros(len(some), groups, dtype=torch.double)
        totals.append(times.scatter_add(1, drawn, torch.ones_like(times)) @ sums)

    old, new, queries = torch.cat(totals).unbind(dim=1)
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
    return Interval(float(change[0]), low, high, undefined=resamples - len(defined))


def retention(
    before: Bool[Tensor, "image"],
    after: Bool[Tensor, "_image"],
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Share of the zero-shot accuracy that was kept: accuracy after / before.

    Args:
        before: Whether the original model names each image: `class_ranks` within 1.
        after: The same of the fine-tuned model, on the same images.
        resamples, confidence, seed: As in `paired_bootstrap`, whose errors these are too.
    """
    image = torch.arange(len(before))
    return paired_bootstrap(before, after, image, "ratio", resamples, confidence, seed)


def gain_by_group(
    before: Shaped[Tensor, "query"],
    after: Shaped[Tensor, "_query"],
    image_of_query: Int[Tensor, "_query"],
    groups: Sequence[str],
    order: Sequence[str] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[Gain, ...]:
    """The gain of each group of queries apart, each with its own bootstrap over images.

    Args:
        before: A value for each query, such as `DirectionMetrics.hits(1)` of the first model.
        after: The same queries under the second model.
        image_of_query: What is resampled together.
        groups: Each query's group.
        order: Groups to name first, in this order; the others follow as they appear. Those without
            a query are left out: there is nothing to measure.
        resamples, seed: As in `paired_bootstrap`, whose errors these are too.

    Raises:
        ValueError: Lengths differ.
    """
    if not len(before) == len(after) == len(image_of_query) == len(groups):
        raise ValueError(
            "Expected before, after, image_of_query and groups with one entry for each query, got "
            f"{len(before)}, {len(after)}, {len(image_of_query)} and {len(groups)}."
        )
    gains = []
    for name in dict.fromkeys([*(each for each in order if each in groups), *groups]):
        chosen = torch.tensor([group == name for group in groups])
        old, new = before.cpu()[chosen].double(), after.cpu()[chosen].double()
        own = image_of_query.cpu()[chosen]
        change = paired_bootstrap(old, new, own, resamples=resamples, seed=seed)
        gains.append(Gain(name, len(own), float(old.mean()), float(new.mean()), change))
    return tuple(gains)
