"""A run: from a profile to a teacher, arms and a report, all in one folder.

`run` reads like the method. Its steps are public: notebooks and studies call them, too.
"""

import html
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dclip_kit.config import CONTROL, Profile, control_of, require_recipe, trains_teacher
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
    say_from_pictures,
    say_report,
    warn_of_captions,
    warn_of_few,
)
from dclip_kit.evaluation.evaluate import evaluate_zero_shot, prepare_zero_shot
from dclip_kit.evaluation.inspection import probe_teacher
from dclip_kit.evaluation.profile_data import (
    ProfileData,
    is_pocket,
    lacks_captions,
    load_data,
    load_uncaptioned,
    locate_uncaptioned,
    read_anchors,
    require_data,
)
from dclip_kit.evaluation.seen import (
    TRAINING,
    SeenPictures,
    add_trained,
    describe_seen,
    leave_out_seen,
    leave_out_trained_labelled,
    load_seen,
)
from dclip_kit.features.extract import encode_pictures, load_or_extract_features
from dclip_kit.features.store import EncodedPictures, FrozenFeatures, differing_entries
from dclip_kit.metrics import retention
from dclip_kit.models.adapters import choose_layers
from dclip_kit.models.clip import ClipBundle, choose_device, load_clip, tag_for
from dclip_kit.models.denoiser import Denoiser, load_denoiser
from dclip_kit.models.detector import locate_weights
from dclip_kit.models.encode import encode_texts, require_tokens
from dclip_kit.models.teacher import (
    MetaTeacher,
    RegionTeacher,
    build_teacher,
    kind_of,
    load_teacher,
    require_teacher,
    save_teacher,
)
from dclip_kit.models.weights import choose_parameters, interpolate, round_changed
from dclip_kit.runtime.files import read_record, write_record
from dclip_kit.runtime.printing import say
from dclip_kit.runtime.processes import is_main_process
from dclip_kit.training import (
    PictureTargets,
    TeacherRun,
    Term,
    choose_region_teacher,
    choose_terms,
    distill,
    train_teacher,
)
from dclip_kit.training.lessons import prepare_lessons, prepare_rehearsal

UNCHOSEN_ALPHA = 0.5  # of the trained weights, where no captioned val can choose it
SETTINGS, REPORT = "settings.json", "report.json"  # of a run's folder, beside its models' folders


def run(
    profile: Profile,
    out: Path,
    *,
    teacher: Path | None = None,
    features: Path | None = None,
    device: str = "auto",
    keep_going: bool = False,
) -> dict[str, Any]:
    """Fine-tunes a CLIP by a profile's recipe and by its control, and measures both.

    From a folder of pictures without captions (`Profile.captions` none), as `learn_from_pictures`.
    Call it again with the same arguments to continue where it stopped.

    Args:
        profile: all settings.
        out: the folder of the run: its settings, a folder for each model, checkpoints, the report.
        teacher: the folder of a trained teacher, to use instead of training one.
        features: the folder to store frozen features in; `out` if left out.
        device: where to compute; "auto" is the GPU if there is one.
        keep_going: whether to train on though an epoch has ruined a model.

    Returns:
        The report, from `make_report` or `learn_from_pictures`.

    Raises:
        ValueError: the folder has a run with other settings; data cannot be read or is too little;
            the CLIP, the teacher and the policy do not fit each other; or a model has collapsed.
        FileNotFoundError: a file that the profile names is missing.
    """
    began = time.monotonic()
    begun = begin(profile, out, teacher, device)
    clip, data, regions, features = begun.clip, begun.data, profile.regions, features or out
    say_counts(data, begun.uncaptioned)

    captioned = encode_pictures(clip, data.train, regions, features)
    teacher_run = obtain_teacher(begun, captioned.features, teacher, features)
    if teacher_run and not data.val:
        return learn_from_pictures(begun, captioned, teacher_run)
    uncaptioned = None
    if begun.uncaptioned:
        uncaptioned = encode_pictures(clip, begun.uncaptioned, regions, features)
    sets = prepare_evaluation(clip, data)
    arms = train_arms(
        begun, captioned, sets, teacher_run, uncaptioned, stop_collapsed=not keep_going
    )

    results = evaluate_arms(arms, sets)
    probe = None
    if teacher_run:
        test_features = load_or_extract_features(clip, data.test, regions, features)
        probe = probe_teacher(teacher_run, clip, test_features, regions)
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
    profile: Profile, out: Path, *, features: Path | None = None, device: str = "auto"
) -> TeacherRun | None:
    """The first part of `run`, up to the teacher; `run` continues from there."""
    begun = begin(profile, out, device=device, with_uncaptioned=False)
    say_counts(begun.data, None)
    store = features or out
    captioned = encode_pictures(begun.clip, begun.data.train, profile.regions, store)
    return obtain_teacher(begun, captioned.features, store=store)


