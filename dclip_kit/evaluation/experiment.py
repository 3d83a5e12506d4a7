"""From a profile and its data to features, a teacher, arms, and their results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dclip_kit.config import (
    CONTROL,
    Profile,
    RegionTeacherSettings,
    TeacherSettings,
    control_of,
    trains_teacher,
)
from dclip_kit.data import CaptionedImages, LabelledImages
from dclip_kit.evaluation.arms import (
    Arm,
    ArmResult,
    TrainingSet,
    save_arm,
    save_teacher,
    train_arm,
)
from dclip_kit.evaluation.evaluate import (
    RetrievalSet,
    ZeroShotSet,
    evaluate_retrieval,
    evaluate_zero_shot,
    prepare_retrieval,
    prepare_zero_shot,
)
from dclip_kit.evaluation.profile_data import ProfileData
from dclip_kit.features.extract import RegionCrops, extract_features
from dclip_kit.features.frozen import FrozenFeatures
from dclip_kit.features.store import FeatureStore, describe_source, digest_record
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.detector import Detector, load_detector, locate_weights
from dclip_kit.models.encode import encode_images
from dclip_kit.models.reading import Pictures, read_pixels
from dclip_kit.models.teacher import MetaTeacher, RegionTeacher, build_teacher
from dclip_kit.models.weights import choose_parameters
from dclip_kit.runtime.machine import return_memory
from dclip_kit.runtime.printing import say
from dclip_kit.runtime.processes import is_main_process
from dclip_kit.training import (
    PictureTargets,
    TeacherRun,
    embed_pictures,
    embed_with_teacher,
    train_region_teacher,
    train_teacher,
)

KEPT_BYTES = 1 << 30  # of a set's pictures in memory


def require_trainable(profile: Profile, clip: ClipBundle) -> None:
    """Checks what a profile asks of its CLIP and of its detector, before anything is computed.

    Raises:
        ValueError: the policy matches nothing in the image tower, or the teacher does not fit CLIP.
        FileNotFoundError: there are no weights for the detector.
    """
    choose_parameters(clip, profile.student.train)
    if trains_teacher(profile):
        build_teacher(clip.embed_dim, teacher_settings(profile))
    locate_weights(profile.regions.detector)


def teacher_settings(profile: Profile) -> TeacherSettings | RegionTeacherSettings:
    """The settings of the kind of teacher that a profile trains."""
    return profile.region_teacher if profile.teacher_model == "region" else profile.teacher


def choose_detector(profile: Profile, clip: ClipBundle) -> Detector:
    """A profile's detector, on the device of its CLIP."""
    regions = profile.regions
    return load_detector(
        regions.detector,
        confidence=regions.confidence,
        max_regions=regions.max_regions,
        device=clip.device,
    )


def load_or_extract_features(
    profile: Profile, clip: ClipBundle, dataset: CaptionedImages, folder: Path | None
) -> FrozenFeatures:
    """Opens a data set's features in a folder, or extracts them into it.

    They lie in a store that is called by the split and by what they are made from: where data or
    settings have changed, another is made beside it. It is opened without loading the detector.

    Args:
        profile: says how regions are made.
        clip: the untouched one.
        dataset: with captions or without.
        folder: None keeps the features in memory only.

    Raises:
        ValueError: as `extract_features`, or the store that is there is damaged.
    """
    place = None
    if folder:
        source = describe_source(clip, dataset, profile.regions)
        place = folder / f"features-{dataset.split}-{digest_record(source)}"
        features = FeatureStore(place, len(dataset)).open(source)
        if features is not None:
            say(f"Loaded the features in {place}.")
            return features
    detector = choose_detector(profile, clip)
    return extract_features(clip, detector, dataset, profile.regions, folder=place)


@dataclass(frozen=True, eq=False)
class EvaluationSets:
    """What arms are chosen on (val) and measured on (test), ready to embed."""

    val: RetrievalSet
    test: RetrievalSet
    zero_shot_val: ZeroShotSet
    zero_shot: ZeroShotSet
    zero_shot_held_out: ZeroShotSet | None


