"""Training losses: pure functions of tensors, each a mean over the batch (but `sds_loss`).

Features need not be normalised; similarity is the cosine, computed in float32 even under autocast,
since bfloat16 cosines divided by a small temperature are too coarse. Teachers are detached here.
NumPy arrays are accepted too; features that need a gradient must be tensors.
Shapes are checked. Values are not, since that waits for the device: NaN or infinity in a feature
gives a loss of NaN, and a training calls `require_directions` once before it begins.
Axes with a leading underscore are checked by hand, so that the error can say what to do.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

Array = Tensor | np.ndarray

_ROWS = 65_536  # to check at a time, since the features may fill most of the memory


def contrastive_loss(
    image_features: Float[Array, "pair embed"],
    text_features: Float[Array, "_pair _embed"],
    temperature: float = 0.05,
    same_pair: Bool[Array, "_pair _pair"] | None = None,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE: each image against all texts and each text against all images.

    A batch of one pair has nothing to contrast: its loss is exactly 0.

    Args:
        image_features: One image for each pair.
        text_features: The caption of each pair.
        temperature: Cosines are divided by it; DCLIP uses 0.05.
        same_pair: True at [i, j] if text j also fits image i (one image twice in the batch, or
            equal captions): not a negative, so left out of the denominators. With image ids:
            `image_id[:, None] == image_id[None, :]`. The diagonal does not matter.

    Raises:
        ValueError: Empty features, shapes that differ, or a temperature that is not positive.

    Source: DCLIP (arXiv 2505.21549); the masking is our reading.
    """
    image, text = _unit_rows(image_features=image_features, text_features=text_features)
    logits = _scaled_cosines(image, text, temperature)  # image text
    if same_pair is not None:
        same_pair = torch.as_tensor(same_pair)
        if same_pair.shape != logits.shape or same_pair.dtype != torch.bool:
            raise ValueError(
                f"Expected a boolean same_pair of {tuple(logits.shape)}, got "
                f"{tuple(same_pair.shape)} in {same_pair.dtype}; give one entry for each image "
                "and text."
            )
        diagonal = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(same_pair & ~diagonal, -torch.inf)
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def cosine_distillation_loss(
    student_features: Float[Array, "image embed"],
    teacher_features: Float[Array, "_image _embed"],
) -> Float[Tensor, ""]:
    """Mean of 1 - cos(student, teacher), in [0, 2].

    Args:
        student_features: The student's image features.
        teacher_features: The teacher's embeddings of the same images; get no gradient.

    Raises:
        ValueError: Empty features, or shapes that differ.

    Source: DCLIP (arXiv 2505.21549).
    """
    student, teacher = _unit_rows(
        student_features=student_features,
        teacher_features=torch.as_tensor(teacher_features).detach(),
    )
    return (1 - (student * teacher).sum(dim=1)).mean()


def anchored_kl_loss(
    student_features: Float[Array, "image embed"],
    teacher_features: Float[Array, "_image _embed"],
    anchor_features: Float[Array, "_anchor _embed"],
    temperature: float = 0.05,
) -> Float[Tensor, ""]:
    """KL(teacher ‖ student) of both rankings: captions for each picture, pictures for each caption.

    For each picture of the batch the student should rank a set of anchors (captions of any
    pictures) as the teacher does, and for each anchor the batch's pictures. It need not copy the
    teacher's vectors, and the pictures need no captions.

    Args:
        student_features: The student's image features.
        teacher_features: The teacher's embeddings of the same images; get no gradient.
        anchor_features: Caption features, for example 2,048 new ones per step; get no gradient.
        temperature: Of the softmax on both sides.

    Raises:
        ValueError: Empty features, shapes or widths that differ, or a temperature that is not
            positive.

    Source: our reading of similarity-based distillation, as in CLIP-KD (arXiv 2307.12732), with
    anchors in place of the batch's own captions.
    """
    student, teacher = _unit_rows(
        student_features=student_features,
        teacher_features=torch.as_tensor(teacher_features).detach(),
    )
    anchors = torch.as_tensor(anchor_features).detach().to(student.dtype)
    if anchors.shape[1:] != student.shape[1:] or len(anchors) == 0:
        raise ValueError(
            f"Expected anchor_features [anchor {student.shape[1]}], not empty, got "
            f"{tuple(anchors.shape)}; encode them with the student's or its teacher's CLIP."
        )
    anchors = F.normalize(anchors, dim=1)
    student, teacher = (_scaled_cosines(x, anchors, temperature) for x in (student, teacher))
    over_anchors, over_images = (
        F.kl_div(s.log_softmax(1), t.log_softmax(1), reduction="batchmean", log_target=True)
        for s, t in ((student, teacher), (student.T, teacher.T))
    )
    return (over_anchors + over_images) / 2


