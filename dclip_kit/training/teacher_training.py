"""Training the teacher alone, and applying it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from dclip_kit.config import RegionSettings, RegionTeacherSettings, TeacherSettings
from dclip_kit.features.store import FrozenFeatures
from dclip_kit.losses import require_directions
from dclip_kit.metrics import retrieval_metrics
from dclip_kit.models.clip import send
from dclip_kit.models.regions import pad_rows, region_weights
from dclip_kit.models.teacher import (
    MetaTeacher,
    RegionTeacher,
    TeacherOutput,
    build_teacher,
    kind_of,
)
from dclip_kit.runtime.files import fingerprint
from dclip_kit.runtime.machine import return_memory
from dclip_kit.runtime.processes import gather_batch, is_main_process, own_share, training_device
from dclip_kit.training.loop import History, Training, split_decayed, train
from dclip_kit.training.order import plan_epoch
from dclip_kit.training.terms import Batch, CaptionTerm

MEAN_WEIGHTS = (0.3, 0.6, 1.0)  # of the regions' mean beside the picture, to choose from


@dataclass(frozen=True, eq=False)
class TeacherRun:
    """A teacher, and how it came about.

    Attributes:
        teacher: a `MetaTeacher` or a `RegionTeacher`.
        settings: that it was made by.
        history: a row of figures for each epoch; none if nothing was trained.
        chosen: what was chosen on val, from `choose_region_teacher`.
    """

    teacher: Any
    settings: TeacherSettings | RegionTeacherSettings
    history: History
    chosen: dict[str, Any] = field(default_factory=dict)


def apply_teacher(
    teacher: nn.Module,
    features: FrozenFeatures,
    texts: Int[Tensor, "pair"],
    regions: RegionSettings,
    images: Int[Tensor, "pair"] | None = None,
    check_values: bool = True,
) -> TeacherOutput:
    """Applies the teacher to captions and regions of their own picture, or of others for the probe.

    Args:
        teacher: perhaps wrapped for several processes.
        features: of the pictures.
        texts: indices of captions.
        regions: the settings that it was trained with.
        images: pictures whose regions it sees; None for the captions' own.
        check_values: as in `MetaTeacher.forward`.
    """
    images = features.image_of_text[texts] if images is None else images
    device = next(teacher.parameters()).device
    region, region_mask = (send(tensor, device) for tensor in features.regions_of(images))
    token, token_mask = (send(tensor, device) for tensor in features.tokens_of(texts))
    weights = None
    if regions.weighted:
        weights = region_weights(
            region,
            token,
            send(pad_rows(features.area, features.region_count, images)[0], device),
            send(pad_rows(features.confidence, features.region_count, images)[0], device),
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

    It is cheap compared with CLIP, so each of several processes computes them all.

    Args:
        teacher: trained.
        features: of the training pictures.
        regions: the settings that it was trained with.
        batch_size: pairs at a time; it matters to a teacher that attends to padding.

    Raises:
        ValueError: there are no captions, or no features of their tokens.
    """
    _require_captions(features, with_tokens=True)
    return _embed_all(
        teacher,
        len(features.text),
        batch_size,
        lambda texts: apply_teacher(teacher, features, texts, regions).embedding,
    )


def _embed_all(
    teacher: nn.Module, count: int, batch_size: int, embed: Callable[[Tensor], Tensor]
) -> Tensor:
    """All embeddings, given what embeds the pairs or pictures of some indices."""
    teacher.eval()
    batches = torch.arange(count).split(batch_size)
    bar = tqdm(batches, desc="teacher embeddings", delay=2, disable=not is_main_process())
    embeddings = torch.cat([embed(indices).cpu() for indices in bar])
    return_memory()
    return embeddings


