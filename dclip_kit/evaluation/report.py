"""The result of a run as one record: arms, gains with intervals, the probe, what it cost."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from dclip_kit.config import CONTROL, Profile
from dclip_kit.evaluation.arms import ArmResult
from dclip_kit.evaluation.probe import ShortcutProbe
from dclip_kit.metrics import paired_bootstrap, retention
from dclip_kit.runtime.machine import peak_memory_mb

_COLUMNS = (
    *("arm", "t→i R@1", "R@5", "R@10", "MAP", "i→t R@1", "R@5", "R@10", "MAP"),
    *("zero-shot", "held-out style", "retention [95 %]", "weight α"),
)


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


def describe_arm(
    result: ArmResult, untouched: ArmResult, reciprocal_rank_as_map: bool = False
) -> dict[str, Any]:
    """One arm's part of the report.

    Args:
        result: of the arm.
        untouched: of CLIP.
        reciprocal_rank_as_map: gives the reciprocal rank of the best match under the name of the
            mean average precision, as the published code does (7 in `config.RECIPES`).
    """
    kept = retention(untouched.zero_shot.correct, result.zero_shot.correct)
    entry: dict[str, Any] = {
        "text_to_image": result.retrieval.text_to_image.as_dict(),
        "image_to_text": result.retrieval.image_to_text.as_dict(),
        "zero_shot": {
            "top1": result.zero_shot.top1,
            "top5": result.zero_shot.top5,
            "top1_domain": result.zero_shot.top1_domain,
            "top1_never_fine_tuned": result.zero_shot.top1_other,
            "top1_held_out_style": result.held_out and result.held_out.top1,
            "retention": kept.estimate,
            "retention_ci95": [kept.low, kept.high],
        },
        "alpha": result.arm.alpha,
    }
    if reciprocal_rank_as_map:
        for way in ("text_to_image", "image_to_text"):
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
        profile: its settings, kept whole under "settings".
        results: by arm: "clip", the control and the recipe's, and perhaps more.
        probe: of the teacher; None where the recipe has none.
        ceiling: text→image Recall@1 that a perfect model could reach, where that is known.
        seconds: the run took.
        trained: the arms that were trained in this run; the others were loaded.
        more: further entries.
    """

    def gain(before: str, after: str) -> dict[str, Any]:
        old, new = (results[name].retrieval.text_to_image for name in (before, after))
        found = None  # the control has none over itself
        if before != after:
            found = describe_gain(old.hits(1), new.hits(1), new.image_of_query)
        return {"text_to_image_recall_at_1": found}

    renamed = profile.reciprocal_rank_as_map
    return {
        "profile": profile.name,
        "trained_in_this_run": bool(trained),
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(peak_memory_mb()),
        "arms": {
            name: describe_arm(found, results["clip"], renamed) | {"trained": name in trained}
            for name, found in results.items()
        },
        "gain": gain("clip", profile.recipe),
        "gain_over_control": gain(CONTROL, profile.recipe),
        "gain_of_control": gain("clip", CONTROL),
        "teacher_probe": probe and asdict(probe),
        "ceiling": ceiling,
        **more,
        "settings": profile.as_dict(),
    }


def format_report(report: Mapping[str, Any]) -> str:
    """Lays out a report: a Markdown table, then sentences; shares in percent.

    Args:
        report: as `make_report` makes it, or as JSON says it; older ones have fewer settings.
    """
    settings, rows = report.get("settings", {}), [list(_COLUMNS)]
    for name, arm in report["arms"].items():
        zero_shot, shares = arm["zero_shot"], []
        for side in (arm["text_to_image"], arm["image_to_text"]):
            shares += [*side["recall_at"].values(), side["mean_average_precision"]]
        shares += [zero_shot["top1"], zero_shot["top1_held_out_style"]]
        low, high = zero_shot["retention_ci95"] or (None, None)
        kept = f"{_percent(zero_shot['retention'])} [{_percent(low)}, {_percent(high)}]"
        alpha = "–" if arm["alpha"] is None else f"{arm['alpha']:.2f}"
        rows.append([name, *map(_percent, shares), kept, alpha])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * (width - 1) + ":" for width in widths])
    lines = [
        f"| {' | '.join(cell.rjust(w) for cell, w in zip(row, widths, strict=True))} |"
        for row in rows
    ]
    lines.append("")
    if settings.get("reciprocal_rank_as_map"):
        lines.append(
            "MAP here is what the published code calls so: the mean reciprocal rank (MRR) of the "
            "best match, and no mean average precision."
        )
    for key, rival in (("gain", "clip"), ("gain_over_control", CONTROL)):
        if gain := report[key]["text_to_image_recall_at_1"]:
            low, high = gain["ci95"]
            lines.append(
                f"{settings.get('recipe', 'dclip')} over {rival}, text→image R@1: "
                f"{100 * gain['absolute']:+.1f} points (95 % interval {100 * low:+.1f} to "
                f"{100 * high:+.1f}), {100 * gain['relative']:+.1f} % relative."
            )
    if report["teacher_probe"]:
        probe = ", ".join(f"{name} {_percent(r)}" for name, r in report["teacher_probe"].items())
        lines.append(f"Teacher's R@1 with its own, another picture's and blank regions: {probe}.")
    made = "trained in this run" if report["trained_in_this_run"] else "loaded, not trained"
    cost = f"{report['seconds']:.0f} s, {report['peak_memory_mb']:.0f} MB at most"
    return "\n".join([*lines, f"Profile {report['profile']}, {made}: {cost}."])


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
