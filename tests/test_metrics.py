import itertools
import json
import math
import re
import sys
from dataclasses import is_dataclass

import jaxtyping
import numpy as np
import pytest
import pytrec_eval
import torch
from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k as benchmark_recall_at_k
from torch.utils._python_dispatch import TorchDispatchMode

from dclip_kit.metrics import (
    Gain,
    Interval,
    change_of_means,
    class_ranks,
    composition_scores,
    gain_by_group,
    k_occurrence,
    paired_bootstrap,
    ranks,
    recall_at_k,
    resample_sums,
    retention,
    retrieval_metrics,
    skewness,
)


def random_features(images=40, texts=130, width=16, seed=0, uncaptioned=3):
    """Captions that resemble their image a little, images without captions, no ties."""
    generator = torch.Generator().manual_seed(seed)
    image_features = torch.randn(images, width, generator=generator)
    image_of_text = torch.randint(images - uncaptioned, (texts,), generator=generator)
    noise = torch.randn(texts, width, generator=generator)
    return image_features, image_features[image_of_text] + 2 * noise, image_of_text


def cosines(a, b):
    return torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2)


def features_of(scores):
    """Unit image and text features whose cosines are `scores` [image, text], scaled down."""
    width = len(scores)
    rest = (1 - (scores**2).sum(dim=0)).sqrt()  # fills the captions up to unit length
    texts = torch.cat([scores, rest[None]]).T
    return torch.eye(width, width + 1), texts


# Matrices written by hand


def test_ranks_with_negative_scores():
    scores = torch.tensor([[-0.1, -0.5, -0.3], [-0.9, -0.2, 0.4]])
    positives = torch.tensor([[False, False, True], [True, False, False]])
    assert ranks(scores, positives).tolist() == [2, 3]


@pytest.mark.parametrize(
    ("row", "positive", "rank"),
    [
        ([0.5, 0.5, 0.1], [1, 0, 0], 1.5),  # two at the top
        ([0.5, 0.5, 0.1], [0, 0, 1], 3),  # a tie elsewhere
        ([0.9, 0.2, 0.2, 0.2], [0, 0, 1, 0], 3),  # places 2, 3, 4
        ([0.3, 0.3, 0.3, 0.3], [0, 1, 0, 0], 4),  # collapsed: the last
        ([-0.3, -0.3, -0.9], [0, 1, 0], 1.5),  # negative and tied
        ([0.5, 0.5, 0.1], [1, 1, 0], 1),  # tied, but only with another positive
        ([0.9, 0.5, 0.5, 0.1], [0, 1, 1, 0], 2),
        ([0.5, 0.5, 0.5, 0.1], [1, 1, 0, 0], 2),  # with a positive and a negative
        ([0.5, 0.5 + 4e-7, 0.1], [1, 0, 0], 1.5),  # tied up to rounding
        ([0.5, 0.5 + 4e-6, 0.1], [1, 0, 0], 2),  # a difference, if small
        ([0.1, -math.inf, -math.inf], [0, 0, 1], 2.5),
    ],
)
def test_rank_of_the_best_positive_under_ties(row, positive, rank):
    assert ranks(torch.tensor([row]), torch.tensor([positive]).bool()).tolist() == [rank]


def test_tied_rank_is_the_mean_over_all_ways_to_break_the_tie():
    scores = [0.2, 0.7, 0.7, 0.1, 0.7, 0.2]
    for positive in range(6):
        places = [
            sorted(range(6), key=lambda i, tie=tie: (-scores[i], tie[i])).index(positive) + 1
            for tie in itertools.permutations(range(6))
        ]
        mask = torch.eye(6, dtype=torch.bool)[[positive]]
        rank = ranks(torch.tensor([scores]), mask)
        assert rank.item() == pytest.approx(sum(places) / len(places))


def precision_of(scores, positives):
    """One image's average precision among texts, the others being another image's."""
    images, texts = features_of(torch.tensor([scores, [0.0] * len(scores)]))
    found = retrieval_metrics(images, texts, 1 - torch.tensor(positives))
    return found.image_to_text.average_precision[0].item()


@pytest.mark.parametrize(
    ("scores", "positives", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6, 0.5], [1, 0, 1, 0, 1], (1 + 2 / 3 + 3 / 5) / 3),
        ([0.2, 0.9, 0.1, 0.5], [0, 0, 0, 1], 1 / 2),
        # Places 1 and (2, 3, 4). Among the positives: 1 and (2, 3), a mean of 2.5 over a rank of 3.
        ([0.9, 0.5, 0.5, 0.5, 0.1], [1, 1, 0, 1, 0], (1 + 2.5 / 3 + 2.5 / 3) / 3),
        ([0.2, 0.7, 0.7, 0.1, 0.7, 0.2], [1, 0, 0, 0, 0, 0], 1 / 4.5),
    ],
)
def test_average_precision_looks_at_all_positives(scores, positives, expected):
    assert precision_of(scores, positives) == pytest.approx(expected)


