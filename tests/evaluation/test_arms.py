"""The arms: one rule for all, nothing of test seen, and back from disk as they were rounded."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nbconvert.filters import markdown2html
from torch.nn import functional as F

from dclip_kit.config import (
    CONTROL,
    PROFILES,
    Profile,
    RegionTeacherSettings,
    SelectionRule,
    StudentSettings,
    TeacherSettings,
)
from dclip_kit.data import open_picture
from dclip_kit.data.leaks import EvaluationIndex
from dclip_kit.evaluation import arms as module
from dclip_kit.evaluation.arms import (
    Arm,
    Candidate,
    EvaluationSets,
    TrainingSet,
    choose_candidate,
    describe_origin,
    evaluate_arms,
    find_saved,
    load_arm,
    load_arms,
    measure_interpolations,
    prepare_evaluation,
    prepare_training,
    read_origin,
    require_some_named,
    save_arm,
    train_arm,
    write_card,
)
from dclip_kit.evaluation.evaluate import (
    RetrievalSet,
    ZeroShotSet,
    encode_classes,
    evaluate_retrieval,
    evaluate_zero_shot,
)
from dclip_kit.evaluation.seen import SeenPictures, load_seen
from dclip_kit.metrics import retrieval_metrics
from dclip_kit.models import encode
from dclip_kit.models.clip import load_clip, tag_for
from dclip_kit.models.encode import encode_images, encode_texts
from dclip_kit.models.weights import clone_clip, interpolate, round_changed, same_text_tower
from dclip_kit.runtime.files import asset_path, load_tensors, save_tensors, write_record
from dclip_kit.training import PictureTargets, RuinedError, choose_terms, distillation, plan_epoch
from tests.training.fine_tuning import fine_tune, join
from tests.training.test_training import texts_of

STUDENT = StudentSettings(batch_size=4, epochs=2, learning_rate=1e-3, mixed_precision="no")
PROFILE = Profile(
    "pocket",
    "pocket",
    None,
    teacher=TeacherSettings(heads=4),
    region_teacher=RegionTeacherSettings(width=24, heads=3),
    student=STUDENT,
    selection=SelectionRule((0.5, 1.0), 0.0),
    seed=3,
)
UNTAUGHT = replace(PROFILE, student=replace(STUDENT, distillation_weight=0.0))


def retrieval(pixels, features) -> RetrievalSet:
    return RetrievalSet(pixels, features.text, features.image_of_text)


@pytest.fixture
def sets(clip, pixels, features) -> EvaluationSets:
    """Test's pictures are val's from behind; of each zero-shot set other labels are right."""
    classes = F.normalize(torch.randn(3, 32), dim=1)
    nearest = (encode_images(clip, pixels) @ classes.T).argmax(1)

    def zero_shot(wrong: int) -> ZeroShotSet:
        labels = (nearest + (torch.arange(len(nearest)) < wrong)) % 3
        return ZeroShotSet(pixels, labels, classes, torch.tensor([True, True, False]))

    return EvaluationSets(
        val=retrieval(pixels, features),
        test=retrieval(pixels.flip(0), features),
        zero_shot_val=zero_shot(1),
        zero_shot=zero_shot(3),
        zero_shot_held_out=zero_shot(7),
    )


@pytest.fixture
def targets(features) -> torch.Tensor:
    return F.normalize(torch.randn_like(features.text), dim=1)


def training_set(pixels, features, sets) -> TrainingSet:
    shown = join(pixels, features, texts_of(features))
    return TrainingSet(shown, sets.val, sets.zero_shot_val, PROFILE.selection)


def train_by_terms(clip, shown, profile, given=None, uncaptioned=None, **more) -> Arm:
    """An arm by the terms that its profile weighs."""
    student, seed = profile.student, profile.seed
    terms = choose_terms(student, shown.captioned, given, uncaptioned=uncaptioned, seed=seed)
    return train_arm(clip, shown, terms, student, seed=seed, **more)


def choose(before, after, sets, rule=PROFILE.selection):
    """The chosen interpolation as it is kept, its alpha, all candidates."""
    found = measure_interpolations(before, after, sets.val, sets.zero_shot_val, rule.alphas)
    alpha = choose_candidate(found, rule.least_retention).alpha
    student = interpolate(before, after, alpha)
    round_changed(before, student)
    return student, alpha, found


def weights(module) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in module.state_dict().values()])


def test_alpha_is_chosen_on_val(clip, pixels, features, sets) -> None:
    captioned = join(pixels, features, texts_of(features))
    given = prepare_training(clip, captioned, sets, PROFILE.selection)
    assert given.captioned is captioned and given.rule == PROFILE.selection
    assert torch.equal(given.val.pictures, pixels) and not torch.equal(pixels, pixels.flip(0))
    assert given.val.text_features is sets.val.text_features
    assert given.zero_shot_val.labels is sets.zero_shot_val.labels


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_val_is_encoded_in_the_trainings_precision(
    precision, clip, pixels, features, sets, monkeypatch
) -> None:
    seen = []

    def watched(bundle, *given, **more):
        seen.append(bundle.precision)
        return evaluate_zero_shot(bundle, *given, **more)

    monkeypatch.setattr(module, "evaluate_zero_shot", watched)
    profile = replace(UNTAUGHT, student=replace(UNTAUGHT.student, mixed_precision=precision))
    arm = train_by_terms(clip, training_set(pixels, features, sets), profile)
    assert seen == [precision] * 6  # the untouched one twice, two epochs, two candidates
    assert arm.clip.precision == "no"


@pytest.mark.parametrize("name", [CONTROL, "dclip", "region_taught"])
def test_an_arm_is_fine_tuned_and_chosen_on_val(
    name, clip, pixels, features, sets, targets, tmp_path
) -> None:
    profile, given, beside = UNTAUGHT, None, {}
    if name != CONTROL:
        profile, given = PROFILE, targets
    if name == "region_taught":
        student = replace(STUDENT, distillation="anchored_kl", anchors=7, uncaptioned_batch=3)
        profile = replace(PROFILE, student=student)
        beside = {"uncaptioned": PictureTargets(pixels.flip(2), features.image.flip(0))}
    path, shown, steps = tmp_path / "state.safetensors", [], []
    arm = train_by_terms(
        clip,
        training_set(pixels, features, sets),
        profile,
        given,
        **beside,
        checkpoint=path,
        on_epoch=lambda student, history: shown.append(len(history)),
        on_step=lambda step, loss: steps.append(step),
    )
    tuned = fine_tune(clip, pixels, features, profile.student, given, seed=3, **beside).student
    student, alpha, candidates = choose(clip, tuned, sets)
    assert (arm.alpha, arm.candidates) == (alpha, candidates)
    assert [candidate.alpha for candidate in arm.candidates] == [0, 0.5, 1]
    assert torch.equal(weights(arm.clip.model), weights(student.model))
    assert path.exists() and shown == [1, 2] and steps == [*range(len(steps))]
    last, sample = (
        arm.history[-1],
        sets.zero_shot_val.every(max(1, len(sets.zero_shot_val.labels) // 40)),
    )
    assert last["val_recall_at_1"] == arm.candidates[-1].recall_at_1
    assert last["val_zero_shot"] == evaluate_zero_shot(tuned, sample).top1


@pytest.mark.parametrize(
    ("accuracies", "kept"), [((0.5, 0.4, 0.1), [0.8, 0.2]), ((0.0, 0.0, 0.0), [])]
)
def test_curves_show_how_much_is_remembered(
    accuracies, kept, clip, pixels, features, sets, monkeypatch
) -> None:
    """Of the untouched CLIP, then of two epochs; whatever is measured later is right."""
    found = iter(accuracies)

    def named(bundle, data, progress=True):
        return SimpleNamespace(top1=next(found, 1.0))

    monkeypatch.setattr(module, "evaluate_zero_shot", named)
    arm = train_by_terms(clip, training_set(pixels, features, sets), UNTAUGHT)
    assert [row["val_zero_shot"] for row in arm.history] == [*accuracies[1:]]
    rows = [row["val_retention"] for row in arm.history if "val_retention" in row]
    assert rows == pytest.approx(kept)


def test_an_arm_that_is_to_be_taught_is_no_control_without_its_lessons(
    clip, pixels, features, sets
) -> None:
    with pytest.raises(ValueError, match=r"Expected teacher embeddings .*, got None"):
        train_by_terms(clip, training_set(pixels, features, sets), PROFILE)


# The choice of alpha: the best on val of those that remember


@pytest.mark.parametrize(
    ("recall", "top1", "least", "chosen"),
    [
        ((0.1, 0.2, 0.3, 0.4), (0.8, 0.8, 0.8, 0.8), 0.95, 1.0),  # the best of those that remember
        ((0.1, 0.2, 0.3, 0.4), (0.8, 0.8, 0.77, 0.5), 0.95, 0.6),
        ((0.1, 0.5, 0.3, 0.4), (0.8, 0.7, 0.8, 0.8), 0.95, 1.0),  # not the first that remembers
        ((0.1, 0.2, 0.3, 0.4), (0.8, 0.7, 0.7, 0.7), 0.95, 0.0),  # none does: untouched
        ((0.5, 0.2, 0.3, 0.4), (0.8, 0.8, 0.8, 0.8), 0.95, 0.0),  # all are worse than untouched
        ((0.1, 0.3, 0.3, 0.3), (0.8, 0.8, 0.8, 0.8), 0.95, 0.3),  # the nearest of equals
        ((0.1, 0.2, 0.3, 0.4), (0.8, 0.8, 0.9, 0.9), 1.05, 1.0),
        ((0.1, 0.2, 0.3, 0.4), (0.8, 0.8, 0.8, 0.8), 1.05, 0.0),
    ],
)
def test_alpha_is_chosen_by_the_rule(recall, top1, least, chosen) -> None:
    kept = [share / top1[0] for share in top1]
    candidates = [Candidate(*each) for each in zip((0.0, 0.3, 0.6, 1.0), recall, kept, strict=True)]
    assert choose_candidate(candidates, least).alpha == chosen


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_interpolations_are_measured_in_the_asked_precision(
    precision, clip, sets, monkeypatch
) -> None:
    seen = []
    for name in ("evaluate_retrieval", "evaluate_zero_shot"):
        evaluate = getattr(module, name)

        def watched(bundle, *given, evaluate=evaluate, **more):
            seen.append(bundle.precision)
            return evaluate(bundle, *given, **more)

        monkeypatch.setattr(module, name, watched)
    after = clone_clip(clip)
    with torch.no_grad():
        after.model.visual.proj += torch.randn_like(after.model.visual.proj)  # labels move
    found = measure_interpolations(clip, after, sets.val, sets.zero_shot_val, (1.0, 0.5), precision)
    assert seen == [precision] * 6 and clip.precision == "no"
    assert [each.alpha for each in found] == [0.0, 0.5, 1.0] and found[0].retention == 1
    base = evaluate_zero_shot(replace(clip, precision=precision), sets.zero_shot_val).top1
    for each in found:
        mixed = interpolate(replace(clip, precision=precision), after, each.alpha)
        recall = evaluate_retrieval(mixed, sets.val).text_to_image.recall_at[1]
        assert each.recall_at_1 == recall
        assert each.retention == evaluate_zero_shot(mixed, sets.zero_shot_val).top1 / base
    assert len({each.retention for each in found}) == 3


def test_a_clip_that_knows_no_class_has_nothing_to_retain(clip, sets) -> None:
    known = sets.zero_shot_val
    farthest = (encode_images(clip, known.pictures) @ known.class_features.T).argmin(1)
    wrong = replace(known, labels=farthest)
    with pytest.raises(ValueError, match="knows some of the classes"):
        measure_interpolations(clip, clip, sets.val, wrong, (1.0,))
    with pytest.raises(ValueError, match="knows some of the classes"):
        require_some_named(clip, wrong)
    assert 0 < require_some_named(clip, known) <= 1


# Measuring


@pytest.fixture
def prepared(data, clip) -> EvaluationSets:
    """Of a few of the pocket's pictures."""
    return prepare_evaluation(clip, data)


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


