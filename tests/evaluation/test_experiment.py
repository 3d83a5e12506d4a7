"""Runs, step by step and as a whole, on pictures of a few and a tiny CLIP."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

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
from dclip_kit.data.leaks import EvaluationIndex
from dclip_kit.evaluation import experiment
from dclip_kit.evaluation.arms import (
    EvaluationSets,
    load_arm,
    load_arms,
    prepare_evaluation,
    prepare_training,
    read_origin,
    save_arm,
)
from dclip_kit.evaluation.experiment import (
    SETTINGS,
    Begun,
    begin,
    load_saved_teacher,
    obtain_teacher,
    prepare_terms,
    require_same_view,
    require_settings,
    require_trainable,
    save_report,
    save_teacher_run,
    teacher_settings,
    train_arms,
)
from dclip_kit.evaluation.seen import SeenPictures, leave_out_trained, load_seen
from dclip_kit.features import extract as extraction
from dclip_kit.features.extract import encode_pictures
from dclip_kit.features.store import EncodedPictures
from dclip_kit.metrics import class_ranks
from dclip_kit.models import encode
from dclip_kit.models.encode import encode_images, encode_texts, read_pixels
from dclip_kit.models.teacher import (
    RegionTeacher,
    build_teacher,
    kind_of,
    require_teacher,
)
from dclip_kit.models.weights import same_text_tower
from dclip_kit.runtime.files import asset_path, write_record
from dclip_kit.training import TeacherRun, embed_pictures, loop
from tests.data.test_leaks import dataset as pictures_below
from tests.data.test_leaks import scene
from tests.data.test_splits import write_own
from tests.evaluation.test_profile_data import write_classes
from tests.models.test_denoiser import make_denoiser

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
def encoded(data, clip, fake_detector, tmp_path) -> EncodedPictures:
    """The training data."""
    return encode_pictures(clip, data.train, PROFILE.regions, tmp_path / "features")


@pytest.fixture
def uncaptioned(data, clip, fake_detector, tmp_path) -> EncodedPictures:
    """Val's pictures, as if they had no captions."""
    bare = replace(data.val, captions=((),) * len(data.val), split="uncaptioned")
    return encode_pictures(clip, bare, PROFILE.regions, tmp_path / "features")


# Data


def test_too_many_pictures_for_the_memory_stay_on_disk(
    clip, data, encoded, sets, tmp_path, monkeypatch
) -> None:
    assert sets.val.pictures == data.val.paths  # nobody has looked at them
    assert torch.equal(encoded.pictures, read_pixels(clip, data.train.paths))
    made = prepare_training(clip, encoded, sets, PROFILE.selection)
    assert made.captioned is encoded
    assert torch.equal(made.val.pictures, read_pixels(clip, data.val.paths))
    assert torch.equal(made.zero_shot_val.pictures, read_pixels(clip, data.zero_shot_val.paths))
    monkeypatch.setattr(encode, "KEPT_BYTES", 3 * 32 * 32 * len(data.val))
    again = encode_pictures(clip, data.train, PROFILE.regions, tmp_path / "features")
    assert again.pictures == data.train.paths and again.dataset is data.train
    less = prepare_training(clip, again, sets, PROFILE.selection)
    assert torch.equal(less.val.pictures, made.val.pictures)
    assert less.captioned.pictures == data.train.paths
    assert less.zero_shot_val.pictures == data.zero_shot_val.paths


# What students learn from


@pytest.mark.parametrize("recipe", RECIPES)
def test_terms_are_those_that_a_recipe_weighs(recipe, clip, encoded, sets, monkeypatch) -> None:
    """Crops are read where they are rehearsed, and a teacher is asked where one teaches."""
    profile, asked = few(recipe), []
    for name in ("prepare_rehearsal", "prepare_lessons"):
        prepare = getattr(experiment, name)

        def watched(*given, name=name, prepare=prepare):
            asked.append(name)
            return prepare(*given)

        monkeypatch.setattr(experiment, name, watched)
    monkeypatch.setattr(experiment, "load_denoiser", lambda name, given: make_denoiser(given))
    teacher = clip if recipe == "self_taught" else build_teacher(32, teacher_settings(profile))
    terms = prepare_terms(profile, clip, encoded, teacher)
    none = ("contrastive", "sds", "dclip", "official_code")
    untaught = (CONTROL, "contrastive", "sds")
    assert ("prepare_rehearsal" in asked) == (recipe not in none)
    assert ("prepare_lessons" in asked) == (recipe not in untaught)
    names = ("distillation", "contrastive", "rehearsal", "sds")
    weights = {name: getattr(profile.student, f"{name}_weight") for name in names}
    assert {term.name: term.weight for term in terms} == {n: w for n, w in weights.items() if w}
    assert weights["contrastive"]  # of all recipes; of the others, test_config.py says which
    # What is there already is not read again.
    asked.clear()
    kept = experiment.prepare_rehearsal(clip, encoded, profile.regions)
    again = prepare_terms(profile, clip, encoded, teacher, rehearsal=kept)
    assert asked.count("prepare_rehearsal") == 1
    for term in again:
        assert term.name != "rehearsal" or term.beside.targets is kept


