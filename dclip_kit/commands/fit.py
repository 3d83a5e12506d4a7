"""Commands that train: the teacher alone, and the whole walk from data to a report."""

import json as json_format
import time
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from dclip_kit.commands.terminal import choose_device, require_writable, warn_of_few
from dclip_kit.config import Profile
from dclip_kit.runtime.printing import printable, say

Settings = Annotated[Profile, arg(name="")]  # its fields are options of the command itself


def train_teacher(
    *, out: Path, settings: Settings, features: Path | None = None, device: str = "auto"
) -> int:
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
    began = time.monotonic()
    for folder in (out, features or out):
        require_writable(folder, "folder")
    from dclip_kit.evaluation.experiment import (
        describe_run,
        obtain_features,
        obtain_teacher,
        require_trainable,
    )
    from dclip_kit.evaluation.profile_data import load_data, require_data
    from dclip_kit.evaluation.runs import count_seconds, keep_settings, load_model, require_settings
    from dclip_kit.evaluation.seen import keep_seen

    if not settings.student.distillation_weight:
        raise ValueError(
            f"Expected a recipe with a teacher, got {settings.recipe}; take --recipe dclip."
        )
    require_settings(settings, out)
    require_data(settings)
    clip = load_model(settings.clip, settings.pretrained, choose_device(device))
    require_trainable(settings, clip)
    data = load_data(settings)
    keep_settings(settings, out)
    with count_seconds(out, began):
        keep_seen(describe_run(settings, data), out)
        encoded = obtain_features(settings, clip, data.train, features or out)
        obtain_teacher(settings, clip, encoded, out, out / "checkpoints" / "teacher.safetensors")
    return 0


def distill(
    *,
    out: Path,
    settings: Settings,
    teacher: Path | None = None,
    features: Path | None = None,
    device: str = "auto",
) -> int:
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
    began = time.monotonic()
    for folder in (out, features or out):
        require_writable(folder, "folder")
    from dclip_kit.evaluation.experiment import (
        describe_run,
        evaluate_arms,
        leave_out_taught,
        obtain_arms,
        obtain_features,
        obtain_teacher,
        require_trainable,
    )
    from dclip_kit.evaluation.preparation import prepare_evaluation
    from dclip_kit.evaluation.probe import shortcut_probe
    from dclip_kit.evaluation.profile_data import load_data, require_data
    from dclip_kit.evaluation.report import format_report, make_report, write_report
    from dclip_kit.evaluation.runs import count_seconds, keep_settings, load_model, require_settings
    from dclip_kit.evaluation.seen import keep_seen
    from dclip_kit.runtime.processes import is_main_process

    taught = bool(settings.student.distillation_weight)
    if teacher and not taught:
        raise ValueError(
            f"Expected no --teacher for the recipe {settings.recipe}, which has none, got "
            f"{teacher}; leave it out, or take --recipe dclip."
        )
    require_settings(settings, out)
    require_data(settings)
    clip = load_model(settings.clip, settings.pretrained, choose_device(device))
    require_trainable(settings, clip)
    loaded = obtain_teacher(settings, clip, None, teacher) if teacher else None
    data = load_data(settings)
    if loaded and teacher:
        data = leave_out_taught(data, teacher)
    say(
        f"{len(data.train):,} pictures to train on, {len(data.val):,} to choose on, "
        f"{len(data.test):,} to measure on."
    )
    keep_settings(settings, out)
    with count_seconds(out, began) as seconds:
        keep_seen(describe_run(settings, data, teacher), out)
        encoded = obtain_features(settings, clip, data.train, features or out)
        state = out / "checkpoints"
        run = loaded
        if taught and not run:
            run = obtain_teacher(settings, clip, encoded, out, state / "teacher.safetensors")
        sets = prepare_evaluation(clip, data)
        trained = run.teacher if run else None
        arms = obtain_arms(settings, clip, trained, data.train, encoded, sets, out, state)
        results = evaluate_arms(arms, sets)
        probe = None
        if run:
            seen = obtain_features(settings, clip, data.test, features or out)
            probe = shortcut_probe(run.teacher, clip, seen, settings.regions)
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
            write_report(report, out / "report.json")
            print(format_report(json_format.loads(json_format.dumps(report))))
            for part in (data.test, data.zero_shot):
                if note := warn_of_few(len(part), part.source):
                    print(note)
            print(
                f"Written to {printable(out)}. A folder for plain open_clip comes from: export "
                f"{printable(out / settings.recipe)} --out FOLDER"
            )
    return 0
