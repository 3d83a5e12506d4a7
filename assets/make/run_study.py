"""Compares recipes over several seeds: `python -m assets.make.run_study FILE` (see --help)."""

import sys
from pathlib import Path

import tyro
from tyro.conf import Positional

from assets.make.study import read_study, run_study
from assets.make.study_summary import format_repeated, summarise
from dclip_kit.commands import run_program
from dclip_kit.commands.terminal import choose_device, require_writable
from dclip_kit.evaluation.compare import say_luck
from dclip_kit.evaluation.study_table import format_study
from dclip_kit.models.clip import load_clip, tag_for
from dclip_kit.runtime.files import write_record

PROGRAM = "python -m assets.make.run_study"


def study(
    file: Positional[Path],
    *,
    work: Path = Path("runs/studies"),
    arms: tuple[str, ...] = (),
    repeat: tuple[str, int] | None = None,
    device: str = "auto",
) -> None:
    """Compares recipes over several seeds, as a TOML file describes, and prints a table.

    Each training writes a record and is not run again. The records are in a folder beside the file,
    of the file's name, and their summary is written beside the file, as JSON.

    Args:
        file: the study, such as assets/studies/pocket_table.toml.
        work: the folder for features, teachers, checkpoints and trained arms.
        arms: the arms of the study to train now; all if left out.
        repeat: an arm and a seed to train once more; prints the new result beside its record.
        device: auto, cpu, cuda:0, …
    """
    for folder in (work, file.parent):
        require_writable(folder, "folder")
    plan = read_study(file)
    name, tag = plan.profile.clip, plan.profile.pretrained
    clip = load_clip(name, tag_for(name, tag), choose_device(device))
    run_study(plan, clip, work, arms, repeat)
    if repeat:
        print(format_repeated(plan, work, *repeat))
        return
    result = summarise(plan)
    write_record(result, file.with_suffix(".json"))
    trained = {arm.profile.student.train_text for arm in plan.arms if arm.profile}
    print(format_study(result), *map(say_luck, sorted(trained)), sep="\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command with these arguments or the shell's. Returns the exit code."""
    return run_program(PROGRAM, lambda: tyro.cli(study, prog=PROGRAM, args=arguments))


if __name__ == "__main__":
    sys.exit(main())
