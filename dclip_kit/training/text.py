"""The text tower trains too: what the published code does (5 in `config.RECIPES`)."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import tokenize


def unfreeze_text(bundle: ClipBundle) -> None:
    """All of a student's text tower trains; its logit scale and bias do not, as no loss has any."""
    for name, parameter in bundle.model.named_parameters():
        if not name.startswith(("visual.", "logit_")):
            parameter.requires_grad_(True)


def token_ids(bundle: ClipBundle, texts: Sequence[str] | None, count: int) -> Int[Tensor, "text _"]:
    """The captions of `count` text features as the text tower takes them.

    Raises:
        ValueError: there are none, or not one for each feature.
    """
    if texts is None or len(texts) != count:
        raise ValueError(
            f"Expected the {count} captions of the features, since the text tower trains, got "
            f"{None if texts is None else len(texts)}; give distill `texts`, such as "
            "`dataset.texts`, or set train_text=False."
        )
    return tokenize(bundle, texts)


def encode_pairs(
    model: Any, pixels: Float[Tensor, "image 3 height width"], ids: Int[Tensor, "text context"]
) -> tuple[Float[Tensor, "image embed"], Float[Tensor, "text embed"]]:
    """Both towers with gradient, L2-normalised, by one call of open_clip's own forward pass.

    Args:
        model: the CLIP, perhaps wrapped for several processes.
        pixels: normalised.
        ids: from `token_ids`.
    """
    found = model(pixels, ids)
    if isinstance(found, dict):
        return found["image_features"], found["text_features"]
    return found[0], found[1]