def train_teacher(
    features: FrozenFeatures,
    settings: TeacherSettings | RegionTeacherSettings,
    regions: RegionSettings,
    seed: int = 0,
    checkpoint: Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
    device: torch.device | str = "cpu",
) -> TeacherRun:
    """Trains the teacher alone, by symmetric InfoNCE against the caption embedding.

    A `RegionTeacher` learns from all captions of a picture, and each step leaves out a share of its
    regions at random.

    Under `accelerate launch` each process takes its share of every batch, and all end with the same
    weights as one process would. Call it in all of them, with the same arguments.

    Args:
        features: of the training pictures, from the frozen CLIP.
        settings: sizes and hyperparameters; their class says which teacher is trained.
        regions: whether regions are weighted, for a teacher that reads captions.
        seed: of weights and order.
        checkpoint: file to continue from, and to write after each epoch and every ten minutes.
        on_step: called after each step, in every process, with its number and its loss. Whatever
            it raises stops the training; the checkpoint has all steps up to this one.
        device: where it trains; with several processes, accelerate chooses.

    Raises:
        ValueError: there are no captions, or none of the features of their tokens that the teacher
            reads; a feature is not finite; or the checkpoint is damaged or of another run.
    """
    reads_tokens = isinstance(settings, TeacherSettings)
    _require_captions(features, reads_tokens)
    # All the teacher's inputs are checked once here, so that no step has to.
    require_directions(text_features=features.text, image_features=features.image)
    area_and_confidence = torch.stack([features.area, features.confidence], dim=1)
    require_directions(
        zeros=True, region_features=features.region, areas_and_confidences=area_and_confidence
    )
    if reads_tokens:
        require_directions(zeros=True, token_features=features.token)
    # Tokens are by far the most, and lie on disk: whoever does not need them does not read them.
    inputs = [x for name, x in vars(features).items() if reads_tokens or name != "token"]
    torch.manual_seed(seed)
    teacher: Any = build_teacher(features.text.shape[1], settings).to(training_device(device))
    most = int(features.region_count.max())

    def embed(model: nn.Module, rows: Tensor, texts: Tensor, number: int) -> Tensor:
        """Embeds this process's share of a batch: its pairs, or its pictures."""
        if isinstance(settings, TeacherSettings):
            return apply_teacher(model, features, texts, regions, check_values=False).embedding
        # From seed and step alone, so that processes and resumed runs leave out the same regions.
        generator = torch.Generator().manual_seed(1_000_003 * seed + number)
        keep = torch.rand(len(rows), most, generator=generator) >= settings.region_dropout
        share = own_share(len(rows))
        images = features.image_of_text[rows[share, 0]]
        return apply_region_teacher(model, features, images, settings, keep[share])[0]

    def encode(model: nn.Module, rows: Tensor, number: int) -> Batch:
        captions = rows[rows >= 0]
        texts = captions[own_share(len(captions))]
        embedding = embed(model, rows, texts, number)
        target = send(features.text[texts], embedding.device)
        return Batch(number, rows, *gather_batch(embedding, target, len(rows), len(captions)))

    kind = kind_of(settings)
    training = Training(
        kind.replace("_", " "),
        teacher,
        split_decayed(teacher.named_parameters(), settings.learning_rate, settings.weight_decay),
        settings.epochs,
        partial(plan_epoch, features, settings, seed),
        encode,
        [CaptionTerm(1.0, settings.temperature)],
        {
            "kind": kind,
            "seed": seed,
            "weighted": regions.weighted,
            "data": fingerprint(*inputs),
            **asdict(settings),
        },
        warmup_share=getattr(settings, "warmup_share", None),
    )
    return TeacherRun(teacher, settings, train(training, checkpoint, on_step=on_step))


