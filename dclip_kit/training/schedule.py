"""Learning rates of the fine-tune: which parameters take which, and how they rise and fall."""

from collections.abc import Iterable
from math import cos, pi
from typing import Any

from torch import nn

from dclip_kit.config import StudentSettings
from dclip_kit.models.weights import follows_blocks

DECAYED = "matrices"  # what weight decay shrinks; kept in checkpoints, beside groups made by it


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
            [(name, p) for name, p in named if follows_blocks(name) == after],
            settings.weight_decay,
        )
    ]


def schedule_rate(done: float, settings: StudentSettings) -> float:
    """Share of the learning rate: linear warm-up, cosine to zero."""
    warmup = settings.warmup_share
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + cos(pi * (done - warmup) / (1 - warmup)))
