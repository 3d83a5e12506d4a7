"""Fine-tuning the student by the terms of a recipe, or of its control."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dclip_kit.config import StudentSettings
from dclip_kit.features.store import EncodedPictures
from dclip_kit.losses import require_directions
from dclip_kit.models.adapters import attach_adapters, merge_adapters
from dclip_kit.models.clip import ClipBundle, autocast, choose_precision, send
from dclip_kit.models.denoiser import Denoiser
from dclip_kit.models.encode import read_batches, shortened
from dclip_kit.models.weights import AFTER_BLOCKS, clone_clip, freeze
from dclip_kit.runtime.files import fingerprint
from dclip_kit.runtime.processes import gather_batch, own_share, training_device
from dclip_kit.training.denoising import DenoiserTerm
from dclip_kit.training.loop import History, Training, split_decayed, train
from dclip_kit.training.order import plan_epoch
from dclip_kit.training.terms import (
    AnchoredTerm,
    Batch,
    Beside,
    CaptionTerm,
    CosineTerm,
    PictureTargets,
    RehearsalTerm,
    Term,
)

LOOKED_AT = 100  # steps, from which the first epoch is looked at before its end


@dataclass(frozen=True, eq=False)
class StudentRun:
    """A fine-tuned CLIP, and a row of figures for each epoch."""

    student: ClipBundle
    history: History


def choose_terms(
    settings: StudentSettings,
    captioned: EncodedPictures,
    teacher_embeddings: Float[Tensor, "text embed"] | None = None,
    *,
    uncaptioned: PictureTargets | None = None,
    rehearsal: PictureTargets | None = None,
    denoiser: Denoiser | None = None,
    anchors: Float[Tensor, "anchor embed"] | None = None,
    seed: int = 0,
) -> list[Term]:
    """Makes the terms that have a weight in the settings, each with what it learns from.

    Args:
        settings: weights and options of the terms; `distillation_weight=0` is the control.
        captioned: the training pictures.
        teacher_embeddings: a teacher's embedding for each caption: from `embed_with_teacher`, or
            `embed_pictures(…)[features.image_of_text]`. The control needs none.
        uncaptioned: pictures without captions and a teacher's embeddings of them, drawn for each
            batch; only needed with an `uncaptioned_batch`.
        rehearsal: crops to rehearse in every batch; only needed with a `rehearsal_weight`.
        denoiser: frozen; only needed with an `sds_weight`.
        anchors: features of the texts that anchored_kl ranks; the captions' if left out.
        seed: of the run; the terms' draws depend on it.

    Raises:
        ValueError: what a term learns from is missing or does not fit, or no term has a weight.
    """
    terms: list[Term] = []
    if settings.contrastive_weight:
        terms.append(CaptionTerm(settings.contrastive_weight, settings.temperature))
    if settings.distillation_weight:
        targets = _require_targets(teacher_embeddings, captioned)
        beside = None
        if uncaptioned and settings.uncaptioned_batch:
            beside = Beside(uncaptioned, settings.uncaptioned_batch, seed + 500_009)
        texts = captioned.features.text if anchors is None else anchors
        terms.append(_choose_teacher_term(settings, texts, targets, beside, seed))
    if settings.rehearsal_weight:
        if rehearsal is None:
            raise ValueError(
                "Expected something to rehearse, got None; give crops with the untouched CLIP's "
                "features of them, or set rehearsal_weight=0."
            )
        beside = Beside(rehearsal, settings.rehearsal_batch, seed)
        terms.append(RehearsalTerm(settings.rehearsal_weight, beside=beside))
    if settings.sds_weight:
        if denoiser is None:
            raise ValueError(
                "Expected a denoiser for an sds_weight above 0, got None; give one of "
                "load_denoiser, or set sds_weight=0."
            )
        terms.append(
            DenoiserTerm(
                settings.sds_weight,
                denoiser,
                captioned.dataset.texts,
                seed + 250_007,
                (settings.sds_from, settings.sds_until),
                choose_precision(settings.mixed_precision, denoiser.unet.device),
            )
        )
    if not terms:
        raise ValueError(
            "Expected a weight above 0 for one term at least, got none; set contrastive_weight=1."
        )
    return terms


def _choose_teacher_term(
    settings: StudentSettings,
    anchors: Tensor,
    targets: Tensor,
    beside: Beside | None,
    seed: int,
) -> Term:
    if settings.distillation == "anchored_kl":
        return AnchoredTerm(
            settings.distillation_weight,
            targets,
            anchors,
            settings.anchors,
            settings.temperature,
            seed,
            beside=beside,
        )
    if beside and settings.train_text:
        raise ValueError(
            "Expected no uncaptioned pictures, since train_text distils captions too, got some; "
            "set uncaptioned_batch=0, train_text=False or distillation='anchored_kl'."
        )
    return CosineTerm(settings.distillation_weight, targets, settings.train_text, beside=beside)


def _require_targets(embeddings: Tensor | None, captioned: EncodedPictures) -> Tensor:
    """A teacher's embeddings, one for each caption."""
    text = captioned.features.text
    if embeddings is None or embeddings.shape != text.shape:
        raise ValueError(
            f"Expected teacher embeddings of shape {tuple(text.shape)}, a row per caption, got "
            f"{embeddings if embeddings is None else tuple(embeddings.shape)}; make them from "
            "these features with embed_with_teacher or embed_pictures, or set "
            "distillation_weight=0 for the control."
        )
    require_directions(teacher_features=embeddings)
    return embeddings


