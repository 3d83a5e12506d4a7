"""Summarises a study's records: compares its arms at one retention."""

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
from dclip_kit.metrics import change_of_means, paired_bootstrap, resample_sums
from dclip_kit.runtime.files import read_record


def summarise(study: Study) -> dict[str, Any]:
    """Summarises all records of a study; arms without any are left out.

    Arms are compared at one retention, by linear interpolation of each one's frontier between its
    weights α. A picture's values are averaged over seeds; intervals are bootstraps over pictures.

    Raises:
        ValueError: a record is damaged or has other settings than the study, or records are of
            different pictures.
    """
    records: dict[str, list[dict[str, Any]]] = {}
    for arm in study.arms:
        seeds = [seed for seed in study.seeds_of(arm) if has_record(study, arm, seed)]
        arm_records = [read_record(study.record_of(arm, seed), dict) for seed in seeds]
        if arm_records:
            records[arm.name] = arm_records
    pictures = {  # must be the same for all arms, to be paired
        name: {(*run["queries"].values(), len(run["chosen"]["correct"])) for run in runs}
        for name, runs in records.items()
    }
    for name, counts in pictures.items():
        if counts != pictures["clip"]:
            raise ValueError(
                f"Expected records of the same pictures beside {study.path}, but {name} was "
                "measured on others than clip; delete the older records, and run the study again."
            )
    hits_at_retention = {
        name: [at_retention(run) for run in runs] for name, runs in records.items()
    }
    hits_at_chosen = {
        name: [at_alpha(run, run["alpha"]) for run in runs] for name, runs in records.items()
    }
    arms = {
        name: {
            "runs": [
                {key: run[key] for key in ("seed", "settings_digest", "steps", "seconds", "alpha")}
                | {
                    way: float(hits[way].sum() / unpack_counts(run["queries"][way]).sum())
                    for way in WAYS
                }
                for run, hits in zip(runs, hits_at_retention[name], strict=True)
            ],
            "frontier": _average_frontiers(runs),
            "at_95_5": _compare(name, hits_at_retention, records),
            "chosen": _describe_chosen(_compare(name, hits_at_chosen, records), runs, records),
            "val": sum(_on_val(run) for run in runs) / len(runs),
            "probe": runs[0]["probe"],
            **_average_hubness(runs),
            **_compare_compositions(name, records),
        }
        for name, runs in records.items()
    }
    return {"profile": study.profile.name, "seeds": list(study.seeds), "arms": arms}


def at_alpha(record: Mapping[str, Any], alpha: float) -> dict[str, Tensor]:
    point = next(entry for entry in record["frontier"] if entry["alpha"] == alpha)
    return {way: unpack_counts(point["hits"][way]) for way in WAYS}


