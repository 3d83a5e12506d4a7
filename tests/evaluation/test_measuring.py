"""Models side by side: on pictures that none has seen, and what is said of the answers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dclip_kit.config import PROFILES, Profile
from dclip_kit.data import read_labelled
from dclip_kit.data.leaks import Leak
from dclip_kit.data.splits import read_splits
from dclip_kit.evaluation.arms import Arm, describe_origin, save_arm
from dclip_kit.evaluation.evaluate import (
    evaluate_zero_shot,
    prepare_references,
    prepare_zero_shot,
    rescored_metrics,
    try_rescoring,
)
from dclip_kit.evaluation.measuring import (
    choose_measured_on,
    compare_retrievals,
    describe_results,
    format_results,
    list_retrievals,
    load_rescoring_parts,
    measure_model,
)
from dclip_kit.evaluation.profile_data import read_measured
from dclip_kit.evaluation.seen import describe_seen
from dclip_kit.metrics import retrieval_metrics
from dclip_kit.models.clip import load_clip
from dclip_kit.models.encode import encode_images, encode_texts
from dclip_kit.models.weights import round_changed
from tests.data.test_leaks import dataset
from tests.data.test_splits import write_own
from tests.evaluation.test_profile_data import write_classes


@pytest.fixture
def profile(clip_folder, tmp_path) -> Profile:
    """Of a run on data of one's own: of 60 pictures six are test, by the seed."""
    data, classes = write_own(tmp_path / "own", range(60)), write_classes(tmp_path / "classes")
    given = {"data": str(data), "zero_shot": str(classes), "clip": str(clip_folder)}
    return replace(PROFILES["pocket"], **given, leak_guard="names")


@pytest.fixture
def arm(clip, tuned, profile, tmp_path) -> Path:
    """An arm that has trained on test's first picture, and was chosen on its second."""
    round_changed(clip, tuned)
    test, classes = read_splits(profile.data).test, read_labelled(profile.zero_shot)
    seen = describe_seen(test.select([0]), test.select([1]), classes.paths[:5], by_content=False)
    save_arm(Arm(tuned, 0.5), tmp_path / "runs/dclip", describe_origin(profile, clip), seen)
    return tmp_path / "runs/dclip"


def test_models_are_measured_on_what_none_has_seen(arm, profile, clip_folder) -> None:
    names = [str(clip_folder), str(arm)]
    on = choose_measured_on(names, PROFILES["pocket"])
    assert (on.profile.data, on.profile.zero_shot) == (profile.data, profile.zero_shot)
    test, classes = read_splits(profile.data).test, read_labelled(profile.zero_shot)
    assert on.captioned.paths == test.paths[1:] and on.name == profile.data
    assert {x: [leak.picture for leak in each] for x, each in on.unseen.trained.items()} == {
        str(arm): [test.paths[0]]
    }
    assert on.unseen.chosen == {str(arm): 1}
    (source,) = on.labelled
    assert on.labelled[source].paths == classes.paths[5:] and on.without == {source: 5}
    assert list(on.seen) == names and on.seen[names[0]] is None and on.seen[names[1]].complete


def test_what_was_asked_for_outdoes_what_a_run_measured_on(arm, tmp_path) -> None:
    other = write_own(tmp_path / "other", range(200, 204))
    on = choose_measured_on([str(arm)], PROFILES["pocket"], "all", data=str(other), zero_shot="")
    assert len(on.captioned) == 4 and not on.labelled and not on.without
    assert on.name == str(other) and not any(on.unseen.trained.values())


def test_a_test_of_its_own_names_what_is_measured(arm, profile, clip, tmp_path) -> None:
    test = write_own(tmp_path / "elsewhere", range(300, 304))
    origin = describe_origin(replace(profile, test=str(test)), clip)
    seen = describe_seen(*[dataset(tmp_path, [])] * 2, [], by_content=False)
    save_arm(Arm(clip, 0.5), arm, origin, seen)
    on = choose_measured_on([str(arm)], PROFILES["pocket"])
    results = {str(arm): measure_model(clip, on)}
    assert on.name == describe_results(results, on)["test"] == str(test)
    assert on.captioned.paths == read_measured(on.profile).paths and len(on.captioned) == 4
    assert choose_measured_on([str(arm)], PROFILES["pocket"], "train").name == profile.data


def test_nothing_is_rescored_by_what_is_measured(arm) -> None:
    for split in ("train", "val", "all"):
        on = choose_measured_on([str(arm)], PROFILES["pocket"], split)
        with pytest.raises(ValueError, match=rf"without pictures of train and val.* got '{split}'"):
            load_rescoring_parts(on)
    parts = load_rescoring_parts(choose_measured_on([str(arm)], PROFILES["pocket"]))
    assert len(parts.train) + len(parts.val) + len(parts.test) == 60


def test_no_setting_is_chosen_on_what_a_model_has_trained_on(arm, profile) -> None:
    on = choose_measured_on([str(arm)], PROFILES["pocket"])
    val = read_splits(profile.data).val
    assert load_rescoring_parts(on).val.paths == val.paths
    learnt = describe_seen(val.select([1]), val.select([]), (), by_content=False)
    found = load_rescoring_parts(replace(on, seen={str(arm): learnt}))
    assert found.val.paths == val.paths[:1] + val.paths[2:] and len(val) > 3


