"""Fine-tuning the student: by the terms of a recipe, or of its control."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dclip_kit.config import StudentSettings
from dclip_kit.features.store import EncodedPictures
from dclip_kit.losses import require_directions
from dclip_kit.models.clip import ClipBundle, autocast, choose_precision, send
from dclip_kit.models.denoiser import Denoiser
from dclip_kit.models.encode import read_batches, shortened
from dclip_kit.models.weights import clone_clip, freeze
from dclip_kit.runtime.files import fingerprint
from dclip_kit.runtime.processes import gather_batch, own_share, training_device
from dclip_kit.training.denoising import DenoiserTerm
from dclip_kit.training.loop import History, Schedule, Training, train
from dclip_kit.training.order import plan_epoch
from dclip_kit.training.rates import group_parameters
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


@dataclass(frozen=True, eq=False)
class StudentRun:
    """A fine-tuned CLIP, and a row of figures an epoch."""

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
    seed: int = 0,
) -> list[Term]:
    """The terms that settings give a weight, each with what it learns from.

    Args:
        settings: weights, and what each term does; `distillation_weight=0` is the control.
        captioned: the training pictures.
        teacher_embeddings: a teacher's embedding for each caption: from `embed_with_teacher`, or
            `embed_pictures(…)[features.image_of_text]`. The control needs none.
        uncaptioned: pictures without captions and a teacher's embeddings of them, drawn beside each
            batch; only needed with an `uncaptioned_batch`.
        rehearsal: what is repeated in every batch; only needed with a `rehearsal_weight`.
        denoiser: frozen; only needed with an `sds_weight`.
        seed: of the run, on which what terms draw depends.

    Raises:
        ValueError: a term lacks what it learns from, that does not fit, or no term has a weight.
    """
    terms: list[Term] = []
    if settings.contrastive_weight:
        terms.append(CaptionTerm(settings.contrastive_weight, settings.temperature))
    if settings.distillation_weight:
        targets = _require_targets(teacher_embeddings, captioned)
        beside = None
        if uncaptioned and settings.uncaptioned_batch:
            beside = Beside(uncaptioned, settings.uncaptioned_batch, seed + 500_009)
        terms.append(_choose_teacher_term(settings, captioned, targets, beside, seed))
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
                _require_texts(captioned),
                seed + 250_007,
                (settings.sds_from, settings.sds_until),
                choose_precision(settings.mixed_precision),
            )
        )
    if not terms:
        raise ValueError(
            "Expected a weight above 0 for one term at least, got none; set contrastive_weight=1."
        )
    return terms


def _choose_teacher_term(
    settings: StudentSettings,
    captioned: EncodedPictures,
    targets: Tensor,
    beside: Beside | None,
    seed: int,
) -> Term:
    if settings.distillation == "anchored_kl":
        return AnchoredTerm(
            settings.distillation_weight,
            targets,
            captioned.features.text,
            settings.anchors,
            settings.temperature,
            seed,
            beside=beside,
        )
    if beside and settings.train_text:
        raise ValueError(
            "Expected no uncaptioned pictures where captions are drawn to the teacher, too, got "
            "some; set uncaptioned_batch=0, train_text=False or distillation='anchored_kl'."
        )
    return CosineTerm(settings.distillation_weight, targets, settings.train_text, beside=beside)


def _require_targets(embeddings: Tensor | None, captioned: EncodedPictures) -> Tensor:
    """A teacher's embeddings, one for each caption."""
    text = captioned.features.text
    if embeddings is None or embeddings.shape != text.shape:
        raise ValueError(
            f"Expected teacher embeddings of shape {tuple(text.shape)}, a row a caption, got "
            f"{embeddings if embeddings is None else tuple(embeddings.shape)}; make them from "
            "these features with embed_with_teacher or embed_pictures, or set "
            "distillation_weight=0 for the control."
        )
    require_directions(teacher_features=embeddings)
    return embeddings