def test_an_arm_of_sds_learns_from_the_profiles_denoiser(clip, encoded, monkeypatch) -> None:
    asked = []

    def load(name, given):
        asked.append((name, given))
        return make_denoiser(given)

    monkeypatch.setattr(experiment, "load_denoiser", load)
    terms = prepare_terms(few("sds", denoiser="mine"), clip, encoded)
    assert asked == [("mine", clip)] and "sds" in {term.name for term in terms}
    prepare_terms(few(CONTROL, denoiser="mine"), clip, encoded)
    assert len(asked) == 1


def test_a_recipe_that_is_to_be_taught_is_no_control_without_its_teacher(clip, encoded) -> None:
    with pytest.raises(ValueError, match=r"Expected teacher embeddings .*, got None"):
        prepare_terms(few("region_taught"), clip, encoded)


# The beginning


def test_a_run_names_nothing_that_it_trains_on(clip_folder, tmp_path, capsys) -> None:
    """The folders of classes may have the very pictures that have captions, or need none."""
    own, more = write_own(tmp_path / "own", range(20), split=True), tmp_path / "more"
    classes = write_classes(tmp_path / "classes", 12)
    more.mkdir()
    for seed in range(30, 34):
        scene(seed).save(more / f"{seed}.png")
    for path in [*own.glob("*.png"), *more.glob("*.png")]:
        shutil.copy(path, classes / "dog" / f"copy of {path.name}")
    places = {"data": own, "zero_shot": classes, "uncaptioned": more, "clip": clip_folder}
    profile = few("region_taught", **{name: str(path) for name, path in places.items()})
    begun = begin(profile, tmp_path / "run")
    bytes_of = {
        name: {path.read_bytes() for path in part.paths}
        for name, part in {
            "trained": begun.data.train,
            "uncaptioned": begun.uncaptioned,
            "chosen": begun.data.zero_shot_val,
            "measured": begun.data.zero_shot,
        }.items()
    }
    assert len(bytes_of["trained"]) == 16 and len(bytes_of["uncaptioned"]) == 4
    assert len(bytes_of["chosen"]) + len(bytes_of["measured"]) == 60 - 20
    assert not (bytes_of["trained"] | bytes_of["uncaptioned"]) & bytes_of["chosen"]
    learnt = bytes_of["trained"] | bytes_of["uncaptioned"] | bytes_of["chosen"]
    assert not learnt & bytes_of["measured"]
    assert "20 labelled pictures are trained or chosen on" in capsys.readouterr().out


# Teachers, trained now or loaded


NOTHING = EvaluationIndex({}, None, {})
SEEN = SeenPictures(NOTHING, NOTHING)


