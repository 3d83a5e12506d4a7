"""Retrieval and zero-shot metrics: pure functions of tensors."""

from dclip_kit.metrics.bootstrap import Interval, paired_bootstrap, retention
from dclip_kit.metrics.groups import Gain, gain_by_group
from dclip_kit.metrics.hubness import k_occurrence, skewness
from dclip_kit.metrics.ranking import (
    average_precision,
    chance_recall,
    mean_average_precision,
    mean_reciprocal_rank,
    median_rank,
    ranks,
    recall_at_k,
    recall_ceiling,
)
from dclip_kit.metrics.retrieval import (
    DirectionMetrics,
    RetrievalMetrics,
    class_ranks,
    retrieval_metrics,
    top1_accuracy,
)

__all__ = [
    "DirectionMetrics",
    "Gain",
    "Interval",
    "RetrievalMetrics",
    "average_precision",
    "chance_recall",
    "class_ranks",
    "gain_by_group",
    "k_occurrence",
    "mean_average_precision",
    "mean_reciprocal_rank",
    "median_rank",
    "paired_bootstrap",
    "ranks",
    "recall_at_k",
    "recall_ceiling",
    "retention",
    "retrieval_metrics",
    "skewness",
    "top1_accuracy",
]
