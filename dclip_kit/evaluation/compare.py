"""Compares results: tables, gains with intervals, queries won and lost, a run's report.

Intervals are bootstraps over images: the captions of one picture are not independent.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dclip_kit.config import CONTROL, Profile
from dclip_kit.data.pictures import CaptionedImages
from dclip_kit.data.pocket import world as pocket
from dclip_kit.data.splits import count_truncated
from dclip_kit.evaluation.arms import Arm, ArmResult
from dclip_kit.evaluation.evaluate import (
    WAYS,
    ZeroShot,
    encode_galleries,
    measure_galleries,
    prepare_galleries,
)
from dclip_kit.evaluation.inspection import ShortcutProbe
from dclip_kit.metrics import (
    COMPOSITION_CHANCE,
    DirectionMetrics,
    Gain,
    Interval,
    RetrievalMetrics,
    gain_by_group,
    paired_bootstrap,
    retention,
)
from dclip_kit.models.clip import ClipBundle
from dclip_kit.runtime.machine import peak_memory_mb
from dclip_kit.runtime.printing import printable


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows as a Markdown table with the first as its header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * (width - 1) + ":" for width in widths]
    return "\n".join(
        f"| {' | '.join(cell.rjust(w) for cell, w in zip(row, widths, strict=True))} |"
        for row in (rows[0], rule, *rows[1:])
    )


def warn_of_captions(captioned: CaptionedImages, clip: ClipBundle) -> str:
    """Sentences on what limits retrieval by these captions; empty if nothing does.

    The limits are text beyond the CLIP's context or an end token, which it does not read, and
    captions that several pictures share.
    """
    owners = Counter(text for captions in captioned.captions for text in {*captions})
    counts = [owners[text] for text in captioned.texts]
    won = Counter[str]()  # by the picture that has a text most often
    for captions in captioned.captions:
        won |= Counter(captions)
    cut = count_truncated(captioned.texts, clip.tokenizer)
    shared = sum(count > 1 for count in counts)
    notes = {
        f"{cut:,} captions are longer than what {clip.name} reads, which is their beginning.": cut,
        f"{shared:,} captions are those of several pictures, which tie: no text → image Recall@1 "
        f"is above {won.total() / max(1, len(counts)):.1%}, and in image → text they are "
        "not found first.": shared,
    }
    return " ".join(note for note, count in notes.items() if count)


def warn_of_few(pictures: int, source: str) -> str:
    """A sentence if a test is too small for its figures to say much; else empty."""
    note = (
        f"Note: {pictures} pictures of {source} are few to measure on: one more or less moves "
        f"these figures by {100 / max(pictures, 1):.0f} points or more, and intervals of so few "
        "are too narrow."
    )
    return printable(note) if pictures < 100 else ""


def _values(metrics: DirectionMetrics) -> dict[str, Float[Tensor, "query"]]:
    """By metric, the values per query whose mean the metric is."""
    return {
        **{f"Recall@{k}": metrics.hits(k).double() for k in metrics.recall_at},
        "MAP": metrics.average_precision.double(),
        "MRR": 1 / metrics.ranks.double(),
    }


def _format_mean(values: Tensor, group: Tensor) -> str:
    """The mean of some shares with its 95 % interval, in percent."""
    # The mean is the difference to zeros.
    return _format_interval(paired_bootstrap(torch.zeros_like(values), values, group))


def _format_interval(interval: Interval) -> str:
    return f"{100 * interval.estimate:.1f} [{100 * interval.low:.1f}–{100 * interval.high:.1f}]"


def format_retrieval(retrievals: Mapping[str, RetrievalMetrics]) -> str:
    """Formats results: for each direction a row per metric and a column per arm, in percent.

    Each figure is followed by its own 95 % interval; whether two arms differ is decided by
    `compare`, whose intervals are narrower.

    Args:
        retrievals: by arm, at least one.
    """
    rows: list[list[str]] = []
    for way, title in WAYS.items():
        results = [getattr(result, way) for result in retrievals.values()]
        values = [_values(metrics) for metrics in results]
        rows.append([title, *retrievals])
        for metric in values[0]:
            cells = (
                _format_mean(metric_values[metric], metrics.image_of_query)
                for metric_values, metrics in zip(values, results, strict=True)
            )
            rows.append([metric, *cells])
        rows += [["median rank", *(f"{metrics.median_rank:g}" for metrics in results)], []]
    wide = max(19, *(2 + len(cell) for row in rows for cell in row[1:]))
    return "\n".join(
        "".join([f"{row[0]:13s}", *(cell.rjust(wide) for cell in row[1:])]) if row else ""
        for row in rows
    ).rstrip()


def format_zero_shot(results: Mapping[str, ZeroShot]) -> str:
    """A line per model: its accuracy with its 95 % interval, and its share of the first one's.

    Args:
        results: by model, on the same pictures.
    """
    lines, first = [], next(iter(results.values()))
    for name, result in results.items():
        accuracy = _format_mean(result.correct.double(), torch.arange(len(result.correct)))
        retained = ""
        if result is not first and first.top1:
            share = _format_interval(retention(first.correct, result.correct))
            retained = f", {share} % of the first's"
        lines.append(f"{name}: {accuracy} %{retained}")
    return "\n".join(lines)


def format_compositions(found: Mapping[str, Mapping[str, Mapping[str, Interval]]]) -> str:
    """A row per kind and model: scores in percent with their 95 % intervals, and chance.

    Args:
        found: by model, from `evaluate_compositions`.
    """
    scores = [f"{name} (chance {100 * x:.1f})" for name, x in COMPOSITION_CHANCE.items()]
    rows = [
        [kind, name, *map(_format_interval, intervals[kind].values())]
        for kind in next(iter(found.values()))
        for name, intervals in found.items()
    ]
    return format_table([["kind", "model", *scores], *rows])


def compare(before: RetrievalMetrics, after: RetrievalMetrics) -> dict[str, tuple[Gain, ...]]:
    """What each metric gains from one model to another, by direction, paired query by query."""
    gains = {}
    for way, title in WAYS.items():
        old, new = getattr(before, way), getattr(after, way)
        new_values = _values(new)
        gains[title] = tuple(
            gain
            for metric, old_values in _values(old).items()
            for gain in gain_by_group(
                old_values, new_values[metric], old.image_of_query, [metric] * len(old_values)
            )
        )
    return gains


def recall_gains(
    before: DirectionMetrics,
    after: DirectionMetrics,
    facets: Mapping[str, Sequence[str]],
    orders: Mapping[str, Sequence[str]],
) -> dict[str, tuple[Gain, ...]]:
    """The gain in Recall@1 of each group of queries under each facet.

    Args:
        before, after: one direction of two models.
        facets: by name, each query's group.
        orders: by facet, the order of its groups.
    """
    hits = before.hits().double(), after.hits().double()
    return {
        facet: gain_by_group(*hits, before.image_of_query, groups, orders.get(facet, ()))
        for facet, groups in facets.items()
    }


def say_gain(gain: Gain, what: str) -> str:
    """A gain as a sentence that claims no more than its interval allows."""
    low, high = 100 * gain.change.low, 100 * gain.change.high
    verdict = "better" if low > 0 else "worse" if high < 0 else "not known to differ"
    return (
        f"{what}: {100 * gain.before:.1f} → {100 * gain.after:.1f} %, "
        f"{100 * gain.change.estimate:+.1f} points [{low:+.1f} to {high:+.1f}]: {verdict}"
    )


@dataclass(frozen=True)
class Swing:
    """Queries under two models: indices of those won and lost, counts of the others."""

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


def won_and_lost(before: DirectionMetrics, after: DirectionMetrics) -> Swing:
    """Which queries find a right answer first under only one of two models."""
    old, new = before.hits(), after.hits()
    return Swing(
        tuple((new & ~old).nonzero().flatten().tolist()),
        tuple((old & ~new).nonzero().flatten().tolist()),
        int((old & new).sum()),
        int((~old & ~new).sum()),
    )


def draw_queries(
    chosen: Sequence[int], image_of_query: Int[Tensor, "query"], count: int, seed: int = 0
) -> list[int]:
    """A random sample of the chosen queries, at most one per picture, to show as examples."""
    drawn: dict[int, int] = {}
    generator = torch.Generator().manual_seed(seed)
    for index in torch.randperm(len(chosen), generator=generator).tolist():
        drawn.setdefault(int(image_of_query[chosen[index]]), chosen[index])
    return list(drawn.values())[:count]


# The result of a run as one record


def describe_gain(
    before: Bool[Tensor, "query"], after: Bool[Tensor, "_query"], image: Int[Tensor, "_query"]
) -> dict[str, Any]:
    """From queries' hits: difference and ratio - 1, with bootstraps over the queries' images.

    The ratio is None if `before` finds nothing.
    """
    absolute = paired_bootstrap(before, after, image, "difference")
    relative = paired_bootstrap(before, after, image, "relative") if before.any() else None
    gain = {
        "absolute": absolute.estimate,
        "ci95": [absolute.low, absolute.high],
        "relative": relative and relative.estimate,
        "relative_ci95": relative and [relative.low, relative.high],
    }
    return {"text_to_image_recall_at_1": gain}


def describe_arm(
    result: ArmResult, untouched: ArmResult, reciprocal_rank_as_map: bool = False
) -> dict[str, Any]:
    """One arm's part of the report.

    Args:
        result: of the arm.
        untouched: of CLIP.
        reciprocal_rank_as_map: reports the reciprocal rank of the best match as mean average
            precision, as the published code does (7 in `config.RECIPES`).
    """
    correct = untouched.zero_shot.correct
    retained = retention(correct, result.zero_shot.correct) if correct.any() else None
    entry: dict[str, Any] = {
        "text_to_image": result.retrieval.text_to_image.as_dict(),
        "image_to_text": result.retrieval.image_to_text.as_dict(),
        "zero_shot": {
            "top1": result.zero_shot.top1,
            "top5": result.zero_shot.top5,
            "top1_domain": result.zero_shot.top1_domain,
            "top1_never_fine_tuned": result.zero_shot.top1_other,
            "top1_held_out_style": result.held_out and result.held_out.top1,
            "retention": retained and retained.estimate,
            "retention_ci95": retained and [retained.low, retained.high],
        },
        "alpha": result.arm.alpha,
    }
    if reciprocal_rank_as_map:
        for way in WAYS:
            entry[way]["mean_average_precision"] = entry[way]["mean_reciprocal_rank"]
    return entry


def make_report(
    profile: Profile,
    results: Mapping[str, ArmResult],
    probe: ShortcutProbe | None,
    ceiling: float | None,
    seconds: float,
    trained: Collection[str],
    **more: Any,
) -> dict[str, Any]:
    """Gathers a run's result.

    Args:
        profile: its settings, all of which go under "settings".
        results: by arm: "clip", the control and the recipe's, and perhaps more.
        probe: of the teacher; None where the recipe has none.
        ceiling: text→image Recall@1 that a perfect model could reach; None where unknown.
        seconds: since the run was last started.
        trained: the arms that were trained in this run; the others were loaded.
        more: further entries.
    """

    def gain(before: str, after: str) -> dict[str, Any]:
        if before == after:  # the control has no gain over itself
            return {"text_to_image_recall_at_1": None}
        old, new = (results[name].retrieval.text_to_image for name in (before, after))
        return describe_gain(old.hits(1), new.hits(1), new.image_of_query)

    return {
        "profile": profile.name,
        "trained_in_this_run": bool(trained),
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(peak_memory_mb()),
        "arms": {
            name: describe_arm(result, results["clip"], profile.reciprocal_rank_as_map)
            | {"trained": name in trained}
            for name, result in results.items()
        },
        "gain": gain("clip", profile.recipe),
        "gain_over_control": gain(CONTROL, profile.recipe),
        "gain_of_control": gain("clip", CONTROL),
        "teacher_probe": probe and asdict(probe),
        "ceiling": ceiling,
        **more,
        "settings": profile.as_dict(),
    }


def measure_fresh(
    arms: Mapping[str, Arm], recipe: str, count: int = 2000, size: int = 1000
) -> dict[str, Any]:
    """An arm's gain on further pocket scenes, which no choice was made on: a report's "fresh".

    Args:
        arms: must include "clip", the control and the recipe's.
        recipe: the arm whose gain is measured.
        count: the number of scenes, drawn on first use.
        size: of a gallery.
    """
    scenes = pocket.load_captioned("further_test", count)
    galleries = prepare_galleries(arms["clip"].clip, scenes, size)
    results = {
        name: measure_galleries(encode_galleries(arms[name].clip, galleries))["text_to_image"]
        for name in ("clip", CONTROL, recipe)
    }
    recipe_result = results[recipe]
    return {
        "pictures": count,
        "gallery": size,
        "recall_at_1": {name: result.figures["recall_at_1"] for name, result in results.items()},
        "gain": describe_gain(results["clip"].hits, recipe_result.hits, recipe_result.image),
        "gain_over_control": describe_gain(
            results[CONTROL].hits, recipe_result.hits, recipe_result.image
        ),
    }


def say_luck(train_text: bool) -> str:
    """A sentence on what an interval over pictures does not cover, with measured numbers.

    `python -m assets.make.seed_luck` measured them: the standard deviation of one training's
    Recall@1, and how many pairs of trainings that differ only in their seed it told apart.

    Args:
        train_text: whether the text encoder trains, too.
    """
    percent, distinguished, pairs = ("3 to 4", 9, 36) if train_text else ("1", 14, 166)
    advice = "; train it with several seeds before you believe a small gain" if train_text else ""
    return (
        "Intervals know the pictures and not the luck of a training: with another seed, Recall@1 "
        f"was another by {percent} % of itself (standard deviation), and of {pairs} pairs of such "
        f"trainings {distinguished} were told apart{advice}."
    )


def format_report(report: Mapping[str, Any]) -> str:
    """Formats a report: a Markdown table, then sentences; shares in percent.

    Args:
        report: from `make_report`, or read from JSON; older ones have fewer settings. That of a run
            from pictures alone has no table.
    """
    if report.get("captions") == "none":
        return "\n".join(say_from_pictures(report))
    rows = [
        [
            *("arm", "t→i R@1", "R@5", "R@10", "MAP", "i→t R@1", "R@5", "R@10", "MAP"),
            *("zero-shot", "held-out style", "retention [95 %]", "weight α"),
        ]
    ]
    for name, arm in report["arms"].items():
        zero_shot, shares = arm["zero_shot"], []
        for side in (arm["text_to_image"], arm["image_to_text"]):
            shares += [*side["recall_at"].values(), side["mean_average_precision"]]
        shares += [zero_shot["top1"], zero_shot["top1_held_out_style"]]
        low, high = zero_shot["retention_ci95"] or (None, None)
        retained = f"{_percent(zero_shot['retention'])} [{_percent(low)}, {_percent(high)}]"
        alpha = "–" if arm["alpha"] is None else f"{arm['alpha']:.2f}"
        rows.append([name, *map(_percent, shares), retained, alpha])
    return "\n".join([format_table(rows), "", *say_report(report)])


def say_report(report: Mapping[str, Any]) -> list[str]:
    """The sentences below a report's table."""
    settings, lines = report.get("settings", {}), []
    if settings.get("reciprocal_rank_as_map"):
        lines.append(
            "MAP here is what the published code calls so: the mean reciprocal rank (MRR) of the "
            "best match, and no mean average precision."
        )
    for key, rival in (("gain", "clip"), ("gain_over_control", CONTROL)):
        if gain := report[key]["text_to_image_recall_at_1"]:
            (low, high), share = gain["ci95"], gain["relative"]
            more = "" if share is None else f", {100 * share:+.1f} % relative"
            lines.append(
                f"{settings.get('recipe', 'dclip')} over {rival}, text→image R@1: "
                f"{100 * gain['absolute']:+.1f} points (95 % interval {100 * low:+.1f} to "
                f"{100 * high:+.1f}){more}."
            )
    lines.append(say_luck(settings.get("student", {}).get("train_text", False)))
    if report["teacher_probe"]:
        lines.append(format_probe(report["teacher_probe"]))
    origin = "trained in this run" if report["trained_in_this_run"] else "loaded, not trained"
    cost = f"{report['seconds']:.0f} s, {report['peak_memory_mb']:.0f} MB at most"
    return [*lines, f"Profile {report['profile']}, {origin}: {cost}."]


