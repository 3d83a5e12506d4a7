"""The order of pairs, the same for both trainings."""

from math import isfinite

import torch
from jaxtyping import Int
from torch import Tensor

from dclip_kit.features.frozen import FrozenFeatures


def draw_captions(
    features: FrozenFeatures, seed: int, epoch: int, captions_per_image: int = 1
) -> Int[Tensor, "image caption"]:
    """An epoch's order: every captioned picture once, with captions drawn anew.

    A function of seed and epoch alone, so that all arms see the same data and a resumed run goes on
    as if it had never stopped.

    Args:
        features: of the training data.
        seed: of the run.
        epoch: from 0.
        captions_per_image: at most so many of a picture's captions.

    Returns:
        Indices of captions, a row a picture; where a picture has too few, its row ends in -1.
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    shuffled = torch.randperm(len(features.text), generator=generator)
    owners = features.image_of_text[shuffled]
    grouped = owners.argsort(stable=True)  # places in `shuffled`, a picture's beside each other
    counts = owners.bincount(minlength=len(features))
    starts, counts = (counts.cumsum(0) - counts)[counts > 0], counts[counts > 0]
    column = torch.arange(captions_per_image)
    places = (starts[:, None] + column).clamp(max=len(shuffled) - 1)
    rows = shuffled[grouped[places]].where(column < counts[:, None], -1)  # image caption
    return rows[grouped[starts].argsort()]


def require_finite(**named: Tensor) -> None:
    """Looks for NaN in what a training is going to see, once: none of its steps does.

    Raises:
        ValueError: there is some, or infinity.
    """
    for name, values in named.items():
        if not all(part.isfinite().all() for part in values.split(65_536)):
            raise ValueError(
                f"Expected finite {name}, got NaN or infinity; extract the features again."
            )


def require_finite_loss(loss: float, step: int) -> float:
    """The loss of a step, before it moves any weight.

    Raises:
        ValueError: it is not finite.
    """
    if not isfinite(loss):
        raise ValueError(
            f"Expected a finite loss, got {loss} at step {step}; lower the learning rate."
        )
    return loss


def split_batches(rows: Tensor, size: int) -> list[Tensor]:
    """An epoch's batches; a last one of one picture has no negatives and joins the one before."""
    batches = list(rows.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
