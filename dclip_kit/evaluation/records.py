"""JSON beside results: written whole, and refused in a sentence where it is damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from dclip_kit.data.annotations import load_json
from dclip_kit.runtime.files import write_atomically

Built = TypeVar("Built")


def write_record(record: Any, path: Path | str) -> None:
    """Writes JSON values into a file, atomically."""
    write_atomically(Path(path), json.dumps(record, indent=1) + "\n")


def read_record(path: Path, build: Callable[[Any], Built]) -> Built:
    """Builds something from the JSON values in a file.

    Args:
        path: the file.
        build: from the values; what it raises says that they are of another form.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected a record at {path}, found no file; name another place.")
    record = load_json(path)
    try:
        return build(record)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected {path} as it was written, but it is damaged ({type(error).__name__}: "
            f"{error}); restore it."
        ) from error