# The start of a run


@dataclass(frozen=True, eq=False)
class Begun:
    """What a run works with.

    Attributes:
        profile: its settings.
        out: its folder.
        clip: the untouched CLIP.
        data: what is measured and chosen on is without pictures that the run, its CLIP or its
            teacher trains on.
        uncaptioned: pictures without captions to train on, if any.
        seen: what CLIP and teacher have seen, and what training on the captioned pictures sees.
    """

    profile: Profile
    out: Path
    clip: ClipBundle
    data: ProfileData
    uncaptioned: CaptionedImages | None
    seen: SeenPictures


def begin(
    profile: Profile,
    out: Path,
    teacher: Path | None = None,
    device: str = "auto",
    with_uncaptioned: bool = True,
) -> Begun:
    """Checks what can be checked, loads CLIP and data, and saves the settings.

    Args:
        profile, out, teacher, device: as in `run`.
        with_uncaptioned: whether pictures without captions are read, too.

    Raises:
        FileNotFoundError, ValueError: as `run`.
    """
    require_recipe(profile)
    require_settings(profile, out)
    require_data(profile)
    if teacher and not trains_teacher(profile):
        raise ValueError(
            f"Expected no teacher for the recipe {profile.recipe}, which trains none, got "
            f"{teacher}; leave it out, or take the recipe region_taught."
        )
    if teacher and lacks_captions(profile):
        raise ValueError(
            f"Expected no --teacher where no picture has a caption, got {teacher}; leave it out."
        )
    device = choose_device(device)
    clip = load_clip(profile.clip, tag_for(profile.clip, profile.pretrained), device)
    require_trainable(profile, clip)
    if teacher:
        require_same_view(profile, clip, teacher)
    data = load_data(profile)
    records = {str(model): load_seen(model) for model in (teacher, profile.clip) if model}
    before = {name: seen for name, seen in records.items() if seen}
    for name, seen in before.items():
        data = leave_out_seen(data, seen, name)
    uncaptioned = load_uncaptioned(profile, data) if with_uncaptioned else None
    by_content = profile.leak_guard == "content"
    own_labelled = not is_pocket(profile.zero_shot)  # whose pictures are seen nowhere else
    labelled = data.zero_shot_val.paths if own_labelled else ()
    seen = describe_seen(data.train, data.val, labelled, by_content, list(before.values()))
    if own_labelled:
        trained = add_trained(seen, uncaptioned, by_content) if uncaptioned else seen
        data = leave_out_trained_labelled(data, trained)
    require_settings(profile, out)  # another run may have begun there meanwhile
    if is_main_process():
        write_record(profile.as_dict(), out / SETTINGS)
    return Begun(profile, out, clip, data, uncaptioned, seen)


def say_counts(data: ProfileData, uncaptioned: CaptionedImages | None) -> None:
    """Prints the number of pictures of each kind."""
    if not data.val:
        say(f"{len(data.train):,} pictures without captions to train on.")
        return
    more = f" and {len(uncaptioned):,} without captions" if uncaptioned else ""
    say(
        f"{len(data.train):,} pictures with captions{more} to train on, {len(data.val):,} to "
        f"choose on, {len(data.test):,} to measure on."
    )


def require_settings(settings: Profile, folder: Path) -> None:
    """Checks that a run's folder has no settings yet, or the same.

    Raises:
        ValueError: its settings differ.
    """
    path = folder / SETTINGS
    if not path.exists():
        return
    differing = read_record(path, lambda kept: differing_entries(kept, settings.as_dict()))
    if differing:
        raise ValueError(
            f"Expected the settings of the run in {folder}, but they differ in "
            f"{', '.join(differing)}; give the same ones to continue it, or another --out."
        )


