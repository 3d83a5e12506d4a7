"""What a student learns from: a recipe's loss is the weighted sum of its terms, one idea each.

A term says which pictures to add to the captioned ones of a batch, and turns the features of both
into a number. Terms are independent of each other.
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


@dataclass(frozen=True, eq=False)
class PictureTargets:
    """Pictures with the features that the student should give them.

    There are two kinds. For *rehearsal*, they are crops of regions with the untouched CLIP's
    features: CLIP forgets how to name single objects when it is tuned on whole scenes, and the
    crops show it single objects (Learning without Forgetting, arXiv 1606.09282, in the joint
    space; not in the paper). *Uncaptioned* pictures have no captions, but a teacher's embeddings.

    Attributes:
        pictures: paths, bytes, or `RegionCrops`.
        features: one row for each picture.
    """

    pictures: Pictures
    features: Float[Tensor, "picture embed"]

    def __post_init__(self) -> None:
        if not len(self.pictures) == len(self.features) > 0:
            raise ValueError(
                f"Expected at least one picture and a feature for each, got {len(self.pictures)} "
                f"pictures and {len(self.features)} features; give as many of both."
            )
        require_directions(features=self.features)


@dataclass(frozen=True, eq=False)
class Beside:
    """Pictures added to the captioned ones of each batch, drawn each time.

    Attributes:
        targets: the pictures to draw from.
        count: pictures per batch.
        seed: of the draw.
    """

    targets: PictureTargets
    count: int
    seed: int

    def draw(self, number: int) -> Int[Tensor, "picture"]:
        """Indices of the pictures added to a batch; a function of its number alone."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + number)
        return torch.randint(len(self.targets.features), (self.count,), generator=generator)


@dataclass(frozen=True, eq=False)
class Batch:
    """The features of a whole batch, gathered from all processes.

    Attributes:
        number: counts batches from the training's first; the terms' draws depend on it.
        rows: for each picture a row of indices of its captions in this batch, padded with -1.
        image: features of the pictures.
        text: features of the captions, row by row.
        beside: by term, features of the pictures that it drew, and their targets.
        heads: by term, its head's output for this process's share of the pictures.
    """

    number: int
    rows: Int[Tensor, "image caption"]
    image: Float[Tensor, "image embed"]
    text: Float[Tensor, "pair embed"]
    beside: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    heads: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def captions(self) -> Int[Tensor, "pair"]:
        """Indices of the captions."""
        return self.rows[self.rows >= 0]

    @cached_property
    def owner(self) -> Int[Tensor, "pair"]:
        """The row of each caption's picture."""
        return send((self.rows >= 0).nonzero()[:, 0], self.image.device)


@dataclass(frozen=True, eq=False)
class Term(ABC):
    """One of the things that a student learns from.

    Attributes:
        name: of its figure in the history.
        weight: in the sum.
        beside: pictures to add to the captioned ones.
    """

    name: ClassVar[str]
    weight: float
    beside: Beside | None = field(default=None, kw_only=True)

    @abstractmethod
    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        """The loss of a batch."""

    def build_head(self, embed_dim: int) -> nn.Module | None:
        """A layer on the image features that trains with the student; None if there is none."""
        return None

    def describe(self) -> Any:
        """What it learns from, as JSON; a training only continues with the same."""
        return sketch(self.beside.targets.features) if self.beside else None


@dataclass(frozen=True, eq=False)
class CaptionTerm(Term):
    """Each picture should find its own captions in the batch, and each caption its picture."""

    name = "contrastive"
    temperature: float

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        same_pair = batch.owner[:, None] == batch.owner
        image = batch.image[batch.owner]
        return contrastive_loss(image, batch.text, self.temperature, same_pair)


@dataclass(frozen=True, eq=False)
class CosineTerm(Term):
    """The student's vectors should equal the teacher's.

    Attributes:
        embeddings: the teacher's, one for each caption.
        of_texts: whether the captions' vectors should equal them too, as in the published code.
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
        """The teacher's vectors, and those of the added pictures."""
        return [sketch(self.embeddings), super().describe()]


@dataclass(frozen=True, eq=False)
class AnchoredTerm(Term):
    """The student should rank anchors, texts newly drawn for each batch, as the teacher does.

    Attributes:
        embeddings: the teacher's, one for each caption.
        texts: features of the texts to draw from, by the untouched CLIP, which the teacher shares.
        anchors: texts per batch.
        temperature: of both rankings.
        seed: of the draw.
    """

    name = "distillation"
    embeddings: Float[Tensor, "text embed"]
    texts: Float[Tensor, "anchor embed"]
    anchors: int
    temperature: float
    seed: int

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + batch.number)
        drawn = torch.randint(len(self.texts), (self.anchors,), generator=generator)
        device = batch.image.device
        # Each picture once.
        captioned = batch.image, send(self.embeddings[batch.rows[:, 0]], device)
        image, target = _join(captioned, batch.beside.get(self.name))
        return anchored_kl_loss(image, target, send(self.texts[drawn], device), self.temperature)

    def describe(self) -> Any:
        """The teacher's vectors, the anchors', and those of the added pictures."""
        return [sketch(self.embeddings), sketch(self.texts), super().describe()]


def sketch(features: Float[Tensor, "row embed"]) -> list[Any]:
    """What features are on the whole, to notice that a checkpoint was made with others.

    They are computed anew when a training goes on, perhaps on another processor or by more
    processes, which round otherwise. So these are means of a few columns, to three decimals.
    """
    columns = features[:, :: -(-features.shape[1] // 16)].double().cpu()
    means = [part.mean(0) for part in (columns, columns[::2], columns[: -(-len(columns) // 2)])]
    return [list(features.shape), [round(x, 3) for x in torch.cat(means).tolist()]]


@dataclass(frozen=True, eq=False)
class RehearsalTerm(Term):
    """Crops should keep the untouched CLIP's vectors."""

    name = "rehearsal"

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        return cosine_distillation_loss(*batch.beside[self.name])


def _join(
    captioned: tuple[Tensor, Tensor], beside: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Features and targets of the captioned pictures, and of the added ones if there are any."""
    if beside is None:
        return captioned
    return torch.cat([captioned[0], beside[0]]), torch.cat([captioned[1], beside[1]])