def say_from_pictures(report: Mapping[str, Any]) -> list[str]:
    """The report of a run from pictures alone, as sentences."""
    before, after = report["zero_shot"].values()
    kept = report["retention"]
    share = ""
    if kept:
        share = f", {kept['estimate']:.0%} of it [{kept['low']:.0%}, {kept['high']:.0%}]"
    advice = []
    if kept and kept["high"] < report["least_retention"]:
        advice.append(
            "It has forgotten much; take a lower --student.learning-rate, or fewer epochs."
        )
    return [
        f"Learned from {report['pictures']:,} pictures without captions, compared with "
        f"{report['anchors']:,} texts.",
        report["teacher"],
        f"Half of the new weights are kept (α = {report['alpha']:g}), since no captioned pictures "
        "could choose.",
        f"Zero-shot accuracy: {100 * before:.1f} % before, {100 * after:.1f} % now{share}.",
        *advice,
        "What it finds was not measured: evaluate --data measures it with captioned pictures.",
    ]


def format_probe(probe: Mapping[str, float]) -> str:
    """A `ShortcutProbe`'s shares as a sentence."""
    shares = ", ".join(f"{name} {_percent(share)}" for name, share in probe.items())
    return f"Teacher's R@1 with its own, another picture's and blank regions: {shares}."


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