def require_trainable(profile: Profile, clip: ClipBundle) -> None:
    """Checks that a profile fits its CLIP and other models, before anything is computed.

    Raises:
        ValueError: the policy matches nothing in the image tower, the teacher does not fit CLIP, or
            settings contradict one another; or as `choose_layers` or `load_denoiser`.
        FileNotFoundError: the detector's weights are missing.
        ImportError: as `choose_layers` or `load_denoiser`.
    """
    student = profile.student
    ranks = student.distillation_weight and student.distillation == "anchored_kl"
    if profile.anchor_texts and not ranks:
        raise ValueError(
            "Expected a student that ranks texts with anchor_texts, got the recipe "
            f"{profile.recipe} with distillation {student.distillation}; leave them out."
        )
    copies_texts = not ranks and student.distillation_weight and student.train_text
    given = profile.teacher_model != "cross_attention" and student.uncaptioned_batch
    if copies_texts and given and locate_uncaptioned(profile):
        raise ValueError(
            "Expected no uncaptioned pictures with student.distillation cosine and "
            "student.train_text, which copies captions, too; leave one of the three out."
        )
    control_of(profile)  # refuses what the control could not train with
    choose_parameters(clip, profile.student.train)
    if profile.student.lora:
        choose_layers(clip, profile.student.train)
    if trains_teacher(profile):
        build_teacher(clip.embed_dim, teacher_settings(profile))
        if profile.teacher_model == "cross_attention":
            require_tokens(clip)
    locate_weights(profile.regions.detector)
    choose_denoiser(profile, clip)


def require_same_view(profile: Profile, clip: ClipBundle, teacher: Path) -> None:
    """Checks that a teacher has a profile's kind, and was trained with its CLIP and its regions.

    Raises:
        FileNotFoundError, ValueError: the teacher is missing, or something differs.
    """
    _, settings = load_teacher(teacher)
    require_teacher(settings, teacher_settings(profile), str(teacher))
    origin = read_origin(teacher)
    if origin is None:
        raise FileNotFoundError(
            f"Expected {TRAINING} beside the teacher in {teacher}, found none, so that its CLIP "
            "and regions are unknown; train another."
        )
    saved = {"clip": origin.digest, "regions": origin.profile.as_dict()["regions"]}
    expected = {"clip": clip.digest, "regions": profile.as_dict()["regions"]}
    if differing := differing_entries(saved, expected):
        raise ValueError(
            f"Expected a teacher in {teacher} with the same CLIP and regions, but they differ in "
            f"{', '.join(differing)}; take its settings, or train another."
        )


# Teachers


def teacher_settings(profile: Profile) -> Any:
    """The settings of the kind of teacher that a profile trains."""
    return profile.region_teacher if profile.teacher_model == "region" else profile.teacher


def obtain_teacher(
    begun: Begun,
    features: FrozenFeatures,
    trained: Path | None = None,
    store: Path | None = None,
) -> TeacherRun | None:
    """Trains and saves a run's teacher; None if its recipe has no teacher of its own.

    Args:
        begun: the run.
        features: of the training data.
        trained: the folder of a trained teacher, to load instead.
        store: the folder for features of val, which some teachers are chosen on.
    """
    profile, out = begun.profile, begun.out
    if not trains_teacher(profile):
        return None
    if trained:
        return load_saved_teacher(trained)
    state = out / "checkpoints" / "teacher.safetensors"
    val = None
    if chooses_teacher(profile) and begun.data.val:
        val = load_or_extract_features(begun.clip, begun.data.val, profile.regions, store)
    run = train_teacher_of(profile, features, state, begun.clip.device, val)
    if is_main_process():
        save_teacher_run(run, out / kind_of(run.settings), profile, begun.clip, begun.seen)
    return run


def train_teacher_of(
    profile: Profile,
    features: FrozenFeatures,
    checkpoint: Path | None = None,
    device: torch.device | str = "cpu",
    val: FrozenFeatures | None = None,
) -> TeacherRun:
    """Trains a profile's kind of teacher, or takes the mean of picture and regions; prints that.

    Args:
        profile: with the teacher's settings.
        features: of the training pictures.
        checkpoint, device: as in `train_teacher`.
        val: as in `choose_region_teacher`.
    """
    settings, seed = teacher_settings(profile), profile.seed
    if chooses_teacher(profile):
        run = choose_region_teacher(features, settings, val, device)
        say(say_chosen(run))
        return run
    run = train_teacher(features, settings, profile.regions, seed, checkpoint, device=device)
    say(f"Trained the teacher now: {len(run.history)} epochs.")
    return run


def chooses_teacher(profile: Profile) -> bool:
    """Whether a profile's teacher is chosen on val, not trained: `RegionTeacherSettings.train`."""
    return profile.teacher_model == "region" and profile.region_teacher.train == "never"