def test_a_model_is_asked_all_questions(arm) -> None:
    on, tuned = choose_measured_on([str(arm)], PROFILES["pocket"]), load_clip(arm)
    parts, captioned = load_rescoring_parts(on), on.captioned
    plain, found = measure_model(tuned, on), measure_model(tuned, on, "nnn", parts)
    vectors = encode_images(tuned, captioned.paths), encode_texts(tuned, captioned.texts)
    expected = retrieval_metrics(*vectors, captioned.image_of_text)
    for each in (plain, found):
        assert each.retrieval.as_dict() == expected.as_dict()
        ((source, labelled),) = on.labelled.items()
        named = evaluate_zero_shot(tuned, prepare_zero_shot(tuned, labelled, False, on.templates))
        assert torch.equal(each.zero_shot[source].correct, named.correct)
    assert plain.rescored is None
    references = prepare_references(tuned, parts.train)
    val = encode_images(tuned, parts.val.paths), encode_texts(tuned, parts.val.texts)
    tried = try_rescoring("nnn", *val, parts.val.image_of_text, references)
    assert found.rescored.tried == tried
    best = [next(iter(each)) for each in tried.values()]
    rescored = rescored_metrics(*vectors, captioned.image_of_text, references, *best)
    assert found.rescored.retrieval.as_dict() == rescored.as_dict()


@pytest.fixture
def answered(arm, clip_folder):
    """Two models' answers, one of which the kit did not train, and what they were asked on."""
    names = [str(clip_folder), str(arm)]
    on = choose_measured_on(names, PROFILES["pocket"])
    parts = load_rescoring_parts(on)
    return {name: measure_model(load_clip(name), on, "nnn", parts) for name in names}, on


def test_the_answers_are_json_with_all_that_was_left_out(answered, arm, clip_folder) -> None:
    results, on = answered
    told = json.loads(json.dumps(describe_results(results, on, "nnn"), allow_nan=False))
    first, second = str(clip_folder), str(arm)
    names = [first, f"{first} by nnn", second, f"{second} by nnn"]
    retrievals = list_retrievals(results, "nnn")
    assert list(told["retrieval"]) == names == list(retrievals)
    figures = {name: metrics.as_dict() for name, metrics in retrievals.items()}
    assert told["retrieval"] == json.loads(json.dumps(figures))
    assert retrievals[names[1]] is results[first].rescored.retrieval
    assert list(told["gains"]) == names[1:]  # each over the first
    assert told["pictures"] == len(on.captioned) and told["captions"] == 2 * len(on.captioned)
    (leak,) = told["left_out"]["trained_on"][second]
    assert leak == {"picture": str(read_splits(on.profile.data).test.paths[0]), "by": leak["by"]}
    assert told["chosen_on"] == {second: 1} and told["no_record"] == []
    (source,) = on.labelled
    assert told["left_out"]["zero_shot_chosen_on"] == {source: 5}
    assert told["zero_shot"][source].keys() == {first, second}
    assert told["rescoring_on_val"].keys() == told["skewness_of_k_occurrence"].keys()


def test_the_answers_are_text_with_what_is_to_be_known_of_them(answered, arm, clip_folder) -> None:
    results, on = answered
    text = format_results(results, on, "nnn")
    count = len(on.captioned)
    assert text.startswith(f"{count} pictures, {2 * count} captions: {on.name} (test)\n")
    assert f"1 pictures that {arm} has trained on" in text
    assert f"{arm} was chosen on 1 pictures" in text
    assert f"Note: {count} pictures of" in text and "few to measure on" in text
    assert f"What {clip_folder} has trained on is not known" in text
    assert f"What {arm} has trained on" not in text
    assert f"{arm} beside {clip_folder}" in text and f"{arm}: the best of nnn on val" in text
    assert "13 pictures, without the 5 that a model was trained or chosen on" in text
    gain = compare_retrievals(list_retrievals(results))[str(arm)]["text → image"][0]
    assert f"{100 * gain.change.estimate:+.1f} points" in text
    for published in ("hf-hub:x/y", "ViT-B-32"):  # the latter's data are nobody's here
        text = format_results(results, replace(on, seen={published: None}), "nnn")
        assert (f"What {published} has trained on is not known" in text) == (":" in published)


def test_a_model_whose_record_was_left_out_is_told(arm, clip_folder) -> None:
    """As where it was published without one."""
    (arm / "seen.json").unlink()
    on = choose_measured_on([str(arm)], PROFILES["pocket"])
    results = {str(arm): measure_model(load_clip(arm), on)}
    assert f"What {arm} has trained on is not all known" in format_results(results, on)
    assert describe_results(results, on)["no_record"] == [str(arm)]
    assert not on.unseen.trained[str(arm)]


def test_hostile_names_of_models_and_pictures_do_not_reach_the_terminal(arm, clip) -> None:
    odd = arm.rename(arm.with_name("odd\x1b[31m"))
    on = choose_measured_on([str(odd)], PROFILES["pocket"])
    leak = Leak(Path("picture\x1b[31m.png"), None, "url http://a/\x1b.png")
    on = replace(on, unseen=replace(on.unseen, trained={str(odd): (leak,)}))
    text = format_results({str(odd): measure_model(clip, on)}, on)
    assert "\x1b" not in text and "odd\\x1b[31m" in text and "picture\\x1b[31m.png" in text
