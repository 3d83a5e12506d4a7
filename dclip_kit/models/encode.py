"""Pictures and texts: read as a CLIP takes them, and their features, all L2-normalised.

Axes: image, text, token, embed; context (the positions of a text tower).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from dclip_kit.data.pictures import as_seen, count_pixels, open_picture
from dclip_kit.models.clip import ClipBundle, autocast
from dclip_kit.runtime.machine import count_workers
from dclip_kit.runtime.processes import gather_rows, is_main_process, own_share

# Files, pictures, or their pixels in bytes.
Pictures = Sequence[Path] | Sequence[Image.Image] | Shaped[Tensor, "image 3 height width"]

Item = TypeVar("Item")
Read = TypeVar("Read")

_SHORTENING = Lock()  # of models that a page's threads share

KEPT_BYTES = 1 << 29  # of a set's pictures in memory
MOST_PIXELS = 32_000_000  # of pictures opened at a time, each of 4 bytes in Pillow


# Pictures, as a CLIP takes them: read by threads, and ahead of what computes with them


def split_by_pixels(pictures: Sequence[Image.Image | Path | str], size: int) -> Iterator[range]:
    """Splits pictures into groups of consecutive indices, each to be opened together.

    Args:
        pictures: opened already, or their files.
        size: most pictures in a group; fewer if together they have more than `MOST_PIXELS`.
    """
    start = 0
    while start < len(pictures):
        pixels = [
            item.width * item.height if isinstance(item, Image.Image) else count_pixels(item)
            for item in pictures[start : start + size]
        ]
        count = max(1, sum(total <= MOST_PIXELS for total in accumulate(pixels)))
        yield range(start, start + count)
        start += count


def read_picture(bundle: ClipBundle, path: Path) -> UInt8[Tensor, "3 height width"]:
    """A whole picture as CLIP takes it, in bytes; large JPEGs are decoded at reduced size.

    Raises:
        ValueError: as `open_picture`.
    """
    return bundle.to_pixels(open_picture(path, bundle.side))


def read_ahead(
    read: Callable[[Item], Read],
    batches: Iterable[Sequence[Item]],
    busy: torch.device,
) -> Iterator[list[Read]]:
    """Reads batches in threads, each while the caller works on the one before.

    Args:
        read: reads an item; called in threads.
        batches: of items. At most two batches that have been read are in memory at a time.
        busy: the device that the caller computes on. On the CPU, a batch is read only when it is
            asked for, since reading ahead would compete for the same processors.

    Yields:
        What `read` returned for each batch's items, in their order.

    Raises:
        Whatever `read` raises, once the batch is reached.
    """
    ahead = 0 if busy.type == "cpu" else 1
    pending: deque[Iterator[Read]] = deque()
    with ThreadPoolExecutor(count_workers()) as pool:
        for batch in batches:
            pending.append(pool.map(read, batch))
            if len(pending) > ahead:
                yield list(pending.popleft())
        for items in pending:
            yield list(items)


def read_batches(
    bundle: ClipBundle,
    pictures: Pictures,
    batches: Iterable[Tensor],
    busy: torch.device | None = None,
) -> Iterator[Tensor]:
    """Reads batches of picture indices as bytes; `busy` defaults to the CLIP's device.

    Raises:
        ValueError: a picture cannot be read; the message names it.
    """
    if isinstance(pictures, Tensor):
        yield from (pictures[batch] for batch in batches)
        return

    def read(index: int) -> Tensor:
        picture = pictures[index]
        if isinstance(picture, Image.Image):
            return bundle.to_pixels(as_seen(picture))
        return read_picture(bundle, picture)

    index_lists = (batch.tolist() for batch in batches)
    yield from map(torch.stack, read_ahead(read, index_lists, busy or bundle.device))


def read_pixels(bundle: ClipBundle, pictures: Pictures) -> Shaped[Tensor, "image 3 height width"]:
    """Reads and preprocesses pictures once, as bytes; tensors are left as they are.

    Raises:
        ValueError: a picture cannot be read; the message names it.
    """
    if isinstance(pictures, Tensor):
        return pictures
    sample = bundle.to_pixels(Image.new("RGB", (1, 1)))
    # Filled batch by batch: concatenating parts would take the memory twice.
    pixels = torch.empty(
        (len(pictures), *sample.shape), dtype=sample.dtype, memory_format=torch.channels_last
    )
    batches = torch.arange(len(pictures)).split(64)
    bar = tqdm(batches, desc="reading pictures", delay=2, disable=not is_main_process())
    for indices, batch in zip(bar, read_batches(bundle, pictures, batches), strict=True):
        pixels[indices] = batch
    return pixels


def read_few(bundle: ClipBundle, pictures: Pictures) -> Pictures:
    """As `read_pixels`, but pictures beyond `KEPT_BYTES` stay as they are, to be read when used."""
    size = bundle.to_pixels(Image.new("RGB", (1, 1))).numel()
    return read_pixels(bundle, pictures) if len(pictures) * size <= KEPT_BYTES else pictures


# Features


def encode_images(
    bundle: ClipBundle, pictures: Pictures, batch_size: int = 64, progress: bool = True
) -> Float[Tensor, "image embed"]:
    """Encodes pictures, one batch in memory at a time; several processes share the work.

    All processes must call it with the same pictures, and each gets all features.

    Raises:
        ValueError: there is no picture, one cannot be read (the message names it), or a feature is
            not finite.
    """
    if isinstance(pictures, str | Path | Image.Image) or len(pictures) == 0:
        raise ValueError(
            "Expected a sequence of at least one picture, got none or one by itself; give a list."
        )
    batches = own_share(len(pictures)).split(batch_size)
    bar = tqdm(
        read_batches(bundle, pictures, batches),
        desc="encoding pictures",
        total=len(batches),
        delay=2,
        disable=not (progress and is_main_process()),
    )
    return gather_rows(torch.cat([encode_pixels(bundle, pixels) for pixels in bar]))[
        : len(pictures)
    ]


@torch.no_grad()
def encode_pixels(
    bundle: ClipBundle, pixels: Shaped[Tensor, "image 3 height width"], normalized: bool = True
) -> Float[Tensor, "image embed"]:
    """Encodes one batch of pictures in this process alone.

    Args:
        bundle: the CLIP.
        pixels: as `ClipBundle.normalize` takes them.
        normalized: whether to normalise as CLIP's preprocessing does; if not, the model gets
            values from 0 to 1, as crops in the published code (2 in `config.RECIPES`).

    Returns:
        The features, on the CPU.

    Raises:
        ValueError: as `ClipBundle.normalize`, or a feature is not finite.
    """
    inputs = bundle.normalize(pixels) if normalized else bundle.to_unit(pixels)
    with autocast(bundle.device, bundle.precision):
        encoded = bundle.model.encode_image(inputs, normalize=False)
    return _require_finite(F.normalize(encoded.float(), dim=-1).cpu(), "image")


def encode_texts(
    bundle: ClipBundle, texts: Sequence[str], batch_size: int = 512
) -> Float[Tensor, "text embed"]:
    """Encodes texts; several processes, all of which must call it, share the work.

    Raises:
        ValueError: a text is empty, there is none, or a feature is not finite.
    """
    require_texts(texts)
    share = [texts[index] for index in own_share(len(texts)).tolist()]
    # Checked where all have all: an error in one process alone would leave the others waiting.
    encoded = gather_rows(_encode_texts(bundle, share, batch_size))[: len(texts)]
    return _require_finite(encoded, "text")


def encode_own_texts(
    bundle: ClipBundle, texts: Sequence[str], batch_size: int
) -> Float[Tensor, "text embed"]:
    """As `encode_texts`, in this process alone."""
    require_texts(texts)
    return _require_finite(_encode_texts(bundle, texts, batch_size), "text")


@torch.no_grad()
def _encode_texts(
    bundle: ClipBundle, texts: Sequence[str], batch_size: int
) -> Float[Tensor, "text embed"]:
    encoded = torch.empty(len(texts), bundle.embed_dim)
    for indices, ids in token_batches(bundle, texts, batch_size):
        with shortened(bundle.model, ids) as short_ids:
            encoded[indices] = bundle.model.encode_text(short_ids, normalize=True).float().cpu()
    return encoded


@dataclass(frozen=True, eq=False)
class TokenFeatures:
    """Features of caption tokens in the joint space, padded.

    Attributes:
        features: of shape (text, token, embed), L2-normalised; 0 where padded.
        mask: True at real tokens, which start and end are not.
        text: features of the whole texts, as from `encode_texts`.
    """

    features: Float[Tensor, "text token embed"]
    mask: Bool[Tensor, "text token"]
    text: Float[Tensor, "text embed"]


def has_tokens(bundle: ClipBundle) -> bool:
    """Whether a CLIP's text tower has features of single tokens, as `encode_tokens` needs them."""
    text_tower = getattr(bundle.model, "text", bundle.model)
    pooling = getattr(text_tower, "text_pool_type", getattr(text_tower, "pool_type", None))
    return getattr(text_tower, "text_projection", None) is not None and pooling == "argmax"


