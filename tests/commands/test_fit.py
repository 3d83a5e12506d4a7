"""Commands that train, and their runs measured: what they write, say and refuse."""

import json
from collections.abc import Iterable
from pathlib import Path

import open_clip
import pytest
import torch

from dclip_kit.config import CONTROL, control_of, get_profile
from dclip_kit.data import CaptionedImages
from dclip_kit.data.leaks import find_leaks
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


@pytest.fixture
def unmixed(monkeypatch) -> None:
    """Val chooses every student as it was trained, however few it finds more."""
    monkeypatch.setattr(arms_module, "choose_candidate", lambda candidates, _: candidates[-1])


# train-teacher, distill, evaluate


def test_a_run_from_data_to_a_model_of_open_clips(
    run, options, own, clip, unmixed, tmp_path
) -> None:
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
    assert (measured["data"], measured["seed"], measured["split"]) == (str(own), 0, "test")
    found = measured["retrieval"]
    for key in ("text_to_image", "image_to_text"):
        assert found[str(out / TAUGHT)][key] == report["arms"][TAUGHT][key]
    # Half of the labelled pictures chose α: the accuracy is that of the others, as in the report.
    ((source, named),) = measured["zero_shot"].items()
    assert measured["left_out"]["zero_shot_chosen_on"] == {source: 18}
    assert named[str(out / TAUGHT)]["top1"] == report["arms"][TAUGHT]["zero_shot"]["top1"]
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
    assert report["arms"][TAUGHT]["alpha"] == 1 and not torch.allclose(one, before)


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
    other = ("--recipe", "dclip")  # whose teacher reads captions
    code, _, err = run("distill", "--out", tmp_path / "c", *share, *options, *other)
    assert code == 2 and "got a region_teacher" in err
    assert not (tmp_path / "c").exists()


def test_a_run_that_trains_adapters_leaves_ordinary_models(
    run, options, clip, unmixed, tmp_path
) -> None:
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
        assert kept["alpha"] == 1 and len(changed) == 8


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
