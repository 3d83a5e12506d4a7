"""Arms of a study become the stored ones, with their teachers."""

from pathlib import Path

import pytest
import torch

from assets.make.pocket_arms import ARMS, copy_arms
from dclip_kit.evaluation.study import read_study, teacher_place
from dclip_kit.runtime.files import load_tensors, save_tensors

STUDY = """
seeds = [0]
[arms]
clip = { recipe = "none" }
contrastive_rehearsal = { recipe = "contrastive_rehearsal" }
dclip = { recipe = "dclip" }
region_taught = { recipe = "region_taught" }
"""


def test_arms_and_both_teachers_are_copied(tmp_path: Path) -> None:
    path, work, folder = tmp_path / "s.toml", tmp_path / "work", tmp_path / "kept"
    path.write_text(STUDY)
    study = read_study(path)
    arms = {arm.name: arm for arm in study.arms}
    ends = ("json", "safetensors")
    places = [work / "arms/seed-0" / f"{name}.{end}" for name in ARMS for end in ends]
    for name, stem in (("dclip", "teacher"), ("region_taught", "region_teacher")):
        taught = teacher_place(work, arms[name], 0)
        places += [taught / f"{stem}.{end}" for end in ends]
    for number, place in enumerate(places):
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.suffix == ".json":
            place.write_text(str(number))
        else:
            weight, steps = torch.tensor([number + 1e-4]), torch.tensor(number)
            save_tensors({"weight": weight, "steps": steps}, place)
    copy_arms(study, work, folder)
    assert len(list(folder.iterdir())) == len(places) == 10
    for number, place in enumerate(places):
        copied = folder / place.name
        if place.suffix == ".json":
            assert copied.read_text() == str(number)
        else:
            steps, weight = (load_tensors(copied)[name] for name in ("steps", "weight"))
            assert weight.dtype == torch.float16 and steps.dtype == torch.int64
            assert weight.item() == pytest.approx(number, abs=1e-3) and steps == number
    places[0].unlink()
    with pytest.raises(FileNotFoundError, match=places[0].name):
        copy_arms(study, work, folder)
