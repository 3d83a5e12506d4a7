"""The arms: one rule for all, nothing of test seen, and back from disk as they were rounded."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dclip_kit.config import Profile, SelectionRule, StudentSettings, TeacherSettings
from dclip_kit.evaluation import arms, selection
from dclip_kit.evaluation.arms import (
    Arm,
    load_arm,
    load_arms,
    load_teacher,
    member_seed,
    round_tower,
    save_arm,
    save_teacher,
    train_arm,
)
from dclip_kit.evaluation.evaluate import (
    RetrievalSet,
    ZeroShotSet,
    encode_classes,
    evaluate_zero_shot,
)
from dclip_kit.evaluation.preparation import EvaluationSets, TrainingSet
from dclip_kit.evaluation.selection import select_alpha
from dclip_kit.metrics import retrieval_metrics
from dclip_kit.models.encode import encode_images, encode_texts
from dclip_kit.models.teacher import MetaTeacher
from dclip_kit.models.weights import clone_clip, same_text_tower
from dclip_kit.training import distill

STUDENT = StudentSettings(batch_size=4, epochs=2, learning_rate=1e-3, mixed_precision="no")
PROFILE = Profile(
    "pocket",
    "pocket",
    None,
    teacher=TeacherSettings(heads=4),
    student=STUDENT,
    selection=SelectionRule((0.5, 1.0), 0.0),
    seed=3,
)


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


def training_set(pixels, sets) -> TrainingSet:
    return TrainingSet(pixels, None, sets.val, sets.zero_shot_val)


def weights(module) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in module.state_dict().values()])


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_val_is_encoded_in_the_trainings_precision(
    precision, clip, pixels, features, sets, monkeypatch
) -> None:
    seen = []

    def watched(bundle, *given, **more):
        seen.append(bundle.precision)
        return evaluate_zero_shot(bundle, *given, **more)

    for module in (arms, selection):
        monkeypatch.setattr(module, "evaluate_zero_shot", watched)
    profile = replace(PROFILE, student=replace(STUDENT, mixed_precision=precision))
    arm = train_arm("contrastive", clip, training_set(pixels, sets), features, profile)
    assert seen == [precision] * 5  # two epochs, the untouched one, two candidates
    assert arm.clip.precision == "no"


@pytest.mark.parametrize("name", ["contrastive", "dclip"])
def test_an_arm_is_fine_tuned_and_chosen_on_val(
    name, clip, pixels, features, sets, targets, tmp_path
) -> None:
    teacher = targets if name == "dclip" else None
    settings = STUDENT if name == "dclip" else replace(STUDENT, distillation_weight=0.0)
    path, shown = tmp_path / "state.safetensors", []
    arm = train_arm(
        name,
        clip,
        training_set(pixels, sets),
        features,
        PROFILE,
        teacher,
        path,
        lambda student, history: shown.append(len(history)),
    )
    tuned = distill(clip, pixels, features, settings, teacher, seed=3).student
    chosen = select_alpha(clip, tuned, sets.val, sets.zero_shot_val, PROFILE.selection)
    assert (arm.name, arm.alpha, arm.candidates) == (name, chosen.alpha, chosen.candidates)
    assert [candidate.alpha for candidate in arm.candidates] == [0, 0.5, 1]
    assert torch.equal(weights(arm.clip.model), weights(chosen.student.model))
    assert path.exists() and shown == [1, 2]
    last = arm.history[-1]
    assert last["val_recall_at_1"] == arm.candidates[-1].recall_at_1
    assert last["val_zero_shot"] == evaluate_zero_shot(tuned, sets.zero_shot_val.every(20)).top1


def test_a_soup_is_the_mean_of_runs_in_other_orders(clip, pixels, features, sets, tmp_path) -> None:
    profile = replace(PROFILE, student=replace(STUDENT, soup=3, distillation_weight=0.0))
    path = tmp_path / "state.safetensors"
    arm = train_arm(
        "contrastive", clip, training_set(pixels, sets), features, profile, checkpoint=path
    )
    seeds = [3, 3 + 1_000_003, 3 + 2 * 1_000_003]
    runs = [distill(clip, pixels, features, profile.student, seed=seed) for seed in seeds]
    assert not torch.equal(weights(runs[0].student.model), weights(runs[1].student.model))
    tuned = clone_clip(clip)
    states = [run.student.model.state_dict() for run in runs]
    tuned.model.load_state_dict({k: sum(s[k] for s in states) / 3 for k in states[0]})
    chosen = select_alpha(clip, tuned, sets.val, sets.zero_shot_val, profile.selection)
    assert arm.alpha == chosen.alpha
    torch.testing.assert_close(weights(arm.clip.model), weights(chosen.student.model))
    assert [row["epoch"] for row in arm.history] == [1, 2]
    for number, row in enumerate(arm.history):
        losses = [run.history[number]["loss"] for run in runs]
        assert row["loss"] == pytest.approx(sum(losses) / 3)
    names = {"state.safetensors", "state-1.safetensors", "state-2.safetensors"}
    assert names <= {each.name for each in tmp_path.iterdir()}


def test_soups_of_two_seeds_share_no_member() -> None:
    members = [{member_seed(seed, member) for member in range(8)} for seed in range(50)]
    assert len(set().union(*members)) == 8 * 50
    assert member_seed(7, 0) == 7  # a run of one is what its seed says


# On disk


@pytest.fixture
def arm(clip, sets) -> Arm:
    tuned = clone_clip(clip)
    with torch.no_grad():
        for parameter in tuned.model.visual.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    chosen = select_alpha(clip, tuned, sets.val, sets.zero_shot_val, SelectionRule((0.7,), 0.0))
    history = [{"epoch": 1, "loss": 0.1 + 0.2}]
    return Arm("dclip", tuned, 0.7, chosen.candidates, history)


def test_a_saved_arm_is_the_rounded_one(arm, clip, tmp_path) -> None:
    before = weights(arm.clip.model)
    rounded = round_tower(arm)
    assert torch.equal(weights(arm.clip.model), before)  # a copy was rounded
    save_arm(rounded, tmp_path)
    loaded = load_arm("dclip", clip, tmp_path)
    assert torch.equal(weights(loaded.clip.model), weights(rounded.clip.model))
    assert {p.dtype for p in loaded.clip.model.parameters()} == {torch.float32}
    assert not torch.equal(weights(loaded.clip.model), before)
    assert torch.allclose(weights(loaded.clip.model), before, atol=1e-2)
    for name in ("name", "alpha", "candidates", "history"):
        assert getattr(loaded, name) == getattr(arm, name)
    save_arm(arm, tmp_path / "other")
    assert (tmp_path / "other/dclip.safetensors").read_bytes() == (
        tmp_path / "dclip.safetensors"
    ).read_bytes()


def test_an_arm_whose_text_tower_trains_keeps_it(clip, pixels, features, tmp_path) -> None:
    texts = [f"{count} boats at sea" for count in range(len(features.text))]
    names, domain = ("a ball", "a dog", "the sea"), torch.tensor([True] * 3)
    val = RetrievalSet(pixels, encode_texts(clip, texts), features.image_of_text, texts, clip)
    classes = encode_classes(clip, names)
    nearest = (encode_images(clip, pixels) @ classes.T).argmax(1)
    named = ZeroShotSet(pixels, nearest, classes, domain, names, encoder=clip)
    student = replace(STUDENT, train_text=True, epochs=20, learning_rate=5e-3)
    profile = replace(PROFILE, student=student)
    shown = TrainingSet(pixels, None, val, named)
    arm = train_arm("contrastive", clip, shown, features, profile, texts=texts)
    assert arm.alpha and arm.trained_text and not same_text_tower(arm.clip, clip)
    own = encode_texts(arm.clip, texts)
    assert not torch.allclose(own, val.text_features, atol=1e-4)
    measured = retrieval_metrics(encode_images(arm.clip, pixels), own, features.image_of_text)
    chosen = next(c for c in arm.candidates if c.alpha == arm.alpha)
    assert chosen.recall_at_1 == measured.text_to_image.recall_at[1]
    rounded = round_tower(arm)
    assert not torch.equal(weights(rounded.clip.model), weights(arm.clip.model))
    save_arm(rounded, tmp_path)
    loaded = load_arm("contrastive", clip, tmp_path)
    assert torch.equal(weights(loaded.clip.model), weights(rounded.clip.model))
    assert loaded.trained_text


def test_saved_arms_are_loaded_beside_the_untouched_one(arm, clip, tmp_path, capsys) -> None:
    for name in ("contrastive", "dclip"):
        save_arm(replace(arm, name=name), tmp_path)
    loaded = load_arms(clip, tmp_path)
    assert list(loaded) == ["clip", "contrastive", "dclip"] and loaded["clip"].clip is clip
    assert f"trained earlier: contrastive (α = {arm.alpha:g}), dclip" in capsys.readouterr().out
    assert all(loaded[name].alpha == arm.alpha for name in ("contrastive", "dclip"))


def test_a_folder_without_arms_is_named(clip, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_arms(clip, tmp_path)


def test_a_saved_teacher_computes_the_same(features, tmp_path) -> None:
    teacher, history = MetaTeacher(32, 4), [{"epoch": 1, "loss": 0.25}]
    save_teacher(teacher, history, PROFILE, tmp_path)
    loaded, its_history = load_teacher(32, PROFILE, tmp_path)
    assert its_history == history and not loaded.training
    assert torch.equal(weights(loaded), weights(teacher))
    assert loaded.regions[0].attention.num_heads == 4
    record = json.loads((tmp_path / "teacher.json").read_text())
    assert record["settings"]["heads"] == 4


@pytest.mark.parametrize(
    "change",
    [
        {"heads": 2},
        {"layers": 2},
        {"caption_free": True},
        {"pooling_temperature": 1.0},
        {"masked": False},
    ],
    ids=str,
)
def test_a_saved_teacher_of_other_settings_is_refused(change, tmp_path) -> None:
    """Some fit by shape, and would compute something else."""
    save_teacher(MetaTeacher(32, 4), [], PROFILE, tmp_path)
    other = replace(PROFILE, teacher=replace(PROFILE.teacher, **change))
    with pytest.raises(ValueError, match=f"{next(iter(change))}=.*{tmp_path}"):
        load_teacher(32, other, tmp_path)
    retrained = replace(PROFILE, teacher=replace(PROFILE.teacher, learning_rate=1.0))
    assert load_teacher(32, retrained, tmp_path)


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize(
    ("file", "harm", "kind"),
    [
        ("safetensors", lambda path: path.unlink(), FileNotFoundError),
        ("safetensors", cut, ValueError),
        ("safetensors", lambda path: arms.save_tensors({"x": torch.ones(1)}, path), ValueError),
        ("json", lambda path: path.unlink(), FileNotFoundError),
        ("json", cut, ValueError),
        ("json", lambda path: path.write_text("[]"), ValueError),
        ("json", lambda path: path.write_text("{}"), ValueError),
        ("json", lambda path: path.write_text("[" * 100_000), ValueError),
    ],
)
@pytest.mark.parametrize("what", ["dclip", "teacher"])
def test_what_is_not_whole_on_disk_is_named(what, file, harm, kind, arm, clip, tmp_path) -> None:
    save_arm(arm, tmp_path)
    save_teacher(MetaTeacher(32, 4), [], PROFILE, tmp_path)
    harm(tmp_path / f"{what}.{file}")
    with pytest.raises(kind, match=rf"Expected .*{what}\.{file}"):
        load_arm("dclip", clip, tmp_path) if what == "dclip" else load_teacher(
            32, PROFILE, tmp_path
        )


CANDIDATE = {"alpha": 0.5, "recall_at_1": 0.2, "retention": 1.0}


@pytest.mark.parametrize(
    ("what", "change", "says"),
    [
        ("dclip", {"candidates": [CANDIDATE | {"luck": 1.0}]}, "alpha, recall_at_1, .*'luck'"),
        ("dclip", {"candidates": [{"alpha": 0.5, "retention": 1.0}]}, "'recall_at_1'"),
        ("dclip", {"candidates": [CANDIDATE | {"alpha": "0.5"}]}, "alpha is no number"),
        ("dclip", {"candidates": [0.5]}, "alpha, recall_at_1, retention in .* is a float"),
        ("dclip", {"candidates": {"0.5": CANDIDATE}}, "candidates is a dict"),
        ("dclip", {"candidates": None}, "candidates is a NoneType"),
        ("dclip", {"alpha": "0.5"}, "alpha is a str"),
        ("dclip", {"history": "long"}, "history is a str"),
        ("teacher", {"settings": [1]}, "settings is a list"),
        ("teacher", {"settings": {"heads": 4, "luck": 1}}, "heads, layers, .*'luck'"),
        ("teacher", {"settings": {"heads": "4"}}, "heads is no number"),
        ("teacher", {"history": None}, "history is a NoneType"),
    ],
    ids=str,
)
def test_a_record_of_another_form_names_the_file_and_the_field(
    what, change, says, arm, clip, tmp_path
) -> None:
    save_arm(arm, tmp_path)
    save_teacher(MetaTeacher(32, 4), [], PROFILE, tmp_path)
    path = tmp_path / f"{what}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=says) as caught:
        load_arm(what, clip, tmp_path) if what == "dclip" else load_teacher(32, PROFILE, tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_arm_without_a_history_is_one(arm, clip, tmp_path) -> None:
    save_arm(replace(arm, alpha=None, history=None), tmp_path)
    loaded = load_arm("dclip", clip, tmp_path)
    assert loaded.alpha is None and loaded.history is None
