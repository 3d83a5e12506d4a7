"""What a student learns from: a recipe's loss is the weighted sum of its terms, one idea each.

A term says which pictures it wants beside the captioned ones of a batch, and turns the features of
both into a number. No term knows another.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dclip_kit.losses import (
    anchored_kl_loss,
    contrastive_loss,
    cosine_distillation_loss,
    require_directions,
)
from dclip_kit.models.clip import send
from dclip_kit.models.encode import Pictures
from dclip_kit.runtime.files import fingerprint


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
        require_directions(features=self.features)


@dataclass(frozen=True, eq=False)
class Beside:
    """Pictures that come beside the captioned ones of each batch, drawn anew.

    Attributes:
        targets: what is drawn from.
        count: pictures a batch.
        seed: of the draw.
    """

    targets: PictureTargets
    count: int
    seed: int

    def draw(self, number: int) -> Int[Tensor, "picture"]:
        """Which pictures come beside a batch, by index; a function of its number alone."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + number)
        return torch.randint(len(self.targets.features), (self.count,), generator=generator)


@dataclass(frozen=True, eq=False)
class Batch:
    """What a module makes of a batch: of all of it, whichever process encoded which share.

    Attributes:
        number: counts batches from the training's first; what a term draws depends on it.
        rows: a row a picture: its captions of this batch, by index; -1 where it has too few.
        image: features of the pictures.
        text: features of the captions, row by row.
        beside: by term, features of the pictures that it wanted, and their targets.
        heads: by term, what its head makes of this process's share of the pictures.
    """

    number: int
    rows: Int[Tensor, "image caption"]
    image: Float[Tensor, "image embed"]
    text: Float[Tensor, "pair embed"]
    beside: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    heads: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def captions(self) -> Int[Tensor, "pair"]:
        """The captions, by index."""
        return self.rows[self.rows >= 0]

    @cached_property
    def owner(self) -> Int[Tensor, "pair"]:
        """Each caption's picture, by its row."""
        return send((self.rows >= 0).nonzero()[:, 0], self.image.device)


@dataclass(frozen=True, eq=False)
class Term(ABC):
    """One of the things that a student learns from.

    Attributes:
        name: of its figure.
        weight: in the sum.
        beside: the pictures that it wants beside the captioned ones.
    """

    name: ClassVar[str]
    weight: float
    beside: Beside | None = field(default=None, kw_only=True)

    @abstractmethod
    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        """The loss of a batch."""

    def build_head(self, embed_dim: int) -> nn.Module | None:
        """A layer on the image features that trains with the student, where the term has one."""
        return None

    def describe(self) -> Any:
        """What it learns from, as JSON: a training goes on with the same alone."""
        return fingerprint(self.beside.targets.features) if self.beside else None


@dataclass(frozen=True, eq=False)
class CaptionTerm(Term):
    """Each picture is to find its own captions in the batch, and each caption its picture."""

    name = "contrastive"
    temperature: float

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        same_pair = batch.owner[:, None] == batch.owner
        image = batch.image[batch.owner]
        return contrastive_loss(image, batch.text, self.temperature, same_pair)


@dataclass(frozen=True, eq=False)
class CosineTerm(Term):
    """The student's vectors are to be the teacher's.

    Attributes:
        embeddings: the teacher's, one for each caption.
        of_texts: whether the captions' vectors are to be these, too, as in the published code.
    """

    name = "distillation"
    embeddings: Float[Tensor, "text embed"]
    of_texts: bool = False

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        image = batch.image[batch.owner]
        target = send(self.embeddings[batch.captions], image.device)
        if self.of_texts:
            return cosine_distillation_loss(image, target) + cosine_distillation_loss(
                batch.text, target
            )
        return cosine_distillation_loss(*_join((image, target), batch.beside.get(self.name)))

    def describe(self) -> Any:
        """The teacher's vectors, and what lies beside them."""
        return [fingerprint(self.embeddings), super().describe()]


@dataclass(frozen=True, eq=False)
class AnchoredTerm(Term):
    """The student is to rank anchors, captions drawn anew for each batch, as the teacher does.

    Attributes:
        embeddings: the teacher's, one for each caption.
        texts: the captions' features, as the untouched CLIP has them: so has the teacher.
        anchors: captions a batch.
        temperature: of both rankings.
        seed: of the draw.
    """

    name = "distillation"
    embeddings: Float[Tensor, "text embed"]
    texts: Float[Tensor, "text embed"]
    anchors: int
    temperature: float
    seed: int

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + batch.number)
        drawn = torch.randint(len(self.texts), (self.anchors,), generator=generator)
        device = batch.image.device
        own = batch.image, send(self.embeddings[batch.rows[:, 0]], device)  # each picture once
        image, target = _join(own, batch.beside.get(self.name))
        return anchored_kl_loss(image, target, send(self.texts[drawn], device), self.temperature)

    def describe(self) -> Any:
        """The teacher's vectors and the anchors', and what lies beside them."""
        return [fingerprint(self.embeddings, self.texts), super().describe()]


@dataclass(frozen=True, eq=False)
class RehearsalTerm(Term):
    """Crops are to keep the untouched CLIP's vectors."""

    name = "rehearsal"

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        return cosine_distillation_loss(*batch.beside[self.name])


def _join(
    own: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Features and targets of the captioned pictures, and of those beside them if there are any."""
    if others is None:
        return own
    return torch.cat([own[0], others[0]]), torch.cat([own[1], others[1]])
