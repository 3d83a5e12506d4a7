"""Studies: reading them, and running them on a tiny CLIP."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from assets.make import study as module
from assets.make.study import (
    ALPHAS,
    RETENTION,
    StudyArm,
    arm_place,
    measure,
    prepare_measuring,
    read_study,
    run_study,
)
from assets.make.study_summary import format_repeated, summarise
from dclip_kit.config import CONTROL, PROFILES, apply_recipe, change_settings
from dclip_kit.data.leaks import OWN, hash_name
from dclip_kit.evaluation import experiment, profile_data
from dclip_kit.evaluation.arms import (
    Arm,
    choose_candidate,
    describe_origin,
    load_arm,
    read_origin,
    save_arm,
)
from dclip_kit.evaluation.evaluate import (
    WAYS,
    encode_classes,
    encode_galleries,
    measure_galleries,
    measure_hubness,
    prepare_references,
    score_compositions,
)
from dclip_kit.evaluation.experiment import load_saved_teacher
from dclip_kit.evaluation.seen import describe_seen, leave_out_trained, load_seen
from dclip_kit.features import extract as extraction
from dclip_kit.metrics import composition_scores
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import encode_images
from dclip_kit.models.weights import interpolate, same_text_tower
from dclip_kit.runtime.files import write_record
from dclip_kit.search.rescoring import NNN, Rescoring
from dclip_kit.training import loop
from tests.data.test_leaks import dataset as pictures_below
from tests.data.test_leaks import scene
from tests.data.test_splits import write_own
from tests.evaluation.test_profile_data import write_classes

pytestmark = pytest.mark.slow

SOFTMAX = Rescoring("dual_softmax")
COMMON = """
seeds = [0, 1]
gallery = 4
compositions = 2
uncaptioned = "pocket:5"
region_teacher = { width = 24, heads = 3, epochs = 2 }
teacher = { heads = 4, epochs = 1 }
"""
ARMS = """
[arms]
clip = { recipe = "none" }
clip_nnn = { recipe = "none", rescoring = { method = "nnn" } }
contrastive_rehearsal = { recipe = "contrastive_rehearsal", steps = 4 }
region_taught = { recipe = "region_taught", steps = 3, student = { learning_rate = 2e-3 } }

