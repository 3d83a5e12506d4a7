"""Brings trained arms of a study into assets/: `python -m assets.make.pocket_arms WORK`.

WORK is the folder that `python -m dclip_kit study assets/studies/pocket_table.toml --work WORK`
trained in; the arms and both teachers are those of seed 0.
"""

import shutil
import sys
from pathlib import Path

from dclip_kit.evaluation.study import Study, read_study, teacher_place
from dclip_kit.runtime.files import asset_path, load_tensors, save_tensors

ARMS = ("contrastive_rehearsal", "dclip", "region_taught")
TAUGHT = ("dclip", "region_taught")  # those whose teachers are kept


def copy_arms(study: Study, work: Path, folder: Path, seed: int = 0) -> None:
    """Copies the arms and their teachers, all of them in half precision.

    Args:
        study: with the arms.
        work: the folder that it was run in.
        folder: to copy to.
        seed: of the trainings.

    Raises:
        FileNotFoundError: an arm or a teacher has not been trained there.
    """
    arms = {arm.name: arm for arm in study.arms}
    places = [work / "arms" / f"seed-{seed}" / name for name in ARMS]
    files = [place.with_suffix(end) for place in places for end in (".json", ".safetensors")]
    for name in TAUGHT:
        files += sorted(teacher_place(work, arms[name], seed).glob("*teacher.*"))
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        if file.suffix == ".json":
            shutil.copyfile(file, folder / file.name)
        else:
            halved = {
                name: value.half() if value.is_floating_point() else value
                for name, value in load_tensors(file).items()
            }
            save_tensors(halved, folder / file.name)


def main(work: str = "runs/studies") -> None:
    """Copies those of the pocket's table."""
    study = read_study(asset_path("studies", "pocket_table.toml"))
    copy_arms(study, Path(work), asset_path("sprites").parent / "pocket_arms")


if __name__ == "__main__":
    main(*sys.argv[1:])
