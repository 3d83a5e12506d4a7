"""Texts as tokens: what a text tower reads of them, and no more of its context than it has to.

Axes: text, context (the tower's positions).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from dclip_kit.models.clip import ClipBundle


def tokenize(bundle: ClipBundle, texts: Sequence[str]) -> Int[Tensor, "text context"]:
    """Token ids.

    Raises:
        ValueError: a text is empty, or there is none.
    """
    require_texts(texts)
    return bundle.tokenizer(list(texts))


def read_tokens(bundle: ClipBundle, text: str) -> tuple[str, ...]:
    """The text's real tokens as one reads them, in the order of `encode_tokens`' features.

    A rare word is several tokens: a vocabulary holds frequent ones whole, others in pieces.

    Raises:
        ValueError: the text is empty, or the tokenizer cannot turn ids back into text.
    """
    ids = tokenize(bundle, [text])
    decode = getattr(bundle.tokenizer, "decode", None)
    decode = decode or getattr(getattr(bundle.tokenizer, "tokenizer", None), "decode", None)
    if decode is None:
        raise ValueError(
            f"Expected a tokenizer with `decode`, {bundle.name}'s has none; take a CLIP whose "
            "tokenizer is open_clip's own."
        )
    return tuple(decode([token]).strip() for token in ids[real_tokens(ids)].tolist())


def require_texts(texts: Sequence[str]) -> None:
    """Checks that there are texts and that each says something.

    Raises:
        ValueError: as it says.
    """
    if len(texts) == 0:
        raise ValueError("Expected at least one text, got none.")
    empty = [index for index, text in enumerate(texts) if not text.strip()]
    if empty:
        raise ValueError(
            f"Expected texts that say something, got an empty one at {empty[:5]}; leave it out."
        )


def real_tokens(ids: Int[Tensor, "text context"]) -> Bool[Tensor, "text context"]:
    """True between start and end: CLIP's end token has the highest id, 0 also is a real token."""
    position = torch.arange(ids.shape[1], device=ids.device)
    return (position > 0) & (position < ids.argmax(dim=1, keepdim=True))


def token_batches(
    bundle: ClipBundle, texts: Sequence[str], size: int
) -> Iterator[tuple[Int[Tensor, "chosen"], Int[Tensor, "chosen _"]]]:
    """Batches of texts of like length: which they are, and their ids on the model's device.

    Raises:
        ValueError: as `require_texts`, before the first batch costs time.
    """
    require_texts(texts)
    order = torch.tensor([len(text) for text in texts]).argsort(stable=True)
    for chosen in order.split(size):
        yield chosen, tokenize(bundle, [texts[index] for index in chosen]).to(bundle.device)


@contextmanager
def shortened(
    model: Any, ids: Int[Tensor, "text context"]
) -> Iterator[Int[Tensor, "text shorter"]]:
    """Lets a text tower read texts no further than the longest one's end token.

    What follows it is padding, at which no token before it looks: with CLIP's 77 positions and
    captions of a dozen words that is most of the work. Towers in which something does look there,
    or which pool elsewhere, read all.
    """
    tower = getattr(model, "text", model)
    pooling = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    causal = isinstance(getattr(tower, "attn_mask", None), Tensor)
    if pooling != "argmax" or not causal or getattr(tower, "cls_emb", None) is not None:
        yield ids
        return
    length = int(ids.argmax(dim=1).max()) + 1
    positions, mask = tower.positional_embedding, tower.attn_mask
    try:
        # open_clip adds all positions to whatever it is given.
        tower.positional_embedding = nn.Parameter(positions[:length], positions.requires_grad)
        tower.attn_mask = mask[:length, :length]
        yield ids[:, :length]
    finally:
        tower.positional_embedding, tower.attn_mask = positions, mask
