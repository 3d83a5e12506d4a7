"""Features of pictures, captions and caption tokens, all L2-normalised.

Axes: image, text, token, embed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.precision import autocast, fold_norms
from dclip_kit.models.reading import Pictures, read_batches
from dclip_kit.models.tokens import real_tokens, require_texts, shortened, token_batches
from dclip_kit.runtime.processes import gather_rows, is_main_process, own_share


def encode_images(
    bundle: ClipBundle, pictures: Pictures, batch_size: int = 64, progress: bool = True
) -> Float[Tensor, "image embed"]:
    """Encodes pictures, a batch in memory at a time; each of several processes encodes its share.

    All processes must call it, with the same pictures, and all get all features.

    Raises:
        ValueError: as `read_pixels`, or a feature is not finite.
    """
    if len(pictures) == 0:
        raise ValueError("Expected at least one picture, got none.")
    own = encode_own_images(bundle, pictures, own_share(len(pictures)), batch_size, progress)
    return gather_rows(own)[: len(pictures)]


@torch.no_grad()
def encode_own_images(
    bundle: ClipBundle,
    pictures: Pictures,
    chosen: Int[Tensor, "chosen"] | None = None,
    batch_size: int = 64,
    progress: bool = True,
    normalized: bool = True,
) -> Float[Tensor, "chosen embed"]:
    """Encodes pictures in this process alone.

    Args:
        bundle: the CLIP.
        pictures: at least one.
        chosen: which of them, by index; None for all.
        batch_size: pictures in memory at a time.
        progress: whether the main process shows a bar.
        normalized: as CLIP's preprocessing does; else the model is given values from 0 to 1, as
            the published code gives it its crops (2 in `config.RECIPES`).

    Raises:
        ValueError: as `read_pixels`, or a feature is not finite.
    """
    chosen = torch.arange(len(pictures)) if chosen is None else chosen
    batches = chosen.split(batch_size)
    model = bundle.with_tower(fold_norms(bundle.model.visual)).model
    features = []
    for images, pixels in tqdm(
        zip(batches, read_batches(bundle, pictures, batches, busy=bundle.device), strict=True),
        desc="encoding pictures",
        total=len(batches),
        delay=2,
        disable=not (progress and is_main_process()),
    ):
        given = bundle.normalize(pixels) if normalized else bundle.to_unit(pixels)
        with autocast(bundle.device, bundle.precision):
            encoded = model.encode_image(given, normalize=False)
        encoded = F.normalize(encoded.float(), dim=-1).cpu()
        features.append(_finite(encoded, "image", images))
    return torch.cat(features)


@torch.no_grad()
def encode_texts(
    bundle: ClipBundle, texts: Sequence[str], batch_size: int = 512
) -> Float[Tensor, "text embed"]:
    """Encodes texts; each of several processes, all of which must call it, encodes its share.

    Raises:
        ValueError: a text is empty, there is none, or a feature is not finite.
    """
    require_texts(texts)
    own = [texts[index] for index in own_share(len(texts)).tolist()]
    places, features = [], []
    for chosen, ids in token_batches(bundle, own, batch_size):
        with shortened(bundle.model, ids) as given:
            features.append(bundle.model.encode_text(given, normalize=True).cpu())
        places.append(chosen)
    encoded = torch.cat(features)[torch.cat(places).argsort()]
    return _finite(gather_rows(encoded)[: len(texts)], "text")


@dataclass(frozen=True, eq=False)
class TokenFeatures:
    """Features of caption tokens in the joint space, padded.

    Attributes:
        features: of shape (text, token, embed), L2-normalised; 0 where padded.
        mask: True at real tokens; start, end and padding are not.
        text: of the whole texts, as `encode_texts` gives them.
    """

    features: Float[Tensor, "text token embed"]
    mask: Bool[Tensor, "text token"]
    text: Float[Tensor, "text embed"]


@torch.no_grad()
def encode_tokens(bundle: ClipBundle, texts: Sequence[str], batch_size: int = 512) -> TokenFeatures:
    """Last hidden states at the real tokens, through the text projection: DCLIP's tokens.

    In this process alone.

    Raises:
        ValueError: a text has no token, or the text tower has no token features of this kind.
    """
    text_tower = getattr(bundle.model, "text", bundle.model)
    projection = getattr(text_tower, "text_projection", None)
    pooling = getattr(text_tower, "text_pool_type", getattr(text_tower, "pool_type", None))
    if projection is None or pooling != "argmax":
        raise ValueError(
            f"Expected a text tower with a projection and the end token's pooling, {bundle.name} "
            "has not both; take a CLIP whose text transformer is open_clip's own."
        )
    places, features, masks, whole = [], [], [], []
    for chosen, batch in token_batches(bundle, texts, batch_size):
        with shortened(bundle.model, batch) as ids:
            found = bundle.model.forward_intermediates(
                text=ids, text_indices=1, normalize_intermediates=True
            )
        places.append(chosen)
        whole.append(found["text_features"].cpu())
        hidden = found["text_intermediates"][-1]
        projected = projection(hidden) if isinstance(projection, nn.Module) else hidden @ projection
        mask = real_tokens(ids)
        features.append((F.normalize(projected, dim=-1) * mask[..., None]).cpu())
        masks.append(mask.cpu())
    order, width = torch.cat(places).argsort(), max(mask.shape[1] for mask in masks)
    mask = torch.cat([F.pad(own, (0, width - own.shape[1])) for own in masks])[order]
    token = torch.cat([F.pad(own, (0, 0, 0, width - own.shape[1])) for own in features])[order]
    if not mask.any(1).all():
        silent = [texts[index] for index in (~mask.any(1)).nonzero().flatten().tolist()]
        raise ValueError(f"Expected texts with a token each, got {silent[:3]}; leave them out.")
    longest = int(mask.sum(1).max()) + 1  # the start token stands first, masked
    token = _finite(token[:, :longest], "token")
    return TokenFeatures(token, mask[:, :longest], _finite(torch.cat(whole)[order], "text"))


def _finite(features: Tensor, kind: str, index: Tensor | None = None) -> Tensor:
    bad = (~features.isfinite()).reshape(len(features), -1).any(1)
    if bad.any():
        found = (bad.nonzero()[:, 0] if index is None else index[bad]).tolist()
        raise ValueError(
            f"Expected finite {kind} features, got NaN or infinity at {found[:5]}; the "
            "model's weights are damaged or its precision overflows."
        )
    return features
