"""Padding: every item kept and marked, nothing padded out of nothing."""

import pytest
import torch
from jaxtyping import TypeCheckError

from dclip_kit.padding import pad_features, pad_values


def test_padding_keeps_the_items_and_marks_the_rest() -> None:
    items = [torch.randn(count, 4) for count in (2, 5, 1)]
    padded = pad_features(items)
    assert padded.features.shape == (3, 5, 4)
    assert padded.mask.sum(1).tolist() == [2, 5, 1]
    for row, item in enumerate(items):
        assert torch.equal(padded.features[row][padded.mask[row]], item)
    assert (padded.features[~padded.mask] == 0).all()
    values = pad_values([torch.ones(2), torch.ones(5), torch.ones(1)])
    assert torch.equal(values, padded.mask.float())


def test_padding_keeps_the_type() -> None:
    assert pad_features([torch.ones(1, 2, dtype=torch.float64)]).features.dtype == torch.float64
    assert pad_values([torch.ones(1, dtype=torch.float16)]).dtype == torch.float16


def test_padding_nothing_is_refused() -> None:
    for pad in (pad_features, pad_values):
        with pytest.raises(ValueError, match="there is no image"):
            pad([])
    with pytest.raises(ValueError, match=r"images \[1\] have none"):
        pad_values([torch.ones(1), torch.ones(0)])
    with pytest.raises(ValueError, match=r"images \[0\] have none"):
        pad_features([torch.ones(0, 3), torch.ones(1, 3)])
    with pytest.raises((ValueError, TypeCheckError)):
        pad_features([torch.ones(1, 3), torch.ones(1, 4)])
    with pytest.raises(ValueError, match=r"one width, not \[3, 4\]"):
        pad_features.__wrapped__([torch.ones(1, 3), torch.ones(1, 4)])
