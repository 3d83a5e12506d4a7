"""Names of files cannot steer a terminal; several processes speak with one voice."""

from pathlib import Path

from dclip_kit.runtime import processes as distributed
from dclip_kit.runtime.printing import printable, say


def test_text_for_a_terminal_shows_what_it_holds() -> None:
    assert printable("é ß 漢.png") == "é ß 漢.png"
    assert printable("a\nb\x1b[0m\u202e") == "a\\nb\\x1b[0m\\u202e"
    assert printable(Path("bad\udcff.png")) == "bad\\udcff.png"


def test_one_process_speaks_for_all(capsys, monkeypatch) -> None:
    say("once")
    monkeypatch.setattr(distributed, "is_main_process", lambda: False)
    say("twice")
    assert capsys.readouterr().out == "once\n"