def test_a_tolerance_fits_the_scale_of_the_scores():
    probabilities = torch.tensor([[2e-7, 1e-7, 3e-7]])
    positive = torch.tensor([[True, False, False]])
    assert ranks(probabilities, positive).item() == 3  # all tie
    assert ranks(probabilities, positive, tolerance=0.0).item() == 2
    assert ranks(probabilities * 1e7, positive, tolerance=1.5).item() == 3
    assert ranks(torch.tensor([[2.0, 1.0, 9.0]]), positive, tolerance=1.5).item() == 2.5


def test_recall_from_ranks():
    rank = torch.tensor([1.0, 1.5, 4.0, 10.0])
    assert [recall_at_k(rank, k) for k in (1, 2, 5, 10)] == [0.25, 0.5, 0.75, 1.0]


def test_retrieval_by_hand():
    scores = torch.tensor(  # image text: captions 0 and 1 show image 0, caption 2 shows image 2
        [
            [-0.1, 0.3, 0.2],
            [-0.3, 0.4, 0.1],  # no caption, but in the way of caption 1
            [-0.2, 0.3, 0.3],
        ]
    )
    images, texts = features_of(scores)
    result = retrieval_metrics(images * 7, texts * 0.01, torch.tensor([0, 0, 2]), (1, 2))
    forth, back = result.text_to_image, result.image_to_text
    assert forth.ranks.tolist() == [1, 2.5, 1]
    assert forth.recall_at == {1: pytest.approx(2 / 3), 2: pytest.approx(2 / 3)}
    assert forth.mean_reciprocal_rank == pytest.approx((1 + 0.4 + 1) / 3)
    assert forth.mean_average_precision == forth.mean_reciprocal_rank  # one positive a caption
    assert forth.median_rank == 1
    assert forth.image_of_query.tolist() == [0, 0, 2]
    assert forth.candidates == 3
    assert back.ranks.tolist() == [1, 1.5]  # image 0: 1 and 3; image 2: tied with caption 1
    assert back.recall_at == {1: 0.5, 2: 1}
    assert back.average_precision.tolist() == pytest.approx([(1 + 2 / 3) / 2, 1 / 1.5])
    assert back.median_rank == 1.25
    assert back.image_of_query.tolist() == [0, 2]
    assert result.images_without_captions == 1
    assert back.hits(1).tolist() == [True, False]


def test_report_is_json_and_holds_no_tensors():
    report = retrieval_metrics(*random_features()).as_dict()
    assert json.loads(json.dumps(report)) == report
    assert report["images_without_captions"] >= 3
    direction = report["text_to_image"]
    assert set(direction["recall_at"]) == {"1", "5", "10"}
    assert direction["queries"] == 130
    assert direction["candidates"] == 40


# Other people's code


@pytest.mark.parametrize("seed", range(3))
def test_recall_against_clip_benchmark(seed):
    images, texts, image_of_text = random_features(seed=seed)
    scores = cosines(texts, images)
    positives = torch.zeros_like(scores, dtype=torch.bool)
    positives[torch.arange(len(texts)), image_of_text] = True
    captioned = positives.any(dim=0)
    result = retrieval_metrics(images, texts, image_of_text)
    for k in (1, 5, 10):
        forth = benchmark_recall_at_k(scores, positives, k) > 0
        back = benchmark_recall_at_k(scores.T[captioned], positives.T[captioned], k) > 0
        assert 0 < forth.float().mean() < 1
        assert result.text_to_image.hits(k).tolist() == forth.tolist()
        assert result.image_to_text.hits(k).tolist() == back.tolist()
        assert result.text_to_image.recall_at[k] == pytest.approx(forth.double().mean().item())
        assert result.image_to_text.recall_at[k] == pytest.approx(back.double().mean().item())


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_and_reciprocal_rank_against_trec_eval(seed):
    images, texts, image_of_text = random_features(seed=seed)
    scores = cosines(images, texts)
    result = retrieval_metrics(images, texts, image_of_text).image_to_text
    asked = result.image_of_query.tolist()
    relevant = {str(i): {str(int(t)): 1 for t in (image_of_text == i).nonzero()} for i in asked}
    run = {str(i): {str(t): float(s) for t, s in enumerate(scores[i])} for i in asked}
    trec = pytrec_eval.RelevanceEvaluator(relevant, {"map", "recip_rank"}).evaluate(run)
    expected = [trec[str(i)]["map"] for i in asked]
    assert result.average_precision.tolist() == pytest.approx(expected)
    assert result.mean_average_precision == pytest.approx(np.mean(expected))
    reciprocal = np.mean([trec[str(i)]["recip_rank"] for i in asked])
    assert result.mean_reciprocal_rank == pytest.approx(reciprocal)
    assert result.mean_average_precision < result.mean_reciprocal_rank  # they are not one thing


# Numerics


