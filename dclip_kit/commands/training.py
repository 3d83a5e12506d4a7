"""Commands that train: the teacher alone, and the whole walk from data to a report."""

import json as json_format
import time
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from dclip_kit.commands.terminal import choose_device, require_writable
from dclip_kit.config import Profile
from dclip_kit.printing import printable, say

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
    require_writable(out, "folder")
    from dclip_kit.profile_data import load_data
    from dclip_kit.runs import keep_settings, load_model, require_settings
    from dclip_kit.walk import obtain_features, obtain_teacher

    require_settings(settings, out)
    data = load_data(settings)
    clip = load_model(settings.clip, settings.pretrained, choose_device(device))
    keep_settings(settings, out)
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
    """Fine-tunes a CLIP on captioned pictures, with DCLIP and without a teacher, and measures both.

    Writes into OUT the teacher, the arms contrastive (the control) and dclip, each mixed with the
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
    began = time.monotonic()
    require_writable(out, "folder")
    from dclip_kit.distributed import is_main_process
    from dclip_kit.notebooks import format_report
    from dclip_kit.preparation import prepare_evaluation
    from dclip_kit.probe import shortcut_probe
    from dclip_kit.profile_data import load_data
    from dclip_kit.report import make_report, write_report
    from dclip_kit.runs import keep_settings, load_model, require_settings
    from dclip_kit.walk import (
        evaluate_arms,
        obtain_arms,
        obtain_features,
        obtain_teacher,
    )

    require_settings(settings, out)
    data = load_data(settings)
    say(
        f"{len(data.train):,} pictures to train on, {len(data.val):,} to choose on, "
        f"{len(data.test):,} to measure on."
    )
    clip = load_model(settings.clip, settings.pretrained, choose_device(device))
    keep_settings(settings, out)
    encoded = obtain_features(settings, clip, data.train, features or out)
    state = out / "checkpoints"
    run = obtain_teacher(
        settings,
        clip,
        None if teacher else encoded,
        teacher or out,
        state / "teacher.safetensors",
    )
    sets = prepare_evaluation(clip, data)
    arms = obtain_arms(settings, clip, run.teacher, data.train, encoded, sets, out, state)
    results = evaluate_arms(arms, sets)
    seen = obtain_features(settings, clip, data.test, features or out)
    report = make_report(
        settings,
        results,
        shortcut_probe(run.teacher, clip, seen, settings.regions),
        data.ceiling,
        time.monotonic() - began,
        trained_in_this_run=True,
        left_out=data.left_out and data.left_out.as_dict(),
    )
    if is_main_process():
        write_report(report, out / "report.json")
        print(format_report(json_format.loads(json_format.dumps(report))))
        print(
            f"Written to {printable(out)}. A folder for plain open_clip comes from: export "
            f"{printable(out / 'dclip')} --out FOLDER"
        )
    return 0
