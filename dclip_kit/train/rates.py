"""Learning rates of the fine-tune: which parameters take which, and how they rise and fall."""

from math import cos, pi
from typing import Any

from torch import nn

from dclip_kit.config import StudentSettings
from dclip_kit.student import follows_blocks


def group_parameters(module: nn.Module, settings: StudentSettings) -> list[dict[str, Any]]:
    """What trains, by its highest learning rate: in the blocks (and all texts), and after them."""
    named = [
        (name.removeprefix("visual."), parameter)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
    rates = {False: settings.learning_rate * settings.block_rate, True: settings.learning_rate}
    return [
        {"params": [p for name, p in named if follows_blocks(name) == after], "peak": rate}
        for after, rate in rates.items()
    ]


def schedule_rate(done: float, settings: StudentSettings) -> float:
    """Share of the learning rate: linear warm-up, cosine to zero."""
    warmup = settings.warmup_share
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + cos(pi * (done - warmup) / (1 - warmup)))