@pytest.fixture
def begun(data, clip, clip_folder, tmp_path):
    """A run of some profile that has got as far as its data."""

    def begin_run(profile: Profile, out: str = "run") -> Begun:
        profile = replace(profile, clip=str(clip_folder))
        return Begun(profile, tmp_path / out, clip, data, None, SEEN)

    return begin_run


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        ("region_taught", "region_teacher"),
        ("whole_picture_taught", "region_teacher"),
        ("dclip", "teacher"),
        ("official_code", "teacher"),
    ],
)
def test_a_saved_teacher_is_the_trained_one(recipe, kind, begun, features, capsys) -> None:
    run = begun(few(recipe))
    settings = teacher_settings(run.profile)
    assert settings is getattr(run.profile, kind)
    trained = obtain_teacher(run, features)
    folder = run.out / kind
    assert {path.name for path in run.out.iterdir()} == {kind, "checkpoints"}
    names = {"config.json", "model.safetensors", "training.json", "seen.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert capsys.readouterr().out.strip() == "Trained the teacher now: 2 epochs."
    loaded = obtain_teacher(begun(few(recipe), "other"), features, folder)
    assert capsys.readouterr().out.strip() == "Loaded the saved teacher: 2 epochs."
    assert not (run.out.parent / "other").exists()
    one, other = trained.teacher.state_dict(), loaded.teacher.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert loaded.history == trained.history and not loaded.teacher.training
    assert loaded.settings == trained.settings == settings
    assert load_seen(folder).complete and read_origin(folder).digest == run.clip.digest


def test_a_teacher_that_nobody_trained_is_chosen_on_val_and_saved_as_others_are(
    begun, encoded, capsys
) -> None:
    run = begun(few("crops_taught"))
    chosen = obtain_teacher(run, encoded.features)
    assert re.match(
        r"The teacher is the picture plus its regions' mean, weighted (0\.3|0\.6|1); chosen on val "
        r"\(R@1 text→image: mean, 0\.3: .*, mean, 0\.6: .*, mean, 1: .* %\)\.",
        capsys.readouterr().out,
    )
    assert {path.name for path in run.out.iterdir()} == {"region_teacher"}  # no checkpoint
    folder = run.out / "region_teacher"
    loaded = obtain_teacher(begun(few("crops_taught"), "other"), encoded.features, folder)
    assert loaded.chosen == chosen.chosen and loaded.history == chosen.history == []
    one, other = (
        embed_pictures(each.teacher, encoded.features, each.settings) for each in (chosen, loaded)
    )
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match="train='always'"):
        require_same_view(PROFILE, run.clip, folder)


@pytest.mark.parametrize("recipe", ["self_taught", CONTROL, "contrastive", "sds"])
def test_a_recipe_without_a_teacher_of_its_own_trains_none(recipe, begun, features) -> None:
    run = begun(few(recipe))
    assert obtain_teacher(run, features) is None and not run.out.exists()


def keep_teacher(folder, clip, profile=PROFILE) -> Path:
    settings = teacher_settings(profile)
    run = TeacherRun(build_teacher(32, settings), settings, [{"epoch": 1, "loss": 0.25}])
    save_teacher_run(run, folder, profile, clip, SEEN)
    return folder


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize(
    ("harm", "kind"),
    [
        (lambda path: path.unlink(), FileNotFoundError),
        (cut, ValueError),
        (lambda path: path.write_text("[]"), ValueError),
        (lambda path: path.write_text("{}"), ValueError),
        (lambda path: path.write_text("[" * 100_000), ValueError),
        (lambda path: path.write_text('{"history": null}'), ValueError),
    ],
)
@pytest.mark.parametrize("file", ["config.json", "training.json"])
def test_a_teacher_that_is_not_whole_on_disk_is_named(file, harm, kind, clip, tmp_path) -> None:
    folder = keep_teacher(tmp_path / "region_teacher", clip)
    harm(folder / file)
    gone = (file, kind) == ("config.json", FileNotFoundError)  # then there is no teacher at all
    named = f"the folder of a teacher at {folder}" if gone else f"{folder}/{file}"
    with pytest.raises(kind, match=rf"Expected .*{named}"):
        load_saved_teacher(folder)


def test_the_pockets_teachers_come_with_the_kit() -> None:
    for recipe in ("region_taught", "dclip"):
        profile = apply_recipe(PROFILES["pocket"], recipe)
        folder = asset_path("pocket_arms", kind_of(teacher_settings(profile)))
        run, origin = load_saved_teacher(folder), read_origin(folder)
        require_teacher(run.settings, teacher_settings(profile), str(folder))
        assert origin.profile.regions == profile.regions and run.history
        require_same_view(profile, origin.load_base(), folder)


def test_a_teacher_of_another_clip_or_of_other_regions_is_not_taken(clip, tmp_path) -> None:
    folder = keep_teacher(tmp_path / "region_teacher", clip)
    require_same_view(PROFILE, clip, folder)
    # Whatever a profile calls the CLIP: it is known by its weights.
    require_same_view(replace(PROFILE, clip="elsewhere", seed=9), clip, folder)
    wider = replace(PROFILE, regions=replace(PROFILE.regions, margin=0.3))
    with pytest.raises(ValueError, match=r"they differ in regions\.margin; take"):
        require_same_view(wider, clip, folder)
    with torch.no_grad():
        clip.model.visual.proj += 1e-3
    with pytest.raises(ValueError, match=r"they differ in clip, regions\.margin; take"):
        require_same_view(wider, clip, folder)


