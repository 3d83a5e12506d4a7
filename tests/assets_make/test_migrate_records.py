"""Records lose the settings that were removed, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from assets.make.migrate_records import main, migrate_records
from dclip_kit.config import Profile
from dclip_kit.features.store import digest_record
from dclip_kit.runtime.files import asset_path, write_record

CLIP = {"profile": None, "steps": 0, "nnn": False}


def trained(teacher: dict | None = None, **student) -> dict:
    parts = {"teacher": teacher or {}, "student": {"epochs": 0} | student}
    return {"profile": {"name": "é"} | parts, "steps": 4}


def write(place: Path, settings: dict) -> None:
    """A record, with a member on either side of what is migrated."""
    record = {"arm": "x", "settings_digest": digest_record(settings), "alpha": 0.1 + 0.2}
    write_record(record | {"settings": settings}, place)


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    (tmp_path / "study").mkdir()
    settings = {
        "clip-0": CLIP,
        "now-0": trained(),
        "older-0": trained({"caption_free": False}, hard_negatives=False),
        "hard-0": trained({"caption_free": False}, hard_negatives=True),
    }
    for name, each in settings.items():
        write(tmp_path / "study" / f"{name}.json", each)
    (tmp_path / "study.json").write_text('{"settings_digest": "of a summary"}')
    return tmp_path


def test_a_removed_setting_is_dropped_and_the_digest_is_of_the_rest(studies: Path) -> None:
    expected = {path: path.read_bytes() for path in studies.rglob("*.json")}
    older = studies / "study" / "older-0.json"
    write(studies / "elsewhere.json", trained())
    expected[older] = (studies / "elsewhere.json").read_bytes()
    (studies / "elsewhere.json").unlink()
    assert migrate_records(studies) == [older]
    assert {path: path.read_bytes() for path in studies.rglob("*.json")} == expected
    assert migrate_records(studies) == []


def test_a_record_of_what_no_training_does_any_longer_keeps_its_settings(studies: Path) -> None:
    place = studies / "study" / "hard-0.json"
    before = place.read_bytes()
    migrate_records(studies)
    assert place.read_bytes() == before


def test_a_digest_of_other_settings_is_made_anew(studies: Path) -> None:
    place = studies / "study" / "now-0.json"
    good = place.read_bytes()
    write_record(json.loads(good) | {"settings_digest": "of others"}, place)
    assert place in migrate_records(studies)
    assert place.read_bytes() == good


def test_the_command_says_how_many_it_rewrote(studies: Path, capsys) -> None:
    main(str(studies))
    main(str(studies))
    first, second = capsys.readouterr().out.splitlines()
    assert "1 record" in first and "0 records" in second


def test_the_committed_records_are_of_todays_settings(tmp_path: Path) -> None:
    shutil.copytree(asset_path("studies"), tmp_path / "studies")
    assert migrate_records(tmp_path / "studies") == []
    known = Profile("", "", None).as_dict()
    for path in sorted((tmp_path / "studies").glob("*/*.json")):
        profile = json.loads(path.read_text(encoding="utf-8"))["settings"]["profile"] or {}
        parts = [name for name, part in profile.items() if isinstance(part, dict)]
        strange = {f"{part}.{x}" for part in parts for x in profile[part].keys() - known[part]}
        if "_negatives-" in path.name:
            assert "student.hard_negatives" in strange
        else:
            assert (strange, profile.keys() - known.keys()) == (set(), set()), path
