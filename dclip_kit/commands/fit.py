"""Commands that train: the teacher alone, and everything from data to a report."""

import time
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dclip_kit.commands.terminal import (
    choose_device,
    require_own_folder,
    require_writable,
    warn_of_few,
)
from dclip_kit.config import PROFILES, Profile, apply_recipe, require_recipe, trains_teacher
from dclip_kit.runtime.printing import printable, say

Settings = Annotated[Profile, arg(name="")]  # its fields are options of the command itself


def train_teacher(
    *, out: Path, settings: Settings, features: Path | None = None, device: str = "auto"
) -> None:
    """Trains the teacher that distill would train, and keeps it in OUT.

    Run again with the same options, it continues where it was stopped. --profile and --recipe
    choose what the options below are unless given.

    Args:
        out: the folder of the run, such as runs/mine; distill with the same options goes on there.
        settings: of the run.
        features: the folder that keeps encoded pictures, for several runs to share if they encode
            the same ones alike; else OUT.
        device: auto, cpu, cuda:0, …
    """
    require_recipe(settings)
    if not trains_teacher(settings):
        raise ValueError(
            f"Expected a recipe with a teacher of its own, got {settings.recipe}; take --recipe "
            "region_taught or dclip."
        )
    _run(out, settings, None, features or out, device, teacher_alone=True)


def distill(
    *,
    out: Path,
    settings: Settings,
    teacher: Path | None = None,
    features: Path | None = None,
    device: str = "auto",
) -> None:
    """Fine-tunes a CLIP by a recipe and by its control, and measures both.

    It learns from captioned pictures (--data) and, by default, from pictures without captions
    (--uncaptioned), which a region teacher labels. Writes into OUT the teacher if the recipe has
    one, the arms contrastive_rehearsal (the control) and the recipe's, each mixed with the
    untouched CLIP at the weight that is best on val, and report.json, whose table it prints. Run
    again with the same options, it continues where it was stopped. --profile and --recipe choose
    what the options below are unless given.

    Args:
        out: the folder of the run, such as runs/mine.
        settings: of the run.
        teacher: the folder of a trained teacher, to be used instead of training one.
        features: the folder that keeps encoded pictures, for several runs to share if they encode
            the same ones alike; else OUT.
        device: auto, cpu, cuda:0, …
    """
    require_recipe(settings)
    if teacher and not trains_teacher(settings):
        raise ValueError(
            f"Expected no --teacher for the recipe {settings.recipe}, which has none of its own, "
            f"got {teacher}; leave it out, or take --recipe region_taught."
        )
    _run(out, settings, teacher, features or out, device, teacher_alone=False)