def test_a_teacher_of_another_kind_or_without_its_record_is_not_taken(clip, tmp_path) -> None:
    folder = keep_teacher(tmp_path / "region_teacher", clip)
    with pytest.raises(ValueError, match=rf"a teacher in {folder}, got a region_teacher"):
        require_same_view(few("dclip"), clip, folder)
    with pytest.raises(ValueError, match=rf"regions='none' in {folder}"):
        require_same_view(few("whole_picture_taught"), clip, folder)
    (folder / "training.json").unlink()
    with pytest.raises(FileNotFoundError, match=rf"training\.json beside the teacher in {folder}"):
        require_same_view(PROFILE, clip, folder)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_teacher_that_does_not_fit_clip_is_refused_where_one_is_trained(recipe, clip) -> None:
    odd = {"teacher": {"heads": 5}, "region_teacher": {"width": 25}}
    profile = change_settings(few(recipe), odd)
    trained = recipe not in ("self_taught", CONTROL, "contrastive", "sds")
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


def test_a_teacher_that_reads_captions_needs_their_tokens(clip, monkeypatch) -> None:
    """SigLIP's text tower has none of the kind; other teachers do without."""
    monkeypatch.setattr(clip.model, "text_pool_type", "last")
    with pytest.raises(ValueError, match="end token's pooling"):
        require_trainable(few("dclip"), clip)
    require_trainable(few("region_taught"), clip)
    require_trainable(few(CONTROL), clip)


# Arms


TEXTS = ("a red ball", "two dogs")


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_leads_from_pictures_to_an_arm_beside_its_control(
    recipe, more, begun, clip, data, encoded, uncaptioned, sets, tmp_path, capsys, monkeypatch
) -> None:
    run, taught_by, asked = begun(few(recipe)), None, []
    profile = run.profile
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    if trains_teacher(profile):
        captioned = encode_pictures(clip, data.train, profile.regions, tmp_path / "features")
        taught_by = obtain_teacher(run, captioned.features)
    else:
        captioned = encoded
    others = uncaptioned if more else None
    capsys.readouterr()

    prepare = experiment.prepare_lessons

    def watched(own, *more):
        asked.append(own)
        return prepare(own, *more)

    monkeypatch.setattr(experiment, "prepare_lessons", watched)
    monkeypatch.setattr(experiment, "load_denoiser", lambda name, given: make_denoiser(given))
    trained = train_arms(run, captioned, sets, taught_by, others)
    assert capsys.readouterr().out.strip() == "Trained the arms now."
    names = list(dict.fromkeys([CONTROL, recipe]))
    assert list(trained) == ["clip", *names]
    assert trained["clip"].clip is clip and trained["clip"].alpha is None
    assert all(torch.equal(value, before[key]) for key, value in clip.model.state_dict().items())

    # Who taught: nobody, the teacher, or the control.
    own = trained[CONTROL].clip if recipe == "self_taught" else taught_by and taught_by.teacher
    assert len(asked) == (own is not None) and all(each is own for each in asked)

    loaded = load_arms(clip, run.out, names)
    assert "Loaded the saved arms" in capsys.readouterr().out
    for name in names:
        one, other = trained[name], loaded[name]
        for field in ("alpha", "candidates", "history"):
            assert getattr(one, field) == getattr(other, field)
        embedded = [encode_images(arm.clip, sets.test.pictures) for arm in (one, other)]
        assert torch.equal(*embedded)
        assert torch.equal(encode_texts(one.clip, TEXTS), encode_texts(other.clip, TEXTS))
        both_towers = recipe == "official_code" and one.alpha != 0
        assert same_text_tower(one.clip, clip) != both_towers

    # Each by the losses of its own settings.
    for name, settings in ((CONTROL, control_of(profile).student), (recipe, profile.student)):
        first = trained[name].history[0]
        terms = ("distillation", "contrastive", "rehearsal", "sds")
        weights = {term: getattr(settings, f"{term}_weight") for term in terms}
        loss = sum(weight * first[term] for term, weight in weights.items() if weight)
        assert first["loss"] == pytest.approx(loss, rel=1e-5)
        assert {term for term in terms if term in first} == {t for t in terms if weights[t]}


