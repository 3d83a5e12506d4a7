"""Fine-tuning by settings alone, as most tests want it: the terms that they weigh; a training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dclip_kit.config import StudentSettings
from dclip_kit.data import CaptionedImages
from dclip_kit.features.store import EncodedPictures, FrozenFeatures
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.denoiser import Denoiser
from dclip_kit.models.encode import Pictures
from dclip_kit.training import PictureTargets, StudentRun, choose_terms, distill


def join(
    pictures: Pictures, features: FrozenFeatures, texts: Sequence[str] | None = None
) -> EncodedPictures:
    """Pictures with their features, and with captions in the features' order."""
    count = len(features)
    paths = tuple(Path(f"{image}.png") for image in range(count))
    dataset = CaptionedImages(paths, ((),) * count, "train", "tests")
    # Tests have some that are not picture by picture, and some have none to read.
    vars(dataset)["texts"] = ["a text"] * len(features.text) if texts is None else list(texts)
    return EncodedPictures(dataset, features, pictures)


def fine_tune(
    clip: ClipBundle,
    pictures: Pictures,
    features: FrozenFeatures,
    settings: StudentSettings,
    teacher_embeddings: Tensor | None = None,
    *,
    texts: Sequence[str] | None = None,
    uncaptioned: PictureTargets | None = None,
    rehearsal: PictureTargets | None = None,
    denoiser: Denoiser | None = None,
    seed: int = 0,
    **more: Any,
) -> StudentRun:
    """A student by the terms that settings weigh; what they give no weight is not heeded."""
    captioned = join(pictures, features, texts)
    terms = choose_terms(
        settings,
        captioned,
        teacher_embeddings,
        uncaptioned=uncaptioned,
        rehearsal=rehearsal,
        denoiser=denoiser,
        seed=seed,
    )
    return distill(clip, captioned, terms, settings, seed=seed, **more)
