"""What a study's records say together: arms beside each other, at one retention."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from assets.make.study import Study, has_record, unpack_counts
from dclip_kit.evaluation.compare import format_table
from dclip_kit.evaluation.evaluate import WAYS
from dclip_kit.evaluation.study_table import RETENTION
from dclip_kit.metrics import paired_bootstrap
from dclip_kit.runtime.files import read_record


def summarise(study: Study) -> dict[str, Any]:
    """What all records of a study say together; arms without any are left out.

    Arms are compared at one retention, read off each one's frontier linearly between its weights
    α; values of a picture are averaged over seeds, and intervals are bootstraps over pictures.

    Raises:
        ValueError: a record is damaged, or of other settings than the study's, or pictures have
            come or gone between two.
    """
    kept: dict[str, list[dict[str, Any]]] = {}
    for arm in study.arms:
        seeds = [seed for seed in study.seeds_of(arm) if has_record(study, arm, seed)]
        found = [read_record(study.record_of(arm, seed), dict) for seed in seeds]
        if found:
            kept[arm.name] = found
    pictures = {  # the same for all arms, else nothing is paired
        name: {(*each["queries"].values(), len(each["chosen"]["correct"])) for each in own}
        for name, own in kept.items()
    }
    for name, each in pictures.items():
        if each != pictures["clip"]:
            raise ValueError(
                f"Expected records of the same pictures beside {study.path}, but {name} was "
                "measured on others than clip; delete the older records, and run the study again."
            )
    fixed = {name: [at_retention(each) for each in own] for name, own in kept.items()}
    chosen = {name: [at_alpha(each, each["alpha"]) for each in own] for name, own in kept.items()}
    arms = {
        name: {
            "runs": [
                {key: each[key] for key in ("seed", "settings_digest", "steps", "seconds", "alpha")}
                | {x: float(hits[x].sum() / unpack_counts(each["queries"][x]).sum()) for x in WAYS}
                for each, hits in zip(own, fixed[name], strict=True)
            ],
            "frontier": _average_frontiers(own),
            "at_95_5": _compare(name, fixed, kept),
            "chosen": _describe_chosen(_compare(name, chosen, kept), own, kept),
            "val": sum(_on_val(each) for each in own) / len(own),
            "probe": own[0]["probe"],
            **_average_hubness(own),
            **_compare_compositions(name, kept),
        }
        for name, own in kept.items()
    }
    return {"profile": study.profile.name, "seeds": list(study.seeds), "arms": arms}


def at_alpha(record: Mapping[str, Any], alpha: float) -> dict[str, Tensor]:
    point = next(each for each in record["frontier"] if each["alpha"] == alpha)
    return {way: unpack_counts(point["hits"][way]) for way in WAYS}


def at_retention(record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Hits by direction and picture at `RETENTION`."""
    before, after, share = _find_retention(record["frontier"])
    old, new = (at_alpha(record, each["alpha"]) for each in (before, after))
    return {way: torch.lerp(old[way], new[way], share) for way in WAYS}


def _on_val(record: Mapping[str, Any]) -> float:
    """Text→image Recall@1 on val at `RETENTION`: what settings are chosen by."""
    before, after, share = _find_retention(record["val"])
    return before["recall_at_1"] + share * (after["recall_at_1"] - before["recall_at_1"])


def _find_retention(points: Sequence[Any]) -> tuple[Any, Any, float]:
    """Two points of a frontier, and how far between them it first falls to `RETENTION`.

    Where it never does, that is its end.
    """
    for before, after in pairwise(points):
        if after["retention"] < RETENTION:
            fall = before["retention"] - after["retention"]
            return before, after, (before["retention"] - RETENTION) / fall
    return points[-1], points[-1], 0.0