def test_uncaptioned_pictures_change_the_student_and_not_its_control(
    begun, encoded, uncaptioned, sets
) -> None:
    teacher, found = TeacherRun(RegionTeacher(32, 24, 3), PROFILE.region_teacher, []), {}
    for name, others in (("without", None), ("with", uncaptioned)):
        found[name] = train_arms(begun(PROFILE, name), encoded, sets, teacher, others)
    for name, same in ((CONTROL, True), ("region_taught", False)):
        losses = [[row["loss"] for row in arms[name].history] for arms in found.values()]
        assert (losses[0] == losses[1]) is same


def test_training_continues_from_its_checkpoints(begun, encoded, sets) -> None:
    run = begun(PROFILE)
    teacher = obtain_teacher(run, encoded.features)
    arms = train_arms(run, encoded, sets, teacher)
    names = {path.stem for path in (run.out / "checkpoints").glob("*.safetensors")}
    assert names == {"teacher", CONTROL, "region_taught"}
    # Seconds and all: nothing was trained.
    assert obtain_teacher(run, encoded.features).history == teacher.history
    for name, arm in train_arms(run, encoded, sets, teacher).items():
        assert arm.history == arms[name].history


def test_each_arm_says_what_it_has_seen_and_by_which_settings(
    begun, encoded, uncaptioned, sets
) -> None:
    """The control has seen no picture without captions."""
    run = begun(PROFILE)
    teacher = obtain_teacher(run, encoded.features)
    train_arms(run, encoded, sets, teacher, uncaptioned)
    control, taught = run.out / CONTROL, run.out / "region_taught"
    measured = uncaptioned.dataset
    assert len(leave_out_trained(measured, {"x": load_seen(control)}).dataset) == len(measured)
    with pytest.raises(ValueError, match="0 are left"):
        leave_out_trained(measured, {"x": load_seen(taught)})
    settings = {x: json.loads((x / "training.json").read_text()) for x in (control, taught)}
    assert settings[control]["recipe"] == CONTROL and settings[taught]["recipe"] == "region_taught"
    assert settings[control]["settings"]["student"]["distillation_weight"] == 0
    assert settings[taught]["settings"]["student"]["distillation_weight"] > 0


def test_the_tiny_clip_knew_the_labels_given_to_it(clip, sets) -> None:
    """Otherwise nothing above measured retention."""
    found = sets.zero_shot_val
    embedded = encode_images(clip, found.pictures)
    assert (class_ranks(embedded, found.class_features, found.labels) <= 1).all()


# What a run begins with


def test_settings_may_not_change(tmp_path) -> None:
    require_settings(PROFILE, tmp_path)
    assert not list(tmp_path.iterdir())
    write_record(PROFILE.as_dict(), tmp_path / SETTINGS)
    require_settings(PROFILE, tmp_path)
    other = replace(PROFILE, seed=3, student=replace(PROFILE.student, epochs=99))
    with pytest.raises(ValueError, match=r"they differ in seed, student\.epochs; give the same"):
        require_settings(other, tmp_path)


def test_damaged_settings_are_named(tmp_path) -> None:
    for content in ("{", "[]"):
        (tmp_path / SETTINGS).write_text(content)
        with pytest.raises(ValueError, match=r"settings\.json"):
            require_settings(PROFILE, tmp_path)


@pytest.fixture
def own(clip_folder, fake_detector, tmp_path) -> Profile:
    """A run on data of one's own, with a few pictures without captions."""
    data = write_own(tmp_path / "own", range(20), split=True)
    more = tmp_path / "more"
    more.mkdir()
    for seed in range(40, 44):
        scene(seed).save(more / f"{seed}.jpg")
    return replace(
        PROFILE,
        clip=str(clip_folder),
        data=str(data),
        zero_shot=str(write_classes(tmp_path / "classes", 12)),
        uncaptioned=str(more),
    )


def names(dataset) -> set[str]:
    return {path.name for path in dataset.paths}


def known(model: Path, paths: list[Path]) -> set[str]:
    """Those of some pictures that a model has trained on."""
    seen = load_seen(model)
    # Beside two that it has not: else too few would be left to measure on.
    others = [path.with_name(f"other-{number}.png") for number, path in enumerate(paths[:1] * 2)]
    for seed, path in enumerate(others, start=900):
        scene(seed).save(path)
    asked = pictures_below(paths[0].parent, [path.name for path in (*paths, *others)])
    asked = replace(asked, image_ids=("own",) * len(asked))
    left = leave_out_trained(asked, {"it": seen}).dataset
    for path in others:
        path.unlink()
    return {path.name for path in paths} - names(left)


