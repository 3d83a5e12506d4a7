"""The student is CLIP itself: which of its parameters train, and weight interpolation."""

import copy
import re
from dataclasses import replace

import torch
from torch import nn

from dclip_kit.config import read_policy
from dclip_kit.models.clip import ClipBundle

# Parameter names in open_clip's own towers and in those of timm that it wraps (`trunk`, `head`). If
# `head` is empty, timm's classifier projects; SigLIP has none: its pooling ends in the joint space.
_PROJECTION = re.compile(
    r"proj$|head\.|attnpool\.c_proj\.|trunk\.(head(\.fc)?|fc|classifier)\.(weight|bias)$"
)
_POOLED_PROJECTION = re.compile(r"trunk\.attn_pool\.(proj|norm|mlp)\.")
_ATTENTION = re.compile(r"(^|\.)(attn(_?pool)?|token_mixer\.(qkv|proj))\.")
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
_BLOCK = re.compile(r".*?\b(?:(?:res)?blocks|layer\d+)\.\d+\.")
AFTER_BLOCKS = re.compile(  # pooling and projection, after a tower's blocks
    r"proj$|head\.|ln_post\.|attn_?pool\.|"
    r"trunk\.(norm|fc_norm|attn_pool|head|fc|final_conv|conv_head|bn2|classifier)\."
)


def clone_clip(bundle: ClipBundle) -> ClipBundle:
    """A copy that can be trained without changing the original."""
    return replace(bundle, model=copy.deepcopy(bundle.model))


def freeze(bundle: ClipBundle, policy: str) -> list[str]:
    """Sets `requires_grad`: the text tower and logit scale never, the image tower by policy.

    Args:
        bundle: the student.
        policy: "projection" (into the joint space; if pooling ends there, as SigLIP's does, the
            layers after its attention), "attention" (all attention weights, and the projection),
            "norms" (scales and shifts of normalisation layers), "last_blocks(n)" (the last n blocks
            and what follows them) or "all".

    Returns:
        The names of the image tower's parameters that train.

    Raises:
        ValueError: the policy is unknown, or matches nothing in this tower.
    """
    bundle.model.requires_grad_(False)
    everything = dict(bundle.model.visual.named_parameters())
    chosen = choose_parameters(bundle, policy)
    for name in chosen:
        everything[name].requires_grad_(True)
    return chosen


def choose_parameters(bundle: ClipBundle, policy: str) -> list[str]:
    """Names of the image tower's parameters that train under a policy of `freeze`.

    Raises:
        ValueError: as `freeze`.
    """
    names, last = [name for name, _ in bundle.model.visual.named_parameters()], read_policy(policy)
    projection = [name for name in names if _PROJECTION.match(name)]
    projection = projection or [name for name in names if _POOLED_PROJECTION.match(name)]
    blocks = list(dict.fromkeys(match[0] for name in names if (match := _BLOCK.match(name))))
    if last > len(blocks):
        raise ValueError(
            f"Expected at most {len(blocks)} blocks, as this tower has, got {policy!r}; take fewer."
        )
    if policy == "all":
        chosen = names
    elif policy == "projection":
        chosen = projection
    elif policy == "norms":
        layers = bundle.model.visual.named_modules()
        chosen = [
            f"{name}.{parameter}".removeprefix(".")
            for name, layer in layers
            if isinstance(layer, _NORMS)
            for parameter, _ in layer.named_parameters(recurse=False)
        ]
    elif policy == "attention":
        chosen = [name for name in names if _ATTENTION.search(name) or name in projection]
    else:
        prefixes = tuple(blocks[-last:])
        chosen = [name for name in names if name.startswith(prefixes) or AFTER_BLOCKS.match(name)]
    if not chosen:
        raise ValueError(
            f"Expected a policy that trains something, but {policy!r} matches no parameter of "
            f"{bundle.name}'s image tower; take 'all'."
        )
    return chosen


def interpolate(before: ClipBundle, after: ClipBundle, alpha: float) -> ClipBundle:
    """Mixes weights, (1 - alpha) * before + alpha * after (WiSE-FT, arXiv 2109.01903).

    Args:
        before: usually the untouched CLIP.
        after: of the same architecture.
        alpha: 0 to 1; 0 and 1 give exactly the ends.

    Raises:
        ValueError: alpha is outside 0 to 1, or the architectures differ.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"Expected an alpha from 0 to 1, got {alpha}; choose another.")
    before_weights, after_weights = before.model.state_dict(), after.model.state_dict()
    if {k: v.shape for k, v in before_weights.items()} != {
        k: v.shape for k, v in after_weights.items()
    }:
        raise ValueError(
            "Expected two CLIPs of one architecture, got different parameters; load both alike."
        )
    # Buffers that are not weights, such as counts of batches, are not mixed.
    mixed = replace(before, model=copy.deepcopy(after.model if alpha == 1 else before.model))
    weights = {
        name: torch.lerp(v, after_weights[name], alpha)
        for name, v in before_weights.items()
        if v.is_floating_point()
    }
    mixed.model.load_state_dict(weights, strict=False)
    return mixed


def round_changed(before: ClipBundle, after: ClipBundle) -> None:
    """Rounds weights that differ from another CLIP's to half precision, in place.

    `save_clip` then writes smaller files. Values beyond 65,504, half precision's limit, stay.
    """
    before_weights = before.model.state_dict()
    for name, value in after.model.state_dict().items():
        if value.is_floating_point() and not torch.equal(value, before_weights[name].to(value)):
            half = value.half().to(value.dtype)
            value.copy_(torch.where(half.isfinite(), half, value))


def same_text_tower(a: ClipBundle, b: ClipBundle) -> bool:
    """Whether two CLIPs of one architecture give the same features for every text."""
    first, second = a.model.state_dict(), b.model.state_dict()
    names = [name for name in first if not name.startswith(("visual.", "logit_"))]
    return all(torch.equal(first[name].cpu(), second[name].cpu()) for name in names)