@pytest.mark.parametrize("tile_size", [1, 7, 130, 131, 1000, 2**22])
def test_tiles_change_nothing(tile_size):
    images, texts, image_of_text = random_features()
    texts[5], texts[9] = texts[6], texts[6]  # with ties
    images[3] = images[4]
    whole = retrieval_metrics(images, texts, image_of_text, tile_size=10**9)
    tiled = retrieval_metrics(images, texts, image_of_text, tile_size=tile_size)
    assert (whole.text_to_image.ranks % 1 == 0.5).any()
    assert tiled.as_dict() == whole.as_dict()
    for name in ("text_to_image", "image_to_text"):
        assert torch.equal(getattr(tiled, name).ranks, getattr(whole, name).ranks)


class _Products(TorchDispatchMode):
    """Notes the sizes of all products of matrices."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default:
            self.sizes.append(out.numel())
        return out


def test_scores_are_never_held_all_at_once():
    with _Products() as products:
        retrieval_metrics(*random_features(), tile_size=500)
    assert sum(products.sizes) == 130 * 40  # each score once, for both directions
    assert max(products.sizes) <= 500


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scale_and_precision_of_features_do_not_matter(dtype):
    images, texts, image_of_text = random_features()
    images, texts = images.to(dtype), texts.to(dtype)
    expected = retrieval_metrics(images.double(), texts.double(), image_of_text).as_dict()
    assert retrieval_metrics(images, texts, image_of_text).as_dict() == expected
    assert retrieval_metrics(images * 64, texts / 64, image_of_text).as_dict() == expected
    assert retrieval_metrics(images.double(), texts, image_of_text.int()).as_dict() == expected
    if dtype.itemsize >= 4:  # squares of these leave the range of float32
        huge = retrieval_metrics(images * 1e30, texts * 1e-30, image_of_text)
        assert huge.as_dict() == expected


def collapsed(images, captions, width=64):
    generator = torch.Generator().manual_seed(images)
    one = torch.randn(1, width, generator=generator)
    other = torch.randn(1, width, generator=generator)
    image_of_text = torch.arange(images).repeat_interleave(captions)
    return one.repeat(images, 1), other.repeat(images * captions, 1), image_of_text


@pytest.mark.parametrize(("images", "captions"), [(2, 1), (7, 2), (12, 5), (16, 1), (101, 5)])
@pytest.mark.parametrize("noise", [0, 1e-7])
def test_a_collapsed_model_gets_at_most_chance(images, captions, noise):
    image_features, text_features, image_of_text = collapsed(images, captions)
    generator = torch.Generator().manual_seed(1)
    image_features += noise * torch.randn(image_features.shape, generator=generator)
    text_features += noise * torch.randn(text_features.shape, generator=generator)
    every_k = tuple(range(1, images * captions + 1))
    result = retrieval_metrics(image_features, text_features, image_of_text, every_k, tile_size=999)
    for direction, candidates, positives in (
        (result.text_to_image, images, 1),
        (result.image_to_text, images * captions, captions),
    ):
        for k in every_k:
            if k <= candidates:
                missed = math.comb(candidates - positives, k) / math.comb(candidates, k)
                assert direction.recall_at[k] <= 1 - missed + 1e-12
            assert direction.recall_at[k] == (k >= candidates)
        assert direction.ranks.tolist() == [candidates] * len(direction.ranks)
        harmonic = sum(1 / i for i in range(1, candidates + 1))
        more = (positives - 1) / max(1, candidates - 1) * (candidates - harmonic)
        chance_precision = (harmonic + more) / candidates
        assert direction.mean_average_precision <= chance_precision
    assert result.text_to_image.mean_reciprocal_rank == pytest.approx(1 / images)


def test_a_collapsed_image_tower_alone_gets_at_most_chance():
    _, texts, image_of_text = random_features(images=30, texts=60, uncaptioned=0)
    result = retrieval_metrics(torch.ones(30, 16), texts, image_of_text, (1, 5, 20))
    assert set(result.text_to_image.recall_at.values()) == {0}
    assert result.image_to_text.recall_at[1] == pytest.approx(1 / len(image_of_text.unique()))


def test_one_image_with_all_texts_is_no_collapse():
    only = retrieval_metrics(torch.ones(1, 4), torch.ones(3, 4), torch.zeros(3).long(), (1,))
    for direction in (only.text_to_image, only.image_to_text):
        assert direction.recall_at[1] == direction.mean_average_precision == 1


def test_metrics_leave_their_input_alone_and_need_no_gradient():
    images, texts, image_of_text = random_features()
    before = images.clone()
    result = retrieval_metrics(images.requires_grad_(), texts, image_of_text)
    assert torch.equal(images, before)
    assert not result.text_to_image.ranks.requires_grad


# Zero-shot


def test_class_ranks_by_hand():
    images = torch.tensor([[3.0, 2, 1], [1, 3, 2], [1, 1, 0], [1, 1, 1]])
    found = class_ranks(images, torch.eye(3), torch.tensor([0, 0, 1, 1]))
    assert found.tolist() == [1, 3, 1.5, 3]  # a tie shares its rank; where all tie, the last
    assert class_ranks(images, torch.eye(3)[:1], torch.zeros(4).long()).tolist() == [1] * 4


def test_class_ranks_against_sorting():
    images, classes = torch.randn(200, 16), torch.randn(40, 16)
    target = torch.randint(40, (200,))
    order = (images @ (classes / classes.norm(dim=1, keepdim=True)).T).argsort(1, descending=True)
    expected = (order == target[:, None]).int().argmax(1) + 1
    assert class_ranks(images, classes, target).tolist() == expected.tolist()
    assert (class_ranks(torch.ones(200, 16), torch.ones(40, 16), target) > 1).all()  # all tie


# What can be reached


def test_recall_ceiling_is_what_a_perfect_model_gets_on_average():
    # Captions name one of 3 kinds; a perfect model sees the kind and breaks ties at random.
    generator = torch.Generator().manual_seed(0)
    kind = torch.tensor([0, 0, 0, 1, 1, 2])
    fits = kind[:, None] == kind[None]
    own = torch.eye(6, dtype=torch.bool)
    recalls = [
        recall_at_k(ranks(fits + torch.rand(6, 6, generator=generator) / 2, own), 1)
        for _ in range(2000)
    ]
    ceiling = float((1 / fits.sum(dim=1)).mean())
    assert ceiling == pytest.approx(np.mean(recalls), abs=0.015)


# Bootstrap


def captions_of_two_models(images=60, captions=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ease = torch.rand(images, 1, generator=generator)
    draw = torch.rand(2, images, captions, generator=generator)
    before, after = draw[0] < ease, draw[1] < ease + 0.15
    group = torch.arange(images)[:, None].expand(images, captions) * 3 + 1  # ids need not be dense
    shuffled = torch.randperm(images * captions, generator=generator)
    return before.flatten()[shuffled], after.flatten()[shuffled], group.flatten()[shuffled]


def slow_bootstrap(before, after, group, change, resamples=1000, seed=5):
    """Draws images one by one and pools their captions."""
    rng = np.random.default_rng(seed)
    before, after, group = before.numpy(), after.numpy(), group.numpy()
    images = np.unique(group)
    of_image = {image: np.flatnonzero(group == image) for image in images}
    changes = []
    for _ in range(resamples):
        drawn = np.concatenate([of_image[i] for i in rng.choice(images, size=len(images))])
        changes.append(change(before[drawn].mean(), after[drawn].mean()))
    return np.quantile(changes, [0.025, 0.975])


CHANGES = {
    "difference": lambda before, after: after - before,
    "ratio": lambda before, after: after / before,
    "relative": lambda before, after: after / before - 1,
}


@pytest.mark.parametrize("statistic", CHANGES)
def test_bootstrap_against_a_slow_loop(statistic):
    before, after, group = captions_of_two_models()
    keep = torch.ones(len(group)).bool()
    keep[::7] = False  # images with unequal numbers of captions
    before, after, group = before[keep], after[keep], group[keep]
    fast = paired_bootstrap(before, after, group, statistic, resamples=4000)
    low, high = slow_bootstrap(before, after, group, CHANGES[statistic], resamples=4000)
    means = before.double().mean().item(), after.double().mean().item()
    assert fast.estimate == pytest.approx(CHANGES[statistic](*means))
    width = high - low
    assert fast.low == pytest.approx(low, abs=0.06 * width)
    assert fast.high == pytest.approx(high, abs=0.06 * width)
    assert fast.undefined == 0


def test_bootstrap_draws_exactly_what_its_seed_says(monkeypatch):
    before, after, group = (x[3:] for x in captions_of_two_models(images=7, captions=4))
    assert len(group.unique()) == 7
    assert len(group.unique(return_counts=True)[1].unique()) > 1  # unequal numbers of captions
    drawn = torch.randint(7, (50, 7), generator=torch.Generator().manual_seed(3))
    images = group.unique()
    changes = []
    for row in drawn:
        rows = torch.cat([(group == images[i]).nonzero().flatten() for i in row])
        changes.append((after[rows].double().mean() - before[rows].double().mean()).item())
    result = paired_bootstrap(before, after, group, resamples=50, confidence=0.8, seed=3)
    assert [result.low, result.high] == pytest.approx(np.quantile(changes, [0.1, 0.9]).tolist())
    home = sys.modules[paired_bootstrap.__module__]
    again = {"resamples": 50, "confidence": 0.8, "seed": 3}
    assert paired_bootstrap(before, after, group, **again) == result  # from what it kept
    monkeypatch.setattr(home, "_KEPT_COUNTS", 0)
    monkeypatch.setattr(home, "_DRAWN_AT_ONCE", 30)  # a few resamples at a time
    assert paired_bootstrap(before, after, group, **again) == result


def test_captions_of_one_image_are_not_independent():
    generator = torch.Generator().manual_seed(0)
    image = torch.arange(200).repeat_interleave(5)
    before = (torch.rand(200, generator=generator) < 0.3)[image]  # an image's captions agree
    after = (torch.rand(200, generator=generator) < 0.4)[image]
    grouped = paired_bootstrap(before, after, image)
    alone = paired_bootstrap(before, after, torch.arange(1000))
    ratio = (grouped.high - grouped.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(math.sqrt(5), rel=0.1)


def test_bootstrap_is_paired():
    before, _, group = captions_of_two_models()
    same = paired_bootstrap(before, before, group, "ratio")
    assert (same.estimate, same.low, same.high) == (1, 1, 1)


def test_bootstrap_repeats_with_its_seed():
    arms = captions_of_two_models()
    assert paired_bootstrap(*arms, seed=1) == paired_bootstrap(*arms, seed=1)
    assert paired_bootstrap(*arms, seed=1) != paired_bootstrap(*arms, seed=2)
    narrow, wide = (paired_bootstrap(*arms, confidence=c) for c in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high


def test_bootstrap_counts_resamples_without_a_ratio():
    before, after = torch.tensor([True, False, False]), torch.tensor([True, True, False])
    result = paired_bootstrap(before, after, torch.arange(3), "ratio", resamples=2000)
    assert result.estimate == 2
    assert result.undefined / 2000 == pytest.approx((2 / 3) ** 3, abs=0.04)
    assert math.isfinite(result.high)
    assert paired_bootstrap(before, after, torch.arange(3)).undefined == 0


@pytest.mark.parametrize("statistic", CHANGES)
def test_one_picture_says_nothing_about_others(statistic):
    before, after = torch.tensor([1.0, 0, 0]), torch.tensor([1.0, 1, 0])
    alone = paired_bootstrap(before, after, torch.zeros(3, dtype=torch.long), statistic)
    assert alone.estimate == pytest.approx(CHANGES[statistic](1 / 3, 2 / 3))
    assert math.isnan(alone.low) and math.isnan(alone.high)
    (gain,) = gain_by_group(before, after, torch.zeros(3, dtype=torch.long), ["a"] * 3)
    assert not gain.is_known


def test_retention():
    before = torch.arange(400) % 2 == 0
    after = torch.arange(400) % 20 == 0
    kept = retention(before, after | (before & (torch.arange(400) < 360)))
    assert kept.estimate == pytest.approx(182 / 200)
    low, high = slow_bootstrap(
        before, after | (before & (torch.arange(400) < 360)), torch.arange(400), CHANGES["ratio"]
    )
    assert [kept.low, kept.high] == pytest.approx([low, high], abs=0.01)
    assert kept.low < kept.estimate < kept.high < 1


def test_hits_feed_the_bootstrap():
    images, texts, image_of_text = random_features(images=60, texts=200)
    worse = retrieval_metrics(images, texts, image_of_text).text_to_image
    better = retrieval_metrics(images, texts + images[image_of_text], image_of_text).text_to_image
    gain = paired_bootstrap(worse.hits(1), better.hits(1), worse.image_of_query, "relative")
    assert gain.estimate == pytest.approx(better.recall_at[1] / worse.recall_at[1] - 1)
    assert 0 < gain.low < gain.estimate < gain.high


# Gains by group, held against the whole and against numbers made by hand

BEFORE = torch.tensor([1.0, 0, 0, 1, 0, 0])
AFTER = torch.tensor([1.0, 1, 0, 0, 1, 1])
IMAGE = torch.tensor([0, 0, 1, 1, 2, 2])
GROUPS = ["small", "large", "small", "large", "large", "large"]


def test_each_group_is_measured_apart() -> None:
    small, large = gain_by_group(BEFORE, AFTER, IMAGE, GROUPS)
    assert (small.name, small.queries, small.before, small.after) == ("small", 2, 0.5, 0.5)
    assert (large.name, large.queries, large.before, large.after) == ("large", 4, 0.25, 0.75)
    assert large.change.estimate == pytest.approx(0.5)
    chosen = torch.tensor([1, 3, 4, 5])
    expected = paired_bootstrap(BEFORE[chosen], AFTER[chosen], IMAGE[chosen])
    assert large.change == expected


def test_one_group_of_all_is_the_whole() -> None:
    (gain,) = gain_by_group(BEFORE, AFTER, IMAGE, ["all"] * 6)
    assert gain.change == paired_bootstrap(BEFORE, AFTER, IMAGE)


def test_groups_come_in_the_order_asked_for_and_empty_ones_not_at_all() -> None:
    found = gain_by_group(BEFORE, AFTER, IMAGE, GROUPS, ("huge", "large"))
    assert [gain.name for gain in found] == ["large", "small"]
    assert gain_by_group(BEFORE[:0], AFTER[:0], IMAGE[:0], []) == ()


def test_hits_count_as_well() -> None:
    (gain,) = gain_by_group(BEFORE.bool(), AFTER.bool(), IMAGE, ["all"] * 6)
    assert (gain.before, gain.after) == (pytest.approx(2 / 6), pytest.approx(4 / 6))


@pytest.mark.parametrize(
    ("low", "high", "known"),
    [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0.0, 1.0, False)],
)
def test_a_gain_is_known_if_its_interval_leaves_out_zero(low, high, known) -> None:
    assert Gain("a", 2, 0.0, 0.1, Interval(0.1, low, high)).is_known == known


def test_lengths_that_differ_are_an_error() -> None:
    for groups in (GROUPS[:5], []):
        with pytest.raises(ValueError, match=f"6, 6, 6 and {len(groups)}; pass the same"):
            gain_by_group(BEFORE, AFTER, IMAGE, groups)


# Hubs

# Scores of two queries (rows) with four candidates are the queries' coordinates.
CANDIDATES = torch.eye(4)
QUERIES = torch.tensor([[0.8, 0.5, 0.3, 0.1], [0.6, 0.1, 0.7, 0.2]])


@pytest.mark.parametrize(
    ("k", "expected"),
    [(1, [1, 0, 1, 0]), (2, [2, 1, 1, 0]), (3, [2, 1, 2, 1]), (4, [2, 2, 2, 2])],
)
def test_counts_are_those_made_by_hand(k, expected) -> None:
    assert k_occurrence(QUERIES, CANDIDATES, k).tolist() == expected


def test_lengths_of_vectors_count_for_nothing() -> None:
    lengths = torch.tensor([[9.0], [0.01]])
    assert k_occurrence(QUERIES * lengths, 5 * CANDIDATES, 2).tolist() == [2, 1, 1, 0]


def test_candidates_that_tie_share_the_last_places() -> None:
    query = torch.tensor([[0.9, 0.2, 0.2, 0.2]])
    assert k_occurrence(query, CANDIDATES, 2).tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])
    collapsed = torch.ones(5, 4)  # every query finds every candidate alike: nobody is a hub
    assert k_occurrence(collapsed, CANDIDATES, 1).tolist() == pytest.approx([1.25] * 4)


def test_all_places_are_given() -> None:
    counts = k_occurrence(torch.randn(37, 6), torch.randn(11, 6), 3)
    assert counts.sum() == pytest.approx(3 * 37)


@pytest.mark.parametrize("scale", [1.0, 1e-8])
def test_scores_that_were_changed_are_counted(scale) -> None:
    """The first candidate, a hub, loses half: then 0.4 and 0.3, below the second best of all."""

    def halve(scores: torch.Tensor) -> torch.Tensor:
        return scale * scores * torch.tensor([0.5, 1, 1, 1])

    assert k_occurrence(QUERIES, CANDIDATES, 1, halve, 1e-9).tolist() == [0, 1, 1, 0]


def test_a_hub_skews_the_counts() -> None:
    queries, candidates = torch.randn(200, 16), torch.randn(50, 16)
    fair = skewness(k_occurrence(queries, candidates, 5))
    candidates[7] = queries.mean(0)  # lies near all of them
    hub = k_occurrence(queries + 1.0, candidates + 1.0 * (torch.arange(50)[:, None] == 7), 5)
    assert hub.argmax() == 7 and skewness(hub) > fair + 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2, 3], 0.0),
        ([0.0, 0, 0, 4], 2 / 3**0.5),  # deviations -1, -1, -1, 3: (24 / 4) / 3 ** 1.5
        ([0.0, 4, 4, 4], -2 / 3**0.5),
    ],
)
def test_skewness_is_the_third_standardised_moment(values, expected) -> None:
    assert skewness(torch.tensor(values)) == pytest.approx(expected)


def test_bad_counts_are_named() -> None:
    for k in (0, 5):
        with pytest.raises(ValueError, match=rf"1\.\.4 .*got {k} and"):
            k_occurrence(QUERIES, CANDIDATES, k)
    with pytest.raises(ValueError, match="at least one query"):
        k_occurrence(QUERIES[:0], CANDIDATES, 1)
    assert math.isnan(skewness(torch.ones(3)))


# Compositions


def score_slowly(one: list[list[float]]) -> list[bool]:
    """Text, image and group score of an item's two pictures (rows) and two captions."""
    (a, b), (c, d) = one
    text, image = a > b and d > c, a > c and d > b
    return [text, image, text and image]


