"""Copies trained arms of a study into assets/: `python -m assets.make.pocket_arms WORK`.

WORK is the folder of `python -m assets.make.run_study assets/studies/pocket_table.toml --work
WORK`; the arms and both teachers are those of seed 0.
"""

import shutil
import sys
from pathlib import Path

from assets.make.study import Study, arm_place, read_study, teacher_place
from dclip_kit.evaluation.arms import write_card
from dclip_kit.evaluation.seen import SEEN, TRAINING
from dclip_kit.models.teacher import kind_of, load_teacher, save_teacher
from dclip_kit.runtime.files import asset_path

ARMS = ("contrastive_rehearsal", "dclip", "region_taught")
TAUGHT = {
    "dclip": "teacher",
    "region_taught": "region_teacher",
}  # the arms whose teachers are copied
MEASURED = """As `{name}` in `assets/studies/pocket_table.json` of dclip_kit's repository, whose
README shows it as a table: on 4,000 scenes that it was neither trained nor chosen on, with controls
and intervals, over three seeds of which this is the first."""


def copy_arms(study: Study, work: Path, folder: Path, seed: int = 0) -> None:
    """Copies the arms and their teachers, all in half precision.

    Args:
        study: with the arms.
        work: the folder that the study was run in.
        folder: to copy to.
        seed: of the trainings.

    Raises:
        FileNotFoundError: `work` lacks an arm or a teacher.
    """
    arms = {arm.name: arm for arm in study.arms}
    for name in ARMS:
        target = folder / name
        shutil.copytree(arm_place(work, study, name, seed), target, dirs_exist_ok=True)
        write_card(target, MEASURED.format(name=name))
    for name, kind in TAUGHT.items():
        source, target = teacher_place(work, arms[name], seed) / kind, folder / kind
        teacher, settings = load_teacher(source)
        target.mkdir(parents=True, exist_ok=True)
        for file in (TRAINING, SEEN):
            shutil.copyfile(source / file, target / file)
        save_teacher(teacher.half(), settings, target)
        assert target.name == kind_of(settings)


def main(work: str = "runs/studies") -> None:
    """Copies the arms of the pocket's table."""
    study = read_study(asset_path("studies", "pocket_table.toml"))
    copy_arms(study, Path(work), asset_path("sprites").parent / "pocket_arms")


if __name__ == "__main__":
    main(*sys.argv[1:])
