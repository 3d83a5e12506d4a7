"""What models compute in: precision, kept statistics, copies to a device."""

import os

import torch
from torch import Tensor, nn

PRECISIONS = ("no", "bf16")


def keep_statistics(tower: nn.Module) -> None:
    """Batch norm goes on normalising by what CLIP saw: a few pictures of one kind would bend it."""
    for module in tower.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def choose_precision(asked: str) -> str:
    """Turns "auto" into bf16 where `accelerate launch` or the hardware says so, else into fp32.

    Raises:
        ValueError: the precision is unknown, or accelerate was launched with another.
    """
    if asked != "auto":
        if asked not in PRECISIONS:
            raise ValueError(f"Expected a precision out of auto, no, bf16, got {asked!r}.")
        return asked
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in PRECISIONS:
        raise ValueError(
            f"Expected accelerate's mixed precision to be no or bf16, got {launched!r}; launch it "
            "with --mixed_precision bf16, or set the student's mixed_precision to no."
        )
    if torch.cuda.is_available():
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu._is_avx512_bf16_supported()
    return "bf16" if able or launched == "bf16" else "no"


def send(values: Tensor, device: torch.device) -> Tensor:
    """Values on a device, without waiting until they are there.

    Copies to a GPU wait for all that it has to do before, unless they are from pinned memory.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """For one forward pass.

    Accelerate's would last: the first training's precision would hold for every later one in the
    process, and wrap the tower, so that validation would run in bf16 too.

    Raises:
        ValueError: the precision is neither "no" nor "bf16".
    """
    if precision not in PRECISIONS:
        raise ValueError(f"Expected a precision of no or bf16 to compute in, got {precision!r}.")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
