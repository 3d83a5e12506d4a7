"""How much the results of trainings vary with the seed: `python -m assets.make.seed_luck`.

Intervals are bootstraps over pictures, which do not cover the luck of a training. Here trainings of
one recipe are compared as if they were of two. Without such luck, one would beat the other, beyond
a 95 % interval, in one of twenty pairs. The trainings are those of studies with several seeds, and
a larger number of short ones: `python -m assets.make.seed_luck WORK` trains and measures what the
folder WORK does not have yet, and writes seed_luck.json beside the studies. It can be stopped at
any time, and called again.
"""

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assets.make.study import has_record, pack_counts, read_study, unpack_counts
from assets.make.study_summary import at_alpha, at_retention
from dclip_kit.config import CONTROL, Profile, apply_recipe, change_settings, get_profile
from dclip_kit.data.pocket import world as pocket
from dclip_kit.evaluation.compare import format_table
from dclip_kit.evaluation.evaluate import (
    WAYS,
    RetrievalSet,
    encode_galleries,
    measure_galleries,
    prepare_galleries,
)
from dclip_kit.evaluation.experiment import prepare_terms
from dclip_kit.features.extract import encode_pictures
from dclip_kit.metrics import Interval, paired_bootstrap
from dclip_kit.models.clip import ClipBundle, load_clip
from dclip_kit.models.weights import interpolate
from dclip_kit.runtime.files import asset_path, read_record, write_record
from dclip_kit.runtime.printing import say
from dclip_kit.training import distill
from dclip_kit.training.lessons import prepare_rehearsal

SEEDS = 20
ALPHAS = (0.6, 1.0)  # weights of the students; val chooses 0.6 for the control in pocket_table
# An epoch of a hundred steps, each of fewer pictures than the recipe has.
SHORT = {"student": {"batch_size": 40, "rehearsal_batch": 20, "epochs": 1}}
_Z = NormalDist().inv_cdf(0.975)  # half widths of 95 % intervals, in standard deviations


# Comparing


def _half(gain: Interval) -> float:
    return (gain.high - gain.low) / 2


def _score(gain: Interval) -> float:
    """A gain in standard deviations over pictures."""
    half = _half(gain)
    return _Z * gain.estimate / half if half else inf if gain.estimate else 0.0


@dataclass(frozen=True)
class Trainings:
    """Trainings that differ in their seed alone, on the same pictures.

    Attributes:
        recall_at_1: of each.
        gains: of each later training over each earlier one, with 95 % intervals over pictures, in
            the order of `itertools.combinations`.
    """

    recall_at_1: tuple[float, ...]
    gains: tuple[Interval, ...]

    @property
    def disjoint(self) -> "Trainings":
        """With only the gains of the second over the first, the fourth over the third, …"""
        pairs = list(combinations(range(len(self.recall_at_1)), 2))
        gains = [
            gain
            for (a, b), gain in zip(pairs, self.gains, strict=True)
            if a % 2 == 0 and b == a + 1
        ]
        return replace(self, gains=tuple(gains))

    @property
    def beaten(self) -> int:
        """The number of pairs in which one beats the other beyond the interval."""
        return sum(gain.low > 0 or gain.high < 0 for gain in self.gains)

    @property
    def half_width(self) -> float:
        """The mean half width of the intervals."""
        return fmean(map(_half, self.gains))

    @property
    def factor(self) -> float:
        """How many times wider an interval must be to cover the luck of both trainings, too.

        The root mean square of gains in standard deviations over pictures: 1 without such luck.
        """
        return fmean(_score(gain) ** 2 for gain in self.gains) ** 0.5

    @property
    def scatter(self) -> float:
        """The variance of Recall@1 between seeds, as a share of it, squared."""
        return (stdev(self.recall_at_1) / fmean(self.recall_at_1)) ** 2

    @property
    def of_pictures(self) -> float:
        """The mean part of `scatter` that is due to the pictures, according to the intervals."""
        gain = fmean((_half(gain) / _Z) ** 2 for gain in self.gains)
        return gain / 2 / fmean(self.recall_at_1) ** 2

    def beaten_if_wider(self, variance: float) -> int:
        """As `beaten`, by intervals that cover this variance of both trainings, too."""
        added = 2 * variance * (_Z * fmean(self.recall_at_1)) ** 2
        return sum(gain.estimate**2 > _half(gain) ** 2 + added for gain in self.gains)


