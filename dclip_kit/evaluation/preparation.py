"""What is looked at again and again, made ready once: pictures and texts."""

from dataclasses import dataclass, replace

from PIL import Image

from dclip_kit.config import Profile
from dclip_kit.data import CaptionedImages
from dclip_kit.evaluation.evaluate import (
    TEMPLATE_SETS,
    RetrievalSet,
    ZeroShotSet,
    prepare_retrieval,
    prepare_zero_shot,
)
from dclip_kit.evaluation.profile_data import WalkData
from dclip_kit.features.extract import RegionCrops
from dclip_kit.features.frozen import FrozenFeatures
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.reading import Pictures, read_pixels
from dclip_kit.runtime.machine import return_memory
from dclip_kit.training import Rehearsal

KEPT_BYTES = 2 << 30  # of all pictures in memory; others are read whenever they are looked at


def count_bytes(clip: ClipBundle, count: int) -> int:
    """Of so many pictures as CLIP takes them."""
    return count * clip.to_pixels(Image.new("RGB", (1, 1))).numel()


def fits_memory(clip: ClipBundle, count: int) -> bool:
    """Whether pictures are few and small enough to be kept as bytes instead of read again."""
    return count_bytes(clip, count) <= KEPT_BYTES


@dataclass(frozen=True, eq=False)
class EvaluationSets:
    """What arms are chosen on (val) and measured on (test), ready to embed."""

    val: RetrievalSet
    test: RetrievalSet
    zero_shot_val: ZeroShotSet
    zero_shot: ZeroShotSet
    zero_shot_held_out: ZeroShotSet | None


def prepare_evaluation(clip: ClipBundle, data: WalkData) -> EvaluationSets:
    """Encodes all texts once; pictures are read when they are looked at."""
    held_out, templates = data.zero_shot_held_out, TEMPLATE_SETS[data.templates]
    sets = EvaluationSets(
        prepare_retrieval(clip, data.val, read=False),
        prepare_retrieval(clip, data.test, read=False),
        prepare_zero_shot(clip, data.zero_shot_val, False, templates),
        prepare_zero_shot(clip, data.zero_shot, False, templates),
        None if held_out is None else prepare_zero_shot(clip, held_out, False, templates),
    )
    return_memory()
    return sets


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What arms train on and are chosen on.

    Attributes:
        pictures: to train on.
        rehearsal: what is not to be forgotten; None where a profile rehearses nothing.
        val, zero_shot_val: what decides.
    """

    pictures: Pictures
    rehearsal: Rehearsal | None
    val: RetrievalSet
    zero_shot_val: ZeroShotSet


def prepare_training(
    profile: Profile,
    clip: ClipBundle,
    train: CaptionedImages,
    features: FrozenFeatures,
    sets: EvaluationSets,
) -> TrainingSet:
    """Reads the pictures that training looks at, val's among them, as long as there is memory.

    All together are kept in `KEPT_BYTES` at most. Those that are looked at most often come first;
    a set that does not fit any more is read whenever it is looked at.

    Raises:
        ValueError: as `RegionCrops` and `read_pixels`.
    """
    left = KEPT_BYTES

    def keep(pictures: Pictures) -> Pictures:
        nonlocal left
        needed = count_bytes(clip, len(pictures))
        if needed > left:
            return pictures
        left -= needed
        return read_pixels(clip, pictures)

    shown, val = keep(train.paths), keep(sets.val.pictures)
    zero_shot_val, rehearsal = keep(sets.zero_shot_val.pictures), None
    if profile.student.rehearsal_weight > 0:
        crops = RegionCrops(train.paths, features, profile.regions)
        rehearsal = Rehearsal(keep(crops), features.region)
    prepared = TrainingSet(
        shown,
        rehearsal,
        replace(sets.val, pictures=val),
        replace(sets.zero_shot_val, pictures=zero_shot_val),
    )
    return_memory()
    return prepared
