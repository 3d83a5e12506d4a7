"""Fine-tuning the student: distillation, and its contrastive control."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from dclip_kit.checkpoint import fingerprint
from dclip_kit.config import StudentSettings
from dclip_kit.embedding import Pictures, read_pixels
from dclip_kit.encoders import ClipBundle
from dclip_kit.features import FrozenFeatures
from dclip_kit.losses import dclip_loss
from dclip_kit.student import Trainable, clone_clip, follows_blocks, freeze
from dclip_kit.train.loop import History, Row, draw_captions, finish_epoch, resume, split_batches


@dataclass(frozen=True, eq=False)
class StudentRun:
    """A fine-tuned CLIP, what of it trained, and a row of figures an epoch."""

    student: ClipBundle
    trainable: Trainable
    history: History


def distill(
    bundle: ClipBundle,
    pictures: Pictures,
    features: FrozenFeatures,
    settings: StudentSettings,
    teacher_embeddings: Float[Tensor, "text embed"] | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    validate: Callable[[ClipBundle], dict[str, float]] | None = None,
    on_epoch: Callable[[ClipBundle, History], None] | None = None,
    name: str = "student",
) -> StudentRun:
    """Fine-tunes a copy of CLIP's image tower; text tower and teacher give no gradient.

    Args:
        bundle: the untouched CLIP. The student trains where accelerate says, and comes back to
            where this one is.
        pictures: of `features`, in its order: paths, or `read_pixels`' bytes.
        features: of the training pictures, from the same CLIP.
        settings: what trains and how; `distillation_weight=0` is the contrastive control.
        teacher_embeddings: from `embed_with_teacher`; may be None for the control.
        seed: of the order; arms with one seed see the same batches.
        checkpoint: file to continue from, and to write after each epoch.
        validate: figures to add to each epoch's row of history.
        on_epoch: called after each epoch (plots).
        name: of the progress bar.

    Raises:
        ValueError: lengths or widths differ, a distilling run has no teacher, a feature or the
            loss is not finite, or the checkpoint is damaged or of another run.
    """
    _check_distillation(pictures, features, settings, teacher_embeddings)
    torch.manual_seed(seed)
    accelerator = Accelerator()
    precision = choose_precision(settings.mixed_precision)
    student = clone_clip(bundle)
    student.model.to(accelerator.device)
    trainable = freeze(student, settings.train)
    tower = student.model.visual
    chosen = [p for p in tower.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(_group(tower, settings), weight_decay=settings.weight_decay)
    targets = features.text if teacher_embeddings is None else teacher_embeddings
    run = {
        "kind": "student",
        "seed": seed,
        "data": fingerprint(features.text, features.image_of_text, targets),
        **asdict(settings),
        "mixed_precision": precision,
    }
    progress = resume(checkpoint, tower, optimizer, run)
    # The wrapped tower itself is called: `encode_image` of the unwrapped model would skip the
    # gradient synchronisation of many processes.
    visual, prepared = accelerator.prepare(tower, optimizer)
    step_count = settings.epochs * len(_plan(features, settings, seed, 0))
    bar = tqdm(total=step_count, desc=name, unit="step", delay=2)
    for epoch in range(progress["epoch"], settings.epochs):
        visual.train()
        keep_statistics(tower)
        began, totals = time.monotonic(), torch.zeros(3)
        steps = _plan(features, settings, seed, epoch)
        bar.update(epoch * len(steps) - bar.n)
        for step, batches in enumerate(steps, start=epoch * len(steps)):
            for group in prepared.param_groups:
                group["lr"] = group["peak"] * _schedule(step / step_count, settings)
            for rows in batches:  # image caption
                pixels = _take(bundle, pictures, features.image_of_text[rows[:, 0]])
                image, texts = (rows >= 0).nonzero()[:, 0], rows[rows >= 0]  # a pair a caption
                with autocast(accelerator.device, precision), fast_attention(accelerator.device):
                    image_features = visual(student.normalize(pixels))
                loss = dclip_loss(
                    F.normalize(image_features.float(), dim=-1)[image],
                    features.text[texts].to(accelerator.device),
                    targets[texts].to(accelerator.device),
                    settings.temperature,
                    settings.distillation_weight,
                    settings.contrastive_weight,
                    same_pair=(image[:, None] == image).to(accelerator.device),
                )
                if not loss.total.isfinite():
                    raise ValueError(
                        f"Expected a finite loss, got {loss.total.item()} at step {step}; lower "
                        "the learning rate."
                    )
                accelerator.backward(loss.total / len(batches))
                parts = (loss.total.item(), loss.distillation.item(), loss.contrastive.item())
                totals += torch.tensor(parts)
            accelerator.clip_grad_norm_(chosen, settings.clip_norm)
            prepared.step()
            prepared.zero_grad()
            bar.update()
        mean = (totals / sum(map(len, steps))).tolist()
        row: Row = {
            "epoch": epoch + 1,
            "loss": mean[0],
            "distillation": mean[1],
            "contrastive": mean[2],
            "seconds": time.monotonic() - began,
        }
        tower.eval()
        row |= validate(student) if validate else {}
        finish_epoch(row, progress, checkpoint, tower, optimizer, bar)
        if on_epoch:
            on_epoch(student, progress["history"])
    bar.close()
    student.model.requires_grad_(False).eval().to(bundle.device)
    return StudentRun(student, trainable, progress["history"])


def _check_distillation(
    pictures: Pictures,
    features: FrozenFeatures,
    settings: StudentSettings,
    teacher_embeddings: Tensor | None,
) -> None:
    if len(pictures) != len(features):
        raise ValueError(
            f"Expected the {len(features)} pictures of the features, got "
            f"{len(pictures)}; give both from one data set."
        )
    if teacher_embeddings is None and settings.distillation_weight:
        raise ValueError(
            "Expected teacher_embeddings to distil from, got None; make them with "
            "embed_with_teacher, or set distillation_weight=0 for the control."
        )
    if teacher_embeddings is not None and teacher_embeddings.shape != features.text.shape:
        raise ValueError(
            f"Expected teacher embeddings of shape {tuple(features.text.shape)}, got "
            f"{tuple(teacher_embeddings.shape)}; make them from these features."
        )


def keep_statistics(tower: nn.Module) -> None:
    """Batch norm goes on normalising by what CLIP saw: a few pictures of one kind would bend it."""
    for module in tower.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def choose_precision(asked: str) -> str:
    """Turns "auto" into bf16 where the hardware has it, and into fp32 elsewhere.

    Raises:
        ValueError: the precision is unknown.
    """
    if asked in ("no", "bf16"):
        return asked
    if asked != "auto":
        raise ValueError(f"Expected a precision out of auto, no, bf16, got {asked!r}.")
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"


def fast_attention(device: torch.device) -> AbstractContextManager[None]:
    """Plain attention on CPUs, whose fused kernel's backward pass took a third of a step."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """For one forward pass.

    Accelerate's would last: the first training's precision holds for every later one in the
    process, and wraps the tower, so that validation would run in bf16 too.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def _plan(
    features: FrozenFeatures, settings: StudentSettings, seed: int, epoch: int
) -> list[list[Tensor]]:
    """An epoch's steps, each of `gradient_accumulation` batches; the last may have fewer."""
    rows = draw_captions(features, seed, epoch, settings.captions_per_image)
    batches = split_batches(rows, settings.batch_size)
    each = settings.gradient_accumulation
    return [batches[start : start + each] for start in range(0, len(batches), each)]


def _take(bundle: ClipBundle, pictures: Pictures, images: Tensor) -> Tensor:
    if isinstance(pictures, Tensor):
        return pictures[images]
    return read_pixels(bundle, [pictures[i] for i in images.tolist()], progress=False)


def _group(tower: nn.Module, settings: StudentSettings) -> list[dict[str, Any]]:
    """What trains, by its highest learning rate: in the blocks, and after them."""
    named = [(name, p) for name, p in tower.named_parameters() if p.requires_grad]
    rates = {False: settings.learning_rate * settings.block_rate, True: settings.learning_rate}
    return [
        {"params": [p for name, p in named if follows_blocks(name) == after], "peak": rate}
        for after, rate in rates.items()
    ]


def _schedule(done: float, settings: StudentSettings) -> float:
    """Share of the learning rate: linear warm-up, cosine to zero."""
    warmup = settings.warmup_share
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + cos(pi * (done - warmup) / (1 - warmup)))
