"""Settings: JSON beside every result, unchangeable, and profiles that mean what they say."""

import json
import math
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path

import open_clip
import pytest

from dclip_kit import config
from dclip_kit.config import (
    CONTROL,
    PROFILES,
    RECIPES,
    Profile,
    RegionSettings,
    RegionTeacherSettings,
    SelectionRule,
    StudentSettings,
    TeacherSettings,
    apply_recipe,
    change_settings,
    control_of,
    get_profile,
    read_policy,
    require_recipe,
)

PARTS = (
    RegionSettings,
    RegionTeacherSettings,
    TeacherSettings,
    StudentSettings,
    SelectionRule,
)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_found_saved_and_cannot_be_changed(name) -> None:
    profile = get_profile(name)
    assert profile.name == name
    saved = json.loads(json.dumps(profile.as_dict()))
    assert saved["student"]["learning_rate"] == profile.student.learning_rate
    assert saved["selection"]["alphas"] == list(profile.selection.alphas)
    parts = [each for each in vars(profile).values() if isinstance(each, PARTS)]
    assert {*map(type, parts)} == {*PARTS}
    for part in (profile, *parts):
        with pytest.raises(FrozenInstanceError):
            setattr(part, fields(part)[0].name, None)


def test_only_the_paper_asks_for_its_data() -> None:
    for name, profile in PROFILES.items():
        asked = "" if name == "paper" else "pocket"
        assert profile.data == profile.zero_shot == asked and not profile.test


def test_where_pictures_without_captions_come_from_is_the_datas_to_say() -> None:
    """`locate_uncaptioned` says what auto is."""
    assert {profile.uncaptioned for profile in PROFILES.values()} == {"auto"}


def test_an_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="pocket, base, paper, got 'big'"):
        get_profile("big")


@pytest.mark.parametrize("name", ["base", "paper"])
def test_pretrained_profiles_compute_with_the_activation_of_their_weights(name) -> None:
    profile = get_profile(name)
    weights = open_clip.get_pretrained_cfg(profile.clip, profile.pretrained)
    assert weights["quick_gelu"] is open_clip.get_model_config(profile.clip)["quick_gelu"] is True


def test_the_selection_rule_tries_shares_of_the_fine_tuned_weights_up_to_all() -> None:
    for profile in PROFILES.values():
        alphas = profile.selection.alphas
        assert alphas[0] > 0 and alphas[-1] == 1 and list(alphas) == sorted(set(alphas))
        assert 0.94 <= profile.selection.least_retention <= 1


@pytest.mark.parametrize(
    ("part", "name", "value", "expected"),
    [
        ("regions", "confidence", 5.0, "a number from 0 to 1"),
        ("regions", "max_regions", 0, "a whole number from 1"),
        ("regions", "margin", -1.0, "a finite number from 0"),
        ("teacher", "heads", 0, "a whole number from 1"),
        ("teacher", "layers", -1, "a whole number from 1"),
        ("teacher", "pooling_temperature", 0.0, "a finite number above 0"),
        ("teacher", "learning_rate", math.nan, "a finite number from 0"),
        ("teacher", "weight_decay", math.inf, "a finite number from 0"),
        ("region_teacher", "width", 0, "a whole number from 1"),
        ("region_teacher", "region_dropout", 1.0, "a number from 0 to below 1"),
        ("region_teacher", "captions_per_image", 0, "a whole number from 1"),
        ("student", "anchors", 0, "a whole number from 1"),
        ("student", "uncaptioned_batch", -1, "a whole number from 0"),
        ("student", "contrastive_weight", -0.5, "a finite number from 0"),
        ("student", "epochs", 0, "a whole number from 1"),
        ("student", "rehearsal_batch", -1, "a whole number from 0"),
        ("student", "rehearsal_weight", -1.0, "a finite number from 0"),
        ("student", "clip_norm", 0.0, "a finite number above 0"),
        ("student", "warmup_share", 1.0, "a number from 0 to below 1"),
        ("selection", "alphas", (), "one or more numbers from 0 to 1"),
        ("selection", "alphas", (0.5, math.nan), "one or more numbers from 0 to 1"),
        ("selection", "least_retention", -0.1, "a finite number from 0"),
        ("", "seed", -1, r"a whole number from 0 to below 2\*\*32"),
        ("", "seed", 2**32, r"a whole number from 0 to below 2\*\*32"),
    ],
)
def test_a_value_that_no_run_could_use_is_refused(part, name, value, expected) -> None:
    profile = get_profile("pocket")
    field = re.escape(f"{part}.{name}" if part else name)
    got = re.escape(repr(value))
    with pytest.raises(ValueError, match=f"^Expected {field} to be {expected}, got {got}; "):
        replace(getattr(profile, part) if part else profile, **{name: value})


