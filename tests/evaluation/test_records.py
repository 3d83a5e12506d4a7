"""Records beside results: whole, or refused in a sentence."""

import json

import pytest

from dclip_kit.evaluation.records import read_record, write_record


def test_a_record_is_read_as_it_was_written(tmp_path) -> None:
    path = tmp_path / "deep" / "record.json"
    write_record({"α": [1, None]}, path)
    assert read_record(path, dict) == json.loads(path.read_text()) == {"α": [1, None]}
    with pytest.raises(FileNotFoundError, match=r"Expected a record at .*none\.json"):
        read_record(tmp_path / "none.json", dict)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"seconds": "x"}', '{"seconds": null}'])
def test_a_damaged_record_is_named(content, tmp_path) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"Expected .*record\.json") as caught:
        read_record(path, lambda record: float(record["seconds"]))
    assert "\n" not in str(caught.value)
