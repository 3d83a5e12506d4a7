"""The result of a run as one JSON: arms, gains with intervals, the probe, what it cost."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from dclip_kit.config import Profile
from dclip_kit.evaluation.arms import ArmResult
from dclip_kit.evaluation.probe import ShortcutProbe
from dclip_kit.metrics import DirectionMetrics, Interval, paired_bootstrap, retention
from dclip_kit.runtime.files import write_atomically
from dclip_kit.runtime.machine import peak_memory_mb


def compare_recall(before: ArmResult, after: ArmResult) -> dict[str, Any]:
    """Text→image Recall@1 of two arms: difference, with a bootstrap over images, and ratio - 1."""
    first, second = before.retrieval.text_to_image, after.retrieval.text_to_image
    return describe_gain(first.hits(1), second.hits(1), second.image_of_query)


def describe_gain(
    before: Bool[Tensor, "query"], after: Bool[Tensor, "_query"], image: Int[Tensor, "_query"]
) -> dict[str, Any]:
    """From queries' hits: difference and ratio - 1, with bootstraps over the images they are of."""
    hits = before.float(), after.float()
    absolute = paired_bootstrap(*hits, image, "difference")
    relative = paired_bootstrap(*hits, image, "relative")
    return {
        "absolute": absolute.estimate,
        "ci95": [absolute.low, absolute.high],
        "relative": relative.estimate,
        "relative_ci95": [relative.low, relative.high],
    }


def arm_entry(
    result: ArmResult, untouched: ArmResult, reciprocal_rank_as_map: bool = False
) -> dict[str, Any]:
    """One arm's part of the report.

    Args:
        result: of the arm.
        untouched: of CLIP.
        reciprocal_rank_as_map: gives the reciprocal rank of the best match under the name of the
            mean average precision, as the published code does (7 in `config.RECIPES`).
    """

    def numbers(direction: DirectionMetrics) -> dict[str, Any]:
        means = {"mean_average_precision": direction.mean_reciprocal_rank}
        return direction.as_dict() | (means if reciprocal_rank_as_map else {})

    kept: Interval = retention(untouched.zero_shot.correct, result.zero_shot.correct)
    return {
        "text_to_image": numbers(result.retrieval.text_to_image),
        "image_to_text": numbers(result.retrieval.image_to_text),
        "zero_shot": {
            "top1": result.zero_shot.top1,
            "top5": result.zero_shot.top5,
            "top1_domain": result.zero_shot.top1_domain,
            "top1_never_fine_tuned": result.zero_shot.top1_other,
            "top1_held_out_style": None if result.held_out is None else result.held_out.top1,
            "retention": kept.estimate,
            "retention_ci95": [kept.low, kept.high],
        },
        "alpha": result.arm.alpha,
    }


def make_report(
    profile: Profile,
    results: Mapping[str, ArmResult],
    probe: ShortcutProbe | None,
    ceiling: float | None,
    seconds: float,
    trained_in_this_run: bool,
    **more: Any,
) -> dict[str, Any]:
    """Gathers a run's result.

    Args:
        profile: its settings, kept whole under "settings".
        results: by arm: "clip", "contrastive" and the recipe's, such as "dclip", and perhaps more.
        probe: of the teacher; None where the recipe has none.
        ceiling: text→image Recall@1 that a perfect model could reach, where that is known.
        seconds: the run took.
        trained_in_this_run: or loaded.
        more: further entries.

    Raises:
        ValueError: one of these arms is missing.
    """
    names = list(dict.fromkeys(("clip", "contrastive", profile.recipe)))
    missing = set(names) - results.keys()
    if missing:
        raise ValueError(
            f"Expected results of {', '.join(names)}, got none of {', '.join(sorted(missing))}; "
            "evaluate them too."
        )
    clip, control, arm = results["clip"], results["contrastive"], results[profile.recipe]
    over_control = None if arm is control else compare_recall(control, arm)
    return {
        "profile": profile.name,
        "trained_in_this_run": trained_in_this_run,
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(peak_memory_mb()),
        "arms": {
            name: arm_entry(result, clip, profile.reciprocal_rank_as_map)
            for name, result in results.items()
        },
        "gain": {"text_to_image_recall_at_1": compare_recall(clip, arm)},
        "gain_over_control": {"text_to_image_recall_at_1": over_control},
        "gain_of_control": {"text_to_image_recall_at_1": compare_recall(clip, control)},
        "teacher_probe": probe and asdict(probe),
        "ceiling": ceiling,
        **more,
        "settings": profile.as_dict(),
    }


def write_report(report: Mapping[str, Any], path: Path | str) -> None:
    """Writes a report atomically."""
    write_atomically(Path(path), json.dumps(report, indent=1) + "\n")


def format_report(report: Mapping[str, Any]) -> str:
    """Lays out the quickstart's `report.json`: a Markdown table, then sentences; shares in percent.

    Args:
        report: Shares are fractions; a gain's `ci95` is the interval of its absolute difference.
    """
    columns = ["arm", *("t→i R@1", "R@5", "R@10", "MAP"), *("i→t R@1", "R@5", "R@10", "MAP")]
    columns += ["zero-shot", "held-out style", "retention [95 %]", "weight α"]
    rows = [columns]
    for name, arm in report["arms"].items():
        shares = []
        for side in (arm["text_to_image"], arm["image_to_text"]):
            shares += [side["recall_at"][k] for k in ("1", "5", "10")]
            shares.append(side["mean_average_precision"])
        zero_shot = arm["zero_shot"]
        shares += [zero_shot["top1"], zero_shot["top1_held_out_style"]]
        low, high = zero_shot["retention_ci95"] or (None, None)
        kept = f"{_percent(zero_shot['retention'])} [{_percent(low)}, {_percent(high)}]"
        alpha = "–" if arm["alpha"] is None else f"{arm['alpha']:.2f}"
        rows.append([name, *map(_percent, shares), kept, alpha])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * (width - 1) + ":" for width in widths])
    padded = [[c.rjust(width) for c, width in zip(row, widths, strict=True)] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in padded] + [""]
    if report.get("settings", {}).get("reciprocal_rank_as_map"):
        lines.append(
            "MAP here is what the published code calls so: the mean reciprocal rank (MRR) of the "
            "best match, and no mean average precision."
        )
    arm = report.get("settings", {}).get("recipe", "dclip")
    for key, rival in (("gain", "clip"), ("gain_over_control", "contrastive")):
        gain = report[key]["text_to_image_recall_at_1"]
        if gain is None:  # the control has none
            continue
        low, high = gain["ci95"]
        lines.append(
            f"{arm} over {rival}, text→image R@1: {100 * gain['absolute']:+.1f} points "
            f"(95 % interval {100 * low:+.1f} to {100 * high:+.1f}), "
            f"{100 * gain['relative']:+.1f} % relative."
        )
    if report["teacher_probe"]:
        probe = ", ".join(f"{name} {_percent(r)}" for name, r in report["teacher_probe"].items())
        lines.append(f"Teacher's R@1 with its own, another picture's and blank regions: {probe}.")
    made = "trained in this run" if report["trained_in_this_run"] else "loaded, not trained"
    cost = f"{report['seconds']:.0f} s, {report['peak_memory_mb']:.0f} MB at most"
    return "\n".join([*lines, f"Profile {report['profile']}, {made}: {cost}."])


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
