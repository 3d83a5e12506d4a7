"""A run: from a profile to a teacher, arms and a report, all of it in one folder.

`run` reads like the method. Each of its steps is public: notebooks and studies call the same ones.
"""

import html
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dclip_kit.config import CONTROL, Profile, control_of, trains_teacher
from dclip_kit.data import CaptionedImages
from dclip_kit.evaluation.arms import (
    Arm,
    EvaluationSets,
    describe_origin,
    evaluate_arms,
    prepare_evaluation,
    prepare_training,
    read_origin,
    save_arm,
    train_arm,
    write_card,
)
from dclip_kit.evaluation.compare import (
    format_report,
    make_report,
    say_report,
    warn_of_captions,
    warn_of_few,
)
from dclip_kit.evaluation.inspection import probe_teacher
from dclip_kit.evaluation.profile_data import (
    ProfileData,
    load_data,
    load_uncaptioned,
    require_data,
)
from dclip_kit.evaluation.seen import (
    TRAINING,
    SeenPictures,
    add_trained,
    describe_seen,
    leave_out_seen,
    load_seen,
)
from dclip_kit.features.extract import encode_pictures, load_or_extract_features
from dclip_kit.features.store import EncodedPictures, FrozenFeatures, differing_entries
from dclip_kit.models.clip import ClipBundle, load_clip, tag_for
from dclip_kit.models.denoiser import Denoiser, load_denoiser
from dclip_kit.models.detector import locate_weights
from dclip_kit.models.teacher import (
    MetaTeacher,
    RegionTeacher,
    build_teacher,
    kind_of,
    load_teacher,
    require_teacher,
    save_teacher,
)
from dclip_kit.models.weights import choose_parameters
from dclip_kit.runtime.files import read_record, write_record
from dclip_kit.runtime.printing import say
from dclip_kit.runtime.processes import is_main_process
from dclip_kit.training import (
    PictureTargets,
    TeacherRun,
    Term,
    choose_terms,
    train_region_teacher,
    train_teacher,
)
from dclip_kit.training.lessons import prepare_lessons, prepare_rehearsal

SETTINGS, REPORT = "settings.json", "report.json"  # of a run's folder, beside its models' folders


