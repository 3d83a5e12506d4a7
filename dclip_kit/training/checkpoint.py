"""A training's checkpoint: weights, optimizer, random state and place, of one moment, in a file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dclip_kit.features.store import differing_entries
from dclip_kit.runtime.files import load_tensors, load_weights, save_tensors
from dclip_kit.runtime.processes import exists_for_all, gather_rows, is_main_process


@dataclass
class Place:
    """How far a training has come.

    Attributes:
        settings: the training's.
        history: a row of figures for each finished epoch.
        step: steps done in the current epoch.
        sums: their figures, summed over batches.
        batches: the number of these batches.
    """

    settings: dict[str, Any]
    history: list[dict[str, int | float]] = field(default_factory=list)
    step: int = 0
    sums: list[float] = field(default_factory=list)
    batches: int = 0

    def add(self, figures: Sequence[Sequence[float]]) -> None:
        """Counts a step, given the figures of each of its batches."""
        self.step += 1
        for values in figures:
            sums = self.sums or [0.0] * len(values)
            self.sums = [total + value for total, value in zip(sums, values, strict=True)]
            self.batches += 1

    def close_epoch(self, names: Sequence[str]) -> dict[str, float]:
        """Adds a row with the mean of each named figure to the history; returns these means."""
        row = {name: total / self.batches for name, total in zip(names, self.sums, strict=True)}
        self.history.append({"epoch": len(self.history) + 1, **row})
        self.step, self.sums, self.batches = 0, [], 0
        return row


def restore_place(
    path: Path | None,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
) -> Place:
    """Where a training goes on: where its checkpoint was written, or at the start.

    Raises:
        ValueError: the checkpoint is damaged, of another run, or differs between processes.
    """
    settings = dict(identity)
    if path is None or not exists_for_all(path):
        return Place(settings)
    state = load_training_state(path, module, optimizer)
    # Settings that only the checkpoint has are compared too: its steps were taken with them.
    differing = differing_entries(state["settings"], dict.fromkeys(state["settings"]) | settings)
    if differing:
        raise ValueError(
            f"Expected a run with these settings in {path}, but they differ in "
            f"{', '.join(differing)}; give another file or delete it."
        )
    place = Place(**state | {"settings": settings})
    places = gather_rows(torch.tensor([[len(place.history), place.step]]))
    if (places != places[0]).any():
        raise ValueError(
            f"Expected all processes to go on from one place, but {path} gives epochs and steps "
            f"{places.tolist()}; put it where every machine reads the same file."
        )
    return place


def keep_place(
    path: Path | None, module: nn.Module, optimizer: torch.optim.Optimizer, place: Place
) -> None:
    """Writes the checkpoint in the main process, if there is a path."""
    if path is not None and is_main_process():
        save_training_state(path, module, optimizer, vars(place))


def save_training_state(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]
) -> None:
    """Writes everything that exact continuation needs into one safetensors file.

    Args:
        path: the file.
        module: the trained module.
        optimizer: its per-parameter tensors are saved; its hyperparameters are the caller's.
        progress: JSON values: step, history, …; stored in the file as a tensor of UTF-8 bytes, so
            that weights and progress are always of the same moment.
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
        FileNotFoundError: there is no file.
        ValueError: it is damaged, or of another architecture.
    """
    tensors = load_tensors(path)
    if "progress" not in tensors or "random_state" not in tensors:
        raise ValueError(
            f"Expected a training state in {path}, got other tensors; name another file."
        )
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
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():
            # Fused optimizers need both in the same memory format. In another run's state, some
            # values may belong to no parameter here.
            if isinstance(parameter, Tensor) and value.shape == parameter.shape:
                moments[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    torch.set_rng_state(tensors["random_state"])
    return json.loads(bytes(tensors["progress"].tolist()).decode())
