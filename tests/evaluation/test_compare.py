"""What may be claimed of two arms: tables, gains, queries won and lost, and mixtures."""

import re
from dataclasses import replace

import pytest
import torch

from dclip_kit.evaluation.arms import Arm, Candidate
from dclip_kit.evaluation.compare import (
    WAYS,
    compare,
    draw_queries,
    format_retrieval,
    format_zero_shot,
    measure_mixes,
    recall_gains,
    say_gain,
    won_and_lost,
)
from dclip_kit.evaluation.evaluate import RetrievalSet, ZeroShot, ZeroShotSet, evaluate_zero_shot
from dclip_kit.metrics import Gain, Interval, paired_bootstrap, retrieval_metrics
from dclip_kit.models.encode import encode_images
from dclip_kit.models.weights import clone_clip, interpolate

OWNER = torch.tensor([0, 0, 1, 2])  # three pictures, four captions


def measured(texts: torch.Tensor):
    """Pictures are the axes, so that a caption's coordinates are its scores."""
    return retrieval_metrics(torch.eye(3), texts, OWNER, (1, 2))


@pytest.fixture
def before():
    return measured(torch.tensor([[0.9, 0, 0], [0, 0.9, 0.1], [0, 0.9, 0], [0.9, 0.1, 0.5]]))


@pytest.fixture
def after():
    return measured(torch.tensor([[0.9, 0, 0], [0.9, 0.5, 0], [0.9, 0.5, 0], [0, 0, 0.9]]))


# Text → image ranks: before 1, 3, 1, 2; after 1, 1, 2, 1.


def test_the_example_is_what_it_says(before, after) -> None:
    assert before.text_to_image.ranks.tolist() == [1, 3, 1, 2]
    assert after.text_to_image.ranks.tolist() == [1, 1, 2, 1]


def test_the_table_has_every_arm_metric_and_direction(before, after) -> None:
    text = format_retrieval({"clip": before, "dclip": after})
    blocks = [block.splitlines() for block in text.split("\n\n")]
    assert [block[0].split("  ")[0] for block in blocks] == list(WAYS.values())
    for block, way in zip(blocks, WAYS, strict=True):
        assert block[0].split()[-2:] == ["clip", "dclip"]
        rows = {line[:13].strip(): re.findall(r"([\d.]+) \[", line) for line in block[1:]}
        assert list(rows) == ["Recall@1", "Recall@2", "MAP", "MRR", "median rank"]
        for name, result in (("clip", before), ("dclip", after)):
            found = getattr(result, way)
            column = ["clip", "dclip"].index(name)
            expected = [*found.recall_at.values(), found.mean_average_precision]
            expected.append(found.mean_reciprocal_rank)
            shown = [float(row[column]) for row in list(rows.values())[:4]]
            assert shown == pytest.approx([100 * value for value in expected], abs=0.051)
            assert f"{found.median_rank:g}" in block[-1]
    assert len({len(line) for block in blocks for line in block}) == 1


def test_the_tables_columns_do_not_touch(before, after) -> None:
    perfect = replace(before, text_to_image=after.text_to_image)
    text = format_retrieval({"clip": perfect, "dclip": perfect})
    assert "[100.0–100.0]  100.0 [" in text
    assert len({len(line) for line in text.splitlines() if line}) == 1


def test_the_tables_intervals_are_bootstraps_over_images(before) -> None:
    hits = before.text_to_image.hits(1).double()
    spread = paired_bootstrap(0 * hits, hits, OWNER)
    ends = f"[{100 * spread.low:.1f}–{100 * spread.high:.1f}]"
    assert ends in format_retrieval({"clip": before}).splitlines()[1]


def test_gains_are_paired_differences_both_ways(before, after) -> None:
    found = compare(before, after)
    assert list(found) == list(WAYS.values())
    for way, title in WAYS.items():
        old, new = getattr(before, way), getattr(after, way)
        gains = {gain.name: gain for gain in found[title]}
        assert list(gains) == ["Recall@1", "Recall@2", "MAP", "MRR"]
        assert gains["Recall@1"].change == paired_bootstrap(
            old.hits(1), new.hits(1), old.image_of_query
        )
        precision = old.average_precision.double(), new.average_precision.double()
        assert gains["MAP"].change == paired_bootstrap(*precision, old.image_of_query)
        assert gains["MRR"].before == pytest.approx(old.mean_reciprocal_rank)
    assert found["text → image"][0].change.estimate == pytest.approx(0.25)


def test_gains_by_facet_are_of_recall_at_k(before, after) -> None:
    facets = {"size": ["small", "large", "large", "small"]}
    way = before.text_to_image, after.text_to_image
    large, small = recall_gains(*way, facets, {"size": ("large", "small")})["size"]
    assert (large.before, large.after, small.before, small.after) == (0.5, 0.5, 0.5, 1)
    (first, _) = recall_gains(*way, facets, {}, k=2)["size"]
    assert (first.name, first.before, first.after) == ("small", 1, 1)


