"""How often candidates come up, counted by hand."""

import pytest
import torch

from dclip_kit.metrics import k_occurrence, skewness

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


def test_all_places_are_given_whatever_the_tiles() -> None:
    queries, candidates = torch.randn(37, 6), torch.randn(11, 6)
    whole = k_occurrence(queries, candidates, 3)
    assert whole.sum() == pytest.approx(3 * 37)
    assert torch.equal(whole, k_occurrence(queries, candidates, 3, tile_size=1))


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


def test_bad_input_is_named() -> None:
    for k in (0, 5):
        with pytest.raises(ValueError, match=rf"1\.\.4 .*got {k} and"):
            k_occurrence(QUERIES, CANDIDATES, k)
    with pytest.raises(ValueError, match="at least one query"):
        k_occurrence(QUERIES[:0], CANDIDATES, 1)
    for values in (torch.ones(3), torch.tensor([]), torch.tensor([1.0, float("nan")])):
        with pytest.raises(ValueError, match="values that differ"):
            skewness(values)