def compare_trainings(
    hits: Sequence[Float[Tensor, "image"]], queries: Float[Tensor, "image"]
) -> Trainings:
    """Compares every two trainings as reports compare two arms.

    Relative gains would beat in the same pairs: in each resample, they have the difference's sign.

    Args:
        hits: for each training, how many queries of each picture find a right answer first.
        queries: the number of queries of each picture.
    """
    image = torch.arange(len(queries)).repeat_interleave(queries.long())
    # For each query; a picture's queries share its mean, since they are resampled together.
    shares = [(training_hits / queries.clamp(min=1))[image] for training_hits in hits]
    return Trainings(
        tuple(float(training_hits.sum() / queries.sum()) for training_hits in hits),
        tuple(paired_bootstrap(*pair, image) for pair in combinations(shares, 2)),
    )


@dataclass(frozen=True)
class Luck:
    """Several groups of trainings pooled; the weight of each is the number of its seeds - 1.

    Attributes:
        pairs, beaten: sums over the groups.
        factor: as in `Trainings`.
        deviation: of one training's Recall@1, without that of pictures, as a share of it; 0 if
            seeds scatter no more than pictures explain.
    """

    pairs: int
    beaten: int
    factor: Interval
    deviation: Interval

    @property
    def share_beyond(self) -> float:
        """The share of pairs in which one beats the other, as expected from the factor."""
        return 2 * NormalDist().cdf(-_Z / self.factor.estimate) if self.factor.estimate else 0.0


def pool(groups: Sequence[Trainings]) -> Luck:
    """Pools trainings of one recipe or of several.

    The 95 % intervals are those of a variance (chi-squared), as if all groups had the same luck.
    """
    degrees = [len(group.recall_at_1) - 1 for group in groups]
    ratios = np.random.default_rng(0).chisquare(sum(degrees), 100_000) / sum(degrees)
    low, high = (1 / float(x) for x in np.quantile(ratios, (0.975, 0.025)))

    def average(values: Iterable[float]) -> float:
        return sum(n * x for n, x in zip(degrees, values, strict=True)) / sum(degrees)

    squared = average(group.factor**2 for group in groups)
    scatter = average(group.scatter for group in groups)
    of_pictures = average(group.of_pictures for group in groups)
    return Luck(
        sum(len(group.gains) for group in groups),
        sum(group.beaten for group in groups),
        Interval(*((squared * x) ** 0.5 for x in (1, low, high))),
        Interval(*(max(0.0, scatter * x - of_pictures) ** 0.5 for x in (1, low, high))),
    )


# The studies' trainings


@dataclass(frozen=True)
class StudiedArm:
    """An arm of a study with several seeds.

    Attributes:
        name, study: of the arm; if several studies have a training, of the first.
        trained_text: whether its text tower trained, too.
        alphas: that val chose, by seed.
        found: by "chosen" (at these alphas) or "95.5" (at that retention), and direction.
    """

    name: str
    study: str
    trained_text: bool
    alphas: tuple[float, ...]
    found: dict[str, dict[str, Trainings]]


def read_studies(folder: Path) -> list[StudiedArm]:
    """Compares the seeds of each arm; trainings in several arms or studies count once."""
    arms, counted = [], set()
    for path in sorted(folder.glob("*.toml")):
        study = read_study(path)
        for arm in study.arms:
            seeds = [seed for seed in study.seeds_of(arm) if has_record(study, arm, seed)]
            # Arms that can no longer be trained are described by their names alone.
            settings = replace(arm, name="", rescoring=None).describe(0) or arm.name
            key = json.dumps(settings, sort_keys=True)
            if arm.rescoring or len(seeds) < 2 or key in counted:
                continue
            counted.add(key)
            records = [read_record(study.record_of(arm, seed), dict) for seed in seeds]
            hits = {
                "chosen": [at_alpha(record, record["alpha"]) for record in records],
                "95.5": [at_retention(record) for record in records],
            }
            queries = {way: unpack_counts(records[0]["queries"][way]) for way in WAYS}
            trainings = {
                point: {
                    way: compare_trainings([record[way] for record in point_hits], queries[way])
                    for way in WAYS
                }
                for point, point_hits in hits.items()
            }
            student = records[0]["settings"]["profile"]["student"]
            alphas = tuple(record["alpha"] for record in records)
            arms.append(StudiedArm(arm.name, path.stem, student["train_text"], alphas, trainings))
    return arms


