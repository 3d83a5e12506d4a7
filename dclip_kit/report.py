"""The result of a run as one JSON: arms, gains with intervals, the probe, what it cost."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from dclip_kit.arms import ArmResult
from dclip_kit.checkpoint import write_atomically
from dclip_kit.config import Profile
from dclip_kit.memory import peak_memory_mb
from dclip_kit.metrics import DirectionMetrics, Interval, paired_bootstrap, retention
from dclip_kit.probe import ShortcutProbe


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
            mean average precision, as the published code does (METHOD section 2, row 7).
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