@pytest.mark.parametrize("kept_bytes", [0, encode.KEPT_BYTES])
def test_arms_are_measured_on_test_and_pictures_read_once(
    data, clip, prepared, monkeypatch, kept_bytes
) -> None:
    monkeypatch.setattr(encode, "KEPT_BYTES", kept_bytes)
    opened = []
    monkeypatch.setattr(
        encode, "open_picture", lambda path, side: opened.append(path) or open_picture(path)
    )
    other = clone_clip(clip)
    with torch.no_grad():
        for parameter in other.model.visual.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    arms = {"clip": Arm(clip), "other": Arm(other, 1.0)}
    results = evaluate_arms(arms, prepared)
    tests = (data.test, data.zero_shot, data.zero_shot_held_out)
    assert len(opened) == sum(map(len, tests)) * (1 if kept_bytes else 2)
    assert list(results) == ["clip", "other"]
    for name, result in results.items():
        bundle = arms[name].clip
        assert result.arm is arms[name]
        expected = evaluate_retrieval(bundle, prepared.test)
        assert result.retrieval.as_dict() == expected.as_dict()
        for found, measured in (
            (result.zero_shot, prepared.zero_shot),
            (result.held_out, prepared.zero_shot_held_out),
        ):
            near = encode_images(bundle, measured.pictures) @ measured.class_features.T
            assert torch.equal(found.correct, near.argmax(1) == measured.labels)