class _Student(nn.Module):
    """The trained module: a CLIP, or its image tower alone, with the terms' heads on it."""

    def __init__(self, tower: nn.Module, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.tower, self.heads = tower, nn.ModuleDict(heads)

    def forward(
        self, pixels: Tensor, ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Features of pictures, of captions if their tower trains, and the heads' outputs."""
        output = self.tower(pixels) if ids is None else self.tower(pixels, ids)
        if isinstance(output, dict):  # CoCa's
            output = output["image_features"], output["text_features"]
        # Besides a tower's features, CoCa returns tokens, which are not needed here.
        image = output[0] if isinstance(output, tuple) else output
        heads = {name: head(image) for name, head in self.heads.items()}
        return image, None if ids is None else output[1], heads


def distill(
    bundle: ClipBundle,
    captioned: EncodedPictures,
    terms: Sequence[Term],
    settings: StudentSettings,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    on_epoch: Callable[[ClipBundle, History], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    on_look: Callable[[ClipBundle], None] | None = None,
) -> StudentRun:
    """Fine-tunes a copy of CLIP's image tower (the text tower only with `train_text`).

    Under `accelerate launch` each process takes its share of every batch, and all end with the same
    weights as one process would. Call it in all of them, with the same arguments.

    Args:
        bundle: the untouched CLIP. The student trains on its device, or with several processes on
            the one that accelerate gives each, and is moved back afterwards.
        captioned: the training pictures, with features from the same CLIP.
        terms: what to learn; `choose_terms` makes those of a recipe.
        settings: what trains, how fast and how long. After `train_text`, texts have to be encoded
            again with the student.
        seed: of the order; arms with the same seed see the same batches.
        checkpoint: file to continue from, and to write after each epoch and every ten minutes.
        on_epoch: called after each epoch, in every process, with the student (a copy, if adapters
            train) and the history, to whose last row it may add figures.
        on_step: called after each step, in every process, with its number and its loss. Whatever
            it raises stops the training; the checkpoint has all steps up to this one.
        on_look: called in the same way with the student, in evaluation mode, after each quarter of
            the first epoch but the last, if that has steps enough. If it raises `RuinedError`, the
            training stops there each time that it is called.

    Raises:
        ValueError: widths differ, a feature or the loss is not finite, or the checkpoint
            is damaged or of another run; or as `attach_adapters`.
        ImportError: as `attach_adapters`.
    """
    features = captioned.features
    if features.text.shape[1] != bundle.embed_dim:
        raise ValueError(
            f"Expected features of {bundle.embed_dim} numbers, as {bundle.name} makes them, got "
            f"{features.text.shape[1]}; give features from this CLIP."
        )
    require_directions(text_features=features.text)
    torch.manual_seed(seed)
    device = training_device(bundle.device)
    student, module, captions = _make_student(bundle, captioned, terms, settings, device)
    precision = choose_precision(settings.mixed_precision, device)
    training = Training(
        "distilling" if any(term.name == "distillation" for term in terms) else "fine-tuning",
        module,
        group_parameters(module, settings),
        settings.epochs,
        partial(plan_epoch, features, settings, seed),
        partial(_encode, student, captions, terms, precision),
        terms,
        {
            "kind": "student",
            "seed": seed,
            # The pictures' features also identify the tower that training starts from.
            "data": fingerprint(captions, features.image, features.image_of_text),
            "terms": {term.name: [term.weight, term.describe()] for term in terms},
            "term_names": [term.name for term in terms],
            **asdict(settings),
            "mixed_precision": precision,
        },
        partial(_read, student, captioned, terms, device),
        settings.gradient_accumulation,
        settings.clip_norm,
        settings.warmup_share,
    )
    looks = _choose_looks(len(training.plan(0))) if on_look else ()

    def after_epoch(history: History) -> None:
        if on_epoch:
            on_epoch(merge_adapters(student), history)

    def after_step(number: int, loss: float) -> None:
        if on_look and number + 1 in looks:
            module.eval()
            on_look(merge_adapters(student))
        if on_step:
            on_step(number, loss)

    history = train(training, checkpoint, after_epoch, after_step)
    student.model.requires_grad_(False).eval().to(bundle.device)
    return StudentRun(merge_adapters(student), history)


def group_parameters(module: nn.Module, settings: StudentSettings) -> list[dict[str, Any]]:
    """Groups the trained parameters by peak learning rate: blocks (with all texts), and the rest.

    `split_decayed` splits each of them in two.
    """
    parts: dict[bool, list[tuple[str, nn.Parameter]]] = {False: [], True: []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            local_name = name.removeprefix("tower.").removeprefix("visual.")
            is_after = local_name.startswith("heads.") or bool(AFTER_BLOCKS.match(local_name))
            parts[is_after].append((name, parameter))
    rate, decay = settings.learning_rate, settings.weight_decay
    blocks = split_decayed(parts[False], rate * settings.block_rate, decay)
    return blocks + split_decayed(parts[True], rate, decay)


def _choose_looks(steps: int) -> Collection[int]:
    """How many steps of the first epoch are done at each look; none in a short epoch."""
    return {steps * quarter // 4 for quarter in (1, 2, 3)} if steps >= LOOKED_AT else ()


def _make_student(
    bundle: ClipBundle,
    captioned: EncodedPictures,
    terms: Sequence[Term],
    settings: StudentSettings,
    device: torch.device,
) -> tuple[ClipBundle, _Student, Tensor]:
    """A copy of CLIP; its trained part with the terms' heads; and the captions for the loss."""
    student = clone_clip(bundle)
    # In the pictures' memory format: otherwise each step would convert convolution weights.
    student.model.to(device, memory_format=torch.channels_last)
    freeze(student, settings.train)
    if settings.lora:
        attach_adapters(student, settings.train, settings.lora)
    tower, captions = student.model.visual, captioned.features.text
    if settings.train_text:  # captions as the text tower takes them
        tower, captions = student.model, _unfreeze_text(student, captioned.dataset.texts)
    all_heads = {term.name: term.build_head(bundle.embed_dim) for term in terms}
    heads = {name: head for name, head in all_heads.items() if head}
    return student, _Student(tower, heads).to(device), captions


def _read(
    student: ClipBundle,
    captioned: EncodedPictures,
    terms: Sequence[Term],
    device: torch.device,
    batches: Sequence[Tensor],
    first: int,
) -> Iterator[tuple[Tensor, dict[str, Tensor], Tensor]]:
    """Yields each batch, the pictures that terms draw for it, and this process's pixels of both."""
    sources = {term.name: term.beside for term in terms if term.beside}
    drawn = [
        {name: source.draw(number)[own_share(source.count)] for name, source in sources.items()}
        for number in range(first, first + len(batches))
    ]
    images = (captioned.features.image_of_text[rows[:, 0]] for rows in batches)
    shares = (batch[own_share(len(batch))] for batch in images)
    parts = [read_batches(student, captioned.pictures, shares, busy=device)]
    for name, source in sources.items():
        beside_indices = [indices[name] for indices in drawn]
        parts.append(read_batches(student, source.targets.pictures, beside_indices, busy=device))
    return zip(batches, drawn, map(torch.cat, zip(*parts, strict=True)), strict=True)


def _encode(
    student: ClipBundle,
    captions: Tensor,
    terms: Sequence[Term],
    precision: str,
    module: nn.Module,
    inputs: tuple[Tensor, dict[str, Tensor], Tensor],
    number: int,
) -> Batch:
    """Computes the features of a batch; each process encodes its share.

    Args:
        student: the CLIP that trains.
        captions: features of all captions, or their token ids if the text tower trains.
        terms: the pictures that they draw are encoded with the batch.
        precision: as in `autocast`.
        module: a `_Student`, perhaps wrapped for several processes.
        inputs: as `_read` yields them.
        number: of the batch.
    """
    rows, drawn, pixels = inputs
    captions_of_batch = rows[rows >= 0]
    share = own_share(len(captions_of_batch))
    device = student.device
    with autocast(device, precision):
        if captions.is_floating_point():
            image, _, heads = module(student.normalize(pixels))
            text = send(captions[captions_of_batch[share]], device)
        else:  # with gradients through both towers, L2-normalised
            # Shortened for the whole batch, since processes share buffers and this cuts one short.
            with shortened(student.model, captions[captions_of_batch]) as ids:
                image, text, heads = module(student.normalize(pixels), send(ids[share], device))
    shares = [len(own_share(len(rows))), *map(len, drawn.values())]
    image, *beside_features = F.normalize(image.float(), dim=-1).split(shares)
    beside, sources = {}, {term.name: term.beside for term in terms if term.beside}
    for (name, indices), features in zip(drawn.items(), beside_features, strict=True):
        count, targets = sources[name].count, sources[name].targets.features
        beside[name] = gather_batch(
            features, send(targets[indices], device).to(features), count, count
        )
    image, text = gather_batch(image, text.float(), len(rows), len(captions_of_batch))
    heads = {name: mapped[: shares[0]] for name, mapped in heads.items()}
    return Batch(number, rows, image, text, beside, heads)


def _unfreeze_text(student: ClipBundle, texts: Sequence[str]) -> Tensor:
    """Unfreezes the text tower, as the published code does (5 in `config.RECIPES`).

    Its logit scale and bias stay as they are, since no loss here reads them.

    Returns:
        The captions as the text tower takes them, of shape (text, context).
    """
    for name, parameter in student.model.named_parameters():
        if not name.startswith(("visual.", "logit_")):
            parameter.requires_grad_(True)
    return student.tokenizer(list(texts))