def test_a_run_begins_with_its_settings_its_data_and_what_it_will_have_seen(own, tmp_path) -> None:
    run = begin(own, tmp_path / "run")
    assert json.loads((tmp_path / "run" / SETTINGS).read_text()) == json.loads(
        json.dumps(own.as_dict())
    )
    assert (len(run.data.train), len(run.data.val), len(run.data.test)) == (16, 2, 2)
    assert run.clip.name == own.clip and run.seen.complete
    left = leave_out_trained(run.data.val, {"x": run.seen})
    assert left.dataset == run.data.val and left.chosen == {"x": 2}
    with pytest.raises(ValueError, match="0 are left"):
        leave_out_trained(run.data.train, {"x": run.seen})
    assert len(run.seen.labelled) == len(run.data.zero_shot_val) == 18  # half of them chooses
    assert run.seen.trained.phash is not None
    plain = begin(replace(own, leak_guard="names"), tmp_path / "plain")
    assert plain.seen.trained.phash is None


def test_a_run_of_another_recipe_than_its_name_is_not_begun(own, tmp_path) -> None:
    with pytest.raises(ValueError, match="in the recipe dclip"):
        begin(replace(own, recipe="dclip"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_begun_anew_with_other_settings(own, tmp_path) -> None:
    """Not even with those that no checkpoint knows."""
    begin(own, tmp_path / "run")
    begin(own, tmp_path / "run")
    before = (tmp_path / "run" / SETTINGS).read_bytes()
    for name, value in [
        ("selection", replace(own.selection, least_retention=0.5)),
        ("uncaptioned", ""),
    ]:
        with pytest.raises(ValueError, match=rf"differ in {name}[._a-z]*; give"):
            begin(replace(own, **{name: value}), tmp_path / "run")
    assert (tmp_path / "run" / SETTINGS).read_bytes() == before


def test_of_the_pockets_labelled_pictures_none_is_left_out_later(
    data, clip_folder, tmp_path, monkeypatch
) -> None:
    """Those to choose on are apart from those to measure on."""
    monkeypatch.setattr(experiment, "load_data", lambda profile: data)
    assert not begin(replace(PROFILE, clip=str(clip_folder)), tmp_path / "run").seen.labelled


def test_a_run_that_begins_from_an_arm_has_seen_what_that_has(own, clip, tmp_path) -> None:
    """An arm is fine-tuned further, on other data, with a teacher that was there."""
    first = begin(own, tmp_path / "first")
    arm = tmp_path / "arms" / "dclip"
    tuned = experiment.Arm(clip, 0.5, (), [])
    save_arm(tuned, arm, experiment.describe_origin(own, clip), first.seen)
    teacher = tmp_path / "arms" / "region_teacher"
    settings = own.region_teacher
    run = TeacherRun(build_teacher(32, settings), settings, [])
    save_teacher_run(run, teacher, own, clip, replace(SEEN, complete=False))
    other = write_own(tmp_path / "other", range(10, 30), split=True)
    table = other / "captions.csv"  # one of the arm's pictures is measured on, one is chosen on
    rows = table.read_text().splitlines()
    moved = {"10.png": "test", "11.png": "val"}
    for place, row in enumerate(rows):
        name = row.split(",")[0]
        if name in moved:
            rows[place] = row.removesuffix("train") + moved[name]
    table.write_text("\n".join(rows))
    further = replace(own, clip=str(arm), data=str(other))
    second = begin(further, tmp_path / "second")
    assert names(second.data.test) == {"28.png", "29.png"}
    assert names(second.data.val) == {"26.png", "27.png"}
    seen = second.seen
    trained = set(first.seen.trained.as_dict()["names"])
    assert seen.complete and trained < seen.trained.names.keys()
    alone = begin(replace(own, data=str(other)), tmp_path / "alone").seen
    assert alone.trained.names.keys() < seen.trained.names.keys()
    assert seen.chosen.as_dict() != first.seen.chosen.as_dict()
    taught = begin(further, tmp_path / "third", teacher).seen
    assert not taught.complete  # its teacher's record is not


# A run as a whole


@pytest.fixture(scope="module")
def finished(clip_folder, make_detector, tmp_path_factory):
    """A run to its end, and the profile that it had."""
    folder = tmp_path_factory.mktemp("finished")
    data = write_own(folder / "own", range(20), split=True)
    more = folder / "more"
    more.mkdir()
    for seed in range(40, 44):
        scene(seed).save(more / f"{seed}.jpg")
    given = {"clip": str(clip_folder), "data": str(data), "uncaptioned": str(more)}
    labelled = write_classes(folder / "classes", 12)
    profile = replace(PROFILE, zero_shot=str(labelled), **given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "load_detector", lambda *_, **__: make_detector())
        report = experiment.run(profile, folder / "run")
    return profile, folder, report


@pytest.fixture
def copy(finished, fake_detector, tmp_path):
    """The same run, to be changed; of the data, which paths tell, there is one only."""
    profile, folder, _ = finished
    kept = shutil.copytree(folder, tmp_path / "kept")
    yield profile, folder
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)


def weights_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.glob("*/*.safetensors")}


