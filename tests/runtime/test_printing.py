"""Names of files cannot steer a terminal; several processes speak with one voice."""

from pathlib import Path

from dclip_kit.runtime import processes as distributed
from dclip_kit.runtime.printing import printable, say


def test_printable_escapes_control_characters() -> None:
    assert printable("é ß 漢.png") == "é ß 漢.png"
    assert printable("a\nb\x1b[0m\u202e") == "a\\nb\\x1b[0m\\u202e"
    assert printable(Path("bad\udcff.png")) == "bad\\udcff.png"


def test_say_prints_in_the_main_process_alone(capsys, monkeypatch) -> None:
    say("once")
    monkeypatch.setattr(distributed, "is_main_process", lambda: False)
    say("twice")
    assert capsys.readouterr().out == "once\n"
