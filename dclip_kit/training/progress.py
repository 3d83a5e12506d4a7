"""How far a training is: kept on disk, also in the middle of an epoch, and continued exactly."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dclip_kit.runtime.files import load_training_state, save_training_state
from dclip_kit.runtime.processes import gather_rows, is_main_process

Row = dict[str, int | float]  # an epoch's figures
History = list[Row]


def average_histories(histories: Sequence[History]) -> History:
    """Of several runs of as many epochs: a row an epoch, of each figure's mean."""
    means: History = []
    for rows in zip(*histories, strict=True):
        means.append({key: fmean(row[key] for row in rows) for key in rows[0]})
        means[-1]["epoch"] = len(means)  # a whole number
    return means


@dataclass(eq=False)
class Progress:
    """A training's place, between two of its steps.

    The order of data is a function of seed and epoch, and rates are of the step: so its place is
    all that a run needs, beside weights, optimizer and random state, to go on as if it had never
    stopped. The main process writes for all; each of them reads.

    Attributes:
        module: what trains.
        optimizer: of its parameters.
        settings: what a checkpoint must have been made with.
        checkpoint: the file; None keeps nothing.
        minutes: a checkpoint is written after so many, beside those at the end of epochs.
        epoch: how many are done.
        step: how many are done of the one after.
        sums: of that epoch's figures so far.
        seconds: that epoch took before this process began or went on with it.
        history: of the epochs that are done.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    settings: dict[str, Any]
    checkpoint: Path | None
    minutes: float
    epoch: int = 0
    step: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(()))
    seconds: float = 0.0
    history: History = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.checkpoint is not None and self.checkpoint.exists():
            self._restore(self.checkpoint)
        places = gather_rows(torch.tensor([[self.epoch, self.step]]))
        if len(places.unique(dim=0)) > 1:
            raise ValueError(
                f"Expected all processes to go on from one place, but {self.checkpoint} says so of "
                f"epoch and step: {places.tolist()}; put it where every machine reads the same."
            )
        self._began = self._written = time.monotonic()

    def start_epoch(self) -> None:
        """Begins to count its seconds, or goes on."""
        self._began = time.monotonic()

    def add(self, figures: Tensor) -> None:
        """Adds a batch's figures to the epoch's."""
        self.sums = self.sums.to(figures.dtype) + figures

    def finish_step(self) -> None:
        """Writes the checkpoint if it is time."""
        self.step += 1
        if time.monotonic() - self._written >= 60 * self.minutes:
            self._write()

    def elapsed(self) -> float:
        """Seconds of this epoch, in this and earlier processes."""
        return self.seconds + time.monotonic() - self._began

    def finish_epoch(self, row: Row, bar: tqdm) -> None:
        """Keeps and shows the row of figures of an epoch, and writes the checkpoint."""
        self.history.append(row)
        self.epoch, self.step, self.sums, self.seconds = self.epoch + 1, 0, torch.zeros(()), 0.0
        self._began = time.monotonic()
        bar.set_postfix({key: f"{value:.3g}" for key, value in row.items() if key != "epoch"})
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        if self.checkpoint is None or not is_main_process():
            return
        kept = {
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums.tolist(),
            "seconds": self.elapsed(),
            "history": self.history,
            "settings": self.settings,
        }
        save_training_state(self.checkpoint, self.module, self.optimizer, kept)

    def _restore(self, checkpoint: Path) -> None:
        kept = load_training_state(checkpoint, self.module, self.optimizer)
        old, new = kept["settings"], self.settings
        if old != new:
            differing = sorted(k for k in new | old if old.get(k) != new.get(k))
            raise ValueError(
                f"Expected a run with these settings in {checkpoint}, but they differ in "
                f"{', '.join(differing)}; give another file or delete it."
            )
        self.epoch, self.history = kept["epoch"], kept["history"]
        # In double precision, which holds what was summed in single precision exactly.
        self.sums = torch.tensor(kept["sums"], dtype=torch.float64)
        self.step, self.seconds = kept["step"], kept["seconds"]
