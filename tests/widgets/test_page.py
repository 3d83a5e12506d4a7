"""What widgets' pages share, and pictures that somebody gives."""

from pathlib import Path

import pytest
from PIL import Image

from dclip_kit.data import open_picture
from dclip_kit.widgets import page
from dclip_kit.widgets.page import MOST_BYTES, open_given


def test_a_page_writes_no_html() -> None:
    """Whatever somebody else wrote becomes a text node or an attribute."""
    scripts = sorted(Path(page.__file__).parent.glob("*.js"))
    assert len(scripts) > 4
    for script in scripts:
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert way not in script.read_text("utf-8"), script


def test_a_given_picture_is_read_from_its_file_or_its_content(tmp_path) -> None:
    file = tmp_path / "own.png"
    Image.new("RGBA", (30, 20), (0, 90, 0, 128)).save(file)
    expected = open_picture(file)
    for given in (file, str(file), file.read_bytes()):
        assert open_given(given).tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match="whole picture"):
        open_given(b"nothing")
    with pytest.raises(ValueError, match=f"at most {MOST_BYTES >> 20} MB, got 21"):
        open_given(bytes(21 << 20))
