"""Pictures with a feature each that the student's own is to match, drawn beside every batch."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dclip_kit.models.encode import Pictures


@dataclass(frozen=True, eq=False)
class PictureTargets:
    """Pictures, and what the student is to make of them.

    Two kinds are known. To *rehearse*, these are crops of regions with the untouched CLIP's
    features: CLIP forgets how to name single objects when it is tuned on whole scenes, and the
    crops show it single objects (Learning without Forgetting, arXiv 1606.09282, in the joint
    space; not in the paper). *Uncaptioned* are pictures that nobody has described, with a
    teacher's embeddings.

    Attributes:
        pictures: paths, bytes, or `RegionCrops`.
        features: one for each of them.
    """

    pictures: Pictures
    features: Float[Tensor, "picture embed"]

    def __post_init__(self) -> None:
        if not len(self.pictures) == len(self.features) > 0:
            raise ValueError(
                f"Expected a feature for each picture, and one at least, got {len(self.pictures)} "
                f"pictures and {len(self.features)} features."
            )

    def draw(self, count: int, seed: int, batch: int) -> Int[Tensor, "picture"]:
        """Which pictures come beside a batch, by index; a function of seed and batch alone."""
        generator = torch.Generator().manual_seed(1_000_003 * seed + batch)
        return torch.randint(len(self.features), (count,), generator=generator)