@pytest.mark.parametrize(
    ("low", "high", "judged"),
    [
        (0.01, 0.03, "better"),
        (-0.03, -0.01, "worse"),
        (-0.01, 0.03, "not known to differ"),
        (0.0, 0.02, "not known to differ"),
    ],
)
def test_a_sentence_claims_what_the_interval_allows(low, high, judged) -> None:
    middle = (low + high) / 2
    sentence = say_gain(Gain("a", 5, 0.2, 0.2 + middle, Interval(middle, low, high)), "R@1")
    assert sentence.startswith(f"R@1: 20.0 → {20 + 100 * middle:.1f} %, {100 * middle:+.1f} points")
    assert sentence.endswith(f"[{100 * low:+.1f} to {100 * high:+.1f}]: {judged}")


def test_won_minus_lost_is_the_gain(before, after) -> None:
    swing = won_and_lost(before.text_to_image, after.text_to_image)
    assert (swing.won, swing.lost, swing.both, swing.neither) == ((1, 3), (2,), 1, 0)
    assert "2 won, 1 lost: +1 in all" in str(swing)
    assert won_and_lost(before.text_to_image, after.text_to_image, k=2).lost == ()


def test_drawn_queries_are_of_different_pictures_and_by_lot() -> None:
    owner = torch.arange(40) // 4
    chosen = list(range(3, 40))
    drawn = [draw_queries(chosen, owner, 10, seed) for seed in range(5)]
    for each in drawn:
        assert sorted(owner[each].tolist()) == list(range(10)) and set(each) <= set(chosen)
    assert len({tuple(each) for each in drawn}) == 5
    assert draw_queries(chosen, owner, 3, 1) == drawn[1][:3]
    assert draw_queries([], owner, 3) == []


@pytest.fixture
def arms(clip):
    """The tiny CLIP and two that were changed, by hand, from it."""
    found = {"clip": Arm("clip", clip)}
    for name, scale in (("contrastive", 0.9), ("dclip", 1.1)):
        tuned = clone_clip(clip)
        for parameter in tuned.model.visual.parameters():
            parameter.data *= scale
        found[name] = Arm(name, tuned, 0.8, (Candidate(0.0, 0.1, 1.0),), [])
    return found


@pytest.fixture
def sets(clip, pixels):
    """Eleven pictures with a caption each, and labels of which clip gets most right."""
    labels = (encode_images(clip, pixels) @ torch.eye(32).T).argmax(1)
    labels[0] = (labels[0] + 1) % 32
    classes = torch.eye(32)
    retrieval = RetrievalSet(pixels, torch.randn(11, 32), torch.arange(11))
    return retrieval, ZeroShotSet(pixels, labels, classes, torch.ones(32, dtype=torch.bool))


def test_mixes_are_measured_from_clip_to_the_arm(arms, sets) -> None:
    traced = measure_mixes(arms, *sets, steps=(0.5,))
    assert list(traced) == ["contrastive", "dclip"]
    base = evaluate_zero_shot(arms["clip"].clip, sets[1], progress=False).top1
    for name, arm in traced.items():
        assert arm.clip is arms[name].clip and arm.alpha == 0.8
        assert [point.alpha for point in arm.candidates] == [0.0, 0.4, 0.8]
        for step, point in zip((0.0, 0.5, 1.0), arm.candidates, strict=True):
            mixed = interpolate(arms["clip"].clip, arm.clip, step)
            found = retrieval_metrics(
                encode_images(mixed, sets[0].pictures), sets[0].text_features, torch.arange(11)
            )
            assert point.recall_at_1 == pytest.approx(found.text_to_image.recall_at[1])
            kept = evaluate_zero_shot(mixed, sets[1], progress=False).top1 / base
            assert point.retention == pytest.approx(kept)
        assert arm.candidates[0].retention == 1


def test_ends_named_among_the_steps_are_measured_once(arms, sets) -> None:
    traced = measure_mixes(arms, *sets, steps=(0.0, 1.0))
    assert [point.alpha for point in traced["dclip"].candidates] == [0.0, 0.8]


def test_bad_mixes_are_named(arms, sets) -> None:
    with pytest.raises(ValueError, match=r"from 0 to 1, got 1\.5"):
        measure_mixes(arms, *sets, steps=(1.5,))
    labels = (encode_images(arms["clip"].clip, sets[1].pictures) @ torch.eye(32)).argmin(1)
    with pytest.raises(ValueError, match="got none right"):
        measure_mixes(arms, sets[0], replace(sets[1], labels=labels))


def test_zero_shot_is_said_with_intervals_and_what_is_kept() -> None:
    def result(right: int) -> ZeroShot:
        correct = torch.arange(20) < right
        return ZeroShot(correct, right / 20, None, None)

    first, second = format_zero_shot({"clip": result(20), "dclip": result(10)}).splitlines()
    assert first == "clip: 100.0 [100.0–100.0] %"
    low, high = re.fullmatch(
        r"dclip: 50\.0 \[(.+)–(.+)\] %, 50\.0 \[\1–\2\] % of the first's", second
    ).groups()
    assert 20 < float(low) < 50 < float(high) < 80
    nothing = format_zero_shot({"clip": result(0), "dclip": result(10)})
    assert "of the first's" not in nothing


def test_columns_are_as_wide_as_their_names(before, after) -> None:
    table = format_retrieval({"a": before, "runs/of last week/dclip": after})
    lines = [line for line in table.splitlines() if line]
    assert {len(line) for line in lines} == {13 + 2 * len("  runs/of last week/dclip")}
