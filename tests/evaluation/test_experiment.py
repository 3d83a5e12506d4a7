"""The notebooks' shared steps, on pocket splits of a few pictures and a tiny CLIP."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_denoiser import make_denoiser
from test_inspection import Looks, Reads
from test_leaks import dataset as pictures_below
from test_leaks import scene
from test_profile_data import write_classes
from test_splits import write_own

from dclip_kit.config import (
    CONTROL,
    PROFILES,
    RECIPES,
    Profile,
    SelectionRule,
    apply_recipe,
    change_settings,
    control_of,
    trains_teacher,
)
from dclip_kit.data import open_picture
from dclip_kit.data.pocket import world as pocket
from dclip_kit.data.pocket.compositions import KINDS, load_compositions
from dclip_kit.evaluation import experiment
from dclip_kit.evaluation.evaluate import evaluate_retrieval
from dclip_kit.evaluation.experiment import (
    Arm,
    EncodedPictures,
    EvaluationSets,
    encode_pictures,
    find_saved,
    load_arms,
    load_teacher,
    prepare_evaluation,
    prepare_lessons,
    prepare_rehearsal,
    prepare_training,
    require_trainable,
    score_teachers,
    teacher_settings,
    train_and_save_arms,
    train_and_save_teacher,
)
from dclip_kit.evaluation.inspection import attend, read_caption
from dclip_kit.evaluation.profile_data import load_data, load_uncaptioned
from dclip_kit.evaluation.runs import describe_run, keep_seen, leave_out_trained, load_seen
from dclip_kit.features.store import FrozenFeatures
from dclip_kit.metrics import class_ranks, composition_scores
from dclip_kit.models import encode
from dclip_kit.models.encode import encode_images, encode_texts, read_pixels
from dclip_kit.models.regions import Regions
from dclip_kit.models.teacher import MetaTeacher, RegionTeacher, build_teacher
from dclip_kit.models.weights import clone_clip, same_text_tower
from dclip_kit.training import embed_pictures, embed_with_teacher

FEW = {
    "uncaptioned": "",
    "teacher": {"epochs": 2, "heads": 2},
    "region_teacher": {"epochs": 2, "width": 24, "heads": 3},
    "student": {"epochs": 2, "learning_rate": 1e-3},
    "selection": SelectionRule((0.5, 1.0), 0.0),
}


def few(recipe: str, **more) -> Profile:
    """The pocket's profile of a recipe, to train for two epochs."""
    return replace(change_settings(apply_recipe(PROFILES["pocket"], recipe), FEW), **more)


PROFILE = few("region_taught")


@pytest.fixture
def sets(data, clip) -> EvaluationSets:
    """With zero-shot labels that the tiny CLIP names rightly, so that there is much to forget."""
    made = prepare_evaluation(clip, data)
    guessed = encode_images(clip, made.zero_shot_val.pictures) @ made.zero_shot.class_features.T
    return replace(made, zero_shot_val=replace(made.zero_shot_val, labels=guessed.argmax(1)))


@pytest.fixture
def finding(detector, monkeypatch):
    """Whoever asks for a detector gets the one that finds boxes by a picture's width."""
    monkeypatch.setattr(experiment, "load_detector", lambda *_, **__: detector)


@pytest.fixture
def encoded(data, clip, finding, tmp_path) -> EncodedPictures:
    """The training data."""
    return encode_pictures(PROFILE, clip, data.train, tmp_path / "features")


@pytest.fixture
def uncaptioned(data, clip, finding, tmp_path) -> EncodedPictures:
    """Val's pictures, as if they had no captions."""
    bare = replace(data.val, captions=((),) * len(data.val), split="uncaptioned")
    return encode_pictures(PROFILE, clip, bare, tmp_path / "features")


