"""Commands that train: the teacher alone, and everything from data to a report."""

import time
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from dclip_kit.commands.terminal import choose_device, require_writable, warn_of_few
from dclip_kit.config import Profile, require_recipe
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
    if not settings.student.distillation_weight:
        raise ValueError(
            f"Expected a recipe with a teacher, got {settings.recipe}; take --recipe dclip."
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
    """Fine-tunes a CLIP on captioned pictures by a recipe and by its control, and measures both.

    Writes into OUT the teacher if the recipe has one, the arms contrastive (the control) and the
    recipe's (dclip), each mixed with the untouched CLIP at the weight that is best on val, and
    report.json, whose table it prints. Run again with the same options, it continues where it was
    stopped. --profile and --recipe choose what the options below are unless given.

    Args:
        out: the folder of the run, such as runs/mine.
        settings: of the run.
        teacher: the folder of a trained teacher, to be used instead of training one.
        features: the folder that keeps encoded pictures, for several runs to share if they encode
            the same ones alike; else OUT.
        device: auto, cpu, cuda:0, …
    """
    require_recipe(settings)
    if teacher and not settings.student.distillation_weight:
        raise ValueError(
            f"Expected no --teacher for the recipe {settings.recipe}, which has none, got "
            f"{teacher}; leave it out, or take --recipe dclip."
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
    for folder in (out, features):
        require_writable(folder, "folder")
    from dclip_kit.evaluation import experiment, runs
    from dclip_kit.evaluation.arms import load_teacher
    from dclip_kit.evaluation.probe import shortcut_probe
    from dclip_kit.evaluation.records import write_record
    from dclip_kit.evaluation.report import format_report, make_report
    from dclip_kit.runtime.processes import is_main_process

    runs.require_settings(settings, out)
    experiment.require_data(settings)
    clip = runs.load_model(settings.clip, settings.pretrained, choose_device(device))
    experiment.require_trainable(settings, clip)
    run = load_teacher(clip.embed_dim, settings.teacher, teacher) if teacher else None
    data = experiment.load_data(settings)
    if teacher:
        data = experiment.leave_out_seen_by_teacher(data, teacher)
    say(
        f"{len(data.train):,} pictures to train on, {len(data.val):,} to choose on, "
        f"{len(data.test):,} to measure on."
    )
    with runs.count_seconds(out, began) as seconds:
        write_record(settings.as_dict(), out / runs.SETTINGS)
        runs.keep_seen(experiment.describe_run(settings, data, teacher), out)
        encoded = experiment.load_or_extract_features(settings, clip, data.train, features)
        states = out / "checkpoints"
        if settings.student.distillation_weight and not run:
            state = states / "teacher.safetensors"
            run = experiment.train_and_save_teacher(settings, encoded, out, state)
        if teacher_alone:
            return
        sets = experiment.prepare_evaluation(clip, data)
        trained = run.teacher if run else None
        arms = experiment.train_and_save_arms(
            settings, clip, trained, data.train, encoded, sets, out, states
        )
        results = experiment.evaluate_arms(arms, sets)
        probe = None
        if run:
            tested = experiment.load_or_extract_features(settings, clip, data.test, features)
            probe = shortcut_probe(run.teacher, clip, tested, settings.regions)
        report = make_report(
            settings,
            results,
            probe,
            data.ceiling,
            seconds(),
            trained_in_this_run=True,
            left_out=data.left_out and data.left_out.as_dict(),
        )
    if is_main_process():
        write_record(report, out / runs.REPORT)
        notes = [warn_of_few(len(part), part.source) for part in (data.test, data.zero_shot)]
        print(format_report(report), *filter(None, notes), sep="\n")
        print(
            f"Written to {printable(out)}. A folder for plain open_clip comes from: export "
            f"{printable(out / settings.recipe)} --out FOLDER"
        )