def test_a_run_leaves_a_folder_for_each_model_and_a_report(finished) -> None:
    _, folder, report = finished
    out = folder / "run"
    models = {CONTROL, "region_taught", "region_teacher"}
    folders = {path.name for path in out.iterdir() if path.is_dir() and "features" not in path.name}
    assert folders == models | {"checkpoints"}
    assert all((out / name / "seen.json").is_file() for name in models)
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))
    assert report["arms"].keys() == {"clip", CONTROL, "region_taught"}
    assert report["teacher_probe"].keys() == {"own", "shuffled", "blank"}
    assert any("2 pictures of" in note and "few to measure on" in note for note in report["notes"])
    for name in (CONTROL, "region_taught"):
        arm, found = load_arm(out / name), report["arms"][name]
        assert arm.alpha == found["alpha"]
        card = (out / name / "README.md").read_text()
        assert "Not measured" not in card and f" {name} | " in card
        recall = found["text_to_image"]["recall_at"]["1"]
        assert f"{100 * recall:.1f}" in card and "few to measure on" in card


def test_a_run_says_nothing_of_its_data_in_cards_and_seen_pictures(finished) -> None:
    _, folder, _ = finished
    for path in (folder / "run").glob("*/*"):
        if path.name in ("seen.json", "README.md"):
            text = path.read_text()
            assert str(folder) not in text and "picture 3" not in text and "3.png" not in text


def test_what_a_report_notes_is_no_html_in_a_card(finished, tmp_path) -> None:
    _, folder, report = finished
    for name in (CONTROL, "region_taught"):
        shutil.copytree(folder / "run" / name, tmp_path / name)
    save_report(report | {"notes": ["Note: 2 pictures of <script>x</script> are few."]}, tmp_path)
    for name in (CONTROL, "region_taught"):
        text = (tmp_path / name / "README.md").read_text()
        assert "<script" not in text and "- Note: 2 pictures of &lt;script&gt;x" in text
    assert "<script>" in json.loads((tmp_path / "report.json").read_text())["notes"][0]


def test_a_run_that_is_done_trains_nothing_again(copy, monkeypatch) -> None:
    profile, folder = copy
    before, report = (
        weights_of(folder / "run"),
        json.loads((folder / "run/report.json").read_text()),
    )
    (folder / "run/region_taught/open_clip_model.safetensors").unlink()
    losses = steps_of(monkeypatch)
    again = experiment.run(profile, folder / "run")
    assert not losses and weights_of(folder / "run") == before
    assert json.loads(json.dumps(again["arms"])) == report["arms"]


def steps_of(monkeypatch) -> list[float]:
    """The losses of all steps that are taken from now on."""
    taken, accumulate = [], loop._accumulate

    def watched(*given):
        figures = accumulate(*given)
        taken.append(figures[0][0])
        return figures

    monkeypatch.setattr(loop, "_accumulate", watched)
    return taken


def change_caption(folder: Path) -> None:
    path = folder / "own/captions.csv"
    path.write_text(path.read_text().replace("picture 3,", "another text,"))