def test_compositions_are_scored_as_by_a_slow_loop() -> None:
    similarity = torch.randint(4, (500, 2, 2)).float()  # with many ties
    found = composition_scores(similarity)
    assert list(found) == ["text", "image", "group"]
    expected = [score_slowly(one) for one in similarity.tolist()]
    assert torch.stack([*found.values()], 1).tolist() == expected


def test_the_three_scores_by_hand() -> None:
    """Right in all; the second caption always preferred; the second picture always nearer."""
    similarity = torch.tensor([[[3.0, 1], [2, 4]], [[1, 2], [0, 4]], [[1, 0], [2, 3]]])
    found = {name: each.tolist() for name, each in composition_scores(similarity).items()}
    assert found["text"] == [True, False, True]
    assert found["image"] == [True, True, False]
    assert found["group"] == [True, False, False]


def test_scores_drawn_at_random_are_at_chance() -> None:
    found = composition_scores(torch.rand(20_000, 2, 2))
    for name, chance in (("text", 1 / 4), ("image", 1 / 4), ("group", 1 / 6)):
        assert found[name].float().mean().item() == pytest.approx(chance, abs=0.01)


# Bad input


def broken(change):
    images, texts, image_of_text = random_features(images=4, texts=6, uncaptioned=1)
    return change(images, texts, image_of_text)