# Data


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
    clip, data, encoded, sets, tmp_path, monkeypatch
) -> None:
    assert sets.val.pictures == data.val.paths  # nobody has looked at them
    assert torch.equal(encoded.pictures, read_pixels(clip, data.train.paths))
    made, features = prepare_training(PROFILE, clip, encoded, sets), encoded.features
    assert made.captioned is encoded
    assert torch.equal(made.val.pictures, read_pixels(clip, data.val.paths))
    assert torch.equal(made.zero_shot_val.pictures, read_pixels(clip, data.zero_shot_val.paths))
    crops = made.rehearsal.pictures  # rehearsed as the frozen CLIP saw them
    assert crops.shape == (len(features.region), 3, 32, 32)
    torch.testing.assert_close(encode_images(clip, crops), features.region)
    monkeypatch.setattr(experiment, "KEPT_BYTES", 3 * 32 * 32 * len(data.val))
    again = encode_pictures(PROFILE, clip, data.train, tmp_path / "features")
    assert again.pictures == data.train.paths and again.dataset is data.train
    less = prepare_training(PROFILE, clip, again, sets)
    assert torch.equal(less.val.pictures, made.val.pictures)
    assert less.captioned.pictures == data.train.paths
    assert less.zero_shot_val.pictures == data.zero_shot_val.paths
    assert torch.equal(read_pixels(clip, less.rehearsal.pictures), crops)


@pytest.mark.parametrize("recipe", RECIPES)
def test_crops_are_read_where_they_are_rehearsed(recipe, clip, encoded, sets) -> None:
    found = prepare_training(few(recipe), clip, encoded, sets)
    none = ("contrastive", "sds", "dclip", "official_code")
    assert (found.rehearsal is None) == (recipe in none)


def test_the_published_codes_control_rehearses_what_clip_makes_of_crops(
    clip, data, finding, encoded, tmp_path
) -> None:
    """Its features of regions are others: of crops that are only resized."""
    profile = few("official_code")
    captioned = encode_pictures(profile, clip, data.train, tmp_path / "features")
    usual = prepare_rehearsal(PROFILE, clip, encoded)
    found = prepare_rehearsal(control_of(profile), clip, captioned)
    assert not torch.allclose(captioned.features.region, encoded.features.region, atol=1e-2)
    assert torch.equal(found.pictures, usual.pictures)
    torch.testing.assert_close(found.features, usual.features)


