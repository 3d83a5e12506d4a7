"""From a profile and its data to features, a teacher, and arms: trained, measured and saved.

Arms are the ways to treat CLIP that are compared, the untouched one among them; all are chosen by
one rule.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from dclip_kit.config import (
    CONTROL,
    Profile,
    RegionTeacherSettings,
    TeacherSettings,
    control_of,
    trains_teacher,
)
from dclip_kit.data import CaptionedImages, LabelledImages
from dclip_kit.data.pocket.compositions import KINDS, load_compositions
from dclip_kit.evaluation.evaluate import (
    RetrievalSet,
    ZeroShot,
    ZeroShotSet,
    evaluate_retrieval,
    evaluate_zero_shot,
    prepare_retrieval,
    prepare_zero_shot,
)
from dclip_kit.evaluation.profile_data import ProfileData
from dclip_kit.features.extract import RegionCrops, extract_features
from dclip_kit.features.store import (
    EncodedPictures,
    FrozenFeatures,
    describe_source,
    digest_record,
    open_store,
)
from dclip_kit.metrics import RetrievalMetrics
from dclip_kit.models.clip import ClipBundle, choose_precision
from dclip_kit.models.denoiser import Denoiser, load_denoiser
from dclip_kit.models.detector import Detector, load_detector, locate_weights
from dclip_kit.models.encode import Pictures, encode_images, read_pixels
from dclip_kit.models.teacher import MetaTeacher, RegionTeacher, build_teacher
from dclip_kit.models.weights import choose_parameters, clone_clip, interpolate
from dclip_kit.runtime.files import (
    asset_path,
    load_tensors,
    load_weights,
    read_record,
    save_tensors,
    write_record,
)
from dclip_kit.runtime.machine import return_memory
from dclip_kit.runtime.printing import say
from dclip_kit.runtime.processes import is_main_process
from dclip_kit.training import (
    History,
    PictureTargets,
    TeacherRun,
    Term,
    choose_terms,
    distill,
    embed_pictures,
    embed_with_teacher,
    train_region_teacher,
    train_teacher,
)

KEPT_BYTES = 1 << 30  # of a set's pictures in memory


# What there is to train and to compare


@dataclass(frozen=True)
class Candidate:
    """An interpolation: its text→image Recall@1 and its zero-shot retention."""

    alpha: float
    recall_at_1: float
    retention: float


@dataclass(frozen=True, eq=False)
class Arm:
    """One way to treat CLIP.

    Attributes:
        name: "clip", "contrastive_rehearsal", "region_taught", …
        clip: the result, after interpolation.
        alpha: its weight; None for the untouched CLIP.
        candidates: what the selection on val saw.
        history: a row of figures an epoch.
        trained_text: whether the text tower is another than CLIP's, too.
    """

    name: str
    clip: ClipBundle
    alpha: float | None = None
    candidates: tuple[Candidate, ...] = ()
    history: History | None = None
    trained_text: bool = False


@dataclass(frozen=True, eq=False)
class ArmResult:
    """An arm on test."""

    arm: Arm
    retrieval: RetrievalMetrics
    zero_shot: ZeroShot
    held_out: ZeroShot | None


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What arms train on and are chosen on.

    Attributes:
        captioned: to train on.
        rehearsal: what is not to be forgotten; None where a profile rehearses nothing.
        val, zero_shot_val: what decides.
    """

    captioned: EncodedPictures
    rehearsal: PictureTargets | None
    val: RetrievalSet
    zero_shot_val: ZeroShotSet


# Preparing


def require_trainable(profile: Profile, clip: ClipBundle) -> None:
    """Checks what a profile asks of its CLIP and of other models, before anything is computed.

    Raises:
        ValueError: the policy matches nothing in the image tower, or the teacher does not fit CLIP;
            or as `load_denoiser`.
        FileNotFoundError: there are no weights for the detector.
        ImportError: as `load_denoiser`.
    """
    choose_parameters(clip, profile.student.train)
    if trains_teacher(profile):
        build_teacher(clip.embed_dim, teacher_settings(profile))
    locate_weights(profile.regions.detector)
    choose_denoiser(profile, clip)


def teacher_settings(profile: Profile) -> TeacherSettings | RegionTeacherSettings:
    """The settings of the kind of teacher that a profile trains."""
    return profile.region_teacher if profile.teacher_model == "region" else profile.teacher


def choose_detector(profile: Profile, clip: ClipBundle) -> Detector:
    """A profile's detector, on the device of its CLIP."""
    return load_detector(
        profile.regions.detector,
        confidence=profile.regions.confidence,
        max_regions=profile.regions.max_regions,
        device=clip.device,
    )


