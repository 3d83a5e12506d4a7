"""From rows of annotation files to captioned pictures: the part that all readers share."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dclip_kit.datasets.usable import Checks, UsableImages, sort_out


@dataclass(frozen=True)
class CaptionRow:
    """What one row of an annotation file says.

    Attributes:
        name: the picture's path below the folder of pictures.
        captions: its captions in this row, some perhaps empty.
        image_id: as in `CaptionedImages`.
    """

    name: str
    captions: tuple[str, ...]
    image_id: str = ""


@dataclass
class Annotations:
    """What annotation files say, row by row.

    Attributes:
        rows: the rows that can be understood.
        broken: reason by place ("captions.csv:7"), of the others.
        unusable: reason by path, of pictures that are left out already.
    """

    rows: list[CaptionRow] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    unusable: dict[Path, str] = field(default_factory=dict)

    def add(self, place: str, name: object, captions: object, image_id: str = "") -> None:
        """Takes a row, or notes why not."""
        texts = [captions] if isinstance(captions, str) or captions is None else captions
        if not isinstance(name, str) or not name.strip():
            self.broken[place] = f"expected the name of a picture, got {_shorten(name)}"
        elif not isinstance(texts, list) or not all(isinstance(t, str | None) for t in texts):
            self.broken[place] = f"expected captions as text, got {_shorten(captions)}"
        elif not all(is_text(text or "") for text in [name, *texts]):
            self.broken[place] = "expected UTF-8, got other bytes; convert the file to UTF-8"
        else:
            stripped = tuple((text or "").strip() for text in texts)
            self.rows.append(CaptionRow(name, stripped, image_id))


def is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8: no half characters, no bytes of another encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shorten(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def path_inside(folder: Path, name: str) -> Path:
    """The path of a name below a folder.

    Raises:
        ValueError: it leads out of the folder ("..", an absolute path, a link) or nowhere.
    """
    try:
        path = folder / name
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # loops of links, zero bytes in names
        raise ValueError(
            f"Expected a path below {folder}, got {_shorten(name)} ({error})."
        ) from error
    if not inside:
        raise ValueError(
            f"Expected a path below {folder}, but {_shorten(name)} leads out of it; name the "
            "folder that really holds the pictures."
        )
    return path


def gather(
    annotations: Annotations, images: Path, split: str, source: str, checks: Checks = "pictures"
) -> UsableImages:
    """Joins the rows of each picture, in the order of its first, and leaves out what is unusable.

    Args:
        annotations: rows; several may name one picture.
        images: the folder that their names are below.
        split: as in `CaptionedImages`.
        source: as in `CaptionedImages`.
        checks: as in `sort_out`.
    """
    groups: dict[Path, list[str]] = {}
    image_ids: dict[Path, str] = {}
    for row in annotations.rows:
        groups.setdefault(Path(row.name), []).extend(row.captions)
        image_ids[Path(row.name)] = image_ids.get(Path(row.name)) or row.image_id
    paths, names, outside = [], [], {}
    for name in groups:
        try:
            paths.append(path_inside(images, str(name)))
            names.append(name)
        except ValueError as error:
            outside[name] = str(error)
    ids = [image_ids[name] for name in names] if any(image_ids.values()) else []
    captions = [groups[name] for name in names]
    found = sort_out(paths, captions, split, source, ids, checks)
    unreadable = annotations.unusable | outside | found.unreadable
    return replace(found, unreadable=unreadable, broken_rows=dict(annotations.broken))


def find_images(candidates: Sequence[Path], names: Iterable[str]) -> Path:
    """The first of some folders that has one of the named pictures, else the first of them."""
    tried = [name for name, _ in zip(names, range(20), strict=False)]
    for folder in candidates:
        for name in tried:
            try:
                if path_inside(folder, name).is_file():
                    return folder
            except (ValueError, OSError):  # told with its reason when its turn comes
                continue
    return candidates[0]


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yields each line with its place ("results.csv:7"); bytes that are no UTF-8 fail `is_text`.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path.name}:{number}", line.rstrip("\n")
    except OSError as error:
        raise ValueError(_unread(path, error)) from error


def load_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: it cannot be read, or is no JSON.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(_unread(path, error)) from error


def parse_json(text: str) -> Any:
    """Reads JSON from a text.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(text)
    except RecursionError as error:  # brackets within brackets, thousands deep
        raise ValueError("nested too deeply") from error


def _unread(path: Path, error: Exception) -> str:
    return f"Expected to read {path}, but it failed ({error}); restore the file or name another."
