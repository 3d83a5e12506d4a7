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


def draw_pairs(features: FrozenFeatures, seed: int, epoch: int) -> Int[Tensor, "pair"]:
    """An epoch's order: every captioned picture once, each with one caption drawn anew.

    A function of seed and epoch alone, so that all arms see the same data and a resumed run goes on
    as if it had never stopped.

    Returns:
        Indices of captions.
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    shuffled = torch.randperm(len(features.text), generator=generator)
    owners = features.image_of_text[shuffled]
    first = torch.full((len(features),), len(shuffled)).scatter_reduce(
        0, owners, torch.arange(len(shuffled)), "amin"
    )
    return shuffled[first[first < len(shuffled)].sort().values]


def split_batches(texts: Tensor, size: int) -> list[Tensor]:
    """An epoch's batches; a last one of one pair has no negatives and joins the one before."""
    batches = list(texts.split(size))
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