# Weights, trained now or loaded


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        ("region_taught", "region_teacher"),
        ("whole_picture_taught", "region_teacher"),
        ("dclip", "teacher"),
        ("official_code", "teacher"),
    ],
)
def test_a_saved_teacher_is_the_trained_one(recipe, kind, clip, features, tmp_path, capsys) -> None:
    profile = few(recipe)
    settings = teacher_settings(profile)
    assert settings is getattr(profile, kind)
    trained = train_and_save_teacher(profile, features, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{kind}.json", f"{kind}.safetensors"}
    assert capsys.readouterr().out.strip() == "Trained the teacher now: 2 epochs."
    loaded = load_teacher(clip.embed_dim, settings, tmp_path)
    assert capsys.readouterr().out.strip() == "Loaded the saved teacher: 2 epochs."
    one, other = trained.teacher.state_dict(), loaded.teacher.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert loaded.history == trained.history and not loaded.teacher.training


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_teacher_that_does_not_fit_clip_is_refused_where_one_is_trained(recipe, clip) -> None:
    odd = {"teacher": {"heads": 5}, "region_teacher": {"width": 25}}
    profile = change_settings(few(recipe), odd)
    trained = recipe in ("region_taught", "whole_picture_taught", "dclip", "official_code")
    assert trains_teacher(profile) == trained
    if recipe == "sds":  # whose denoiser is the pocket's, and this is another CLIP
        with pytest.raises(ValueError, match="Expected captions of width"):
            require_trainable(profile, clip)
        return
    if not trained:
        require_trainable(profile, clip)
        return
    with pytest.raises(ValueError, match=r"heads that divide the width (32, got 5|25, got 3)"):
        require_trainable(profile, clip)


def test_lessons_are_what_a_teacher_makes_of_pictures(clip, encoded, uncaptioned) -> None:
    """A caption's is its picture's, unless the teacher reads captions."""
    owner, others = encoded.features.image_of_text, uncaptioned.features
    region = RegionTeacher(32, 24, 3)
    profile = few("whole_picture_taught")
    lessons, more = prepare_lessons(profile, region, encoded, uncaptioned)
    own = embed_pictures(region, encoded.features, profile.region_teacher)
    assert torch.equal(lessons, own[owner])
    assert more.pictures is uncaptioned.pictures
    expected = embed_pictures(region, others, profile.region_teacher)
    assert torch.equal(more.features, expected)

    tuned = clone_clip(clip)
    tuned.model.visual.proj.data += 0.1
    lessons, more = prepare_lessons(few("self_taught"), tuned, encoded, uncaptioned)
    assert torch.equal(lessons, encode_images(tuned, encoded.pictures)[owner])
    expected = encode_images(tuned, uncaptioned.pictures)
    assert torch.equal(more.features, expected)
    assert prepare_lessons(few("self_taught"), tuned, encoded, None)[1] is None

    reading = MetaTeacher(32, 2)
    lessons, more = prepare_lessons(few("dclip"), reading, encoded, uncaptioned)
    expected = embed_with_teacher(reading, encoded.features, PROFILE.regions)
    assert torch.equal(lessons, expected)
    assert more is None  # there is no caption to read

    assert prepare_lessons(few(CONTROL), region, encoded, uncaptioned) == (None, None)


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_leads_from_pictures_to_an_arm_beside_its_control(
    recipe, more, clip, data, encoded, uncaptioned, sets, tmp_path, capsys, monkeypatch
) -> None:
    profile, teacher, asked = few(recipe), None, []
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    if trains_teacher(profile):
        captioned = encode_pictures(profile, clip, data.train, tmp_path / "features")
        teacher = train_and_save_teacher(profile, captioned.features, tmp_path).teacher
    else:
        captioned = encoded
    others = uncaptioned if more else None
    capsys.readouterr()

    def watched(settings, own, *more):
        if settings.student.distillation_weight:
            asked.append(own)
        return prepare_lessons(settings, own, *more)

    monkeypatch.setattr(experiment, "prepare_lessons", watched)
    monkeypatch.setattr(experiment, "load_denoiser", lambda name, given: make_denoiser(given))
    trained = train_and_save_arms(profile, clip, teacher, captioned, others, sets, tmp_path)
    assert capsys.readouterr().out.strip() == "Trained the arms now."
    names = list(dict.fromkeys([CONTROL, recipe]))
    assert list(trained) == ["clip", *names]
    assert trained["clip"].clip is clip and trained["clip"].alpha is None
    assert all(torch.equal(value, before[key]) for key, value in clip.model.state_dict().items())

    # Who taught: nobody, the teacher, or the control.
    own = trained[CONTROL].clip if recipe == "self_taught" else teacher
    assert len(asked) == (own is not None) and all(each is own for each in asked)

    loaded = load_arms(clip, tmp_path, names)
    assert "Loaded the saved arms" in capsys.readouterr().out
    for name in names:
        one, other = trained[name], loaded[name]
        for field in ("alpha", "candidates", "history", "trained_text"):
            assert getattr(one, field) == getattr(other, field)
        embedded = [encode_images(arm.clip, sets.test.pictures) for arm in (one, other)]
        assert torch.equal(*embedded)
    both_towers = recipe == "official_code"
    for name in (CONTROL, recipe):
        assert (
            trained[name].trained_text == both_towers != same_text_tower(trained[name].clip, clip)
        )

    # Each by the losses of its own settings.
    for name, settings in ((CONTROL, control_of(profile).student), (recipe, profile.student)):
        first = trained[name].history[0]
        terms = ("distillation", "contrastive", "rehearsal", "sds")
        weights = {term: getattr(settings, f"{term}_weight") for term in terms}
        loss = sum(weight * first[term] for term, weight in weights.items() if weight)
        assert first["loss"] == pytest.approx(loss, rel=1e-5)
        assert {term for term in terms if term in first} == {t for t in terms if weights[t]}


def test_uncaptioned_pictures_change_the_student_and_not_its_control(
    clip, encoded, uncaptioned, sets, tmp_path
) -> None:
    teacher, found = RegionTeacher(32, 24, 3), {}
    for name, others in (("without", None), ("with", uncaptioned)):
        given = PROFILE, clip, teacher, encoded, others, sets, tmp_path / name
        found[name] = train_and_save_arms(*given)
    for name, same in ((CONTROL, True), ("region_taught", False)):
        losses = [[row["loss"] for row in arms[name].history] for arms in found.values()]
        assert (losses[0] == losses[1]) is same


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


def test_training_continues_from_its_checkpoints(clip, encoded, sets, tmp_path) -> None:
    states = tmp_path / "checkpoints"
    begun = PROFILE, encoded.features, tmp_path, states / "teacher.safetensors"
    teacher = train_and_save_teacher(*begun)
    given = PROFILE, clip, teacher.teacher, encoded, None, sets, tmp_path, states
    arms = train_and_save_arms(*given)
    names = {path.stem for path in states.glob("*.safetensors")}
    assert names == {"teacher", CONTROL, "region_taught"}
    # Seconds and all: nothing was trained.
    assert train_and_save_teacher(*begun).history == teacher.history
    for name, arm in train_and_save_arms(*given).items():
        assert arm.history == arms[name].history


def test_the_pockets_arms_come_with_the_kit_and_others_lie_where_they_were_trained(
    tmp_path, monkeypatch
) -> None:
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert find_saved(PROFILE) == experiment.asset_path("pocket_arms")
    other = replace(PROFILE, name="base")
    says = r"of the profile base in .*arms, found none; run: .* distill --profile base --out "
    with pytest.raises(FileNotFoundError, match=says):
        find_saved(other)
    for place in (tmp_path / "runs/base/arms", Path("mine")):
        place.mkdir(parents=True)
        (place / "region_taught.json").touch()
    assert find_saved(other).resolve() == tmp_path / "runs/base/arms"
    assert find_saved(PROFILE, "mine") == find_saved(other, "mine") == Path("mine")


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
        encode, "open_picture", lambda path, side: opened.append(path) or open_picture(path)
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


# Compositions


@pytest.fixture
def drawn(tmp_path, monkeypatch, detector) -> None:
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(experiment, "load_detector", lambda *_, **__: detector)


@pytest.mark.parametrize("weighted", [True, False])
def test_teachers_are_asked_as_by_a_slow_loop(weighted, clip, detector, drawn) -> None:
    profile = change_settings(PROFILE, {"regions": {"weighted": weighted, "whole_image": True}})
    region_teacher, teacher = (
        build_teacher(32, settings) for settings in (profile.region_teacher, profile.teacher)
    )
    teachers = {"region_teacher": region_teacher.train(), "teacher": teacher.train()}
    found = score_teachers(profile, clip, teachers, 3)
    assert [tuple(kinds) for kinds in found.values()] == [KINDS, KINDS]
    for kind in KINDS:
        items = load_compositions(kind, 3)
        for n, i, j in itertools.product(range(3), (0, 1), (0, 1)):
            picture, caption = open_picture(items.paths[2 * n + i]), items.texts[2 * n + j]
            (seen,) = detector.detect([picture]).regions
            seen = Regions(
                torch.cat([seen.xyxy, torch.tensor([[0.0, 0, 256, 256]])]),
                torch.cat([seen.confidence, torch.ones(1)]),
                ("thing", "whole image"),
                (256, 256),
            )
            beside = read_caption(clip, picture, seen, caption)
            text = encode_texts(clip, [caption])[0]
            own = attend(teacher, beside, None if weighted else torch.full((2,), 0.5)).embedding
            assert found["teacher"][kind][n, i, j] == pytest.approx(float(own @ text), abs=1e-3)
            boxes = torch.cat([seen.xyxy / 256, seen.confidence[:, None]], dim=1)
            with torch.no_grad():
                own, _ = region_teacher(
                    encode_images(clip, [picture]),
                    beside.region_features[None],
                    torch.ones(1, 2, dtype=torch.bool),
                    boxes[None],
                )
            cosine = float(own @ text)
            assert found["region_teacher"][kind][n, i, j] == pytest.approx(cosine, abs=1e-5)


@pytest.fixture
def by_hand() -> FrozenFeatures:
    """Two items; each picture's region and its caption's token are that caption's vector."""
    own = torch.eye(4, 32)
    return FrozenFeatures(
        image=own,
        size=torch.full((4, 2), 9),
        region=own,
        region_count=torch.ones(4, dtype=torch.long),
        xyxy=torch.tensor([0.0, 0.0, 5.0, 5.0]).expand(4, 4),
        area=torch.full((4,), 0.5),
        confidence=torch.ones(4),
        label=torch.zeros(4, dtype=torch.long),
        text=own,
        token=own.half(),
        token_count=torch.ones(4, dtype=torch.long),
        image_of_text=torch.arange(4),
    )


def test_a_teacher_that_copies_the_caption_tells_nothing_apart(
    clip, by_hand, drawn, monkeypatch
) -> None:
    monkeypatch.setattr(experiment, "extract_features", lambda *_: by_hand)
    profile = change_settings(PROFILE, {"regions": {"weighted": False}})
    found = score_teachers(profile, clip, {"reads": Reads(32), "looks": Looks(32)}, 2)
    for kind in KINDS:
        assert torch.equal(found["reads"][kind], torch.ones(2, 2, 2))  # near whatever it is told
        assert torch.equal(found["looks"][kind], torch.eye(2).expand(2, 2, 2))
        assert not any(right.any() for right in composition_scores(found["reads"][kind]).values())
        assert all(right.all() for right in composition_scores(found["looks"][kind]).values())


# What a run sees


def test_further_scenes_of_the_pocket_are_known_by_their_numbers(
    data, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path))
    profile = replace(PROFILE, uncaptioned="pocket:3")
    described = describe_run(profile, data, load_uncaptioned(profile, data))
    keep_seen(described, tmp_path)
    for seen in (load_seen(tmp_path), described):
        assert {f"pocket uncaptioned/{number}" for number in range(3)} <= seen.trained.names.keys()
        assert "pocket uncaptioned/3" not in seen.trained.names
    assert "pocket uncaptioned/0" not in describe_run(profile, data).trained.names


