"""The program that runs studies: what it writes, prints and refuses."""

import json
import re
from functools import partial
from pathlib import Path

import pytest

from assets.make.run_study import main
from dclip_kit.evaluation.compare import say_luck
from dclip_kit.evaluation.study_table import format_study
from tests.data.test_splits import write_own
from tests.evaluation.test_profile_data import write_classes

pytestmark = pytest.mark.slow


@pytest.fixture
def own(tmp_path) -> Path:
    return write_own(tmp_path / "own", range(20), split=True)


@pytest.fixture
def run(run_main):
    """Runs the program; gives its exit code, and what it wrote to stdout and stderr."""
    return partial(run_main, main)


@pytest.fixture
def file(own, clip_folder, tmp_path, fake_detector) -> Path:
    """A study of small data: the untouched CLIP, and one step each of two seeds."""
    classes = write_classes(tmp_path / "classes", 12)
    path = tmp_path / "studies" / "mine.toml"
    path.parent.mkdir()
    path.write_text(
        f"""
seeds = [0, 1]
clip = "{clip_folder}"
data = "{own}"
zero_shot = "{classes}"
[arms]
clip = {{ recipe = "none" }}
contrastive = {{ recipe = "contrastive", steps = 1 }}
contrastive_rehearsal = {{ recipe = "contrastive_rehearsal", steps = 1 }}
"""
    )
    return path


def test_a_study_prints_its_table_and_keeps_its_records(run, file, tmp_path) -> None:
    work = ("--work", tmp_path / "work")
    code, said, err = run(file, *work, "--arms", "contrastive")
    assert code == 0, err
    assert said.splitlines()[:3] == [
        "mine: clip, seed 0.",
        "mine: contrastive, seed 0.",
        "mine: contrastive, seed 1.",
    ]
    records = file.with_suffix("")
    assert {each.name for each in records.iterdir()} == {
        *("clip-0.json", "contrastive-0.json", "contrastive-1.json")
    }
    code, said, _ = run(file, *work)
    assert code == 0 and said.count("mine: ") == 2  # the others have their records
    result = json.loads(file.with_suffix(".json").read_text())
    assert list(result["arms"]) == ["clip", "contrastive", "contrastive_rehearsal"]
    assert said.endswith(f"{format_study(result)}\n{say_luck(False)}\n")
    code, said, _ = run(file, *work)
    assert (code, said) == (0, f"{format_study(result)}\n{say_luck(False)}\n")
    assert json.loads(file.with_suffix(".json").read_text()) == result


def test_a_studys_training_is_repeated_beside_its_record(run, file, tmp_path) -> None:
    work = ("--work", tmp_path / "work")
    code, _, err = run(file, *work, "--repeat", "contrastive", "1")
    assert code == 2 and "a record of contrastive with the seed 1 to repeat, found none" in err
    assert run(file, *work, "--arms", "contrastive")[0] == 0
    before = file.with_suffix(".json").read_bytes()
    code, said, err = run(file, *work, "--repeat", "contrastive", "1")
    assert code == 0, err
    lines = said.splitlines()
    assert "mine: contrastive, seed 1." in lines
    assert re.match(r"\|\s+α \| text_to_image, now \|", lines[-8])
    assert (tmp_path / "work/repeated/contrastive-1.json").is_file()
    assert file.with_suffix(".json").read_bytes() == before


def test_an_arm_that_a_study_does_not_have_is_refused(run, file, tmp_path) -> None:
    code, _, err = run(file, "--work", tmp_path / "work", "--arms", "dclip")
    assert code == 2 and "arms out of clip, contrastive, contrastive_rehearsal, got 'dclip'" in err
    assert not (tmp_path / "work").exists()


def test_what_is_no_study_is_refused_in_a_sentence(run, own) -> None:
    for arguments, says in [
        (["nowhere.toml"], "Expected a study in nowhere.toml"),
        ([own / "captions.csv"], "captions.csv, with seeds and arms"),
        ([], "the study, such as assets/studies/pocket_table.toml"),
    ]:
        code, said, err = run(*arguments)
        assert code == 2 and says in said + err
