"""Wrong answers that are right on some inputs: each exercise's draws tell them from right ones."""

import pytest
import torch
from torch.nn.functional import cross_entropy, layer_norm, normalize

from dclip_kit import exercises


def overlap(first, second, extra=0.0, smoothing=0.0, hold=(0.0, 0.0)):
    """The right answer where no option is set, as are the functions below."""
    wide, high = (
        max(least, min(first[i + 2], second[i + 2]) - max(first[i], second[i]) + extra)
        for i, least in enumerate(hold)
    )
    areas = [(x2 - x1 + extra) * (y2 - y1 + extra) for x1, y1, x2, y2 in (first, second)]
    return wide * high / (sum(areas) - wide * high + smoothing)


def pool(regions, rows):
    return regions[rows].mean(0)


def contrastive_loss(images, texts, temperature, pairs=None, first_only=False):
    logits = normalize(images, dim=1) @ normalize(texts, dim=1).T / temperature
    own = torch.arange(pairs or len(logits))
    if first_only:
        return cross_entropy(logits[:1], own[:1])
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def count_places(similarity, owner):
    """How many pictures of its row score higher than a caption's own, and how many others tie."""
    own = similarity.gather(1, owner[:, None])
    return (similarity > own).sum(1), (similarity == own).sum(1) - 1


def recall(similarity, owner, k, rank=lambda higher, tied: 1 + higher + tied / 2):
    return (rank(*count_places(similarity, owner)) <= k).double()


def recall_of_first(order, owner, k):
    return (order[:, :k] == owner[:, None]).any(1).double().mean()


def recall_of_distinct_scores(similarity, owner, k):
    """Pictures that tie share one place, so that those behind them move up."""
    own = similarity.gather(1, owner[:, None])
    above = [row[row > score].unique() for row, score in zip(similarity, own, strict=True)]
    higher = torch.tensor([len(each) for each in above])
    return (1 + higher + count_places(similarity, owner)[1] / 2 <= k).double().mean()


def expected_recall(similarity, owner, k):
    """Of ties that are broken by lot."""
    higher, tied = count_places(similarity, owner)
    return ((k - higher) / (tied + 1)).clamp(0, 1).mean()


def precision_at_hits(relevant, places=None):
    places = torch.arange(1, len(relevant) + 1) if places is None else places
    return (relevant.cumsum(0) / places)[relevant]


def cosines(query, features):
    return normalize(features, dim=1) @ normalize(query, dim=0)


def rescore(similarity, reference, k, alpha):
    return similarity - alpha * reference.topk(k, dim=0).values.mean(0)


def gain(before, after, draws):
    return after[draws].mean(1) / before[draws].mean(1) - 1


def group_score(similarity, margin=0.0):
    true, false = similarity[:, [0, 1], [0, 1]], similarity[:, [0, 1], [1, 0]]
    return (true.amin(1) > false.amax(1) + margin).double()


def agreement(ours, theirs):
    return (normalize(ours, dim=1) * normalize(theirs, dim=1)).sum(1)