def test_a_value_of_another_type_is_refused_where_nothing_else_looks_at_types() -> None:
    """In a process of its own: in this one every call of the kit has its types checked."""
    refused = {
        "epochs=1.5": "student.epochs to be a whole number from 1, got 1.5;",
        "batch_size='8'": "student.batch_size to be a whole number from 2, got '8';",
        "block_rate='1'": "student.block_rate to be a finite number from 0, got '1';",
        "mixed_precision='fp16'": "student.mixed_precision to be one of auto, no, bf16, got",
        "train=3": "student.train out of projection, attention, norms, last_blocks(n), all, got 3;",
        "distillation='kl'": "student.distillation to be one of cosine, anchored_kl, got 'kl';",
    }
    refused = {f"StudentSettings({given})": says for given, says in refused.items()} | {
        "RegionTeacherSettings(regions=True)": "region_teacher.regions to be one of own, none, an",
        "replace(PROFILES['base'], teacher_model='x')": "teacher_model to be one of region, cross_",
    }
    tries = "".join(f"try: {made}\nexcept ValueError as error: print(error)\n" for made in refused)
    program = f"from dataclasses import replace\nfrom dclip_kit.config import *\n{tries}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    for line, says in zip(done.stdout.splitlines(), refused.values(), strict=True):
        assert line.startswith(f"Expected {says}")


def test_values_at_the_ends_of_their_ranges_are_taken() -> None:
    replace(get_profile("pocket"), seed=2**32 - 1)
    RegionSettings(confidence=0.0, max_regions=1, margin=0.0)
    RegionSettings(confidence=1.0)
    TeacherSettings(learning_rate=0.0, weight_decay=0.0, heads=1, layers=1, epochs=1)
    StudentSettings(block_rate=0.0, captions_per_image=1, rehearsal_batch=0, warmup_share=0.0)
    SelectionRule((0.0, 1.0), 0.0)
    SelectionRule((0.5,), 1.05)


def test_every_number_among_the_settings_has_a_range() -> None:
    for part in (Profile, *PARTS):
        numbers = {each.name for each in fields(part) if each.type in (int, float)}
        assert numbers <= config._ALLOWED.keys()


@pytest.mark.parametrize("policy", ["foo", "last_blocks", "last_blocks(0)", "last_blocks(-1)"])
def test_a_policy_is_refused_where_it_is_given(policy) -> None:
    says = (
        r"^Expected student\.train out of projection, attention, norms, last_blocks\(n\), all, got "
    )
    with pytest.raises(ValueError, match=says + re.escape(repr(policy))):
        StudentSettings(train=policy)


def test_a_policy_says_how_many_blocks() -> None:
    assert [read_policy(each) for each in ("all", "projection", "attention")] == [0, 0, 0]
    assert read_policy("last_blocks(12)") == read_policy("last_blocks(012)") == 12


def test_a_rehearsal_that_has_a_weight_has_a_batch() -> None:
    with pytest.raises(ValueError, match=r"student\.rehearsal_batch to be a whole number from 1"):
        StudentSettings(rehearsal_weight=1.0, rehearsal_batch=0)


# Changes by name


def test_settings_are_changed_by_name_part_by_part() -> None:
    profile = get_profile("base")
    changed = change_settings(profile, {"seed": 4, "student": {"epochs": 3, "anchors": 2}})
    student = replace(profile.student, epochs=3, anchors=2)
    assert changed == replace(profile, seed=4, student=student)
    assert change_settings(profile, {}) == profile
    own = {"regions": RegionSettings(margin=0.3)}  # a part may be given whole
    assert change_settings(profile, own) == replace(profile, **own)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"studnet": {}}, "Expected a setting out of name, clip, .*, got 'studnet'"),
        ({"student": {"epoch": 3}}, "Expected a setting out of train, .*, got 'epoch'"),
        ({"student": {"epochs": 0}}, r"Expected student\.epochs to be a whole number from 1"),
        ({"recipe": "x"}, "Expected a recipe out of"),
    ],
    ids=str,
)
def test_a_change_of_what_is_unknown_or_out_of_range_is_refused(changes, says) -> None:
    with pytest.raises(ValueError, match=says):
        change_settings(get_profile("base"), changes)


def test_a_profile_is_got_with_its_recipe_and_with_paths() -> None:
    """A recipe's name alone would train another recipe under it."""
    for recipe in RECIPES:
        changes = {"student": {"epochs": 3}}
        applied = change_settings(apply_recipe(PROFILES["base"], recipe), changes)
        assert get_profile("base", recipe=recipe, **changes) == applied
    assert get_profile("base", data=Path("photos")).data == "photos"


