"""What the notebooks share: a profile's data, and weights trained now or loaded."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dclip_kit.config import Profile, contrastive_control
from dclip_kit.data import CaptionedImages
from dclip_kit.evaluation.arms import (
    Arm,
    ArmResult,
    load_arms,
    load_teacher,
    round_tower,
    save_arm,
    save_teacher,
    train_arm,
)
from dclip_kit.evaluation.evaluate import evaluate_retrieval, evaluate_zero_shot
from dclip_kit.evaluation.preparation import (
    EvaluationSets,
    fits_memory,
    prepare_evaluation,
    prepare_training,
)
from dclip_kit.evaluation.profile_data import WalkData
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
from dclip_kit.features.extract import extract_features
from dclip_kit.features.frozen import FrozenFeatures
from dclip_kit.features.store import FeatureStore, describe_source, digest_record
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.detector import Detector, load_detector, locate_weights
from dclip_kit.models.reading import read_pixels
from dclip_kit.models.teacher import MetaTeacher, build_teacher
from dclip_kit.models.weights import choose_parameters
from dclip_kit.runtime.files import asset_path
from dclip_kit.runtime.printing import say
from dclip_kit.runtime.processes import is_main_process
from dclip_kit.training import TeacherRun, embed_with_teacher, train_teacher


def obtain_features(
    profile: Profile, clip: ClipBundle, dataset: CaptionedImages, folder: Path
) -> FrozenFeatures:
    """Extracts a data set's features into a store in a folder, or opens the one that is there.

    The store is called by the split and by what its features are made from: where data or settings
    have changed, another is made beside it. It is opened without loading the detector.

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


def describe_run(profile: Profile, data: WalkData, teacher: Path | None = None) -> SeenPictures:
    """What a run on these data sees, and what its teacher from another run's folder has seen."""
    if profile.data == "pocket":
        seen = describe_pocket()
    else:
        own = profile.zero_shot != "pocket"  # its pictures to choose on are apart from the others
        labelled = data.zero_shot_val.paths if own else ()
        seen = describe_seen(data.train, data.val, labelled, profile.leak_guard == "content")
    if teacher is None:
        return seen
    taught = load_taught(teacher)
    if taught is None:
        return replace(seen, complete=False)
    trained, complete = seen.trained.join(taught.trained), taught.complete
    return replace(seen, trained=trained, complete=complete)


def leave_out_taught(data: WalkData, folder: Path) -> WalkData:
    """Leaves out of val and test what the teacher in another run's folder has trained on.

    Raises:
        ValueError: too little is left to choose or to measure on.
    """
    seen = load_taught(folder)
    if seen is None or not seen.complete:
        say(f"What the teacher in {folder} has trained on is not all known: a run left no record.")
    if seen is None:
        return data
    val, test = (leave_out_trained(part, {str(folder): seen}) for part in (data.val, data.test))
    for note in filter(None, (val.describe("val"), test.describe("test"))):
        say(note)
    return replace(data, val=val.dataset, test=test.dataset)


def load_taught(folder: Path) -> SeenPictures | None:
    """What a teacher in a run's folder has seen, as `find_run` knows it."""
    run = find_run(folder / "teacher")
    return run.seen if run else load_seen(folder)


def choose_detector(profile: Profile, clip: ClipBundle) -> Detector:
    """A profile's detector, on the device of its CLIP."""
    regions = profile.regions
    return load_detector(
        regions.detector,
        confidence=regions.confidence,
        max_regions=regions.max_regions,
        device=clip.device,
    )