@pytest.mark.parametrize(
    "change",
    [
        change_caption,
        lambda folder: scene(77).save(folder / "own/3.png", format="BMP"),
        lambda folder: scene(77).save(folder / "more/77.jpg"),
        lambda folder: scene(77).save(folder / "more/41.jpg"),
        lambda folder: (folder / "more/41.jpg").unlink(),
    ],
    ids=["a caption", "a captioned picture", "one more", "an uncaptioned one", "one less"],
)
def test_a_run_does_not_go_on_with_other_pictures(change, copy, monkeypatch) -> None:
    profile, folder = copy
    change(folder)
    before, seen = weights_of(folder / "run"), (folder / "run/region_taught/seen.json").read_bytes()
    losses = steps_of(monkeypatch)
    with pytest.raises(ValueError, match=r"checkpoints/.*\.safetensors, but they differ in"):
        experiment.run(profile, folder / "run")
    assert not losses
    assert weights_of(folder / "run").items() >= before.items()  # beside features, perhaps
    assert (folder / "run/region_taught/seen.json").read_bytes() == seen


def test_other_pictures_to_choose_on_are_allowed_and_told(copy, monkeypatch) -> None:
    """What was trained stays; what is chosen, and what was seen, are as they are now."""
    profile, folder = copy
    place = folder / "own/16.png"  # of val
    old = scene(16)
    scene(88).save(place, format="BMP")
    losses = steps_of(monkeypatch)
    experiment.run(profile, folder / "run")
    assert not losses
    asked = folder / "asked"
    asked.mkdir()
    for name, picture in {"old": old, "new": scene(88), "other": scene(89)}.items():
        picture.save(asked / f"{name}.png")
    for model in (CONTROL, "region_taught"):
        seen = {"it": load_seen(folder / "run" / model)}
        for name, chosen in {"old": 0, "new": 1, "other": 0}.items():
            found = leave_out_trained(pictures_below(asked, [f"{name}.png"]), seen)
            assert found.chosen == {"it": chosen}, name


def test_a_teacher_is_trained_first_and_the_run_goes_on_there(own, tmp_path, monkeypatch) -> None:
    """And is used by another run, whose arms have seen what it has."""
    out = tmp_path / "run"
    taught = experiment.run_teacher(own, out)
    assert [path.parent.name for path in out.glob("*/model.safetensors")] == ["region_teacher"]
    assert not (out / "region_taught").exists()
    before = (out / "region_teacher/model.safetensors").read_bytes()
    written = (out / "checkpoints/teacher.safetensors").stat().st_mtime_ns
    assert load_seen(out / "region_teacher").complete
    trained, train = [], experiment.train_teacher

    def watched(*given, **more):
        trained.append(train(*given, **more))
        return trained[-1]

    monkeypatch.setattr(experiment, "train_teacher", watched)
    experiment.run(own, out)
    assert [run.history for run in trained] == [taught.history]
    assert (out / "checkpoints/teacher.safetensors").stat().st_mtime_ns == written
    assert (out / "region_teacher/model.safetensors").read_bytes() == before
    other = tmp_path / "other"
    experiment.run(own, other, teacher=out / "region_teacher", features=out)
    assert len(trained) == 1 and not (other / "region_teacher").exists()
    one, two = (load_seen(each / "region_taught") for each in (out, other))
    assert one.trained.as_dict() == two.trained.as_dict()
    assert not list(other.glob("features-*"))


def test_what_has_trained_on_uncaptioned_pictures_says_so(finished) -> None:
    _, folder, _ = finished
    more, own = (sorted((folder / name).glob("*.*g")) for name in ("more", "own"))
    trained = {f"{number}.png" for number in range(16)}
    for model in (CONTROL, "region_teacher", "region_taught"):
        place = folder / "run" / model
        assert known(place, own) == trained
        taught = model == "region_taught"
        assert known(place, more) == ({path.name for path in more} if taught else set())


@pytest.mark.parametrize("recipe", [CONTROL, "dclip"])
def test_other_recipes_do_not_go_on_with_other_pictures_either(
    recipe, own, tmp_path, monkeypatch
) -> None:
    profile = change_settings(apply_recipe(own, recipe), {**FEW, "uncaptioned": ""})
    experiment.run(profile, tmp_path / "run")
    before = weights_of(tmp_path / "run")
    scene(77).save(tmp_path / "own/3.png", format="BMP")
    losses = steps_of(monkeypatch)
    with pytest.raises(ValueError, match=r"checkpoints/.*\.safetensors, but they differ in data"):
        experiment.run(profile, tmp_path / "run")
    assert not losses and weights_of(tmp_path / "run").items() >= before.items()