def sds_loss(
    latents: Float[Array, "image channel height width"],
    noise: Float[Array, "_image _channel _height _width"],
    kept: Float[Array, "_image"],
    predict_noise: Callable[[Tensor], Tensor],
) -> Float[Tensor, "image"]:
    """Mean squared error of a frozen denoiser's prediction of the noise added to each image.

    It is small if the latents fit the denoiser's condition, such as a caption. Gradients flow
    through the denoiser into the latents.

    Args:
        latents: The denoiser's input for the images; for SDS-CLIP, a linear map of their features.
        noise: From a normal distribution.
        kept: The share of each image's variance that its timestep leaves (the field's ᾱ).
        predict_noise: Maps noisy latents to the noise in them, such as `Denoiser.predict_noise`.

    Raises:
        ValueError: `kept` does not have one share for each image, or `noise` another shape than
            `latents`.

    Source: SDS-CLIP (arXiv 2307.09233), with a mean in place of its squared norm, so that a weight
    means the same for denoisers of any size.
    """
    latents, noise, kept = (torch.as_tensor(values) for values in (latents, noise, kept))
    if kept.shape != latents.shape[:1] or noise.shape != latents.shape:
        raise ValueError(
            f"Expected noise of {tuple(latents.shape)}, like the latents, and a share of variance "
            f"for each of {len(latents)} images, got {tuple(kept.shape)} and noise of "
            f"{tuple(noise.shape)}; draw noise for each image, and take the schedule's shares at "
            "their timesteps."
        )
    share = kept.to(latents).view(-1, 1, 1, 1)
    noisy = share.sqrt() * latents + (1 - share).sqrt() * noise
    return (predict_noise(noisy) - noise).square().flatten(1).mean(1)


def _unit_rows(**named: Array) -> tuple[Tensor, Tensor]:
    """Two matrices of one shape with unit rows, in one precision of float32 or better."""
    (first, a), (second, b) = ((name, torch.as_tensor(x)) for name, x in named.items())
    if a.ndim != 2 or a.numel() == 0 or a.shape != b.shape:
        raise ValueError(
            f"Expected {first} and {second} of one shape [batch, embed], not empty, got "
            f"{tuple(a.shape)} and {tuple(b.shape)}; pass one row for each pair, from encoders "
            "that share an embedding space."
        )
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return F.normalize(a.to(dtype), dim=1), F.normalize(b.to(dtype), dim=1)


def _scaled_cosines(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Cosines of unit rows over the temperature; never in half precision, which is too coarse."""
    if not temperature > 0:
        raise ValueError(f"Expected a temperature above 0, got {temperature}; DCLIP uses 0.05.")
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.T / temperature


def require_directions(zeros: bool = False, **named: Array) -> None:
    """Checks that all rows of features are finite and not all zeros; waits for the device.

    Args:
        zeros: whether rows may be all zeros.
        named: the features, as an error calls them.

    Raises:
        ValueError: some rows are not; the message says how many, and the first.
    """
    for name, x in named.items():
        x = torch.as_tensor(x)
        peak = torch.cat([part.detach().abs().amax(dim=-1) for part in x.split(_ROWS)])
        bad = ~peak.isfinite() | ((peak == 0) & (not zeros))
        if bad.any():
            raise ValueError(
                f"Expected every row of {name} to be finite and not all zeros, got "
                f"{int(bad.sum())} of {len(x)} that are not, first row {int(bad.int().argmax())}; "
                "check what they were made from, and if training diverged, lower the learning rate."
            )
