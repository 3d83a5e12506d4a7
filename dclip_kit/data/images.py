"""The two shapes that all data takes here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path

import torch
from torch import Tensor

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class CaptionedImages:
    """Pictures, each with any number of captions.

    Attributes:
        paths: one a picture.
        captions: for each picture its captions.
        split: "train", "val", "test", …
        source: what to call the data in reports.
        image_ids: for each picture what its data set calls it ("coco:391895", "flickr:36979", the
            address that it came from), for the leak guard, or "". Left out, all are "".
        splits: for each picture which of `SPLITS` its data set puts it into, or "" where that says
            nothing. Left out, all are "".

    Raises:
        ValueError: the lengths differ, a caption has no text, a picture has a text where its group
            of captions should be, or a split is unknown.
    """

    paths: tuple[Path, ...]
    captions: tuple[tuple[str, ...], ...]
    split: str
    source: str
    image_ids: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("image_ids", "splits"):
            if not getattr(self, name):
                object.__setattr__(self, name, ("",) * len(self.paths))
        # A text would pass for a group of letters.
        if isinstance(self.captions, str) or any(isinstance(group, str) for group in self.captions):
            raise ValueError(
                "Expected a group of captions a picture, got a single text; wrap each in a tuple."
            )
        for name in ("captions", "image_ids", "splits"):
            if len(getattr(self, name)) != len(self.paths):
                raise ValueError(
                    f"Expected {name} for each of {len(self.paths)} pictures, got "
                    f"{len(getattr(self, name))}; give an empty one to a picture without any."
                )
        if odd := set(self.splits) - {*SPLITS, ""}:
            raise ValueError(
                f"Expected each picture's split to be one of {', '.join(SPLITS)} or empty, got "
                f"{min(odd)!r}; rename it."
            )
        empty = [i for i, group in enumerate(self.captions) if not all(c.strip() for c in group)]
        if empty:
            raise ValueError(
                f"Expected captions with text, got an empty one at {self.paths[empty[0]]} (and "
                f"{len(empty) - 1} more pictures); leave them out."
            )

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def texts(self) -> list[str]:
        """All captions in one list, picture by picture."""
        return [caption for group in self.captions for caption in group]

    @cached_property
    def image_of_text(self) -> Tensor:
        """For each of `texts` the index of its picture, int64 of shape (text,)."""
        counts = torch.tensor([len(group) for group in self.captions], dtype=torch.int64)
        return torch.repeat_interleave(torch.arange(len(counts)), counts)

    def select(self, indices: Sequence[int]) -> "CaptionedImages":
        """The pictures at these indices, in this order."""
        return replace(
            self,
            paths=tuple(self.paths[i] for i in indices),
            captions=tuple(self.captions[i] for i in indices),
            image_ids=tuple(self.image_ids[i] for i in indices),
            splits=tuple(self.splits[i] for i in indices),
        )


@dataclass(frozen=True)
class LabelledImages:
    """Pictures, each of one class, for zero-shot classification.

    Attributes:
        paths: one a picture.
        labels: index of each picture's class.
        class_names: the classes.
        in_domain: for each class, whether fine-tuning data may show it.
        source: what to call the data in reports.

    Raises:
        ValueError: the lengths differ, or a label is out of range.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    in_domain: tuple[bool, ...]
    source: str

    def __post_init__(self) -> None:
        if len(self.paths) != len(self.labels) or len(self.class_names) != len(self.in_domain):
            raise ValueError(
                f"Expected one label a picture and one domain flag a class, got {len(self.labels)} "
                f"for {len(self.paths)} pictures and {len(self.in_domain)} for "
                f"{len(self.class_names)} classes."
            )
        if self.labels and not 0 <= min(self.labels) <= max(self.labels) < len(self.class_names):
            raise ValueError(
                f"Expected labels from 0 to {len(self.class_names) - 1}, got "
                f"{min(self.labels)} to {max(self.labels)}."
            )

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, indices: Sequence[int]) -> "LabelledImages":
        """The pictures at these indices, in this order, and all classes."""
        return replace(
            self,
            paths=tuple(self.paths[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices),
        )

    def take_per_class(self, count: int) -> "LabelledImages":
        """The first `count` pictures of each class, or all where it has fewer.

        Raises:
            ValueError: count is below 1.
        """
        if count < 1:
            raise ValueError(f"Expected at least one picture a class, got {count}.")
        label_of = self.labels.__getitem__
        classes = groupby(sorted(range(len(self)), key=label_of), label_of)
        return self.select(sorted(i for _, own in classes for i in islice(own, count)))
