"""The loop of every training: what comes in which batch, at which rate, and its place on disk.

That is kept in the middle of an epoch, too, and continued exactly.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from math import cos, isfinite, pi
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from dclip_kit.config import RegionTeacherSettings, StudentSettings, TeacherSettings
from dclip_kit.features.store import FrozenFeatures, differing_entries
from dclip_kit.models.weights import AFTER_BLOCKS
from dclip_kit.runtime.files import load_tensors, load_weights, save_tensors
from dclip_kit.runtime.processes import exists_for_all, gather_rows, is_main_process

History = list[dict[str, int | float]]  # a row of figures an epoch
MINUTES = 10.0  # between two checkpoints within an epoch
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
    # By the earliest place of a caption. Of several it is earlier, the more so the more they are:
    # the chance that none would be as early as this puts all pictures on one scale.
    return rows[(-counts * torch.log1p(-grouped[starts].double() / len(shuffled))).argsort()]


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
            parts[bool(AFTER_BLOCKS.match(name.removeprefix("visual.")))].append((name, parameter))
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
        ValueError: the loss is not finite, or the checkpoint is damaged, of another run, or not the
            same for all processes.
    """
    accelerator = Accelerator(mixed_precision="no")  # see `precision.autocast`
    optimizer = torch.optim.AdamW(groups, fused=True)  # one pass: else a seventh of a step
    settings = {"decayed": DECAYED} | settings
    history: History = []
    done, sums, seconds = 0, torch.zeros(()), 0.0  # steps, figures, time of the epoch begun
    if checkpoint is not None and exists_for_all(checkpoint):
        kept = load_training_state(checkpoint, module, optimizer)
        # What only the checkpoint has is compared, too: its steps were taken by that.
        if differing := differing_entries(
            kept["settings"], dict.fromkeys(kept["settings"]) | settings
        ):
            raise ValueError(
                f"Expected a run with these settings in {checkpoint}, but they differ in "
                f"{', '.join(differing)}; give another file or delete it."
            )
        history, done, seconds = kept["history"], kept["step"], kept["seconds"]
        places = gather_rows(torch.tensor([[len(history), done]]))
        if (places != places[0]).any():
            raise ValueError(
                "Expected all processes to go on from one place, but of epoch and step "
                f"{checkpoint} says {places.tolist()}; put it where every machine reads the same."
            )
        sums = torch.tensor(kept["sums"], dtype=torch.float64)

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
    each, accumulated = len(plan(0)), settings.get("gradient_accumulation", 1)
    total = settings["epochs"] * each
    bar = tqdm(
        total=total,
        desc=name,
        unit="step",
        initial=each * len(history) + done,
        delay=2,
        disable=not accelerator.is_main_process,
    )
    for epoch in range(len(history), settings["epochs"]):
        wrapped.train()
        # Batch norm goes on normalising by what CLIP saw: a few pictures of one kind would bend it.
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()
        began = written = time.monotonic()
        steps = plan(epoch)
        first = epoch * len(steps) + done
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
            for values in figures:
                if not isfinite(values[0]):  # before it moves any weight
                    raise ValueError(
                        f"Expected a finite loss, got {values[0]} in epoch {epoch + 1}, step "
                        f"{done + 1}; lower the learning rate."
                    )
                sums = sums + torch.tensor(values, dtype=torch.float64)
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
                    on_step(number, sum(values[0] for values in figures) / len(figures))
            except BaseException:
                keep()
                raise
        row = dict(zip(names, (sums / sum(map(len, steps))).tolist(), strict=False))
        history.append({"epoch": epoch + 1, **row, "seconds": seconds + time.monotonic() - began})
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