def with_row(features, row, value):
    features = features.clone()
    features[row] = value
    return features


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda i, t, of: (with_row(i, 2, math.nan), t, of),
            r"image_features .* 1 of 4 rows .* \[2\]",
        ),
        (
            lambda i, t, of: (i, with_row(t, 5, math.inf), of),
            r"text_features .* 1 of 6 rows .* \[5\]",
        ),
        (
            lambda i, t, of: (i, with_row(t, 0, 0), of),
            r"text_features .* finite and not all zeros",
        ),
        (lambda i, t, of: (i, t[:, :9], of), "as wide as image_features, got 9 and 16"),
        (lambda i, t, of: (i, t, of[:5]), "6 of them from 0 to 3, got 5 from"),
        (lambda i, t, of: (i, t, of[:0]), "got 0 from"),
        (lambda i, t, of: (i, t, with_row(of, 1, 4)), r"got 6 from \[\d\] to \[4\]"),
        (lambda i, t, of: (i, t, with_row(of, 1, -1)), r"got 6 from \[-1\] to"),
        (lambda i, t, of: (i[:0], t, of), "image_features .* got shape .0, 16.*encode them"),
        (lambda i, t, of: (i, t[:0], of[:0]), "text_features .* got shape .0, 16.*encode them"),
        (lambda i, t, of: (i, t, of, (1, 0)), "Expected a k from 1, got 0"),
    ],
)
def test_bad_features_are_named(change, message):
    retrieval_metrics(*broken(lambda *sound: sound))
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(*broken(change))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ranks(torch.zeros(2, 3), torch.ones(3, 2).bool()),
            r"\(2, 3\), one .* got \(3, 2\)",
        ),
        (lambda: ranks(torch.tensor([[math.nan, 1]]), torch.ones(1, 2).bool()), "got NaN"),
        (
            lambda: ranks(torch.zeros(2, 3), torch.tensor([[True] * 3, [False] * 3])),
            "1 of 2 queries without",
        ),
        (lambda: recall_at_k(torch.ones(3), 0), "k from 1, got 0"),
        (lambda: class_ranks(torch.ones(2, 3), torch.ones(4, 3), torch.tensor([0, 4])), "0 to 3"),
        (
            lambda: class_ranks(torch.ones(2, 3), torch.ones(4, 5), torch.tensor([0, 3])),
            "got 3 and",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"after": torch.ones(2)}, "3, 2 and 3"),
        ({"group": torch.arange(4)}, "3, 3 and 4"),
        ({"before": torch.ones(0), "after": torch.ones(0), "group": torch.arange(0)}, "0, 0 and 0"),
        ({"after": torch.tensor([1, math.nan, 0])}, "finite"),
        ({"before": torch.zeros(3), "statistic": "ratio"}, "use statistic='difference'"),
        ({"before": torch.zeros(3), "statistic": "relative"}, "use statistic='difference'"),
        ({"resamples": 0}, "at least 1"),
        ({"confidence": 95.0}, "between 0 and 1"),
    ],
)
def test_bad_bootstraps_are_named(change, message):
    sound = {"before": torch.tensor([1.0, 0, 1]), "after": torch.ones(3), "group": torch.arange(3)}
    paired_bootstrap(**sound)
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(**(sound | change))