def at_retention(record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Hits by direction and picture at `RETENTION`."""
    before, after, share = _find_retention(record["frontier"])
    old, new = (at_alpha(record, point["alpha"]) for point in (before, after))
    return {way: torch.lerp(old[way], new[way], share) for way in WAYS}


def _on_val(record: Mapping[str, Any]) -> float:
    """Text→image Recall@1 on val at `RETENTION`, which settings are chosen by."""
    before, after, share = _find_retention(record["val"])
    return before["recall_at_1"] + share * (after["recall_at_1"] - before["recall_at_1"])


def _find_retention(points: Sequence[Any]) -> tuple[Any, Any, float]:
    """Two points of a frontier, and how far between them it first falls to `RETENTION`.

    If it never does, both are its last point.
    """
    for before, after in pairwise(points):
        if after["retention"] < RETENTION:
            fall = before["retention"] - after["retention"]
            return before, after, (before["retention"] - RETENTION) / fall
    return points[-1], points[-1], 0.0


def _compare(
    name: str,
    hits: Mapping[str, Sequence[Mapping[str, Tensor]]],
    records: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """An arm's Recall@1 by direction, and what it gains over each other arm."""

    result: dict[str, Any] = {}
    for way in WAYS:
        queries = unpack_counts(records[name][0]["queries"][way])  # all arms have the same pictures
        image = torch.arange(len(queries)).repeat_interleave(queries.long())
        # For each query, averaged over seeds; a picture's queries share its mean.
        shares = {
            arm: (torch.stack([run[way] for run in runs]).mean(0) / queries.clamp(min=1))[image]
            for arm, runs in hits.items()
        }
        *sums, counts = resample_sums(torch.stack([*shares.values()], dim=1), image).unbind(dim=1)
        found, versus = dict(zip(shares, sums, strict=True)), {}
        for rival in [rival for rival in shares if rival != name and shares[rival].any()]:
            gain = change_of_means(found[rival], found[name], counts, "relative")
            versus[rival] = {"relative": gain.estimate, "ci95": [gain.low, gain.high]}
        result[way] = {"recall_at_1": float(shares[name].mean()), "vs": versus}
    return result


def _describe_chosen(
    compared: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    records: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """What an arm finds and retains at the weights that val chose, averaged over seeds."""

    ways = {
        way: {
            metric: sum(run["chosen"][way][metric] for run in runs) / len(runs)
            for metric in runs[0]["chosen"][way]
        }
        | retrieval
        for way, retrieval in compared.items()
    }
    correct = torch.stack([unpack_counts(run["chosen"]["correct"]) for run in runs]).mean(0)
    base = unpack_counts(records["clip"][0]["chosen"]["correct"])
    interval = paired_bootstrap(base, correct, torch.arange(len(base)), "ratio")
    return {
        **ways,
        "retention": {"estimate": interval.estimate, "ci95": [interval.low, interval.high]},
    }


def _average_hubness(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    key = "skewness_of_k_occurrence"
    if not all(run.get(key) for run in runs):  # arms without rescoring
        return {}
    return {
        key: {
            way: {
                moment: fmean(run[key][way][moment] for run in runs)
                for moment in ("before", "after")
            }
            for way in WAYS
        }
    }


def _compare_compositions(
    name: str, records: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """The shares of items that an arm tells apart, and its gains over the other arms."""
    compositions = {
        arm: [run["compositions"] for run in runs]
        for arm, runs in records.items()
        if all(run.get("compositions") for run in runs)
    }
    if name not in compositions:
        return {}

    def describe(kind: str, score: str) -> dict[str, Any]:
        shares = {
            arm: torch.stack([unpack_counts(run[kind][score]) for run in runs]).mean(0)
            for arm, runs in compositions.items()
        }
        own_shares = shares.pop(name)
        item = torch.arange(len(own_shares))
        interval = paired_bootstrap(torch.zeros_like(own_shares), own_shares, item)
        gains = {arm: paired_bootstrap(rival, own_shares, item) for arm, rival in shares.items()}
        versus = {
            arm: {"difference": gain.estimate, "ci95": [gain.low, gain.high]}
            for arm, gain in gains.items()
        }
        return {"estimate": interval.estimate, "ci95": [interval.low, interval.high], "vs": versus}

    return {
        "compositions": {
            kind: {score: describe(kind, score) for score in scores}
            for kind, scores in compositions[name][0].items()
        }
    }


def _average_frontiers(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    names = ("alpha", *WAYS, "retention", "retention_held_out_style")
    return [
        {
            name: None
            if points[0][name] is None
            else sum(point[name] for point in points) / len(points)
            for name in names
        }
        for points in zip(*(run["frontier"] for run in runs), strict=True)
    ]


def format_repeated(study: Study, work: Path, name: str, seed: int) -> str:
    """The result of a repeated training beside that of its record, by weight α."""
    arm = next(candidate for candidate in study.arms if candidate.name == name)
    paths = [study.record_of(arm, seed), work / "repeated" / f"{name}-{seed}.json"]
    before, now = (
        {point["alpha"]: point for point in read_record(path, dict)["frontier"]} for path in paths
    )
    names = (*WAYS, "retention")
    rows = [["α", *(f"{name}, now" for name in names)]]
    for alpha in sorted(before.keys() & now.keys()):
        pairs = ((before[alpha][key], now[alpha][key]) for key in names)
        rows.append([f"{alpha:g}", *(f"{100 * old:.1f}, {100 * new:.1f}" for old, new in pairs)])
    return format_table(rows)
