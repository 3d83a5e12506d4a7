"""What an image tower computes in: precision, kernels, norms, frozen statistics."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.fusion import fuse_conv_bn_eval


def keep_statistics(tower: nn.Module) -> None:
    """Batch norm goes on normalising by what CLIP saw: a few pictures of one kind would bend it."""
    for module in tower.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


@contextmanager
def folded_norms(tower: nn.Module) -> Iterator[None]:
    """A forward pass in which open_clip's ResNets normalise by the weights of their convolutions.

    With its statistics kept, a batch norm only scales and shifts what the convolution before it
    makes. Scaling its weights instead has the same gradients, and spares passes over all
    activations (arXiv 2305.11624). Other towers stay as they are.
    """
    pairs = _normed_convolutions(tower)
    for convolution, norm in pairs:
        convolution.forward = partial(_convolve, convolution, norm)
        norm.forward = nn.Identity.forward.__get__(norm)
    try:
        yield
    finally:
        for module in (module for pair in pairs for module in pair):
            del module.forward


def fold_norms(tower: nn.Module) -> nn.Module:
    """A copy to compute features with, of an open_clip ResNet; other towers as they are.

    As `folded_norms`, once for all pictures, and without a trace on the tower: others may be
    computing with it. All other weights are shared.
    """
    return tower if tower.training or not _normed_convolutions(tower) else _fold(tower)


def _fold(module: Any) -> Any:
    folded = copy.copy(module)
    folded._modules = {name: _fold(child) for name, child in module._modules.items()}
    for (first, convolution), (then, norm) in pairwise(module.named_children()):
        if _is_normed(convolution, norm):
            folded._modules |= {first: fuse_conv_bn_eval(convolution, norm), then: nn.Identity()}
    return folded


def _normed_convolutions(tower: nn.Module) -> list[tuple[Any, Any]]:
    """An open_clip ResNet's convolutions, each with its norm; of other towers nothing is known."""
    return [
        pair
        for module in (tower.modules() if isinstance(tower, ModifiedResNet) else ())
        for pair in pairwise(module.children())
        if _is_normed(*pair)
    ]


def _is_normed(convolution: nn.Module, norm: nn.Module) -> bool:
    return type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d


def _convolve(convolution: Any, norm: Any, pixels: Tensor) -> Tensor:
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * scale
    return convolution._conv_forward(pixels, convolution.weight * scale[:, None, None, None], shift)


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


@contextmanager
def fast_forward(tower: nn.Module, device: torch.device) -> Iterator[None]:
    """A forward pass that makes the same, and whose backward pass takes less time.

    Plain attention on CPUs, whose fused kernel's backward pass took a third of a ViT's step, and
    `folded_norms`.
    """
    attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with attention, folded_norms(tower):
        yield


def send(values: Tensor, device: torch.device) -> Tensor:
    """Values on a device, without waiting until they are there.

    Copies to a GPU wait for all that it has to do before, unless they are from pinned memory.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """For one forward pass.

    Accelerate's would last: the first training's precision holds for every later one in the
    process, and wraps the tower, so that validation would run in bf16 too.

    Raises:
        ValueError: the precision is neither "no" nor "bf16".
    """
    if precision not in ("no", "bf16"):
        raise ValueError(f"Expected a precision of no or bf16 to compute in, got {precision!r}.")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