# Recipes

KNOWN = (
    "region_taught, crops_taught, whole_picture_taught, self_taught, contrastive_rehearsal, "
    "contrastive, sds, dclip, official_code"
)
# By the weights of distillation, of rehearsal and of the denoiser: which recipes have which.
WEIGHTS = ("distillation_weight", "rehearsal_weight", "sds_weight")
FITTING = {
    (True, True, False): "region_taught or crops_taught or whole_picture_taught or self_taught",
    (False, True, False): "contrastive_rehearsal",
    (False, False, False): "contrastive",
    (False, False, True): "sds",
    (True, False, False): "dclip or official_code",
}
# What the pocket's recipes have of their own.
RATES = (
    *("batch_size", "rehearsal_batch", "captions_per_image"),
    *("epochs", "learning_rate", "block_rate"),
)


def test_a_profile_says_its_recipe() -> None:
    for profile in PROFILES.values():
        assert profile.recipe == Profile.recipe == "region_taught"
        assert apply_recipe(profile, "region_taught") == profile
    assert [field.name for field in fields(Profile)][-1] == "recipe"
    with pytest.raises(ValueError, match=f"{KNOWN}, got 'x'"):
        replace(get_profile("pocket"), recipe="x")
    with pytest.raises(ValueError, match=f"{KNOWN}, got 'best'"):
        apply_recipe(get_profile("pocket"), "best")


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_and_its_weights_do_not_contradict_each_other(recipe, weight, name) -> None:
    profile = apply_recipe(get_profile(name), recipe)
    require_recipe(profile)
    value = getattr(profile.student, weight)
    require_recipe(change_settings(profile, {"student": {weight: 3 * value}}))
    other = 0.0 if value else 1.0
    if (recipe, weight) == ("official_code", "sds_weight"):  # its text tower trains
        with pytest.raises(ValueError, match=r"frozen text tower with a student\.sds_weight"):
            change_settings(profile, {"student": {weight: other}})
        return
    changed = change_settings(profile, {"student": {weight: other}})
    fitting = FITTING.get(tuple(getattr(changed.student, each) > 0 for each in WEIGHTS))
    way = f", or take --recipe {fitting}" if fitting else ""  # no recipe has a denoiser and more
    says = (
        rf"^Expected student\.{weight} {'above 0' if value else 'to be 0'} in the recipe {recipe}, "
        rf"got {other}; give another{way}\.$"
    )
    with pytest.raises(ValueError, match=says):
        require_recipe(changed)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("crops_taught", r"region_teacher\.train never in the recipe crops_taught, got always"),
        ("self_taught", "teacher_model control in the recipe self_taught, got region"),
    ],
)
def test_a_recipe_has_its_own_teacher(recipe, says) -> None:
    with pytest.raises(ValueError, match=f"^Expected {says}; leave it out"):
        require_recipe(replace(get_profile("base"), recipe=recipe))


def test_a_teacher_with_a_text_encoder_of_its_own_is_refused() -> None:
    profile = apply_recipe(get_profile("pocket"), "self_taught")
    changed = change_settings(profile, {"student": {"train_text": True}})
    with pytest.raises(ValueError, match=r"self_taught, got student\.train_text; leave it out"):
        require_recipe(changed)


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_recipe_follows_the_official_code_or_sds(recipe) -> None:
    """They change regions or what trains, which the others leave as they are."""
    for name in ("official_code", "sds"):
        first = apply_recipe(get_profile("pocket"), name)
        if recipe == name:
            assert apply_recipe(first, recipe) == first
            continue
        with pytest.raises(ValueError, match=f"apply {recipe} to, got {name}'s; begin with one"):
            apply_recipe(first, recipe)


def test_region_taught_is_the_default_and_differs_from_its_controls_in_the_teacher() -> None:
    """So that what it gains over them is the regions', or the teacher's."""
    for name in PROFILES:
        taught = apply_recipe(get_profile(name), "region_taught")
        assert taught.teacher_model == "region" and taught.region_teacher.regions == "own"
        blind = apply_recipe(get_profile(name), "whole_picture_taught")
        seen = {"region_teacher": {"regions": "own"}, "recipe": "region_taught"}
        assert blind.region_teacher.regions == "none"
        assert change_settings(blind, seen) == taught
        own = apply_recipe(get_profile(name), "self_taught")
        assert own.teacher_model == "control"
        assert replace(own, teacher_model="region", recipe="region_taught") == taught