def choose_denoiser(profile: Profile, clip: ClipBundle) -> Denoiser | None:
    """A profile's denoiser, on the device of its CLIP; None where its student learns from none."""
    return load_denoiser(profile.denoiser, clip) if profile.student.sds_weight else None


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
        features = open_store(place, source)
        if features is not None:
            say(f"Loaded the features in {place}.")
            return features
    return extract_features(
        clip, choose_detector(profile, clip), dataset, profile.regions, folder=place
    )


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
    val = replace(sets.val, pictures=_read_few(clip, sets.val.pictures))
    zero_shot_val = replace(
        sets.zero_shot_val, pictures=_read_few(clip, sets.zero_shot_val.pictures)
    )
    return_memory()
    return TrainingSet(captioned, rehearsal, val, zero_shot_val)


def _read_few(clip: ClipBundle, pictures: Pictures) -> Pictures:
    """Reads pictures into memory; too many stay as they are, read whenever they are looked at."""
    each = clip.to_pixels(Image.new("RGB", (1, 1))).numel()
    return read_pixels(clip, pictures) if len(pictures) * each <= KEPT_BYTES else pictures


# Training


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


def prepare_terms(
    profile: Profile,
    clip: ClipBundle,
    captioned: EncodedPictures,
    rehearsal: PictureTargets | None,
    teacher: MetaTeacher | RegionTeacher | ClipBundle | None = None,
    uncaptioned: EncodedPictures | None = None,
) -> list[Term]:
    """The terms of a profile's recipe, with all that they learn from.

    Args:
        profile: whose recipe it is.
        clip: the untouched one.
        captioned: the training data.
        rehearsal: as `prepare_rehearsal` gives it.
        teacher, uncaptioned: as in `prepare_lessons`; the teacher of a recipe that has one.
    """
    targets, others = None, None
    if teacher is not None:
        targets, others = prepare_lessons(profile, teacher, captioned, uncaptioned)
    return choose_terms(
        profile.student,
        captioned,
        targets,
        uncaptioned=others,
        rehearsal=rehearsal,
        denoiser=choose_denoiser(profile, clip),
        seed=profile.seed,
    )


def measure_interpolations(
    before: ClipBundle,
    after: ClipBundle,
    retrieval: RetrievalSet,
    zero_shot: ZeroShotSet,
    alphas: Sequence[float],
    precision: str = "no",
) -> tuple[Candidate, ...]:
    """Measures what each interpolation between two CLIPs finds, and how much it remembers.

    Args:
        before, after: the ends.
        retrieval, zero_shot: what is measured on.
        alphas: weights of `after`; 0, which is `before`, always comes first.
        precision: what pictures are encoded in, alike for all: "no" (float32) or "bf16".

    Raises:
        ValueError: `before` classifies nothing, so that there is nothing to retain.
    """
    before, found = replace(before, precision=precision), []
    for alpha in tqdm(
        sorted({0.0, *alphas}), desc="interpolations", delay=2, disable=not is_main_process()
    ):
        mixed = interpolate(before, after, alpha)
        recall = evaluate_retrieval(mixed, retrieval, progress=False).text_to_image.recall_at[1]
        top1 = evaluate_zero_shot(mixed, zero_shot, progress=False).top1
        found.append((alpha, recall, top1))
        base = found[0][2]
        if base == 0:
            raise ValueError(
                "Expected a CLIP that knows some of the classes, got none right; give it classes "
                "that it can name."
            )
    return tuple(Candidate(alpha, recall, top1 / base) for alpha, recall, top1 in found)


def choose_candidate(candidates: Sequence[Candidate], least_retention: float) -> Candidate:
    """Chooses between interpolations measured on val, by one rule for every arm.

    Of those that retain enough of the zero-shot accuracy, the one with the best text→image
    Recall@1; the first, the untouched CLIP, if none does.
    """
    able = [each for each in candidates if each.retention >= least_retention]
    return max(able or candidates[:1], key=lambda candidate: candidate.recall_at_1)


