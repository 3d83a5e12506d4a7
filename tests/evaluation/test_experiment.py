"""The notebooks' shared steps, on pocket splits of a few pictures and a tiny CLIP."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_leaks import scene
from test_splits import write_own

from assets.make import pocket_arms
from dclip_kit.config import PROFILES, Profile, SelectionRule, apply_recipe
from dclip_kit.data import open_picture
from dclip_kit.data.pocket import world as pocket
from dclip_kit.data.pocket.sprites import load_nouns
from dclip_kit.evaluation import experiment
from dclip_kit.evaluation.arms import Arm, load_arms, load_teacher
from dclip_kit.evaluation.evaluate import TEMPLATE_SETS, encode_classes, evaluate_retrieval
from dclip_kit.evaluation.experiment import (
    EvaluationSets,
    choose_measured,
    choose_templates,
    load_data,
    prepare_evaluation,
    prepare_training,
    read_measured,
    read_zero_shot,
    train_and_save_arms,
    train_and_save_teacher,
)
from dclip_kit.features.extract import extract_features
from dclip_kit.metrics import class_ranks
from dclip_kit.models import reading
from dclip_kit.models.encode import encode_images
from dclip_kit.models.reading import read_pixels
from dclip_kit.models.weights import clone_clip

PROFILE = replace(
    PROFILES["pocket"],
    teacher=replace(PROFILES["pocket"].teacher, epochs=2, heads=2),
    student=replace(PROFILES["pocket"].student, epochs=2, learning_rate=1e-3),
    selection=SelectionRule((0.5, 1.0), 0.0),
)


@pytest.fixture
def sets(data, clip) -> EvaluationSets:
    """With zero-shot labels that the tiny CLIP names rightly, so that there is much to forget."""
    made = prepare_evaluation(clip, data)
    guessed = encode_images(clip, made.zero_shot_val.pictures) @ made.zero_shot.class_features.T
    return replace(made, zero_shot_val=replace(made.zero_shot_val, labels=guessed.argmax(1)))


# Data


def test_an_experiment_begins_with_all_six_sets_and_the_ceiling(data, monkeypatch) -> None:
    assert (len(data.train), len(data.val), len(data.test)) == (11, 6, 8)
    assert (data.train.split, data.val.split, data.test.split) == ("train", "val", "test")
    for name in ("zero_shot_val", "zero_shot", "zero_shot_held_out"):
        found = getattr(data, name)
        assert len(found) == len(load_nouns()) and found.source == f"pocket {name}"
    scenes = [pocket.make_scene("test", index) for index in range(8)]
    fits = [
        sum(pocket.count_matches([text], [scene])[0] for scene, _ in scenes)
        for _, texts in scenes
        for text in texts
    ]
    assert data.ceiling == pytest.approx(sum(1 / fit for fit in fits) / 40)


def test_evaluation_sets_hold_the_data_read_and_encoded(data, clip) -> None:
    sets = prepare_evaluation(clip, data)
    for name in ("val", "test"):
        dataset, found = getattr(data, name), getattr(sets, name)
        expected = encode_images(clip, dataset.paths)
        torch.testing.assert_close(encode_images(clip, found.pictures), expected)
        assert torch.equal(found.image_of_text, dataset.image_of_text)
        ids = clip.tokenizer(dataset.texts)
        torch.testing.assert_close(found.text_features, clip.model.encode_text(ids, normalize=True))
    for name in ("zero_shot_val", "zero_shot", "zero_shot_held_out"):
        dataset, found = getattr(data, name), getattr(sets, name)
        expected = encode_images(clip, dataset.paths)
        torch.testing.assert_close(encode_images(clip, found.pictures), expected)
        assert found.labels.tolist() == list(dataset.labels)
        assert found.in_domain.tolist() == list(dataset.in_domain)
        assert found.class_features.shape == (len(dataset.class_names), 32)
    assert sets.zero_shot.pictures != sets.zero_shot_held_out.pictures


def test_too_many_pictures_for_the_memory_stay_on_disk(
    clip, data, detector, sets, monkeypatch
) -> None:
    assert sets.val.pictures == data.val.paths  # nobody has looked at them
    features = extract_features(clip, detector, data.train, PROFILE.regions)
    made = prepare_training(PROFILE, clip, data.train, features, sets)
    assert torch.equal(made.val.pictures, read_pixels(clip, data.val.paths))
    assert torch.equal(made.zero_shot_val.pictures, read_pixels(clip, data.zero_shot_val.paths))
    crops = made.rehearsal.pictures  # rehearsed as the frozen CLIP saw them
    assert crops.shape == (len(features.region), 3, 32, 32)
    torch.testing.assert_close(encode_images(clip, crops), features.region)
    monkeypatch.setattr(experiment, "KEPT_BYTES", 3 * 32 * 32 * len(data.val))
    less = prepare_training(PROFILE, clip, data.train, features, sets)
    assert torch.equal(less.val.pictures, made.val.pictures)
    assert less.pictures == data.train.paths
    assert less.zero_shot_val.pictures == data.zero_shot_val.paths
    assert torch.equal(read_pixels(clip, less.rehearsal.pictures), crops)
    for recipe in ("contrastive", "official_code"):
        other = apply_recipe(PROFILE, recipe)
        assert prepare_training(other, clip, data.train, features, sets).rehearsal is None


# Weights, trained now or loaded


def test_a_saved_teacher_is_the_trained_one(clip, features, tmp_path, capsys) -> None:
    trained = train_and_save_teacher(PROFILE, features, tmp_path)
    assert capsys.readouterr().out.strip() == "Trained the teacher now: 2 epochs."
    loaded = load_teacher(clip.embed_dim, PROFILE.teacher, tmp_path)
    assert capsys.readouterr().out.strip() == "Loaded the saved teacher: 2 epochs."
    one, other = trained.teacher.state_dict(), loaded.teacher.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert loaded.history == trained.history and not loaded.teacher.training


def test_saved_arms_measure_what_the_trained_ones_did(
    clip, data, features, sets, tmp_path, capsys
) -> None:
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    teacher = train_and_save_teacher(PROFILE, features, tmp_path).teacher
    capsys.readouterr()
    trained = train_and_save_arms(PROFILE, clip, teacher, data.train, features, sets, tmp_path)
    assert capsys.readouterr().out.strip() == "Trained the arms now."
    loaded = load_arms(clip, tmp_path)
    assert "Loaded the saved arms" in capsys.readouterr().out
    assert list(trained) == list(loaded) == ["clip", "contrastive", "dclip"]
    assert trained["clip"].clip is clip and trained["clip"].alpha is None
    assert all(torch.equal(value, before[key]) for key, value in clip.model.state_dict().items())
    for name in ("contrastive", "dclip"):
        one, other = trained[name], loaded[name]
        for field in ("alpha", "candidates", "history"):
            assert getattr(one, field) == getattr(other, field)
        embedded = [encode_images(arm.clip, sets.test.pictures) for arm in (one, other)]
        assert torch.equal(*embedded)
    # The control sees no teacher and rehearses nothing; both saw the same batches.
    one, other = trained["contrastive"].history, trained["dclip"].history
    assert one[0]["loss"] == pytest.approx(one[0]["contrastive"])
    weights = PROFILE.student
    assert other[0]["loss"] == pytest.approx(
        other[0]["contrastive"]
        + weights.distillation_weight * other[0]["distillation"]
        + weights.rehearsal_weight * other[0]["rehearsal"]
    )
    assert "rehearsal" not in one[0] and other[0]["rehearsal"] > 0


def test_features_are_extracted_once_for_what_they_are_made_from(
    clip, data, detector, tmp_path, monkeypatch, capsys
) -> None:
    loaded = [detector]
    monkeypatch.setattr(experiment, "load_detector", lambda *_, **__: loaded.pop())
    few = data.val.select(range(3))
    first = experiment.load_or_extract_features(PROFILE, clip, few, tmp_path)
    assert capsys.readouterr().out == ""
    again = experiment.load_or_extract_features(PROFILE, clip, few, tmp_path)
    (kept,) = tmp_path.iterdir()
    assert capsys.readouterr().out == f"Loaded the features in {kept}.\n"
    assert kept.name.startswith("features-val-")
    assert torch.equal(first.region, again.region) and torch.equal(first.token, again.token)
    wider = replace(PROFILE, regions=replace(PROFILE.regions, margin=0.3))
    changed = [
        (wider, few),
        (PROFILE, data.val.select(range(2))),
        (PROFILE, replace(few, split="x")),
    ]
    for number, (profile, pictures) in enumerate(changed, start=2):
        loaded.append(detector)
        experiment.load_or_extract_features(profile, clip, pictures, tmp_path)
        assert not loaded and len(list(tmp_path.iterdir())) == number
    assert capsys.readouterr().out == ""


def test_training_continues_from_its_checkpoints(clip, data, features, sets, tmp_path) -> None:
    states = tmp_path / "checkpoints"
    begun = PROFILE, features, tmp_path, states / "teacher.safetensors"
    teacher = train_and_save_teacher(*begun)
    given = PROFILE, clip, teacher.teacher, data.train, features, sets, tmp_path, states
    arms = train_and_save_arms(*given)
    assert {path.name for path in states.glob("*.safetensors")} == {
        f"{name}.safetensors"
        for name in ("teacher", "contrastive", "contrastive-1", "dclip", "dclip-1")  # soups of two
    }
    # Seconds and all: nothing was trained.
    assert train_and_save_teacher(*begun).history == teacher.history
    for name, arm in train_and_save_arms(*given).items():
        assert arm.history == arms[name].history


def test_a_profile_whose_arms_do_not_come_with_the_kit_trains_them_once(
    clip, data, features, tmp_path, monkeypatch
) -> None:
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setattr(experiment, "choose_detector", lambda *_: "a detector")
    extracted: list[object] = []
    monkeypatch.setattr(experiment, "extract_features", lambda *a: extracted.append(a) or features)
    own = replace(PROFILE, name="base")
    folder = experiment.find_saved(own, clip, data)
    assert folder.resolve() == tmp_path / "runs" / "base" / "arms" and len(extracted) == 1
    assert list(load_arms(clip, folder)) == ["clip", "contrastive", "dclip"]
    assert experiment.find_saved(own, clip, data) == folder and len(extracted) == 1  # not again
    assert experiment.find_saved(own, clip, data, "mine") == Path("mine")
    assert experiment.find_saved(PROFILE, clip, data, "mine") == Path("mine")
    assert experiment.find_saved(PROFILE, clip, data) == experiment.asset_path("pocket_arms")


def test_the_command_leaves_teacher_and_arms_in_the_assets(
    clip, data, features, sets, detector, tmp_path, monkeypatch
) -> None:
    asked: dict[str, tuple] = {}

    def record(name: str, result: object) -> Callable:
        return lambda *args, **keywords: asked.setdefault(name, (*args, keywords)) and result

    def profile(name: str) -> Profile:
        assert name == "pocket"
        return PROFILE

    monkeypatch.setattr(pocket_arms, "get_profile", profile)
    monkeypatch.setattr(pocket_arms, "asset_path", lambda name: tmp_path / name)
    for name, result in [
        ("load_clip", clip),
        ("load_detector", detector),
        ("load_data", data),
        ("extract_features", features),
        ("prepare_evaluation", sets),
    ]:
        home = pocket_arms if hasattr(pocket_arms, name) else experiment
        monkeypatch.setattr(home, name, record(name, result))
    pocket_arms.main()
    options = {"confidence": 0.25, "max_regions": 10, "device": torch.device("cpu")}
    assert asked["load_detector"] == ("pocket", options)
    assert asked["extract_features"][:3] == (clip, detector, data.train)
    written = {path.name for path in Path(tmp_path / "pocket_arms").iterdir()}
    stems = ("teacher", "contrastive", "dclip")
    assert written == {f"{stem}.{kind}" for stem in stems for kind in ("json", "safetensors")}


def test_the_tiny_clip_knew_the_labels_given_to_it(clip, sets) -> None:
    """Otherwise nothing above measured retention."""
    found = sets.zero_shot_val
    embedded = encode_images(clip, found.pictures)
    assert (class_ranks(embedded, found.class_features, found.labels) <= 1).all()


# Measuring


@pytest.mark.parametrize("kept_bytes", [0, experiment.KEPT_BYTES])
def test_arms_are_measured_on_test_and_pictures_read_once(
    data, clip, sets, monkeypatch, kept_bytes
) -> None:
    monkeypatch.setattr(experiment, "KEPT_BYTES", kept_bytes)
    opened = []
    monkeypatch.setattr(
        reading, "open_picture", lambda path, side: opened.append(path) or open_picture(path)
    )
    other = clone_clip(clip)
    with torch.no_grad():
        for parameter in other.model.visual.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    arms = {"clip": Arm("clip", clip), "other": Arm("other", other, 1.0)}
    results = experiment.evaluate_arms(arms, sets)
    tests = (data.test, data.zero_shot, data.zero_shot_held_out)
    assert len(opened) == sum(map(len, tests)) * (1 if kept_bytes else 2)
    assert list(results) == ["clip", "other"]
    for name, result in results.items():
        bundle = arms[name].clip
        assert result.arm is arms[name]
        expected = evaluate_retrieval(bundle, sets.test)
        assert result.retrieval.as_dict() == expected.as_dict()
        for found, measured in (
            (result.zero_shot, sets.zero_shot),
            (result.held_out, sets.zero_shot_held_out),
        ):
            near = encode_images(bundle, measured.pictures) @ measured.class_features.T
            assert torch.equal(found.correct, near.argmax(1) == measured.labels)


def test_without_a_held_out_style_none_is_measured(clip, sets) -> None:
    sets = replace(sets, zero_shot_held_out=None)
    found = experiment.evaluate_arms({"clip": Arm("clip", clip)}, sets)
    assert found["clip"].held_out is None and len(found["clip"].zero_shot.correct)


# Data of one's own


def write_classes(folder: Path, count: int = 6) -> Path:
    """Labelled pictures, a folder a class."""
    for label, name in enumerate(("red_ball", "dog", "boat")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            scene(1000 + 100 * label + index).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture
def own(tmp_path) -> Profile:
    """A profile of pictures on disk."""
    data = write_own(tmp_path / "own", range(20), ("gone.png,a",), split=True)
    classes = write_classes(tmp_path / "classes")
    return replace(PROFILES["base"], data=str(data), zero_shot=str(classes))


def test_a_profile_with_a_path_reads_it(own, capsys, clip) -> None:
    data = load_data(own)
    assert (len(data.train), len(data.val), len(data.test)) == (16, 2, 2)
    assert data.ceiling is None and data.zero_shot_held_out is None
    assert "1 unusable" in str(data.left_out)
    assert capsys.readouterr().out == f"{data.left_out}\n"
    assert (len(data.zero_shot_val), len(data.zero_shot)) == (9, 9)
    assert data.zero_shot.class_names == ("boat", "dog", "red ball")
    sets = prepare_evaluation(clip, data)
    assert sets.zero_shot_held_out is None and len(sets.zero_shot.pictures) == 9
    assert load_data(replace(own, seed=1)).test == data.test  # a column says so


def test_other_data_to_measure_on_is_read_too(own, tmp_path) -> None:
    test = write_own(tmp_path / "test", range(30, 34))
    data = load_data(replace(own, test=str(test)))
    assert (len(data.train), len(data.val), len(data.test)) == (16, 2, 4)


def test_the_leak_guard_may_go_by_names_alone(own, tmp_path) -> None:
    test = write_own(tmp_path / "test", range(14, 16))
    profile = replace(own, test=str(test))
    assert len(load_data(profile).left_out.leaks) == 2
    for path in list(test.glob("*.png")):
        path.rename(path.with_name(f"x{path.name}"))
    rows = (test / "captions.csv").read_text().splitlines()
    (test / "captions.csv").write_text("\n".join([rows[0], *(f"x{row}" for row in rows[1:])]))
    assert len(load_data(profile).left_out.leaks) == 2
    assert not load_data(replace(profile, leak_guard="names")).left_out.leaks


def test_classes_are_put_into_templates(own, clip) -> None:
    for zero_shot, asked, name in [
        ("pocket", "auto", "pocket"),
        ("cifar10:x", "auto", "imagenet"),
        ("pocket", "paper", "paper"),
    ]:
        assert choose_templates(zero_shot, asked) is TEMPLATE_SETS[name]
    assert load_data(own).templates is TEMPLATE_SETS["imagenet"]
    data = load_data(replace(own, templates="paper"))
    expected = encode_classes(clip, data.zero_shot.class_names, TEMPLATE_SETS["paper"])
    for each in (prepared := prepare_evaluation(clip, data)).zero_shot, prepared.zero_shot_val:
        torch.testing.assert_close(each.class_features, expected)


@pytest.mark.parametrize("missing", ["data", "zero_shot"])
def test_what_a_profile_lacks_is_asked_for(missing, own) -> None:
    with pytest.raises(ValueError, match=r"Expected data and zero_shot in the profile 'base'"):
        load_data(replace(own, **{missing: ""}))
    with pytest.raises(ValueError, match=r"manifest and Karpathy's dataset_coco\.json as test"):
        load_data(PROFILES["paper"])


def test_pictures_to_measure_on_are_those_of_the_profile(own) -> None:
    assert read_measured(own).paths == load_data(own).test.paths
    drawn = replace(own, data=str(write_own(Path(own.data).parent / "drawn", range(100, 160))))
    assert read_measured(replace(drawn, seed=1)).paths != read_measured(drawn).paths
    elsewhere = replace(own, test=drawn.data)
    assert read_measured(elsewhere).paths == load_data(elsewhere).test.paths
    assert len(read_measured(own, "all")) == 20
    (labelled,) = read_zero_shot(own.zero_shot)
    assert len(labelled) == 18


def test_a_split_is_never_all_under_another_name(own) -> None:
    data = load_data(own)
    assert read_measured(own, "val").paths == data.val.paths
    assert read_measured(own, "train").paths == data.train.paths
    with pytest.raises(ValueError, match=r"of train, val, test or all .* got 'dev'"):
        read_measured(own, "dev")


def test_models_are_measured_on_what_their_runs_were_unless_asked_otherwise(own) -> None:
    run = replace(own, images="below", test="there", seed=3)
    assert choose_measured([], own) == own
    assert choose_measured([run], own, data=None, seed=None) == run
    assert choose_measured([run], own, seed=0, zero_shot="") == replace(run, seed=0, zero_shot="")
    # Other data lies elsewhere and has a test of its own.
    other = choose_measured([run], own, data="other")
    assert other == replace(run, data="other", images="", test="")
    assert choose_measured([run], own, data="other", images="x").images == "x"
    with pytest.raises(ValueError, match=r"runs had different ones \(.*\); give --zero-shot"):
        choose_measured([run, replace(run, zero_shot="pocket")], own)
    with pytest.raises(ValueError, match="got none; give --data"):
        choose_measured([], PROFILES["paper"])
