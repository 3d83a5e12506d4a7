"""A run's folder: settings that may not change under it, and models found by their names."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_leaks import dataset, scene
from test_profile_data import write_classes

from dclip_kit.config import CONTROL, PROFILES, change_settings
from dclip_kit.data import LabelledImages, read_labelled
from dclip_kit.data.leaks import OWN
from dclip_kit.data.pocket import world as pocket
from dclip_kit.evaluation import runs
from dclip_kit.evaluation.experiment import Arm, save_arm, save_teacher
from dclip_kit.evaluation.profile_data import ProfileData
from dclip_kit.evaluation.runs import (
    PICTURES,
    SETTINGS,
    describe_run,
    find_run,
    keep_seen,
    leave_out_labelled,
    leave_out_trained,
    load_model,
    load_seen,
    load_teachers,
    require_settings,
)
from dclip_kit.models.teacher import MetaTeacher, RegionTeacher, build_teacher
from dclip_kit.models.weights import clone_clip
from dclip_kit.runtime.files import write_record
from dclip_kit.training import TeacherRun


@pytest.fixture
def profile(clip_folder):
    return replace(PROFILES["pocket"], clip=str(clip_folder))


@pytest.fixture
def run(tmp_path, clip, profile):
    """A run with two arms of the tiny CLIP, of which dclip differs from it, and two teachers."""
    write_record(profile.as_dict(), tmp_path / SETTINGS)
    for settings in (profile.teacher, profile.region_teacher):
        save_teacher(TeacherRun(build_teacher(32, settings), []), settings, tmp_path)
    tuned = clone_clip(clip)
    with torch.no_grad():
        for parameter in tuned.model.visual.parameters():
            parameter += 0.1
    save_arm(Arm("dclip", tuned, 0.5, (), []), tmp_path)
    save_arm(Arm(CONTROL, clip, 0.5, (), []), tmp_path)
    return tmp_path


def test_settings_may_not_change(tmp_path, profile) -> None:
    require_settings(profile, tmp_path)
    assert not list(tmp_path.iterdir())
    write_record(profile.as_dict(), tmp_path / SETTINGS)
    require_settings(profile, tmp_path)
    other = replace(profile, seed=3, student=replace(profile.student, epochs=99))
    with pytest.raises(ValueError, match=r"they differ in seed, student\.epochs; give the same"):
        require_settings(other, tmp_path)


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


@pytest.mark.parametrize("guard", ["content", "names", None])
def test_an_arm_is_measured_by_the_leak_guard_of_its_run(guard, run, profile) -> None:
    record = profile.as_dict() | {"leak_guard": guard}
    if guard is None:  # as in older runs
        del record["leak_guard"]
    (run / "settings.json").write_text(json.dumps(record))
    assert find_run(run / "dclip").profile.leak_guard == (guard or "content")


def test_an_arm_whose_settings_name_a_clip_with_python_of_its_own_is_refused(run, profile) -> None:
    path = Path(shutil.copytree(profile.clip, run / "planted")) / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    path.write_text(json.dumps(config))
    record = profile.as_dict() | {"clip": str(run / "planted")}
    (run / "settings.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"planted .* do not load \(.*trust_remote_code"):
        load_model(str(run / "dclip"))


def test_a_runs_whole_folder_names_its_arms(run) -> None:
    arms = f"{run}/contrastive_rehearsal, {run}/dclip"
    with pytest.raises(ValueError, match=rf"name one of its arms: {arms}\.$"):  # and no teacher
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


@pytest.mark.parametrize("gone", ["", "teacher", "region_teacher"])
def test_teachers_are_loaded_with_what_their_run_was_set_to(
    gone, tmp_path, run, clip, profile
) -> None:
    """All but the files' names is the run's: its CLIP, its regions, its teachers' sizes."""
    changes = {"regions": {"margin": 0.3}, "region_teacher": {"width": 24, "heads": 3}}
    profile = change_settings(profile, changes | {"teacher": {"heads": 4}})
    write_record(profile.as_dict(), run / SETTINGS)
    made = {"region_teacher": profile.region_teacher, "teacher": profile.teacher}
    kept = {name: build_teacher(32, settings) for name, settings in made.items()}
    for name, settings in made.items():
        save_teacher(TeacherRun(kept[name], []), settings, run)
    if gone:
        (run / f"{gone}.json").unlink()
    its, base, teachers = load_teachers(str(run))
    assert (its.regions, its.region_teacher, its.teacher) == (profile.regions, *made.values())
    assert base.name == clip.name
    assert list(teachers) == [name for name in made if name != gone]
    for name, teacher in teachers.items():
        state = kept[name].state_dict()
        assert all(torch.equal(x, state[key]) for key, x in teacher.state_dict().items())


