"""A run from pictures that have no captions."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dclip_kit.config import PROFILES, apply_recipe, change_settings, control_of, require_recipe
from dclip_kit.data import read_labelled
from dclip_kit.data.pocket import world as pocket
from dclip_kit.data.splits import read_uncaptioned
from dclip_kit.evaluation import experiment
from dclip_kit.evaluation.arms import load_arm
from dclip_kit.evaluation.compare import say_from_pictures
from dclip_kit.evaluation.evaluate import evaluate_zero_shot, prepare_zero_shot
from dclip_kit.evaluation.experiment import (
    lend_text,
    prepare_terms,
    run,
    run_teacher,
    train_teacher_of,
)
from dclip_kit.evaluation.pilot import run_pilot
from dclip_kit.evaluation.profile_data import (
    choose_templates,
    has_captions,
    load_data,
    read_anchors,
    require_data,
)
from dclip_kit.evaluation.seen import load_seen
from dclip_kit.features.extract import encode_pictures
from dclip_kit.features.store import FrozenFeatures
from dclip_kit.metrics import retention
from dclip_kit.models.clip import load_clip
from dclip_kit.models.encode import encode_texts
from dclip_kit.models.weights import interpolate
from dclip_kit.training import distill
from tests.data.test_leaks import scene
from tests.data.test_splits import write_own
from tests.evaluation.test_profile_data import write_classes

TEXTS = ("a red ball", "two dogs", "a boat", "a cat beside a car", "nothing at all")


@pytest.fixture
def profile(tmp_path, clip_folder):
    """Nine pictures in a folder, five texts in a file."""
    (tmp_path / "pictures").mkdir()
    for seed in range(9):
        scene(seed).save(tmp_path / "pictures" / f"{seed}.png")
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS) + "\n  \n")
    few = {
        "clip": str(clip_folder),
        "data": str(tmp_path / "pictures"),
        "anchor_texts": str(tmp_path / "texts.txt"),
        "zero_shot": str(write_classes(tmp_path / "classes")),
        "captions": "none",
        "regions": {"detector": "crops"},
        "region_teacher": {"width": 24, "heads": 3},
        "student": {"epochs": 2, "batch_size": 4, "rehearsal_batch": 6, "learning_rate": 1e-3},
    }
    return change_settings(apply_recipe(PROFILES["pocket"], "crops_taught"), few)


def test_it_learns_from_regions_and_keeps_half(profile, tmp_path) -> None:
    """As by hand, from public parts."""
    require_recipe(profile)
    out = tmp_path / "run"
    report = run(profile, out)
    assert json.loads((out / "report.json").read_text()) == report
    arm = load_arm(out / "crops_taught")
    assert arm.alpha == report["alpha"] == 0.5 and arm.candidates == ()

    clip = load_clip(profile.clip)
    pictures, _ = read_uncaptioned(profile.data, ())
    encoded = encode_pictures(clip, pictures, profile.regions)
    encoded = lend_text(encoded, TEXTS[0], encode_texts(clip, TEXTS[:1]))
    teacher = train_teacher_of(profile, encoded.features)
    assert teacher.chosen == {"weight": 1.0, "val_recall_at_1": {}}
    terms = prepare_terms(profile, clip, encoded, teacher.teacher)
    assert [term.name for term in terms] == ["distillation", "rehearsal"]  # no pair is contrasted
    assert torch.equal(terms[0].texts, encode_texts(clip, TEXTS))
    trained = distill(clip, encoded, terms, profile.student, seed=profile.seed)
    student = interpolate(clip, trained.student, 0.5).model.state_dict()
    (store,) = out.glob("features-*")
    assert len(FrozenFeatures.load(store).text) == 0  # however many pictures there are
    for name, value in arm.clip.model.state_dict().items():
        torch.testing.assert_close(value, student[name], atol=1e-3, rtol=1e-3)
    assert any(not torch.equal(student[x], clip.model.state_dict()[x]) for x in student)

    templates = choose_templates(profile.zero_shot)
    labelled = prepare_zero_shot(clip, read_labelled(profile.zero_shot), templates=templates)
    before, after = (evaluate_zero_shot(each, labelled) for each in (clip, arm.clip))
    assert report["zero_shot"] == {"clip": before.top1, "crops_taught": after.top1}
    kept = retention(before.correct, after.correct)
    assert report["retention"]["estimate"] == kept.estimate
    said = " ".join(say_from_pictures(report))
    assert "9 pictures without captions" in said and "5 texts" in said and "α = 0.5" in said
    assert "What it finds was not measured" in said
    assert said.split(". ")[0] in (out / "crops_taught" / "README.md").read_text()


def test_its_pictures_count_as_seen(profile, tmp_path) -> None:
    run(profile, tmp_path / "run")
    seen = load_seen(tmp_path / "run" / "crops_taught")
    assert seen.complete and len(seen.trained.names) >= 9 and not seen.chosen.names


def test_what_is_forgotten_is_said_aloud(profile, tmp_path) -> None:
    report = run(profile, tmp_path / "run")
    kept = {"estimate": 0.5, "low": 0.4, "high": 0.6, "undefined": 0}
    said = " ".join(say_from_pictures(report | {"retention": kept}))
    assert "It has forgotten much; take a lower --student.learning-rate" in said
    good = report | {"retention": kept | {"high": 0.99}}
    assert "forgotten" not in " ".join(say_from_pictures(good))


def test_without_texts_or_with_too_much_to_learn_from_it_says_what_to_do(profile, tmp_path) -> None:
    with pytest.raises(ValueError, match="give --anchor-texts, such as"):
        run(replace(profile, anchor_texts=""), tmp_path / "run")
    (tmp_path / "texts.txt").write_text(" \n\n")
    settings = tmp_path / "run" / "settings.json"
    with pytest.raises(ValueError, match=r"texts to rank for pictures in .*texts\.txt, got none"):
        run(profile, tmp_path / "run")
    assert not settings.exists()  # so that the corrected command may go on there
    for missing in ("captioned", "alone"):
        data = write_own(tmp_path / "own", range(8)) if missing == "captioned" else profile.data
        with pytest.raises((ValueError, FileNotFoundError), match="nowhere"):
            require_data(replace(profile, data=str(data), anchor_texts="nowhere.txt"))


def test_what_needs_captions_is_refused(profile, tmp_path) -> None:
    with pytest.raises(ValueError, match="no --test where no picture has a caption, got other"):
        run(replace(profile, test="other"), tmp_path / "run")
    with pytest.raises(ValueError, match="no --teacher where no picture has a caption, got other"):
        run(profile, tmp_path / "run", teacher=Path("other"))
    with pytest.raises(ValueError, match=r"Expected captioned pictures to try, got .*pictures"):
        run_pilot(profile, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_arm_learns_on_after_its_teacher_alone(profile, tmp_path, capsys) -> None:
    """And what its CLIP has seen, it has seen."""
    run(profile, tmp_path / "first")
    (tmp_path / "more").mkdir()
    for seed in range(20, 26):
        scene(seed).save(tmp_path / "more" / f"{seed}.png")
    arm = str(tmp_path / "first" / "crops_taught")
    further = replace(profile, clip=arm, data=str(tmp_path / "more"))
    capsys.readouterr()
    teacher = run_teacher(further, tmp_path / "run")
    said = capsys.readouterr().out
    assert "6 pictures without captions to train on." in said and "captioned ones" not in said
    assert teacher is not None and (tmp_path / "run" / "region_teacher").is_dir()
    assert run(further, tmp_path / "run")["pictures"] == 6
    assert len(load_seen(tmp_path / "run" / "crops_taught").trained.names) >= 15


def test_of_the_pockets_labelled_pictures_only_the_measured_ones_are_drawn(
    profile, monkeypatch
) -> None:
    drawn, draw = [], pocket.load_labelled
    monkeypatch.setattr(pocket, "load_labelled", lambda *given: drawn.append(given) or draw(*given))
    data = load_data(replace(profile, zero_shot="pocket:1"))
    assert drawn == [("zero_shot", 1)] and not data.zero_shot_val and data.zero_shot


@pytest.mark.parametrize("recipe", ["region_taught", "contrastive", "dclip", "self_taught"])
def test_captions_none_is_refused_where_captions_teach(recipe) -> None:
    for more in ({}, {"student": {"train_text": True}}):
        taught = change_settings(apply_recipe(PROFILES["pocket"], recipe), more)
        with pytest.raises(ValueError, match=r"no captions.*got the recipe|frozen text"):
            require_recipe(replace(taught, captions="none"))
    free = apply_recipe(PROFILES["pocket"], "crops_taught")
    require_recipe(replace(free, captions="none"))
    assert control_of(replace(free, captions="none")).captions == "own"


def test_texts_come_from_a_file_or_from_captioned_pictures(profile, tmp_path) -> None:
    assert read_anchors(profile.anchor_texts) == list(TEXTS)
    texts = tmp_path / "other.txt"
    texts.write_bytes("a café\n".encode("utf-8-sig"))
    assert read_anchors(str(texts)) == ["a café"]
    for encoding in ("utf-16", "utf-16-le", "latin-1"):
        texts.write_bytes("a café\n".encode(encoding))
        with pytest.raises(ValueError, match=r"texts in UTF-8 in .*other\.txt"):
            read_anchors(str(texts))
    texts.write_text(
        "a boat\n\n&nbsp;\n<end_of_text> a car\n"
    )  # the tokenizer reads no word in these
    with pytest.raises(
        ValueError, match=r"other\.txt, got none in other\.txt:3, other\.txt:4; del"
    ):
        read_anchors(str(texts))
    own = write_own(tmp_path / "own", range(4))
    assert len(read_anchors(str(own))) >= 4
    assert not has_captions(profile) and has_captions(replace(profile, data=str(own)))


def test_what_cannot_be_measured_is_refused_before_the_training(
    profile, tmp_path, monkeypatch
) -> None:
    """And the corrected command may go on in that folder."""
    monkeypatch.setattr(experiment, "train_teacher_of", lambda *_, **__: pytest.fail("trains"))
    monkeypatch.setattr(experiment, "distill", lambda *_, **__: pytest.fail("trains"))
    classes = Path(profile.zero_shot)
    seen = replace(profile, data=str(classes))
    with pytest.raises(ValueError, match="labelled"):
        run(seen, tmp_path / "run")
    assert not (tmp_path / "run" / "settings.json").exists()
