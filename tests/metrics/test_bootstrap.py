"""Gains by group, held against the whole and against numbers made by hand."""

import pytest
import torch

from dclip_kit.metrics import Gain, Interval, gain_by_group, paired_bootstrap

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
    (gain,) = gain_by_group(BEFORE, AFTER, IMAGE, ["all"] * 6, seed=3, resamples=50)
    assert gain.change == paired_bootstrap(BEFORE, AFTER, IMAGE, seed=3, resamples=50)


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
    with pytest.raises(ValueError, match="6, 6, 6 and 5"):
        gain_by_group(BEFORE, AFTER, IMAGE, GROUPS[:5])
