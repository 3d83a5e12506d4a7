"""Brings trained arms of a study into assets/: `python -m assets.make.pocket_arms WORK`.

WORK is the folder in which `python -m assets.make.run_study assets/studies/pocket_table.toml --work
WORK` trained; the arms and both teachers are those of seed 0.
"""

import shutil
import sys
from pathlib import Path

from assets.make.study import Study, read_study, teacher_place
from dclip_kit.evaluation.arms import write_card
from dclip_kit.evaluation.seen import SEEN, TRAINING
from dclip_kit.models.teacher import kind_of, load_teacher, save_teacher
from dclip_kit.runtime.files import asset_path

ARMS = ("contrastive_rehearsal", "dclip", "region_taught")
TAUGHT = {"dclip": "teacher", "region_taught": "region_teacher"}  # those whose teachers are kept
MEASURED = """As `{name}` in `assets/studies/pocket_table.json` of dclip_kit's repository, whose
README shows it as a table: on 4,000 scenes that it was neither trained nor chosen on, with controls
and intervals, over three seeds of which this is the first."""


def copy_arms(study: Study, work: Path, folder: Path, seed: int = 0) -> None:
    """Copies the arms and their teachers, all of which are in half precision then.

    Args:
        study: with the arms.
        work: the folder that it was run in.
        folder: to copy to.
        seed: of the trainings.

    Raises:
        FileNotFoundError: an arm or a teacher has not been trained there.
    """
    arms = {arm.name: arm for arm in study.arms}
    for name in ARMS:
        copied = folder / name
        shutil.copytree(work / "arms" / f"seed-{seed}" / name, copied, dirs_exist_ok=True)
        write_card(copied, MEASURED.format(name=name))
    for name, kind in TAUGHT.items():
        trained, copied = teacher_place(work, arms[name], seed) / kind, folder / kind
        teacher, settings = load_teacher(trained)
        copied.mkdir(parents=True, exist_ok=True)
        for file in (TRAINING, SEEN):
            shutil.copyfile(trained / file, copied / file)
        save_teacher(teacher.half(), settings, copied)
        assert copied.name == kind_of(settings)


def main(work: str = "runs/studies") -> None:
    """Copies those of the pocket's table."""
    study = read_study(asset_path("studies", "pocket_table.toml"))
    copy_arms(study, Path(work), asset_path("sprites").parent / "pocket_arms")


if __name__ == "__main__":
    main(*sys.argv[1:])
