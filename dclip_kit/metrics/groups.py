"""Gains, taken apart by what the queries are like."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from dclip_kit.metrics.bootstrap import Interval, paired_bootstrap


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
            "before, after, image_of_query and groups must hold one entry for each query, but hold "
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