def test_without_a_held_out_style_none_is_measured(clip, prepared) -> None:
    sets = replace(prepared, zero_shot_held_out=None)
    found = evaluate_arms({"clip": Arm(clip)}, sets)
    assert found["clip"].held_out is None and len(found["clip"].zero_shot.correct)


# On disk


NOTHING = EvaluationIndex({}, None, {})
SEEN = SeenPictures(NOTHING, NOTHING)
WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


def keep(arm, clip, folder, profile=PROFILE) -> Path:
    """An arm that has seen nothing, saved."""
    save_arm(arm, folder, describe_origin(profile, clip), SEEN)
    return folder


@pytest.fixture
def arm(clip, sets) -> Arm:
    """Its image tower differs, in numbers that half precision has."""
    tuned = clone_clip(clip)
    with torch.no_grad():
        for parameter in tuned.model.visual.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    _, _, candidates = choose(clip, tuned, sets, SelectionRule((0.7,), 0.0))
    round_changed(clip, tuned)
    history = [{"epoch": 1, "loss": 0.1 + 0.2}]
    return Arm(tuned, 0.7, candidates, history)


def test_what_an_arm_has_changed_is_halved_and_the_rest_is_kept_to_the_bit(
    arm, clip, tmp_path
) -> None:
    keep(arm, clip, tmp_path / "dclip")
    kept, before = load_tensors(tmp_path / "dclip" / WEIGHTS), clip.model.state_dict()
    assert kept.keys() == before.keys()
    for name, value in kept.items():
        if name.startswith("visual."):
            assert value.dtype == torch.float16 and not torch.equal(value.float(), before[name])
        else:
            assert value.dtype == torch.float32 and torch.equal(value, before[name])
    loaded = load_arm(tmp_path / "dclip")
    assert same_text_tower(loaded.clip, clip)
    assert torch.equal(weights(loaded.clip.model), weights(arm.clip.model))
    assert {p.dtype for p in loaded.clip.model.parameters()} == {torch.float32}
    for name in ("alpha", "candidates", "history"):
        assert getattr(loaded, name) == getattr(arm, name)


