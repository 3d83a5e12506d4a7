"""Commands that train: the teacher alone, and everything from data to a report."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from dclip_kit.commands.terminal import require_own_folder
from dclip_kit.config import PROFILES, Profile, apply_recipe, require_recipe, trains_teacher
from dclip_kit.runtime.printing import printable, say

Settings = Annotated[Profile, arg(name="")]  # its fields are options of the command itself


def train_teacher(
    *, out: Path, settings: Settings, features: Path | None = None, device: str = "auto"
) -> None:
    """Trains only the teacher that distill would train, and saves it in OUT.

    Run it again with the same options to continue where it stopped. --profile and --recipe choose
    the defaults of the options below.

    Args:
        out: the folder of the run, such as runs/mine; distill with the same options continues it.
        settings: of the run.
        features: a folder for encoded pictures, which runs that encode the same pictures in the
            same way can share; OUT if left out.
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

    run_teacher(settings, out, features=features, device=device)


def distill(
    *,
    out: Path,
    settings: Settings,
    teacher: Path | None = None,
    features: Path | None = None,
    rates: Path | None = None,
    keep_going: bool = False,
    device: str = "auto",
) -> None:
    """Fine-tunes a CLIP by a recipe and by its control, and measures both.

    It learns from captioned pictures (--data) and, by default, from pictures without captions
    (--uncaptioned), which a region teacher labels. OUT gets a folder for each model: the teacher,
    if the recipe has one, and two arms, contrastive_rehearsal (the control) and the recipe's, each
    mixed with the untouched CLIP at the weight that is best on val. It also gets report.json, whose
    table is printed. With --captions none and a folder of pictures alone, there is no val and no
    control: the one arm keeps half of what it learned, and no collapse is noticed. open_clip loads
    an arm's folder. Run it again with the same options to continue where it stopped. --profile and
    --recipe choose the defaults of the options below.

    Args:
        out: the folder of the run, such as runs/mine.
        settings: of the run.
        teacher: the folder of a trained teacher (runs/x/region_teacher), to use instead of
            training one.
        features: a folder for encoded pictures, which runs that encode the same pictures in the
            same way can share; OUT if left out.
        rates: the pilot.json that says by what factor to change the learning rate.
        keep_going: train on though an epoch has ruined a model.
        device: auto, cpu, cuda:0, …
    """
    require_recipe(settings)
    if rates:
        from dclip_kit.evaluation.pilot import read_rates

        settings = replace(settings, student=read_rates(rates, settings.student))
    _require_room(settings, out, features or out, teacher)
    from dclip_kit.evaluation import experiment
    from dclip_kit.evaluation.compare import format_report
    from dclip_kit.runtime.processes import is_main_process

    report = experiment.run(
        settings, out, teacher=teacher, features=features, device=device, keep_going=keep_going
    )
    if is_main_process():
        arm = printable(out / settings.recipe)
        print(
            format_report(report),
            *report["notes"],
            f"Written to {printable(out)}. Plain open_clip loads {arm}, as its README.md shows. To "
            "publish it without seen.json, from which anyone who has a picture can tell whether it "
            "was trained on (read training.json first: it names the folders of your data):",
            f"  hf upload YOU/NAME {arm} . --exclude seen.json",
            sep="\n",
        )


def pilot(
    *,
    out: Path,
    settings: Settings,
    pictures: int = 256,
    steps: int = 10,
    minutes: float = 10.0,
    device: str = "auto",
) -> None:
    """Tries a part of the data: whether fine-tuning helps, at what rate, and how long it takes.

    Trains the control for an epoch, to see how long a step takes, and then three times for a few
    steps, at three learning rates, and measures what each finds and remembers. Writes
    OUT/pilot.json, from which distill --rates changes the recipe's rate by the factor that was best
    for the control.

    Args:
        out: a folder of the pilot's own, such as runs/pilot.
        settings: of the run that may follow.
        pictures: with captions, to train on.
        steps: of each training, about.
        minutes: for the three trainings, about; where steps are slow, there are fewer.
        device: auto, cpu, cuda:0, …
    """
    require_own_folder(out, "settings.json", "pilot.json")
    if min(pictures, steps) < 1:
        raise ValueError(f"Expected at least one picture and step, got {pictures} and {steps}.")
    if not 0 <= minutes < float("inf"):
        raise ValueError(f"Expected a number of minutes of 0 or more, got {minutes}; name another.")
    from dclip_kit.evaluation.pilot import PILOT, run_pilot, say_pilot
    from dclip_kit.runtime.files import write_record

    report = run_pilot(
        settings, out, pictures=pictures, steps=steps, minutes=minutes, device=device
    )
    write_record(report, out / PILOT)
    print(*say_pilot(report), f"Written to {printable(out / PILOT)}.", sep="\n")


def _require_room(settings: Profile, out: Path, features: Path, teacher: Path | None) -> None:
    """Checks both folders, and names the changed settings that the recipe ignores."""
    require_own_folder(out, "settings.json")
    require_own_folder(features, "settings.json", "features-*")
    defaults = apply_recipe(PROFILES.get(settings.name, settings), settings.recipe)
    teacher_kind = trains_teacher(settings) and not teacher and settings.teacher_model
    for part, used in (
        ("region_teacher", teacher_kind == "region"),
        ("teacher", teacher_kind == "cross_attention"),
        ("denoiser", settings.student.sds_weight),
    ):
        if not used and getattr(settings, part) != getattr(defaults, part):
            say(f"The recipe {settings.recipe} ignores the settings of {part}.")
