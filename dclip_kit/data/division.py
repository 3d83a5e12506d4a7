"""Dividing pictures that came without splits, by a digest that a seed decides.

A digest of the seed and of a picture's bytes is a number from 0 to 1, and where that lies is the
picture's split. So a picture keeps its split whatever is added to its data set, neither its name
nor its place matters, copies of one file stay together, and the same pictures are divided alike on
another machine.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dclip_kit.data.images import LabelledImages
from dclip_kit.data.scan import scan_pictures

SHARE = 0.1  # of the pictures, for each of val and test
_START = {"val": 0.0, "test": SHARE}  # of each split's numbers


def draw_splits(paths: Sequence[Path], splits: Sequence[str], seed: int = 0) -> list[str]:
    """The split of each picture: about a tenth for each of some splits, "train" for the rest.

    Args:
        paths: of pictures.
        splits: which to draw, of val and test.
        seed: another one divides otherwise.

    Raises:
        ValueError: a file cannot be read.
    """
    if not splits:
        return ["train"] * len(paths)
    drawn = []
    for scan in scan_pictures(paths, "dividing pictures", decode=False):
        if scan.problem:
            raise ValueError(f"Expected to divide all pictures into splits: {scan.problem}")
        place = int(_digest(f"{seed} {scan.digest}")[:16], 16) / 16**16
        own = [split for split in splits if 0 <= place - _START[split] < SHARE]
        drawn.append(own[0] if own else "train")
    return drawn


def halve_labelled(dataset: LabelledImages, seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
    """Divides labelled pictures into a half to choose on and a half to measure on.

    Class by class, in an order that a digest of the seed and of the picture's name decides, they go
    to one and the other in turn.
    """
    order = sorted(
        range(len(dataset)),
        key=lambda i: (dataset.labels[i], _digest(f"{seed} {i} {dataset.paths[i].name}")),
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


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
