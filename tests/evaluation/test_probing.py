"""What models know of order and relations, and whether teachers look: asked, and said."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dclip_kit.config import PROFILES, Profile, change_settings
from dclip_kit.data.pocket.compositions import KINDS
from dclip_kit.data.splits import read_test
from dclip_kit.evaluation.evaluate import evaluate_compositions, score_compositions
from dclip_kit.evaluation.experiment import save_teacher_run
from dclip_kit.evaluation.inspection import probe_teacher, score_teachers
from dclip_kit.evaluation.probing import (
    describe_probes,
    find_teachers,
    format_probes,
    probe_saved_teacher,
)
from dclip_kit.evaluation.seen import describe_seen
from dclip_kit.features import extract as extraction
from dclip_kit.metrics import COMPOSITION_CHANCE
from dclip_kit.models.teacher import build_teacher
from dclip_kit.runtime.files import asset_path
from dclip_kit.training import TeacherRun
from tests.data.test_leaks import dataset
from tests.data.test_splits import write_own


@pytest.fixture
def profile(clip_folder, fake_detector, tmp_path, monkeypatch) -> Profile:
    """Of a run on data of one's own, with boxes by a picture's width."""
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path / "cache"))
    given = {"clip": str(clip_folder), "data": str(write_own(tmp_path / "own", range(60)))}
    few = {"region_teacher": {"width": 24, "heads": 3}, "teacher": {"heads": 4}}
    profile = replace(PROFILES["pocket"], **given)
    return change_settings(profile, few | {"regions": {"whole_image": True}})


@pytest.fixture
def taught(profile, clip, tmp_path) -> dict[Path, TeacherRun]:
    """A run's two teachers, which have trained on the first of its test pictures."""
    test = read_test(profile.data, seed=0)
    seen = describe_seen(test.select([0]), test.select([1]), [], by_content=False)
    runs = {}
    for kind in ("region_teacher", "teacher"):
        settings = getattr(profile, kind)
        run = TeacherRun(build_teacher(32, settings), settings, [])
        save_teacher_run(run, tmp_path / "runs" / kind, profile, clip, seen)
        runs[tmp_path / "runs" / kind] = run
    return runs


def test_teachers_are_found_by_their_folder_their_runs_or_the_kits_name(taught, tmp_path) -> None:
    for folder in taught:
        assert find_teachers(str(folder)) == {str(folder): folder}
    run = tmp_path / "runs"
    assert find_teachers(str(run)) == {f"{run}/{folder.name}": folder for folder in taught}
    assert find_teachers("pocket") == {
        f"pocket/{kind}": asset_path("pocket_arms", kind) for kind in ("teacher", "region_teacher")
    }
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileNotFoundError, match=rf"a trained teacher in {place}, found none"):
            find_teachers(str(place))


def test_a_teacher_is_asked_with_its_clip_on_pictures_that_it_has_not_trained_on(
    taught, profile, clip
) -> None:
    test = read_test(profile.data, seed=0)
    unseen = test.select(range(1, len(test)))
    features = extraction.load_or_extract_features(clip, unseen, profile.regions, None)
    for folder, run in taught.items():
        compositions, looks = probe_saved_teacher(folder, 3)
        (cosines,) = score_teachers({"one": run}, clip, profile.regions, 3).values()
        expected = evaluate_compositions(cosines)
        assert compositions == expected
        assert looks == probe_teacher(run, clip, features, profile.regions)


def test_a_teacher_without_its_record_or_whose_clip_has_changed_is_not_asked(
    taught, profile, clip
) -> None:
    folder, other = taught
    (folder / "training.json").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{folder}/training\.json"):
        probe_saved_teacher(folder, 3)
    with torch.no_grad():
        clip.model.visual.proj += 1
    nothing = describe_seen(*[dataset(folder, [])] * 2, [], by_content=False)
    save_teacher_run(taught[other], other, profile, clip, nothing)
    with pytest.raises(ValueError, match=rf"made from, of the digest .* got {profile.clip} of"):
        probe_saved_teacher(other, 3)


def test_a_teacher_of_a_run_without_captions_is_asked_for_compositions_alone(
    taught, profile, clip, tmp_path, capsys
) -> None:
    folder, _ = taught
    (tmp_path / "own" / "captions.csv").unlink()
    compositions, looks = probe_saved_teacher(folder, 3)
    assert compositions.keys() == {*KINDS} and looks is None
    assert f"Whether {folder} uses its regions is not known" in capsys.readouterr().out


def test_answers_are_json_and_text(clip, taught) -> None:
    folder, _ = taught
    odd = "model\x1b[31m"
    compositions = {odd: evaluate_compositions(score_compositions(clip, 3))}
    compositions[str(folder)], looks = probe_saved_teacher(folder, 3)
    results = compositions, {str(folder): looks}
    told = json.loads(json.dumps(describe_probes(*results, 3), allow_nan=False))
    assert (told["items"], told["chance"]) == (3, COMPOSITION_CHANCE)
    assert told["compositions"].keys() == compositions.keys()
    assert told["looks"] == {str(folder): vars(looks)}  # a model has no regions to look at
    text = format_probes(*results, 3)
    first, empty, head, *_ = text.splitlines()
    assert first.startswith(f"{folder}: ") and f"own {100 * looks.own:.1f}" in first
    assert empty == "" and head == "Compositions: 3 pairs of pocket scenes a kind"
    assert "text (chance 25.0) | image (chance 25.0) | group (chance 16.7)" in text
    assert "\x1b" not in text and "model\\x1b[31m" in text
    alone = format_probes({"it": compositions[odd]}, {}, 3)
    assert alone.startswith("Compositions: ")
