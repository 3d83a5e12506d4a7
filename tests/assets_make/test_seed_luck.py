"""Trainings that differ in their seed alone: who beats whom, and how wide intervals must be."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from assets.make.seed_luck import (
    ALPHAS,
    CONTROL,
    Trainings,
    choose_groups,
    compare_trainings,
    count_beaten,
    describe_short,
    format_short,
    pool,
    read_short,
    read_studies,
    widen,
)
from assets.make.study import pack_counts, read_study
from dclip_kit.evaluation.compare import say_luck
from dclip_kit.evaluation.evaluate import WAYS
from dclip_kit.metrics import Interval
from dclip_kit.runtime.files import asset_path

STUDY = """
seeds = [0, 1]
[arms]
clip = { recipe = "none" }
contrastive_nnn = { recipe = "contrastive", steps = 400, rescoring = { method = "nnn" } }
contrastive = { recipe = "contrastive", steps = 400 }
contrastive_text = { recipe = "contrastive", steps = 400, student = { train_text = true } }
"""


def draw_hits(shares: list[float], images: int, seed: int = 0) -> list[Tensor]:
    """Of each training, out of five queries a picture; pictures differ in how hard they are."""
    rng = np.random.default_rng(seed)
    hard = rng.uniform(-0.1, 0.1, images)
    return [torch.tensor(rng.binomial(5, share + hard)).double() for share in shares]


def interval(gain: float, half: float) -> Interval:
    return Interval(gain, gain - half, gain + half)


def test_identical_trainings_never_beat_each_other() -> None:
    (hits,) = draw_hits([0.3], 50)
    found = compare_trainings([hits, hits, hits], torch.full((50,), 5.0))
    assert [(x.estimate, x.low, x.high) for x in found.gains] == [(0, 0, 0)] * 3
    assert found.beaten == found.beaten_if_wider(0.0) == found.factor == found.half_width == 0
    luck = pool([found])
    assert (luck.pairs, luck.beaten, luck.share_beyond) == (3, 0, 0)
    assert luck.factor == luck.deviation == Interval(0.0, 0.0, 0.0)


def test_a_clearly_better_training_beats_beyond_the_interval() -> None:
    better, worse = torch.tensor([1.0, 1, 1, 1, 0] * 20), torch.tensor([1.0, 0, 0, 0, 0] * 20)
    found = compare_trainings([worse, better], torch.ones(100))
    assert found.recall_at_1 == pytest.approx((0.2, 0.8))
    assert found.gains[0].estimate == pytest.approx(0.6) and found.beaten == 1
    assert compare_trainings([better, worse], torch.ones(100)).beaten == 1  # for the worse, too
    always = compare_trainings([torch.zeros(9), torch.ones(9)], torch.ones(9))  # no width at all
    assert always.beaten == 1 and pool([always]).share_beyond == 1


def test_a_pair_within_the_interval_is_not_beaten() -> None:
    one, other = torch.tensor([1.0, 0, 1, 0, 1, 0]), torch.tensor([0.0, 1, 1, 0, 1, 1])
    assert compare_trainings([one, other], torch.ones(6)).beaten == 0


def test_factor_and_luck_of_a_case_by_hand() -> None:
    # Half widths are 1.96 standard deviations of half a point; gains are 1, 2 and 1 points.
    gains = tuple(interval(gain, 0.0098) for gain in (0.01, 0.02, 0.01))
    found = Trainings((0.20, 0.21, 0.22), gains)
    assert found.beaten == 3 and found.half_width == pytest.approx(0.0098)
    assert found.factor == pytest.approx(8**0.5, rel=1e-4)  # of 2, 4 and 2
    # Of the seeds 0.01 squared, of which half of 0.005 squared is the pictures'.
    assert found.scatter == pytest.approx(1e-4 / 0.21**2)
    assert found.of_pictures == pytest.approx(1.25e-5 / 0.21**2, rel=1e-4)
    luck = pool([found]).deviation.estimate
    assert luck == pytest.approx(8.75e-5**0.5 / 0.21, rel=1e-4)
    assert found.beaten_if_wider(0.0) == 3 and found.beaten_if_wider(luck**2) == 0
    # With the luck of both trainings the interval is as much wider as the factor says.
    both = 0.21 * widen(0.0098 / 0.21, 0.0, [luck, luck])
    assert both == pytest.approx(found.factor * found.half_width, rel=1e-4)


def test_widening_counts_each_training_once_and_means_less() -> None:
    assert widen(0.03, 0.5, []) == pytest.approx(0.03)
    once = widen(0.0, 0.5, [0.01])
    assert once == pytest.approx(1.96 * 1.5 * 0.01, rel=1e-4)
    assert widen(0.0, 0.5, [0.01, 0.01], trainings=2) == pytest.approx(once)
    assert widen(0.03, 0.0, [0.04 / 1.959964]) == pytest.approx(0.05)


def test_disjoint_pairs_share_no_training() -> None:
    gains = tuple(interval(10.0 * a + b, 0.5) for a, b in combinations(range(5), 2))
    found = Trainings((0.0,) * 5, gains).disjoint
    assert [gain.estimate for gain in found.gains] == [1, 23]


def test_pools_weigh_groups_by_their_seeds() -> None:
    pair = Trainings((0.2, 0.21), (interval(0.01, 0.0196),))  # a factor of 1, within
    three = Trainings((0.20, 0.21, 0.22), tuple(interval(x, 0.0098) for x in (0.01, 0.02, 0.01)))
    luck = pool([pair, three])
    assert (luck.pairs, luck.beaten) == (4, 3)
    assert luck.factor.estimate == pytest.approx(((1 + 2 * 8) / 3) ** 0.5, rel=1e-4)
    # Three degrees of freedom: chi-squared is 0.216 to 9.348 in 95 of 100 draws.
    ends = [luck.factor.estimate * (3 / x) ** 0.5 for x in (9.348, 0.216)]
    assert [luck.factor.low, luck.factor.high] == pytest.approx(ends, rel=0.02)
    scatter = (0.01**2 / 2 / 0.205**2 + 2 * 1e-4 / 0.21**2) / 3
    of_pictures = (0.01**2 / 2 / 0.205**2 + 2 * 1.25e-5 / 0.21**2) / 3
    assert luck.deviation.estimate == pytest.approx((scatter - of_pictures) ** 0.5, rel=1e-4)
    assert luck.deviation.low == pytest.approx((scatter * 3 / 9.348 - of_pictures) ** 0.5, rel=0.02)
    one = pool([pair])
    assert one.share_beyond == pytest.approx(0.05, abs=1e-4)
    assert one.deviation.estimate < 1e-3 and one.deviation.low == 0


def test_without_luck_about_one_in_twenty_is_beaten_and_with_it_more() -> None:
    queries, rng = torch.full((300,), 5.0), np.random.default_rng(1)
    same = [compare_trainings(draw_hits([0.3] * 4, 300, seed), queries) for seed in range(16)]
    luck = pool(same)
    assert luck.factor.low < 1 < luck.factor.high and luck.beaten / luck.pairs < 0.12
    shares = [rng.normal(0.3, 0.02, 4).tolist() for _ in range(16)]
    apart = [compare_trainings(draw_hits(x, 300, n), queries) for n, x in enumerate(shares)]
    luck = pool(apart)
    assert luck.factor.low > 1 and luck.beaten / luck.pairs > 0.2
    assert luck.deviation.estimate == pytest.approx(0.02 / 0.3, rel=0.25)
    wider = sum(each.beaten_if_wider(luck.deviation.estimate**2) for each in apart)
    assert wider / luck.pairs < 0.12


def write_study(path: Path, hits: dict[str, list[list[float]]]) -> None:
    """A study of one set of pictures with a query each, and its records: α is 1."""
    path.write_text(STUDY)
    study = read_study(path)
    for arm in study.arms:
        for seed, own in enumerate(hits.get(arm.name, [])):
            found = {way: pack_counts(torch.tensor(own)) for way in WAYS}
            record = {
                "alpha": 1.0,
                "frontier": [
                    {"alpha": alpha, "retention": 1.0, "hits": found} for alpha in (0.0, 1.0)
                ],
                "queries": {way: "1" * len(own) for way in WAYS},
                "settings": study.describe(arm, seed),
            }
            place = study.record_of(arm, seed)
            place.parent.mkdir(exist_ok=True)
            place.write_text(json.dumps(record))


def test_studies_count_each_training_once(tmp_path: Path) -> None:
    often, seldom = [1.0, 1, 1, 1, 0] * 8, [1.0, 0, 0, 0, 0] * 8
    hits = {
        "clip": [seldom],
        "contrastive": [often, seldom],
        "contrastive_nnn": [often, often],  # the same trainings
        "contrastive_text": [often],  # of one seed only
    }
    write_study(tmp_path / "a.toml", hits)
    write_study(tmp_path / "b.toml", hits | {"contrastive_text": [seldom, seldom]})
    found = {(arm.study, arm.name): arm for arm in read_studies(tmp_path)}
    assert list(found) == [("a", "contrastive"), ("b", "contrastive_text")]
    assert [arm.trained_text for arm in found.values()] == [False, True]
    for point in ("chosen", "95.5"):
        for way in WAYS:
            beaten = [arm.found[point][way].beaten for arm in found.values()]
            assert beaten == [1, 0]


def short_record(seed: int, hits: dict[str, list[Tensor]]) -> dict[str, Any]:
    packed = {name: dict.fromkeys(WAYS, pack_counts(own[seed])) for name, own in hits.items()}
    return {"seed": seed, "seconds": 1.0, "hits": {str(alpha): packed for alpha in ALPHAS}}


def test_short_trainings_are_read_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hits = {
        name: [torch.tensor(rng.binomial(1, 0.4, size)).double() for _ in range(4)]
        for name, size in (("test", 40), ("further", 60))
    }
    for seed in range(4):
        (tmp_path / f"{CONTROL}-{seed}.json").write_text(json.dumps(short_record(seed, hits)))
    (tmp_path / "clip.json").write_text(json.dumps({"hits": short_record(0, hits)["hits"]["1.0"]}))
    record = json.loads(json.dumps(describe_short(tmp_path, 4)))
    hits["both"] = [torch.cat(pair) for pair in zip(*hits.values(), strict=True)]
    assert len(read_short(record)) == len(ALPHAS) * 3 * 2
    for (_, name, way), found in read_short(record).items():
        queries = torch.full_like(hits[name][0], 5 if way == "text_to_image" else 1)
        expected = compare_trainings(hits[name], queries)
        assert found.recall_at_1 == pytest.approx(expected.recall_at_1, abs=1e-5)
        assert (found.beaten, len(found.gains)) == (expected.beaten, 6)
        assert found.factor == pytest.approx(expected.factor, rel=1e-3)
        clip = float((hits[name][0] / queries).mean())
        assert record["clip"][name][way] == pytest.approx(clip, abs=1e-5)
    assert format_short(record).count("\n") == 1 + len(ALPHAS) * 3 * 2


def test_the_committed_record_agrees_with_itself() -> None:
    record = json.loads(asset_path("studies", "seed_luck.json").read_text())
    assert len(record["seconds"]) >= 2
    for found in read_short(record).values():
        pairs = combinations(found.recall_at_1, 2)
        gains = [gain.estimate for gain in found.gains]
        assert gains == pytest.approx([later - earlier for earlier, later in pairs], abs=2e-5)
        assert all(gain.low <= gain.estimate <= gain.high for gain in found.gains)


@pytest.mark.parametrize("text", [False, True])
def test_what_reports_say_of_luck_is_what_the_records_say(text: bool) -> None:
    arms = read_studies(asset_path("studies"))
    short = json.loads(asset_path("studies", "seed_luck.json").read_text())
    beaten, pairs = count_beaten(arms, short, text)
    said = say_luck(text)
    assert f"of {pairs} pairs of such trainings {beaten} were told apart" in said
    deviations = [
        100 * pool(choose_groups(arms, short, text, "chosen", way)).deviation.estimate
        for way in WAYS
    ]
    numbers = [float(each) for each in said.split("another by ")[1].split(" %")[0].split(" to ")]
    assert [round(min(deviations)), round(max(deviations))] == [numbers[0], numbers[-1]]
