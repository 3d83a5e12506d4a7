"""Commands that train: the teacher alone, and everything from data to a report."""

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from dclip_kit.commands.terminal import (
    choose_device,
    require_own_folder,
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
    _require_room(settings, out, features or out, None)
    from dclip_kit.evaluation.experiment import run_teacher

    run_teacher(settings, out, features=features, device=choose_device(device))


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
    (--uncaptioned), which a region teacher labels. Writes into OUT a folder for each model, the
    teacher if the recipe has one and the arms contrastive_rehearsal (the control) and the recipe's,
    each mixed with the untouched CLIP at the weight that is best on val; and report.json, whose
    table it prints. An arm's folder is one of open_clip's. Run again with the same options, it
    continues where it was stopped. --profile and --recipe choose
    what the options below are unless given.

    Args:
        out: the folder of the run, such as runs/mine.
        settings: of the run.
        teacher: the folder of a trained teacher (runs/x/region_teacher), to be used instead of
            training one.
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
    _require_room(settings, out, features or out, teacher)
    from dclip_kit.evaluation import experiment
    from dclip_kit.evaluation.compare import format_report
    from dclip_kit.runtime.processes import is_main_process

    device = choose_device(device)
    report = experiment.run(settings, out, teacher=teacher, features=features, device=device)
    if is_main_process():
        arm = printable(out / settings.recipe)
        print(
            format_report(report),
            *report["notes"],
            f"Written to {printable(out)}. Plain open_clip loads {arm}, as its README.md shows. To "
            "publish it without seen.json, which tells whoever has a picture whether it was trained"
            " on (training.json names the folders of your data: read it before):",
            f"  hf upload YOU/NAME {arm} . --exclude seen.json",
            sep="\n",
        )


def _require_room(settings: Profile, out: Path, features: Path, teacher: Path | None) -> None:
    """Checks both folders, and says what a recipe does not heed of its settings."""
    require_own_folder(out, "settings.json")
    require_own_folder(features, "settings.json", "features-*")
    usual = apply_recipe(PROFILES.get(settings.name, settings), settings.recipe)
    taught_by = trains_teacher(settings) and not teacher and settings.teacher_model
    for part, heeded in (
        ("region_teacher", taught_by == "region"),
        ("teacher", taught_by == "cross_attention"),
        ("denoiser", settings.student.sds_weight),
    ):
        if not heeded and getattr(settings, part) != getattr(usual, part):
            say(f"The recipe {settings.recipe} does not heed what was set of {part}.")