[arms.region_taught_softmax]
recipe = "region_taught"
steps = 3
student = { learning_rate = 2e-3 }
rescoring = { method = "dual_softmax" }
"""


def write_study(folder: Path, arms: str = ARMS, common: str = COMMON) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.toml"
    path.write_text(common + arms, encoding="utf-8")
    return path


def counts(text: str) -> list[int]:
    return [ord(each) - ord("0") for each in text]


# Reading


def test_a_study_says_what_is_compared(tmp_path) -> None:
    study = read_study(write_study(tmp_path))
    pocket_profile = change_settings(
        PROFILES["pocket"],
        {
            "uncaptioned": "pocket:5",
            "region_teacher": {"width": 24, "heads": 3, "epochs": 2},
            "teacher": {"heads": 4, "epochs": 1},
        },
    )
    assert study.profile == pocket_profile
    assert (study.seeds, study.gallery, study.compositions) == ((0, 1), 4, 2)
    taught = apply_recipe(pocket_profile, "region_taught")
    taught = change_settings(taught, {"student": {"learning_rate": 2e-3}})
    assert study.arms == (
        StudyArm("clip", None),
        StudyArm("clip_nnn", None, rescoring=NNN),
        StudyArm(CONTROL, apply_recipe(pocket_profile, CONTROL), 4),
        StudyArm("region_taught", taught, 3),
        StudyArm("region_taught_softmax", taught, 3, rescoring=SOFTMAX),
    )
    assert [study.seeds_of(arm) for arm in study.arms] == [(0,), (0,), (0, 1), (0, 1), (0, 1)]
    assert study.record_of(study.arms[3], 1) == tmp_path / "tiny" / "region_taught-1.json"


def test_a_study_needs_seeds_and_arms_alone(tmp_path) -> None:
    arms = '[arms]\nclip = { recipe = "none" }\nfew = { recipe = "dclip", captions = 0.1 }\n'
    study = read_study(write_study(tmp_path, arms, 'profile = "base"\nseeds = [3]\n'))
    assert study.profile == PROFILES["base"] and study.gallery == study.compositions == 0
    few = StudyArm("few", apply_recipe(PROFILES["base"], "dclip"), 0, 0.1)
    assert study.arms[1] == few


def test_an_arm_may_be_what_its_records_say(tmp_path) -> None:
    study = read_study(write_study(tmp_path, CLIP + 'old = { recipe = "recorded" }\n'))
    assert study.arms[1] == StudyArm("old", None, recorded=True)
    assert study.seeds_of(study.arms[1]) == (0, 1)


def test_what_is_said_for_all_arms_outdoes_their_recipes_rates(tmp_path) -> None:
    common = "seeds = [3]\nstudent = { epochs = 2, batch_size = 16 }\n"
    arms = CLIP + (
        'a = { recipe = "region_taught" }\n'
        'b = { recipe = "contrastive", student = { epochs = 5 } }\n'
    )
    _, first, other = read_study(write_study(tmp_path, arms, common)).arms
    assert (first.profile.student.epochs, first.profile.student.batch_size) == (2, 16)
    assert (other.profile.student.epochs, other.profile.student.batch_size) == (5, 16)


CLIP = '[arms]\nclip = { recipe = "none" }\n'


@pytest.mark.parametrize(
    ("common", "arms", "says"),
    [
        ("seeds = [", CLIP, "Invalid value|Unclosed array"),
        ("", CLIP, "seeds"),
        ("seeds = [0]", "", "arms"),
        ("seeds = 3", CLIP, "not iterable"),
        ("seeds = [0]", '[arms]\nx = { recipe = "none" }', "clip"),
        ("seeds = [0]", '[arms]\nclip = { recipe = "dclip" }', "clip is the untouched one"),
        ("seeds = [0]\nseed = -1", CLIP, "seed to be a whole number"),
        ("seeds = [0]\nseedz = 1", CLIP, "a setting out of .*, got 'seedz'"),
        ('seeds = [0]\nprofile = "big"', CLIP, "got 'big'"),
        ("seeds = [0]\nstudent = { epoch = 3 }", CLIP, "got 'epoch'"),
        ("seeds = [0]", CLIP + "x = { steps = 3 }", "recipe"),
        ("seeds = [0]", CLIP + 'x = { recipe = "y" }', "a recipe out of .*, got 'y'"),
        ("seeds = [0]", CLIP + 'x = { recipe = "dclip", step = 3 }', "got 'step'"),
        ("seeds = [0]", CLIP + 'x = { recipe = "dclip", captions = 0.0 }', "captions in x to be"),
        ("seeds = [0]", CLIP + 'x = { recipe = "dclip", captions = 2 }', "captions in x to be"),
        ("seeds = [0]", CLIP + 'x = { recipe = "none", steps = 5 }', "no steps in x"),
        ("seeds = [0]", CLIP + 'x = { recipe = "recorded", steps = 5 }', "no steps in x"),
        ("seeds = [0]", CLIP + 'x = { recipe = "recorded", student = {} }', "no student in x"),
        ("seeds = [0]", CLIP + 'x = { recipe = "recorded", rescoring = {} }', "no rescoring in x"),
        ("seeds = [0]", CLIP + 'x = { recipe = "dclip", recorded = true }', "recorded"),
        ("seeds = [0]", CLIP + 'x = { recipe = "dclip", data = "x" }', "data in x must be alike"),
        ("seeds = [0]", CLIP + 'x = { recipe = "dclip", seed = 2 }', "seed in x must be alike"),
        ("seeds = [0]\nseed = 2", CLIP, "seed and selection have no effect"),
        ("seeds = [0]\nalphas = []", CLIP, "alphas ascend"),
        ("seeds = [0]\nalphas = [1.0, 0.5]", CLIP, "alphas ascend"),
        ("seeds = [0]\nalphas = [0.5, 1.5]", CLIP, "alphas ascend"),
        ("seeds = [0]\nalphas = [0.0, 0.5]", CLIP, "alphas ascend"),
        (
            "seeds = [0]\nstudent = { rehearsal_weight = 1.0 }",
            CLIP + 'x = { recipe = "contrastive" }',
            "rehearsal_weight to be 0 in the recipe contrastive",
        ),
        ("seeds = [0]", CLIP + 'x = { recipe = "none", rescoring = { k = 0 } }', "a k from 1"),
        ("seeds = [0]", CLIP + 'x = { recipe = "none", steps = 3, seed = 1 }', "no seed, steps in"),
    ],
)
def test_what_a_study_cannot_say_is_refused(common, arms, says, tmp_path) -> None:
    path = write_study(tmp_path, arms, common + "\n")
    with pytest.raises(ValueError, match=rf"Expected a study in {path}, .*{says}.*correct it"):
        read_study(path)


def test_a_study_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"Expected a study in .*none\.toml"):
        read_study(tmp_path / "none.toml")


# Running, on a tiny CLIP and a few pocket scenes


ROWS = (
    ("clip", 0),
    ("clip_nnn", 0),
    (CONTROL, 0),
    (CONTROL, 1),
    ("region_taught", 0),
    ("region_taught", 1),
    ("region_taught_softmax", 0),
    ("region_taught_softmax", 1),
)


def knowing(data, clip):
    """The data with few labels, of which the tiny CLIP names all but every fourth rightly."""

    def relabel(labelled):
        labelled = labelled.select(range(0, len(labelled), 4))
        classes = encode_classes(clip, labelled.class_names, data.templates)
        near = (encode_images(clip, labelled.paths) @ classes.T).argmax(1).tolist()
        labels = [(each + (i % 4 == 0)) % len(classes) for i, each in enumerate(near)]
        return replace(labelled, labels=tuple(labels))

    names = ("zero_shot_val", "zero_shot", "zero_shot_held_out")
    return replace(data, **{name: relabel(getattr(data, name)) for name in names})


@pytest.fixture(scope="module")
def world(data, _clip, make_detector, tmp_path_factory):
    """Few further scenes, and a detector that needs no YOLO."""
    few = {"val": ("further_val", 6), "test": ("further_test", 9), "probe": ("further_val", 5)}
    known = knowing(data, _clip)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(module, "_OF_POCKET", few)
        patch.setattr(module, "load_data", lambda profile: known)
        patch.setattr(extraction, "load_detector", lambda *_, **__: make_detector())
        yield known


@pytest.fixture(scope="module")
def done(world, _clip, tmp_path_factory):
    """A study that was run, its folder for work, and the students as they ended training."""
    folder = tmp_path_factory.mktemp("study")
    study, students = read_study(write_study(folder)), []
    with pytest.MonkeyPatch.context() as patch:
        train = module.distill

        def watched(*given, **more):
            students.append(train(*given, **more))
            return students[-1]

        patch.setattr(module, "distill", watched)
        run_study(study, _clip, folder / "work")
    assert len(students) == 4
    order = [(CONTROL, 0), ("region_taught", 0), (CONTROL, 1), ("region_taught", 1)]
    return study, folder / "work", dict(zip(order, students, strict=True))


@pytest.fixture
def copy(done, tmp_path):
    """The same study and its records in a folder of the test's own."""
    study, _, _ = done
    path = write_study(tmp_path / "copy")
    mine = read_study(path)
    for place in study.path.with_suffix("").iterdir():
        record = json.loads(place.read_text(encoding="utf-8"))
        write_record(record, path.with_suffix("") / place.name)
    return mine


