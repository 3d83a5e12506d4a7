"""A run's folder: settings that may not change under it, and models found by their names."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dclip_kit.config import PROFILES
from dclip_kit.evaluation import runs
from dclip_kit.evaluation.arms import Arm, save_arm
from dclip_kit.evaluation.records import write_record
from dclip_kit.evaluation.runs import (
    SETTINGS,
    count_seconds,
    find_run,
    load_model,
    require_settings,
)
from dclip_kit.models.weights import clone_clip


@pytest.fixture
def profile(clip_folder):
    return replace(PROFILES["pocket"], clip=str(clip_folder))


@pytest.fixture
def run(tmp_path, clip, profile):
    """A run with two arms of the tiny CLIP, of which dclip differs from it."""
    write_record(profile.as_dict(), tmp_path / SETTINGS)
    tuned = clone_clip(clip)
    with torch.no_grad():
        for parameter in tuned.model.visual.parameters():
            parameter += 0.1
    save_arm(Arm("dclip", tuned, 0.5, (), []), tmp_path)
    save_arm(Arm("contrastive", clip, 0.5, (), []), tmp_path)
    return tmp_path


def test_settings_may_not_change(tmp_path, profile) -> None:
    require_settings(profile, tmp_path)
    assert not list(tmp_path.iterdir())
    write_record(profile.as_dict(), tmp_path / SETTINGS)
    require_settings(profile, tmp_path)
    other = replace(profile, seed=3, student=replace(profile.student, epochs=99))
    with pytest.raises(ValueError, match=r"they differ in seed, student\.epochs; give the same"):
        require_settings(other, tmp_path)


def test_settings_from_before_there_were_recipes_are_those_of_dclip(tmp_path, profile) -> None:
    older = {name: value for name, value in profile.as_dict().items() if name != "recipe"}
    (tmp_path / "settings.json").write_text(json.dumps(older))
    require_settings(profile, tmp_path)
    with pytest.raises(ValueError, match="they differ in recipe;"):
        require_settings(replace(profile, recipe="rehearsal"), tmp_path)


def test_damaged_settings_are_named(tmp_path, profile) -> None:
    for content in ("{", "[]"):
        (tmp_path / "settings.json").write_text(content)
        with pytest.raises(ValueError, match=r"settings\.json"):
            require_settings(profile, tmp_path)


@pytest.mark.parametrize("form", ["dclip", "dclip.safetensors"])
def test_an_arm_is_loaded_upon_its_runs_own_clip(run, clip, form) -> None:
    loaded = load_model(str(run / form), "ignored")
    assert loaded.name == str(run / form)
    before, after = clip.model.visual.state_dict(), loaded.model.visual.state_dict()
    assert all(torch.allclose(after[k], v + 0.1, atol=3e-3) for k, v in before.items())
    # A profile's tag that was left beside a folder is not for it.
    record = json.loads((run / "settings.json").read_text())
    (run / "settings.json").write_text(json.dumps(record | {"pretrained": "openai"}))
    assert load_model(str(run / form)).name == str(run / form)
    # A report says as much as the settings do.
    (run / "settings.json").unlink()
    (run / "report.json").write_text(json.dumps({"settings": record}))
    assert load_model(str(run / form)).name == str(run / form)


def test_an_arm_whose_settings_name_a_clip_with_python_of_its_own_is_refused(run, profile) -> None:
    path = Path(shutil.copytree(profile.clip, run / "planted")) / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    path.write_text(json.dumps(config))
    record = profile.as_dict() | {"clip": str(run / "planted")}
    (run / "settings.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="planted to load without trust_remote_code"):
        load_model(str(run / "dclip"))


def test_a_runs_whole_folder_names_its_arms(run) -> None:
    with pytest.raises(ValueError, match=r"name one of its arms: .*/contrastive, .*/dclip\."):
        load_model(str(run))


def test_a_record_that_names_no_clip_says_so(run) -> None:
    (run / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match=r"settings\.json .* damaged \(KeyError: 'clip'"):
        load_model(str(run / "dclip"))


@pytest.mark.parametrize("odd", [{"templates": "x"}, {"seed": "x"}, {"seed": -1}], ids=str)
def test_settings_that_no_run_can_have_are_named(odd, run, profile) -> None:
    (run / "settings.json").write_text(json.dumps(profile.as_dict() | odd))
    with pytest.raises(ValueError, match=rf"(?s)settings\.json .* damaged .*{next(iter(odd))}"):
        find_run(run / "dclip")


def test_any_other_clip_is_loaded_as_ever(clip_folder, tmp_path) -> None:
    assert load_model(str(clip_folder)).name == str(clip_folder)
    # A profile's tag is for its architecture, and stands beside models that need none.
    assert load_model(str(clip_folder), "openai").name == str(clip_folder)
    with pytest.raises(ValueError, match="no-such-tag"):
        load_model("ViT-B-32-quickgelu", "no-such-tag")
    with pytest.raises(ValueError, match="Expected"):
        load_model(str(tmp_path / "nothing"))


# The seconds of a run


@pytest.fixture
def clock(monkeypatch):
    """Clocks that a test sets: one for the wall, one that only runs on."""

    class Clock:
        now = 1000.0

        def time(self) -> float:
            return self.now

        monotonic = time

    clock = Clock()
    monkeypatch.setattr(runs, "time", clock)
    return clock


def leg(folder, clock, seconds: float, error: type[BaseException] | None = None) -> float:
    """A run's leg of so many seconds; tells how many the run has had at its end."""
    began = clock.now
    with count_seconds(folder, began) as so_far:
        clock.now += seconds
        if error:
            raise error
        return so_far()


def test_a_run_counts_the_seconds_of_all_its_legs(tmp_path, clock) -> None:
    assert leg(tmp_path, clock, 5) == 5
    clock.now += 3600  # nobody was at it
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error):
            leg(tmp_path, clock, 20, error)
    assert leg(tmp_path, clock, 7) == 5 + 20 + 20 + 7


def test_a_leg_that_was_killed_counts_up_to_its_last_file(tmp_path, clock) -> None:
    assert leg(tmp_path, clock, 5) == 5
    killed = count_seconds(tmp_path, clock.now)
    killed.__enter__()  # and never left
    checkpoint = tmp_path / "checkpoints" / "dclip.safetensors"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    for file in tmp_path.rglob("*"):
        os.utime(file, (clock.now, clock.now))
    os.utime(checkpoint, (clock.now + 40, clock.now + 40))
    clock.now += 9999
    assert leg(tmp_path, clock, 1) == 5 + 40 + 1


@pytest.mark.parametrize("content", ["{}", '{"seconds": "x", "running_since": null}', "[]"])
def test_damaged_seconds_are_named(content, tmp_path, clock) -> None:
    (tmp_path / "seconds.json").write_text(content)
    with pytest.raises(ValueError, match=r"Expected .*seconds\.json as it was written"):
        leg(tmp_path, clock, 1)
