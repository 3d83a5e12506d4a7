"""Retrieval and zero-shot metrics: pure functions of tensors."""

from dclip_kit.metrics.bootstrap import (
    Gain,
    Interval,
    gain_by_group,
    paired_bootstrap,
    retention,
)
from dclip_kit.metrics.retrieval import (
    DirectionMetrics,
    RetrievalMetrics,
    chance_recall,
    class_ranks,
    k_occurrence,
    ranks,
    recall_at_k,
    recall_ceiling,
    retrieval_metrics,
    skewness,
)

__all__ = [
    "DirectionMetrics",
    "Gain",
    "Interval",
    "RetrievalMetrics",
    "chance_recall",
    "class_ranks",
    "gain_by_group",
    "k_occurrence",
    "paired_bootstrap",
    "ranks",
    "recall_at_k",
    "recall_ceiling",
    "retention",
    "retrieval_metrics",
    "skewness",
]
