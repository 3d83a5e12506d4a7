"""Fine-tuning the student: distillation, and its contrastive control."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from dclip_kit.config import StudentSettings
from dclip_kit.features.frozen import FrozenFeatures
from dclip_kit.losses import cosine_distillation_loss, dclip_loss, require_directions
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import tokenize
from dclip_kit.models.precision import (
    autocast,
    choose_precision,
    keep_statistics,
    send,
)
from dclip_kit.models.reading import Pictures, read_batches
from dclip_kit.models.weights import Trainable, clone_clip, freeze
from dclip_kit.runtime.files import fingerprint
from dclip_kit.runtime.processes import gather_batch, own_share
from dclip_kit.training.progress import History, Progress
from dclip_kit.training.rehearsal import Rehearsal
from dclip_kit.training.schedule import (
    DECAYED,
    draw_captions,
    group_parameters,
    schedule_rate,
    split_batches,
)


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
    *,
    rehearsal: Rehearsal | None = None,
    texts: Sequence[str] | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    on_epoch: Callable[[ClipBundle, History], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> StudentRun:
    """Fine-tunes a copy of CLIP's image tower (the text tower only with `train_text`).

    Under `accelerate launch` each process takes its share of every batch, and all end with the same
    weights as one process would. Call it in all of them, with the same arguments.

    Args:
        bundle: the untouched CLIP. The student trains where accelerate says, and returns to where
            this one is.
        pictures: of `features`, in its order: paths, or `read_pixels`' bytes.
        features: of the training pictures, from the same CLIP.
        settings: what trains and how; `distillation_weight=0` is the contrastive control. With
            `train_text` the student's texts have to be encoded anew afterwards.
        teacher_embeddings: from `embed_with_teacher`; the control needs none.
        rehearsal: what is repeated in every batch; only needed with a `rehearsal_weight`.
        texts: the captions of `features`, in its order; only needed with `train_text`.
        seed: of the order; arms with one seed see the same batches.
        checkpoint: file to continue from, and to write after each epoch and every ten minutes.
        on_epoch: called after each epoch, in every process, with the student and the history, to
            whose last row it may add figures.
        on_step: called after each step, in every process, with its number and its loss.

    Raises:
        ValueError: lengths or widths differ, a distilling run has no teacher, a rehearsing one
            nothing to rehearse, a feature or the loss is not finite, or the checkpoint is damaged
            or of another run.
    """
    rehearsal = rehearsal if settings.rehearsal_weight else None
    _check(pictures, features, settings, teacher_embeddings, rehearsal)
    targets = features.text if teacher_embeddings is None else teacher_embeddings
    torch.manual_seed(seed)
    accelerator = Accelerator(mixed_precision="no")  # see `autocast`
    device, precision = accelerator.device, choose_precision(settings.mixed_precision)
    student = clone_clip(bundle)
    # As the pictures are laid out: else every step would turn the weights of convolutions around.
    student.model.to(device, memory_format=torch.channels_last)
    trainable = freeze(student, settings.train)
    tower = module = student.model.visual
    captions = features.text  # as the loss takes them, or as the text tower does
    if settings.train_text:
        module, captions = student.model, _unfreeze_text(student, texts, len(features.text))
    optimizer = torch.optim.AdamW(group_parameters(module, settings), fused=True)
    seen = [captions, features.image_of_text, targets]
    run = {
        "kind": "student",
        "seed": seed,
        "decayed": DECAYED,
        "data": fingerprint(*seen, *([rehearsal.features] if rehearsal else [])),
        **asdict(settings),
        "mixed_precision": precision,
    }
    progress = Progress(module, optimizer, run, checkpoint)
    # The wrapped module itself is called: `encode_image` of the unwrapped model would skip the
    # gradient synchronisation of several processes.
    wrapped, prepared = accelerator.prepare(module, optimizer)

    def draw_rehearsed(number: int) -> Tensor:
        """This process's share of what a batch rehearses, by index."""
        assert rehearsal is not None
        drawn = rehearsal.draw(settings.rehearsal_batch, seed, number)
        return drawn[own_share(len(drawn))]

    def read(batches: Sequence[Tensor], first: int) -> Iterator[Tensor]:
        """This process's pixels of each batch, followed by those that it rehearses."""
        images = (features.image_of_text[rows[:, 0]] for rows in batches)
        own = (batch[own_share(len(batch))] for batch in images)
        pixels = read_batches(bundle, pictures, own, busy=device)
        if rehearsal is None:
            return pixels
        drawn = (draw_rehearsed(first + number) for number in range(len(batches)))
        repeated = read_batches(bundle, rehearsal.pictures, drawn, busy=device)
        return map(torch.cat, zip(pixels, repeated, strict=True))

    def encode(rows: Tensor, pixels: Tensor, number: int) -> tuple[Tensor, ...]:
        """Features of a batch, of which each process makes its share.

        Of images and captions; then of what is rehearsed, as it is now and as it was before.
        """
        chosen = rows[rows >= 0]
        own = send(captions[chosen[own_share(len(chosen))]], device)
        with autocast(device, precision):
            image, text = _encode(wrapped, student.normalize(pixels), own)
        image, now = F.normalize(image.float(), dim=-1).tensor_split([len(own_share(len(rows)))])
        batch = gather_batch(image, text.float(), len(rows), len(chosen))
        if rehearsal is None:
            return batch
        before = send(rehearsal.features[draw_rehearsed(number)], device).to(now)
        return *batch, *gather_batch(now, before, *[settings.rehearsal_batch] * 2)

    def compute_losses(rows: Tensor, pixels: Tensor, number: int) -> Tensor:
        """A batch's loss, and its parts: distillation, contrastive, rehearsal."""
        image, text, *repeated = encode(rows, pixels, number)
        owner = send((rows >= 0).nonzero()[:, 0], device)  # a pair a caption
        loss = dclip_loss(
            image[owner],
            text,
            send(targets[rows[rows >= 0]], device),
            settings.temperature,
            settings.distillation_weight,
            settings.contrastive_weight,
            same_pair=owner[:, None] == owner,
            distil_text=settings.train_text,
        )
        moved = torch.zeros_like(loss.total)
        if repeated:
            now, before = repeated
            moved = cosine_distillation_loss(now, before)
        total = loss.total + settings.rehearsal_weight * moved
        return torch.stack([total, loss.distillation, loss.contrastive, moved])

    step_count = settings.epochs * len(_plan_epoch(features, settings, seed, 0))
    bar = tqdm(
        total=step_count,
        desc="distilling" if settings.distillation_weight else "fine-tuning",
        unit="step",
        delay=2,
        disable=not accelerator.is_main_process,
    )
    for epoch in range(progress.epoch, settings.epochs):
        wrapped.train()
        keep_statistics(tower)
        progress.start_epoch()
        steps = _plan_epoch(features, settings, seed, epoch)
        first = epoch * len(steps)  # step of the epoch
        bar.update(first + progress.step - bar.n)
        todo = steps[progress.step :]
        number = (first + progress.step) * settings.gradient_accumulation  # of the next batch
        pixels = read([rows for batches in todo for rows in batches], number)
        for step, batches in enumerate(todo, start=first + progress.step):
            for group in prepared.param_groups:
                group["lr"] = group["peak"] * schedule_rate(step / step_count, settings)
            losses = []
            for rows in batches:
                last = rows is batches[-1]  # gradients are put together after it
                with nullcontext() if last else accelerator.no_sync(wrapped):
                    parts = compute_losses(rows, next(pixels), number)
                    accelerator.backward(parts[0] / len(batches))
                losses.append(parts.detach())
                number += 1
            figures = torch.stack(losses).tolist()  # the only time that a step waits for the device
            for each in figures:
                progress.add(each)
            accelerator.clip_grad_norm_(module.parameters(), settings.clip_norm)
            prepared.step()
            prepared.zero_grad()
            progress.finish_step()
            bar.update()
            if on_step:
                on_step(step, sum(each[0] for each in figures) / len(figures))
        names = ("loss", "distillation", "contrastive", "rehearsal")[: 4 if rehearsal else 3]
        means = (progress.sums / sum(map(len, steps))).tolist()
        progress.finish_epoch(dict(zip(names, means, strict=False)), bar)
        module.eval()
        try:
            if on_epoch:
                on_epoch(student, progress.history)
        finally:
            progress.write()
    bar.close()
    accelerator.wait_for_everyone()  # until the main process has written the checkpoint
    student.model.requires_grad_(False).eval().to(bundle.device)
    return StudentRun(student, trainable, progress.history)