# Short trainings


def shorten(seed: int) -> Profile:
    """The control on the pocket, shortened to train within a minute or two."""
    profile = change_settings(apply_recipe(get_profile("pocket"), CONTROL), SHORT)
    return replace(profile, seed=seed)


def measure_hits(
    clip: ClipBundle, sets: Mapping[str, Sequence[RetrievalSet]]
) -> dict[str, dict[str, str]]:
    """By set and direction, how many queries of each picture find a right answer first."""
    hits = {}
    for name, galleries in sets.items():
        metrics_by_way = measure_galleries(encode_galleries(clip, galleries))
        hits[name] = {
            way: pack_counts(torch.bincount(metrics.image, metrics.hits.double()))
            for way, metrics in metrics_by_way.items()
        }
    return hits


def train(work: Path) -> None:
    """Trains and measures, on one thread, what has no record in a folder yet."""
    torch.set_num_threads(1)
    clip, profile = load_clip("pocket"), shorten(0)
    captioned = encode_pictures(clip, pocket.load_captioned("train"), profile.regions, work)
    rehearsal = prepare_rehearsal(clip, captioned, profile.regions)
    sets = {
        "test": prepare_galleries(clip, pocket.load_captioned("test"), 1000),
        "further": prepare_galleries(clip, pocket.load_captioned("further_test", 2000), 1000),
    }
    write_record({"hits": measure_hits(clip, sets)}, work / "clip.json")
    for seed in range(SEEDS):
        path = work / f"{CONTROL}-{seed}.json"
        if path.exists():
            continue
        began, profile = time.monotonic(), shorten(seed)
        terms = prepare_terms(profile, clip, captioned, rehearsal=rehearsal)
        run = distill(clip, captioned, terms, profile.student, seed=seed)
        seconds = round(time.monotonic() - began, 1)
        hits = {
            str(alpha): measure_hits(interpolate(clip, run.student, alpha), sets)
            for alpha in ALPHAS
        }
        write_record({"seed": seed, "seconds": seconds, "hits": hits}, path)
        say(f"Trained with seed {seed} in {seconds:.0f} s.")


def describe_short(work: Path, seeds: int = SEEDS) -> dict[str, Any]:
    """The results of the trainings in a folder, for JSON.

    Gains are those of `Trainings`: estimate, low, high.

    Args:
        work: the folder.
        seeds: the number of trainings.
    """
    records = [read_record(work / f"{CONTROL}-{seed}.json", dict) for seed in range(seeds)]
    untouched = read_record(work / "clip.json", dict)["hits"]
    queries = {"text_to_image": 5, "image_to_text": 1}  # of each picture of the pocket

    def gather(hits: Mapping[str, Mapping[str, str]], name: str, way: str) -> Tensor:
        names = untouched if name == "both" else [name]
        return unpack_counts("".join(hits[each][way] for each in names))

    def describe(alpha: str, name: str, way: str) -> dict[str, Any]:
        hits = [gather(record["hits"][alpha], name, way) for record in records]
        trainings = compare_trainings(hits, torch.full_like(hits[0], queries[way]))
        return {
            "recall_at_1": [round(x, 5) for x in trainings.recall_at_1],
            "gains": [
                [round(x, 6) for x in (gain.estimate, gain.low, gain.high)]
                for gain in trainings.gains
            ],
        }

    def share(name: str, way: str) -> float:
        return round(float(gather(untouched, name, way).mean() / queries[way]), 5)

    sets = [*untouched, "both"]
    return {
        "recipe": CONTROL,
        "changes": SHORT,
        "seconds": [each["seconds"] for each in records],
        "clip": {name: {way: share(name, way) for way in WAYS} for name in sets},
        "found": {
            alpha: {name: {way: describe(alpha, name, way) for way in WAYS} for name in sets}
            for alpha in map(str, ALPHAS)
        },
    }


