"""From settings to features, a teacher, arms, and their results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from dclip_kit.config import Profile, contrastive_control
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
    TEMPLATE_SETS,
    RetrievalSet,
    ZeroShotSet,
    evaluate_retrieval,
    evaluate_zero_shot,
    prepare_retrieval,
    prepare_zero_shot,
)
from dclip_kit.evaluation.profile_data import ProfileData
from dclip_kit.evaluation.profile_data import load_data as load_data  # notebooks begin with it
from dclip_kit.evaluation.runs import find_run
from dclip_kit.evaluation.seen import (
    SeenPictures,
    describe_pocket,
    describe_seen,
    keep_seen,
    leave_out_trained,
    load_seen,
)
from dclip_kit.features.crops import RegionCrops
from dclip_kit.features.extract import extract_features
from dclip_kit.features.frozen import FrozenFeatures
from dclip_kit.features.source import describe_source, digest_record
from dclip_kit.features.store import FeatureStore
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.detector import Detector, load_detector, locate_weights
from dclip_kit.models.reading import Pictures, read_pixels
from dclip_kit.models.teacher import MetaTeacher, build_teacher
from dclip_kit.models.weights import choose_parameters
from dclip_kit.runtime.memory import return_memory
from dclip_kit.runtime.places import asset_path
from dclip_kit.runtime.printing import say
from dclip_kit.runtime.processes import is_main_process
from dclip_kit.training import Rehearsal, TeacherRun, embed_with_teacher, train_teacher

KEPT_BYTES = 2 << 30  # of all pictures in memory; others are read whenever they are looked at


def require_trainable(profile: Profile, clip: ClipBundle) -> None:
    """Checks what a profile asks of its CLIP and of its detector, before anything is computed.

    Raises:
        ValueError: the policy matches nothing in the image tower, or the teacher does not fit CLIP.
        FileNotFoundError: the detector's weights are not to be had.
    """
    choose_parameters(clip, profile.student.train)
    if profile.student.distillation_weight:
        build_teacher(clip.embed_dim, profile.teacher)
    locate_weights(profile.regions.detector)


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
    profile: Profile, clip: ClipBundle, dataset: CaptionedImages, folder: Path
) -> FrozenFeatures:
    """Opens a data set's features in a folder, or extracts them into it.

    They lie in a store that is called by the split and by what they are made from: where data or
    settings have changed, another is made beside it. It is opened without loading the detector.

    Raises:
        ValueError: as `extract_features`, or the store that is there is damaged.
    """
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
        return prepare_zero_shot(clip, labelled, False, TEMPLATE_SETS[data.templates])

    sets = EvaluationSets(
        prepare_retrieval(clip, data.val, read=False),
        prepare_retrieval(clip, data.test, read=False),
        prepare(data.zero_shot_val),
        prepare(data.zero_shot),
        prepare(data.zero_shot_held_out) if data.zero_shot_held_out else None,
    )
    return_memory()
    return sets


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
        needed = _count_bytes(clip, pictures)
        if needed > left:
            return pictures
        left -= needed
        return read_pixels(clip, pictures)

    pictures = keep(train.paths)
    val = replace(sets.val, pictures=keep(sets.val.pictures))
    zero_shot_val = replace(sets.zero_shot_val, pictures=keep(sets.zero_shot_val.pictures))
    rehearsal = None
    if profile.student.rehearsal_weight > 0:
        crops = RegionCrops(train.paths, features, profile.regions)
        rehearsal = Rehearsal(keep(crops), features.region)
    return_memory()
    return TrainingSet(pictures, rehearsal, val, zero_shot_val)


def _count_bytes(clip: ClipBundle, pictures: Pictures) -> int:
    """Of pictures as CLIP takes them."""
    return len(pictures) * clip.to_pixels(Image.new("RGB", (1, 1))).numel()


def train_and_save_teacher(
    profile: Profile, features: FrozenFeatures, folder: Path, checkpoint: Path | None = None
) -> TeacherRun:
    """Trains a profile's teacher on features of the training data, and saves it.

    With a checkpoint, training goes on from where it was left, if it was, and keeps it.
    """
    run = train_teacher(features, profile.teacher, profile.regions, profile.seed, checkpoint)
    if is_main_process():
        save_teacher(run, profile.teacher, folder)
    say(f"Trained the teacher now: {len(run.history)} epochs.")
    return run


def train_and_save_arms(
    profile: Profile,
    clip: ClipBundle,
    teacher: MetaTeacher | None,
    train: CaptionedImages,
    features: FrozenFeatures,
    sets: EvaluationSets,
    folder: Path,
    checkpoints: Path | None = None,
) -> dict[str, Arm]:
    """Trains a profile's recipe and its control, and saves both.

    Args:
        profile: whose recipe names its arm.
        clip: the untouched one.
        teacher: may be None for a recipe that has none.
        train: the training data.
        features: of it.
        sets: what the arms are chosen on.
        folder: to save the arms in.
        checkpoints: the folder of what training goes on from, if it was stopped.

    Returns:
        clip (untouched), contrastive and the recipe's arm, by name.
    """
    arms = {"clip": Arm("clip", clip)}
    targets = embed_with_teacher(teacher, features, profile.regions) if teacher else None
    data = prepare_training(profile, clip, train, features, sets)
    control = replace(profile, student=contrastive_control(profile.student))
    for name in dict.fromkeys(("contrastive", profile.recipe)):
        settings = control if name == "contrastive" else profile
        embeddings = targets if settings.student.distillation_weight else None
        checkpoint = checkpoints and checkpoints / f"{name}.safetensors"
        arms[name] = train_arm(
            name, clip, data, features, settings, embeddings, checkpoint, texts=train.texts
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
        if _count_bytes(clip, data.pictures) <= KEPT_BYTES:
            data = replace(data, pictures=read_pixels(clip, data.pictures))
        return [evaluate(arm.clip, data) for arm in arms.values()]

    retrieval = measure(evaluate_retrieval, sets.test)
    zero_shot = measure(evaluate_zero_shot, sets.zero_shot)
    held_out = measure(evaluate_zero_shot, sets.zero_shot_held_out)
    found = map(ArmResult, arms.values(), retrieval, zero_shot, held_out)
    return dict(zip(arms, found, strict=True))


def describe_run(profile: Profile, data: ProfileData, teacher: Path | None = None) -> SeenPictures:
    """What a run on these data sees, and what its teacher from another run's folder has seen."""
    if profile.data == "pocket":
        seen = describe_pocket()
    else:
        own = profile.zero_shot != "pocket"  # its pictures to choose on are apart from the others
        labelled = data.zero_shot_val.paths if own else ()
        seen = describe_seen(data.train, data.val, labelled, profile.leak_guard == "content")
    if teacher is None:
        return seen
    its = _load_seen_by_teacher(teacher)
    trained = seen.trained.join(its.trained) if its else seen.trained
    return replace(seen, trained=trained, complete=its is not None and its.complete)