def test_unknown_statistic_lists_the_known_ones():
    # With the type check on, it is the annotation that lists them.
    with pytest.raises(Exception, match=r"(?s)difference.*relative.*ratio"):
        paired_bootstrap(torch.ones(2), torch.ones(2), torch.arange(2), "quotient")


# Arrays of numpy

IMAGES, TEXTS, IMAGE_OF_TEXT = random_features(images=4, texts=6, uncaptioned=1)
SCORES, RIGHT = torch.rand(3, 4), torch.eye(3, 4).bool()
TAKES_ARRAYS = {
    "retrieval_metrics": (retrieval_metrics, IMAGES, TEXTS, IMAGE_OF_TEXT),
    "class_ranks": (class_ranks, IMAGES, TEXTS, torch.tensor([0, 5, 2, 2])),
    "ranks": (ranks, SCORES, RIGHT),
    "recall_at_k": (lambda found: recall_at_k(found, 2), torch.tensor([1, 2.5, 2])),
    "k_occurrence": (lambda *both: k_occurrence(*both, 2), QUERIES, CANDIDATES),
    "composition_scores": (composition_scores, torch.rand(5, 2, 2)),
    "skewness": (skewness, torch.tensor([0.0, 0, 4])),
    "paired_bootstrap": (paired_bootstrap, BEFORE, AFTER, IMAGE),
    "retention": (retention, BEFORE > 0, AFTER > 0),
    "gain_by_group": (lambda *given: gain_by_group(*given, GROUPS), BEFORE, AFTER, IMAGE),
}