def read_short(record: Mapping[str, Any]) -> dict[tuple[str, str, str], Trainings]:
    """The trainings from `describe_short`, by weight, set and direction."""
    return {
        (alpha, name, way): Trainings(
            tuple(entry["recall_at_1"]), tuple(Interval(*gain) for gain in entry["gains"])
        )
        for alpha, sets in record["found"].items()
        for name, ways in sets.items()
        for way, entry in ways.items()
    }


# Tables

_LABELS = {"text_to_image": "t→i", "image_to_text": "i→t"}


_POOLED = ["beaten", "if wider", "luck, %", "factor", "expected, %"]


def _say(groups: Sequence[Trainings], luck: Luck | None = None) -> list[str]:
    """Cells on pooled groups, and how many pairs are beaten by intervals that cover a luck."""
    pooled = pool(groups)
    deviation = (luck or pooled).deviation.estimate
    low, high = pooled.deviation.low, pooled.deviation.high
    return [
        f"{pooled.beaten} of {pooled.pairs}",
        str(sum(group.beaten_if_wider(deviation**2) for group in groups)),
        f"{100 * pooled.deviation.estimate:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
        f"{pooled.factor.estimate:.2f} [{pooled.factor.low:.2f}, {pooled.factor.high:.2f}]",
        f"{100 * pooled.share_beyond:.0f}",
    ]


def format_arms(arms: Sequence[StudiedArm], point: str) -> str:
    """A row per arm: Recall@1 by seed, its deviation and half widths in points, pairs beaten."""
    rows = [["arm", "α", *(x for way in _LABELS.values() for x in (way, "sd", "half", "beaten"))]]
    for arm in arms:
        cells = [arm.name, " ".join(f"{alpha:g}" for alpha in arm.alphas)]
        for trainings in arm.found[point].values():
            cells += [
                " ".join(f"{100 * x:.1f}" for x in trainings.recall_at_1),
                f"{100 * stdev(trainings.recall_at_1):.2f}",
                f"{100 * trainings.half_width:.2f}",
                f"{trainings.beaten} of {len(trainings.gains)}",
            ]
        rows.append(cells)
    return format_table(rows)


def choose_groups(
    arms: Sequence[StudiedArm], short: Mapping[str, Any], text: bool, point: str, way: str
) -> list[Trainings]:
    """The groups to pool: arms of one kind, and the short trainings at the first weight."""
    groups = [arm.found[point][way] for arm in arms if arm.trained_text == text]
    return groups if text else [*groups, read_short(short)[str(ALPHAS[0]), "both", way]]


def format_pools(arms: Sequence[StudiedArm], short: Mapping[str, Any]) -> str:
    """Pooled arms, by what trained and by direction, without and with the short trainings."""
    rows = [["trained", "at", "", "groups", *_POOLED]]
    for text in (False, True):
        for point in ("chosen", "95.5"):
            for way, label in _LABELS.items():
                groups = choose_groups(arms, short, text, point, way)
                arm_groups = groups if text else groups[:-1]
                tower = "text, too" if text else "images"
                rows.append([tower, point, label, str(len(arm_groups)), *_say(arm_groups)])
                if not text:
                    name = f"{tower}, and short"
                    rows.append([name, point, label, str(len(groups)), *_say(groups)])
    return format_table(rows)


def count_beaten(
    arms: Sequence[StudiedArm], short: Mapping[str, Any], text: bool
) -> tuple[int, int]:
    """The pairs that an interval told apart and all pairs, at the weights that val chose.

    Both directions count. Each seed of the short trainings is in one pair, on test and on further
    scenes.
    """
    kind_arms = [arm for arm in arms if arm.trained_text == text]
    groups = [trainings for arm in kind_arms for trainings in arm.found["chosen"].values()]
    if not text:
        trainings = read_short(short)
        keys = [(str(ALPHAS[0]), name, way) for name in ("test", "further") for way in WAYS]
        groups += [trainings[key].disjoint for key in keys]
    return sum(group.beaten for group in groups), sum(len(group.gains) for group in groups)


