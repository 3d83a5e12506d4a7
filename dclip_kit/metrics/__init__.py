"""Retrieval and zero-shot metrics: pure functions of tensors."""

from dclip_kit.metrics.bootstrap import Interval, paired_bootstrap, retention
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
    retrieval_metrics,
    top1_accuracy,
)

__all__ = [
    "DirectionMetrics",
    "Interval",
    "RetrievalMetrics",
    "average_precision",
    "chance_recall",
    "mean_average_precision",
    "mean_reciprocal_rank",
    "median_rank",
    "paired_bootstrap",
    "ranks",
    "recall_at_k",
    "recall_ceiling",
    "retention",
    "retrieval_metrics",
    "top1_accuracy",
]
