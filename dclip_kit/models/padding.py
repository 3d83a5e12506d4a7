"""Padding: unequally many items an image as one tensor, with a mask of what is real.

Axes: `image` a batch, `item` the regions or tokens of one image, `embed` the joint space.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PaddedFeatures:
    """Features of unequally many items an image; `mask` is True where an item is real."""

    features: Float[Tensor, "image item embed"]
    mask: Bool[Tensor, "image item"]


def pad_rows(
    values: Float[Tensor, "row *rest"], start: Int[Tensor, "image"], count: Int[Tensor, "image"]
) -> tuple[Float[Tensor, "image item *rest"], Bool[Tensor, "image item"]]:
    """Takes some images' items out of all, which lie end to end; padded with 0 to the longest.

    Args:
        values: a row an item: its features, or its number (area, confidence).
        start: each image's first row.
        count: how many it has.

    Returns:
        The items, and a mask that is True where they are real.

    Raises:
        ValueError: there is no image, or an image without items.
    """
    counts = count.tolist()
    if min(counts, default=0) < 1:
        empty = [image for image, own in enumerate(counts) if own < 1]
        raise ValueError(
            "padding needs at least one image and in each at least one region or token, but "
            f"{f'images {empty} have none' if empty else 'there is no image'}; leave them out."
        )
    place = torch.arange(max(counts))
    mask = place < count[:, None]  # image item
    rows = torch.where(mask, start[:, None] + place, start[:, None])
    padding = ~mask.reshape(*mask.shape, *[1] * (values.ndim - 1))
    return values[rows].masked_fill(padding, 0.0), mask