def leave_out_seen_by_teacher(data: ProfileData, folder: Path) -> ProfileData:
    """Leaves out of val and test what the teacher in another run's folder has trained on.

    Raises:
        ValueError: too little is left to choose or to measure on.
    """
    seen = _load_seen_by_teacher(folder)
    if seen is None or not seen.complete:
        say(f"What the teacher in {folder} has trained on is not all known: a run left no record.")
    if seen is None:
        return data
    val, test = (leave_out_trained(part, {str(folder): seen}) for part in (data.val, data.test))
    for note in filter(None, (val.describe("val"), test.describe("test"))):
        say(note)
    return replace(data, val=val.dataset, test=test.dataset)


def _load_seen_by_teacher(folder: Path) -> SeenPictures | None:
    run = find_run(folder / "teacher")
    return run.seen if run else load_seen(folder)


def train_all(profile: Profile, clip: ClipBundle, data: ProfileData, folder: Path) -> None:
    """Trains a profile's teacher and arms into a folder."""
    if profile.data != "pocket":  # whose scenes need no record
        keep_seen(describe_run(profile, data), folder)
    features = extract_features(clip, choose_detector(profile, clip), data.train, profile.regions)
    teacher = train_and_save_teacher(profile, features, folder).teacher
    sets = prepare_evaluation(clip, data)
    train_and_save_arms(profile, clip, teacher, data.train, features, sets, folder)


def find_saved(profile: Profile, clip: ClipBundle, data: ProfileData, folder: str = "") -> Path:
    """The folder of a profile's teacher and arms.

    Args:
        profile: the pocket's come with the kit. Another's are trained now unless they have been,
            which takes long without a GPU.
        clip: the untouched one.
        data: to train with.
        folder: where a run of yours left them, instead.
    """
    if folder or profile.name == profile.data == "pocket":
        return Path(folder) if folder else asset_path("pocket_arms")
    place = Path("../runs", profile.name, "arms")  # from notebooks/
    if not (place / "dclip.json").exists():  # the last to be written
        print(f"Training the teacher and the arms into {place}.")
        train_all(profile, clip, data, place)
    return place
