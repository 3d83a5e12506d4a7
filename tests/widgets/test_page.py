"""What widgets' pages share, and pictures that somebody gives."""

import pytest
from PIL import Image

from dclip_kit.data import open_picture
from dclip_kit.widgets.page import MOST_BYTES, open_given, read_page

NAMES = ("gallery", "inspector", "playground")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_what_all_share_and_its_own(name) -> None:
    script, styles = read_page(name)
    shared = script.index("function make(")
    assert shared < script.index("function render(") < script.index("export default")
    assert styles.index(".dclip-widget") < styles.index(f".dclip-{name}")
    assert "makeRoot(" in script and f'"dclip-{name}"' in script
    # JupyterLab takes keys for itself, but from elements that say so.
    assert "data-lm-suppress-shortcuts" in script


@pytest.mark.parametrize("name", NAMES)
def test_a_page_writes_no_html(name) -> None:
    """Whatever somebody else wrote becomes a text node or an attribute."""
    script, _ = read_page(name)
    assert "textContent" in script
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"):
        assert way not in script


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
