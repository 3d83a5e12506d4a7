"""Names of files cannot steer a terminal; several processes speak with one voice."""

from pathlib import Path

import pytest

from dclip_kit.runtime import processes as distributed
from dclip_kit.runtime.printing import Steps, printable, say


def test_printable_escapes_control_characters() -> None:
    assert printable("é ß 漢.png") == "é ß 漢.png"
    assert printable("a\nb\x1b[0m\u202e") == "a\\nb\\x1b[0m\\u202e"
    assert printable(Path("bad\udcff.png")) == "bad\\udcff.png"


def test_say_prints_in_the_main_process_alone(capsys, monkeypatch) -> None:
    say("once")
    monkeypatch.setattr(distributed, "is_main_process", lambda: False)
    say("twice")
    assert capsys.readouterr().out == "once\n"


def test_steps_say_what_is_left_by_the_shares_of_those_done(capsys, monkeypatch) -> None:
    now = iter([100.0, 130.0, 130.0, 190.0, 190.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    steps = Steps({"draw": 1, "train": 2, "test": 3})
    steps.done("draw")  # a sixth of all took 30 seconds
    steps.done("train")
    first, second = capsys.readouterr().out.splitlines()
    assert first.split(maxsplit=1) == ["draw", "0:30 so far, about 2:30 to go"]
    assert second.split(maxsplit=1) == ["train", "1:30 so far, about 1:30 to go"]


def test_quiet_steps_print_nothing_and_unknown_ones_are_refused(capsys) -> None:
    steps = Steps({"draw": 1}, quiet=True)
    steps.done("draw")
    with pytest.raises(ValueError, match="out of draw, got 'train'"):
        steps.done("train")
    assert capsys.readouterr().out == "" and steps.seconds >= 0