def require_tokens(bundle: ClipBundle) -> Any:
    """The projection of a text tower with features of single tokens.

    Raises:
        ValueError: it has none of this kind.
    """
    if not has_tokens(bundle):
        raise ValueError(
            f"Expected a text tower with a projection and the end token's pooling, got "
            f"{bundle.name}, which lacks one; take a CLIP with open_clip's own text transformer, "
            "or a recipe whose teacher reads no captions, such as region_taught."
        )
    return getattr(bundle.model, "text", bundle.model).text_projection


@torch.no_grad()
def encode_tokens(bundle: ClipBundle, texts: Sequence[str], batch_size: int = 512) -> TokenFeatures:
    """Last hidden states at the real tokens, through the text projection: DCLIP's tokens.

    In this process alone.

    Raises:
        ValueError: a text has no token, there is none, or the text tower has no token features of
            this kind.
    """
    require_texts(texts)
    projection = require_tokens(bundle)
    rows: dict[int, Tensor] = {}
    text_features = torch.empty(len(texts), bundle.embed_dim)
    for indices, batch in token_batches(bundle, texts, batch_size):
        with shortened(bundle.model, batch) as ids:
            output = bundle.model.forward_intermediates(
                text=ids, text_indices=1, normalize_intermediates=True
            )
        text_features[indices] = output["text_features"].float().cpu()
        hidden = output["text_intermediates"][-1]
        projected = projection(hidden) if isinstance(projection, nn.Module) else hidden @ projection
        features, real = F.normalize(projected, dim=-1).cpu(), real_tokens(ids).cpu()
        for index, tokens, mask in zip(indices.tolist(), features, real, strict=True):
            rows[index] = tokens[mask]
    padded = pad_sequence([rows[index] for index in range(len(texts))], batch_first=True)
    count = torch.tensor([len(rows[index]) for index in range(len(texts))])
    if not count.all():
        empty = [texts[index] for index in (count == 0).nonzero()[:, 0].tolist()]
        raise ValueError(
            f"Expected texts with at least one token each, got {empty[:3]}; leave them out."
        )
    mask = torch.arange(padded.shape[1]) < count[:, None]
    return TokenFeatures(
        _require_finite(padded, "token"), mask, _require_finite(text_features, "text")
    )