@pytest.mark.parametrize("lora", [0, 2])
@pytest.mark.parametrize("name", [CONTROL, "dclip"])
def test_a_trained_arm_measures_the_same_once_it_is_loaded(
    name, lora, clip, pixels, features, sets, targets, tmp_path
) -> None:
    profile, given = (UNTAUGHT, None) if name == CONTROL else (PROFILE, targets)
    profile = replace(profile, student=replace(profile.student, lora=lora))
    shown = replace(training_set(pixels, features, sets), rule=SelectionRule((1.0,), 0.0))
    arm = train_by_terms(clip, shown, profile, given)
    loaded = load_arm(keep(arm, clip, tmp_path / name))
    assert torch.equal(weights(loaded.clip.model), weights(arm.clip.model))
    assert loaded.clip.digest == arm.clip.digest
    for measured in (sets.val, sets.test):
        one, other = (evaluate_retrieval(each.clip, measured) for each in (arm, loaded))
        assert one.as_dict() == other.as_dict()


def test_an_arm_whose_text_tower_trains_keeps_it(clip, pixels, features, tmp_path) -> None:
    texts = [f"{count} boats at sea" for count in range(len(features.text))]
    names, domain = ("a ball", "a dog", "the sea"), torch.tensor([True] * 3)
    val = RetrievalSet(pixels, encode_texts(clip, texts), features.image_of_text, texts, clip)
    classes = encode_classes(clip, names)
    nearest = (encode_images(clip, pixels) @ classes.T).argmax(1)
    named = ZeroShotSet(pixels, nearest, classes, domain, names, encoder=clip)
    student = replace(UNTAUGHT.student, train_text=True, epochs=20, learning_rate=5e-3)
    profile = replace(UNTAUGHT, student=student)
    shown = TrainingSet(join(pixels, features, texts), val, named, PROFILE.selection)
    arm = train_by_terms(clip, shown, profile)
    assert arm.alpha and not same_text_tower(arm.clip, clip)
    own = encode_texts(arm.clip, texts)
    assert not torch.allclose(own, val.text_features, atol=1e-4)
    measured = retrieval_metrics(encode_images(arm.clip, pixels), own, features.image_of_text)
    chosen = next(c for c in arm.candidates if c.alpha == arm.alpha)
    assert chosen.recall_at_1 == measured.text_to_image.recall_at[1]
    loaded = load_arm(keep(arm, clip, tmp_path / "tuned"))
    assert torch.equal(weights(loaded.clip.model), weights(arm.clip.model))
    assert not same_text_tower(loaded.clip, clip)


def test_an_arm_is_a_clip_of_its_own_with_all_that_it_needs(arm, clip, tmp_path) -> None:
    folder = keep(arm, clip, tmp_path / "runs" / "x" / "dclip")
    names = {WEIGHTS, CONFIG, "merges.txt.gz", "training.json", "seen.json", "README.md"}
    assert {path.name for path in folder.iterdir()} == names
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "runs")
    loaded = load_clip(moved)
    assert loaded.name == str(moved) and loaded.digest == arm.clip.digest
    assert loaded.tokenizer(["a red ball"]).tolist() == clip.tokenizer(["a red ball"]).tolist()
    # A profile's tag is for its architecture, and stands beside models that need none.
    assert tag_for(str(moved), "openai") is None
    assert tag_for("ViT-B-32-quickgelu", "openai") == "openai"