def record(study, name: str, seed: int = 0) -> dict:
    arm = next(arm for arm in study.arms if arm.name == name)
    return json.loads(study.record_of(arm, seed).read_text(encoding="utf-8"))


def test_each_training_leaves_a_record(done) -> None:
    study, _, _ = done
    names = {place.name for place in study.path.with_suffix("").iterdir()}
    assert names == {f"{name}-{seed}.json" for name, seed in ROWS}
    for name, seed in ROWS:
        found = record(study, name, seed)
        assert (found["arm"], found["seed"]) == (name, seed)
        steps = 0 if "clip" in name else 4 if name == CONTROL else 3  # eleven pictures: one batch
        assert found["steps"] == steps
        alphas = [point["alpha"] for point in found["frontier"]]
        assert alphas == ([0.0, *ALPHAS] if steps else [0.0])
        assert found["alpha"] in alphas and found["seconds"] >= 0
        assert (found["probe"] is not None) == name.startswith("region_taught")
        for way in WAYS:
            queries = counts(found["queries"][way])
            assert queries == [5 if way == "text_to_image" else 1] * 9
            for point in found["frontier"]:
                hits = counts(point["hits"][way])
                assert all(hit <= asked for hit, asked in zip(hits, queries, strict=True))
                assert point[way] == pytest.approx(sum(hits) / sum(queries))
        assert found["frontier"][0]["retention"] == 1
        arm = next(arm for arm in study.arms if arm.name == name)
        settings = arm.profile and arm.profile.as_dict() | {"seed": seed}
        if settings:
            settings["student"]["epochs"] = 0  # the steps decide
        assert found["settings"]["profile"] == json.loads(json.dumps(settings))


def test_a_record_says_what_each_mixture_finds_and_retains(done, world, _clip) -> None:
    """On test, and on val, by which the weight is chosen."""
    study, _, students = done
    test, val = (prepare_measuring(_clip, study, world, part) for part in ("test", "val"))
    assert [len(each.pictures) for each in test[0]] == [4, 4, 1]
    assert [len(each.pictures) for each in val[0]] == [4, 2]

    def ask(clip):
        return [measure(clip, place)[None] for place in (test, val)]

    base, base_on_val = ask(_clip)
    assert 0.7 < float(base.correct.float().mean()) < 0.8
    for (name, seed), run in students.items():
        found = record(study, name, seed)
        for point, candidate in zip(found["frontier"], found["val"], strict=True):
            alpha = point["alpha"]
            mixed = interpolate(_clip, run.student, alpha)
            measured, on_val = ask(mixed)
            for way in WAYS:
                own = measured.found[way]
                hits = [int(own.hits[own.image == image].sum()) for image in range(9)]
                assert counts(point["hits"][way]) == hits
            kept = float(measured.correct.float().mean() / base.correct.float().mean())
            assert point["retention"] == pytest.approx(kept)
            held_out = measured.held_out / base.held_out
            assert point["retention_held_out_style"] == pytest.approx(held_out)
            recall = on_val.found["text_to_image"].figures["recall_at_1"]
            kept = on_val.correct.float().mean() / base_on_val.correct.float().mean()
            assert candidate["alpha"] == alpha and candidate["recall_at_1"] == pytest.approx(recall)
            assert candidate["retention"] == pytest.approx(float(kept))
        candidates = [module.Candidate(**each) for each in found["val"]]
        assert found["alpha"] == choose_candidate(candidates, RETENTION).alpha
        mixed = interpolate(_clip, run.student, found["alpha"])
        chosen, _ = ask(mixed)
        assert counts(found["chosen"]["correct"]) == chosen.correct.int().tolist()
        for way in WAYS:
            assert found["chosen"][way] == pytest.approx(chosen.found[way].figures)
        for kind, similarity in score_compositions(mixed, 2).items():
            told = composition_scores(similarity)
            packed = found["compositions"][kind]
            assert {name: counts(each) for name, each in packed.items()} == {
                name: each.int().tolist() for name, each in told.items()
            }