def run(
    profile: Profile,
    out: Path,
    *,
    teacher: Path | None = None,
    features: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Fine-tunes a CLIP by a profile's recipe and by its control, and measures both.

    Called again with the same arguments, it goes on where it was stopped.

    Args:
        profile: all settings.
        out: the folder of the run: its settings, a folder for each model, checkpoints, the report.
        teacher: the folder of a trained teacher, to be used instead of training one.
        features: the folder that keeps frozen features; left out, `out`.
        device: where to compute.

    Returns:
        The report, as `make_report` makes it.

    Raises:
        ValueError: the folder has a run of other settings; data cannot be read or is too little; or
            the CLIP, the teacher or the policy do not fit each other.
        FileNotFoundError: a file that the profile names is not there.
    """
    began = time.monotonic()
    begun = begin(profile, out, teacher, device)
    clip, data, regions, features = begun.clip, begun.data, profile.regions, features or out
    others = load_uncaptioned(profile, data)
    say_counts(data, others)

    captioned = encode_pictures(clip, data.train, regions, features)
    taught_by = obtain_teacher(begun, captioned.features, teacher)
    uncaptioned = encode_pictures(clip, others, regions, features) if others else None
    sets = prepare_evaluation(clip, data)
    arms = train_arms(begun, captioned, sets, taught_by, uncaptioned)

    results = evaluate_arms(arms, sets)
    probe = None
    if taught_by:
        tested = load_or_extract_features(clip, data.test, regions, features)
        probe = probe_teacher(taught_by, clip, tested, regions)
    report = make_report(
        profile,
        results,
        probe,
        data.ceiling,
        time.monotonic() - began,
        [name for name in arms if name != "clip"],
        left_out=data.left_out and data.left_out.as_dict(),
        notes=list_notes(data, clip),
    )
    save_report(report, out)
    return report


def run_teacher(
    profile: Profile, out: Path, *, features: Path | None = None, device: str = "cpu"
) -> TeacherRun | None:
    """The beginning of `run`, up to the teacher; `run` goes on there."""
    begun = begin(profile, out, device=device)
    say_counts(begun.data, None)
    captioned = encode_pictures(begun.clip, begun.data.train, profile.regions, features or out)
    return obtain_teacher(begun, captioned.features)


# What a run begins with


@dataclass(frozen=True, eq=False)
class Begun:
    """What a run works with.

    Attributes:
        profile: its settings.
        out: its folder.
        clip: the untouched CLIP.
        data: without what its CLIP or its teacher has trained on.
        seen: by that CLIP and that teacher, and by whatever trains on the captioned pictures.
    """

    profile: Profile
    out: Path
    clip: ClipBundle
    data: ProfileData
    seen: SeenPictures


def begin(profile: Profile, out: Path, teacher: Path | None = None, device: str = "cpu") -> Begun:
    """Loads CLIP and data once all is checked that can be, and writes the settings down.

    Args:
        profile, out, teacher, device: as in `run`.

    Raises:
        FileNotFoundError, ValueError: as `run`.
    """
    require_settings(profile, out)
    require_data(profile)
    clip = load_clip(profile.clip, tag_for(profile.clip, profile.pretrained), device)
    require_trainable(profile, clip)
    if teacher:
        require_same_view(profile, clip, teacher)
    data = load_data(profile)
    models = {str(each): load_seen(each) for each in (teacher, profile.clip) if each}
    before = {name: seen for name, seen in models.items() if seen}
    for name, seen in before.items():
        data = leave_out_seen(data, seen, name)
    if is_main_process():
        write_record(profile.as_dict(), out / SETTINGS)
    # The pocket's labelled pictures to choose on are apart from those to measure on.
    labelled = () if profile.zero_shot == "pocket" else data.zero_shot_val.paths
    by_content = profile.leak_guard == "content"
    seen = describe_seen(data.train, data.val, labelled, by_content, list(before.values()))
    return Begun(profile, out, clip, data, seen)


def say_counts(data: ProfileData, uncaptioned: CaptionedImages | None) -> None:
    """Prints how many pictures there are, of each kind."""
    more = f" and {len(uncaptioned):,} without captions" if uncaptioned else ""
    say(
        f"{len(data.train):,} pictures with captions{more} to train on, {len(data.val):,} to "
        f"choose on, {len(data.test):,} to measure on."
    )


def require_settings(settings: Profile, folder: Path) -> None:
    """Checks that a run's folder has no settings yet, or these.

    Raises:
        ValueError: it has others, or a run of an earlier version.
    """
    path = folder / SETTINGS
    if not path.exists():
        return
    if (folder / "pictures.json").is_file():
        raise ValueError(
            f"Expected a run of this version in {folder}, got one whose models are no folders of "
            "their own; name another --out."
        )
    differing = read_record(path, lambda kept: differing_entries(kept, settings.as_dict()))
    if differing:
        raise ValueError(
            f"Expected the settings of the run in {folder}, but they differ in "
            f"{', '.join(differing)}; give the same ones to continue it, or another --out."
        )


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


def require_same_view(profile: Profile, clip: ClipBundle, teacher: Path) -> None:
    """Checks that a teacher is of a profile's kind, and saw regions as it makes them, by its CLIP.

    Raises:
        FileNotFoundError, ValueError: it is not there, or does not.
    """
    _, settings = load_teacher(teacher)
    require_teacher(settings, teacher_settings(profile), str(teacher))
    origin = read_origin(teacher)
    if origin is None:
        raise FileNotFoundError(
            f"Expected {TRAINING} beside the teacher in {teacher}, which says what it has seen, "
            "found none; train another."
        )
    kept = {"clip": origin.digest, "regions": origin.profile.as_dict()["regions"]}
    own = {"clip": clip.digest, "regions": profile.as_dict()["regions"]}
    if differing := differing_entries(kept, own):
        raise ValueError(
            f"Expected a teacher in {teacher} of the same CLIP and regions, but they differ in "
            f"{', '.join(differing)}; take its settings, or train another."
        )


# Teachers


def teacher_settings(profile: Profile) -> Any:
    """The settings of the kind of teacher that a profile trains."""
    return profile.region_teacher if profile.teacher_model == "region" else profile.teacher


def obtain_teacher(
    begun: Begun, features: FrozenFeatures, trained: Path | None = None
) -> TeacherRun | None:
    """A run's teacher: trained now, and saved; None where its recipe has none of its own.

    Args:
        begun: the run.
        features: of the training data.
        trained: the folder of a teacher that is there, to be loaded instead.
    """
    profile, out = begun.profile, begun.out
    if not trains_teacher(profile):
        return None
    if trained:
        return load_saved_teacher(trained)
    state = out / "checkpoints" / "teacher.safetensors"
    run = train_teacher_of(profile, features, state, begun.clip.device)
    if is_main_process():
        save_teacher_run(run, out / kind_of(run.settings), profile, begun.clip, begun.seen)
    return run


def train_teacher_of(
    profile: Profile,
    features: FrozenFeatures,
    checkpoint: Path | None = None,
    device: torch.device | str = "cpu",
) -> TeacherRun:
    """Trains the kind of teacher that a profile has, and says so; otherwise as `train_teacher`."""
    settings, seed = teacher_settings(profile), profile.seed
    if profile.teacher_model == "region":
        run = train_region_teacher(features, settings, seed, checkpoint, device=device)
    else:
        run = train_teacher(features, settings, profile.regions, seed, checkpoint, device=device)
    say(f"Trained the teacher now: {len(run.history)} epochs.")
    return run


def save_teacher_run(
    run: TeacherRun, folder: Path, profile: Profile, clip: ClipBundle, seen: SeenPictures
) -> None:
    """Writes a teacher as a folder, and beside its weights how it came about.

    Args:
        run: of its training.
        folder: to write to.
        profile: by which it was trained.
        clip: the untouched one, whose features it reads.
        seen: the pictures that it has trained on.
    """
    seen.save(folder)  # before there are weights whose pictures would not be known
    write_record({**describe_origin(profile, clip), "history": run.history}, folder / TRAINING)
    save_teacher(run.teacher, run.settings, folder)


def load_saved_teacher(folder: Path) -> TeacherRun:
    """Reads what `save_teacher_run` wrote, and says so.

    Raises:
        FileNotFoundError, ValueError: as `load_teacher`, or its record is damaged or not there.
    """
    teacher, settings = load_teacher(folder)
    history = read_record(folder / TRAINING, lambda record: list(record["history"]))
    say(f"Loaded the saved teacher: {len(history)} epochs.")
    return TeacherRun(teacher, settings, history)


# Students


def prepare_terms(
    profile: Profile,
    clip: ClipBundle,
    captioned: EncodedPictures,
    teacher: MetaTeacher | RegionTeacher | ClipBundle | None = None,
    uncaptioned: EncodedPictures | None = None,
    rehearsal: PictureTargets | None = None,
) -> list[Term]:
    """The terms of a profile's recipe, with all that they learn from.

    Args:
        profile: whose recipe it is.
        clip: the untouched one.
        captioned: the training data.
        teacher, uncaptioned: as in `prepare_lessons`; the teacher of a recipe that has one.
        rehearsal: as `prepare_rehearsal` gives it; left out, it is made where it is needed.
    """
    student = profile.student
    if rehearsal is None and student.rehearsal_weight:
        rehearsal = prepare_rehearsal(clip, captioned, profile.regions)
    targets, others = None, None
    if teacher is not None and student.distillation_weight:
        settings = profile.regions, profile.region_teacher
        targets, others = prepare_lessons(teacher, captioned, uncaptioned, *settings)
    return choose_terms(
        student,
        captioned,
        targets,
        uncaptioned=others,
        rehearsal=rehearsal,
        denoiser=choose_denoiser(profile, clip),
        seed=profile.seed,
    )


def choose_denoiser(profile: Profile, clip: ClipBundle) -> Denoiser | None:
    """A profile's denoiser, on the device of its CLIP; None where its student learns from none."""
    return load_denoiser(profile.denoiser, clip) if profile.student.sds_weight else None


def train_arms(
    begun: Begun,
    captioned: EncodedPictures,
    sets: EvaluationSets,
    teacher: TeacherRun | None = None,
    uncaptioned: EncodedPictures | None = None,
) -> dict[str, Arm]:
    """Trains a run's recipe and its control, and saves both in folders of their names.

    Args:
        begun: the run.
        captioned: the training data.
        sets: what the arms are chosen on.
        teacher: left out for a recipe that has none, or whose teacher is the control.
        uncaptioned: pictures to learn from without captions.

    Returns:
        clip (untouched), contrastive_rehearsal and the recipe's arm, by name.
    """
    profile, clip, seen = begun.profile, begun.clip, begun.seen
    control = control_of(profile)
    rehearsal = prepare_rehearsal(clip, captioned, control.regions)
    shown = prepare_training(clip, captioned, sets, profile.selection)
    arms = {"clip": Arm(clip)}
    for name, settings in {CONTROL: control, profile.recipe: profile}.items():
        teaches = teacher.teacher if teacher else arms.get(CONTROL, arms["clip"]).clip
        terms = prepare_terms(settings, clip, captioned, teaches, uncaptioned, rehearsal)
        state = begun.out / "checkpoints" / f"{name}.safetensors"
        arms[name] = train_arm(
            clip, shown, terms, settings.student, seed=profile.seed, checkpoint=state
        )
        if uncaptioned and settings.student.uncaptioned_batch:
            seen = add_trained(seen, uncaptioned.dataset, profile.leak_guard == "content")
        if is_main_process():
            save_arm(arms[name], begun.out / name, describe_origin(settings, clip), seen)
    say("Trained the arms now.")
    return arms


def list_notes(data: ProfileData, clip: ClipBundle) -> list[str]:
    """What is to be known of figures that were measured on data, in sentences."""
    few = [warn_of_few(len(part), part.source) for part in (data.test, data.zero_shot)]
    return [*filter(None, (*few, warn_of_captions(data.test, clip)))]


def save_report(report: dict[str, Any], out: Path) -> None:
    """Writes a run's report, and into the cards of its models what was measured."""
    if is_main_process():
        write_record(report, out / REPORT)
        table, _, _ = format_report(report).partition("\n\n")
        *sentences, _ = say_report(report)  # but for how long it took
        every = (html.escape(each, quote=False) for each in (*sentences, *report["notes"]))
        said = ["- " + each.replace("[", r"\[") for each in every]  # no link
        for name in report["arms"].keys() - {"clip"}:
            write_card(out / name, "\n".join([table, "", *said]))