def test_a_runs_whole_folder_names_its_arms_and_no_teacher(arm, clip, tmp_path) -> None:
    for name in (CONTROL, "dclip"):
        keep(arm, clip, tmp_path / name)
    write_record({}, tmp_path / "region_teacher" / "config.json")
    arms = f"{tmp_path}/contrastive_rehearsal, {tmp_path}/dclip"
    with pytest.raises(FileNotFoundError, match=rf"name one of them: {arms}\.$"):
        load_clip(tmp_path)


def test_seen_pictures_are_written_before_weights_whose_they_are(
    arm, clip, tmp_path, monkeypatch
) -> None:
    def fail(*_) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(module, "save_clip", fail)
    with pytest.raises(OSError, match="full"):
        keep(arm, clip, tmp_path)
    assert load_seen(tmp_path).complete and not (tmp_path / WEIGHTS).exists()


@pytest.mark.parametrize("names", [(CONTROL, "region_taught"), ("dclip",)])
def test_saved_arms_are_loaded_beside_the_untouched_one(names, arm, clip, tmp_path, capsys) -> None:
    for name in names:
        keep(arm, clip, tmp_path / name)
    loaded = load_arms(clip, tmp_path, *[names] * (len(names) == 1))  # two are the default
    assert list(loaded) == ["clip", *names] and loaded["clip"].clip is clip
    said = ", ".join(f"{name} (α = {arm.alpha:g})" for name in names)
    assert f"trained earlier: {said}" in capsys.readouterr().out
    assert all(loaded[name].alpha == arm.alpha for name in names)


def test_arms_of_another_clip_are_not_loaded_beside_this_one(arm, clip, tmp_path) -> None:
    keep(arm, clip, tmp_path / CONTROL)
    keep(arm, arm.clip, tmp_path / "dclip")
    assert load_arms(clip, tmp_path, [CONTROL])
    with pytest.raises(ValueError, match=rf"{tmp_path}/dclip.* made from another CLIP"):
        load_arms(clip, tmp_path, [CONTROL, "dclip"])
    with torch.no_grad():
        clip.model.visual.proj += 1e-3
    with pytest.raises(ValueError, match=rf"{tmp_path}/{CONTROL}.* made from another CLIP"):
        load_arms(clip, tmp_path, [CONTROL])


def test_a_folder_without_arms_is_named(clip, clip_folder, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_arms(clip, tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"an arm in {clip_folder}, found no training"):
        load_arm(clip_folder)  # a CLIP, which nobody has trained


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("file", "harm", "kind"),
    [
        (WEIGHTS, lambda path: path.unlink(), FileNotFoundError),
        (WEIGHTS, cut, ValueError),
        (WEIGHTS, lambda path: save_tensors({"x": torch.ones(1)}, path), ValueError),
        (CONFIG, lambda path: path.unlink(), FileNotFoundError),
        (CONFIG, cut, ValueError),
        (CONFIG, lambda path: path.write_text("{}"), ValueError),
        ("merges.txt.gz", cut, ValueError),
        ("merges.txt.gz", lambda path: path.unlink(), ValueError),
        ("training.json", lambda path: path.unlink(), FileNotFoundError),
        ("training.json", cut, ValueError),
        ("training.json", lambda path: path.write_text("[]"), ValueError),
        ("training.json", lambda path: path.write_text("{}"), ValueError),
        ("training.json", lambda path: path.write_text("[" * 100_000), ValueError),
    ],
)
def test_an_arm_that_is_not_whole_on_disk_is_named(file, harm, kind, arm, clip, tmp_path) -> None:
    folder = keep(arm, clip, tmp_path / "dclip")
    harm(folder / file)
    # What open_clip does not load is named by its folder, as for any CLIP.
    named = rf"{folder}.*{file}" if file == "training.json" else str(folder)
    with pytest.raises(kind, match=rf"(?s)Expected .*{named}"):
        load_arm(folder)


