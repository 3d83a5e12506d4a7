"""The plan of a training: the order of pictures and captions, batches, and learning rates."""

from collections.abc import Iterable
from math import cos, pi
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from dclip_kit.config import StudentSettings
from dclip_kit.features.store import FrozenFeatures
from dclip_kit.models.weights import AFTER_BLOCKS

DECAYED = "matrices"  # what weight decay shrinks; kept in checkpoints, beside groups made by it


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


def split_batches(rows: Tensor, size: int) -> list[Tensor]:
    """An epoch's batches; a last one of one picture has no negatives and joins the one before."""
    batches = list(rows.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def split_decayed(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """An optimizer's groups: matrices, which decay, and biases, norms and scales, which do not.

    As open_clip's own training has it. Shrinking a norm's scale is no prior of any use.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named:
        groups[parameter.ndim > 1 and "bias" not in name].append(parameter)
    return [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]


def group_parameters(module: nn.Module, settings: StudentSettings) -> list[dict[str, Any]]:
    """What trains, by its highest learning rate: in the blocks (and all texts), and after them.

    Each in two groups, by `split_decayed`.
    """
    named = [
        (name.removeprefix("visual."), parameter)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
    rates = {False: settings.learning_rate * settings.block_rate, True: settings.learning_rate}
    return [
        {**group, "peak": rate}
        for after, rate in rates.items()
        for group in split_decayed(
            [(name, p) for name, p in named if bool(AFTER_BLOCKS.match(name)) == after],
            settings.weight_decay,
        )
    ]


def schedule_rate(done: float, warmup: float) -> float:
    """Share of the learning rate: linear warm-up, then a cosine to zero.

    Args:
        done: share of the steps that are done, 0 to 1.
        warmup: share of the steps in which it rises.
    """
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + cos(pi * (done - warmup) / (1 - warmup)))
