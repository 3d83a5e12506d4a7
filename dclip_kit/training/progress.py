"""How far a training is: kept on disk, also in the middle of an epoch, and continued exactly."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dclip_kit.runtime.files import load_tensors, load_weights, save_tensors
from dclip_kit.runtime.processes import gather_rows, is_main_process

Row = dict[str, int | float]  # an epoch's figures
History = list[Row]
MINUTES = 10.0  # between two checkpoints within an epoch


def average_histories(histories: Sequence[History]) -> History:
    """The mean of each figure over several runs of equally many epochs, a row an epoch."""
    means: History = []
    for rows in zip(*histories, strict=True):
        means.append({key: fmean(row[key] for row in rows) for key in rows[0]})
        means[-1]["epoch"] = len(means)  # a whole number
    return means


@dataclass(eq=False)
class Progress:
    """Where a training stands, between two of its steps.

    The order of data depends on seed and epoch alone, and learning rates on the step. So beside
    weights, optimizer and random state, a run needs only its place to go on as if it had never
    stopped. The main process writes for all processes; each of them reads.

    Attributes:
        module: what trains.
        optimizer: of its parameters.
        settings: what the checkpoint must have been made with; JSON values.
        checkpoint: the file; None keeps nothing.
        epoch: how many are done.
        step: how many are done of the next epoch.
        sums: of that epoch's figures so far.
        seconds: that epoch took before this process went on with it.
        history: a row of figures for each epoch that is done.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    settings: dict[str, Any]
    checkpoint: Path | None
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
        """Starts to count the epoch's seconds."""
        self._began = time.monotonic()

    def add(self, figures: Sequence[float]) -> None:
        """Adds a batch's figures, the loss first, to the epoch's, before they move any weight.

        Raises:
            ValueError: the loss is not finite.
        """
        if not isfinite(figures[0]):
            raise ValueError(
                f"Expected a finite loss, got {figures[0]} in epoch {self.epoch + 1}, step "
                f"{self.step + 1}; lower the learning rate."
            )
        self.sums = self.sums + torch.tensor(figures, dtype=torch.float64)

    def finish_step(self) -> None:
        """Writes the checkpoint if it is time."""
        self.step += 1
        if time.monotonic() - self._written >= 60 * MINUTES:
            self.write()

    @contextmanager
    def kept_on_error(self) -> Iterator[None]:
        """Writes the checkpoint if what is done within stops the training."""
        try:
            yield
        except BaseException:
            self.write()
            raise

    def finish_epoch(self, figures: Row, bar: tqdm) -> None:
        """Adds the epoch's row to the history and shows it; `write` keeps it."""
        elapsed = self.seconds + time.monotonic() - self._began
        self.history.append({"epoch": self.epoch + 1, **figures, "seconds": elapsed})
        self.epoch, self.step, self.sums, self.seconds = self.epoch + 1, 0, torch.zeros(()), 0.0
        self._began = time.monotonic()
        bar.set_postfix({k: f"{v:.3g}" for k, v in figures.items()}, refresh=False)

    def write(self) -> None:
        """Writes the checkpoint, if there is to be one."""
        self._written = time.monotonic()
        if self.checkpoint is None or not is_main_process():
            return
        place = {
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums.tolist(),
            "seconds": self.seconds + self._written - self._began,
            "history": self.history,
            "settings": self.settings,
        }
        save_training_state(self.checkpoint, self.module, self.optimizer, place)

    def _restore(self, checkpoint: Path) -> None:
        kept = load_training_state(checkpoint, self.module, self.optimizer)
        old, new = kept["settings"], self.settings
        if old != new:
            differing = sorted(k for k in new | old if old.get(k) != new.get(k))
            raise ValueError(
                f"Expected a run with these settings in {checkpoint}, but they differ in "
                f"{', '.join(differing)}; give another file or delete it."
            )
        self.epoch, self.step, self.seconds = kept["epoch"], kept["step"], kept["seconds"]
        self.history, self.sums = kept["history"], torch.tensor(kept["sums"], dtype=torch.float64)


def save_training_state(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]
) -> None:
    """Writes all that exact continuation needs into one safetensors file.

    Args:
        path: the file.
        module: the trained module.
        optimizer: its per-parameter tensors are kept; its hyperparameters are the caller's.
        progress: JSON values: step, history, …; in the file they are a tensor of UTF-8 bytes, so
            that weights and progress can never be of different moments.
    """
    tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value)
    tensors["random_state"] = torch.get_rng_state()
    tensors["progress"] = torch.frombuffer(
        bytearray(json.dumps(dict(progress)).encode()), dtype=torch.uint8
    )
    save_tensors(tensors, path)


def load_training_state(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Restores what `save_training_state` wrote and returns its progress.

    Raises:
        FileNotFoundError, ValueError: no file, a damaged one, or one of another architecture.
    """
    tensors = load_tensors(path)
    if "progress" not in tensors or "random_state" not in tensors:
        raise ValueError(f"Expected a training state, but {path} holds other tensors.")
    weights = {
        name.removeprefix("module."): value
        for name, value in tensors.items()
        if name.startswith("module.")
    }
    load_weights(module, weights, str(path))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    for parameter, own in optimizer.state.items():
        for key, value in own.items():
            # Fused optimizers read both in one order of memory. Of another run's state, some may
            # belong to no parameter here.
            if isinstance(parameter, Tensor) and value.shape == parameter.shape:
                own[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    torch.set_rng_state(tensors["random_state"])
    return json.loads(bytes(tensors["progress"].tolist()).decode())