def train_arm(
    name: str,
    clip: ClipBundle,
    shown: TrainingSet,
    terms: Sequence[Term],
    profile: Profile,
    checkpoint: Path | None = None,
    on_epoch: Callable[[ClipBundle, History], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Arm:
    """Fine-tunes a copy of CLIP and chooses its interpolation on val.

    The weights that trained are rounded to the half precision that `save_arm` keeps, so that the
    arm measures the same once it is loaded.

    Args:
        name: of the arm.
        clip: the untouched CLIP.
        shown: the training data, and val, which decides; test is not looked at.
        terms: what is learned; as `prepare_terms` makes them.
        profile: settings, rule of selection and seed.
        checkpoint: to continue from.
        on_epoch: called after each epoch.
        on_step: as in `distill`.
    """
    settings = profile.student
    precision = choose_precision(settings.mixed_precision)
    sample = shown.zero_shot_val.every(20)  # for the curves; all of it would double the training

    def name_sample(model: ClipBundle) -> float:
        return evaluate_zero_shot(replace(model, precision=precision), sample, progress=False).top1

    untouched = name_sample(clip)

    def validate(trained: ClipBundle, history: History) -> None:
        student = replace(trained, precision=precision)
        found, named = evaluate_retrieval(student, shown.val, progress=False), name_sample(trained)
        history[-1] |= {
            "val_recall_at_1": found.text_to_image.recall_at[1],
            "val_zero_shot": named,
        }
        if untouched:
            history[-1]["val_retention"] = named / untouched
        if on_epoch:
            on_epoch(trained, history)

    run = distill(
        clip,
        shown.captioned,
        terms,
        settings,
        seed=profile.seed,
        checkpoint=checkpoint,
        on_epoch=validate,
        on_step=on_step,
    )
    return_memory()
    rule = profile.selection
    candidates = measure_interpolations(
        clip, run.student, shown.val, shown.zero_shot_val, rule.alphas, precision
    )
    alpha = choose_candidate(candidates, rule.least_retention).alpha
    student = interpolate(clip, run.student, alpha)
    part = _trained_part(student, settings.train_text)
    part.load_state_dict(_halve(part))  # copied into what is there, so in single precision again
    return_memory()
    return Arm(name, student, alpha, candidates, run.history, settings.train_text)


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
        terms = prepare_terms(settings, clip, captioned, data.rehearsal, own, uncaptioned)
        state = checkpoints and checkpoints / f"{name}.safetensors"
        arms[name] = train_arm(name, clip, data, terms, settings, state)
        if is_main_process():
            save_arm(arms[name], folder)
    say("Trained the arms now.")
    return arms


def evaluate_arms(arms: Mapping[str, Arm], sets: EvaluationSets) -> dict[str, ArmResult]:
    """Measures arms on test: retrieval, zero-shot, zero-shot in a held-out style if any.

    A set at a time, whose pictures are read once for all arms if they fit into memory.
    """
    clip, found = next(iter(arms.values())).clip, []
    measurements: list[tuple[Callable[..., Any], Any]] = [
        (evaluate_retrieval, sets.test),
        (evaluate_zero_shot, sets.zero_shot),
        (evaluate_zero_shot, sets.zero_shot_held_out),
    ]
    for evaluate, data in measurements:
        if data:
            data = replace(data, pictures=_read_few(clip, data.pictures))
        shown = tqdm(arms.values(), "measuring arms", disable=not data or not is_main_process())
        found.append([data and evaluate(arm.clip, data, progress=False) for arm in shown])
    return dict(zip(arms, map(ArmResult, arms.values(), *found), strict=True))


def score_teachers(
    profile: Profile,
    clip: ClipBundle,
    teachers: Mapping[str, MetaTeacher | RegionTeacher],
    count: int = 1000,
) -> dict[str, dict[str, Float[Tensor, "item 2 2"]]]:
    """Asks teachers what `score_compositions` asks a CLIP; captions' vectors are the frozen CLIP's.

    A teacher that reads captions embeds each of an item's pictures beside each of its captions, and
    the cosine is that with the vector of this caption.

    Args:
        profile: that they were trained by; says how regions are made and what is seen of them.
        clip: the untouched one.
        teachers: by name.
        count: items of each kind.

    Returns:
        By teacher and kind, as `composition_scores` takes them.

    Raises:
        ValueError: there is no item.
    """
    detector = choose_detector(profile, clip)
    found: dict[str, dict[str, Tensor]] = {name: {} for name in teachers}
    item = torch.arange(2 * count).reshape(-1, 2)  # its pictures, by number
    for kind in KINDS:
        features = extract_features(clip, detector, load_compositions(kind, count), profile.regions)
        for name, teacher in teachers.items():
            if isinstance(teacher, RegionTeacher):
                embedding = embed_pictures(teacher, features, profile.region_teacher)
                embedding = embedding.reshape(count, 2, 1, -1)
            else:
                beside = [  # all captions beside the first picture of their item, and the second
                    replace(features, image_of_text=item[:, [place, place]].flatten())
                    for place in (0, 1)
                ]
                pairs = [embed_with_teacher(teacher, each, profile.regions) for each in beside]
                embedding = torch.stack([each.reshape(count, 2, -1) for each in pairs], dim=1)
            text = features.text.reshape(count, 1, 2, -1)
            found[name][kind] = (embedding * text).sum(-1)  # item picture caption
    return found


# Arms and teachers on disk


def save_arm(arm: Arm, folder: Path) -> None:
    """Writes what of an arm has trained (fp16), its image tower mostly, and how it came about."""
    save_tensors(
        _halve(_trained_part(arm.clip, arm.trained_text)), folder / f"{arm.name}.safetensors"
    )
    write_record(
        {
            "trained_text": arm.trained_text,
            "alpha": arm.alpha,
            "candidates": [asdict(candidate) for candidate in arm.candidates],
            "history": arm.history,
        },
        folder / f"{arm.name}.json",
    )


def load_arm(name: str, clip: ClipBundle, folder: Path) -> Arm:
    """Reads what `save_arm` wrote.

    Raises:
        FileNotFoundError, ValueError: it is not there, damaged, or of another architecture.
    """
    loaded, path = clone_clip(clip), folder / f"{name}.safetensors"

    def build(record: dict[str, Any]) -> Arm:
        return Arm(
            name,
            loaded,
            record["alpha"],
            tuple(Candidate(**each) for each in record["candidates"]),
            record["history"],
            record.get("trained_text", False),
        )

    arm = read_record(path.with_suffix(".json"), build)
    load_weights(_trained_part(loaded, arm.trained_text), load_tensors(path), str(path))
    return arm


def _trained_part(clip: ClipBundle, trained_text: bool) -> nn.Module:
    return clip.model if trained_text else clip.model.visual


def _halve(part: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.half() if value.is_floating_point() else value
        for name, value in part.state_dict().items()
    }


def load_arms(
    clip: ClipBundle, folder: Path, names: Sequence[str] = (CONTROL, "region_taught")
) -> dict[str, Arm]:
    """Reads some arms, beside the untouched CLIP, and says so.

    Raises:
        FileNotFoundError, ValueError: as `load_arm`.
    """
    trained = {name: load_arm(name, clip, folder) for name in names}
    mixed = ", ".join(f"{name} (α = {arm.alpha:g})" for name, arm in trained.items())
    say(f"Loaded the saved arms, trained earlier: {mixed}.")
    return {"clip": Arm("clip", clip)} | trained


# By kind of teacher: what its files are called, and what decides what it computes.
_KINDS = {
    TeacherSettings: ("teacher", ("heads", "layers", "pooling_temperature", "masked")),
    RegionTeacherSettings: (
        "region_teacher",
        ("heads", "layers", "width", "regions", "boxes", "whole_picture"),
    ),
}


def save_teacher(
    run: TeacherRun, settings: TeacherSettings | RegionTeacherSettings, folder: Path
) -> None:
    """Writes a teacher's weights and how it came about."""
    name, _ = _KINDS[type(settings)]
    save_tensors(run.teacher.state_dict(), folder / f"{name}.safetensors")
    write_record({"settings": asdict(settings), "history": run.history}, folder / f"{name}.json")


def load_teacher(
    embed_dim: int, settings: TeacherSettings | RegionTeacherSettings, folder: Path
) -> TeacherRun:
    """Reads what `save_teacher` wrote, and says so.

    Args:
        embed_dim: CLIP's joint space.
        settings: of the kind of teacher that is looked for.
        folder: of the run.

    Raises:
        FileNotFoundError, ValueError: it is not there, damaged, or computes otherwise than one of
            these settings would.
    """
    kind, decisive = _KINDS[type(settings)]
    path = folder / f"{kind}.safetensors"
    kept, history = read_record(
        path.with_suffix(".json"),
        lambda record: (type(settings)(**record["settings"]), list(record["history"])),
    )
    for name in decisive:
        if getattr(kept, name) != getattr(settings, name):
            raise ValueError(
                f"Expected a teacher with {name}={getattr(settings, name)!r} in {folder}, got "
                f"{getattr(kept, name)!r}; change the profile or train another."
            )
    teacher = build_teacher(embed_dim, settings)
    load_weights(teacher, load_tensors(path), str(path))
    say(f"Loaded the saved teacher: {len(history)} epochs.")
    return TeacherRun(teacher.eval(), history)


def find_saved(profile: Profile, folder: str = "") -> Path:
    """The folder of a profile's teacher and arms, for a notebook.

    Args:
        profile: the pocket's come with the kit, another's have to be trained before.
        folder: where a run of yours left them, instead.

    Raises:
        FileNotFoundError: they have not been trained.
    """
    if not folder and profile.name == profile.data == "pocket":
        return asset_path("pocket_arms")
    place = Path(folder or f"../runs/{profile.name}/arms")  # from notebooks/
    if not (place / f"{profile.recipe}.json").is_file():
        raise FileNotFoundError(
            f"Expected a teacher and arms of the profile {profile.name} in {place}, found none; "
            f"run: python -m dclip_kit distill --profile {profile.name} --out {place}"
        )
    return place