def test_dclip_is_as_the_paper_describes_it() -> None:
    """A teacher that reads captions, its vectors matched, the captions, and nothing else."""
    for name in PROFILES:
        described = apply_recipe(get_profile(name), "dclip")
        assert described.teacher_model == "cross_attention"
        assert described.teacher.masked
        student = described.student
        assert (student.distillation, student.distillation_weight) == ("cosine", 1.0)
        assert student.contrastive_weight == 1.0 and not student.train_text
        assert student.rehearsal_weight == student.uncaptioned_batch == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_the_pocket_has_of_its_own_for_a_recipe_are_rates(recipe) -> None:
    """A profile of another CLIP keeps its rates; sds says one, for the norms and its map."""
    profile = get_profile("pocket")
    other = apply_recipe(replace(profile, name="mine", clip="ViT-B-32"), recipe)
    rates = {name: getattr(other.student, name) for name in RATES}
    kept = {name: getattr(profile.student, name) for name in RATES}
    assert rates == (kept | {"learning_rate": 5e-5} if recipe == "sds" else kept)
    own = apply_recipe(profile, recipe)
    rates["uncaptioned_batch"] = RECIPES[recipe]["student"]["uncaptioned_batch"]
    renamed = {"name": "mine", "clip": "ViT-B-32", "student": rates}
    assert change_settings(own, renamed) == other


def test_the_pockets_recipes_train_at_different_rates() -> None:
    students = [apply_recipe(get_profile("pocket"), recipe).student for recipe in RECIPES]
    assert len({tuple(getattr(each, name) for name in RATES) for each in students}) > 1


# The control

PUBLISHED = "official_code"  # which trains the text tower


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_control_trains_as_its_own_recipe_says(recipe, name) -> None:
    """On the recipe's features, its regions'; both towers where the recipe trains both."""
    profile = apply_recipe(get_profile(name), recipe)
    control = control_of(profile)
    require_recipe(control)
    own = replace(apply_recipe(get_profile(name), CONTROL).student, train_text=recipe == PUBLISHED)
    assert control.student == own
    same = {"student": control.student, "recipe": CONTROL, "reciprocal_rank_as_map": False}
    assert control == replace(profile, **same)
    assert control_of(control) == control


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_changed_of_a_recipe_is_changed_of_its_control_too(recipe) -> None:
    changes = {"epochs": 3, "learning_rate": 0.5, "train": "projection", "clip_norm": 2.0}
    changes |= {"anchors": 2, "rehearsal_batch": 7, "train_text": recipe != "sds"}
    profile = change_settings(apply_recipe(get_profile("pocket"), recipe), {"student": changes})
    control = control_of(replace(profile, seed=9, selection=SelectionRule((0.7,), 0.5)))
    own, usual = (apply_recipe(get_profile("pocket"), x).student for x in (CONTROL, recipe))
    factor = 0.5 / usual.learning_rate
    changes["learning_rate"] = pytest.approx(own.learning_rate * factor)
    found = asdict(control.student)
    assert {name: found[name] for name in changes} == changes
    rest = found.keys() - changes.keys()
    assert len(rest) > 10 and all(found[name] == getattr(own, name) for name in rest)
    assert (control.seed, control.selection.alphas) == (9, (0.7,))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_runs_name_does_not_change_its_control(recipe) -> None:
    profile = apply_recipe(get_profile("pocket"), recipe)
    control = control_of(replace(profile, name="mine"))
    assert control == replace(control_of(profile), name="mine")
    require_recipe(control)
    require_recipe(control_of(replace(profile, name="mine", clip="hf-hub:mine/clip")))


def test_lists_are_as_toml_has_them() -> None:
    profile = change_settings(get_profile("pocket"), {"selection": {"alphas": [0.5, 1.0]}})
    assert profile.selection.alphas == (0.5, 1.0) and hash(profile)


def test_a_control_has_no_teacher_and_no_uncaptioned_pictures_whatever_is_asked_for() -> None:
    changes = {"distillation_weight": 3.0, "uncaptioned_batch": 99, "train_text": True}
    changes |= {"contrastive_weight": 0.25, "rehearsal_weight": 7.0}
    for recipe in RECIPES:
        changes["train_text"] = recipe != "sds"  # which never trains texts
        profile = change_settings(apply_recipe(get_profile("base"), recipe), {"student": changes})
        control = control_of(profile).student
        assert control.distillation_weight == control.uncaptioned_batch == 0, recipe
        assert control.train_text == changes["train_text"] and control.contrastive_weight == 1
        assert control.rehearsal_weight == 7