@pytest.mark.parametrize("of", ["pocket", "own"])
def test_other_uncaptioned_pictures_are_known_by_what_they_show(
    of, data, tmp_path, monkeypatch
) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    for seed in (30, 31):
        scene(seed).save(folder / f"{seed}.jpg")
    profile = replace(PROFILE, uncaptioned=str(folder))
    if of == "own":
        own = write_own(tmp_path / "own", range(20), split=True)
        classes = write_classes(tmp_path / "classes")
        profile = replace(profile, data=str(own), zero_shot=str(classes))
        data = load_data(profile)
    plain = describe_run(profile, data)
    seen = describe_run(profile, data, load_uncaptioned(profile, data))
    assert plain.trained.names.keys() < seen.trained.names.keys()
    assert seen.chosen.names == plain.chosen.names and seen.labelled == plain.labelled
    scene(31).save(tmp_path / "again.png")
    scene(32).save(tmp_path / "new.png")
    scene(33).save(tmp_path / "newer.png")
    measured = pictures_below(tmp_path, ["again.png", "new.png", "newer.png"])
    left = leave_out_trained(measured, {"run": seen}).dataset
    assert [path.name for path in left.paths] == ["new.png", "newer.png"]
    assert len(leave_out_trained(measured, {"run": plain}).dataset) == 3


def test_scenes_of_the_pocket_beside_data_of_ones_own_are_known_too(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path / "cache"))
    own = write_own(tmp_path / "own", range(20), split=True)
    classes = write_classes(tmp_path / "classes")
    more = {"data": str(own), "zero_shot": str(classes), "uncaptioned": "pocket:3"}
    profile = replace(PROFILE, **more)
    data = load_data(profile)
    seen = describe_run(profile, data, load_uncaptioned(profile, data))
    assert sum(name.startswith("pocket uncaptioned/") for name in seen.trained.names) == 3
    further = pocket.load_further("uncaptioned", 5)
    left = leave_out_trained(further, {"run": seen}).dataset
    assert left.paths == further.paths[3:]
