"""Choosing how far to go from the untouched CLIP to the fine-tuned one, on val."""

from dataclasses import dataclass, replace

from tqdm.auto import tqdm

from dclip_kit.config import SelectionRule
from dclip_kit.evaluation.evaluate import (
    RetrievalSet,
    ZeroShotSet,
    evaluate_retrieval,
    evaluate_zero_shot,
)
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.weights import interpolate
from dclip_kit.runtime.processes import is_main_process


@dataclass(frozen=True)
class Candidate:
    """One interpolation on val: its text→image Recall@1 and its zero-shot retention."""

    alpha: float
    recall_at_1: float
    retention: float


@dataclass(frozen=True, eq=False)
class Selection:
    """The chosen interpolation, its weight, and all candidates."""

    student: ClipBundle
    alpha: float
    candidates: tuple[Candidate, ...]


def select_alpha(
    before: ClipBundle,
    after: ClipBundle,
    retrieval: RetrievalSet,
    zero_shot: ZeroShotSet,
    rule: SelectionRule,
    precision: str = "no",
) -> Selection:
    """Chooses between before and after on val, by one rule for every arm.

    Of the interpolations that keep `rule.least_retention` of val's zero-shot accuracy, the one
    with the best text→image Recall@1; if none keeps it, alpha is 0: the untouched CLIP.

    Args:
        before, after: the ends.
        retrieval, zero_shot: val.
        rule: what is tried, and what has to be kept.
        precision: what val's pictures are encoded in, alike for all: "no" (float32) or "bf16".

    Raises:
        ValueError: the untouched CLIP classifies nothing, so that there is nothing to retain.
    """
    untouched = replace(before, precision=precision)
    base = evaluate_zero_shot(untouched, zero_shot, progress=False).top1
    if base == 0:
        raise ValueError(
            "Expected a CLIP that knows some of val's classes, got none right; give it classes "
            "that it can name."
        )
    found = evaluate_retrieval(untouched, retrieval, progress=False)
    candidates = [Candidate(0.0, found.text_to_image.recall_at[1], 1.0)]
    for alpha in tqdm(rule.alphas, desc="interpolations", delay=2, disable=not is_main_process()):
        mixed = interpolate(untouched, after, alpha)
        found = evaluate_retrieval(mixed, retrieval, progress=False)
        kept = evaluate_zero_shot(mixed, zero_shot, progress=False).top1 / base
        candidates.append(Candidate(alpha, found.text_to_image.recall_at[1], kept))
    able = [c for c in candidates if c.retention >= rule.least_retention]
    best = max(able or candidates[:1], key=lambda candidate: candidate.recall_at_1)
    return Selection(interpolate(before, after, best.alpha), best.alpha, tuple(candidates))
