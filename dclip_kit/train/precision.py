"""What a student computes in while it trains: precision, attention kernels, frozen statistics."""

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


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
    if asked in ("no", "bf16"):
        return asked
    if asked != "auto":
        raise ValueError(f"Expected a precision out of auto, no, bf16, got {asked!r}.")
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", "bf16"):
        raise ValueError(
            f"Expected accelerate's mixed precision to be no or bf16, got {launched!r}; launch it "
            "with --mixed_precision bf16, or set the student's mixed_precision to no."
        )
    if launched == "bf16":
        return launched
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"


def fast_attention(device: torch.device) -> AbstractContextManager[None]:
    """Plain attention on CPUs, whose fused kernel's backward pass took a third of a step."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """For one forward pass.

    Accelerate's would last: the first training's precision holds for every later one in the
    process, and wraps the tower, so that validation would run in bf16 too.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