def format_short(short: Mapping[str, Any], arms: Sequence[StudiedArm] = ()) -> str:
    """A row per weight, set and direction of the short trainings.

    Args:
        short: from `describe_short`.
        arms: whose luck the wider intervals cover; without any, it is the row's own.
    """
    rows = [["α", "set", "", "clip", "R@1", "sd", "half", "of two", *_POOLED]]
    for (alpha, name, way), trainings in read_short(short).items():
        disjoint = trainings.disjoint
        arm_groups = [arm.found["chosen"][way] for arm in arms if not arm.trained_text]
        rows.append(
            [
                *(alpha, name, _LABELS[way], f"{100 * short['clip'][name][way]:.1f}"),
                f"{100 * fmean(trainings.recall_at_1):.1f}",
                f"{100 * stdev(trainings.recall_at_1):.2f}",
                f"{100 * trainings.half_width:.2f}",
                f"{disjoint.beaten} of {len(disjoint.gains)}",
                *_say([trainings], pool(arm_groups) if arm_groups else None),
            ]
        )
    return format_table(rows)


def widen(half_width: float, gain: float, deviations: Sequence[float], trainings: int = 1) -> float:
    """The half width of a relative gain's interval that covers the luck of trainings, too.

    Args:
        half_width: over pictures.
        gain: of one arm over another; relative, like the half width.
        deviations: of one training's Recall@1, as a share of it, for each arm that trained.
        trainings: the number that each arm's result is the mean of.
    """
    luck = _Z * (1 + gain) * sum(deviation**2 for deviation in deviations) ** 0.5
    return (half_width**2 + luck**2 / trainings) ** 0.5


def format_wider(
    arms: Sequence[StudiedArm], short: Mapping[str, Any], table: Mapping[str, Any]
) -> str:
    """Relative gains of some arms, and half widths with the luck of the trainings, in percent.

    Rows are for single trainings at the weights that val chose, with widths scaled to a report's
    number of pictures, and for the table's means over three trainings, at one retention.

    Args:
        arms, short: whose luck counts, as in `choose_groups`.
        table: the summary of a study's records.
    """
    rows = [["", "pictures", "trainings"]]
    for label in _LABELS.values():
        rows[0] += [f"{label} gain", "half width", "with luck", "factor"]
    text = {arm.name: arm.trained_text for arm in arms}
    for arm_name, rival in (
        ("region_taught", "clip"),
        ("region_taught", CONTROL),
        ("region_taught_text", "contrastive_rehearsal_text"),
    ):
        for pictures, trainings in ((1000, 1), (2000, 1), (4000, 3)):
            point, key = ("chosen", "chosen") if trainings == 1 else ("95.5", "at_95_5")
            cells = [f"{arm_name} over {rival}", f"{pictures:,}", str(trainings)]
            for way in WAYS:
                gain = table["arms"][arm_name][key][way]["vs"][rival]
                low, high = gain["ci95"]
                half = (high - low) / 2 * (4000 / pictures) ** 0.5
                groups = choose_groups(arms, short, text[arm_name], point, way)
                trained_arms = 1 if rival == "clip" else 2
                deviations = [pool(groups).deviation.estimate] * trained_arms
                wider = widen(half, gain["relative"], deviations, trainings)
                shares = (gain["relative"], half, wider)
                cells += [*(f"{100 * x:.1f}" for x in shares), f"{wider / half:.2f}"]
            rows.append(cells)
    return format_table(rows)


def main(work: str = "") -> None:
    """Prints tables from the records; with a folder, trains first."""
    folder = asset_path("studies")
    path = folder / "seed_luck.json"
    if work:
        train(Path(work))
        write_record(describe_short(Path(work)), path)
    arms, short = read_studies(folder), read_record(path, dict)
    table = read_record(folder / "pocket_table.json", dict)
    for point in ("chosen", "95.5"):
        say(f"Studies, at {point}:\n\n{format_arms(arms, point)}\n")
    say(f"Short trainings:\n\n{format_short(short, arms)}\n")
    say(f"Together:\n\n{format_pools(arms, short)}\n")
    for text, label in ((False, "Images"), (True, "Text, too")):
        beaten, pairs = count_beaten(arms, short, text)
        say(f"{label}: of {pairs} pairs of trainings {beaten} are told apart.")
    say(f"\nGains:\n\n{format_wider(arms, short, table)}\n")
    say(
        "beaten: pairs of seeds with an interval that leaves out zero; of two: of seeds 0 and 1, 2 "
        "and 3, …\nif wider: the same by intervals that hold the luck of both trainings, too\n"
        "luck: standard deviation of what one training finds, as a share of it\n"
        "factor: by which half widths have to grow; expected: share of pairs beaten without that"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