# By exercise, each with a short name. With constants: those that were once the same in each draw.
WRONG = {
    "overlap": {
        "pixels-inclusive": lambda *boxes: overlap(*boxes, extra=1.0),
        "union-plus-1": lambda *boxes: overlap(*boxes, smoothing=1.0),
        "width-held-at-0-only": lambda *boxes: overlap(*boxes, hold=(0.0, -torch.inf)),
        "height-held-at-0-only": lambda *boxes: overlap(*boxes, hold=(-torch.inf, 0.0)),
        "whole-pixels": lambda *boxes: overlap(*([round(edge) for edge in box] for box in boxes)),
        "picture-of-100": lambda *boxes: overlap(
            *([min(edge, 100.0) for edge in box] for box in boxes)
        ),
    },
    "nearest_class": {
        "absolute-cosine": lambda feature, classes: cosines(feature, classes).abs().argmax(),
        "dims-8": lambda feature, classes: cosines(feature[:8], classes[:, :8]).argmax(),
        "classes-12": lambda feature, classes: cosines(feature, classes[:12]).argmax(),
        "sum-of-absolutes": lambda feature, classes: (
            (classes / classes.abs().sum(1, keepdim=True)) @ feature
        ).argmax(),
        "layer-norm": lambda feature, classes: (
            layer_norm(classes, classes.shape[1:]) @ feature
        ).argmax(),
    },
    "weigh": {
        "regions-5": lambda *factors: [
            float(torch.stack(factors).prod(0)[i] / torch.stack(factors).prod(0).sum())
            for i in range(5)
        ],
        "cube-root": lambda *factors: normalize(torch.stack(factors).prod(0) ** (1 / 3), 1, 0),
        "root-of-area": lambda area, *others: normalize(
            area.sqrt() * torch.stack(others).prod(0), 1, 0
        ),
        "sum-plus-hundredth": lambda *factors: (
            torch.stack(factors).prod(0) / (torch.stack(factors).prod(0).sum() + 0.01)
        ),
    },
    "pool": {
        "first-rows": lambda regions, mask: pool(regions, slice(int(mask.sum()))),
        "rows-that-are-not-zero": lambda regions, mask: pool(regions, regions.any(1)),
        "from-first-to-last": lambda regions, mask: pool(
            regions, slice(int(mask.nonzero()[0]), int(mask.nonzero()[-1]) + 1)
        ),
        "first-6-rows": lambda regions, mask: pool(regions[:6], mask[:6]),
        "dims-8": lambda regions, mask: pool(regions[:, torch.arange(8)], mask),
        "padding-summed": lambda regions, mask: regions.sum(0) / mask.sum(),
        "greatest": lambda regions, mask: regions[mask].amax(0),
        "median": lambda regions, mask: regions[mask].median(0).values,
    },
    "contrastive_loss": {
        "temperature-fixed": lambda images, texts, _: contrastive_loss(images, texts, 0.2),
        "pairs-6": lambda images, texts, t: contrastive_loss(images, texts, t, pairs=6),
        "first-6-pairs": lambda images, texts, t: contrastive_loss(images[:6], texts[:6], t),
        "first-8-dims": lambda images, texts, t: contrastive_loss(images[:, :8], texts[:, :8], t),
        "first-pair": lambda *inputs: contrastive_loss(*inputs, first_only=True),
        "root-of-temperature": lambda images, texts, t: contrastive_loss(images, texts, t**0.5),
    },
    "mix": {
        "square-of-alpha": lambda before, after, alpha: before.lerp(after, alpha**2),
        "weights-4": lambda before, after, alpha: before[:4].lerp(after[:4], alpha),
        "length-kept": lambda before, after, alpha: (
            normalize(before.lerp(after, alpha), dim=0) * before.norm()
        ),
    },
    "recall": {
        "owner-in-pairs": lambda similarity, owner, k: recall(
            similarity, torch.arange(8).repeat_interleave(2), k
        ).mean(),
        "owner-halves": lambda similarity, owner, k: recall(
            similarity, torch.arange(len(owner)) // 2, k
        ).mean(),
        "captions-16": lambda *inputs: recall(*inputs).sum() / 16,
        "two-captions-a-picture": lambda similarity, owner, k: (
            recall(similarity, owner, k).sum() / (2 * similarity.shape[1])
        ),
        "pictures-8": lambda similarity, owner, k: recall(
            similarity.index_fill(1, torch.arange(8, similarity.shape[1]), -1.0), owner, k
        ).mean(),
        "k-2": lambda similarity, owner, k: recall(similarity, owner, 2).mean(),
        "tied-share-a-place": recall_of_distinct_scores,
        "ties-cost-nothing": lambda *inputs: recall(*inputs, lambda higher, _: 1 + higher).mean(),
        "ties-cost-all-places": lambda *inputs: recall(
            *inputs, lambda higher, tied: 1 + higher + tied
        ).mean(),
        "ties-cost-half-a-place": lambda *inputs: recall(
            *inputs, lambda higher, tied: 1 + higher + (tied > 0) / 2
        ).mean(),
        "ties-rounded-down": lambda *inputs: recall(
            *inputs, lambda higher, tied: 1 + higher + tied // 2
        ).mean(),
        "ties-rounded": lambda *inputs: recall(
            *inputs, lambda higher, tied: (1 + higher + tied / 2).round()
        ).mean(),
        "ties-are-misses": lambda similarity, owner, k: (
            recall(similarity, owner, k) * (count_places(similarity, owner)[1] == 0)
        ).mean(),
        "ties-by-lot": expected_recall,
        "ties-by-topk": lambda similarity, owner, k: recall_of_first(
            similarity.topk(k, dim=1).indices, owner, k
        ),
        "ties-to-the-first": lambda similarity, owner, k: recall_of_first(
            similarity.argsort(dim=1, descending=True, stable=True), owner, k
        ),
        "ties-to-the-last": lambda similarity, owner, k: recall_of_first(
            similarity.argsort(dim=1, stable=True).flip(1), owner, k
        ),
        "two-decimals": lambda similarity, owner, k: recall(
            similarity.round(decimals=2), owner, k
        ).mean(),
        "absolute-cosine": lambda similarity, owner, k: recall(similarity.abs(), owner, k).mean(),
        "mean-over-pictures": lambda similarity, owner, k: torch.stack(
            [recall(similarity, owner, k)[owner == image].mean() for image in owner.unique()]
        ).mean(),
    },
    "average_precision": {
        "first-and-last": lambda relevant: precision_at_hits(relevant)[[0, -1]].mean(),
        "first-two": lambda relevant: precision_at_hits(relevant)[:2].mean(),
        "over-2": lambda relevant: precision_at_hits(relevant).sum() / 2,
        "over-6": lambda relevant: precision_at_hits(relevant).sum() / 6,
        "places-6": lambda relevant: precision_at_hits(relevant, torch.arange(1, 7)).mean(),
        "first-6-places": lambda relevant: precision_at_hits(relevant[:6]).mean(),
        "median": lambda relevant: precision_at_hits(relevant).quantile(0.5),
    },
    "search": {
        "top-3": lambda query, features, top_k: cosines(query, features).topk(3).indices,
        "first-20": lambda query, features, top_k: (
            cosines(query, features[:20]).topk(top_k).indices
        ),
        "first-8-dims": lambda query, features, top_k: (
            cosines(query[:8], features[:, :8]).topk(top_k).indices
        ),
        "absolute-cosine": lambda query, features, top_k: (
            cosines(query, features).abs().topk(top_k).indices
        ),
        "best-in-order-of-storage": lambda query, features, top_k: (
            cosines(query, features).topk(top_k).indices.sort().values
        ),
        "best-alone": lambda query, features, top_k: (
            cosines(query, features).argmax().expand(top_k)
        ),
    },
    "rescore": {
        "alpha-fixed": lambda similarity, reference, k, _: rescore(similarity, reference, k, 0.75),
        "k-fixed": lambda similarity, reference, _, alpha: rescore(similarity, reference, 5, alpha),
        "captions-30": lambda similarity, reference, k, alpha: (
            similarity - alpha * reference.sort(0).values[30 - k : 30].mean(0)
        ),
        "sum-over-5": lambda similarity, reference, k, alpha: (
            similarity - alpha * reference.topk(k, dim=0).values.sum(0) / 5
        ),
        "queries-4": lambda similarity, *others: rescore(similarity[:4], *others),
        "never-below-minus-1": lambda *inputs: rescore(*inputs).clamp(min=-1.0),
        "absolute-scores": lambda similarity, reference, k, alpha: rescore(
            similarity, reference.abs(), k, alpha
        ),
    },
    "gain": {
        "resamples-9": lambda before, after, draws: torch.cat(
            [gain(before, after, draws[i, None]) for i in range(9)]
        ),
        "never-a-loss": lambda *inputs: gain(*inputs).clamp(min=0.0),
        "another-draw-after": lambda before, after, draws: (
            after[draws.roll(1, 0)].mean(1) / before[draws].mean(1) - 1
        ),
        "after-not-drawn": lambda before, after, draws: after.mean() / before[draws].mean(1) - 1,
        "first-40-drawn": lambda before, after, draws: gain(before, after, draws[:, :40]),
        "as-many-drawn-as-pictures": lambda before, after, draws: gain(
            before, after, draws[:, : len(before)]
        ),
    },
    "group_score": {
        "items-30": lambda similarity: group_score(similarity).sum() / 30,
        "first-30": lambda similarity: group_score(similarity[:30]).mean(),
        "margin": lambda similarity: group_score(similarity, margin=0.05).mean(),
        "small-margin": lambda similarity: group_score(similarity, margin=0.002).mean(),
        "absolute-cosine": lambda similarity: group_score(similarity.abs()).mean(),
        "two-decimals": lambda similarity: group_score(similarity.round(decimals=2)).mean(),
        "ratio": lambda similarity: (
            (similarity[:, [0, 1], [0, 1]].amin(1) / similarity[:, [0, 1], [1, 0]].amax(1) > 1)
            .double()
            .mean()
        ),
    },
    "agreement": {
        "absolute-cosine": lambda *both: agreement(*both).abs().min(),
        "held-at-0": lambda *both: agreement(*both).clamp(min=0).min(),
        "first-4-pairs": lambda *both: agreement(*(each[:4] for each in both)).min(),
        "dims-8": lambda *both: agreement(*(each[:, :8] for each in both)).min(),
        "median": lambda *both: agreement(*both).median(),
        "least-but-one": lambda *both: agreement(*both).sort().values[1],
        "length-plus-tenth": lambda ours, theirs: (
            (ours * theirs).sum(1) / (ours.norm(dim=1) * theirs.norm(dim=1) + 0.1)
        ).min(),
    },
}


def test_every_exercise_has_wrong_answers() -> None:
    assert sorted(f"check_{name}" for name in WRONG) == exercises.__all__


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        pytest.param(name, answer, id=f"{name}-{mutation}")
        for name, wrong in WRONG.items()
        for mutation, answer in wrong.items()
    ],
)
def test_a_wrong_answer_is_refused(name: str, answer) -> None:
    fault = getattr(exercises, f"check_{name}").find_fault(answer)
    assert fault and "TypeError" not in fault  # which says only that it was called wrongly