def test_the_pockets_teachers_come_with_the_kit() -> None:
    profile, clip, teachers = load_teachers("pocket")
    assert profile == PROFILES["pocket"] and clip.name == "pocket"
    kinds = {name: type(teacher) for name, teacher in teachers.items()}
    assert kinds == {"region_teacher": RegionTeacher, "teacher": MetaTeacher}


def test_a_folder_without_teachers_or_their_settings_is_refused(run) -> None:
    with pytest.raises(FileNotFoundError, match=r"record at .*settings\.json, found no file"):
        (run / SETTINGS).rename(run / "kept.json")
        load_teachers(str(run))
    (run / "kept.json").rename(run / SETTINGS)
    for name in runs.TEACHERS:
        (run / f"{name}.json").unlink()
    says = r"Expected a trained teacher in .*, found none; name the folder of a run"
    for place in (run, run / "nothing"):
        with pytest.raises(FileNotFoundError, match=says):
            load_teachers(str(place))


def test_any_other_clip_is_loaded_as_ever(clip_folder, tmp_path) -> None:
    assert load_model(str(clip_folder)).name == str(clip_folder)
    # A profile's tag is for its architecture, and stands beside models that need none.
    assert load_model(str(clip_folder), "openai").name == str(clip_folder)
    with pytest.raises(ValueError, match="no-such-tag"):
        load_model("ViT-B-32-quickgelu", "no-such-tag")
    with pytest.raises(ValueError, match="Expected"):
        load_model(str(tmp_path / "nothing"))


# The seconds of a run


# What a run has seen


@pytest.fixture
def own(tmp_path):
    """Eight pictures: to train on, to choose on, and two that nobody has seen."""
    for seed in range(8):
        scene(seed).save(tmp_path / f"{seed}.png")
    return dataset(tmp_path, [f"{seed}.png" for seed in range(8)])


def describe_seen(train, val, labelled, by_content):
    """What a run on such pictures sees."""
    guard = "content" if by_content else "names"
    profile = replace(PROFILES["pocket"], zero_shot="classes", leak_guard=guard)
    named = LabelledImages(tuple(labelled), (0,) * len(labelled), ("ball",), (True,), "classes")
    return describe_run(profile, ProfileData(train, val, val, None, named, named, None, None))


@pytest.fixture
def seen(own, tmp_path):
    classes = write_classes(tmp_path / "classes")
    labelled = sorted(classes.rglob("*.png"))[::2]
    return describe_seen(own.select(range(4)), own.select(range(4, 6)), labelled, True)


def names(dataset) -> list[str]:
    return [path.name for path in dataset.paths]


@pytest.mark.parametrize("kept", [False, True])
def test_pictures_that_were_trained_on_are_left_out_and_named(kept, own, seen, tmp_path) -> None:
    if kept:
        keep_seen(seen, tmp_path / "run")
        seen = load_seen(tmp_path / "run")
    found = leave_out_trained(own, {"mine": seen})
    assert names(found.dataset) == ["4.png", "5.png", "6.png", "7.png"]
    assert [leak.picture.name for leak in found.trained["mine"]] == [f"{i}.png" for i in range(4)]
    assert found.chosen == {"mine": 2}
    said = found.describe("own")
    assert said.startswith("Left out of own: 4 pictures that mine has trained on (the first, ")
    assert said.endswith("mine was chosen on 2 pictures of own.")