def prepare_evaluation(clip: ClipBundle, data: ProfileData) -> EvaluationSets:
    """Encodes all texts once; pictures are read when they are looked at."""

    def prepare(labelled: LabelledImages) -> ZeroShotSet:
        return prepare_zero_shot(clip, labelled, False, data.templates)

    sets = EvaluationSets(
        prepare_retrieval(clip, data.val, read=False),
        prepare_retrieval(clip, data.test, read=False),
        prepare(data.zero_shot_val),
        prepare(data.zero_shot),
        prepare(data.zero_shot_held_out) if data.zero_shot_held_out else None,
    )
    return_memory()
    return sets


@dataclass(frozen=True, eq=False)
class EncodedPictures:
    """Pictures, their frozen features, and the pictures again as trainings read them."""

    dataset: CaptionedImages
    features: FrozenFeatures
    pictures: Pictures


def encode_pictures(
    profile: Profile, clip: ClipBundle, dataset: CaptionedImages, folder: Path | None = None
) -> EncodedPictures:
    """Features of pictures, as `load_or_extract_features`, and the pictures for trainings to read.

    Raises:
        ValueError: as `load_or_extract_features` and `read_pixels`.
    """
    features = load_or_extract_features(profile, clip, dataset, folder)
    return EncodedPictures(dataset, features, _read_few(clip, dataset.paths))


def prepare_rehearsal(
    profile: Profile, clip: ClipBundle, captioned: EncodedPictures
) -> PictureTargets | None:
    """The crops that a profile's student rehearses, if any, read once.

    Where the features of regions are not what CLIP makes of pictures, as the published code's are
    not, crops are encoded anew.

    Raises:
        ValueError: as `read_pixels`.
    """
    if not profile.student.rehearsal_weight:
        return None
    regions = replace(profile.regions, normalized_crops=True, undetected_as_zeros=False)
    crops = RegionCrops(captioned.dataset.paths, captioned.features, regions)
    pictures, features = _read_few(clip, crops), captioned.features.region
    if regions != profile.regions:
        features = encode_images(clip, pictures)
    return PictureTargets(pictures, features)


def prepare_training(
    profile: Profile, clip: ClipBundle, captioned: EncodedPictures, sets: EvaluationSets
) -> TrainingSet:
    """Reads what trainings look at beside the training data: crops to rehearse, and val.

    Raises:
        ValueError: as `prepare_rehearsal`.
    """
    rehearsal = prepare_rehearsal(profile, clip, captioned)
    val, zero_shot_val = (
        replace(data, pictures=_read_few(clip, data.pictures))
        for data in (sets.val, sets.zero_shot_val)
    )
    return_memory()
    return TrainingSet(captioned.pictures, rehearsal, val, zero_shot_val)


def _read_few(clip: ClipBundle, pictures: Pictures) -> Pictures:
    """Reads pictures into memory; too many stay as they are, read whenever they are looked at."""
    each = clip.to_pixels(Image.new("RGB", (1, 1))).numel()
    return read_pixels(clip, pictures) if len(pictures) * each <= KEPT_BYTES else pictures


def train_and_save_teacher(
    profile: Profile, features: FrozenFeatures, folder: Path, checkpoint: Path | None = None
) -> TeacherRun:
    """Trains a profile's teacher on features of the training data, and saves it.

    With a checkpoint, training goes on from where it was left, if it was, and keeps it.
    """
    settings = teacher_settings(profile)
    if isinstance(settings, RegionTeacherSettings):
        run = train_region_teacher(features, settings, profile.seed, checkpoint)
    else:
        run = train_teacher(features, settings, profile.regions, profile.seed, checkpoint)
    if is_main_process():
        save_teacher(run, settings, folder)
    say(f"Trained the teacher now: {len(run.history)} epochs.")
    return run


