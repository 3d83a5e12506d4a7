"""The loop of every training: kept on disk, also in the middle of an epoch, continued exactly."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from dclip_kit.models.precision import keep_statistics
from dclip_kit.runtime.files import load_tensors, load_weights, save_tensors
from dclip_kit.runtime.processes import gather_rows, is_main_process
from dclip_kit.training.schedule import DECAYED, schedule_rate

History = list[dict[str, int | float]]  # a row of figures an epoch
MINUTES = 10.0  # between two checkpoints within an epoch


def average_histories(histories: Sequence[History]) -> History:
    """The mean of each figure over several runs of equally many epochs, a row an epoch."""
    means: History = []
    for rows in zip(*histories, strict=True):
        means.append({key: fmean(row[key] for row in rows) for key in rows[0]})
        means[-1]["epoch"] = len(means)  # a whole number
    return means


def take_steps(
    name: str,
    module: nn.Module,
    groups: list[dict[str, Any]],
    settings: dict[str, Any],
    plan: Callable[[int], list[list[Tensor]]],
    compute_losses: Callable[[nn.Module, Any, int], Tensor],
    *,
    read: Callable[[list[Tensor], int], Iterable[Any]] = lambda batches, number: batches,
    names: Sequence[str] = ("loss",),
    warmup: float | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[History], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> History:
    """Trains a module, and goes on from its checkpoint as if it had never stopped.

    The order of data depends on seed and epoch alone, and learning rates on the step. So beside
    weights, optimizer and random state, a run needs only its place. The main process writes it for
    all processes; each of them reads.

    Args:
        name: of the progress bar.
        module: what trains, on the device.
        groups: of its parameters, as `split_decayed` makes them.
        settings: what the checkpoint must have been made with; JSON values. Of them, `epochs`,
            `gradient_accumulation` and `clip_norm` are read here.
        plan: an epoch's steps, each of so many batches as are accumulated (the last of fewer).
        compute_losses: of the module (perhaps wrapped for several processes), what was read of a
            batch, and the batch's number: the loss to minimise, and further figures [figure].
        read: makes what `compute_losses` takes from batches, the first of which has this number.
        names: of the figures.
        warmup: share of the steps in which rates rise before they fall; None keeps them constant.
        checkpoint: the file; None keeps nothing.
        on_epoch, on_step: as in `distill`, but for what has been trained.

    Returns:
        A row of figures an epoch.

    Raises:
        ValueError: the loss is not finite, or the checkpoint is damaged or of another run.
    """
    accelerator = Accelerator(mixed_precision="no")  # see `precision.autocast`
    optimizer = torch.optim.AdamW(groups, fused=True)  # one pass: else a seventh of a step
    settings = {"decayed": DECAYED} | settings
    history: History = []
    done, sums, seconds = 0, torch.zeros(()), 0.0  # steps, figures, time of the epoch begun
    if checkpoint is not None and checkpoint.exists():
        kept = load_training_state(checkpoint, module, optimizer)
        old = kept["settings"]
        if old != settings:
            differing = sorted(k for k in settings | old if old.get(k) != settings.get(k))
            raise ValueError(
                f"Expected a run with these settings in {checkpoint}, but they differ in "
                f"{', '.join(differing)}; give another file or delete it."
            )
        history, done, seconds = kept["history"], kept["step"], kept["seconds"]
        sums = torch.tensor(kept["sums"], dtype=torch.float64)
    places = gather_rows(torch.tensor([[len(history), done]]))
    if len(places.unique(dim=0)) > 1:
        raise ValueError(
            f"Expected all processes to go on from one place, but {checkpoint} says so of epoch "
            f"and step: {places.tolist()}; put it where every machine reads the same."
        )

    def keep() -> None:
        """Writes the checkpoint, if there is to be one."""
        if checkpoint is not None and is_main_process():
            place = {
                "epoch": len(history),
                "step": done,
                "sums": sums.tolist(),
                "seconds": seconds + time.monotonic() - began,
                "history": history,
                "settings": settings,
            }
            save_training_state(checkpoint, module, optimizer, place)

    # The wrapped module itself is called: a method of the unwrapped one would skip the gradient
    # synchronisation of several processes.
    wrapped, prepared = accelerator.prepare(module, optimizer)
    total = settings["epochs"] * len(plan(0))
    accumulated = settings.get("gradient_accumulation", 1)
    bar = tqdm(
        total=total, desc=name, unit="step", delay=2, disable=not accelerator.is_main_process
    )
    for epoch in range(len(history), settings["epochs"]):
        wrapped.train()
        keep_statistics(module)
        began = written = time.monotonic()
        steps = plan(epoch)
        first = epoch * len(steps) + done
        bar.update(first - bar.n)
        batches = [batch for step in steps[done:] for batch in step]
        inputs = iter(read(batches, first * accumulated))
        for number, step in enumerate(steps[done:], start=first):
            if warmup is not None:
                for group in prepared.param_groups:
                    group["lr"] = group["peak"] * schedule_rate(number / total, warmup)
            losses = []
            for place in range(len(step)):
                last = place == len(step) - 1  # gradients are put together after it
                with nullcontext() if last else accelerator.no_sync(wrapped):
                    found = compute_losses(wrapped, next(inputs), number * accumulated + place)
                    accelerator.backward(found[0] / len(step))
                losses.append(found.detach())
            figures = torch.stack(losses).tolist()  # the only time that a step waits for the device
            for each in figures:
                if not isfinite(each[0]):  # before it moves any weight
                    raise ValueError(
                        f"Expected a finite loss, got {each[0]} in epoch {epoch + 1}, step "
                        f"{done + 1}; lower the learning rate."
                    )
                sums = sums + torch.tensor(each, dtype=torch.float64)
            if "clip_norm" in settings:
                accelerator.clip_grad_norm_(module.parameters(), settings["clip_norm"])
            prepared.step()
            prepared.zero_grad()
            bar.update()
            done += 1
            if time.monotonic() - written >= 60 * MINUTES:
                keep()
                written = time.monotonic()
            try:
                if on_step:
                    on_step(number, sum(each[0] for each in figures) / len(figures))
            except BaseException:
                keep()
                raise
        means = (sums / sum(map(len, steps))).tolist()
        row = dict(zip(names, means, strict=False))
        elapsed = seconds + time.monotonic() - began
        history.append({"epoch": epoch + 1, **row, "seconds": elapsed})
        done, sums, seconds, began = 0, torch.zeros(()), 0.0, time.monotonic()
        bar.set_postfix({k: f"{v:.3g}" for k, v in row.items()}, refresh=False)
        module.eval()
        try:
            if on_epoch:
                on_epoch(history)
        finally:
            keep()
    bar.close()
    accelerator.wait_for_everyone()  # until the main process has written the checkpoint
    module.eval()
    return history


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