def test_they_are_known_in_another_place_and_another_format(own, seen, tmp_path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.png").write_bytes(own.paths[0].read_bytes())
    scene(1).save(other / "b.jpg", quality=60)
    scene(20).save(other / "c.png")
    scene(21).save(other / "d.png")
    given = dataset(other, ["a.png", "b.jpg", "c.png", "d.png"])
    found = leave_out_trained(given, {"mine": seen})
    assert names(found.dataset) == ["c.png", "d.png"]
    # Where nobody looks at what pictures show, their bytes tell all the same.
    by_name = describe_seen(own.select(range(4)), own.select(range(4, 6)), [], by_content=False)
    assert names(leave_out_trained(given, {"mine": by_name}).dataset) == ["b.jpg", "c.png", "d.png"]


def test_all_models_are_measured_on_what_none_has_trained_on(own, seen) -> None:
    other = describe_seen(own.select([3, 6]), own.select([7]), [], True)
    found = leave_out_trained(own, {"one": seen, "two": other})
    assert names(found.dataset) == ["4.png", "5.png", "7.png"]
    assert [len(found.trained[name]) for name in ("one", "two")] == [4, 2]
    assert found.chosen == {"one": 2, "two": 1}


def test_nothing_left_is_refused(own, seen) -> None:
    says = r"of 4 in .* 0 are left; mine has trained on .*0\.png.* or take the seed and the split"
    with pytest.raises(ValueError, match=says):
        leave_out_trained(own.select(range(4)), {"mine": seen})
    with pytest.raises(ValueError, match=r"of 3 in .* 1 are left"):
        leave_out_trained(own.select([0, 1, 7]), {"mine": seen})


def test_labelled_pictures_that_were_chosen_on_are_left_out(seen, tmp_path) -> None:
    classes = read_labelled(tmp_path / "classes")
    rest = leave_out_labelled(classes, seen.labelled)
    assert len(classes) == 18 and len(rest) == 9 and len(rest.labels) == 9
    assert not {p.read_bytes() for p in rest.paths} & {
        p.read_bytes() for p in sorted(classes.paths)[::2]
    }
    assert leave_out_labelled(classes, frozenset()) is classes
    with pytest.raises(ValueError, match="all 9 of classes are such"):
        leave_out_labelled(replace(rest, source="classes"), leave_digests(rest.paths))


def test_a_run_that_begins_from_another_has_seen_what_that_has(run, own, profile, tmp_path) -> None:
    """An arm is fine-tuned further, on other data."""
    first = describe_seen(own.select(range(3)), own.select([3]), [], by_content=False)
    keep_seen(first, run / "a")
    before = runs.load_seen(run / "a").trained.names.keys()
    for name in (SETTINGS, "dclip.json", "dclip.safetensors"):
        shutil.copy(run / name, run / "a" / name)
    second = replace(profile, clip=str(run / "a/dclip"), leak_guard="names")
    named = read_labelled(write_classes(tmp_path / "classes"))
    data = ProfileData(*(own.select([each]) for each in (4, 5, 6)), None, named, named, None, None)
    assert runs.begun_from(second) == [run / "a"] and runs.begun_from(profile) == []
    assert runs.begun_from(second, run) == [run, run / "a"]
    seen = describe_run(second, data)
    alone = describe_run(profile, data).trained.names
    assert seen.trained.names.keys() == before | alone.keys()
    assert before - alone.keys() and seen.complete
    (run / "a/pictures.json").unlink()
    assert not describe_run(second, data).complete


def test_naming_is_not_measured_on_what_was_trained_on(own, tmp_path, capsys) -> None:
    """A class folder may hold the very pictures that have captions elsewhere."""
    classes = read_labelled(write_classes(tmp_path / "classes"))
    train = replace(own.select(range(4)), paths=(*own.paths[:3], classes.paths[0]))
    chosen = classes.select([0, 1, 2])  # the first of them is trained on
    seen = describe_seen(train, own.select([4]), chosen.paths, by_content=False)
    data = ProfileData(train, own, own, None, chosen, classes, None, None)
    found = runs.leave_out_trained_labelled(data, seen)
    assert found.zero_shot_val.paths == classes.paths[1:3]
    assert found.zero_shot.paths == classes.paths[3:]
    assert capsys.readouterr().out.startswith("4 labelled pictures are trained or chosen on")
    assert leave_out_labelled(classes, seen.files).paths == classes.paths[3:]
    alone = describe_seen(own, own, [], by_content=False)
    assert runs.leave_out_trained_labelled(data, alone).zero_shot.paths == classes.paths
    assert capsys.readouterr().out == ""


def test_a_teacher_of_another_clip_or_of_other_regions_is_not_taken(run, profile, tmp_path) -> None:
    runs.require_same_view(profile, run)
    runs.require_same_view(profile, tmp_path / "without")  # as what comes with the kit
    other = replace(profile, clip="ViT-B-16", regions=replace(profile.regions, margin=0.3))
    with pytest.raises(ValueError, match=r"they differ in clip, regions\.margin; take"):
        runs.require_same_view(other, run)


def leave_digests(paths) -> frozenset[str]:
    from dclip_kit.data.pictures import scan_pictures

    return frozenset(scan.digest for scan in scan_pictures(paths, decode=False))


def test_another_picture_in_the_same_place_is_another(own, seen, tmp_path) -> None:
    keep_seen(seen, tmp_path / "run")
    scene(50).save(own.paths[0])
    found = leave_out_trained(own, {"mine": load_seen(tmp_path / "run")})
    assert "0.png" in names(found.dataset) and "1.png" not in names(found.dataset)
    own, place = replace(own, image_ids=(OWN,) * len(own)), tmp_path / "named"
    keep_seen(describe_seen(own.select(range(4)), own.select(range(4, 6)), [], True), place)
    scene(51).save(own.paths[0])
    found = leave_out_trained(own, {"mine": load_seen(place)})
    assert "0.png" in names(found.dataset) and "1.png" not in names(found.dataset)


def test_a_run_that_has_trained_goes_on_with_the_same_pictures_alone(own, seen, tmp_path) -> None:
    run = tmp_path / "run"
    assert not load_seen(run).complete and not load_seen(run).trained.names
    keep_seen(describe_seen(own.select([6]), own.select([7]), [], True), run)
    keep_seen(seen, run)  # nothing has been trained yet: what was seen is what is seen now
    assert names(leave_out_trained(own, {"mine": load_seen(run)}).dataset)[0] == "4.png"
    (run / "checkpoints").mkdir()
    (run / "checkpoints/teacher.safetensors").touch()
    before = (run / PICTURES).read_text()
    keep_seen(seen, run)
    for other in [
        describe_seen(own.select(range(5)), own.select([5]), [], True),
        replace(seen, trained=seen.trained.join(seen.chosen)),
        replace(seen, chosen=seen.trained),
        replace(seen, labelled=frozenset()),
    ]:
        with pytest.raises(ValueError, match="have changed; name another --out"):
            keep_seen(other, run)
    assert (run / PICTURES).read_text() == before


def test_a_run_goes_on_from_what_its_teacher_alone_has_seen(own, seen, tmp_path) -> None:
    run, more = tmp_path / "run", describe_seen(own.select([6]), own.select([]), [], True)
    whole = replace(seen, trained=seen.trained.join(more.trained))
    keep_seen(seen, run)
    (run / "region_teacher.safetensors").touch()
    with pytest.raises(ValueError, match="have changed; name another --out"):
        keep_seen(whole, run, teacher=more)  # it saw something else
    keep_seen(whole, run, teacher=seen)
    assert load_seen(run).trained.names.keys() == whole.trained.as_dict()["names"].keys()
    keep_seen(whole, run, teacher=seen)
    with pytest.raises(ValueError, match="have changed; name another --out"):
        keep_seen(seen, run, teacher=seen)  # students have learnt from more


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", '{"trained": 3}', '{"trained": {"names": []}}'),
        '{"trained": {"names": {}, "phash": {"a": "%s"}}}' % ("f" * 40),
    ],
)
def test_a_damaged_record_is_named(content, tmp_path) -> None:
    (tmp_path / PICTURES).write_text(content)
    with pytest.raises(ValueError, match=r"pictures\.json"):
        load_seen(tmp_path)