def as_numbers(result):
    """A result with its tensors as lists, so that two can be compared."""
    if is_dataclass(result):
        return {name: as_numbers(value) for name, value in vars(result).items()}
    if isinstance(result, tuple):
        return [*map(as_numbers, result)]
    if isinstance(result, dict):
        return {name: as_numbers(value) for name, value in result.items()}
    return result.tolist() if isinstance(result, torch.Tensor) else result


@pytest.mark.parametrize("name", TAKES_ARRAYS)
def test_arrays_of_numpy_are_measured_as_tensors_are(name):
    measure, *tensors = TAKES_ARRAYS[name]
    expected = measure(*tensors)
    assert as_numbers(measure(*[each.numpy() for each in tensors])) == as_numbers(expected)
    mixed = [tensors[0].numpy(), *tensors[1:]]
    assert as_numbers(measure(*mixed)) == as_numbers(expected)


@pytest.fixture
def unchecked(monkeypatch):
    """Without the type checks of the tests, as people's programs run."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def spoil(values, value=math.nan):
    """With a value that does not belong there, the second."""
    values = values.clone()
    values.view(-1)[1] = value
    return values


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        # Owners that are no indices.
        (lambda: retrieval_metrics(IMAGES, TEXTS, IMAGE_OF_TEXT + 0.5), r"\[\d\.5\].*float32"),
        (lambda: retrieval_metrics(IMAGES, TEXTS, IMAGE_OF_TEXT.double()), "float64"),
        (lambda: retrieval_metrics(IMAGES, TEXTS, IMAGE_OF_TEXT[:, None]), "got 6 from"),
        (lambda: class_ranks(IMAGES, TEXTS, torch.tensor([0.5, 1, 2, 3])), r"\[0\.5\].*float32"),
        (lambda: paired_bootstrap(BEFORE, AFTER, IMAGE * math.nan), r"group .*\[nan\]"),
        # Not numbers.
        (lambda: ranks(spoil(SCORES), RIGHT), "NaN for 1 of 12"),
        (lambda: recall_at_k(spoil(torch.ones(3)), 1), r"ranks .*\[nan\] at \[\[1\]\]"),
        (
            lambda: k_occurrence(QUERIES, spoil(CANDIDATES), 2),
            r"candidate_features.*\[nan\] at \[\[0, 1\]\]",
        ),
        (
            lambda: composition_scores(spoil(torch.ones(3, 2, 2), math.inf)),
            r"similarity .*\[inf\] at \[\[0, 0, 1\]\]",
        ),
        (lambda: skewness(spoil(BEFORE)), r"values .*\[nan\] at \[\[1\]\]"),
        (lambda: paired_bootstrap(BEFORE, spoil(AFTER), IMAGE), r"after.*\[nan\] at \[\[1\]\]"),
        (lambda: gain_by_group(spoil(BEFORE), AFTER, IMAGE, GROUPS), r"before.*\[nan\]"),
        # Shapes.
        (lambda: retrieval_metrics(IMAGES[0], TEXTS, IMAGE_OF_TEXT), r"image_features.*\(16,\)"),
        (lambda: ranks(SCORES[0], RIGHT[0]), r"positives.*got \(4,\)"),
        (lambda: ranks(SCORES, RIGHT.float()), r"boolean positives.*float32"),
        (lambda: composition_scores(torch.ones(3, 3, 2)), r"item 2 2.*\(3, 3, 2\)"),
        (lambda: k_occurrence(QUERIES[:, :3], CANDIDATES, 2), r"candidate 3\].*got \(4, 4\)"),
        (lambda: paired_bootstrap(BEFORE[:, None], AFTER[:, None], IMAGE), r"before.*\(6, 1\)"),
        # Numbers of things, and one text for a list of them.
        (
            lambda: retrieval_metrics(IMAGES, TEXTS, IMAGE_OF_TEXT, tile_size=0),
            "tile_size from 1, got 0",
        ),
        (
            lambda: retrieval_metrics(IMAGES, TEXTS, IMAGE_OF_TEXT, tile_size=-1),
            "tile_size from 1, got -1",
        ),
        (lambda: paired_bootstrap(BEFORE, AFTER, IMAGE, resamples=2.5), "got 2.5"),
        (lambda: gain_by_group(BEFORE, AFTER, IMAGE, "absent"), "groups.*'absent'"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert re.fullmatch(r"Expected .*, got .*; .*\.", str(error.value))


def test_sums_of_several_models_give_what_pairs_of_them_give() -> None:
    values = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    group = torch.arange(40) // 3
    *sums, queries = resample_sums(values, group).unbind(dim=1)
    assert queries[0] == 40 and len(queries) == 1001
    for old, new in itertools.permutations(range(3), 2):
        for statistic in ("difference", "relative", "ratio"):
            found = change_of_means(sums[old], sums[new], queries, statistic)
            assert found == paired_bootstrap(values[:, old], values[:, new], group, statistic)