def test_arms_that_differ_in_rescoring_share_a_training(done, world, _clip) -> None:
    """And each mixture is rescored by its own features of the training data."""
    study, _, students = done  # four, of six rows that are trained
    test = prepare_measuring(_clip, study, world, "test")
    for seed in study.seeds:
        found = record(study, "region_taught_softmax", seed)
        for point in found["frontier"]:
            mixed = interpolate(_clip, students["region_taught", seed].student, point["alpha"])
            references = prepare_references(mixed, world.train)
            galleries = encode_galleries(mixed, test[0])
            expected = measure_galleries(galleries, references, SOFTMAX)
            for way in WAYS:
                assert point[way] == pytest.approx(expected[way].figures["recall_at_1"])
            if point["alpha"] == found["alpha"]:
                hubs = [measure_hubness(*each[:2], references, SOFTMAX) for each in galleries]
        for way in WAYS:
            for name, skew in found["skewness_of_k_occurrence"][way].items():
                assert skew == pytest.approx(sum(each[way][name] for each in hubs) / 3)
        assert record(study, "region_taught", seed)["skewness_of_k_occurrence"] is None
        retained = [point["retention"] for point in found["frontier"]]
        unscored = record(study, "region_taught", seed)["frontier"]
        assert retained == [point["retention"] for point in unscored]


def test_trained_arms_are_kept(done, _clip) -> None:
    study, work, students = done
    for (name, seed), run in students.items():
        place = arm_place(work, study, name, seed)
        arm = load_arm(place)
        found = record(study, name, seed)
        assert arm.alpha == found["alpha"] and arm.history == run.history
        assert [vars(each) for each in arm.candidates] == found["val"]
        mixed = interpolate(_clip, run.student, arm.alpha)
        pixels = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
        near = encode_images(arm.clip, pixels), encode_images(mixed, pixels)
        torch.testing.assert_close(*near, atol=5e-3, rtol=0)  # kept in half precision
        origin = read_origin(place)
        assert (origin.digest, origin.profile.seed) == (_clip.digest, seed)
        seen = load_seen(place)
        assert seen.complete and seen.trained.names
        uncaptioned = hash_name("pocket uncaptioned/4") in seen.trained.names
        assert uncaptioned == (name == "region_taught")


def test_teachers_are_kept_with_what_they_have_seen(done, world, _clip) -> None:
    study, work, _ = done
    folders = sorted((work / "teachers").glob("*/*"))
    assert [folder.name for folder in folders] == ["region_teacher"] * 2  # of two seeds
    for folder in folders:
        run = load_saved_teacher(folder)
        assert run.settings == study.profile.region_teacher and len(run.history) == 2
        assert read_origin(folder).digest == _clip.digest
        left = leave_out_trained(world.test, {"it": load_seen(folder)})
        assert left.dataset == world.test
        assert hash_name("pocket uncaptioned/4") not in load_seen(folder).trained.names
        with pytest.raises(ValueError, match="0 are left"):
            leave_out_trained(world.train, {"it": load_seen(folder)})


def test_the_untouched_clip_is_rescored_by_training_captions_and_pictures(
    done, world, _clip
) -> None:
    study, *_ = done
    place = prepare_measuring(_clip, study, world, "test")
    for name, references in (("clip", None), ("clip_nnn", prepare_references(_clip, world.train))):
        found = measure_galleries(encode_galleries(_clip, place[0]), references)
        (point,) = record(study, name)["frontier"]
        assert {way: point[way] for way in WAYS} == pytest.approx(
            {way: found[way].figures["recall_at_1"] for way in WAYS}
        )
        assert point["retention"] == 1


