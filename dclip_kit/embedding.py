"""Features of pictures, captions and caption tokens, all L2-normalised.

Axes: image, text, token, embed.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from dclip_kit.datasets import open_picture
from dclip_kit.encoders import ClipBundle

Pictures = Sequence[Path] | Sequence[Image.Image] | UInt8[Tensor, "image 3 height width"]


def read_pixels(
    bundle: ClipBundle, pictures: Pictures, workers: int = 2, progress: bool = True
) -> UInt8[Tensor, "image 3 height width"]:
    """Reads and preprocesses pictures once, as bytes.

    Raises:
        ValueError: a picture cannot be read, named; or there is none.
    """
    if isinstance(pictures, Tensor):
        return pictures
    if len(pictures) == 0:
        raise ValueError("Expected at least one picture, got none.")

    def one(picture: Path | Image.Image) -> Tensor:
        return bundle.to_pixels(
            picture if isinstance(picture, Image.Image) else open_picture(picture)
        )

    with ThreadPoolExecutor(workers) as pool:
        return torch.stack(
            list(
                tqdm(
                    pool.map(one, pictures),
                    total=len(pictures),
                    delay=2,
                    desc="reading pictures",
                    disable=not progress,
                )
            )
        )


@torch.no_grad()
def encode_images(
    bundle: ClipBundle, pictures: Pictures, batch_size: int = 256, progress: bool = True
) -> Float[Tensor, "image embed"]:
    """Encodes pictures, a batch in memory at a time.

    Raises:
        ValueError: as `read_pixels`, or a feature is not finite.
    """
    features = []
    for start in tqdm(
        range(0, len(pictures), batch_size), desc="encoding pictures", delay=2, disable=not progress
    ):
        pixels = read_pixels(bundle, pictures[start : start + batch_size], progress=False)
        features.append(bundle.model.encode_image(bundle.normalize(pixels), normalize=True).cpu())
    return _finite(torch.cat(features) if features else torch.empty(0, 0), "image")


@torch.no_grad()
def encode_texts(
    bundle: ClipBundle, texts: Sequence[str], batch_size: int = 512
) -> Float[Tensor, "text embed"]:
    """Encodes texts.

    Raises:
        ValueError: a text is empty, there is none, or a feature is not finite.
    """
    features = []
    for start in range(0, len(texts), batch_size):
        ids = tokenize(bundle, texts[start : start + batch_size]).to(bundle.device)
        features.append(bundle.model.encode_text(ids, normalize=True).cpu())
    return _finite(torch.cat(features) if features else torch.empty(0, 0), "text")


@dataclass(frozen=True, eq=False)
class TokenFeatures:
    """Features of caption tokens in the joint space, padded.

    Attributes:
        features: of shape (text, token, embed), L2-normalised; 0 where padded.
        mask: True at real tokens; start, end and padding are not.
    """

    features: Float[Tensor, "text token embed"]
    mask: Bool[Tensor, "text token"]


@torch.no_grad()
def encode_tokens(bundle: ClipBundle, texts: Sequence[str], batch_size: int = 512) -> TokenFeatures:
    """Last hidden states at the real tokens, through the text projection (METHOD: caption tokens).

    Raises:
        ValueError: a text is empty, or the text tower has no token features of this kind.
    """
    text_tower = getattr(bundle.model, "text", bundle.model)
    projection = getattr(text_tower, "text_projection", None)
    if projection is None or not hasattr(bundle.model, "forward_intermediates"):
        raise ValueError(
            f"Expected a text tower with a projection, {bundle.name} has none that "
            "open_clip exposes; take a CLIP with a transformer of open_clip's own."
        )
    features, masks = [], []
    for start in range(0, len(texts), batch_size):
        ids = tokenize(bundle, texts[start : start + batch_size]).to(bundle.device)
        hidden = bundle.model.forward_intermediates(
            text=ids, text_indices=1, normalize_intermediates=True, intermediates_only=True
        )["text_intermediates"][-1]
        projected = projection(hidden) if isinstance(projection, nn.Module) else hidden @ projection
        mask = real_tokens(ids)
        features.append((F.normalize(projected, dim=-1) * mask[..., None]).cpu())
        masks.append(mask.cpu())
    mask = torch.cat(masks)
    longest = int(mask.sum(1).max()) + 1  # the start token stands first, masked
    return TokenFeatures(_finite(torch.cat(features)[:, :longest], "token"), mask[:, :longest])


def tokenize(bundle: ClipBundle, texts: Sequence[str]) -> Int[Tensor, "text context"]:
    """Token ids.

    Raises:
        ValueError: a text is empty.
    """
    empty = [index for index, text in enumerate(texts) if not text.strip()]
    if len(texts) == 0 or empty:
        raise ValueError(
            f"Expected texts that say something, got an empty one at {empty[:5]}; leave it out."
        )
    return bundle.tokenizer(list(texts))


def real_tokens(ids: Int[Tensor, "text context"]) -> Bool[Tensor, "text context"]:
    """True between start and end: CLIP's end token has the highest id, 0 also is a real token."""
    position = torch.arange(ids.shape[1], device=ids.device)
    return (position > 0) & (position < ids.argmax(dim=1, keepdim=True))


def _finite(features: Tensor, kind: str) -> Tensor:
    bad = (~features.isfinite()).reshape(len(features), -1).any(1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"Expected finite {kind} features, got NaN or infinity at {bad[:5]}; the "
            "model's weights are damaged or its precision overflows."
        )
    return features