def say_chosen(run: TeacherRun) -> str:
    """What was chosen on val, as a sentence."""
    chosen = run.chosen
    recalls = ", ".join(f"{name}: {100 * x:.1f} %" for name, x in chosen["val_recall_at_1"].items())
    mean = f"the picture plus its regions' mean, weighted {chosen['weight']:g}"
    reason = f"chosen on val (R@1 text→image: {recalls})" if recalls else "there is no val to ask"
    return f"The teacher is {mean}; {reason}."


def save_teacher_run(
    run: TeacherRun, folder: Path, profile: Profile, clip: ClipBundle, seen: SeenPictures
) -> None:
    """Writes a teacher as a folder, with a record of its training.

    Args:
        run: the trained teacher.
        folder: to write to.
        profile: that it was trained by.
        clip: the untouched CLIP, whose features it reads.
        seen: the pictures that it has trained on.
    """
    seen.save(folder)  # first, so that no weights are ever without this record
    record = {**describe_origin(profile, clip), "history": run.history, "chosen": run.chosen}
    write_record(record, folder / TRAINING)
    save_teacher(run.teacher, run.settings, folder)


def load_saved_teacher(folder: Path) -> TeacherRun:
    """Reads what `save_teacher_run` wrote, and prints that.

    Raises:
        FileNotFoundError, ValueError: as `load_teacher`, or its record is missing or damaged.
    """
    teacher, settings = load_teacher(folder)
    history, chosen = read_record(
        folder / TRAINING, lambda record: (list(record["history"]), record.get("chosen", {}))
    )
    run = TeacherRun(teacher, settings, history, chosen)
    say(say_chosen(run) if chosen else f"Loaded the saved teacher: {len(history)} epochs.")
    return run


# Students


def prepare_terms(
    profile: Profile,
    clip: ClipBundle,
    captioned: EncodedPictures,
    teacher: MetaTeacher | RegionTeacher | ClipBundle | None = None,
    uncaptioned: EncodedPictures | None = None,
    rehearsal: PictureTargets | None = None,
) -> list[Term]:
    """The loss terms of a profile's recipe, with the data that they learn from.

    Args:
        profile: with the recipe.
        clip: the untouched CLIP.
        captioned: the training data.
        teacher, uncaptioned: as in `prepare_lessons`; a teacher only if the recipe has one.
        rehearsal: from `prepare_rehearsal`; if left out, it is made where needed.
    """
    student = profile.student
    if rehearsal is None and student.rehearsal_weight:
        rehearsal = prepare_rehearsal(clip, captioned, profile.regions)
    targets, uncaptioned_targets, anchors = None, None, None
    if profile.captions == "none":
        student = replace(student, contrastive_weight=0.0)
    if teacher is not None and student.distillation_weight:
        if profile.anchor_texts:
            anchors = encode_texts(clip, read_anchors(profile.anchor_texts))
        settings = profile.regions, profile.region_teacher
        targets, uncaptioned_targets = prepare_lessons(teacher, captioned, uncaptioned, *settings)
    return choose_terms(
        student,
        captioned,
        targets,
        uncaptioned=uncaptioned_targets,
        rehearsal=rehearsal,
        denoiser=choose_denoiser(profile, clip),
        anchors=anchors,
        seed=profile.seed,
    )


def choose_denoiser(profile: Profile, clip: ClipBundle) -> Denoiser | None:
    """A profile's denoiser, on the device of its CLIP; None if its student uses none."""
    return load_denoiser(profile.denoiser, clip) if profile.student.sds_weight else None


def train_arms(
    begun: Begun,
    captioned: EncodedPictures,
    sets: EvaluationSets,
    teacher: TeacherRun | None = None,
    uncaptioned: EncodedPictures | None = None,
    on_arm: Callable[[str], None] | None = None,
    stop_collapsed: bool = False,
) -> dict[str, Arm]:
    """Trains a run's recipe and its control, and saves each in a folder of its name.

    Args:
        begun: the run.
        captioned: the training data.
        sets: the data that the arms are chosen on.
        teacher: left out for a recipe that has none, or whose teacher is the control.
        uncaptioned: pictures to learn from without captions.
        on_arm: called with the name of each arm when it is trained and saved.
        stop_collapsed: whether an arm that an epoch has ruined raises an error.

    Returns:
        clip (untouched), contrastive_rehearsal and the recipe's arm, by name.
    """
    profile, clip, seen = begun.profile, begun.clip, begun.seen
    control = control_of(profile)
    rehearsal = prepare_rehearsal(clip, captioned, control.regions)
    training_set = prepare_training(clip, captioned, sets, profile.selection, stop_collapsed)
    arms = {"clip": Arm(clip)}
    for name, settings in {CONTROL: control, profile.recipe: profile}.items():
        teaching_model = teacher.teacher if teacher else arms.get(CONTROL, arms["clip"]).clip
        terms = prepare_terms(settings, clip, captioned, teaching_model, uncaptioned, rehearsal)
        state = begun.out / "checkpoints" / f"{name}.safetensors"
        arms[name] = train_arm(
            clip, training_set, terms, settings.student, seed=profile.seed, checkpoint=state
        )
        if uncaptioned and settings.student.uncaptioned_batch:
            seen = add_trained(seen, uncaptioned.dataset, profile.leak_guard == "content")
        if is_main_process():
            save_arm(arms[name], begun.out / name, describe_origin(settings, clip), seen)
        if on_arm:
            on_arm(name)
    say("Trained the arms now.")
    return arms