def _compare(
    name: str,
    found: Mapping[str, Sequence[Mapping[str, Tensor]]],
    kept: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """An arm's Recall@1 by direction, and what it gains over each other arm."""

    result: dict[str, Any] = {}
    for way in WAYS:
        queries = unpack_counts(kept[name][0]["queries"][way])  # all arms have the same pictures
        image = torch.arange(len(queries)).repeat_interleave(queries.long())
        # Of each query, on average over seeds; queries of a picture share its mean.
        shares = {
            arm: (torch.stack([each[way] for each in own]).mean(0) / queries.clamp(min=1))[image]
            for arm, own in found.items()
        }
        mine, versus = shares.pop(name), {}
        for other, theirs in shares.items():
            if theirs.any():
                gain = paired_bootstrap(theirs, mine, image, "relative")
                versus[other] = {"relative": gain.estimate, "ci95": [gain.low, gain.high]}
        result[way] = {"recall_at_1": float(mine.mean()), "vs": versus}
    return result


def _describe_chosen(
    compared: Mapping[str, Any],
    own: Sequence[Mapping[str, Any]],
    kept: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """What an arm finds and retains at the weights that val chose, averaged over seeds."""

    ways = {
        way: {
            metric: sum(each["chosen"][way][metric] for each in own) / len(own)
            for metric in own[0]["chosen"][way]
        }
        | found
        for way, found in compared.items()
    }
    correct = torch.stack([unpack_counts(each["chosen"]["correct"]) for each in own]).mean(0)
    base = unpack_counts(kept["clip"][0]["chosen"]["correct"])
    share = paired_bootstrap(base, correct, torch.arange(len(base)), "ratio")
    return {**ways, "retention": {"estimate": share.estimate, "ci95": [share.low, share.high]}}


def _average_hubness(own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    key = "skewness_of_k_occurrence"
    if not all(each.get(key) for each in own):  # those that are not rescored
        return {}
    return {
        key: {
            way: {x: fmean(each[key][way][x] for each in own) for x in ("before", "after")}
            for way in WAYS
        }
    }


def _compare_compositions(
    name: str, kept: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Shares of items that an arm tells apart, and how much more these are than of others."""
    asked = {
        arm: [each["compositions"] for each in own]
        for arm, own in kept.items()
        if all(each.get("compositions") for each in own)
    }
    if name not in asked:
        return {}

    def describe(kind: str, score: str) -> dict[str, Any]:
        shares = {
            arm: torch.stack([unpack_counts(each[kind][score]) for each in own]).mean(0)
            for arm, own in asked.items()
        }
        mine = shares.pop(name)
        item = torch.arange(len(mine))
        own = paired_bootstrap(torch.zeros_like(mine), mine, item)
        gains = {arm: paired_bootstrap(each, mine, item) for arm, each in shares.items()}
        versus = {
            arm: {"difference": gain.estimate, "ci95": [gain.low, gain.high]}
            for arm, gain in gains.items()
        }
        return {"estimate": own.estimate, "ci95": [own.low, own.high], "vs": versus}

    return {
        "compositions": {
            kind: {score: describe(kind, score) for score in scores}
            for kind, scores in asked[name][0].items()
        }
    }


def _average_frontiers(own: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    names = ("alpha", *WAYS, "retention", "retention_held_out_style")
    return [
        {
            name: None if row[0][name] is None else sum(each[name] for each in row) / len(row)
            for name in names
        }
        for row in zip(*(each["frontier"] for each in own), strict=True)
    ]


def format_repeated(study: Study, work: Path, name: str, seed: int) -> str:
    """What a repeated training finds beside what its record says, by weight α."""
    arm = next(each for each in study.arms if each.name == name)
    paths = [study.record_of(arm, seed), work / "repeated" / f"{name}-{seed}.json"]
    before, now = ({p["alpha"]: p for p in read_record(path, dict)["frontier"]} for path in paths)
    names = (*WAYS, "retention")
    rows = [["α", *(f"{name}, now" for name in names)]]
    for alpha in sorted(before.keys() & now.keys()):
        pairs = ((before[alpha][each], now[alpha][each]) for each in names)
        rows.append([f"{alpha:g}", *(f"{100 * old:.1f}, {100 * new:.1f}" for old, new in pairs)])
    return format_table(rows)
