"""What both trainings share: the order of pairs, continuing, and the end of an epoch."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from dclip_kit.checkpoint import load_training_state, save_training_state
from dclip_kit.features import FrozenFeatures

Row = dict[str, int | float]  # an epoch's figures
History = list[Row]


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


def split_batches(rows: Tensor, size: int) -> list[Tensor]:
    """An epoch's batches; a last one of one picture has no negatives and joins the one before."""
    batches = list(rows.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def resume(
    checkpoint: Path | None,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Restores module and optimizer from a checkpoint, if there is one.

    Returns:
        The run's progress: "epoch" (how many are done), "history", "settings".

    Raises:
        ValueError: the checkpoint is damaged, of another architecture or of other settings.
    """
    fresh: dict[str, Any] = {"epoch": 0, "history": [], "settings": settings}
    if checkpoint is None or not checkpoint.exists():
        return fresh
    progress = load_training_state(checkpoint, module, optimizer)
    if progress["settings"] != settings:
        old = progress["settings"]
        differing = sorted(k for k in settings | old if old.get(k) != settings.get(k))
        raise ValueError(
            f"Expected a run with these settings in {checkpoint}, but they differ in "
            f"{', '.join(differing)}; give another file or delete it."
        )
    return progress


def finish_epoch(
    row: Row,
    progress: dict[str, Any],
    checkpoint: Path | None,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    bar: tqdm,
) -> None:
    """Keeps and shows the row of figures of an epoch, and writes the checkpoint if there is one."""
    progress["history"].append(row)
    progress["epoch"] = int(row["epoch"])
    bar.set_postfix({key: f"{value:.3g}" for key, value in row.items() if key != "epoch"})
    if checkpoint is not None:
        save_training_state(checkpoint, module, optimizer, progress)