def learn_from_pictures(
    begun: Begun, encoded: EncodedPictures, teacher: TeacherRun
) -> dict[str, Any]:
    """The students' part of a run from pictures alone, of which none has a caption.

    There is no control, and half of the new weights are kept, since nothing can choose. What the
    arm forgets is measured; what it finds, only captioned pictures can tell.

    Args:
        begun: the run.
        encoded: its pictures.
        teacher: the mean of picture and regions.

    Returns:
        What was measured, as written to report.json.
    """
    profile, clip, out, data = begun.profile, begun.clip, begun.out, begun.data
    zero_shot = prepare_zero_shot(clip, data.zero_shot, read=False, templates=data.templates)
    texts = read_anchors(profile.anchor_texts)
    encoded = lend_text(encoded, texts[0], encode_texts(clip, texts[:1]))
    terms = prepare_terms(profile, clip, encoded, teacher.teacher)
    state = out / "checkpoints" / f"{profile.recipe}.safetensors"
    trained = distill(clip, encoded, terms, profile.student, seed=profile.seed, checkpoint=state)
    student = interpolate(clip, trained.student, UNCHOSEN_ALPHA)
    round_changed(clip, student)

    before, after = (evaluate_zero_shot(each, zero_shot) for each in (clip, student))
    report = {
        "captions": "none",
        "recipe": profile.recipe,
        "pictures": len(encoded.dataset),
        "anchors": len(texts),
        "alpha": UNCHOSEN_ALPHA,
        "teacher": say_chosen(teacher),
        "zero_shot": {"clip": before.top1, profile.recipe: after.top1},
        "retention": asdict(retention(before.correct, after.correct)) if before.top1 else None,
        "least_retention": profile.selection.least_retention,
        "notes": [],
    }
    if is_main_process():
        arm = Arm(student, UNCHOSEN_ALPHA, history=trained.history)
        save_arm(arm, out / profile.recipe, describe_origin(profile, clip), begun.seen)
        write_card(out / profile.recipe, "\n".join(f"- {x}" for x in say_from_pictures(report)))
        write_record(report, out / REPORT)
    return report


def lend_text(
    encoded: EncodedPictures, text: str, text_features: Float[Tensor, "1 embed"]
) -> EncodedPictures:
    """Gives all pictures one text: batches are planned by texts, and nothing learns from pairs."""
    count = len(encoded.features)
    features = replace(
        encoded.features,
        text=text_features.expand(count, -1),  # without a copy for each
        token_count=torch.zeros(count, dtype=torch.int64),
        image_of_text=torch.arange(count),
    )
    dataset = replace(encoded.dataset, captions=((text,),) * count)
    return replace(encoded, dataset=dataset, features=features)


def list_notes(data: ProfileData, clip: ClipBundle) -> list[str]:
    """Sentences on the limits of figures that were measured on data."""
    size_notes = [warn_of_few(len(part), part.source) for part in (data.test, data.zero_shot)]
    return [*filter(None, (*size_notes, warn_of_captions(data.test, clip)))]


def save_report(report: dict[str, Any], out: Path) -> None:
    """Writes a run's report, and its figures into the models' cards."""
    if is_main_process():
        write_record(report, out / REPORT)
        table, _, _ = format_report(report).partition("\n\n")
        *sentences, _ = say_report(report)  # all but the last, the time it took
        lines = (html.escape(text, quote=False) for text in (*sentences, *report["notes"]))
        # Escaped brackets make no Markdown link.
        bullets = ["- " + text.replace("[", r"\[") for text in lines]
        for name in report["arms"].keys() - {"clip"}:
            write_card(out / name, "\n".join([table, "", *bullets]))