def _check(
    pictures: Pictures,
    features: FrozenFeatures,
    settings: StudentSettings,
    teacher_embeddings: Tensor | None,
    rehearsal: Rehearsal | None,
) -> None:
    if len(pictures) != len(features):
        raise ValueError(
            f"Expected the {len(features)} pictures of the features, got {len(pictures)}; give "
            "both from one data set."
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
    if rehearsal is None and settings.rehearsal_weight:
        raise ValueError(
            "Expected something to rehearse, got None; give distill crops with the untouched "
            "CLIP's features of them, or set rehearsal_weight=0."
        )
    require_directions(text_features=features.text)
    if teacher_embeddings is not None:
        require_directions(teacher_features=teacher_embeddings)
    if rehearsal:
        require_directions(rehearsed_features=rehearsal.features)


def _unfreeze_text(
    student: ClipBundle, texts: Sequence[str] | None, count: int
) -> Int[Tensor, "text context"]:
    """Lets the text tower train, as the published code does (5 in `config.RECIPES`).

    Its logit scale and bias stay as they are, since no loss here reads them.

    Returns:
        The captions as the text tower takes them.
    """
    if texts is None or len(texts) != count:
        raise ValueError(
            f"Expected the {count} captions of the features, since the text tower trains, got "
            f"{None if texts is None else len(texts)}; give distill `texts`, such as "
            "`dataset.texts`, or set train_text=False."
        )
    for name, parameter in student.model.named_parameters():
        if not name.startswith(("visual.", "logit_")):
            parameter.requires_grad_(True)
    return tokenize(student, texts)


def _encode(model: Any, pixels: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
    """Features of pictures and captions; captions may be features of a frozen tower already."""
    if captions.is_floating_point():
        return model(pixels), captions
    found = model(pixels, captions)  # with gradient through both towers, L2-normalised
    if isinstance(found, dict):  # CoCa's
        return found["image_features"], found["text_features"]
    return found[0], found[1]


def _plan_epoch(
    features: FrozenFeatures, settings: StudentSettings, seed: int, epoch: int
) -> list[list[Tensor]]:
    """An epoch's steps, each of `gradient_accumulation` batches; the last may have fewer."""
    rows = draw_captions(features, seed, epoch, settings.captions_per_image)
    batches = split_batches(rows, settings.batch_size)
    each = settings.gradient_accumulation
    return [batches[start : start + each] for start in range(0, len(batches), each)]
