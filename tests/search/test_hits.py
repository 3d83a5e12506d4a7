"""Exact search over vectors written by hand."""

import pytest
import torch

from dclip_kit.search.hits import (
    Found,
    rank_answer,
    related_share,
    search_images,
    shared_things,
    top_k_overlap,
)

IMAGES = torch.tensor([[1.0, 0], [0, 2], [3, 3], [-1, 0]])
QUERY = torch.tensor([1.0, 0.5])  # cosines with these: .894, .447, .949, -.894


def test_the_nearest_come_first_whatever_their_length() -> None:
    found = search_images(QUERY, IMAGES, 3)
    assert found.images == (2, 0, 1)
    assert found.scores == pytest.approx((1.5 / 2.5**0.5, 1 / 1.25**0.5, 0.5 / 1.25**0.5))
    assert search_images(100 * QUERY, IMAGES, 3).images == found.images


def test_what_is_left_out_is_not_found() -> None:
    assert search_images(QUERY, IMAGES, 4, [2, 1]).images == (0, 3)
    assert isinstance(search_images(QUERY, IMAGES, 99), Found)
    assert search_images(QUERY, IMAGES, 99).images == (2, 0, 1, 3)


def test_the_best_of_several_answers_has_the_rank() -> None:
    assert rank_answer(QUERY, IMAGES, [1]) == 3
    assert rank_answer(QUERY, IMAGES, [3, 0]) == 2
    assert rank_answer(QUERY, torch.ones(4, 2), [1]) == 2.5  # the mean rank of four that tie


def test_overlap_is_the_share_found_by_both() -> None:
    one, other = torch.tensor([[1.0, 0.5], [0.0, 1]]), torch.tensor([[1.0, 0.5], [-1.0, -0.1]])
    # The second pair's best two: 1 and 2 for upwards, 3 and 1 for leftwards.
    assert top_k_overlap(one, other, IMAGES, 2).tolist() == [1.0, 0.5]
    assert top_k_overlap(one, other, IMAGES, 1).tolist() == [1.0, 0.0]
    assert top_k_overlap(one, other, IMAGES, 4).tolist() == [1.0, 1.0]


THINGS = [frozenset(names) for names in (("dog", "cup"), ("cup",), ("dog",), ("kite",))]


def test_shared_things_are_those_of_both_pictures() -> None:
    assert shared_things([1, 3, 0], THINGS, 0) == [{"cup"}, set(), {"dog", "cup"}]


def test_a_picture_does_not_count_as_its_own_neighbour() -> None:
    # Nearest to each: 2 to 0, 2 to 1, 0 (ties with 1) to 2, 1 to 3.
    images = torch.tensor([[1.0, 0], [0, 1], [1, 0.9], [-1, 0.1]])
    assert related_share(images, THINGS, 1).tolist() == [1, 0, 1, 0]
    every = related_share(images, THINGS, 3).tolist()
    assert every == pytest.approx([2 / 3, 1 / 3, 1 / 3, 0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"query": torch.ones(3)}, "query of 2 numbers.*got 3"),
        ({"query": torch.zeros(2)}, "not all zeros"),
        ({"query": torch.tensor([1.0, float("nan")])}, "finite"),
        ({"top_k": 0}, "top_k from 1.*got 0"),
        ({"leave_out": [0, 1, 2, 3]}, "something to find, got 2 and 0"),
    ],
)
def test_a_search_that_cannot_be_says_why(change, says) -> None:
    with pytest.raises(ValueError, match=says):
        search_images(**{"query": QUERY, "image_features": IMAGES, "top_k": 2} | change)


def test_other_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="at least one right picture"):
        rank_answer(QUERY, IMAGES, [])
    for k in (0, 5):
        with pytest.raises(ValueError, match=rf"1\.\.4 .*got {k}"):
            top_k_overlap(QUERY[None], QUERY[None], IMAGES, k)
    with pytest.raises(ValueError, match="got 3 and 1"):
        related_share(IMAGES, THINGS[:3], 1)
    with pytest.raises(ValueError, match="got 4 and 4"):
        related_share(IMAGES, THINGS, 4)
