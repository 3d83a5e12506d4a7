"""Fine-tuning the student: distillation, and its contrastive control."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dclip_kit.config import StudentSettings
from dclip_kit.data.negatives import make_hard_negative
from dclip_kit.features.store import FrozenFeatures
from dclip_kit.losses import (
    anchored_kl_loss,
    contrastive_loss,
    cosine_distillation_loss,
    require_directions,
    sds_loss,
)
from dclip_kit.models.clip import (
    ClipBundle,
    autocast,
    choose_precision,
    send,
)
from dclip_kit.models.denoiser import Denoiser, MappedTower
from dclip_kit.models.encode import Pictures, encode_texts, read_batches, shortened
from dclip_kit.models.weights import clone_clip, freeze
from dclip_kit.runtime.files import fingerprint
from dclip_kit.runtime.processes import gather_batch, own_share
from dclip_kit.training.progress import History, group_parameters, plan_epoch, take_steps

_FIGURES = ("loss", "distillation", "contrastive", "rehearsal", "sds")


@dataclass(frozen=True, eq=False)
class PictureTargets:
    """Pictures, and what the student is to make of them.

    Two kinds are known. To *rehearse*, these are crops of regions with the untouched CLIP's
    features: CLIP forgets how to name single objects when it is tuned on whole scenes, and the
    crops show it single objects (Learning without Forgetting, arXiv 1606.09282, in the joint
    space; not in the paper). *Uncaptioned* are pictures that nobody has described, with a
    teacher's embeddings.

    Attributes:
        pictures: paths, bytes, or `RegionCrops`.
        features: one for each of them.
    """

    pictures: Pictures
    features: Float[Tensor, "picture embed"]

    def __post_init__(self) -> None:
        if not len(self.pictures) == len(self.features) > 0:
            raise ValueError(
                f"Expected a feature for each picture, and one at least, got {len(self.pictures)} "
                f"pictures and {len(self.features)} features."
            )
        require_directions(features=self.features)

    def draw(self, count: int, seed: int, batch: int) -> Int[Tensor, "picture"]:
        """Which pictures come beside a batch, by index; a function of seed and batch alone."""
        generator = torch.Generator().manual_seed(1_000_003 * seed + batch)
        return torch.randint(len(self.features), (count,), generator=generator)


@dataclass(frozen=True, eq=False)
class StudentRun:
    """A fine-tuned CLIP, and a row of figures an epoch."""

    student: ClipBundle
    history: History


def distill(
    bundle: ClipBundle,
    pictures: Pictures,
    features: FrozenFeatures,
    settings: StudentSettings,
    teacher_embeddings: Float[Tensor, "text embed"] | None = None,
    *,
    uncaptioned: PictureTargets | None = None,
    rehearsal: PictureTargets | None = None,
    texts: Sequence[str] | None = None,
    denoiser: Denoiser | None = None,
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
        teacher_embeddings: a teacher's embedding for each caption: from `embed_with_teacher`, or
            `embed_pictures(…)[features.image_of_text]`. The control needs none.
        uncaptioned: pictures without captions and a teacher's embeddings of them, drawn beside each
            batch; only needed with an `uncaptioned_batch`.
        rehearsal: what is repeated in every batch; only needed with a `rehearsal_weight`.
        texts: the captions of `features`, in its order; only needed with `train_text`, with
            `hard_negatives` and with an `sds_weight`.
        denoiser: frozen; only needed with an `sds_weight`.
        seed: of the order; arms with one seed see the same batches.
        checkpoint: file to continue from, and to write after each epoch and every ten minutes.
        on_epoch: called after each epoch, in every process, with the student and the history, to
            whose last row it may add figures.
        on_step: called after each step, in every process, with its number and its loss. Whatever
            it raises stops the training; the checkpoint has all steps up to this one.

    Raises:
        ValueError: lengths or widths differ, a distilling run has no teacher, a rehearsing one
            nothing to rehearse, or one with an `sds_weight` no denoiser; a feature or the loss is
            not finite; or the checkpoint is damaged or of another run.
    """
    teaches = bool(settings.distillation_weight and settings.uncaptioned_batch)
    uncaptioned = uncaptioned if teaches else None
    rehearsal = rehearsal if settings.rehearsal_weight else None
    denoiser = denoiser if settings.sds_weight else None
    _check(pictures, features, settings, teacher_embeddings, uncaptioned, rehearsal, texts)
    if denoiser is None and settings.sds_weight:
        raise ValueError(
            "Expected a denoiser for an sds_weight above 0, got None; give one of load_denoiser, "
            "or set sds_weight=0."
        )
    targets = features.text if teacher_embeddings is None else teacher_embeddings
    require_directions(text_features=features.text, teacher_features=targets)
    # What comes beside the captioned pictures of each batch, how many, and the seed of their draw.
    beside = {
        name: (each, count, seed + shift)
        for name, each, count, shift in (
            ("uncaptioned", uncaptioned, settings.uncaptioned_batch, 500_009),
            ("rehearsal", rehearsal, settings.rehearsal_batch, 0),
        )
        if each is not None
    }
    torch.manual_seed(seed)
    device = Accelerator(mixed_precision="no").device  # see `autocast`
    precision = choose_precision(settings.mixed_precision)
    student = clone_clip(bundle)
    # As the pictures are laid out: else every step would turn the weights of convolutions around.
    student.model.to(device, memory_format=torch.channels_last)
    freeze(student, settings.train)
    module, captions = student.model.visual, features.text  # as the loss takes them
    if settings.train_text:  # or as the text tower does
        module, captions = student.model, _unfreeze_text(student, texts or ())
    if denoiser:
        module = MappedTower(module, bundle.embed_dim, denoiser.shape).to(device)
    absent = {"rehearsal": rehearsal is None, "sds": denoiser is None}
    figures = [name for name in _FIGURES if not absent.get(name)]
    negatives = None
    if settings.hard_negatives:
        pairs = [(make_hard_negative(text), text) for text in texts or ()]
        negatives = encode_texts(bundle, [changed or text for changed, text in pairs])
        negatives[torch.tensor([not changed for changed, _ in pairs])] = 0  # there is none

    def read(batches: Sequence[Tensor], first: int) -> Iterator[tuple[Any, ...]]:
        """Batches, what is drawn beside each, and this process's pixels of both, in this order."""
        drawn = [
            {
                name: each.draw(count, own_seed, number)[own_share(count)]
                for name, (each, count, own_seed) in beside.items()
            }
            for number in range(first, first + len(batches))
        ]
        images = (features.image_of_text[rows[:, 0]] for rows in batches)
        own = (batch[own_share(len(batch))] for batch in images)
        parts = [read_batches(bundle, pictures, own, busy=device)]
        for name, (each, _, _) in beside.items():
            shown = [indices[name] for indices in drawn]
            parts.append(read_batches(bundle, each.pictures, shown, busy=device))
        return zip(batches, drawn, map(torch.cat, zip(*parts, strict=True)), strict=True)

    def encode(
        model: nn.Module, rows: Tensor, drawn: dict[str, Tensor], pixels: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]], Tensor]:
        """Features of a batch, of which each process makes its share.

        Of images and captions; of what is beside them, each with its targets; and what a denoiser
        is to see of the images.
        """
        chosen = rows[rows >= 0]
        own = own_share(len(chosen))
        with autocast(device, precision):
            if settings.train_text:  # with gradient through both towers, L2-normalised
                # By the whole batch: processes share their buffers, one of which is cut short here.
                with shortened(student.model, captions[chosen]) as ids:
                    found = model(student.normalize(pixels), send(ids[own], device))
                if isinstance(found, dict):  # CoCa's
                    found = found["image_features"], found["text_features"]
                (image, text), mapped = found[:2], pixels[:0]
            else:
                found, text = model(student.normalize(pixels)), send(captions[chosen[own]], device)
                # Beside features there is what a denoiser sees, or CoCa's tokens, of no use here.
                image, mapped = found if isinstance(found, tuple) else (found, pixels[:0])
        sizes = [len(own_share(len(rows))), *map(len, drawn.values())]
        image, *others = F.normalize(image.float(), dim=-1).split(sizes)
        pairs = {}
        for name, now in zip(beside, others, strict=True):
            each, count, _ = beside[name]
            target = send(each.features[drawn[name]], device).to(now)
            pairs[name] = gather_batch(now, target, count, count)
        return *gather_batch(image, text.float(), len(rows), len(chosen)), pairs, mapped[: sizes[0]]

    def denoise(mapped: Tensor, rows: Tensor, number: int) -> Tensor:
        """The denoiser's loss of a batch, of whose mapped features these are this process's."""
        assert denoiser and texts
        own, steps = own_share(len(rows)), len(denoiser.kept)
        place = denoiser.unet.device  # perhaps not the student's
        generator = torch.Generator().manual_seed(1_000_003 * (seed + 250_007) + number)
        first = min(round(settings.sds_from * steps), steps - 1)  # of one timestep at least
        end = max(round(settings.sds_until * steps), first + 1)
        drawn = torch.randint(first, end, (len(rows),), generator=generator)[own]
        noise = torch.randn((len(rows), *denoiser.shape), generator=generator)[own]
        condition = denoiser.describe([texts[index] for index in rows[own, 0].tolist()])
        predict = partial(denoiser.predict_noise, timesteps=send(drawn, place), condition=condition)
        with autocast(place, precision):
            each = sds_loss(
                mapped.float().to(place), send(noise, place), denoiser.kept[drawn], predict
            ).to(device)
        return gather_batch(each[:, None], each[:, None], len(rows), len(rows))[0].mean()

    def distil(image: Tensor, text: Tensor, aim: Tensor, number: int) -> Tensor:
        """The distillation term: ranking anchors as the teacher does, or matching its vectors."""
        if settings.distillation == "anchored_kl":
            generator = torch.Generator().manual_seed(1_000_003 * seed + number)
            drawn = torch.randint(len(targets), (settings.anchors,), generator=generator)
            # As the untouched CLIP has them, even where the text tower trains: so has the teacher.
            return anchored_kl_loss(
                image, aim, send(features.text[drawn], device), settings.temperature
            )
        term = cosine_distillation_loss(image, aim)
        return term + cosine_distillation_loss(text, aim) if settings.train_text else term

    def compute_losses(model: nn.Module, batch: tuple[Any, ...], number: int) -> Tensor:
        """A batch's loss, and its parts: distillation, contrastive, rehearsal, the denoiser's."""
        rows, drawn, pixels = batch
        image, text, pairs, mapped = encode(model, rows, drawn, pixels)
        owner = send((rows >= 0).nonzero()[:, 0], device)  # a pair a caption
        same_pair = owner[:, None] == owner
        harder = None if negatives is None else send(negatives[rows[rows >= 0]], device)
        contrastive = contrastive_loss(image[owner], text, settings.temperature, same_pair, harder)
        own, aim = image[owner], send(targets[rows[rows >= 0]], device)
        if settings.distillation == "anchored_kl":  # each picture once
            own, aim = image, send(targets[rows[:, 0]], device)
        if "uncaptioned" in pairs:
            own, aim = (
                torch.cat(each) for each in zip((own, aim), pairs["uncaptioned"], strict=True)
            )
        distillation, moved = distil(own, text, aim, number), torch.zeros_like(contrastive)
        if "rehearsal" in pairs:
            moved = cosine_distillation_loss(*pairs["rehearsal"])
        denoised = denoise(mapped, rows, number) if denoiser else torch.zeros_like(contrastive)
        total = (
            settings.distillation_weight * distillation
            + settings.contrastive_weight * contrastive
            + settings.rehearsal_weight * moved
            + settings.sds_weight * denoised
        )
        parts = dict(
            zip(_FIGURES, (total, distillation, contrastive, moved, denoised), strict=True)
        )
        return torch.stack([parts[name] for name in figures])

    history = take_steps(
        "distilling" if settings.distillation_weight else "fine-tuning",
        module,
        group_parameters(module, settings),
        {
            "kind": "student",
            "seed": seed,
            "data": fingerprint(
                captions,
                features.image,  # which tells pictures and the tower that training begins with
                features.image_of_text,
                targets,
                *(each.features for each, *_ in beside.values()),
            ),
            "denoiser": denoiser
            and [denoiser.name, fingerprint(denoiser.kept, next(denoiser.unet.parameters()))],
            **asdict(settings),
            "mixed_precision": precision,
        },
        partial(plan_epoch, features, settings, seed),
        compute_losses,
        read=read,
        names=figures,
        warmup=settings.warmup_share,
        checkpoint=checkpoint,
        on_epoch=on_epoch and partial(on_epoch, student),
        on_step=on_step,
    )
    student.model.requires_grad_(False).eval().to(bundle.device)
    return StudentRun(student, history)


