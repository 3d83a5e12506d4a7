"""Padding: unequally many items an image as one tensor, with a mask of what is real.

Axes: `image` a batch, `item` the regions or tokens of one image, `embed` the joint space.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True, eq=False)
class PaddedFeatures:
    """Features of unequally many items an image; `mask` is True where an item is real."""

    features: Float[Tensor, "image item embed"]
    mask: Bool[Tensor, "image item"]


def pad_features(features: Sequence[Float[Tensor, "_ embed"]]) -> PaddedFeatures:
    """Pads each image's features (of regions or tokens) with zeros to the longest.

    Raises:
        ValueError: as `pad_values`, or if widths differ.
    """
    widths = sorted({item.shape[-1] for item in features})
    if len(widths) > 1:
        raise ValueError(f"features must all have one width, not {widths}; encode with one model.")
    ones = pad_values([item.new_ones(len(item)) for item in features])
    return PaddedFeatures(pad_sequence(list(features), batch_first=True), ones.bool())


def pad_values(values: Sequence[Float[Tensor, "_"]]) -> Float[Tensor, "image item"]:
    """Pads each image's numbers (areas, confidences) with zeros to the longest.

    Raises:
        ValueError: if there is no image, or an image without items.
    """
    empty = [index for index, items in enumerate(values) if len(items) == 0]
    if empty or not values:
        raise ValueError(
            "padding needs at least one image and in each at least one region or token, but "
            f"{f'images {empty} have none' if empty else 'there is no image'}; leave them out."
        )
    return pad_sequence(list(values), batch_first=True)