CANDIDATE = {"alpha": 0.5, "recall_at_1": 0.2, "retention": 1.0}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"candidates": [CANDIDATE | {"luck": 1.0}]}, "'luck'"),
        ({"candidates": [{"alpha": 0.5, "retention": 1.0}]}, "'recall_at_1'"),
        ({"candidates": [0.5]}, "float"),
        ({"candidates": None}, "NoneType"),
    ],
    ids=str,
)
def test_a_record_of_another_form_names_the_file_and_the_field(
    change, says, arm, clip, tmp_path
) -> None:
    path = keep(arm, clip, tmp_path) / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=says) as caught:
        load_arm(tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_arm_without_a_history_is_one(arm, clip, tmp_path) -> None:
    loaded = load_arm(keep(replace(arm, history=None), clip, tmp_path))
    assert loaded.history is None and loaded.alpha == arm.alpha


def test_what_half_precision_cannot_hold_is_kept_whole(clip, tmp_path) -> None:
    tuned = clone_clip(clip)
    with torch.no_grad():
        tuned.model.visual.proj[0, :3] = torch.tensor([70000.0, -70000.0, 1 / 3])
    round_changed(clip, tuned)
    loaded = load_arm(keep(Arm(tuned, 1.0), clip, tmp_path))
    assert loaded.clip.model.visual.proj[0, :2].tolist() == [70000.0, -70000.0]
    assert torch.equal(weights(loaded.clip.model), weights(tuned.model))
    before = clip.model.state_dict()
    for name, value in loaded.clip.model.state_dict().items():
        assert torch.equal(value, before[name]) == (name != "visual.proj")


def test_the_pockets_arms_come_with_the_kit_and_others_lie_where_they_were_trained(
    tmp_path, monkeypatch
) -> None:
    pocket = PROFILES["pocket"]
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert find_saved(pocket) == asset_path("pocket_arms")
    other = replace(pocket, name="base")
    says = r"of the profile base in .*arms, found none; run: .* distill --profile base --out "
    with pytest.raises(FileNotFoundError, match=says):
        find_saved(other)
    for place in (tmp_path / "runs/base/arms", Path("mine")):
        write_record({}, place / "region_taught" / "training.json")
    assert find_saved(other).resolve() == tmp_path / "runs/base/arms"
    assert find_saved(pocket, "mine") == find_saved(other, "mine") == Path("mine")


# Where an arm comes from


def test_an_arm_says_where_it_comes_from(arm, clip, clip_folder, tmp_path) -> None:
    measured = {"data": "mine", "images": "below", "test": "other", "zero_shot": "classes"}
    profile = replace(PROFILE, clip=str(clip_folder), seed=5, templates="paper", **measured)
    profile = replace(profile, regions=replace(profile.regions, margin=0.3), recipe="dclip")
    origin = read_origin(keep(arm, clip, tmp_path, profile))
    assert origin.digest == clip.digest != arm.clip.digest
    for name in ("clip", "pretrained", *measured, "seed", "templates", "leak_guard", "regions"):
        assert getattr(origin.profile, name) == getattr(profile, name), name
    assert json.loads((tmp_path / "training.json").read_text())["recipe"] == "dclip"
    assert read_origin(clip_folder) is None and read_origin("ViT-B-32") is None
    assert read_origin(f"local-dir:{tmp_path}").digest == clip.digest


@pytest.mark.parametrize("guard", ["content", "names"])
def test_an_arm_is_measured_by_the_leak_guard_of_its_run(guard, arm, clip, tmp_path) -> None:
    keep(arm, clip, tmp_path, replace(PROFILE, leak_guard=guard))
    assert read_origin(tmp_path).profile.leak_guard == guard


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ({"templates": "x"}, "templates"),
        ({"seed": "x"}, "seed"),
        ({"seed": -1}, "seed"),
        ({"leak_guard": "luck"}, "leak_guard"),
        ({"regions": {"margin": -1}}, "margin"),
        ({"regions": None}, "regions"),
        ({}, "KeyError: 'clip'"),  # names none
    ],
    ids=str,
)
def test_settings_that_no_run_can_have_are_named(odd, says, arm, clip, tmp_path) -> None:
    path = keep(arm, clip, tmp_path) / "training.json"
    record = json.loads(path.read_text())
    settings = (record["settings"] | odd) if odd else {}
    path.write_text(json.dumps(record | {"settings": settings}))
    with pytest.raises(ValueError, match=rf"(?s)training\.json .* damaged .*{says}"):
        read_origin(tmp_path)


def test_the_clip_that_an_arm_was_made_from_is_loaded_and_no_other(
    arm, clip, clip_folder, make_clip_folder, tmp_path
) -> None:
    # A profile's tag that was left beside a folder is not for it.
    profile = replace(PROFILE, clip=str(clip_folder), pretrained="openai")
    origin = read_origin(keep(arm, clip, tmp_path / "dclip", profile))
    assert origin.load_base().digest == clip.digest
    moved = shutil.copytree(clip_folder, tmp_path / "moved")
    assert origin.load_base(instead=str(moved)).name == str(moved)
    for other in (str(make_clip_folder(embed_dim=16)), str(tmp_path / "dclip")):
        with pytest.raises(ValueError, match=rf"made from, of the digest .*{other} of .*, or pray"):
            origin.load_base(instead=other, advice=", or pray")
    gone = read_origin(keep(arm, clip, tmp_path / "b", replace(profile, clip=str(tmp_path / "x"))))
    with pytest.raises(ValueError, match=rf"got '{tmp_path}/x'"):
        gone.load_base()


