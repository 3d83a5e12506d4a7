"""Retrieval and zero-shot metrics: pure functions of tensors."""

from dclip_kit.metrics.bootstrap import (
    Gain,
    Interval,
    gain_by_group,
    paired_bootstrap,
    retention,
)
from dclip_kit.metrics.hubness import k_occurrence, skewness
from dclip_kit.metrics.ranking import (
    chance_recall,
    ranks,
    recall_at_k,
    recall_ceiling,
)
from dclip_kit.metrics.retrieval import (
    DirectionMetrics,
    RetrievalMetrics,
    class_ranks,
    retrieval_metrics,
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
