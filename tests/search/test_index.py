"""Exact search, against plain sorting and vectors written by hand."""

import pytest
import torch

from dclip_kit.search import index as search_index
from dclip_kit.search.index import Hits, find_nearest, related_share, search_images

IMAGES = torch.tensor([[1.0, 0], [0, 2], [3, 3], [-1, 0]])
QUERY = torch.tensor([1.0, 0.5])  # cosines with these: .894, .447, .949, -.894


def test_the_nearest_come_first_whatever_their_length() -> None:
    found = search_images(QUERY, IMAGES, 3)
    assert found.images == (2, 0, 1)
    assert found.scores == pytest.approx((1.5 / 2.5**0.5, 1 / 1.25**0.5, 0.5 / 1.25**0.5))
    assert search_images(100 * QUERY, IMAGES, 3).images == found.images


def test_one_query_may_be_a_vector_or_a_row() -> None:
    expected = search_images(QUERY, IMAGES, 3)
    assert search_images(QUERY[None], IMAGES, 3) == expected


def test_what_is_left_out_is_not_found() -> None:
    assert search_images(QUERY, IMAGES, 4, [2, 1]).images == (0, 3)
    assert isinstance(search_images(QUERY, IMAGES, 99), Hits)
    assert search_images(QUERY, IMAGES, 99).images == (2, 0, 1, 3)
    assert search_images(QUERY, IMAGES, 1, [2, 2, 7]).images == (0,)


def test_a_search_does_not_copy_the_pictures_vectors(monkeypatch) -> None:
    given, images = [], torch.eye(4)

    def find(queries, candidates, top_k):
        given.append(candidates)
        return find_nearest(queries, candidates, top_k)

    monkeypatch.setattr(search_index, "find_nearest", find)
    search_images(images[0], images, 2, [0])
    assert given[0].data_ptr() == images.data_ptr()


THINGS = [frozenset(names) for names in (("dog", "cup"), ("cup",), ("dog",), ("kite",))]


def test_a_picture_does_not_count_as_its_own_neighbour() -> None:
    # Nearest to each: 2 to 0, 2 to 1, 0 (ties with 1) to 2, 1 to 3.
    images = torch.tensor([[1.0, 0], [0, 1], [1, 0.9], [-1, 0.1]])
    assert related_share(images, THINGS, 1).tolist() == [1, 0, 1, 0]
    every = related_share(images, THINGS, 3).tolist()
    assert every == pytest.approx([2 / 3, 1 / 3, 1 / 3, 0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"query": torch.ones(3)}, "vectors of 3 numbers.*got 4 of 2"),
        ({"query": torch.zeros(2)}, "not all zeros"),
        ({"query": torch.tensor([1.0, float("nan")])}, "finite"),
        ({"top_k": 0}, "top_k from 1.*got 0"),
        ({"leave_out": [0, 1, 2, 3]}, "something to find, got 0"),
        ({"image_features": torch.full((3, 2), float("inf"))}, "3 of them not finite"),
    ],
)
def test_a_search_that_cannot_be_says_why(change, says) -> None:
    with pytest.raises(ValueError, match=says):
        search_images(**{"query": QUERY, "image_features": IMAGES, "top_k": 2} | change)


def test_other_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="got 3 and 1"):
        related_share(IMAGES, THINGS[:3], 1)
    with pytest.raises(ValueError, match="got 4 and 4"):
        related_share(IMAGES, THINGS, 4)


# The nearest


def sort_slowly(queries, candidates, top_k):
    """By score, then by index; one pair after the other."""
    rows = []
    for query in queries.tolist():
        scored = [
            (-sum(a * b for a, b in zip(query, each, strict=True)), index)
            for index, each in enumerate(candidates.tolist())
        ]
        rows.append([index for _, index in sorted(scored)[:top_k]])
    return rows


@pytest.mark.parametrize("scores_at_once", [4, 200, 2**22])  # one query, two, or all
@pytest.mark.parametrize("top_k", [1, 5, 1000])
def test_it_finds_what_sorting_finds(top_k, scores_at_once, monkeypatch) -> None:
    monkeypatch.setattr(search_index, "_SCORES", scores_at_once)
    # Small whole numbers: products are exact in any order, and most scores tie.
    queries, candidates = (
        torch.randint(-2, 3, (7, 3)).float(),
        torch.randint(-2, 3, (83, 3)).float(),
    )
    scores, rows = find_nearest(queries, candidates, top_k)
    assert rows.tolist() == sort_slowly(queries, candidates, top_k)
    torch.testing.assert_close(scores, (queries @ candidates.T).gather(1, rows))


def test_scores_that_differ_are_in_order(monkeypatch) -> None:
    monkeypatch.setattr(search_index, "_SCORES", 5 * 700)
    queries, candidates = torch.randn(5, 8), torch.randn(5000, 8)
    found, expected = find_nearest(queries, candidates, 20), (queries @ candidates.T).topk(20)
    assert torch.equal(found[1], expected.indices)
    torch.testing.assert_close(found[0], expected.values)
    below = find_nearest(-queries.abs(), candidates.abs(), 20)[1]
    assert torch.equal(below, (-queries.abs() @ candidates.abs().T).topk(20).indices)


def test_equal_vectors_come_in_the_order_they_stand_in() -> None:
    found = find_nearest(torch.ones(2, 4), torch.ones(3000, 4), 7)[1]
    assert found.tolist() == [list(range(7))] * 2
    zeros = torch.tensor([[0.0, 1], [-1, 0], [1, 0], [0, -1]])  # of either sign, as products
    assert find_nearest(torch.tensor([[1.0, 0]]), zeros, 4)[1].tolist() == [[2, 0, 3, 1]]


def test_half_precision_gradients_and_no_queries() -> None:
    images = torch.nn.Parameter(torch.randn(40, 8))
    expected = search_images(images[3].detach(), images.detach(), 3).images
    assert search_images(images[3], images, 3).images == expected
    assert search_images(images[3].half(), images.half(), 3).images == expected
    assert find_nearest(torch.empty(0, 8), torch.ones(40, 8), 3)[1].shape == (0, 3)


def test_nothing_to_find_is_said() -> None:
    with pytest.raises(ValueError, match="something to find, got 0; add vectors"):
        find_nearest(torch.ones(3, 8), torch.empty(0, 8), 2)


def test_arrays_of_numpy_are_searched_as_tensors_are() -> None:
    expected = search_images(QUERY, IMAGES, 3, [2])
    assert search_images(QUERY.numpy(), IMAGES.numpy(), 3, [2]) == expected
    expected = related_share(IMAGES, THINGS, 1).tolist()
    assert related_share(IMAGES.numpy(), THINGS, 1).tolist() == expected
