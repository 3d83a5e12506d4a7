"""Arms of a study become the stored ones, with their teachers."""

import re
from pathlib import Path

import pytest
import torch

from assets.make.pocket_arms import ARMS, copy_arms
from assets.make.study import read_study, teacher_place
from dclip_kit.config import get_profile
from dclip_kit.evaluation.arms import Arm, describe_origin, load_arm, read_origin, save_arm
from dclip_kit.evaluation.experiment import load_saved_teacher, save_teacher_run
from dclip_kit.evaluation.seen import describe_seen
from dclip_kit.models.clip import load_clip
from dclip_kit.models.teacher import build_teacher, kind_of
from dclip_kit.models.weights import clone_clip
from dclip_kit.runtime.files import asset_path, load_tensors
from dclip_kit.training import TeacherRun

STUDY = """
seeds = [0]
[arms]
clip = { recipe = "none" }
contrastive_rehearsal = { recipe = "contrastive_rehearsal" }
dclip = { recipe = "dclip" }
region_taught = { recipe = "region_taught" }
"""


@pytest.fixture
def worked(clip, captioned, tmp_path: Path) -> Path:
    """What a study of seed 0 leaves, its arms' α from 0.1 on."""
    (tmp_path / "s.toml").write_text(STUDY)
    study, work = read_study(tmp_path / "s.toml"), tmp_path / "work"
    profile = get_profile("pocket")
    origin, seen = describe_origin(profile, clip), describe_seen(captioned, captioned, (), False)
    for number, name in enumerate(ARMS, 1):
        tuned = clone_clip(clip)
        with torch.no_grad():
            tuned.model.visual.proj += number
        save_arm(Arm(tuned, number / 10), work / "arms/s/seed-0" / name, origin, seen)
    arms = {arm.name: arm for arm in study.arms}
    for name, settings in (("dclip", profile.teacher), ("region_taught", profile.region_teacher)):
        run = TeacherRun(build_teacher(32, settings), settings, [{"epoch": 1, "name": name}])
        place = teacher_place(work, arms[name], 0) / kind_of(settings)
        save_teacher_run(run, place, profile, clip, seen)
    return work


def test_arms_and_both_teachers_are_copied(worked, clip, tmp_path: Path, capsys) -> None:
    study, folder = read_study(tmp_path / "s.toml"), tmp_path / "kept"
    copy_arms(study, worked, folder)
    assert {each.name for each in folder.iterdir()} == {*ARMS, "region_teacher", "teacher"}
    for number, name in enumerate(ARMS, 1):
        arm = load_arm(folder / name)
        assert arm.alpha == number / 10
        assert torch.equal(arm.clip.model.visual.proj, clip.model.visual.proj + number)
        trained = worked / "arms/s/seed-0" / name
        for file in {each.name for each in trained.iterdir()} - {"README.md"}:
            assert (folder / name / file).read_bytes() == (trained / file).read_bytes()
        card = (folder / name / "README.md").read_text()
        assert f"`{name}` in `assets/studies/pocket_table.json`" in card
        assert "Not measured" not in card
    for kind, name in (("teacher", "dclip"), ("region_teacher", "region_taught")):
        (trained,) = worked.glob(f"teachers/*/{kind}")
        whole = load_tensors(trained / "model.safetensors")
        short = load_tensors(folder / kind / "model.safetensors")
        assert whole.keys() == short.keys()
        assert all(torch.equal(short[each], whole[each].half()) for each in whole)
        run = load_saved_teacher(folder / kind)
        assert run.history == [{"epoch": 1, "name": name}] and kind_of(run.settings) == kind
        assert (folder / kind / "seen.json").read_bytes() == (trained / "seen.json").read_bytes()


@pytest.mark.parametrize("lost", ["arms/s/seed-0/dclip", "teachers/*/region_teacher/config.json"])
def test_what_was_not_trained_is_named(lost, worked, tmp_path: Path) -> None:
    (place,) = worked.glob(lost)
    place.rename(tmp_path / "lost")
    named = place if place.name == "dclip" else place.parent
    with pytest.raises(FileNotFoundError, match=re.escape(str(named))):
        copy_arms(read_study(tmp_path / "s.toml"), worked, tmp_path / "kept")


@pytest.mark.parametrize("name", ARMS)
def test_the_stored_arms_are_as_this_would_copy_them(name) -> None:
    """With cards that say where they were measured, and no weights but what trained changed."""
    folder = asset_path("pocket_arms", name)
    card = (folder / "README.md").read_text()
    assert f"`{name}` in `assets/studies/pocket_table.json`" in card
    pocket, origin = load_clip("pocket"), read_origin(folder)
    assert (origin.profile.clip, origin.digest) == ("pocket", pocket.digest)
    untouched = pocket.model.state_dict()
    for parameter, value in load_arm(folder).clip.model.state_dict().items():
        if not parameter.startswith("visual."):
            assert torch.equal(value, untouched[parameter]), parameter