def test_what_has_a_record_is_not_trained_again(copy, _clip, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_Workshop", lambda *_, **__: pytest.fail("something was done"))
    run_study(copy, _clip, tmp_path / "work")
    run_study(copy, _clip, tmp_path / "work", [CONTROL])


def test_a_study_that_was_interrupted_goes_on_where_it_was(
    copy, world, _clip, tmp_path, monkeypatch
) -> None:
    expected, asked, train = record(copy, CONTROL, 1), [], module.distill
    copy.record_of(copy.arms[2], 1).unlink()

    def watched(*given, **more):
        asked.append(more["seed"])
        return train(*given, **more)

    monkeypatch.setattr(module, "distill", watched)
    run_study(copy, _clip, tmp_path / "work", ["region_taught"])
    assert not asked and not copy.record_of(copy.arms[2], 1).exists()  # it was not asked for
    run_study(copy, _clip, tmp_path / "work")
    found = record(copy, CONTROL, 1)
    assert asked == [1] and found | {"seconds": 0} == expected | {"seconds": 0}


def test_some_arms_are_trained_beside_the_untouched_clip(world, _clip, tmp_path) -> None:
    """So that what there is can be summed up."""
    study = read_study(write_study(tmp_path))
    run_study(study, _clip, tmp_path / "work", ["clip_nnn"])
    names = {place.name for place in study.path.with_suffix("").iterdir()}
    assert names == {"clip-0.json", "clip_nnn-0.json"}
    assert list(summarise(study)["arms"]) == ["clip", "clip_nnn"]


def test_an_unknown_arm_lists_the_known_ones(copy, _clip, tmp_path) -> None:
    says = f"arms out of clip, clip_nnn, {CONTROL}, region_taught, .*, got 'best'"
    with pytest.raises(ValueError, match=says):
        run_study(copy, _clip, tmp_path, ["best"])
    with pytest.raises(ValueError, match=says):
        run_study(copy, _clip, tmp_path, repeat=("best", 0))


@pytest.mark.parametrize(
    ("old", "new", "arm", "differs"),
    [
        ("learning_rate = 2e-3", "learning_rate = 3e-3", "region_taught-0", "profile.student.lear"),
        ("steps = 4", "steps = 5", CONTROL + "-0", "steps"),
        ("width = 24", "width = 48", CONTROL + "-0", "profile.region_teacher.width"),
        ("gallery = 4", "gallery = 3", "clip-0", "measured.gallery"),
        ("compositions = 2", "compositions = 3", "clip-0", "measured.compositions"),
        ("gallery = 4", 'gallery = 4\ntemplates = "paper"', "clip-0", "measured.templates"),
        ("gallery = 4", "gallery = 4\nalphas = [0.5, 1.0]", "clip-0", "measured.alphas"),
    ],
)
def test_records_of_other_settings_are_refused(
    old, new, arm, differs, copy, _clip, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(module, "_Workshop", lambda *_, **__: pytest.fail("something was done"))
    text = copy.path.read_text()
    assert old in text
    copy.path.write_text(text.replace(old, new))
    says = rf"Expected .*{arm}\.json to be of the settings in .*tiny\.toml, .* differ in {differs}"
    with pytest.raises(ValueError, match=says):
        run_study(read_study(copy.path), _clip, tmp_path / "work")


def test_a_record_that_was_deleted_is_trained_by_its_new_settings(world, _clip, tmp_path) -> None:
    """In the same folder for work, whose checkpoints are of the old ones."""
    arms = CLIP + 'x = { recipe = "contrastive", steps = 2, student = { learning_rate = 1e-3 } }\n'
    path = write_study(tmp_path, arms)
    run_study(read_study(path), _clip, tmp_path / "work")
    before = record(read_study(path), "x")
    path.write_text(path.read_text().replace("1e-3", "5e-3"))
    for seed in (0, 1):
        (tmp_path / "tiny" / f"x-{seed}.json").unlink()
    run_study(read_study(path), _clip, tmp_path / "work")
    after = record(read_study(path), "x")
    assert after["settings"]["profile"]["student"]["learning_rate"] == 5e-3
    assert after["frontier"][-1]["retention"] != before["frontier"][-1]["retention"]


def test_older_records_lack_newer_settings_and_are_taken(copy, _clip, tmp_path) -> None:
    for arm in copy.arms:
        for seed in copy.seeds_of(arm):
            place = copy.record_of(arm, seed)
            kept = json.loads(place.read_text())
            kept["settings"]["measured"] = {"compositions": 2}
            if arm.profile:
                del kept["settings"]["profile"]["leak_guard"]
                del kept["settings"]["profile"]["student"]["clip_norm"]
            write_record(kept, place)
    run_study(copy, _clip, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_records_that_were_not_asked_for_compositions_are_refused(copy, _clip, tmp_path) -> None:
    place = copy.record_of(copy.arms[0], 0)
    kept = json.loads(place.read_text())
    del kept["settings"]["measured"]["compositions"]
    write_record(kept, place)
    with pytest.raises(ValueError, match=r"differ in measured\.compositions; delete it"):
        run_study(copy, _clip, tmp_path / "work")


def test_a_training_is_repeated_from_its_beginning_and_kept_apart(
    done, world, _clip, monkeypatch
) -> None:
    study, work, _ = done
    before = study.record_of(study.arms[3], 1).read_bytes()
    steps, train = [], module.distill

    def watched(*given, **more):
        return train(*given, **more, on_step=lambda step, loss: steps.append(step))

    monkeypatch.setattr(module, "distill", watched)
    for _ in range(2):
        steps.clear()
        run_study(study, _clip, work, repeat=("region_taught", 1))
        assert steps == [0, 1, 2]
    again = json.loads((work / "repeated" / "region_taught-1.json").read_text())
    assert again | {"seconds": 0} == record(study, "region_taught", 1) | {"seconds": 0}
    assert study.record_of(study.arms[3], 1).read_bytes() == before
    lines = format_repeated(study, work, "region_taught", 1).splitlines()
    assert len(lines) == 2 + 6
    for line, point in zip(lines[2:], again["frontier"], strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        values = [f"{100 * point[name]:.1f}" for name in (*WAYS, "retention")]
        assert cells == [f"{point['alpha']:g}", *(f"{value}, {value}" for value in values)]


@pytest.mark.parametrize("seed", [1, 7])
def test_what_has_no_record_is_not_repeated(seed, copy, _clip, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_Workshop", lambda *_, **__: pytest.fail("something was done"))
    copy.record_of(copy.arms[2], 1).unlink()
    says = f"a record of {CONTROL} with the seed {seed} to repeat, found none; run the study first"
    with pytest.raises(ValueError, match=says):
        run_study(copy, _clip, tmp_path / "work", repeat=(CONTROL, seed))


RECORDED = ARMS.replace(
    f'{CONTROL} = {{ recipe = "{CONTROL}", steps = 4 }}', f'{CONTROL} = {{ recipe = "recorded" }}'
)


def test_a_recorded_arm_is_shown_like_one_that_is_trained(copy, _clip, tmp_path, monkeypatch):
    """Although its records are of settings that there are no more."""
    monkeypatch.setattr(module, "_Workshop", lambda *_, **__: pytest.fail("something was done"))
    for seed in (0, 1):
        place = copy.record_of(copy.arms[2], seed)
        kept = json.loads(place.read_text())
        kept["settings"]["profile"]["student"]["gone"] = True
        write_record(kept, place)
    trained, study = summarise(copy), read_study(write_study(copy.path.parent, RECORDED))
    run_study(study, _clip, tmp_path / "work")
    run_study(study, _clip, tmp_path / "work", [CONTROL])
    assert summarise(study) == trained


def test_a_recorded_arm_without_its_record_is_refused_before_others_train(
    copy, _clip, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(module, "_Workshop", lambda *_, **__: pytest.fail("something was done"))
    study = read_study(write_study(copy.path.parent, RECORDED))
    for arm in study.arms[2:4]:
        study.record_of(arm, 1).unlink()
    says = rf"Expected a record at .*{CONTROL}-1\.json, .*; restore it, or take {CONTROL} out of"
    with pytest.raises(ValueError, match=says):
        run_study(study, _clip, tmp_path / "work")
    with pytest.raises(ValueError, match=says):
        summarise(study)


def test_a_recorded_arm_is_not_repeated(copy, _clip, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_Workshop", lambda *_, **__: pytest.fail("something was done"))
    study = read_study(write_study(copy.path.parent, RECORDED))
    with pytest.raises(ValueError, match=rf"an arm that can be trained, got {CONTROL}, .*; repeat"):
        run_study(study, _clip, tmp_path / "work", repeat=(CONTROL, 1))


def test_a_recorded_arm_was_measured_as_the_others_are(copy, _clip, tmp_path) -> None:
    place = copy.record_of(copy.arms[2], 0)
    kept = json.loads(place.read_text())
    kept["settings"]["measured"]["gallery"] = 3
    write_record(kept, place)
    study = read_study(write_study(copy.path.parent, RECORDED))
    says = rf"{CONTROL}-0\.json .* differ in measured\.gallery; take {CONTROL} out"
    with pytest.raises(ValueError, match=says):
        run_study(study, _clip, tmp_path / "work")


OTHERS = """
[arms]
clip = { recipe = "none" }
official_code = { recipe = "official_code", steps = 3, student = { learning_rate = 1e-2 } }
dclip = { recipe = "dclip", steps = 2 }
whole_picture_taught = { recipe = "whole_picture_taught", steps = 2 }
region_taught = { recipe = "region_taught", steps = 2, captions = 0.5 }
self_taught = { recipe = "self_taught", steps = 2, captions = 0.5 }
"""


def test_other_recipes_are_compared_too(world, _clip, tmp_path, monkeypatch) -> None:
    """Each by its own teacher, on its own share of the captioned pictures."""
    study, taught, trained = read_study(write_study(tmp_path, OTHERS, COMMON)), [], []
    study = replace(study, seeds=(1,))
    prepare, train, asked = experiment.prepare_lessons, module.distill, []
    load = module.load_uncaptioned

    def watch_lessons(teacher, captioned, uncaptioned, *settings):
        taught.append((teacher, uncaptioned and len(uncaptioned.dataset)))
        return prepare(teacher, captioned, uncaptioned, *settings)

    def watch_training(*given, **more):
        run = train(*given, **more)
        trained.append((len(given[1].pictures), tuple(given[1].dataset.texts), run))
        return run

    monkeypatch.setattr(experiment, "prepare_lessons", watch_lessons)
    monkeypatch.setattr(module, "distill", watch_training)
    arms, train_control = [], module.train_arm
    monkeypatch.setattr(
        module, "train_arm", lambda *a, **b: arms.append(train_control(*a, **b)) or arms[-1]
    )
    monkeypatch.setattr(module, "load_uncaptioned", lambda *a: asked.append(a) or load(*a))
    run_study(study, _clip, tmp_path / "work")

    recipes = ["official_code", "dclip", "whole_picture_taught", "region_taught", "self_taught"]
    assert [count for _, count in taught] == [None, None, 5, 5, 5] and len(asked) == 1
    teachers = [type(teacher).__name__ for teacher, _ in taught]
    kinds = ["MetaTeacher"] * 2 + ["RegionTeacher"] * 2 + ["ClipBundle"]
    assert teachers == kinds
    assert [teacher.masked for teacher, _ in taught[:2]] == [False, True]
    control, _ = taught[-1]
    assert isinstance(control, ClipBundle) and same_text_tower(control, _clip)
    (arm,) = arms
    assert control is arm.clip
    assert "rehearsal" in arm.history[0] and "distillation" not in arm.history[0]

    assert [count for count, *_ in trained] == [11, 11, 11, 6, 6]
    half = trained[3][1]
    assert half == trained[4][1] and set(half) < set(world.train.texts) and len(half) == 30
    probes = [record(study, name, 1)["probe"] for name in recipes]
    assert [probe is not None for probe in probes] == [False, False, True, True, False]

    # The text tower of official_code trains, and is measured and kept as it is then.
    run = trained[0][2]
    assert not same_text_tower(run.student, _clip)
    place = prepare_measuring(_clip, study, world, "test")
    measured = measure(run.student, place)[None].found
    last = record(study, "official_code", 1)["frontier"][-1]
    for way in WAYS:
        assert last[way] == pytest.approx(measured[way].figures["recall_at_1"])
    arm = load_arm(arm_place(tmp_path / "work", study, "official_code", 1))
    assert same_text_tower(arm.clip, _clip) == (arm.alpha == 0)


def test_arms_with_other_regions_have_teachers_of_their_own(world, _clip, tmp_path) -> None:
    """And so do the controls of a teacher."""
    more = "region_teacher = { regions = 'another' }"
    arms = CLIP + (
        'a = { recipe = "region_taught", steps = 1 }\n'
        'b = { recipe = "region_taught", steps = 1, regions = { margin = 0.4 } }\n'
        f'c = {{ recipe = "region_taught", steps = 1, {more} }}\n'
        'd = { recipe = "whole_picture_taught", steps = 1 }\n'
        'e = { recipe = "region_taught", steps = 2 }\n'
    )
    study = replace(read_study(write_study(tmp_path, arms)), seeds=(0,))
    run_study(study, _clip, tmp_path / "work")
    assert len(list((tmp_path / "work" / "teachers").iterdir())) == 4  # e's is a's


def test_arms_that_the_control_teaches_share_its_training(
    world, _clip, tmp_path, monkeypatch
) -> None:
    arms = CLIP + (
        'a = { recipe = "self_taught", steps = 1 }\n'
        'b = { recipe = "self_taught", steps = 2, student = { learning_rate = 1e-4 } }\n'
        'c = { recipe = "self_taught", steps = 1, captions = 0.5 }\n'
    )
    study = replace(read_study(write_study(tmp_path, arms)), seeds=(0,))
    teachers, prepare = [], experiment.prepare_lessons
    monkeypatch.setattr(
        experiment, "prepare_lessons", lambda *given: teachers.append(given[0]) or prepare(*given)
    )
    run_study(study, _clip, tmp_path / "work")
    first, second, _ = (each.model.visual.proj for each in teachers)
    assert torch.equal(first, second)
    # Three students; a control of a and b, and one of c, which sees other captions.
    assert len(list((tmp_path / "work" / "checkpoints").glob("student-*.safetensors"))) == 3 + 2


@pytest.mark.parametrize(("first", "steps"), [(True, 0), (False, 0), (True, 3), (False, 3)])
def test_a_control_that_has_a_row_of_its_own_is_trained_once(
    first, steps, world, _clip, tmp_path, monkeypatch
) -> None:
    """What it teaches it has learned for its own row, whichever comes first."""
    taken, accumulate = [], loop._accumulate
    monkeypatch.setattr(
        loop, "_accumulate", lambda *given: taken.append(given[2].name) or accumulate(*given)
    )
    rows = [
        f'{CONTROL} = {{ recipe = "{CONTROL}", steps = {steps} }}\n',
        'self_taught = { recipe = "self_taught", steps = 2 }\n',
    ]
    study = read_study(write_study(tmp_path, CLIP + "".join(rows if first else rows[::-1])))
    study = replace(study, seeds=(0,))
    arms, train = [], module.train_arm
    monkeypatch.setattr(
        module, "train_arm", lambda *given, **more: arms.append(train(*given, **more)) or arms[-1]
    )
    run_study(study, _clip, tmp_path / "work")
    # An epoch of eleven pictures is a step.
    epochs = steps or apply_recipe(study.profile, CONTROL).student.epochs
    assert (taken.count("fine-tuning"), taken.count("distilling")) == (epochs, 2)
    assert record(study, CONTROL)["steps"] == epochs
    (teacher,) = arms
    own = load_arm(arm_place(tmp_path / "work", study, CONTROL, 0))
    assert [row["loss"] for row in own.history] == [row["loss"] for row in teacher.history]


def test_data_of_ones_own_is_studied_on_its_own_val_and_test(
    _clip, make_detector, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(extraction, "load_detector", lambda *_, **__: make_detector())
    monkeypatch.setattr(module, "load_data", profile_data.load_data)
    own = write_own(tmp_path / "own", range(21), split=True)
    table = own / "captions.csv"  # a third picture is measured on, which the CLIP has trained on
    table.write_text(table.read_text().replace("16,train", "16,test"))
    classes = write_classes(tmp_path / "classes", 12)
    more = tmp_path / "more"
    more.mkdir()
    for seed in range(40, 44):
        scene(seed).save(more / f"{seed}.jpg")
    scene(19).save(more / "measured.jpg", quality=70)
    labelled = sorted(classes.rglob("*.png"))
    for number, path in enumerate(labelled[:3]):  # without captions they are trained on, too
        shutil.copy(path, more / f"labelled-{number}.png")
    common = (
        f'seeds = [0]\ndata = "{own}"\nzero_shot = "{classes}"\nuncaptioned = "{more}"\n'
        "region_teacher = { width = 24, heads = 3, epochs = 1 }\n"
    )
    before = [replace(pictures_below(own, [x]), image_ids=(OWN,)) for x in ("16.png", "17.png")]
    seen = describe_seen(*before, [], by_content=False)
    start = tmp_path / "runs" / "x" / "dclip"
    save_arm(Arm(_clip, 1.0), start, describe_origin(PROFILES["pocket"], _clip), seen)
    common += f'clip = "{start}"\n'
    arms = CLIP + 'region_taught = { recipe = "region_taught", steps = 1 }\n'
    study, asked = read_study(write_study(tmp_path, arms, common)), []
    prepare = experiment.prepare_lessons
    monkeypatch.setattr(
        experiment, "prepare_lessons", lambda *given: asked.append(given[2]) or prepare(*given)
    )
    run_study(study, _clip, tmp_path / "work")
    assert len(asked[0].dataset) == 4 + 3  # and not the picture that is measured on
    found = record(study, "region_taught")
    assert counts(found["queries"]["text_to_image"]) == [2, 2]
    assert found["frontier"][1]["retention_held_out_style"] is None
    assert summarise(study)["arms"]["region_taught"]["frontier"][0]["retention"] == 1
    made = load_seen(arm_place(tmp_path / "work", study, "region_taught", 0))
    assert set(seen.trained.as_dict()["names"]) < made.trained.names.keys()
    # Labelled pictures are trained, chosen or measured on.
    assert made.complete and len(made.labelled) + len(counts(found["chosen"]["correct"])) == 36 - 3


def test_steps_and_galleries_that_do_not_come_out_even_are_told(
    world, _clip, tmp_path, capsys
) -> None:
    arms = CLIP + 'x = { recipe = "contrastive", steps = STEPS, student = { batch_size = 2 } }\n'
    common = COMMON.replace("[0, 1]", "[0]")
    study = read_study(write_study(tmp_path, arms.replace("STEPS", "1"), common))
    run_study(study, _clip, tmp_path / "work")
    said, steps = capsys.readouterr().out, record(study, "x")["steps"]
    assert steps > 1 and f"x trains {steps} steps for 1, in whole epochs of {steps}." in said
    assert "The last gallery of val has 2 of 4 pictures" in said
    even = common.replace("gallery = 4", "gallery = 3"), arms.replace("STEPS", str(steps))
    run_study(read_study(write_study(tmp_path / "even", *even[::-1])), _clip, tmp_path / "work")
    said = capsys.readouterr().out
    assert "in whole epochs" not in said and "last gallery" not in said


def test_a_clip_that_knows_no_class_has_nothing_to_retain(world, _clip, tmp_path, monkeypatch):
    known = world.zero_shot
    labels = tuple((each + 2) % len(known.class_names) for each in known.labels)
    wrong = replace(known, labels=labels)
    monkeypatch.setattr(module, "load_data", lambda profile: replace(world, zero_shot=wrong))
    study = read_study(write_study(tmp_path))
    with pytest.raises(ValueError, match="knows some of the classes, got none right"):
        run_study(study, _clip, tmp_path / "work", ["clip"])
