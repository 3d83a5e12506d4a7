"""One plain loop on accelerate, for both trainings: read a batch, encode it, add the terms, step.

Exact continuation comes from order: a batch's content depends on seed and epoch alone, and learning
rates on the step. So a run needs only weights, optimizer, random state and its place.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import cos, isfinite, pi
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from dclip_kit.runtime.processes import is_main_process
from dclip_kit.training.checkpoint import keep_place, restore_place
from dclip_kit.training.terms import Batch, Term

History = list[dict[str, int | float]]  # a row of figures for each epoch
MINUTES = 10.0  # between two checkpoints within an epoch
Plan = list[list[Tensor]]  # an epoch's steps, each a list of batches to accumulate


class RuinedError(ValueError):
    """A training has ruined the model; for whoever looks at it to raise."""


@dataclass(frozen=True, eq=False)
class Training:
    """What each of the two trainings gives to the loop.

    Attributes:
        name: of the progress bar.
        module: what trains, on the device.
        groups: of its parameters, from `split_decayed`.
        epochs: in all.
        plan: returns an epoch's steps.
        encode: turns the module (perhaps wrapped for several processes), a batch's inputs and the
            batch's number into what the terms take.
        terms: the loss is their weighted sum.
        identity: settings that a checkpoint must have been made with; JSON values.
        read: turns batches, and the number of the first, into the inputs of `encode`.
        gradient_accumulation: batches per step; the last step of an epoch may have fewer.
        clip_norm: largest norm of all gradients together; None does not clip.
        warmup_share: share of all steps in which rates rise, before they fall; None keeps them
            constant.
    """

    name: str
    module: nn.Module
    groups: list[dict[str, Any]]
    epochs: int
    plan: Callable[[int], Plan]
    encode: Callable[[nn.Module, Any, int], Batch]
    terms: Sequence[Term]
    identity: Mapping[str, Any]
    read: Callable[[Sequence[Tensor], int], Iterable[Any]] = lambda batches, number: batches
    gradient_accumulation: int = 1
    clip_norm: float | None = None
    warmup_share: float | None = None


def split_decayed(
    named: Iterable[tuple[str, nn.Parameter]], rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """An optimizer's groups: matrices, which decay, and biases, norms and scales, which do not.

    As in open_clip's own training: shrinking the scale of a norm is not a useful prior.
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


def train(
    training: Training,
    checkpoint: Path | None = None,
    on_epoch: Callable[[History], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> History:
    """Trains a module, and goes on from its checkpoint as if it had never stopped.

    The main process writes the checkpoint; every process reads it.

    Args:
        training: what to train, and how.
        checkpoint: the file; None writes none.
        on_epoch, on_step: as in `distill`, but without the student.

    Returns:
        A row of figures for each epoch.

    Raises:
        ValueError: the loss is not finite, or the checkpoint is damaged, of another run, or differs
            between processes.
    """
    # `autocast` sets the precision, and the module is already on its device.
    accelerator = Accelerator(mixed_precision="no", device_placement=False)
    # Fused, the update is one pass; otherwise it takes a seventh of a step.
    optimizer = torch.optim.AdamW(training.groups, fused=True)
    place = restore_place(checkpoint, training.module, optimizer, training.identity)
    # The wrapped module itself is called: calling the unwrapped one's methods would skip the
    # gradient synchronisation of several processes.
    wrapped, prepared = accelerator.prepare(training.module, optimizer)
    epoch_steps = len(training.plan(0))
    all_steps = training.epochs * epoch_steps

    with tqdm(
        total=all_steps,
        desc=training.name,
        unit="step",
        initial=epoch_steps * len(place.history) + place.step,
        delay=2,
        disable=not is_main_process(),
    ) as bar:
        for epoch in range(len(place.history), training.epochs):
            _set_to_train(wrapped)
            written = time.monotonic()
            for number, inputs in _read_epoch(training, epoch, place.step):
                _set_rates(prepared, number / all_steps, training.warmup_share)
                figures = _accumulate(accelerator, wrapped, training, inputs, number)
                place.add(figures)
                if training.clip_norm is not None:
                    accelerator.clip_grad_norm_(training.module.parameters(), training.clip_norm)
                prepared.step()
                prepared.zero_grad()
                bar.update()
                try:
                    if on_step:
                        on_step(number, sum(values[0] for values in figures) / len(figures))
                except RuinedError:  # not kept, so that a rerun meets this look again
                    raise
                except BaseException:
                    keep_place(checkpoint, training.module, optimizer, place)
                    raise
                if not training.module.training:  # whoever looked at it has set it to evaluate
                    _set_to_train(wrapped)
                if time.monotonic() - written >= 60 * MINUTES:
                    keep_place(checkpoint, training.module, optimizer, place)
                    written = time.monotonic()
            keep_place(checkpoint, training.module, optimizer, place)
            row = place.close_epoch(["loss", *(term.name for term in training.terms)])
            bar.set_postfix({name: f"{value:.3g}" for name, value in row.items()}, refresh=False)
            training.module.eval()
            # If it raises, the epoch stays open: a rerun has all its steps, and calls again.
            if on_epoch:
                on_epoch(place.history)
            keep_place(checkpoint, training.module, optimizer, place)
    accelerator.wait_for_everyone()  # until the main process has written the checkpoint
    training.module.eval()
    return place.history


def _read_epoch(training: Training, epoch: int, done: int) -> Iterator[tuple[int, list[Any]]]:
    """Yields the remaining steps of an epoch: their numbers, and the inputs of their batches."""
    steps = training.plan(epoch)
    number = epoch * len(steps) + done
    batches = [batch for step in steps[done:] for batch in step]
    inputs = iter(training.read(batches, number * training.gradient_accumulation))
    for step in steps[done:]:
        yield number, [next(inputs) for _ in step]
        number += 1


def _accumulate(
    accelerator: Accelerator, wrapped: nn.Module, training: Training, inputs: list[Any], number: int
) -> list[list[float]]:
    """Adds up the gradients of a step's batches; returns for each its loss and each term's."""
    batch_figures = []
    for index, batch_inputs in enumerate(inputs):
        last = index == len(inputs) - 1  # processes exchange gradients after it
        with nullcontext() if last else accelerator.no_sync(wrapped):
            batch_number = number * training.gradient_accumulation + index
            batch = training.encode(wrapped, batch_inputs, batch_number)
            losses = torch.stack([term(batch) for term in training.terms])
            weights = [term.weight for term in training.terms]
            total = (losses * losses.new_tensor(weights)).sum()
            accelerator.backward(total / len(inputs))
        batch_figures.append(torch.cat([total[None], losses]).detach())
    figures = torch.stack(batch_figures).tolist()  # the only wait for the device in a step
    for loss, *_ in figures:
        if not isfinite(loss):  # before any weight changes
            raise ValueError(
                f"Expected a finite loss, got {loss} in step {number + 1}; lower the learning rate."
            )
    return figures


def _set_to_train(wrapped: nn.Module) -> None:
    """Sets train mode; batch norms keep CLIP's statistics, which few pictures would skew."""
    wrapped.train()
    for layer in wrapped.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()


def _set_rates(optimizer: torch.optim.Optimizer, done: float, warmup: float | None) -> None:
    if warmup is not None:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule_rate(done, warmup)


def schedule_rate(done: float, warmup: float) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine to zero.

    Args:
        done: share of the steps done, 0 to 1.
        warmup: share of the steps in which the rate rises.
    """
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + cos(pi * (done - warmup) / (1 - warmup)))
