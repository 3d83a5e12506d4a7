"""Checks of the notebooks' exercises."""

from dclip_kit.exercises.checks import (
    check_agreement,
    check_average_precision,
    check_contrastive_loss,
    check_gain,
    check_group_score,
    check_mix,
    check_nearest_class,
    check_overlap,
    check_pool,
    check_recall,
    check_rescore,
    check_search,
    check_weigh,
)

__all__ = [
    "check_agreement",
    "check_average_precision",
    "check_contrastive_loss",
    "check_gain",
    "check_group_score",
    "check_mix",
    "check_nearest_class",
    "check_overlap",
    "check_pool",
    "check_recall",
    "check_rescore",
    "check_search",
    "check_weigh",
]
