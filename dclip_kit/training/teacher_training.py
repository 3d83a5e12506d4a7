"""Training the teacher alone, and applying it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from dclip_kit.config import RegionSettings, TeacherSettings
from dclip_kit.features.frozen import FrozenFeatures
from dclip_kit.losses import contrastive_loss, require_directions
from dclip_kit.models.precision import send
from dclip_kit.models.regions import region_weights
from dclip_kit.models.teacher import MetaTeacher, TeacherOutput, build_teacher
from dclip_kit.runtime.files import fingerprint
from dclip_kit.runtime.machine import return_memory
from dclip_kit.runtime.processes import gather_batch, is_main_process, own_share
from dclip_kit.training.progress import History, Progress
from dclip_kit.training.schedule import DECAYED, draw_captions, split_batches, split_decayed


@dataclass(frozen=True, eq=False)
class TeacherRun:
    """A trained teacher, and a row of figures an epoch."""

    teacher: MetaTeacher
    history: History


def apply_teacher(
    teacher: nn.Module,
    features: FrozenFeatures,
    texts: Int[Tensor, "pair"],
    regions: RegionSettings,
    images: Int[Tensor, "pair"] | None = None,
    check_values: bool = True,
) -> TeacherOutput:
    """The teacher on captions and regions: their own picture's, or (for the probe) others'.

    Args:
        teacher: perhaps wrapped for several processes.
        features: of the pictures.
        texts: captions, by index; a caption-free teacher is not given them.
        regions: as it was trained with.
        images: whose regions it sees; None for the captions' own.
        check_values: as in `MetaTeacher.forward`.
    """
    images = features.image_of_text[texts] if images is None else images
    device = next(teacher.parameters()).device
    plain = getattr(teacher, "module", teacher)  # of several processes, each wraps its own
    padded = features.regions_of(images)
    region, region_mask = send(padded.features, device), send(padded.mask, device)
    token = token_mask = weights = None
    if not getattr(plain, "caption_free", False):
        padded = features.tokens_of(texts)
        token, token_mask = send(padded.features, device), send(padded.mask, device)
        if regions.weighted:
            weights = region_weights(
                region,
                token,
                send(features.areas_of(images), device),
                send(features.confidences_of(images), device),
                region_mask,
                token_mask,
                check_values,
            )
    return teacher(region, region_mask, token, token_mask, weights, check_values)


@torch.no_grad()
def embed_with_teacher(
    teacher: MetaTeacher, features: FrozenFeatures, regions: RegionSettings, batch_size: int = 512
) -> Float[Tensor, "text embed"]:
    """The frozen teacher's embedding of every image-caption pair: the students' targets.

    It is cheap beside CLIP, so that each of several processes makes them all.

    Args:
        teacher: trained.
        features: of the training pictures.
        regions: as it was trained with.
        batch_size: pairs at a time; a teacher that attends to padding sees that of such a batch.
    """
    teacher.eval()
    batches = torch.arange(len(features.text)).split(batch_size)
    embeddings = torch.cat(
        [
            apply_teacher(teacher, features, texts, regions).embedding.cpu()
            for texts in tqdm(
                batches, desc="teacher embeddings", delay=2, disable=not is_main_process()
            )
        ]
    )
    return_memory()
    return embeddings


def train_teacher(
    features: FrozenFeatures,
    settings: TeacherSettings,
    regions: RegionSettings,
    seed: int = 0,
    checkpoint: Path | None = None,
    on_epoch: Callable[[MetaTeacher, History], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> TeacherRun:
    """Trains the teacher alone, by symmetric InfoNCE against the caption embedding.

    Under `accelerate launch` each process takes its share of every batch, and all end with the same
    weights as one process would. Call it in all of them, with the same arguments.

    Args:
        features: of the training pictures, from the frozen CLIP.
        settings: sizes and hyperparameters.
        regions: whether regions are weighted.
        seed: of weights and order.
        checkpoint: file to continue from, and to write after each epoch and every ten minutes.
        on_epoch: called after each epoch, in every process, with the teacher and the history, to
            whose last row it may add figures.
        on_step: called after each step, in every process, with its number and its loss.

    Raises:
        ValueError: a feature is not finite, or the checkpoint is damaged or of another run.
    """
    _check(features, settings, regions)
    torch.manual_seed(seed)
    accelerator = Accelerator(mixed_precision="no")  # see `precision.autocast`
    teacher = build_teacher(features.text.shape[1], settings)
    optimizer = torch.optim.AdamW(
        split_decayed(teacher.named_parameters(), settings.weight_decay),
        lr=settings.learning_rate,
        fused=True,  # one pass over all weights: else a seventh of a step
    )
    words = features.text if settings.caption_free else features.token
    run = {
        "kind": "teacher",
        "seed": seed,
        "weighted": regions.weighted,
        "decayed": DECAYED,
        "data": fingerprint(features.region, words, features.image_of_text),
        **asdict(settings),
    }
    progress = Progress(teacher, optimizer, run, checkpoint)
    model, prepared = accelerator.prepare(teacher, optimizer)
    bar = tqdm(
        range(progress.epoch, settings.epochs),
        desc="teacher",
        unit="epoch",
        initial=progress.epoch,
        total=settings.epochs,
        delay=2,
        disable=not accelerator.is_main_process,
    )
    for epoch in bar:
        model.train()
        progress.start_epoch()
        steps = split_batches(draw_captions(features, seed, epoch), settings.batch_size)
        for rows in steps[progress.step :]:
            texts = rows[:, 0]
            own = texts[own_share(len(texts))]
            embedding, target = gather_batch(
                apply_teacher(model, features, own, regions, check_values=False).embedding,
                send(features.text[own], accelerator.device),
                len(texts),
                len(texts),
            )
            loss = contrastive_loss(embedding, target, settings.temperature)
            accelerator.backward(loss)
            value = loss.item()
            progress.add([value])
            prepared.step()
            prepared.zero_grad()
            progress.finish_step()
            if on_step:
                on_step(epoch * len(steps) + progress.step - 1, value)
        progress.finish_epoch({"loss": progress.sums.item() / len(steps)}, bar)
        try:
            if on_epoch:
                on_epoch(teacher, progress.history)
        finally:
            progress.write()
    accelerator.wait_for_everyone()  # until the main process has written the checkpoint
    return TeacherRun(teacher.eval(), progress.history)


def _check(features: FrozenFeatures, settings: TeacherSettings, regions: RegionSettings) -> None:
    """Looks once at all that the teacher is going to see, so that no step has to."""
    require_directions(text_features=features.text)
    seen = {"region features": features.region}
    if not settings.caption_free:
        seen["token features"] = features.token
        if regions.weighted:
            seen |= {"areas": features.area, "confidences": features.confidence}
    for name, values in seen.items():
        if not all(part.isfinite().all() for part in values.split(65_536)):
            raise ValueError(
                f"Expected finite {name}, got NaN or infinity; extract the features again."
            )
