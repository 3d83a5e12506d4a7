"""Where the embedded default lives: inside an installed package, or in the repository."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


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
