"""Is one arm really better than another? Tables, gains with intervals, and the queries behind them.

Intervals are bootstraps over images: the captions of one picture are not independent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from dclip_kit.evaluation.arms import Arm
from dclip_kit.evaluation.evaluate import (
    RetrievalSet,
    ZeroShot,
    ZeroShotSet,
    evaluate_retrieval,
    evaluate_zero_shot,
)
from dclip_kit.evaluation.selection import Candidate
from dclip_kit.metrics import (
    DirectionMetrics,
    Gain,
    Interval,
    RetrievalMetrics,
    gain_by_group,
    paired_bootstrap,
    retention,
)
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.weights import interpolate

WAYS = {"text_to_image": "text → image", "image_to_text": "image → text"}


def _values(found: DirectionMetrics) -> dict[str, Tensor]:
    """Per query what each metric is the mean of, by the metric's name."""
    hits = {f"Recall@{k}": found.hits(k).double() for k in found.recall_at}
    return hits | {"MAP": found.average_precision.double(), "MRR": 1 / found.ranks.double()}


def format_retrieval(retrievals: Mapping[str, RetrievalMetrics], resamples: int = 1000) -> str:
    """Lays results out: for each direction a row a metric and a column an arm, in percent.

    Behind each figure stands the 95 % interval of that figure alone; whether two arms differ is
    decided by `compare`, whose intervals are narrower.

    Raises:
        ValueError: there is no result.
    """
    if not retrievals:
        raise ValueError("Expected the result of at least one arm, got none.")
    blocks = []
    for way, title in WAYS.items():
        found = {name: getattr(result, way) for name, result in retrievals.items()}
        rows = [[title, *found]]
        values = {name: _values(each) for name, each in found.items()}
        for metric in next(iter(values.values())):
            row = [metric]
            for name, each in found.items():
                own = values[name][metric]
                spread = paired_bootstrap(
                    torch.zeros_like(own), own, each.image_of_query, resamples=resamples
                )
                ends = f"{100 * spread.low:4.1f}–{100 * spread.high:4.1f}"
                row.append(f"{100 * spread.estimate:5.1f} [{ends}]")
            rows.append(row)
        rows.append(["median rank", *(f"{each.median_rank:g}" for each in found.values())])
        blocks.append(rows)
    wide = max(19, *(2 + len(cell) for rows in blocks for row in rows for cell in row[1:]))
    lines = []
    for rows in blocks:
        lines += [f"{row[0]:13s}" + "".join(cell.rjust(wide) for cell in row[1:]) for row in rows]
        lines.append("")
    return "\n".join(lines).rstrip()


def format_zero_shot(results: Mapping[str, ZeroShot]) -> str:
    """A line a model: its accuracy with its 95 % interval, and what it keeps of the first one's.

    Args:
        results: by model, on the same pictures.
    """
    lines, first = [], next(iter(results.values()))
    for name, result in results.items():
        own, pictures = result.correct.double(), torch.arange(len(result.correct))
        spread = paired_bootstrap(torch.zeros_like(own), own, pictures)
        line = f"{name}: {_percent(spread)} %"
        if result is not first and first.top1:
            line += f", {_percent(retention(first.correct, result.correct))} % of the first's"
        lines.append(line)
    return "\n".join(lines)


def _percent(spread: Interval) -> str:
    return f"{100 * spread.estimate:.1f} [{100 * spread.low:.1f}–{100 * spread.high:.1f}]"


def compare(before: RetrievalMetrics, after: RetrievalMetrics) -> dict[str, tuple[Gain, ...]]:
    """What each metric gains from one model to another, by direction, paired query by query."""
    gains = {}
    for way, title in WAYS.items():
        old, new = getattr(before, way), getattr(after, way)
        first, second = _values(old), _values(new)
        everything = ["all"] * len(old.ranks)
        gains[title] = tuple(
            replace(gain, name=metric)
            for metric in first
            for gain in gain_by_group(first[metric], second[metric], old.image_of_query, everything)
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
    won, lost = ((new & ~old), (old & ~new))
    return Swing(
        tuple(won.nonzero().flatten().tolist()),
        tuple(lost.nonzero().flatten().tolist()),
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
    progress: bool = True,
) -> dict[str, Arm]:
    """Measures mixtures of the untouched CLIP with each fine-tuned arm.

    Args:
        arms: "clip" and fine-tuned ones.
        retrieval: what the search is measured on.
        zero_shot: what the memory is measured on.
        steps: shares of the way from clip (0) to the arm (1), both of which are always measured.
        progress: shows a bar.

    Returns:
        The fine-tuned arms, with what was measured here as their candidates.

    Raises:
        ValueError: "clip" is missing or classifies nothing, or a step is outside 0 to 1.
    """
    if "clip" not in arms or not all(0 <= step <= 1 for step in steps):
        raise ValueError(
            f"Expected the arm 'clip' and steps from 0 to 1, got {sorted(arms)} and {list(steps)}."
        )
    before = arms["clip"].clip

    def measure(clip: ClipBundle) -> tuple[float, float]:
        found = evaluate_retrieval(clip, retrieval, progress=False)
        known = evaluate_zero_shot(clip, zero_shot, progress=False)
        return found.text_to_image.recall_at[1], known.top1

    recall, base = measure(before)
    if base == 0:
        raise ValueError("Expected a CLIP that knows some of the classes, got none right.")
    tuned = {name: arm for name, arm in arms.items() if arm.alpha is not None}
    found = {name: [Candidate(0.0, recall, 1.0)] for name in tuned}
    ways = [(name, step) for name in tuned for step in sorted({*steps, 1.0} - {0.0})]
    for name, step in tqdm(ways, desc="measuring mixes", disable=not progress):
        arm = tuned[name]
        recall, top1 = measure(interpolate(before, arm.clip, step))
        found[name].append(Candidate(step * (arm.alpha or 0.0), recall, top1 / base))
    return {name: replace(arm, candidates=tuple(found[name])) for name, arm in tuned.items()}