@pytest.mark.parametrize("planted", ["its own", "its base"])
def test_python_that_comes_with_an_arm_or_its_base_is_never_run(
    planted, arm, clip, clip_folder, tmp_path
) -> None:
    base = shutil.copytree(clip_folder, tmp_path / "base")
    folder = keep(arm, clip, tmp_path / "dclip", replace(PROFILE, clip=str(base)))
    place = folder if planted == "its own" else base
    config = json.loads((place / CONFIG).read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (place / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"{place} .* do not load \(.*trust_remote_code"):
        load_arm(folder) if planted == "its own" else read_origin(folder).load_base()


# The card


def read_card(folder: Path) -> str:
    """A card as the page that its readers see."""
    _, _, text = (folder / "README.md").read_text().partition("\n---\n")
    return markdown2html(text)


def test_a_card_says_what_was_measured_once_it_was(arm, clip, tmp_path) -> None:
    folder = keep(arm, clip, tmp_path / "dclip", replace(PROFILE, recipe="dclip"))
    text = (folder / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: open_clip\n")
    assert "# `dclip`" in text and "from `pocket`" in text and "α = 0.7" in text
    assert "seed 3" in text and text.endswith("## Measured\n\nNot measured.\n")
    write_card(folder, "| arm | R@1 |\n|---|---|\n| dclip | 12.5 |")
    text = (folder / "README.md").read_text()
    assert "Not measured" not in text and "<td>12.5</td>" in read_card(folder)
    with pytest.raises(FileNotFoundError, match=r"training\.json"):
        write_card(tmp_path)


def test_what_a_card_shows_loads_the_arm(arm, clip, tmp_path) -> None:
    folder = keep(arm, clip, tmp_path / "dclip")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    found: dict = {}
    exec(code.replace("FOLDER", str(folder)), found)
    assert torch.equal(found["model"].visual.proj, arm.clip.model.visual.proj)
    assert found["tokenizer"](["a ball"]).tolist() == clip.tokenizer(["a ball"]).tolist()
    (folder / "merges.txt.gz").unlink()
    write_card(folder)
    assert "bpe_path" not in (folder / "README.md").read_text()


def test_a_card_names_no_path_beyond_its_last_part(arm, clip, tmp_path) -> None:
    places = {x: f"/home/me/secret/{x}" for x in ("clip", "pretrained", "data", "images", "test")}
    others = {x: f"/home/me/secret/{x}" for x in ("zero_shot", "uncaptioned")}
    folder = keep(arm, clip, tmp_path / "secret" / "dclip", replace(PROFILE, **places, **others))
    text = (folder / "README.md").read_text()
    assert "from `clip (pretrained)`" in text and "trained on `data`" in text
    assert "secret" not in text and "/home" not in text and str(tmp_path) not in text


HOSTILE = "x`</code><script>alert(1)</script>[x](javascript:x)\n# big\x1b[31m"


def test_hostile_names_in_a_card_are_text(arm, clip, tmp_path) -> None:
    last = HOSTILE.replace("/", "|")  # a path has no slash in its last part
    profile = replace(PROFILE, clip=last, pretrained=last, data=last)
    folder = keep(arm, clip, tmp_path / last, profile)
    record = json.loads((folder / "training.json").read_text())
    write_record(record | {"recipe": HOSTILE}, folder / "training.json")
    write_card(folder)
    assert "\x1b" not in (folder / "README.md").read_text()
    page = read_card(folder)
    for harm in ("<script", 'href="javascript'):
        assert harm in markdown2html(f"`{HOSTILE}`") and harm not in page
    assert page.count("<h1") == 1
    assert page.count("&lt;script&gt;alert(1)") == 6  # the name twice, base and tag, recipe, data


def test_the_pocket_arms_have_cards_and_records() -> None:
    """What comes with the kit is as what distill writes."""
    for name in (CONTROL, "dclip", "region_taught"):
        folder = asset_path("pocket_arms", name)
        assert read_origin(folder).profile.clip == "pocket"
        assert read_origin(folder).digest == load_clip("pocket").digest
        assert "Not measured" not in (folder / "README.md").read_text()


# A training that ruins the model


@pytest.mark.parametrize(
    ("recall", "before", "retention", "ruined"),
    [
        (0.053, 0.173, 1.0, True),
        (0.087, 0.173, 1.0, False),
        (0.2, 0.173, 0.49, True),
        (0.2, 0.173, 0.51, False),
        (0.0, 0.0, 1.0, False),  # nothing is known
    ],
)
def test_half_of_what_a_model_can_do_is_enough_to_lose(recall, before, retention, ruined) -> None:
    if not ruined:
        module._require_intact(recall, before, retention, 3e-4)
        return
    with pytest.raises(ValueError, match=r"--student\.learning-rate 1\.0e-04.*--keep-going"):
        module._require_intact(recall, before, retention, 3e-4)


@pytest.fixture
def checked(monkeypatch) -> list[tuple[float, ...]]:
    """What each epoch's model is held against."""
    found = []
    monkeypatch.setattr(module, "_require_intact", lambda *figures: found.append(figures))
    return found


def test_each_epoch_is_held_against_the_untouched_clip(
    clip, pixels, features, sets, checked, monkeypatch
) -> None:
    shown = training_set(pixels, features, sets)
    train_by_terms(clip, shown, UNTAUGHT)
    assert not checked  # unless it is asked for
    first = {  # of the sample that is named, which the untouched CLIP names rightly
        "pictures": sets.zero_shot_val.pictures.flip(0),
        "labels": sets.zero_shot_val.labels.flip(0),
    }
    shown = replace(shown, stop_collapsed=True, zero_shot_val=replace(sets.zero_shot_val, **first))
    for least, known in ((1, True), (10_000, False)):  # few right answers may be luck
        checked.clear()
        monkeypatch.setattr(module, "_LEAST_FOUND", least)
        arm = train_by_terms(clip, shown, UNTAUGHT)
        before = evaluate_retrieval(clip, sets.val).text_to_image.recall_at[1]
        assert len(checked) == STUDENT.epochs and before
        for row, (recall, held_against, kept, rate) in zip(arm.history, checked, strict=True):
            assert recall == row["val_recall_at_1"] and rate == STUDENT.learning_rate
            assert held_against == (before if known else 0.0)
            assert kept == (pytest.approx(row["val_retention"]) if known else 1.0)


def test_a_long_first_epoch_is_looked_at_before_its_end(
    clip, pixels, features, sets, checked, monkeypatch
) -> None:
    """After each of its quarters; looking changes nothing of what is trained."""
    shown = training_set(pixels, features, sets)
    student = replace(UNTAUGHT.student, batch_size=2)
    profile = replace(UNTAUGHT, student=student)
    expected = train_by_terms(clip, shown, profile)
    steps = len(plan_epoch(features, student, 0, 0))
    looks = sorted({steps * n // 4 for n in (1, 2, 3)} - {0})
    assert len(looks) > 1
    monkeypatch.setattr(distillation, "LOOKED_AT", steps)
    done, looked = [], []
    monkeypatch.setattr(module, "_require_intact", lambda *_: looked.append(len(done)))
    found = train_by_terms(
        clip,
        replace(shown, stop_collapsed=True),
        profile,
        on_step=lambda step, loss: done.append(step),
    )
    whole = [steps * (epoch + 1) for epoch in range(STUDENT.epochs)]
    # A look comes before its own step is told.
    assert looked == [look - 1 for look in looks] + whole
    assert torch.equal(weights(found.clip.model), weights(expected.clip.model))
    monkeypatch.setattr(distillation, "LOOKED_AT", steps + 1)
    looked.clear(), done.clear()
    train_by_terms(clip, replace(shown, stop_collapsed=True), profile)
    assert len(looked) == STUDENT.epochs


def test_a_model_that_is_ruined_within_an_epoch_is_not_trained_on_by_the_same_call(
    clip, pixels, features, sets, tmp_path, monkeypatch
) -> None:
    shown = replace(training_set(pixels, features, sets), stop_collapsed=True)
    profile = replace(UNTAUGHT, student=replace(UNTAUGHT.student, batch_size=2))
    steps = len(plan_epoch(features, profile.student, 0, 0))
    monkeypatch.setattr(distillation, "LOOKED_AT", steps)

    def ruin(*_: float) -> None:
        raise RuinedError("ruined")

    monkeypatch.setattr(module, "_require_intact", ruin)
    more, told = {"checkpoint": tmp_path / "arm.safetensors"}, []
    for _ in range(2):
        told.clear()
        with pytest.raises(RuinedError, match="ruined"):
            train_by_terms(
                clip, shown, profile, on_step=lambda step, loss: told.append(step), **more
            )
        assert max(told, default=-1) < max(1, steps // 4)


def test_a_stopped_training_goes_on_where_it_was_asked_to(
    clip, pixels, features, sets, tmp_path, monkeypatch
) -> None:
    shown = training_set(pixels, features, sets)
    expected = train_by_terms(clip, shown, UNTAUGHT)

    def ruin(*_: float) -> None:
        raise ValueError("ruined")

    monkeypatch.setattr(module, "_require_intact", ruin)
    more = {"checkpoint": tmp_path / "arm.safetensors"}
    with pytest.raises(ValueError, match="ruined"):
        train_by_terms(clip, replace(shown, stop_collapsed=True), UNTAUGHT, **more)
    found = train_by_terms(clip, shown, UNTAUGHT, **more)
    assert len(found.history) == STUDENT.epochs
    assert torch.equal(weights(found.clip.model), weights(expected.clip.model))
