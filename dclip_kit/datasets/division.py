"""Dividing pictures that came without splits, by rules that a seed decides.

The pictures are put in the order of a digest of the seed and of their bytes. So neither a picture's
name nor its place matters, copies of one file stay together, and the same pictures are divided
alike on another machine.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm.auto import tqdm

from dclip_kit.datasets.images import CaptionedImages, LabelledImages

SHARE = 0.1  # of the pictures, for each split that is drawn
FEWEST = 2  # pictures of a split: with one, every model finds all


def draw_splits(
    dataset: CaptionedImages, splits: Sequence[str], seed: int = 0, share: float = SHARE
) -> dict[str, CaptionedImages]:
    """Draws a share of the pictures for each of some splits; the rest is "train".

    Files of equal bytes come into one split.

    Raises:
        ValueError: there are too few different pictures, or one cannot be read.
    """
    if not splits:
        return {"train": dataset}
    digests = [
        _digest(path, seed) for path in tqdm(dataset.paths, desc="dividing pictures", delay=2)
    ]
    order = sorted(set(digests))
    count = max(FEWEST, round(share * len(order)))
    if len(order) < count * len(splits) + FEWEST:
        raise ValueError(
            f"Expected at least {FEWEST * (len(splits) + 1)} different captioned pictures in "
            f"{dataset.source} to divide into train, {', '.join(splits)}, got {len(order)}; give "
            "more, or a data set of its own to measure on as test."
        )
    names = [split for split in splits for _ in range(count)]
    split_of = dict(zip(order, names + ["train"] * (len(order) - len(names)), strict=True))
    return {
        split: replace(
            dataset.select([i for i, d in enumerate(digests) if split_of[d] == split]), split=split
        )
        for split in ("train", *splits)
    }


def halve_labelled(dataset: LabelledImages, seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
    """Divides labelled pictures into a half to choose on and a half to measure on.

    Class by class, in an order that a digest of the seed and of the picture's name decides, they go
    to one and the other in turn.
    """
    order = sorted(
        range(len(dataset)),
        key=lambda i: (dataset.labels[i], _digest_text(f"{seed} {i} {dataset.paths[i].name}")),
    )
    halves = sorted(order[::2]), sorted(order[1::2])
    val, test = (
        replace(
            dataset,
            paths=tuple(dataset.paths[i] for i in half),
            labels=tuple(dataset.labels[i] for i in half),
        )
        for half in halves
    )
    return val, test


def _digest(path: Path, seed: int) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"Expected to read {path}, but it failed ({error}).") from error
    return hashlib.sha256(f"{seed} ".encode() + content).hexdigest()


def _digest_text(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
