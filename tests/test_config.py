"""Settings: JSON beside every result, unchangeable, and profiles that mean what they say."""

import json
from dataclasses import FrozenInstanceError, fields

import open_clip
import pytest

from dclip_kit.config import PROFILES, StudentSettings, contrastive_control, get_profile


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
