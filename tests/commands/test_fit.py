"""Commands that train, and their runs measured: what they write, say and refuse."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import open_clip
import pytest
import torch

from dclip_kit.config import CONTROL, control_of, get_profile
from dclip_kit.data import CaptionedImages
from dclip_kit.data.leaks import find_leaks
from dclip_kit.data.splits import read_test
from dclip_kit.evaluation import arms as arms_module
from dclip_kit.evaluation import experiment, pilot
from dclip_kit.evaluation.seen import load_seen
from dclip_kit.features.store import FrozenFeatures
from dclip_kit.models.clip import load_clip
from dclip_kit.runtime.files import asset_path
from tests.data.test_leaks import scene
from tests.data.test_splits import write_own

TAUGHT = "region_taught"  # the default
WEIGHTS = "open_clip_model.safetensors"
A_TEXT = asset_path("sprites", "GPL-2.txt")

# train-teacher, distill, evaluate


def test_a_run_from_data_to_a_model_of_open_clips(run, options, own, clip, tmp_path) -> None:
    out = tmp_path / "runs" / "mine"
    code, said, _ = run("train-teacher", "--out", out, *options)
    assert (code, said.count("Trained the teacher now")) == (0, 1)
    assert {"region_teacher", "settings.json", "checkpoints"} < {x.name for x in out.iterdir()}
    files = {"config.json", "model.safetensors", "training.json", "seen.json"}
    assert {each.name for each in (out / "region_teacher").iterdir()} == files
    code, said, err = run("distill", "--out", out, *options)
    assert code == 0, err
    assert "16 pictures with captions to train on, 2 to choose on, 2 to measure on." in said
    assert "Loaded the features" in said and f"{TAUGHT} over {CONTROL}" in said
    assert f"  hf upload YOU/NAME {out}/{TAUGHT} . --exclude seen.json\n" in said
    report = json.loads((out / "report.json").read_text())
    assert report["ceiling"] is None and report["arms"].keys() == {"clip", CONTROL, TAUGHT}
    assert report["arms"][TAUGHT]["zero_shot"]["top1_held_out_style"] is None
    assert report["settings"]["data"] == str(own)
    assert len(report["left_out"]["unusable"]) == 1
    checkpoints = sorted(path.name for path in (out / "checkpoints").glob("*.safetensors"))
    assert checkpoints == [f"{name}.safetensors" for name in (CONTROL, TAUGHT, "teacher")]

    # Again: nothing is trained anew, and the figures are the same.
    weights = (out / TAUGHT / WEIGHTS).read_bytes()
    (out / TAUGHT / WEIGHTS).unlink()
    code, _, _ = run("distill", "--out", out, *options)
    assert code == 0 and (out / TAUGHT / WEIGHTS).read_bytes() == weights
    again = json.loads((out / "report.json").read_text())
    assert again["arms"] == report["arms"]
    code, _, err = run("distill", "--out", out, *options, "--student.epochs", "3")
    assert code == 2 and "they differ in student.epochs" in err

    # The same figures from evaluate, beside the untouched CLIP.
    figures = tmp_path / "figures.json"
    models = ("--model", options[5], out / TAUGHT)
    code, said, err = run("evaluate", *models, "--json", figures)
    assert code == 0, err
    assert "2 pictures, 4 captions" in said and "text → image Recall@1:" in said
    assert "Zero-shot top-1, classes" in said
    measured = json.loads(figures.read_text())
    found = measured["retrieval"]
    for key in ("text_to_image", "image_to_text"):
        assert found[str(out / TAUGHT)][key] == report["arms"][TAUGHT][key]
    gain = measured["gains"][str(out / TAUGHT)]["text → image"][0]
    assert gain["name"] == "Recall@1" and gain["queries"] == 4
    expected = report["gain"]["text_to_image_recall_at_1"]
    assert gain["change"]["estimate"] == pytest.approx(expected["absolute"])
    assert list(measured["gains"]) == [str(out / TAUGHT)]

    # Plain open_clip loads it, and its card says what was measured.
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out / TAUGHT}")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        one, before = (each.eval().encode_image(pixels) for each in (model, clip.model))
    torch.testing.assert_close(one, load_clip(out / TAUGHT).model.encode_image(pixels))
    for name in (CONTROL, TAUGHT):
        card = (out / name / "README.md").read_text()
        assert "Recall@1" in card and "few to measure on" in card and str(tmp_path) not in card
    if report["arms"][TAUGHT]["alpha"]:
        assert not torch.allclose(one, before)


def test_a_pilot_is_tried_and_its_rate_taken_over(run, options, tmp_path) -> None:
    profile = get_profile("pocket")  # whose recipes have rates of their own
    own, control = (each.student.learning_rate for each in (profile, control_of(profile)))
    assert own != control
    options = ["--profile", "pocket", *options]
    part = ("--pictures", "8", "--steps", "3")
    code, said, err = run("pilot", "--out", tmp_path / "pilot", *options, *part)
    assert code == 0, err
    assert said.count(" steps: R@1 text→image: ") == 3 and "Too few captions: 16 pictures" in said
    file = tmp_path / "pilot/pilot.json"
    report = json.loads(file.read_text())
    rates = [rung["learning_rate"] for rung in report["rungs"]]
    assert rates == pytest.approx([control / 3, control, control * 3])
    assert report["tried_on"]["captioned"] == 8 and report["pictures"]["captioned"] == 16
    assert report["seconds_a_step"] > 0 and report["megabytes"] > 100
    best = max(rung["recall_at_1"] for rung in report["rungs"])
    taken = report["student"]["learning_rate_factor"]
    (chosen,) = [rung for rung in report["rungs"] if rung["factor"] == taken]
    assert chosen["recall_at_1"] == best
    assert report["student"]["learning_rate"] == pytest.approx(own * taken)
    code, _, err = run("distill", "--out", tmp_path / "run", *options, "--rates", file)
    assert code == 0, err
    settings = json.loads((tmp_path / "run/settings.json").read_text())
    assert settings["student"]["learning_rate"] == report["student"]["learning_rate"]


def test_a_pilot_of_a_single_step_times_it(run, options, tmp_path) -> None:
    part = ("--pictures", "4", "--steps", "1", "--minutes", "0")
    code, said, err = run("pilot", "--out", tmp_path / "pilot", *options, *part)
    assert code == 0, err
    report = json.loads((tmp_path / "pilot/pilot.json").read_text())
    assert said.count(", 1 steps: ") == 3 and report["seconds_a_step"] > 0


def test_a_pilot_goes_on_where_a_rate_ruins_the_weights(
    run, options, tmp_path, monkeypatch
) -> None:
    distilled, rates = pilot.distill, []

    def ruin(clip, captioned, terms, settings, **more):
        rates.append(settings.learning_rate)
        if len(rates) == 4:  # the first only times a step
            raise ValueError("weights that are not finite")
        return distilled(clip, captioned, terms, settings, **more)

    monkeypatch.setattr(pilot, "distill", ruin)
    part = ("--pictures", "8", "--steps", "1")
    code, said, err = run("pilot", "--out", tmp_path / "pilot", *options, *part)
    assert code == 0, err
    assert f"rate {max(rates):.1e} is too high: weights that are not finite" in said
    report = json.loads((tmp_path / "pilot/pilot.json").read_text())
    assert [rung["learning_rate"] for rung in report["rungs"]] == rates[1:3]


def test_a_pilot_says_where_nothing_changed(run, options, tmp_path, monkeypatch) -> None:
    """Rather than that the model lost more than it found, and to go lower still."""
    monkeypatch.setattr(pilot, "FEW", 16)
    part = ("--pictures", "8", "--steps", "1", "--student.learning-rate", "1e-15")
    code, said, err = run("pilot", "--out", tmp_path / "pilot", *options, *part)
    assert code == 0, err
    assert "Nothing changed at any rate" in said
    # Its advice can be followed in the same folder, unless a run has begun there.
    part = (*part[:-1], "1e-14")
    assert run("pilot", "--out", tmp_path / "pilot", *options, *part)[0] == 0
    (tmp_path / "pilot/checkpoints").mkdir()
    code, _, err = run("pilot", "--out", tmp_path / "pilot", *options, *part[:-1], "1e-13")
    assert code == 2 and "they differ in student.learning_rate" in err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--steps", "0"), "at least one picture and step"),
        (("--pictures", "0"), "at least one picture and step"),
        (("--minutes", "inf"), "a number of minutes of 0 or more"),
        (("--minutes", "-1"), "a number of minutes of 0 or more"),
        (("--data", "nowhere"), "nowhere"),
    ],
)
def test_a_pilot_of_nothing_is_refused(given, says, run, options, tmp_path) -> None:
    code, _, err = run("pilot", "--out", tmp_path / "pilot", *options, *given)
    assert code == 2 and says in err


def test_a_run_of_a_ruined_model_stops_unless_it_is_told_to_go_on(
    run, options, tmp_path, monkeypatch
) -> None:
    def ruin(*_: float) -> None:
        raise ValueError("Expected a model that still searches, got another.")

    monkeypatch.setattr(arms_module, "_require_intact", ruin)
    code, _, err = run("distill", "--out", tmp_path / "run", *options)
    assert code == 2 and "still searches" in err
    for _ in range(3):  # the epoch that ruined it is not forgotten
        code, _, err = run("distill", "--out", tmp_path / "run", *options)
        assert code == 2 and "still searches" in err
    code, _, err = run("distill", "--out", tmp_path / "run", *options, "--keep-going")
    assert code == 0, err


@pytest.mark.parametrize("option", ["--teacher", "--test", "--uncaptioned"])
def test_what_pictures_alone_cannot_use_is_refused(option, run, options, own, tmp_path) -> None:
    (own / "captions.csv").unlink()
    (tmp_path / "texts.txt").write_text("a dog")
    alone = ("--recipe", "crops_taught", "--captions", "none")
    given = [*alone, "--anchor-texts", tmp_path / "texts.txt", option, own]
    code, _, err = run("distill", "--out", tmp_path / "run", *options, *given)
    assert code == 2 and f"Expected no {option} where no picture has a caption" in err
    assert not (tmp_path / "run").exists()


def test_distill_takes_a_teacher_that_is_there(run, options, tmp_path) -> None:
    assert run("train-teacher", "--out", tmp_path / "a", *options)[0] == 0
    share = ("--teacher", tmp_path / "a/region_teacher", "--features", tmp_path / "a")
    code, said, _ = run("distill", "--out", tmp_path / "b", *share, *options)
    assert code == 0 and "Loaded the saved teacher: 2 epochs." in said
    assert "region_taught ignores the settings of teacher." in said
    assert "region_taught ignores the settings of region_teacher." in said  # it is there
    assert f"Loaded the features in {tmp_path}/a/features-train" in said
    assert not (tmp_path / "b/region_teacher").exists()
    code, _, err = run("distill", "--out", tmp_path / "c", "--teacher", tmp_path / "a", *options)
    assert code == 2 and f"name {tmp_path}/a/region_teacher." in err
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("recipe", ["whole_picture_taught", "dclip"])
def test_a_teacher_that_sees_something_else_is_not_taken(recipe, run, options, tmp_path) -> None:
    assert run("train-teacher", "--out", tmp_path / "a", *options)[0] == 0
    given = [*options, "--recipe", recipe, "--teacher", tmp_path / "a/region_teacher"]
    code, _, err = run("distill", "--out", tmp_path / "b", *given)
    says = {"whole_picture_taught": "a teacher with regions='none' in", "dclip": "got a region_te"}
    assert code == 2 and says[recipe] in err and not (tmp_path / "b").exists()


def test_a_recipe_is_run_and_its_arms_are_read_back(run, options, own, tmp_path) -> None:
    """Where the text tower trains too, an arm is both towers, and training needs the captions."""
    out, published = tmp_path / "run", ("--recipe", "official_code", "--student.learning-rate", "1")
    code, said, err = run("distill", "--out", out, *options, *published)
    assert code == 0, err
    assert f"official_code over {CONTROL}" in said and f"{out}/official_code . --ex" in said
    report = json.loads((out / "report.json").read_text())
    settings = report["settings"]
    assert settings["student"]["train_text"] and not settings["regions"]["weighted"]
    assert settings["recipe"] == "official_code"
    assert report["arms"].keys() == {"clip", CONTROL, "official_code"}
    figures = tmp_path / "figures.json"
    measure = ("--data", own, "--zero-shot", options[3], "--json", figures)
    for name in (CONTROL, "official_code"):
        assert run("evaluate", "--model", out / name, *measure)[0] == 0
        found = json.loads(figures.read_text())["retrieval"][str(out / name)]
        expected = report["arms"][name]["text_to_image"]["recall_at"]
        assert found["text_to_image"]["recall_at"] == expected


def test_a_run_that_trains_adapters_leaves_ordinary_models(run, options, clip, tmp_path) -> None:
    """Both of the recipe and of its control, whose checkpoints are a part of the usual ones."""
    size = {}
    for rank in ("0", "2"):
        out = tmp_path / rank
        given = (*options, "--student.lora", rank, "--student.learning-rate", "1e-2")
        code, _, err = run("distill", "--out", out, *given)
        assert code == 0, err
        size[rank] = (out / f"checkpoints/{TAUGHT}.safetensors").stat().st_size
    assert size["2"] < size["0"] / 2
    before = clip.model.state_dict()
    for name in (TAUGHT, CONTROL):
        kept = json.loads((out / name / "training.json").read_text())
        assert kept["settings"]["student"]["lora"] == 2
        model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out / name}")
        assert list(model.state_dict()) == list(before)
        changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
        assert len(changed) == (8 if kept["alpha"] else 0)


@pytest.mark.parametrize("recipe", ["self_taught", CONTROL, "contrastive"])
def test_a_recipe_without_a_teacher_of_its_own_trains_none(recipe, run, options, tmp_path) -> None:
    out = tmp_path / "run"
    given = (*options, "--recipe", recipe, "--denoiser", "another")
    code, said, err = run("distill", "--out", out, *given)
    assert code == 0, err
    unheeded = f"The recipe {recipe} ignores the settings of"
    assert all(f"{unheeded} {part}." in said for part in ("teacher", "region_teacher", "denoiser"))
    arms = {CONTROL, recipe}
    assert {path.parent.name for path in out.glob("*/training.json")} == arms  # and no teacher
    assert {path.stem for path in (out / "checkpoints").glob("*.safetensors")} == arms
    report = json.loads((out / "report.json").read_text())
    assert report["arms"].keys() == {"clip", *arms} and report["teacher_probe"] is None
    assert (report["gain_over_control"]["text_to_image_recall_at_1"] is None) == (len(arms) == 1)
    assert f"{recipe} over clip" in said and "Teacher" not in said and "dclip over" not in said
    history = json.loads((out / recipe / "training.json").read_text())["history"]
    assert ("rehearsal" in history[0]) == (recipe != "contrastive")
    code, _, err = run("train-teacher", "--out", out, *options, "--recipe", recipe)
    assert code == 2 and f"a recipe with a teacher of its own, got {recipe}; take" in err


# Pictures without captions


def trained_on(folder: Path, pictures: Iterable[Path]) -> dict[Path, str]:
    """Those of some pictures that a model has trained on, and by what they are known."""
    paths, seen = tuple(pictures), load_seen(folder)
    assert seen and seen.complete
    asked = CaptionedImages(paths, ((),) * len(paths), "all", "asked")
    return {leak.picture: leak.by for leak in find_leaks(asked, seen.trained).leaks}


@pytest.fixture
def plain(tmp_path) -> Path:
    """Ten JPEGs, of which one is in val and one in test; and what somebody wrote beside one."""
    folder = tmp_path / "plain"
    (folder / "deeper").mkdir(parents=True)
    for seed in range(100, 108):
        scene(seed).save(folder / ("deeper" if seed % 2 else "") / f"{seed}.jpg")
    for seed in (17, 19):
        scene(seed).save(folder / f"x{seed}.jpg", quality=60)
    (folder / "100.txt").write_text("a confidential note")
    return folder


def test_a_student_learns_from_pictures_without_captions(
    run, options, own, plain, tmp_path
) -> None:
    out = tmp_path / "run"
    given = [*options, "--uncaptioned", plain]
    code, said, err = run("distill", "--out", out, *given)
    assert code == 0, err
    assert f"Of {plain}: Pictures left out: 2 that are in another split too (the first, " in said
    counts = "16 pictures with captions and 8 without captions to train on, 2 to choose on, 2 to m"
    assert counts in said and "No uncaptioned" not in said
    report = json.loads((out / "report.json").read_text())
    assert report["settings"]["uncaptioned"] == str(plain)
    assert report["arms"].keys() == {"clip", CONTROL, TAUGHT}

    # Those, and not those that are measured on, are among what the run has seen.
    pictures = {*plain.rglob("*.jpg")}
    left_out = {plain / "x17.jpg", plain / "x19.jpg"}
    assert trained_on(out / TAUGHT, pictures).keys() == pictures - left_out
    assert not trained_on(out / CONTROL, pictures)
    table = [own / f"{number}.png" for number in range(20)]
    for name in (CONTROL, TAUGHT, "region_teacher"):
        assert trained_on(out / name, table).keys() == {*table[:16]}
    scene(100).save(tmp_path / "copy.png")
    assert trained_on(out / TAUGHT, [tmp_path / "copy.png"]).popitem()[1].startswith("content")

    # No caption of them is anywhere.
    (features,) = out.glob("features-uncaptioned-*")
    found = FrozenFeatures.load(features)
    assert len(found) == 8 and len(found.text) == len(found.token) == 0
    for file in filter(Path.is_file, out.rglob("*")):
        assert b"confidential" not in file.read_bytes(), file

    # Who searches among them later is told; the others are measured on.
    other = write_own(tmp_path / "other", range(105, 113))
    measure = ("--data", other, "--split", "all", "--zero-shot", "")
    code, said, _ = run("evaluate", "--model", out / TAUGHT, *measure)
    assert code == 0 and said.startswith("5 pictures, 10 captions")
    assert f"Left out of {other}: 3 pictures that {out}/{TAUGHT} has trained on" in said

    # Again: nothing is trained, and with other pictures nothing goes on.
    before = (out / TAUGHT / WEIGHTS).read_bytes(), (out / TAUGHT / "seen.json").read_bytes()
    assert run("distill", "--out", out, *given)[0] == 0
    scene(120).save(plain / "120.jpg")
    code, _, err = run("distill", "--out", out, *given)
    assert code == 2 and f"{out}/checkpoints/{TAUGHT}.safetensors" in err
    after = (out / TAUGHT / WEIGHTS).read_bytes(), (out / TAUGHT / "seen.json").read_bytes()
    assert after == before


def test_without_such_pictures_a_student_learns_from_captioned_ones_alone(
    run, options, plain, tmp_path
) -> None:
    """Otherwise: they change the student, and not its control."""
    code, said, err = run("distill", "--out", tmp_path / "a", *options)
    assert code == 0, err
    assert "No uncaptioned pictures are given: the student learns from the captioned ones" in said
    assert "16 pictures with captions to train on, 2 to" in said
    assert not list((tmp_path / "a").glob("features-uncaptioned-*"))
    assert run("distill", "--out", tmp_path / "b", *options, "--uncaptioned", plain)[0] == 0
    for name, same in ((CONTROL, True), (TAUGHT, False)):
        places = [tmp_path / run / name / "training.json" for run in ("a", "b")]
        rows = [json.loads(place.read_text()) for place in places]
        losses = [[row["loss"] for row in each["history"]] for each in rows]
        assert (losses[0] == losses[1]) is same


@pytest.mark.parametrize("recipe", [CONTROL, "dclip"])
def test_a_recipe_that_cannot_use_pictures_without_captions_does_not_read_them(
    recipe, run, options, plain, tmp_path, monkeypatch
) -> None:
    reader = "dclip_kit.evaluation.profile_data.read_uncaptioned"
    monkeypatch.setattr(reader, lambda *_: pytest.fail("they were read"))
    given = [*options, "--uncaptioned", plain, "--recipe", recipe]
    code, said, err = run("distill", "--out", tmp_path / "run", *given)
    assert code == 0, err
    assert "16 pictures with captions to train on, 2 to" in said and "uncaptioned" not in said


def test_a_teacher_is_trained_without_them(run, options, plain, tmp_path, monkeypatch) -> None:
    reader = "dclip_kit.evaluation.profile_data.read_uncaptioned"
    monkeypatch.setattr(reader, lambda *_: pytest.fail("they were read"))
    given = ["--out", tmp_path / "a", *options, "--uncaptioned", plain]
    code, said, _ = run("train-teacher", *given)
    assert code == 0 and "16 pictures with captions to train on, 2 to" in said
    assert not trained_on(tmp_path / "a/region_teacher", plain.rglob("*.jpg"))
    # Its student is, in the same folder.
    monkeypatch.undo()
    code, _, err = run("distill", *given)
    assert code == 0, err
    assert len(trained_on(tmp_path / "a" / TAUGHT, plain.rglob("*.jpg"))) == 8
    assert not trained_on(tmp_path / "a/region_teacher", plain.rglob("*.jpg"))


# What a run has seen


@pytest.fixture
def drawn(tmp_path) -> Path:
    """Data without splits, large enough to be divided by any seed."""
    return write_own(tmp_path / "drawn", range(60))


def test_an_arm_is_measured_on_its_own_runs_test(run, options, drawn, tmp_path) -> None:
    out, figures = tmp_path / "run", tmp_path / "figures.json"
    code, _, err = run("distill", "--out", out, *options, "--data", drawn, "--seed", "1")
    assert code == 0, err
    report = json.loads((out / "report.json").read_text())
    code, said, err = run("evaluate", "--model", out / TAUGHT, "--json", figures)
    assert code == 0, err
    found = json.loads(figures.read_text())
    assert (found["data"], found["seed"], found["split"]) == (str(drawn), 1, "test")
    expected = report["arms"][TAUGHT]["text_to_image"]
    assert found["retrieval"][str(out / TAUGHT)]["text_to_image"] == expected
    assert found["left_out"]["trained_on"] == {str(out / TAUGHT): []}
    assert "has trained on" not in said and " of drawn are few to measure on" in said
    # Half of the labelled pictures chose α: the accuracy is that of the others, as in the report.
    (source,) = found["zero_shot"]
    assert f"Zero-shot top-1, {source}: 18 pictures, without the 18 that a model was" in said
    assert found["left_out"]["zero_shot_chosen_on"] == {source: 18}
    assert f"Note: 18 pictures of {source} are few to measure on" in said
    top1 = found["zero_shot"][source][str(out / TAUGHT)]["top1"]
    assert top1 == report["arms"][TAUGHT]["zero_shot"]["top1"]

    # Another seed's test has been trained on, mostly; the rest is measured, for all models.
    models = (options[5], out / TAUGHT)
    code, said, err = run("evaluate", "--model", *models, "--seed", "0", "--json", figures)
    found = json.loads(figures.read_text())
    test = read_test(drawn, seed=0).paths
    trained = {Path(each["picture"]) for each in found["left_out"]["trained_on"][str(models[1])]}
    if code == 0:
        assert found["pictures"] == len(test) - len(trained) and trained < set(test)
        assert f"Left out of {drawn}: {len(trained)} pictures that {models[1]} has" in said
    else:  # nothing to speak of is left
        assert code == 2 and "that no model has trained on" in err


def test_trained_pictures_are_known_in_other_data(run, options, own, tmp_path) -> None:
    out, figures = tmp_path / "run", tmp_path / "figures.json"
    assert run("distill", "--out", out, *options)[0] == 0
    other = write_own(tmp_path / "other", range(12, 24))
    for seed in range(12, 16):
        scene(seed).save(other / f"{seed}.png", format="JPEG", quality=70)
    measure = ("--model", out / TAUGHT, "--data", other, "--split", "all", "--zero-shot", "")
    code, said, err = run("evaluate", *measure, "--json", figures)
    assert code == 0, err
    assert said.startswith("8 pictures, 16 captions")
    assert f"{out}/{TAUGHT} was chosen on 2 pictures of {other}" in said
    found = json.loads(figures.read_text())
    (left_out,) = found["left_out"]["trained_on"].values()
    assert sorted(Path(each["picture"]).name for each in left_out) == [
        f"{seed}.png" for seed in range(12, 16)
    ]
    assert found["pictures"] == 8 and found["chosen_on"] == {str(out / TAUGHT): 2}
    code, said, err = run("evaluate", "--model", out / TAUGHT, "--data", own, "--split", "train")
    assert code == 2 and "of 16 in own 0 are left" in err
    assert said.count("\n") == 1 and "Pictures left out: 1 unusable" in said

    # A copy elsewhere knows as much; without its record, as it is published, it says so.
    copy = shutil.copytree(out / TAUGHT, tmp_path / "published")
    shutil.rmtree(out)
    measure = ("--model", copy, *measure[2:])
    code, said, _ = run("evaluate", *measure)
    assert code == 0 and said.startswith("8 pictures, 16 captions")
    assert f"4 pictures that {copy} has trained on" in said
    (copy / "seen.json").unlink()
    code, said, _ = run("evaluate", *measure)
    assert code == 0 and f"What {copy} has trained on is not all known" in said


def test_a_teacher_of_another_run_has_seen_other_pictures(run, options, own, tmp_path) -> None:
    assert run("train-teacher", "--out", tmp_path / "a", *options)[0] == 0
    other = write_own(tmp_path / "other", range(8, 28), split=True)
    table = other / "captions.csv"  # two of the teacher's pictures are measured on, and two are not
    lines = table.read_text().replace(",test", ",train").replace(",val", ",train").splitlines()
    splits = {"8.": "test", "9.": "test", "20.": "test", "21.": "test", "22.": "val", "23.": "val"}
    for place, line in enumerate(lines):
        for start, split in splits.items():
            if line.startswith(start):
                lines[place] = line.removesuffix(",train") + f",{split}"
    table.write_text("\n".join(lines))
    out = tmp_path / "b"
    teacher = tmp_path / "a/region_teacher"
    given = [*options, "--data", other, "--teacher", teacher]
    code, said, err = run("distill", "--out", out, *given)
    assert code == 0, err
    assert f"Left out of test: 2 pictures that {teacher} has trained on" in said
    assert "14 pictures with captions to train on, 2 to choose on, 2 to measure on." in said
    # The student knows them through its teacher.
    measure = ("--data", other, "--split", "all", "--zero-shot", "")
    code, said, _ = run("evaluate", "--model", out / TAUGHT, *measure)
    assert code == 0 and said.startswith("4 pictures")
    # What a teacher without a record has trained on stays unknown, of its student too.
    (teacher / "seen.json").unlink()
    given[-3:] = [own, "--teacher", teacher]
    code, said, _ = run("distill", "--out", tmp_path / "c", *given)
    assert code == 0 and f"What {teacher} has trained on is not all known" in said
    figures = tmp_path / "figures.json"
    arm = tmp_path / "c" / TAUGHT
    code, said, _ = run("evaluate", "--model", arm, *measure, "--json", figures)
    assert code == 0 and f"What {arm} has trained on is not all known" in said
    assert json.loads(figures.read_text())["no_record"] == [str(arm)]


def test_a_run_goes_on_with_its_own_data_alone(run, options, drawn, tmp_path) -> None:
    out = tmp_path / "run"
    given = [*options, "--data", drawn]
    assert run("train-teacher", "--out", out, *given)[0] == 0
    files = {file: file.read_bytes() for file in filter(Path.is_file, out.rglob("*"))}
    for seed in range(100, 140):
        scene(seed).save(drawn / f"{seed}.png")
    with (drawn / "captions.csv").open("a") as file:
        file.writelines(f"\n{seed}.png,a scene" for seed in range(100, 140))
    code, _, err = run("distill", "--out", out, *given)
    assert code == 2 and f"{out}/checkpoints/teacher.safetensors" in err
    assert {file: file.read_bytes() for file in files} == files


def test_a_run_measured_on_other_data_names_it(run, options, drawn, tmp_path) -> None:
    out, figures = tmp_path / "run", tmp_path / "figures.json"
    test = write_own(tmp_path / "elsewhere", range(200, 204))
    code, _, err = run("distill", "--out", out, *options, "--data", drawn, "--test", test)
    assert code == 0, err
    code, said, _ = run("evaluate", "--model", out / TAUGHT, "--json", figures)
    assert code == 0 and said.startswith(f"4 pictures, 8 captions: {test} (test)")
    found = json.loads(figures.read_text())
    assert (found["data"], found["test"]) == (str(drawn), str(test))


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("--student.train", "last_blocks(9)"), "Expected at most 2 blocks"),
        (("--student.lora", "2", "--student.train", "norms"), "layers for student.lora to adapt"),
        (("--student.lora", "2", "--clip", "pocket"), "got pocket with another image tower"),
        (("--region-teacher.heads", "5"), "heads that divide the width 24, got 5"),
        (("--recipe", "dclip", "--teacher.heads", "5"), "heads that divide the width 32, got 5"),
        (("--regions.detector", "no-such.pt"), "no-such.pt"),
        (("--test", "nowhere"), "at nowhere, found nothing"),
        (("--zero-shot", "imagenet:nowhere"), "labelled pictures at nowhere"),
        (("--uncaptioned", "nowhere"), "at nowhere, found nothing; check --uncaptioned"),
        (("--uncaptioned", "pocket"), "got 'pocket'; say pocket:16000"),
        (("--teacher", "nowhere"), "the folder of a teacher at nowhere"),
        (("--teacher", "nowhere", "--recipe", "dclip"), "the folder of a teacher at nowhere"),
        (("--teacher", "x", "--recipe", "self_taught"), "no teacher for the recipe self_taught"),
        (("--recipe", "dclip", "--student.rehearsal-batch", "0"), "student.rehearsal_batch to be"),
        (("--recipe", "contrastive", "--anchor-texts", A_TEXT), "a student that ranks texts"),
        (
            (
                "--student.train-text",
                "--student.distillation",
                "cosine",
                "--uncaptioned",
                "pocket:4",
            ),
            "leave one of the three out",
        ),
    ],
)
def test_what_a_run_cannot_do_is_said_before_data_is_read(
    option, says, run, options, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("dclip_kit.data.splits.read_format", None)  # nobody may read
    monkeypatch.setattr(experiment, "encode_pictures", None)
    code, _, err = run("distill", "--out", tmp_path / "run", *options, *option)
    assert code == 2 and says in err and not (tmp_path / "run").exists()