def obtain_teacher(
    profile: Profile,
    clip: ClipBundle,
    features: FrozenFeatures | None,
    saved: Path,
    checkpoint: Path | None = None,
) -> TeacherRun:
    """Trains the teacher on features of the training data; without any, loads the saved one.

    With a checkpoint, training goes on from where it was left, if it was, and keeps it.
    """
    if features is None:
        teacher, history = load_teacher(clip.embed_dim, profile, saved)
        say(f"Loaded the saved teacher: {len(history)} epochs.")
        return TeacherRun(teacher, history)
    run = train_teacher(features, profile.teacher, profile.regions, profile.seed, checkpoint)
    if is_main_process():
        save_teacher(run.teacher, run.history, profile, saved)
    say(f"Trained the teacher now: {len(run.history)} epochs.")
    return run


def obtain_arms(
    profile: Profile,
    clip: ClipBundle,
    teacher: MetaTeacher | None,
    train: CaptionedImages,
    features: FrozenFeatures | None,
    sets: EvaluationSets,
    saved: Path,
    checkpoints: Path | None = None,
) -> dict[str, Arm]:
    """Trains the profile's recipe and its control; without features, loads the saved ones.

    With a folder of checkpoints, each training goes on from where it was left, if it was.

    Args:
        profile: whose recipe names its arm.
        clip: the untouched one.
        teacher: may be None for a recipe that has none.
        train: the training data.
        features: of it; None loads.
        sets: what the arms are chosen on.
        saved: the folder of the arms.
        checkpoints: the folder of what training goes on from.

    Returns:
        clip (untouched), contrastive and the recipe's arm, by name. Trained ones are rounded to the
        half precision that they are saved in, so that loading them gives the same figures.
    """
    if features is None:
        return load_arms(clip, saved, profile.recipe)
    arms = {"clip": Arm("clip", clip)}
    targets = embed_with_teacher(teacher, features, profile.regions) if teacher else None
    shown = prepare_training(profile, clip, train, features, sets)
    control = replace(profile, student=contrastive_control(profile.student))
    own = {} if profile.recipe == "contrastive" else {profile.recipe: profile}
    for name, settings in {"contrastive": control, **own}.items():
        embeddings = targets if settings.student.distillation_weight else None
        checkpoint = checkpoints and checkpoints / f"{name}.safetensors"
        arm = train_arm(
            name, clip, shown, features, settings, embeddings, checkpoint, texts=train.texts
        )
        arms[name] = round_tower(arm)
        if is_main_process():
            save_arm(arm, saved)
    say("Trained the arms now.")
    return arms


def evaluate_arms(arms: Mapping[str, Arm], sets: EvaluationSets) -> dict[str, ArmResult]:
    """Measures arms on test: retrieval, zero-shot, zero-shot in a held-out style if any.

    A set at a time, whose pictures are read once for all arms if they fit into memory.
    """
    clip = next(iter(arms.values())).clip

    def measure(evaluate: Callable[..., Any], data: Any) -> dict[str, Any]:
        if data is None:
            return dict.fromkeys(arms)
        if fits_memory(clip, len(data.pictures)):
            data = replace(data, pictures=read_pixels(clip, data.pictures))
        return {name: evaluate(arm.clip, data) for name, arm in arms.items()}

    retrieval = measure(evaluate_retrieval, sets.test)
    zero_shot = measure(evaluate_zero_shot, sets.zero_shot)
    held_out = measure(evaluate_zero_shot, sets.zero_shot_held_out)
    return {
        name: ArmResult(arm, retrieval[name], zero_shot[name], held_out[name])
        for name, arm in arms.items()
    }


def train_all(profile: Profile, clip: ClipBundle, data: WalkData, folder: Path) -> None:
    """Trains a profile's teacher and arms into a folder."""
    if profile.data != "pocket":  # whose scenes need no record
        keep_seen(describe_run(profile, data), folder)
    features = extract_features(clip, choose_detector(profile, clip), data.train, profile.regions)
    teacher = obtain_teacher(profile, clip, features, folder).teacher
    sets = prepare_evaluation(clip, data)
    obtain_arms(profile, clip, teacher, data.train, features, sets, folder)


def find_saved(profile: Profile, clip: ClipBundle, data: WalkData, folder: str = "") -> Path:
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