def _require_finite(features: Tensor, kind: str) -> Tensor:
    bad = (~features.isfinite()).reshape(len(features), -1).any(1)
    if bad.any():
        raise ValueError(
            f"Expected finite {kind} features, got NaN or infinity in {int(bad.sum())} of "
            f"{len(bad)}; the model's weights are damaged or its precision overflows."
        )
    return features


# Texts as tokens


def read_tokens(bundle: ClipBundle, text: str) -> tuple[str, ...]:
    """The text's real tokens as strings, in the order of `encode_tokens`' features.

    A rare word is split into several tokens; the vocabulary has only frequent words whole.
    """
    ids = bundle.tokenizer([text])
    # open_clip wraps tokenizers of transformers.
    decoder: Any = getattr(bundle.tokenizer, "tokenizer", bundle.tokenizer)
    return tuple(decoder.decode([token]).strip() for token in ids[real_tokens(ids)].tolist())


def require_texts(texts: Sequence[str]) -> None:
    """Checks that there is at least one text and that none is empty.

    Raises:
        TypeError: it is a single text.
        ValueError: there is no text, or one is empty.
    """
    if isinstance(texts, str):
        raise TypeError(f"Expected a sequence of texts, got one; give [{texts!r}].")
    if len(texts) == 0:
        raise ValueError("Expected at least one text, got none.")
    empty = [i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
    if empty:
        raise ValueError(
            f"Expected texts that are not empty, got {texts[empty[0]]!r} at {empty[:5]}; leave "
            "it out."
        )


def real_tokens(ids: Int[Tensor, "text context"]) -> Bool[Tensor, "text context"]:
    """True between start and end; CLIP's end token has the highest id, and 0 is a real token."""
    position = torch.arange(ids.shape[1], device=ids.device)
    return (position > 0) & (position < ids.argmax(dim=1, keepdim=True))


def token_batches(
    bundle: ClipBundle, texts: Sequence[str], size: int
) -> Iterator[tuple[Int[Tensor, "chosen"], Int[Tensor, "chosen _"]]]:
    """Batches of texts of similar length: their indices, and token ids on the model's device."""
    order = torch.tensor([len(text) for text in texts]).argsort(stable=True)
    for indices in order.split(size):
        yield indices, bundle.tokenizer([texts[index] for index in indices]).to(bundle.device)


@contextmanager
def shortened(
    model: Any, ids: Int[Tensor, "text context"]
) -> Iterator[Int[Tensor, "text shorter"]]:
    """Lets a text tower read texts only up to the longest one's end token.

    The rest is padding, to which no earlier token attends: with CLIP's 77 positions and captions of
    a dozen words, that is most of the work. Towers that attend to it, or pool elsewhere, read all.
    """
    tower = getattr(model, "text", model)
    pooling = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    causal = isinstance(getattr(tower, "attn_mask", None), Tensor)
    if pooling != "argmax" or not causal or getattr(tower, "cls_emb", None) is not None:
        yield ids
        return
    length = max(ids.argmax(dim=1).tolist()) + 1
    with _SHORTENING:
        positions, mask = tower.positional_embedding, tower.attn_mask
        try:
            # open_clip adds all positions to its input. A slice replaces the parameter, which plain
            # assignment would refuse; gradients flow back through it.
            tower._parameters["positional_embedding"] = positions[:length]
            tower.attn_mask = mask[:length, :length]
            yield ids[:, :length]
        finally:
            tower.positional_embedding, tower.attn_mask = positions, mask
