"""Settings: JSON beside every result, unchangeable, and profiles that mean what they say."""

import json
import math
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace

import open_clip
import pytest

from dclip_kit import config
from dclip_kit.config import (
    PROFILES,
    RECIPES,
    Profile,
    RegionSettings,
    SelectionRule,
    StudentSettings,
    TeacherSettings,
    apply_recipe,
    contrastive_control,
    get_profile,
    read_policy,
    require_recipe,
)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_found_saved_and_cannot_be_changed(name) -> None:
    profile = get_profile(name)
    assert profile.name == name
    saved = json.loads(json.dumps(profile.as_dict()))
    assert saved["student"]["learning_rate"] == profile.student.learning_rate
    assert saved["selection"]["alphas"] == list(profile.selection.alphas)
    for part in (profile, profile.regions, profile.teacher, profile.student, profile.selection):
        with pytest.raises(FrozenInstanceError):
            setattr(part, fields(part)[0].name, None)


def test_only_the_paper_asks_for_its_data() -> None:
    for name, profile in PROFILES.items():
        asked = "" if name == "paper" else "pocket"
        assert profile.data == profile.zero_shot == asked and not profile.test


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


def test_the_control_differs_in_the_teacher_alone() -> None:
    ours = StudentSettings(learning_rate=3e-3, epochs=9)
    control = contrastive_control(ours)
    differing = {f.name for f in fields(ours) if getattr(ours, f.name) != getattr(control, f.name)}
    assert differing == {"distillation_weight"}
    assert control.distillation_weight == 0


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
        ("student", "epochs", 0, "a whole number from 1"),
        ("student", "soup", 0, "a whole number from 1"),
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
        "batch_size='8'": "student.batch_size to be a whole number from 1, got '8';",
        "block_rate='1'": "student.block_rate to be a finite number from 0, got '1';",
        "mixed_precision='fp16'": "student.mixed_precision to be one of auto, no, bf16, got",
        "train=3": "student.train out of projection, attention, last_blocks(n), all, got 3;",
    }
    tries = "".join(
        f"try: StudentSettings({given})\nexcept ValueError as error: print(error)\n"
        for given in refused
    )
    program = f"from dclip_kit.config import StudentSettings\n{tries}"
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
    for part in (Profile, RegionSettings, TeacherSettings, StudentSettings, SelectionRule):
        numbers = {each.name for each in fields(part) if each.type in (int, float)}
        assert numbers <= config._ALLOWED.keys()


@pytest.mark.parametrize("policy", ["foo", "last_blocks", "last_blocks(0)", "last_blocks(-1)"])
def test_a_policy_is_refused_where_it_is_given(policy) -> None:
    says = r"^Expected student\.train out of projection, attention, last_blocks\(n\), all, got "
    with pytest.raises(ValueError, match=says + re.escape(repr(policy))):
        StudentSettings(train=policy)


def test_a_policy_says_how_many_blocks() -> None:
    assert [read_policy(each) for each in ("all", "projection", "attention")] == [0, 0, 0]
    assert read_policy("last_blocks(12)") == read_policy("last_blocks(012)") == 12


def test_a_rehearsal_that_has_a_weight_has_a_batch() -> None:
    with pytest.raises(ValueError, match=r"student\.rehearsal_batch to be a whole number from 1"):
        StudentSettings(rehearsal_weight=1.0, rehearsal_batch=0)


# Recipes


def test_a_profile_says_its_recipe() -> None:
    assert {profile.recipe for profile in PROFILES.values()} == {"dclip"}
    assert [field.name for field in fields(Profile)][-1] == "recipe"
    with pytest.raises(ValueError, match="dclip, contrastive, rehearsal, official_code, got 'x'"):
        replace(get_profile("pocket"), recipe="x")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_and_its_distillation_do_not_contradict_each_other(recipe) -> None:
    profile = apply_recipe(get_profile("pocket"), recipe)
    require_recipe(profile)
    other = 0.0 if profile.student.distillation_weight else 1.0
    profile = replace(profile, student=replace(profile.student, distillation_weight=other))
    take = {"dclip": "rehearsal", "official_code": "contrastive"}
    says = (
        rf"student\.distillation_weight .* recipe {recipe}, got {other}; give another, or take "
        f"--recipe {take.get(recipe, 'dclip or official_code')}"
    )
    with pytest.raises(ValueError, match=says):
        require_recipe(profile)


def test_a_rehearsal_without_a_weight_is_no_rehearsal() -> None:
    with pytest.raises(
        ValueError, match=r"above 0 in the recipe rehearsal, got 0\.0; give another"
    ):
        require_recipe(apply_recipe(get_profile("base"), "rehearsal"))
