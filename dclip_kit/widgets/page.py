"""What of a widget runs in the page: plain JavaScript and CSS beside the Python."""

import base64
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from dclip_kit.data import open_picture

MOST_BYTES = 20 << 20  # of a picture that somebody gives


def read_page(name: str) -> tuple[str, str]:
    """A widget's script and styles, each behind those that all widgets share."""
    folder = resources.files(__package__)
    script, styles = (
        "\n".join(folder.joinpath(f"{part}.{ending}").read_text("utf-8") for part in parts)
        for ending, parts in (("js", ("elements", name)), ("css", ("elements", name)))
    )
    return script, styles


def open_given(picture: bytes | Path | str) -> Image.Image:
    """Reads a picture that somebody gave.

    Args:
        picture: its file, or what is in it.

    Raises:
        ValueError: it is too large, or no picture.
    """
    content = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
    if len(content) > MOST_BYTES:
        raise ValueError(
            f"Expected a picture of at most {MOST_BYTES >> 20} MB, got {len(content) >> 20}; take "
            "a smaller one."
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "picture")
        path.write_bytes(content)
        return open_picture(path)


def add_still(bundle: Any, jpeg: bytes, said: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A widget's mimebundle with a picture and a sentence, for readers who have no kernel."""
    data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
    still = {"image/jpeg": base64.b64encode(jpeg).decode("ascii"), "text/plain": said}
    return data | still, metadata