def prepare_lessons(
    profile: Profile,
    teacher: MetaTeacher | RegionTeacher | ClipBundle,
    captioned: EncodedPictures,
    uncaptioned: EncodedPictures | None,
) -> tuple[Float[Tensor, "text embed"] | None, PictureTargets | None]:
    """Embeds what a profile's student learns from with its teacher, once.

    Args:
        profile: whose `teacher_model` says what kind the teacher is.
        teacher: trained; of the kind "control" a fine-tuned CLIP.
        captioned: the training data.
        uncaptioned: pictures without captions, if any.

    Returns:
        The teacher's embeddings of the captioned pictures, one for each caption, and the pictures
        without captions with theirs; None where the student has no teacher, or there are none.
    """
    if not profile.student.distillation_weight:
        return None, None
    if isinstance(teacher, MetaTeacher):  # which may read captions, so uncaptioned are not its own
        return embed_with_teacher(teacher, captioned.features, profile.regions), None

    def embed(encoded: EncodedPictures) -> Tensor:
        if isinstance(teacher, ClipBundle):
            return encode_images(teacher, encoded.pictures)
        return embed_pictures(teacher, encoded.features, profile.region_teacher)

    others = PictureTargets(uncaptioned.pictures, embed(uncaptioned)) if uncaptioned else None
    return embed(captioned)[captioned.features.image_of_text], others


def train_and_save_arms(
    profile: Profile,
    clip: ClipBundle,
    teacher: MetaTeacher | RegionTeacher | None,
    captioned: EncodedPictures,
    uncaptioned: EncodedPictures | None,
    sets: EvaluationSets,
    folder: Path,
    checkpoints: Path | None = None,
) -> dict[str, Arm]:
    """Trains a profile's recipe and its control, and saves both.

    Args:
        profile: whose recipe names its arm.
        clip: the untouched one.
        teacher: None for a recipe that has none, or whose teacher is the control.
        captioned: the training data.
        uncaptioned: pictures to learn from without captions.
        sets: what the arms are chosen on.
        folder: to save the arms in.
        checkpoints: the folder of what training goes on from, if it was stopped.

    Returns:
        clip (untouched), contrastive_rehearsal and the recipe's arm, by name.
    """
    control = control_of(profile)
    data = prepare_training(control, clip, captioned, sets)
    arms = {"clip": Arm("clip", clip)}
    for name, settings in {CONTROL: control, profile.recipe: profile}.items():
        own = teacher or arms.get(CONTROL, arms["clip"]).clip
        arms[name] = train_arm(
            name,
            clip,
            data,
            captioned.features,
            settings,
            *prepare_lessons(settings, own, captioned, uncaptioned),
            checkpoint=checkpoints and checkpoints / f"{name}.safetensors",
            texts=captioned.dataset.texts,
        )
        if is_main_process():
            save_arm(arms[name], folder)
    say("Trained the arms now.")
    return arms


def evaluate_arms(arms: Mapping[str, Arm], sets: EvaluationSets) -> dict[str, ArmResult]:
    """Measures arms on test: retrieval, zero-shot, zero-shot in a held-out style if any.

    A set at a time, whose pictures are read once for all arms if they fit into memory.
    """
    clip = next(iter(arms.values())).clip

    def measure(evaluate: Callable[..., Any], data: Any) -> list[Any]:
        if data is None:
            return [None] * len(arms)
        data = replace(data, pictures=_read_few(clip, data.pictures))
        return [evaluate(arm.clip, data) for arm in arms.values()]

    retrieval = measure(evaluate_retrieval, sets.test)
    zero_shot = measure(evaluate_zero_shot, sets.zero_shot)
    held_out = measure(evaluate_zero_shot, sets.zero_shot_held_out)
    found = map(ArmResult, arms.values(), retrieval, zero_shot, held_out)
    return dict(zip(arms, found, strict=True))