def _check(
    pictures: Pictures,
    features: FrozenFeatures,
    settings: StudentSettings,
    teacher_embeddings: Tensor | None,
    uncaptioned: PictureTargets | None,
    rehearsal: PictureTargets | None,
    texts: Sequence[str] | None,
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
    if uncaptioned and settings.train_text and settings.distillation == "cosine":
        raise ValueError(
            "Expected no uncaptioned pictures where captions are drawn to the teacher, too, got "
            "some; set uncaptioned_batch=0, train_text=False or distillation='anchored_kl'."
        )
    read = settings.train_text or settings.hard_negatives or settings.sds_weight
    if read and (texts is None or len(texts) != len(features.text)):
        given = None if texts is None else len(texts)
        raise ValueError(
            f"Expected the {len(features.text)} captions of the features, which train_text, "
            f"hard_negatives and sds_weight read, got {given}; give distill `texts`, such as "
            "`dataset.texts`, or turn these off."
        )


def _unfreeze_text(student: ClipBundle, texts: Sequence[str]) -> Int[Tensor, "text context"]:
    """Lets the text tower train, as the published code does (5 in `config.RECIPES`).

    Its logit scale and bias stay as they are, since no loss here reads them.

    Returns:
        The captions as the text tower takes them.
    """
    for name, parameter in student.model.named_parameters():
        if not name.startswith(("visual.", "logit_")):
            parameter.requires_grad_(True)
    return student.tokenizer(list(texts))
