"""The order of training data: a function of seed and epoch alone, so that all arms see the same."""

import torch
from jaxtyping import Int
from torch import Tensor

from dclip_kit.config import RegionTeacherSettings, StudentSettings, TeacherSettings
from dclip_kit.features.store import FrozenFeatures


def draw_captions(
    features: FrozenFeatures, seed: int, epoch: int, captions_per_image: int = 1
) -> Int[Tensor, "image caption"]:
    """An epoch's order: every captioned picture once, with newly drawn captions.

    A function of seed and epoch alone, so that all arms see the same data and a resumed run goes on
    as if it had never stopped.

    Args:
        features: of the training data.
        seed: of the run.
        epoch: from 0.
        captions_per_image: the most captions to draw for a picture.

    Returns:
        Indices of captions, a row for each picture; if a picture has too few, its row ends in -1.
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    shuffled = torch.randperm(len(features.text), generator=generator)
    owners = features.image_of_text[shuffled]
    grouped = owners.argsort(stable=True)  # positions in `shuffled`, grouped by picture
    counts = owners.bincount(minlength=len(features))
    starts, counts = (counts.cumsum(0) - counts)[counts > 0], counts[counts > 0]
    column = torch.arange(captions_per_image)
    places = (starts[:, None] + column).clamp(max=len(shuffled) - 1)
    rows = shuffled[grouped[places]].where(column < counts[:, None], -1)  # image caption
    # Sorted by the earliest position of a picture's captions, which is earlier the more it has. The
    # probability that none of them comes as early puts all pictures on one scale.
    return rows[(-counts * torch.log1p(-grouped[starts].double() / len(shuffled))).argsort()]


def plan_epoch(
    features: FrozenFeatures,
    settings: StudentSettings | RegionTeacherSettings | TeacherSettings,
    seed: int,
    epoch: int,
) -> list[list[Tensor]]:
    """An epoch's steps, each of `gradient_accumulation` batches; the last may have fewer.

    A last batch of one picture has no negatives, so it joins the one before.
    """
    captions = 1 if isinstance(settings, TeacherSettings) else settings.captions_per_image
    accumulated = settings.gradient_accumulation if isinstance(settings, StudentSettings) else 1
    batches = list(draw_captions(features, seed, epoch, captions).split(settings.batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return [batches[start : start + accumulated] for start in range(0, len(batches), accumulated)]