def _require_captions(features: FrozenFeatures, with_tokens: bool = False) -> None:
    """Raises ValueError if there are no captions, or if any lacks the features of its tokens."""
    count = len(features.text)
    if not count:
        raise ValueError(
            f"Expected pictures with captions for a teacher to learn or read, got {len(features)} "
            "without; give captioned ones, or take the recipe crops_taught."
        )
    if with_tokens and not features.token_count.all():
        raise ValueError(
            "Expected features of each caption's tokens for a teacher that reads captions, got "
            f"none for {int((features.token_count == 0).sum())} of {count}, as of SigLIP's texts; "
            "take a CLIP with open_clip's own text transformer, or a teacher that reads none."
        )


def choose_region_teacher(
    features: FrozenFeatures,
    settings: RegionTeacherSettings,
    val: FrozenFeatures | None,
    device: torch.device | str = "cpu",
) -> TeacherRun:
    """Takes the mean of picture and regions as the teacher; nothing is trained.

    Args:
        features: of the training pictures; only their width is used.
        settings: of the teacher.
        val: features of other captioned pictures, by which the mean's weight is chosen; without
            them, it weighs as much as the picture.
        device: where to put the teacher.

    Returns:
        The teacher. `chosen` has the mean's "weight", and "val_recall_at_1", text→image, by
        candidate.
    """
    untrained: Any = build_teacher(features.image.shape[1], settings).to(device).eval()
    found = dict[float, float]()
    if val:
        for weight in MEAN_WEIGHTS:
            untrained.start_from_mean(weight)
            embedding = embed_pictures(untrained, val, settings)
            metrics = retrieval_metrics(embedding, val.text, val.image_of_text)
            found[weight] = metrics.text_to_image.recall_at[1]
    weight = max(found, key=found.__getitem__, default=1.0)
    untrained.start_from_mean(weight)
    # So that its attention says what it does: each item counts the same.
    for layer in untrained.layers:
        nn.init.zeros_(layer.attention.in_proj_weight)
    recalls = {f"mean, {each:g}": recall for each, recall in found.items()}
    chosen = {"weight": weight, "val_recall_at_1": recalls}
    return TeacherRun(untrained, settings, [], chosen)


def apply_region_teacher(
    teacher: nn.Module,
    features: FrozenFeatures,
    images: Tensor,
    settings: RegionTeacherSettings,
    kept: Tensor | None = None,
) -> tuple[Float[Tensor, "image embed"], Float[Tensor, "image item item"]]:
    """Applies a `RegionTeacher` to some pictures, with the inputs that the settings allow.

    Args:
        teacher: perhaps wrapped for several processes.
        features: of all pictures.
        images: indices of the pictures to embed.
        settings: which inputs it sees.
        kept: a mask of each picture's regions, False at those to leave out; None keeps all.
    """
    device = next(teacher.parameters()).device
    lenders = images
    if settings.regions == "another":
        lenders = choose_lenders(len(features))[images]
    region, real = features.regions_of(lenders)
    mask = real & (settings.regions != "none")
    if kept is not None:
        mask = mask & kept[:, : mask.shape[1]]
    whole = features.image[images] * settings.whole_picture
    inputs = whole, region, mask, features.boxes_of(lenders) * settings.boxes
    return teacher(*(send(tensor, device) for tensor in inputs))


def choose_lenders(count: int, seed: int = 0) -> Int[Tensor, "image"]:
    """Draws for each picture another one to borrow regions from; each lends once."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order.roll(1)[order.argsort()]  # each borrows from the one before, so none keeps its own


@torch.no_grad()
def embed_pictures(
    teacher: RegionTeacher,
    features: FrozenFeatures,
    settings: RegionTeacherSettings,
    batch_size: int = 512,
) -> Float[Tensor, "image embed"]:
    """The region teacher's embedding of every picture; no caption is read.

    Args:
        teacher: trained.
        features: of the pictures; they may have no captions.
        settings: what the teacher sees; as in training, except for a probe.
        batch_size: pictures at a time.
    """
    return _embed_all(
        teacher,
        len(features),
        batch_size,
        lambda images: apply_region_teacher(teacher, features, images, settings)[0],
    )
