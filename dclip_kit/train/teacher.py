"""Training the teacher alone, and applying it."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from dclip_kit.checkpoint import fingerprint
from dclip_kit.config import RegionSettings, TeacherSettings
from dclip_kit.features import FrozenFeatures
from dclip_kit.losses import contrastive_loss
from dclip_kit.regions import region_weights
from dclip_kit.teacher import MetaTeacher, TeacherOutput
from dclip_kit.train.loop import History, Row, draw_captions, finish_epoch, resume, split_batches


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
) -> TeacherOutput:
    """The teacher on captions and regions: their own picture's, or (for the probe) others'."""
    images = features.image_of_text[texts] if images is None else images
    device = next(teacher.parameters()).device
    region, token = features.regions_of(images), features.tokens_of(texts)
    weights = None
    if regions.weighted and not getattr(teacher, "caption_free", False):
        weights = region_weights(
            region.features,
            token.features,
            features.areas_of(images),
            features.confidences_of(images),
            region.mask,
            token.mask,
        )
        weights = weights.to(device)
    return teacher(
        region.features.to(device),
        region.mask.to(device),
        token.features.to(device),
        token.mask.to(device),
        weights,
    )


@torch.no_grad()
def embed_with_teacher(
    teacher: MetaTeacher, features: FrozenFeatures, regions: RegionSettings, batch_size: int = 512
) -> Float[Tensor, "text embed"]:
    """The frozen teacher's embedding of every image-caption pair: the students' targets."""
    teacher.eval()
    batches = torch.arange(len(features.text)).split(batch_size)
    return torch.cat(
        [
            apply_teacher(teacher, features, texts, regions).embedding.cpu()
            for texts in tqdm(batches, desc="teacher embeddings", delay=2)
        ]
    )


def train_teacher(
    features: FrozenFeatures,
    settings: TeacherSettings,
    regions: RegionSettings,
    seed: int = 0,
    checkpoint: Path | None = None,
    on_epoch: Callable[[MetaTeacher, History], None] | None = None,
) -> TeacherRun:
    """Trains the teacher alone, by symmetric InfoNCE against the caption embedding.

    Args:
        features: of the training pictures, from the frozen CLIP.
        settings: sizes and hyperparameters.
        regions: whether regions are weighted.
        seed: of weights and order.
        checkpoint: file to continue from, and to write after each epoch.
        on_epoch: called after each epoch (plots, more figures).

    Raises:
        ValueError: a feature is not finite, or the checkpoint is damaged or of another run.
    """
    torch.manual_seed(seed)
    accelerator = Accelerator()
    teacher = MetaTeacher(
        features.text.shape[1],
        settings.heads,
        settings.layers,
        settings.pooling_temperature,
        settings.caption_free,
    )
    optimizer = torch.optim.AdamW(
        teacher.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    run = {
        "kind": "teacher",
        "seed": seed,
        "weighted": regions.weighted,
        "data": fingerprint(features.region, features.token, features.image_of_text),
        **asdict(settings),
    }
    progress = resume(checkpoint, teacher, optimizer, run)
    model, prepared = accelerator.prepare(teacher, optimizer)
    epochs = range(progress["epoch"], settings.epochs)
    bar = tqdm(
        epochs,
        desc="teacher",
        unit="epoch",
        initial=progress["epoch"],
        total=settings.epochs,
        delay=2,
    )
    for epoch in bar:
        model.train()
        began, losses = time.monotonic(), []
        for rows in split_batches(draw_captions(features, seed, epoch), settings.batch_size):
            texts = rows[:, 0]
            output = apply_teacher(model, features, texts, regions)
            target = features.text[texts].to(accelerator.device)
            loss = contrastive_loss(output.embedding, target, settings.temperature)
            accelerator.backward(loss)
            prepared.step()
            prepared.zero_grad()
            losses.append(loss.item())
        row: Row = {
            "epoch": epoch + 1,
            "loss": sum(losses) / len(losses),
            "seconds": time.monotonic() - began,
        }
        finish_epoch(row, progress, checkpoint, teacher, optimizer, bar)
        if on_epoch:
            on_epoch(teacher, progress["history"])
    return TeacherRun(teacher.eval(), progress["history"])
