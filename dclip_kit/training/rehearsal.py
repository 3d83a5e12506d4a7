"""Rehearsal: while it learns, the student also repeats what the frozen CLIP saw in crops."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dclip_kit.models.reading import Pictures


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """What the student is not to forget.

    CLIP forgets how to name single objects when it is tuned on whole scenes. The regions show it
    single objects, whose features of the frozen CLIP the teacher needs anyway. Not in the paper:
    it is Learning without Forgetting (arXiv 1606.09282) on crops, in the joint space.

    Attributes:
        pictures: such as `RegionCrops`.
        features: of them, by the untouched CLIP.
    """

    pictures: Pictures
    features: Float[Tensor, "picture embed"]

    def __post_init__(self) -> None:
        if not len(self.pictures) == len(self.features) > 0:
            raise ValueError(
                f"Expected a feature for each picture to rehearse, and one at least, got "
                f"{len(self.pictures)} pictures and {len(self.features)} features."
            )

    def draw(self, count: int, seed: int, batch: int) -> Int[Tensor, "picture"]:
        """Which pictures a batch rehearses, by index; a function of seed and batch alone."""
        generator = torch.Generator().manual_seed(1_000_003 * seed + batch)
        return torch.randint(len(self.features), (count,), generator=generator)
