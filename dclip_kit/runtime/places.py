"""Where files live: the embedded default in the package or repository; what is made of data."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def asset_path(*parts: str) -> Path:
    """Finds a file or folder of the embedded default.

    Looks first in the installed package (the wheel carries the assets as `dclip_kit/_assets`),
    then in the repository's `assets/`.

    Args:
        *parts: path below the assets folder, for example `"pocket_yolo", "config.json"`.

    Returns:
        The existing path.

    Raises:
        FileNotFoundError: if neither place has it.
    """
    candidates = [
        folder.joinpath(*parts) for folder in (_PACKAGE / "_assets", _PACKAGE.parent / "assets")
    ]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise FileNotFoundError(
        f"the embedded default {'/'.join(parts)!r} was expected at "
        f"{' or '.join(str(candidate) for candidate in candidates)} and is at neither; "
        "reinstall dclip_kit, or run `make pocket` in the repository to rebuild it."
    )


def cache_path(*parts: str) -> Path:
    """A place for what can be made again: below `DCLIP_CACHE`, else in the user's cache folder."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dclip_kit"
    return Path(os.environ.get("DCLIP_CACHE") or user).joinpath(*parts)
