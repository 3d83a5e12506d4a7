"""The nearest vectors against a plain sort, in tiles of every size, with ties."""

import pytest
import torch

from dclip_kit.search import nearest
from dclip_kit.search.nearest import find_nearest


def sort_slowly(queries, candidates, top_k, left_out=()):
    """By score, then by index; one pair after the other."""
    rows = []
    for query in queries.tolist():
        scored = [
            (-sum(a * b for a, b in zip(query, each, strict=True)), index)
            for index, each in enumerate(candidates.tolist())
            if index not in left_out
        ]
        rows.append([index for _, index in sorted(scored)[:top_k]])
    return rows


@pytest.mark.parametrize("block", [2, 32])
@pytest.mark.parametrize("tile_size", [1, 40, 2**22])
@pytest.mark.parametrize("top_k", [1, 5, 1000])
def test_it_finds_what_sorting_finds(top_k, tile_size, block, monkeypatch) -> None:
    monkeypatch.setattr(nearest, "_BLOCK", block)
    monkeypatch.setattr(nearest, "_QUERIES", 4)
    # Small whole numbers: products are exact in any order, and most scores tie.
    queries, candidates = (
        torch.randint(-2, 3, (7, 3)).float(),
        torch.randint(-2, 3, (83, 3)).float(),
    )
    left_out = torch.zeros(83, dtype=torch.bool)
    left_out[[0, 5, 82]] = True
    shards = candidates.split([1, 50, 0, 32])
    found = find_nearest(queries, shards, top_k, left_out, tile_size)
    assert found.indices.tolist() == sort_slowly(queries, candidates, top_k, (0, 5, 82))
    torch.testing.assert_close(found.scores, (queries @ candidates.T).gather(1, found.indices))
    every = find_nearest(queries, shards, top_k, tile_size=tile_size)
    assert every.indices.tolist() == sort_slowly(queries, candidates, top_k)


def test_scores_that_differ_are_in_order() -> None:
    queries, candidates = torch.randn(5, 8), torch.randn(5000, 8)
    scores = queries @ candidates.T
    found = find_nearest(queries, [candidates], 20, tile_size=5 * 700)
    assert torch.equal(found.indices, scores.topk(20).indices)
    torch.testing.assert_close(found.scores, scores.topk(20).values)
    below = find_nearest(-queries.abs(), [candidates.abs()], 20, tile_size=5 * 700)
    assert torch.equal(below.indices, (-queries.abs() @ candidates.abs().T).topk(20).indices)


def test_equal_vectors_come_in_the_order_they_stand_in() -> None:
    found = find_nearest(torch.ones(2, 4), [torch.ones(3000, 4)], 7, tile_size=512)
    assert found.indices.tolist() == [list(range(7))] * 2
    zeros = torch.tensor([[0.0, 1], [-1, 0], [1, 0], [0, -1]])  # of either sign, as products
    assert find_nearest(torch.tensor([[1.0, 0]]), [zeros], 4).indices.tolist() == [[2, 0, 3, 1]]


def test_half_precision_gradients_and_no_queries() -> None:
    candidates = torch.randn(40, 8)
    trained = torch.nn.Parameter(candidates)
    assert find_nearest(trained, [trained], 1).indices.tolist() == [
        [int(x)] for x in (candidates @ candidates.T).argmax(1)
    ]
    halves = find_nearest(candidates.half(), [candidates.half()], 3)
    assert halves.scores.dtype == torch.float32
    assert halves.indices[:, 0].tolist() == [int(x) for x in (candidates @ candidates.T).argmax(1)]
    for many in ([candidates], [candidates] * 60):
        assert find_nearest(torch.empty(0, 8), many, 3).indices.shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"top_k": 0}, "top_k from 1 .*got 0 and 40"),
        ({"candidates": []}, "something to find, got 2 and 0"),
        ({"left_out": torch.ones(40, dtype=torch.bool)}, "something to find, got 2 and 0"),
        ({"queries": torch.ones(3, 9)}, r"\[8\], got 9"),
        ({"queries": torch.full((1, 8), float("nan"))}, "got NaN"),
        ({"candidates": [torch.ones(300, 8), torch.full((300, 8), float("nan"))]}, "got NaN"),
        ({"candidates": [torch.full((2, 8), -float("nan"))]}, "got NaN"),
    ],
)
def test_what_cannot_be_is_said(change, says) -> None:
    usual = {"queries": torch.ones(3, 8), "candidates": [torch.ones(40, 8)], "top_k": 2}
    with pytest.raises(ValueError, match=says):
        find_nearest(**usual | change)