def describe_pocket(uncaptioned: int = 0):
    """What a run on the pocket's scenes sees, and on so many uncaptioned ones."""
    train, val = pocket.load_captioned("train"), pocket.load_captioned("val")
    named = LabelledImages((), (), (), (), "pocket")
    further = pocket.load_further("uncaptioned", uncaptioned) if uncaptioned else None
    data = ProfileData(train, val, val, None, named, named, None, None)
    return describe_run(PROFILES["pocket"], data, further)


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path))
    monkeypatch.setattr(pocket, "SCENE_SPLITS", {"train": 3, "val": 2, "test": 2})
    monkeypatch.setattr(runs, "scan_pictures", lambda paths, **_: [] if not paths else 1 / 0)


def test_pocket_scenes_are_known_by_their_numbers(scenes) -> None:
    seen = {"arm": describe_pocket()}
    val, test = pocket.load_captioned("val"), pocket.load_captioned("test")
    assert leave_out_trained(test, seen).dataset == test
    assert leave_out_trained(val, seen).chosen == {"arm": 2}
    with pytest.raises(ValueError, match="of 3 in pocket scenes 0 are left"):
        leave_out_trained(pocket.load_captioned("train"), seen)
    assert Path(pocket.load_captioned("train").paths[0]).is_file()


@pytest.mark.parametrize("count", [0, 3])
def test_uncaptioned_scenes_are_trained_on_too(count, scenes, tmp_path) -> None:
    keep_seen(describe_pocket(count), tmp_path / "run")
    keep_seen(describe_pocket(), tmp_path / "plain")
    seen, plain = load_seen(tmp_path / "run"), load_seen(tmp_path / "plain")
    assert len(seen.trained.names) == len(plain.trained.names) + count
    assert seen.chosen.names == plain.chosen.names
    further = pocket.load_further("uncaptioned", 5)
    left = leave_out_trained(further, {"arm": seen}).dataset
    assert left.paths == further.paths[count:]
    for stream in ("further_val", "further_test"):
        scenes = pocket.load_further(stream, 3)
        assert leave_out_trained(scenes, {"arm": seen}).dataset == scenes
