"""From a profile to data, features, a teacher, arms, and their results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dclip_kit.config import Profile, contrastive_control
from dclip_kit.data import CaptionedImages, LabelledImages, read_captioned, read_labelled
from dclip_kit.data.images import SPLITS
from dclip_kit.data.labelled import require_labelled
from dclip_kit.data.pocket import world as pocket
from dclip_kit.data.read import recognise_format, require_readable
from dclip_kit.data.scan import import_imagehash
from dclip_kit.data.splits import (
    LeftOut,
    halve_labelled,
    has_splits,
    is_manifest,
    read_given_test,
    read_splits,
    read_test,
)
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
    TEMPLATES,
    RetrievalSet,
    Templates,
    ZeroShotSet,
    evaluate_retrieval,
    evaluate_zero_shot,
    prepare_retrieval,
    prepare_zero_shot,
)
from dclip_kit.evaluation.runs import (
    SeenPictures,
    describe_pocket,
    describe_seen,
    keep_seen,
    leave_out_trained,
    load_seen,
)
from dclip_kit.features.extract import RegionCrops, extract_features
from dclip_kit.features.frozen import FrozenFeatures
from dclip_kit.features.store import FeatureStore, describe_source, digest_record
from dclip_kit.metrics import recall_ceiling
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.detector import Detector, load_detector, locate_weights
from dclip_kit.models.reading import Pictures, read_pixels
from dclip_kit.models.teacher import MetaTeacher, build_teacher
from dclip_kit.models.weights import choose_parameters
from dclip_kit.runtime.files import asset_path
from dclip_kit.runtime.machine import return_memory
from dclip_kit.runtime.printing import say
from dclip_kit.runtime.processes import is_main_process
from dclip_kit.training import PictureTargets, TeacherRun, embed_with_teacher, train_teacher

KEPT_BYTES = 1 << 30  # of a set's pictures in memory


# Data


@dataclass(frozen=True, eq=False)
class ProfileData:
    """A profile's data.

    Attributes:
        train, val, test: captioned pictures.
        zero_shot_val, zero_shot, zero_shot_held_out: labelled pictures; those of a style that no
            training shows are the pocket's, and None elsewhere.
        ceiling: text→image Recall@1 on test that a perfect model could reach; None where it is not
            known which other pictures a caption fits.
        left_out: what of the data could not be used; None for the pocket's, which is whole.
        templates: what the labelled pictures' classes are put into.
    """

    train: CaptionedImages
    val: CaptionedImages
    test: CaptionedImages
    zero_shot_val: LabelledImages
    zero_shot: LabelledImages
    zero_shot_held_out: LabelledImages | None
    ceiling: float | None
    left_out: LeftOut | None = None
    templates: Templates = TEMPLATES


def require_data(profile: Profile) -> None:
    """Checks what can be known of a profile's data before any of it is read.

    Raises:
        ValueError: data must be given, there is nothing at a path, or its format is unknown.
        FileNotFoundError: there is no folder of labelled pictures.
        ModuleNotFoundError: imagehash is needed and not installed.
    """
    if not profile.data or not profile.zero_shot:
        raise ValueError(
            f"Expected data and zero_shot in the profile {profile.name!r}, got {profile.data!r} "
            f"and {profile.zero_shot!r}; give as data captioned pictures, or curate's manifest and "
            "Karpathy's dataset_coco.json as test, and as zero_shot labelled pictures or 'pocket'."
        )
    if profile.data != "pocket":
        for path in filter(None, (profile.data, profile.test)):
            if not is_manifest(path):
                require_readable(path, profile.images or None, recognise_format(path))
        if profile.leak_guard == "content":
            import_imagehash()
    if profile.zero_shot != "pocket":
        require_labelled(profile.zero_shot)


def load_data(profile: Profile) -> ProfileData:
    """Reads a profile's data; the pocket's is drawn on first use.

    What could not be used of other data is printed.

    Raises:
        ValueError: as `require_data`, or data cannot be read or is too little.
        ModuleNotFoundError: a library of the extra "data" is needed and not installed.
    """
    require_data(profile)
    if profile.zero_shot == "pocket":
        names = "zero_shot_val", "zero_shot", "zero_shot_held_out"
        chosen, measured, held_out = (pocket.load_labelled(name) for name in names)
    else:
        chosen, measured = halve_labelled(read_labelled(profile.zero_shot), profile.seed)
        held_out = None
    labelled = chosen, measured, held_out
    templates = choose_templates(profile.zero_shot, profile.templates)
    if profile.data == "pocket":
        train, val, test = (pocket.load_captioned(split) for split in SPLITS)
        ceiling = recall_ceiling(torch.tensor(pocket.caption_matches("test")))
        return ProfileData(train, val, test, *labelled, ceiling, None, templates)
    by_content = profile.leak_guard == "content"
    places = profile.data, profile.images or None, profile.test or None
    read = read_splits(*places, profile.seed, by_content)
    if str(read.left_out):
        say(str(read.left_out))
    return ProfileData(read.train, read.val, read.test, *labelled, None, read.left_out, templates)


def choose_measured(runs: Sequence[Profile], profile: Profile, **asked: Any) -> Profile:
    """What to measure models on: a profile's data, zero_shot, templates and seed.

    Args:
        runs: the profiles of the runs that the models came out of, if any, of which the first
            decides.
        profile: for models that came out of none.
        asked: fields of a profile that were asked for instead; None where one was not.

    Raises:
        ValueError: there is no data, or the runs had different ones and none was asked for.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    for name in ("data", "zero_shot"):
        places = sorted({getattr(run, name) for run in runs})
        if name not in given and len(places) > 1:
            raise ValueError(
                f"Expected {name} to measure on, since the models' runs had different ones "
                f"({', '.join(places)}); give --{name.replace('_', '-')}."
            )
    if "data" in given:
        given = {"images": "", "test": ""} | given
    chosen = replace([*runs, profile][0], **given)
    if not chosen.data:
        raise ValueError("Expected captioned pictures to measure on, got none; give --data.")
    return chosen