def _require_texts(captioned: EncodedPictures) -> Sequence[str]:
    """The captions of the training pictures, one for each feature."""
    texts, features = captioned.dataset.texts, captioned.features.text
    if len(texts) != len(features):
        raise ValueError(
            f"Expected the {len(features)} captions of the features, which train_text and "
            f"sds_weight read, got {len(texts)}; give the data set that they were made from."
        )
    return texts


class _Student(nn.Module):
    """What trains: a CLIP, or its image tower alone, and the heads that terms have on it."""

    def __init__(self, tower: nn.Module, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.tower, self.heads = tower, nn.ModuleDict(heads)

    def forward(
        self, pixels: Tensor, ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Features of pictures, of captions where their tower trains, and what heads make."""
        found = self.tower(pixels) if ids is None else self.tower(pixels, ids)
        if isinstance(found, dict):  # CoCa's
            found = found["image_features"], found["text_features"]
        # Beside a tower's features CoCa has tokens, of no use here.
        image = found[0] if isinstance(found, tuple) else found
        heads = {name: head(image) for name, head in self.heads.items()}
        return image, None if ids is None else found[1], heads


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
) -> StudentRun:
    """Fine-tunes a copy of CLIP's image tower (the text tower only with `train_text`).

    Under `accelerate launch` each process takes its share of every batch, and all end with the same
    weights as one process would. Call it in all of them, with the same arguments.

    Args:
        bundle: the untouched CLIP. The student trains where this one is; of several processes,
            each where accelerate says, to return then.
        captioned: the training pictures, with features from the same CLIP.
        terms: what is learned; `choose_terms` makes those of a recipe.
        settings: what trains, how fast and how long. With `train_text` the student's texts have to
            be encoded anew afterwards.
        seed: of the order; arms with one seed see the same batches.
        checkpoint: file to continue from, and to write after each epoch and every ten minutes.
        on_epoch: called after each epoch, in every process, with the student and the history, to
            whose last row it may add figures.
        on_step: called after each step, in every process, with its number and its loss. Whatever
            it raises stops the training; the checkpoint has all steps up to this one.

    Raises:
        ValueError: lengths or widths differ, a feature or the loss is not finite, or the checkpoint
            is damaged or of another run.
    """
    features = captioned.features
    if len(captioned.pictures) != len(features):
        raise ValueError(
            f"Expected the {len(features)} pictures of the features, got "
            f"{len(captioned.pictures)}; give both from one data set."
        )
    if features.text.shape[1] != bundle.embed_dim:
        raise ValueError(
            f"Expected features of {bundle.embed_dim} numbers, as {bundle.name} has them, got "
            f"{features.text.shape[1]}; give those that this CLIP has made."
        )
    require_directions(text_features=features.text)
    torch.manual_seed(seed)
    device = training_device(bundle.device)
    student, module, captions = _make_student(bundle, captioned, terms, settings, device)
    precision = choose_precision(settings.mixed_precision)
    training = Training(
        "distilling" if any(term.name == "distillation" for term in terms) else "fine-tuning",
        module,
        group_parameters(module, settings),
        Schedule(
            settings.epochs,
            settings.gradient_accumulation,
            settings.clip_norm,
            settings.warmup_share,
        ),
        partial(plan_epoch, features, settings, seed),
        partial(_encode, student, captions, terms, precision),
        terms,
        {
            "kind": "student",
            "seed": seed,
            # Of pictures the vectors tell, too, which tower training begins with.
            "data": fingerprint(captions, features.image, features.image_of_text),
            "terms": {term.name: term.describe() for term in terms},
            **asdict(settings),
            "mixed_precision": precision,
        },
        partial(_read, student, captioned, terms, device),
    )
    after_epoch = on_epoch and partial(on_epoch, student)
    history = train(training, checkpoint, after_epoch, on_step)
    student.model.requires_grad_(False).eval().to(bundle.device)
    return StudentRun(student, history)


def _make_student(
    bundle: ClipBundle,
    captioned: EncodedPictures,
    terms: Sequence[Term],
    settings: StudentSettings,
    device: torch.device,
) -> tuple[ClipBundle, _Student, Tensor]:
    """A copy of CLIP; what of it trains, with the terms' heads; and the captions for the loss."""
    student = clone_clip(bundle)
    # As the pictures are laid out: else every step would turn the weights of convolutions around.
    student.model.to(device, memory_format=torch.channels_last)
    freeze(student, settings.train)
    tower, captions = student.model.visual, captioned.features.text
    if settings.train_text:  # captions as the text tower takes them
        tower, captions = student.model, _unfreeze_text(student, _require_texts(captioned))
    built = {term.name: term.build_head(bundle.embed_dim) for term in terms}
    heads = {name: head for name, head in built.items() if head}
    return student, _Student(tower, heads).to(device), captions


def _read(
    student: ClipBundle,
    captioned: EncodedPictures,
    terms: Sequence[Term],
    device: torch.device,
    batches: Sequence[Tensor],
    first: int,
) -> Iterator[tuple[Tensor, dict[str, Tensor], Tensor]]:
    """Batches, what terms draw beside each, and this process's pixels of both, in this order."""
    wanted = {term.name: term.beside for term in terms if term.beside}
    drawn = [
        {name: each.draw(number)[own_share(each.count)] for name, each in wanted.items()}
        for number in range(first, first + len(batches))
    ]
    images = (captioned.features.image_of_text[rows[:, 0]] for rows in batches)
    own = (batch[own_share(len(batch))] for batch in images)
    parts = [read_batches(student, captioned.pictures, own, busy=device)]
    for name, each in wanted.items():
        shown = [indices[name] for indices in drawn]
        parts.append(read_batches(student, each.targets.pictures, shown, busy=device))
    return zip(batches, drawn, map(torch.cat, zip(*parts, strict=True)), strict=True)


def _encode(
    student: ClipBundle,
    captions: Tensor,
    terms: Sequence[Term],
    precision: str,
    module: nn.Module,
    given: tuple[Tensor, dict[str, Tensor], Tensor],
    number: int,
) -> Batch:
    """Features of a batch, of which each process makes its share.

    Args:
        student: that trains.
        captions: features of all captions, or their ids where the text tower trains.
        terms: what they want beside the batch is encoded with it.
        precision: as in `autocast`.
        module: a `_Student`, perhaps wrapped for several processes.
        given: as `_read` yields it.
        number: of the batch.
    """
    rows, drawn, pixels = given
    chosen = rows[rows >= 0]
    own = own_share(len(chosen))
    device = student.device
    with autocast(device, precision):
        if captions.is_floating_point():
            image, _, heads = module(student.normalize(pixels))
            text = send(captions[chosen[own]], device)
        else:  # with gradient through both towers, L2-normalised
            # By the whole batch: processes share their buffers, one of which is cut short here.
            with shortened(student.model, captions[chosen]) as ids:
                image, text, heads = module(student.normalize(pixels), send(ids[own], device))
    shares = [len(own_share(len(rows))), *map(len, drawn.values())]
    image, *others = F.normalize(image.float(), dim=-1).split(shares)
    beside, wanted = {}, {term.name: term.beside for term in terms if term.beside}
    for (name, indices), features in zip(drawn.items(), others, strict=True):
        count, targets = wanted[name].count, wanted[name].targets.features
        beside[name] = gather_batch(
            features, send(targets[indices], device).to(features), count, count
        )
    image, text = gather_batch(image, text.float(), len(rows), len(chosen))
    heads = {name: mapped[: shares[0]] for name, mapped in heads.items()}
    return Batch(number, rows, image, text, beside, heads)


def _unfreeze_text(student: ClipBundle, texts: Sequence[str]) -> Tensor:
    """Lets the text tower train, as the published code does (5 in `config.RECIPES`).

    Its logit scale and bias stay as they are, since no loss here reads them.

    Returns:
        The captions as the text tower takes them, of shape (text, context).
    """
    for name, parameter in student.model.named_parameters():
        if not name.startswith(("visual.", "logit_")):
            parameter.requires_grad_(True)
    return student.tokenizer(list(texts))
