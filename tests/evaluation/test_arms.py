"""The arms: one rule for all, nothing of test seen, and back from disk as they were rounded."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from fine_tuning import fine_tune, join
from test_denoiser import make_denoiser
from test_training import texts_of
from torch.nn import functional as F

from dclip_kit.config import (
    CONTROL,
    Profile,
    RegionTeacherSettings,
    SelectionRule,
    StudentSettings,
    TeacherSettings,
)
from dclip_kit.evaluation import experiment
from dclip_kit.evaluation.evaluate import (
    RetrievalSet,
    ZeroShotSet,
    encode_classes,
    evaluate_retrieval,
    evaluate_zero_shot,
)
from dclip_kit.evaluation.experiment import (
    Arm,
    Candidate,
    EvaluationSets,
    TrainingSet,
    choose_candidate,
    choose_denoiser,
    load_arm,
    load_arms,
    load_teacher,
    measure_interpolations,
    save_arm,
    save_teacher,
    train_arm,
)
from dclip_kit.metrics import retrieval_metrics
from dclip_kit.models.encode import encode_images, encode_texts
from dclip_kit.models.teacher import MetaTeacher, RegionTeacher
from dclip_kit.models.weights import clone_clip, interpolate, same_text_tower
from dclip_kit.training import PictureTargets, TeacherRun, choose_terms

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
    return TrainingSet(shown, None, sets.val, sets.zero_shot_val)


def train_by_terms(name, clip, shown, profile, given=None, uncaptioned=None, **more) -> Arm:
    """An arm by the terms that its profile weighs."""
    terms = choose_terms(
        profile.student,
        shown.captioned,
        given,
        uncaptioned=uncaptioned,
        denoiser=choose_denoiser(profile, clip),
        seed=profile.seed,
    )
    return train_arm(name, clip, shown, terms, profile, **more)


def choose(before, after, sets, rule=PROFILE.selection):
    """The chosen interpolation in the half precision that is kept, its alpha, all candidates."""
    found = measure_interpolations(before, after, sets.val, sets.zero_shot_val, rule.alphas)
    alpha = choose_candidate(found, rule.least_retention).alpha
    student = interpolate(before, after, alpha)
    student.model.visual.half().float()
    return student, alpha, found


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

    monkeypatch.setattr(experiment, "evaluate_zero_shot", watched)
    profile = replace(UNTAUGHT, student=replace(UNTAUGHT.student, mixed_precision=precision))
    arm = train_by_terms(CONTROL, clip, training_set(pixels, features, sets), profile)
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
        name,
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
    assert (arm.name, arm.alpha, arm.candidates) == (name, alpha, candidates)
    assert [candidate.alpha for candidate in arm.candidates] == [0, 0.5, 1]
    assert torch.equal(weights(arm.clip.model), weights(student.model))
    assert path.exists() and shown == [1, 2] and steps == [*range(len(steps))]
    last, sample = arm.history[-1], sets.zero_shot_val.every(20)
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

    monkeypatch.setattr(experiment, "evaluate_zero_shot", named)
    arm = train_by_terms(CONTROL, clip, training_set(pixels, features, sets), UNTAUGHT)
    assert [row["val_zero_shot"] for row in arm.history] == [*accuracies[1:]]
    rows = [row["val_retention"] for row in arm.history if "val_retention" in row]
    assert rows == pytest.approx(kept)


def test_an_arm_that_is_to_be_taught_is_no_control_without_its_lessons(
    clip, pixels, features, sets
) -> None:
    with pytest.raises(ValueError, match=r"Expected teacher embeddings .*, got None"):
        train_by_terms("dclip", clip, training_set(pixels, features, sets), PROFILE)


def test_an_arm_of_sds_learns_from_the_profiles_denoiser(
    clip, pixels, features, sets, monkeypatch
) -> None:
    asked = []

    def load(name, given):
        asked.append(name)
        return make_denoiser(given)

    monkeypatch.setattr(experiment, "load_denoiser", load)
    shown = training_set(pixels, features, sets)
    student = replace(UNTAUGHT.student, sds_weight=0.5, train="norms")
    profile = replace(UNTAUGHT, student=student, denoiser="mine")
    arm = train_by_terms("sds", clip, shown, profile)
    assert asked == ["mine"] and all(row["sds"] > 0 for row in arm.history)
    train_by_terms(CONTROL, clip, shown, UNTAUGHT)
    assert asked == ["mine"]


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
        evaluate = getattr(experiment, name)

        def watched(bundle, *given, evaluate=evaluate, **more):
            seen.append(bundle.precision)
            return evaluate(bundle, *given, **more)

        monkeypatch.setattr(experiment, name, watched)
    after = clone_clip(clip)
    with torch.no_grad():
        after.model.visual.proj += 0.3 * torch.randn_like(after.model.visual.proj)
    found = measure_interpolations(clip, after, sets.val, sets.zero_shot_val, (1.0, 0.5), precision)
    assert seen == [precision] * 6 and clip.precision == "no"
    assert [each.alpha for each in found] == [0.0, 0.5, 1.0] and found[0].retention == 1
    base = evaluate_zero_shot(replace(clip, precision=precision), sets.zero_shot_val).top1
    for each in found:
        mixed = interpolate(replace(clip, precision=precision), after, each.alpha)
        recall = evaluate_retrieval(mixed, sets.val).text_to_image.recall_at[1]
        assert each.recall_at_1 == recall
        assert each.retention == evaluate_zero_shot(mixed, sets.zero_shot_val).top1 / base


def test_a_clip_that_knows_no_class_has_nothing_to_retain(clip, sets) -> None:
    known = sets.zero_shot_val
    farthest = (encode_images(clip, known.pictures) @ known.class_features.T).argmin(1)
    wrong = replace(known, labels=farthest)
    with pytest.raises(ValueError, match="knows some of the classes"):
        measure_interpolations(clip, clip, sets.val, wrong, (1.0,))


# On disk


@pytest.fixture
def arm(clip, sets) -> Arm:
    tuned = clone_clip(clip)
    with torch.no_grad():
        for parameter in tuned.model.visual.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    _, _, candidates = choose(clip, tuned, sets, SelectionRule((0.7,), 0.0))
    history = [{"epoch": 1, "loss": 0.1 + 0.2}]
    return Arm("dclip", tuned, 0.7, candidates, history)


def test_a_saved_arm_is_read_back_in_half_precision(arm, clip, tmp_path) -> None:
    save_arm(arm, tmp_path)
    loaded = load_arm("dclip", clip, tmp_path)
    rounded = clone_clip(arm.clip).model
    rounded.visual.half().float()
    assert torch.equal(weights(loaded.clip.model), weights(rounded))
    assert {p.dtype for p in loaded.clip.model.parameters()} == {torch.float32}
    for name in ("name", "alpha", "candidates", "history"):
        assert getattr(loaded, name) == getattr(arm, name)


@pytest.mark.parametrize("name", [CONTROL, "dclip"])
def test_a_trained_arm_measures_the_same_once_it_is_loaded(
    name, clip, pixels, features, sets, targets, tmp_path
) -> None:
    profile, given = (UNTAUGHT, None) if name == CONTROL else (PROFILE, targets)
    arm = train_by_terms(name, clip, training_set(pixels, features, sets), profile, given)
    save_arm(arm, tmp_path)
    loaded = load_arm(name, clip, tmp_path)
    assert torch.equal(weights(loaded.clip.model), weights(arm.clip.model))


def test_an_arm_whose_text_tower_trains_keeps_it(clip, pixels, features, tmp_path) -> None:
    texts = [f"{count} boats at sea" for count in range(len(features.text))]
    names, domain = ("a ball", "a dog", "the sea"), torch.tensor([True] * 3)
    val = RetrievalSet(pixels, encode_texts(clip, texts), features.image_of_text, texts, clip)
    classes = encode_classes(clip, names)
    nearest = (encode_images(clip, pixels) @ classes.T).argmax(1)
    named = ZeroShotSet(pixels, nearest, classes, domain, names, encoder=clip)
    student = replace(UNTAUGHT.student, train_text=True, epochs=20, learning_rate=5e-3)
    profile = replace(UNTAUGHT, student=student)
    shown = TrainingSet(join(pixels, features, texts), None, val, named)
    arm = train_by_terms("tuned", clip, shown, profile)
    assert arm.alpha and arm.trained_text and not same_text_tower(arm.clip, clip)
    own = encode_texts(arm.clip, texts)
    assert not torch.allclose(own, val.text_features, atol=1e-4)
    measured = retrieval_metrics(encode_images(arm.clip, pixels), own, features.image_of_text)
    chosen = next(c for c in arm.candidates if c.alpha == arm.alpha)
    assert chosen.recall_at_1 == measured.text_to_image.recall_at[1]
    save_arm(arm, tmp_path)
    loaded = load_arm("tuned", clip, tmp_path)
    assert torch.equal(weights(loaded.clip.model), weights(arm.clip.model))
    assert loaded.trained_text


@pytest.mark.parametrize("names", [(CONTROL, "region_taught"), ("dclip",)])
def test_saved_arms_are_loaded_beside_the_untouched_one(names, arm, clip, tmp_path, capsys) -> None:
    for name in names:
        save_arm(replace(arm, name=name), tmp_path)
    loaded = load_arms(clip, tmp_path, *[names] * (len(names) == 1))  # two are the default
    assert list(loaded) == ["clip", *names] and loaded["clip"].clip is clip
    said = ", ".join(f"{name} (α = {arm.alpha:g})" for name in names)
    assert f"trained earlier: {said}" in capsys.readouterr().out
    assert all(loaded[name].alpha == arm.alpha for name in names)


def test_a_folder_without_arms_is_named(clip, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_arms(clip, tmp_path)


TEACHERS = {
    "teacher": (PROFILE.teacher, lambda: MetaTeacher(32, 4)),
    "region_teacher": (PROFILE.region_teacher, lambda: RegionTeacher(32, 24, 3)),
}


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_saved_teacher_computes_the_same(kind, tmp_path) -> None:
    settings, build = TEACHERS[kind]
    teacher, history = build(), [{"epoch": 1, "loss": 0.25}]
    save_teacher(TeacherRun(teacher, history), settings, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{kind}.safetensors", f"{kind}.json"}
    run = load_teacher(32, settings, tmp_path)
    loaded = run.teacher
    assert type(loaded) is type(teacher) and not loaded.training
    assert run.history == history
    assert torch.equal(weights(loaded), weights(teacher))
    first = loaded.regions[0] if kind == "teacher" else loaded.layers[0]
    assert first.attention.num_heads == settings.heads
    record = json.loads((tmp_path / f"{kind}.json").read_text())
    assert record["settings"] == asdict(settings)


def test_both_kinds_of_teachers_lie_side_by_side(tmp_path) -> None:
    for settings, build in TEACHERS.values():
        save_teacher(TeacherRun(build(), []), settings, tmp_path)
    for settings, build in TEACHERS.values():
        assert type(load_teacher(32, settings, tmp_path).teacher) is type(build())


def test_the_other_kind_of_teacher_is_not_taken(tmp_path) -> None:
    settings, build = TEACHERS["teacher"]
    save_teacher(TeacherRun(build(), []), settings, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"region_teacher\.json"):
        load_teacher(32, PROFILE.region_teacher, tmp_path)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("teacher", {"heads": 2}),
        ("teacher", {"layers": 2}),
        ("teacher", {"pooling_temperature": 1.0}),
        ("teacher", {"masked": False}),
        ("region_teacher", {"width": 48}),
        ("region_teacher", {"heads": 2}),
        ("region_teacher", {"layers": 1}),
        ("region_teacher", {"regions": "none"}),
        ("region_teacher", {"boxes": False}),
        ("region_teacher", {"whole_picture": False}),
    ],
    ids=str,
)
def test_a_saved_teacher_of_other_settings_is_refused(kind, change, tmp_path) -> None:
    """Some fit by shape, and would compute something else."""
    settings, build = TEACHERS[kind]
    save_teacher(TeacherRun(build(), []), settings, tmp_path)
    with pytest.raises(ValueError, match=f"{next(iter(change))}=.*{tmp_path}"):
        load_teacher(32, replace(settings, **change), tmp_path)
    assert load_teacher(32, replace(settings, learning_rate=1.0), tmp_path)


def load_what(what, clip, folder) -> None:
    if what == "teacher":
        load_teacher(32, PROFILE.teacher, folder)
    else:
        load_arm(what, clip, folder)


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize(
    ("file", "harm", "kind"),
    [
        ("safetensors", lambda path: path.unlink(), FileNotFoundError),
        ("safetensors", cut, ValueError),
        (
            "safetensors",
            lambda path: experiment.save_tensors({"x": torch.ones(1)}, path),
            ValueError,
        ),
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
    save_teacher(TeacherRun(MetaTeacher(32, 4), []), PROFILE.teacher, tmp_path)
    harm(tmp_path / f"{what}.{file}")
    with pytest.raises(kind, match=rf"Expected .*{what}\.{file}"):
        load_what(what, clip, tmp_path)


CANDIDATE = {"alpha": 0.5, "recall_at_1": 0.2, "retention": 1.0}


@pytest.mark.parametrize(
    ("what", "change", "says"),
    [
        ("dclip", {"candidates": [CANDIDATE | {"luck": 1.0}]}, "'luck'"),
        ("dclip", {"candidates": [{"alpha": 0.5, "retention": 1.0}]}, "'recall_at_1'"),
        ("dclip", {"candidates": [0.5]}, "float"),
        ("dclip", {"candidates": None}, "NoneType"),
        ("teacher", {"settings": [1]}, "list"),
        ("teacher", {"settings": {"heads": 4, "luck": 1}}, "'luck'"),
        ("teacher", {"settings": {"heads": 0}}, "heads"),
        ("teacher", {"history": None}, "NoneType"),
    ],
    ids=str,
)
def test_a_record_of_another_form_names_the_file_and_the_field(
    what, change, says, arm, clip, tmp_path
) -> None:
    save_arm(arm, tmp_path)
    save_teacher(TeacherRun(MetaTeacher(32, 4), []), PROFILE.teacher, tmp_path)
    path = tmp_path / f"{what}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=says) as caught:
        load_what(what, clip, tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_arm_without_a_history_is_one(arm, clip, tmp_path) -> None:
    save_arm(replace(arm, alpha=None, history=None), tmp_path)
    loaded = load_arm("dclip", clip, tmp_path)
    assert loaded.alpha is None and loaded.history is None
