"""Fine-tuning the student: distillation, and its contrastive control."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from dclip_kit.config import StudentSettings
from dclip_kit.features.frozen import FrozenFeatures
from dclip_kit.losses import cosine_distillation_loss, dclip_loss, require_directions
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.precision import (
    autocast,
    choose_precision,
    fast_forward,
    keep_statistics,
    send,
)
from dclip_kit.models.reading import Pictures, read_batches
from dclip_kit.models.weights import Trainable, clone_clip, freeze
from dclip_kit.runtime.files import fingerprint
from dclip_kit.runtime.processes import gather_batch, own_share
from dclip_kit.training.loop import draw_captions, require_finite_loss, split_batches
from dclip_kit.training.progress import History, Progress, Row
from dclip_kit.training.rehearsal import Rehearsal, choose_rehearsal
from dclip_kit.training.schedule import DECAYED, group_parameters, schedule_rate
from dclip_kit.training.text import encode_pairs, token_ids, unfreeze_text


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
    texts: Sequence[str] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    checkpoint_minutes: float = 10.0,
    rehearsal: Rehearsal | None = None,
) -> StudentRun:
    """Fine-tunes a copy of CLIP's image tower (the text tower only with `train_text`).

    Under `accelerate launch` each process takes its share of every batch, and all end with the same
    weights as one process would; call it, and what you give it, in all of them.

    Args:
        bundle: the untouched CLIP. The student trains where accelerate says, and comes back to
            where this one is.
        pictures: of `features`, in its order: paths, or `read_pixels`' bytes.
        features: of the training pictures, from the same CLIP.
        settings: what trains and how; `distillation_weight=0` is the contrastive control. With
            `train_text` the student's text tower is another too: its texts are to be encoded anew.
        teacher_embeddings: from `embed_with_teacher`; may be None for the control.
        seed: of the order; arms with one seed see the same batches.
        checkpoint: file to continue from, and to write after each epoch.
        validate: figures to add to each epoch's row of history, in every process.
        on_epoch: called after each epoch (plots), in every process.
        name: of the progress bar.
        texts: of `features`, in its order; only needed with `train_text`.
        on_step: called after each step with its number and loss, in every process.
        checkpoint_minutes: the checkpoint is also written after so many, in the middle of an epoch.
        rehearsal: what is repeated in every batch; only needed with a `rehearsal_weight`.

    Raises:
        ValueError: lengths or widths differ, a distilling run has no teacher, a rehearsing one
            nothing to rehearse, a feature or the loss is not finite, or the checkpoint is damaged
            or of another run.
    """
    _check_distillation(pictures, features, settings, teacher_embeddings)
    rehearsal = choose_rehearsal(settings, rehearsal)
    targets = features.text if teacher_embeddings is None else teacher_embeddings
    require_directions(text_features=features.text, teacher_features=targets)
    if rehearsal:
        require_directions(rehearsed_features=rehearsal.features)
    torch.manual_seed(seed)
    accelerator = Accelerator(mixed_precision="no")  # see `autocast`
    precision = choose_precision(settings.mixed_precision)
    student = clone_clip(bundle)
    # As the pictures are laid out: else every step would turn the weights of convolutions around.
    student.model.to(accelerator.device, memory_format=torch.channels_last)
    trainable = freeze(student, settings.train)
    tower = module = student.model.visual
    ids = features.text  # what stands for captions
    if settings.train_text:
        unfreeze_text(student)
        module, ids = student.model, token_ids(bundle, texts, len(features.text))
    chosen = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(group_parameters(module, settings), fused=True)
    seen = [ids, features.image_of_text, targets, *([rehearsal.features] if rehearsal else [])]
    run = {
        "kind": "student",
        "seed": seed,
        "decayed": DECAYED,
        "data": fingerprint(*seen),
        **asdict(settings),
        "mixed_precision": precision,
    }
    progress = Progress(module, optimizer, run, checkpoint, checkpoint_minutes)
    # The wrapped module itself is called: `encode_image` of the unwrapped model would skip the
    # gradient synchronisation of several processes.
    wrapped, prepared = accelerator.prepare(module, optimizer)
    device = accelerator.device

    def read(rows: Sequence[Tensor], first: int) -> Iterator[Tensor]:
        """The pixels of batches, each process's share; then what it rehearses beside them."""
        images = (features.image_of_text[batch[:, 0]] for batch in rows)
        own = (batch[own_share(len(batch))] for batch in images)
        shown = read_batches(bundle, pictures, own, busy=device)
        if rehearsal is None:
            return shown
        drawn = (rehearsal.draw(size, seed, first + number) for number in range(len(rows)))
        again = (batch[own_share(len(batch))] for batch in drawn)
        repeated = read_batches(bundle, rehearsal.pictures, again, busy=device)
        return map(torch.cat, zip(shown, repeated, strict=True))

    def encode(rows: Tensor, shown: Tensor, number: int) -> tuple[Tensor, ...]:
        """Features of a batch, of which each process makes its share.

        Of its images and its captions; then of what is rehearsed, now and before the training.
        """
        captions = rows[rows >= 0]
        pixels = student.normalize(shown)
        given = send(ids[captions[own_share(len(captions))]], device)
        with autocast(device, precision), fast_forward(tower, device):
            image, text = (
                encode_pairs(wrapped, pixels, given)
                if settings.train_text
                else (wrapped(pixels), given)
            )
        image, now = F.normalize(image.float(), dim=-1).tensor_split([len(own_share(len(rows)))])
        batch = gather_batch(image, text.float(), len(rows), len(captions))
        if rehearsal is None:
            return batch
        again = rehearsal.draw(size, seed, number)[own_share(size)]
        before = send(rehearsal.features[again], device).to(now)
        return *batch, *gather_batch(now, before, size, size)

    size = settings.rehearsal_batch
    step_count = settings.epochs * len(_plan(features, settings, seed, 0))
    bar = tqdm(
        total=step_count, desc=name, unit="step", delay=2, disable=not accelerator.is_main_process
    )
    for epoch in range(progress.epoch, settings.epochs):
        wrapped.train()
        keep_statistics(tower)
        progress.start_epoch()
        steps = _plan(features, settings, seed, epoch)
        first = epoch * len(steps)
        bar.update(first + progress.step - bar.n)
        todo = steps[progress.step :]
        number = (first + progress.step) * settings.gradient_accumulation  # of the next batch
        shown = read([rows for batches in todo for rows in batches], number)
        for step, batches in enumerate(todo, start=first + progress.step):
            for group in prepared.param_groups:
                group["lr"] = group["peak"] * schedule_rate(step / step_count, settings)
            figures = []
            for rows in batches:
                # rows: image caption
                of_text, captions = (rows >= 0).nonzero()[:, 0], rows[rows >= 0]  # a pair a caption
                last = rows is batches[-1]  # gradients are put together after it
                with nullcontext() if last else accelerator.no_sync(wrapped):
                    image_features, text_features, *repeated = encode(rows, next(shown), number)
                    owner = send(of_text, device)
                    loss = dclip_loss(
                        image_features[owner],
                        text_features,
                        send(targets[captions], device),
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
                    accelerator.backward(total / len(batches))
                parts = (total, loss.distillation, loss.contrastive, moved)
                figures.append(torch.stack(parts).detach())
                number += 1
            found = torch.stack(figures).tolist()  # the only time that a step waits for the device
            losses = [require_finite_loss(total, step) for total, *_ in found]
            for each in found:
                progress.add(torch.tensor(each))
            accelerator.clip_grad_norm_(chosen, settings.clip_norm)
            prepared.step()
            prepared.zero_grad()
            progress.finish_step()
            bar.update()
            if on_step:
                on_step(step, sum(losses) / len(losses))
        mean = (progress.sums.float() / sum(map(len, steps))).tolist()
        row: Row = {
            "epoch": epoch + 1,
            "loss": mean[0],
            "distillation": mean[1],
            "contrastive": mean[2],
            **({"rehearsal": mean[3]} if rehearsal else {}),
            "seconds": progress.elapsed(),
        }
        module.eval()
        row |= validate(student) if validate else {}
        progress.finish_epoch(row, bar)
        if on_epoch:
            on_epoch(student, progress.history)
    bar.close()
    accelerator.wait_for_everyone()  # until the main process has written the checkpoint
    student.model.requires_grad_(False).eval().to(bundle.device)
    return StudentRun(student, trainable, progress.history)


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


def _plan(
    features: FrozenFeatures, settings: StudentSettings, seed: int, epoch: int
) -> list[list[Tensor]]:
    """An epoch's steps, each of `gradient_accumulation` batches; the last may have fewer."""
    rows = draw_captions(features, seed, epoch, settings.captions_per_image)
    batches = split_batches(rows, settings.batch_size)
    each = settings.gradient_accumulation
    return [batches[start : start + each] for start in range(0, len(batches), each)]
