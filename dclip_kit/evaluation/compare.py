"""Is one arm really better than another? Tables, gains with intervals, and the queries behind them.

Intervals are bootstraps over images: the captions of one picture are not independent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dclip_kit.evaluation.arms import Arm, measure_interpolations
from dclip_kit.evaluation.evaluate import RetrievalSet, ZeroShot, ZeroShotSet
from dclip_kit.metrics import (
    DirectionMetrics,
    Gain,
    Interval,
    RetrievalMetrics,
    gain_by_group,
    paired_bootstrap,
    retention,
)

WAYS = {"text_to_image": "text → image", "image_to_text": "image → text"}


def _values(found: DirectionMetrics) -> dict[str, Float[Tensor, "query"]]:
    """Per query what each metric is the mean of, by the metric's name."""
    hits = {f"Recall@{k}": found.hits(k).double() for k in found.recall_at}
    return hits | {"MAP": found.average_precision.double(), "MRR": 1 / found.ranks.double()}


def _format_mean(values: Tensor, group: Tensor, resamples: int = 1000) -> str:
    """The mean of some shares with its 95 % interval, in percent."""
    nothing = torch.zeros_like(values)  # the mean itself is its difference to nothing
    return _format_interval(paired_bootstrap(nothing, values, group, resamples=resamples))


def _format_interval(spread: Interval) -> str:
    return f"{100 * spread.estimate:.1f} [{100 * spread.low:.1f}–{100 * spread.high:.1f}]"


def format_retrieval(retrievals: Mapping[str, RetrievalMetrics], resamples: int = 1000) -> str:
    """Lays results out: for each direction a row a metric and a column an arm, in percent.

    Behind each figure stands the 95 % interval of that figure alone; whether two arms differ is
    decided by `compare`, whose intervals are narrower.

    Args:
        retrievals: by arm, at least one.
        resamples: of the bootstrap.
    """
    rows: list[list[str]] = []
    for way, title in WAYS.items():
        found = [getattr(result, way) for result in retrievals.values()]
        values = [_values(each) for each in found]
        rows.append([title, *retrievals])
        for metric in values[0]:
            cells = (
                _format_mean(own[metric], each.image_of_query, resamples)
                for own, each in zip(values, found, strict=True)
            )
            rows.append([metric, *cells])
        rows += [["median rank", *(f"{each.median_rank:g}" for each in found)], []]
    wide = max(19, *(2 + len(cell) for row in rows for cell in row[1:]))
    lines = [
        "".join([f"{row[0]:13s}", *(x.rjust(wide) for x in row[1:])]) if row else "" for row in rows
    ]
    return "\n".join(lines).rstrip()


def format_zero_shot(results: Mapping[str, ZeroShot]) -> str:
    """A line a model: its accuracy with its 95 % interval, and what it keeps of the first one's.

    Args:
        results: by model, on the same pictures.
    """
    lines, first = [], next(iter(results.values()))
    for name, result in results.items():
        accuracy = _format_mean(result.correct.double(), torch.arange(len(result.correct)))
        kept = ""
        if result is not first and first.top1:
            share = _format_interval(retention(first.correct, result.correct))
            kept = f", {share} % of the first's"
        lines.append(f"{name}: {accuracy} %{kept}")
    return "\n".join(lines)


def compare(before: RetrievalMetrics, after: RetrievalMetrics) -> dict[str, tuple[Gain, ...]]:
    """What each metric gains from one model to another, by direction, paired query by query."""
    gains = {}
    for way, title in WAYS.items():
        old, new = getattr(before, way), getattr(after, way)
        values = _values(new)
        gains[title] = tuple(
            gain
            for metric, own in _values(old).items()
            for gain in gain_by_group(own, values[metric], old.image_of_query, [metric] * len(own))
        )
    return gains


def recall_gains(
    before: DirectionMetrics,
    after: DirectionMetrics,
    facets: Mapping[str, Sequence[str]],
    orders: Mapping[str, Sequence[str]],
    k: int = 1,
) -> dict[str, tuple[Gain, ...]]:
    """The gain in Recall@k of each group of queries under each facet.

    Args:
        before, after: one direction of two models.
        facets: by name, each query's group.
        orders: by facet, the order to name the groups in.
        k: places looked at.
    """
    hits = before.hits(k).double(), after.hits(k).double()
    return {
        facet: gain_by_group(*hits, before.image_of_query, groups, orders.get(facet, ()))
        for facet, groups in facets.items()
    }


def say_gain(gain: Gain, what: str) -> str:
    """A gain as a sentence that claims no more than its interval allows."""
    low, high = 100 * gain.change.low, 100 * gain.change.high
    judged = "better" if low > 0 else "worse" if high < 0 else "not known to differ"
    return (
        f"{what}: {100 * gain.before:.1f} → {100 * gain.after:.1f} %, "
        f"{100 * gain.change.estimate:+.1f} points [{low:+.1f} to {high:+.1f}]: {judged}"
    )


@dataclass(frozen=True)
class Swing:
    """How queries fared under two models: indices of those won and lost, counts of the others."""

    won: tuple[int, ...]
    lost: tuple[int, ...]
    both: int
    neither: int

    def __str__(self) -> str:
        return (
            f"{self.both:,} found by both, {self.neither:,} by neither, "
            f"{len(self.won):,} won, {len(self.lost):,} lost: "
            f"{len(self.won) - len(self.lost):+,} in all"
        )


def won_and_lost(before: DirectionMetrics, after: DirectionMetrics, k: int = 1) -> Swing:
    """Which queries have a right answer in the top k under only one of two models."""
    old, new = before.hits(k), after.hits(k)
    return Swing(
        tuple((new & ~old).nonzero().flatten().tolist()),
        tuple((old & ~new).nonzero().flatten().tolist()),
        int((old & new).sum()),
        int((~old & ~new).sum()),
    )


def draw_queries(
    chosen: Sequence[int], image_of_query: Int[Tensor, "query"], count: int, seed: int = 0
) -> list[int]:
    """Some of the chosen queries, by lot and never two of one picture: examples, not trophies."""
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn: dict[int, int] = {}
    for index in order:
        drawn.setdefault(int(image_of_query[chosen[index]]), chosen[index])
    return list(drawn.values())[:count]


def measure_mixes(
    arms: Mapping[str, Arm],
    retrieval: RetrievalSet,
    zero_shot: ZeroShotSet,
    steps: Sequence[float] = (0.5,),
) -> dict[str, Arm]:
    """Measures mixtures of the untouched CLIP with each fine-tuned arm.

    Args:
        arms: "clip" and fine-tuned ones.
        retrieval: what the search is measured on.
        zero_shot: what the memory is measured on.
        steps: shares of the way from clip (0) to the arm (1), both of which are always measured.

    Returns:
        The fine-tuned arms, with what was measured here as their candidates.

    Raises:
        ValueError: "clip" classifies nothing, or a step is outside 0 to 1.
    """
    traced = {}
    for name, arm in arms.items():
        if arm.alpha is not None:
            ends = arms["clip"].clip, arm.clip
            found = measure_interpolations(*ends, retrieval, zero_shot, [*steps, 1.0])
            of_clip = tuple(replace(each, alpha=each.alpha * arm.alpha) for each in found)
            traced[name] = replace(arm, candidates=of_clip)
    return traced
