"""LoRA (arXiv 2106.09685) through peft: low-rank adapters in the image tower, then merged into it.

Of an attention layer, peft changes the frozen weights for each pass and changes them back, which
rounds them each time, and counts the output projection's adapter twice (huggingface/peft#3774).
Here an adapter is added once, to weights that stay as they are.
"""

import re
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.weights import choose_parameters, clone_clip
from dclip_kit.runtime.packages import require_packages

_LAYER = re.compile(r"(transformer\.resblocks\.\d+\.(?:attn|mlp\.c_fc|mlp\.c_proj))\.")
_NAME = "default"  # of the adapter, as peft calls it


def choose_layers(bundle: ClipBundle, policy: str) -> list[str]:
    """Names of the image tower's layers that get adapters: those of which a policy trains matrices.

    Raises:
        ValueError: as `freeze`; or the tower is not a vision transformer of open_clip's own, or the
            policy trains none of its attention and MLP layers.
        ImportError: peft is not installed, or does not fit the installed transformers.
    """
    tower = bundle.model.visual
    if not isinstance(tower, VisionTransformer) or not all(
        isinstance(block, ResidualAttentionBlock) for block in tower.transformer.resblocks
    ):
        raise ValueError(
            "Expected open_clip's own vision transformer for student.lora, which adapts its "
            f"attention and MLP layers, got {bundle.name} with another image tower; set "
            "student.lora to 0."
        )
    matches = map(_LAYER.match, choose_parameters(bundle, policy))
    layers = list(dict.fromkeys(match[1] for match in matches if match))
    if not layers:
        raise ValueError(
            "Expected a student.train with attention or MLP layers for student.lora to adapt, got "
            f"{policy!r}; take all, attention or last_blocks(n), or set student.lora to 0."
        )
    require_packages("lora", "peft")
    return layers


def attach_adapters(bundle: ClipBundle, policy: str, rank: int) -> None:
    """Freezes the image tower, in place, and gives its layers adapters, which alone train.

    A layer's weight W becomes W + B A, where A is drawn from torch's global random state and B
    begins as zeros, so that features are the same at first.

    Args:
        bundle: a CLIP.
        policy: of `freeze`: which layers get adapters.
        rank: of B A.

    Raises:
        ValueError, ImportError: as `choose_layers`.
    """
    layers = choose_layers(bundle, policy)
    from peft import LoraConfig, LoraModel
    from peft.tuners.lora.layer import MultiheadAttention

    class Attention(MultiheadAttention):
        """peft's, with its adapters added as the module's docstring says."""

        base_layer: Any  # nn.MultiheadAttention, whose out_proj has an adapter, too

        def add(self) -> dict[str, Tensor]:
            """The weights with the adapters' added."""
            layer, projection = self.base_layer, self.base_layer.out_proj
            return {
                "in_proj_weight": layer.in_proj_weight + self.get_delta_weight(_NAME),
                "out_proj.base_layer.weight": projection.base_layer.weight
                + projection.get_delta_weight(_NAME),
            }

        def forward(self, query: Tensor, *args: Any, **kwargs: Any) -> Any:
            return functional_call(self.base_layer, self.add(), (query, *args), kwargs)

        def unload_and_optionally_merge_module(self, *_: Any, **__: Any) -> nn.MultiheadAttention:
            for name, value in self.add().items():
                self.base_layer.get_parameter(name).data.copy_(value)
            self.base_layer.out_proj = self.base_layer.out_proj.base_layer
            return self.base_layer

        def _restore_weights(self) -> None:
            """Leaves the weights where they are; peft's would change their order."""

    # The scale that peft puts before B A is alpha / r.
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="|".join(map(re.escape, layers)))
    config._register_custom_module({nn.MultiheadAttention: Attention})
    bundle.model.visual = LoraModel(bundle.model.visual, config, _NAME)


@torch.no_grad()
def merge_adapters(bundle: ClipBundle) -> ClipBundle:
    """A CLIP as open_clip has it, with the adapters in its weights; the bundle if it has none."""
    if not hasattr(bundle.model.visual, "merge_and_unload"):
        return bundle
    merged = clone_clip(bundle)
    merged.model.visual = merged.model.visual.merge_and_unload()
    return merged