def read_measured(profile: Profile, split: str = "test") -> CaptionedImages:
    """Captioned pictures to measure on.

    Args:
        profile: with the data.
        split: "test" as `load_data` makes it, "all", or a split that the format has; of data
            without splits also "train" and "val" as `load_data` makes them.

    Raises:
        ValueError: there is no such split, or as `read_captioned` and `read_splits`.
    """
    data, images, test = profile.data, profile.images or None, profile.test
    if data == "pocket":
        return pocket.load_captioned(split)
    if split == "test":
        return read_given_test(test) if test else read_test(data, images, profile.seed)
    if split == "all" or has_splits(data):
        return read_captioned(data, images, split=split).dataset
    if split not in SPLITS:
        raise ValueError(
            f"Expected a split of train, val, test or all of {data}, whose format has none of its "
            f"own, got {split!r}; name one of these."
        )
    return getattr(read_splits(data, images, test or None, profile.seed), split)


def read_zero_shot(reference: str) -> tuple[LabelledImages, ...]:
    """All labelled pictures of a reference; for "pocket" those of the held-out style come too."""
    if reference == "pocket":
        return pocket.load_labelled("zero_shot"), pocket.load_labelled("zero_shot_held_out")
    return (read_labelled(reference),)


def choose_templates(zero_shot: str, name: str = "auto") -> Templates:
    """What the classes of labelled pictures are put into, as `Profile.templates` says.

    Args:
        zero_shot: as in `Profile`.
        name: one of `evaluate.TEMPLATE_SETS`, or "auto".
    """
    fitting = "pocket" if zero_shot == "pocket" else "imagenet"
    return TEMPLATE_SETS[fitting if name == "auto" else name]


# Training, and measuring what came of it


def require_trainable(profile: Profile, clip: ClipBundle) -> None:
    """Checks what a profile asks of its CLIP and of its detector, before anything is computed.

    Raises:
        ValueError: the policy matches nothing in the image tower, or the teacher does not fit CLIP.
        FileNotFoundError: there are no weights for the detector.
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


def prepare_training(
    profile: Profile,
    clip: ClipBundle,
    train: CaptionedImages,
    features: FrozenFeatures,
    sets: EvaluationSets,
) -> TrainingSet:
    """Reads the pictures that training looks at, val's among them, where they fit into memory.

    Raises:
        ValueError: as `RegionCrops` and `read_pixels`.
    """
    pictures = _read_few(clip, train.paths)
    val = replace(sets.val, pictures=_read_few(clip, sets.val.pictures))
    chosen = _read_few(clip, sets.zero_shot_val.pictures)
    rehearsal = None
    if profile.student.rehearsal_weight > 0:
        crops = RegionCrops(train.paths, features, profile.regions)
        rehearsal = PictureTargets(_read_few(clip, crops), features.region)
    return_memory()
    return TrainingSet(pictures, rehearsal, val, replace(sets.zero_shot_val, pictures=chosen))


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
    targets = embed_with_teacher(teacher, features, profile.regions) if teacher else None
    data = prepare_training(profile, clip, train, features, sets)
    control = replace(profile, student=contrastive_control(profile.student))
    arms = {"clip": Arm("clip", clip)}
    for name, settings in {"contrastive": control, profile.recipe: profile}.items():
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
        data = replace(data, pictures=_read_few(clip, data.pictures))
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
        # The pocket's pictures to choose on are apart from those to measure on.
        labelled = () if profile.zero_shot == "pocket" else data.zero_shot_val.paths
        seen = describe_seen(data.train, data.val, labelled, profile.leak_guard == "content")
    if teacher is None:
        return seen
    its = load_seen(teacher)
    return replace(seen, trained=seen.trained.join(its.trained), complete=its.complete)


def leave_out_seen_by_teacher(data: ProfileData, folder: Path) -> ProfileData:
    """Leaves out of val and test what the teacher in another run's folder has trained on.

    Raises:
        ValueError: too little is left to choose or to measure on.
    """
    seen = load_seen(folder)
    if not seen.complete:
        say(f"What the teacher in {folder} has trained on is not all known: a run left no record.")
    val, test = (leave_out_trained(part, {str(folder): seen}) for part in (data.val, data.test))
    for note in filter(None, (val.describe("val"), test.describe("test"))):
        say(note)
    return replace(data, val=val.dataset, test=test.dataset)


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
