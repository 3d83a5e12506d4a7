"""The plan of a training: what comes in which batch, and what trains at which rate."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dclip_kit.config import RegionTeacherSettings, StudentSettings, TeacherSettings
from dclip_kit.features.frozen import FrozenFeatures
from dclip_kit.models.reading import Pictures
from dclip_kit.models.weights import follows_blocks

DECAYED = "matrices"  # what weight decay shrinks; kept in checkpoints, beside groups made by it


def draw_captions(
    features: FrozenFeatures, seed: int, epoch: int, captions_per_image: int = 1
) -> Int[Tensor, "image caption"]:
    """An epoch's order: every captioned picture once, with captions drawn anew.

    A function of seed and epoch alone, so that all arms see the same data and a resumed run goes on
    as if it had never stopped.

    Args:
        features: of the training data.
        seed: of the run.
        epoch: from 0.
        captions_per_image: at most so many of a picture's captions.

    Returns:
        Indices of captions, a row a picture; where a picture has too few, its row ends in -1.
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    shuffled = torch.randperm(len(features.text), generator=generator)
    owners = features.image_of_text[shuffled]
    grouped = owners.argsort(stable=True)  # places in `shuffled`, a picture's beside each other
    counts = owners.bincount(minlength=len(features))
    starts, counts = (counts.cumsum(0) - counts)[counts > 0], counts[counts > 0]
    column = torch.arange(captions_per_image)
    places = (starts[:, None] + column).clamp(max=len(shuffled) - 1)
    rows = shuffled[grouped[places]].where(column < counts[:, None], -1)  # image caption
    return rows[grouped[starts].argsort()]


def plan_epoch(
    features: FrozenFeatures,
    settings: StudentSettings | RegionTeacherSettings | TeacherSettings,
    seed: int,
    epoch: int,
) -> list[list[Tensor]]:
    """An epoch's steps, each of `gradient_accumulation` batches; the last may have fewer.

    A last batch of one picture has no negatives and joins the one before.
    """
    captions = 1 if isinstance(settings, TeacherSettings) else settings.captions_per_image
    each = settings.gradient_accumulation if isinstance(settings, StudentSettings) else 1
    batches = list(draw_captions(features, seed, epoch, captions).split(settings.batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return [batches[start : start + each] for start in range(0, len(batches), each)]


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


def split_decayed(
    named: Iterable[tuple[str, nn.Parameter]], rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """An optimizer's groups: matrices, which decay, and biases, norms and scales, which do not.

    As open_clip's own training has it. Shrinking a norm's scale is no prior of any use.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named:
        groups[parameter.ndim > 1 and "bias" not in name].append(parameter)
    return [
        {
            "params": params,
            "lr": rate,
            "peak": rate,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for decays, params in groups.items()
    ]


def group_parameters(module: nn.Module, settings: StudentSettings) -> list[dict[str, Any]]:
    """What trains, by its highest learning rate: in the blocks (and all texts), and after them.

    Each in two groups, by `split_decayed`.
    """
    parts: dict[bool, list[tuple[str, nn.Parameter]]] = {False: [], True: []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            parts[follows_blocks(name.removeprefix("visual."))].append((name, parameter))
    rate, decay = settings.learning_rate, settings.weight_decay
    blocks = split_decayed(parts[False], rate * settings.block_rate, decay)
    return blocks + split_decayed(parts[True], rate, decay)


def schedule_rate(done: float, warmup: float) -> float:
    """Share of the learning rate: linear warm-up, then a cosine to zero.

    Args:
        done: share of the steps that are done, 0 to 1.
        warmup: share of the steps in which it rises.
    """
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + cos(pi * (done - warmup) / (1 - warmup)))
