"""Where a vision transformer looks for its vector of a picture.

Axes: row, column, of patches.
"""

from typing import Any

import torch
from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from PIL import Image
from torch import Tensor

from dclip_kit.data.pictures import as_seen
from dclip_kit.models.clip import ClipBundle


@torch.no_grad()
def map_attention(bundle: ClipBundle, picture: Image.Image) -> Float[Tensor, "row column"]:
    """What share of its attention a vision transformer gives each patch, in its last layer.

    The picture's vector is read off one token, which has gathered from the patches. The shares are
    the mean over attention heads and sum to 1; what the token keeps for itself is left out. Earlier
    layers have mixed the patches already, so a patch may speak for others.

    Raises:
        ValueError: the image tower is not a vision transformer of open_clip's own that is read off
            such a token.
    """
    tower = bundle.model.visual
    if (
        not isinstance(tower, VisionTransformer)
        or tower.attn_pool is not None
        or tower.pool_type != "tok"
        or not isinstance(last := tower.transformer.resblocks[-1], ResidualAttentionBlock)
    ):
        raise ValueError(
            "Expected open_clip's own vision transformer with a class token, got "
            f"{bundle.name} with another image tower; take pocket_vit, ViT-B-32 or the like."
        )
    weights: list[Tensor] = []

    def ask(_: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
        return inputs, options | {"need_weights": True}

    hooks = [
        last.attn.register_forward_pre_hook(ask, with_kwargs=True),
        last.attn.register_forward_hook(lambda _, __, output: weights.append(output[1])),
    ]
    try:
        bundle.model.encode_image(bundle.normalize(bundle.to_pixels(as_seen(picture))[None]))
    finally:
        for hook in hooks:
            hook.remove()
    shares = weights[0][0, 0, 1:].float().cpu()
    return (shares / shares.sum()).view(*tower.grid_size)
