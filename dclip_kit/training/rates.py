"""Learning rates: groups of parameters, weight decay, warm-up and decay of rates."""

from collections.abc import Iterable
from math import cos, pi
from typing import Any

from torch import nn

from dclip_kit.config import StudentSettings
from dclip_kit.models.weights import AFTER_BLOCKS


def split_decayed(
    named: Iterable[tuple[str, nn.Parameter]], rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """An optimizer's groups: matrices, which decay, and biases, norms and scales, which do not.

    As in open_clip's own training: shrinking the scale of a norm is not a useful prior.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named:
        groups[parameter.ndim > 1 and "bias" not in name].append(parameter)
    return [
        {
            "params": params,
            "lr": rate,
            "peak": rate,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for decays, params in groups.items()
    ]


def group_parameters(module: nn.Module, settings: StudentSettings) -> list[dict[str, Any]]:
    """Groups the trained parameters by peak learning rate: blocks (with all texts), and the rest.

    `split_decayed` splits each of them in two.
    """
    parts: dict[bool, list[tuple[str, nn.Parameter]]] = {False: [], True: []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            local_name = name.removeprefix("tower.").removeprefix("visual.")
            is_after = local_name.startswith("heads.") or bool(AFTER_BLOCKS.match(local_name))
            parts[is_after].append((name, parameter))
    rate, decay = settings.learning_rate, settings.weight_decay
    blocks = split_decayed(parts[False], rate * settings.block_rate, decay)
    return blocks + split_decayed(parts[True], rate, decay)


def schedule_rate(done: float, warmup: float) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine to zero.

    Args:
        done: share of the steps done, 0 to 1.
        warmup: share of the steps in which the rate rises.
    """
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + cos(pi * (done - warmup) / (1 - warmup)))
