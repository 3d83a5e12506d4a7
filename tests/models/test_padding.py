"""Padding: every item kept and marked, nothing padded out of nothing."""

import pytest
import torch

from dclip_kit.models.padding import pad_rows


def test_padding_keeps_the_items_and_marks_the_rest() -> None:
    values, count = torch.randn(11, 4), torch.tensor([2, 5, 1, 3])
    start = torch.tensor([0, 2, 7, 8])
    chosen = torch.tensor([3, 0, 3, 2])
    padded, mask = pad_rows(values, start[chosen], count[chosen])
    assert padded.shape == (4, 3, 4) and mask.sum(1).tolist() == [3, 2, 3, 1]
    for row, image in enumerate(chosen.tolist()):
        own = values[start[image] : start[image] + count[image]]
        assert torch.equal(padded[row, : len(own)], own) and mask[row, : len(own)].all()
    assert (padded[~mask] == 0).all()
    numbers, same = pad_rows(values[:, 0], start[chosen], count[chosen])
    assert torch.equal(numbers, padded[..., 0]) and torch.equal(same, mask)


def test_what_is_not_a_number_stays_where_it_is() -> None:
    """Padding repeats an image's first row before it is masked: NaN in it must not come through."""
    values = torch.tensor([[torch.nan], [1.0], [2.0]])
    padded, mask = pad_rows(values, torch.tensor([0, 1]), torch.tensor([1, 2]))
    assert padded.isnan().tolist() == [[[True], [False]], [[False], [False]]]
    assert mask.tolist() == [[True, False], [True, True]] and padded[0, 1] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_padding_keeps_the_type(dtype) -> None:
    values, start, count = torch.ones(3, 2, dtype=dtype), torch.tensor([0, 1]), torch.tensor([1, 2])
    assert pad_rows(values, start, count)[0].dtype == dtype


def test_padding_nothing_is_refused() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="there is no image"):
        pad_rows(torch.ones(1, 3), none, none)
    with pytest.raises(ValueError, match=r"images \[1\] have none"):
        pad_rows(torch.ones(2), torch.tensor([0, 2, 1]), torch.tensor([1, 0, 1]))
