"""Training losses: pure functions of tensors, each a mean over the batch.

Features need not be normalised; similarity is the cosine, computed in float32 even under autocast,
since bfloat16 cosines divided by a small temperature are too coarse. Teachers are detached here.
Axes with a leading underscore are checked by hand, so that the error can say what to do.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

_ROWS = 65_536  # looked at in one go, of features that may be all that the memory holds


@dataclass(frozen=True, eq=False)
class DclipLoss:
    """The weighted sum to minimise, and its two parts before weighting."""

    total: Float[Tensor, ""]
    distillation: Float[Tensor, ""]
    contrastive: Float[Tensor, ""]


def contrastive_loss(
    image_features: Float[Tensor, "pair embed"],
    text_features: Float[Tensor, "_pair _embed"],
    temperature: float = 0.05,
    same_pair: Bool[Tensor, "_pair _pair"] | None = None,
    check_values: bool = True,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE: each image against all texts and each text against all images.

    A batch of one pair has nothing to contrast: its loss is exactly 0.

    Args:
        image_features: One image a pair.
        text_features: Its caption.
        temperature: Cosines are divided by it; DCLIP uses 0.05.
        same_pair: True at [i, j] where text j also fits image i (one image twice in the batch, or
            equal captions): no negative, so left out of the denominators. With image ids:
            `image_id[:, None] == image_id[None, :]`. The diagonal does not matter.
        check_values: False looks at shapes alone. To look for NaN waits for the device: a training
            does so once, before it begins.

    Raises:
        ValueError: Empty, not finite or all-zero features, shapes that differ, or a temperature
            that is not positive.

    Source: DCLIP (arXiv 2505.21549); the masking is our reading.
    """
    _check(check_values, image_features=image_features, text_features=text_features)
    logits = _cosines(image_features, text_features) / _positive(temperature)  # image text
    if same_pair is not None:
        if same_pair.shape != logits.shape:
            raise ValueError(
                f"same_pair must be {tuple(logits.shape)}, one entry for each image and text, "
                f"but is {tuple(same_pair.shape)}."
            )
        itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(same_pair & ~itself, -torch.inf)
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def cosine_distillation_loss(
    student_features: Float[Tensor, "image embed"],
    teacher_features: Float[Tensor, "_image _embed"],
    check_values: bool = True,
) -> Float[Tensor, ""]:
    """Mean of 1 - cos(student, teacher), in [0, 2].

    Args:
        student_features: The student's image features.
        teacher_features: The teacher's embeddings of the same images; get no gradient.
        check_values: As in `contrastive_loss`.

    Raises:
        ValueError: Empty, not finite or all-zero features, or shapes that differ.

    Source: DCLIP (arXiv 2505.21549).
    """
    _check(check_values, student_features=student_features, teacher_features=teacher_features)
    student, teacher = _unit(student_features), _unit(teacher_features.detach())
    return (1 - (student * teacher).sum(dim=1)).mean()


def relational_distillation_loss(
    student_features: Float[Tensor, "pair embed"],
    text_features: Float[Tensor, "_pair _embed"],
    teacher_features: Float[Tensor, "_pair _embed"],
    temperature: float = 0.05,
) -> Float[Tensor, ""]:
    """KL(teacher ‖ student) between their softmax similarities, image→text and text→image.

    Asks the student to rank the batch as the teacher does, not to copy its embedding.

    Args:
        student_features: The student's image features.
        text_features: Caption features, seen by both; no gradient through the teacher's side.
        teacher_features: The teacher's embeddings of the same images; get no gradient.
        temperature: Of both sides' softmax.

    Raises:
        ValueError: As `contrastive_loss`.

    Source: our reading of similarity-based distillation, as in CLIP-KD (arXiv 2307.12732).
    """
    _check(
        True,
        student_features=student_features,
        text_features=text_features,
        teacher_features=teacher_features,
    )
    student = _cosines(student_features, text_features) / _positive(temperature)
    teacher = _cosines(teacher_features.detach(), text_features.detach()) / temperature
    per_direction = [
        F.kl_div(s.log_softmax(1), t.log_softmax(1), reduction="batchmean", log_target=True)
        for s, t in ((student, teacher), (student.T, teacher.T))
    ]
    return (per_direction[0] + per_direction[1]) / 2


def dclip_loss(
    student_features: Float[Tensor, "pair embed"],
    text_features: Float[Tensor, "_pair _embed"],
    teacher_features: Float[Tensor, "_pair _embed"],
    temperature: float = 0.05,
    distillation_weight: float = 1.0,
    contrastive_weight: float = 1.0,
    same_pair: Bool[Tensor, "_pair _pair"] | None = None,
    distil_text: bool = False,
    check_values: bool = True,
) -> DclipLoss:
    """The student's loss: cosine distillation + symmetric InfoNCE against the captions.

    Args:
        student_features: The student's image features.
        text_features: Caption features; no gradient unless they ask for one (an unfrozen tower).
        teacher_features: The teacher's embeddings of the same images; get no gradient.
        temperature: Of the InfoNCE.
        distillation_weight: Multiplies `cosine_distillation_loss`.
        contrastive_weight: Multiplies `contrastive_loss`.
        same_pair: As in `contrastive_loss`.
        distil_text: Draws the captions to the teacher's embeddings too, and adds 1 - cos of them to
            the distillation: our reading of the published code's text loss.
        check_values: As in `contrastive_loss`.

    Raises:
        ValueError: As `contrastive_loss` and `cosine_distillation_loss`.

    Source: DCLIP (arXiv 2505.21549), where both weights are 1.
    """
    distillation = cosine_distillation_loss(student_features, teacher_features, check_values)
    if distil_text:
        of_text = cosine_distillation_loss(text_features, teacher_features, check_values)
        distillation = distillation + of_text
    contrastive = contrastive_loss(
        student_features, text_features, temperature, same_pair, check_values
    )
    total = distillation_weight * distillation + contrastive_weight * contrastive
    return DclipLoss(total, distillation, contrastive)


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast(a.device.type, enabled=False):
        a, b = _unit(a), _unit(b)
        dtype = torch.promote_types(a.dtype, b.dtype)
        return a.to(dtype) @ b.to(dtype).T


def _positive(temperature: float) -> float:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}: DCLIP uses 0.05.")
    return temperature


def _check(check_values: bool, **named: Tensor) -> None:
    """All features are of one shape and, if asked for, of finite rows that have a direction."""
    first, shape = next((name, tuple(x.shape)) for name, x in named.items())
    for name, x in named.items():
        if x.ndim != 2 or x.numel() == 0 or tuple(x.shape) != shape:
            raise ValueError(
                f"{name} must be [batch, embed], not empty, and shaped as {first}, "
                f"but they are {tuple(x.shape)} and {shape}: "
                "pass one row for each pair, from encoders that share an embedding space."
            )
    if check_values:
        require_directions(**named)


def require_directions(**named: Tensor) -> None:
    """Checks that all rows of features are finite and have a direction.

    Raises:
        ValueError: some have not, said how many and the first.
    """
    for name, x in named.items():
        peak = torch.cat([part.detach().abs().amax(dim=1) for part in x.split(_ROWS)])
        bad = ~peak.isfinite() | (peak == 0)
        if bad.any():
            raise ValueError(
                f"every row of {name} must be finite and not all zeros, but {int(bad.sum())} of "
                f"{len(x)} are NaN, infinite or zeros, first row {int(bad.int().argmax())}: "
                "check what they were made from; if training diverged, lower the learning rate."
            )
