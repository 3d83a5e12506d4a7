"""Learning rates and weight decay: which parameters take which, and how rates rise and fall."""

from collections.abc import Iterable
from math import cos, pi
from typing import Any

from torch import Tensor, nn

from dclip_kit.config import StudentSettings
from dclip_kit.student import follows_blocks


def group_parameters(module: nn.Module, settings: StudentSettings) -> list[dict[str, Any]]:
    """What trains, by its highest learning rate (in the blocks and all texts, and after them).

    Each is divided once more, as `split_decayed` does.
    """
    named = [
        (name.removeprefix("visual."), parameter)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
    rates = {False: settings.learning_rate * settings.block_rate, True: settings.learning_rate}
    return [
        group | {"peak": rate}
        for after, rate in rates.items()
        for group in split_decayed(
            (p for name, p in named if follows_blocks(name) == after), settings.weight_decay
        )
    ]


DECAYED = "matrices"  # what checkpoints say of the groups below: others' states fit no longer


def split_decayed(parameters: Iterable[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Parameters that weight decay draws towards zero, and those it leaves alone.

    As open_clip trains: a norm's scale or a bias of zero is no simpler than another one.
    """
    given = list(parameters)
    return [
        {"params": [p for p in given if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in given if p.ndim < 2], "weight_decay": 0.0},
    ]


def schedule_rate(done: float, settings: StudentSettings) -> float:
    """Share of the learning rate: linear warm-up, cosine to zero."""
    warmup = settings.warmup_share
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + cos(pi * (done - warmup) / (1 - warmup)))