def _run(
    out: Path,
    settings: Profile,
    teacher: Path | None,
    features: Path,
    device: str,
    teacher_alone: bool,
) -> None:
    began = time.monotonic()
    require_own_folder(out, "settings.json")
    require_own_folder(features, "settings.json", "features-*")
    from dclip_kit.evaluation import experiment, profile_data, runs
    from dclip_kit.evaluation.compare import format_report, make_report, warn_of_captions
    from dclip_kit.evaluation.inspection import region_probe, shortcut_probe
    from dclip_kit.runtime.files import write_record
    from dclip_kit.runtime.processes import is_main_process

    usual = apply_recipe(PROFILES.get(settings.name, settings), settings.recipe)
    taught_by = trains_teacher(settings) and not teacher and settings.teacher_model
    for part, heeded in (
        ("region_teacher", taught_by == "region"),
        ("teacher", taught_by == "cross_attention"),
        ("denoiser", settings.student.sds_weight),
    ):
        if not heeded and getattr(settings, part) != getattr(usual, part):
            say(f"The recipe {settings.recipe} does not heed what was set of {part}.")
    runs.require_settings(settings, out)
    profile_data.require_data(settings)
    clip = runs.load_model(settings.clip, settings.pretrained, choose_device(device))
    experiment.require_trainable(settings, clip)
    kind = experiment.teacher_settings(settings)
    if teacher:
        runs.require_same_view(settings, teacher)
    run = experiment.load_teacher(clip.embed_dim, kind, teacher) if teacher else None
    data = profile_data.load_data(settings)
    for folder in runs.begun_from(settings, teacher):
        data = runs.leave_out_seen(data, folder)
    others = None if teacher_alone else profile_data.load_uncaptioned(settings, data)
    more = f" and {len(others):,} without captions" if others else ""
    say(
        f"{len(data.train):,} pictures with captions{more} to train on, {len(data.val):,} to "
        f"choose on, {len(data.test):,} to measure on."
    )
    write_record(settings.as_dict(), out / runs.SETTINGS)
    seen, by_teacher = (runs.describe_run(settings, data, each, teacher) for each in (others, None))
    runs.keep_seen(seen, out, by_teacher)
    data = runs.leave_out_trained_labelled(data, seen)
    captioned = experiment.encode_pictures(settings, clip, data.train, features)
    states = out / "checkpoints"
    if trains_teacher(settings) and not run:
        run = experiment.train_and_save_teacher(
            settings, captioned.features, out, states / "teacher.safetensors"
        )
    if teacher_alone:
        return
    uncaptioned = experiment.encode_pictures(settings, clip, others, features) if others else None
    sets = experiment.prepare_evaluation(clip, data)
    arms = experiment.train_and_save_arms(
        settings,
        clip,
        run.teacher if run else None,
        captioned,
        uncaptioned,
        sets,
        out,
        states,
    )
    results = experiment.evaluate_arms(arms, sets)
    probed = None
    if run:
        tested = experiment.load_or_extract_features(settings, clip, data.test, features)
        probed = (
            region_probe(run.teacher, tested, settings.region_teacher)
            if settings.teacher_model == "region"
            else shortcut_probe(run.teacher, clip, tested, settings.regions)
        )
    said = make_report(
        settings,
        results,
        probed,
        data.ceiling,
        time.monotonic() - began,
        [name for name in arms if name != "clip"],
        left_out=data.left_out and data.left_out.as_dict(),
    )
    if is_main_process():
        write_record(said, out / "report.json")
        notes = [
            *(warn_of_few(len(part), part.source) for part in (data.test, data.zero_shot)),
            warn_of_captions(data.test, clip),
        ]
        print(format_report(said), *filter(None, notes), sep="\n")
        print(
            f"Written to {printable(out)}. A folder for plain open_clip comes from: export "
            f"{printable(out / settings.recipe)} --out FOLDER"
        )


def study(
    file: Positional[Path],
    *,
    work: Path = Path("runs/studies"),
    arms: tuple[str, ...] = (),
    repeat: tuple[str, int] | None = None,
    device: str = "auto",
) -> None:
    """Compares recipes over several seeds, as a TOML file says, and prints the table.

    Each training leaves its record in the folder beside the file that has the file's name, and is
    not run again; what they say together is written beside the file, as JSON.

    Args:
        file: the study, such as assets/studies/pocket_table.toml.
        work: the folder for features, teachers, checkpoints and trained arms.
        arms: of the study, to be trained now; left out, all.
        repeat: an arm and a seed, to train once more: prints what it finds now beside its record.
        device: auto, cpu, cuda:0, …
    """
    for folder in (work, file.parent):
        require_writable(folder, "folder")
    from dclip_kit.evaluation.compare import say_luck
    from dclip_kit.evaluation.runs import load_model
    from dclip_kit.evaluation.study import read_study, run_study
    from dclip_kit.evaluation.study_summary import format_repeated, format_study, summarise
    from dclip_kit.runtime.files import write_record

    plan = read_study(file)
    run_study(
        plan,
        load_model(plan.profile.clip, plan.profile.pretrained, choose_device(device)),
        work,
        arms,
        repeat,
    )
    if repeat:
        print(format_repeated(plan, work, *repeat))
        return
    result = summarise(plan)
    write_record(result, file.with_suffix(".json"))
    trained = {arm.profile.student.train_text for arm in plan.arms if arm.profile}
    print(format_study(result), *map(say_luck, sorted(trained)), sep="\n")
