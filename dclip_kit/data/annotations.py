"""From rows of annotation files to captioned pictures: the part that all readers share."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dclip_kit.data.own_splits import SPLIT_OF, split_by_folder
from dclip_kit.data.pictures import count_links
from dclip_kit.data.usable import Checks, SplitsFrom, UsableImages, sort_out

_EXPECTED_SPLIT = f"expected a split ({', '.join(SPLIT_OF)})"


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """What one row of an annotation file says.

    Attributes:
        place: the row's ("captions.csv:7").
        name: the picture's path below the folder of pictures.
        captions: its captions in this row, some perhaps empty.
        image_id: as in `CaptionedImages`.
        split: as in `CaptionedImages`.
    """

    place: str
    name: str
    captions: tuple[str, ...]
    image_id: str
    split: str


@dataclass
class Annotations:
    """What annotation files say, row by row.

    Attributes:
        rows: the rows that can be understood.
        broken: reason by place ("captions.csv:7"), of the others.
        unusable: reason by path, of pictures that are left out already.
        splits_from: as in `UsableImages`, if a row has a split.
    """

    rows: list[CaptionRow] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    unusable: dict[Path, str] = field(default_factory=dict)
    splits_from: SplitsFrom = "column"

    def add(
        self,
        place: str,
        name: object,
        captions: object,
        image_id: str = "",
        split: object = None,
    ) -> None:
        """Takes a row, or notes why not."""
        word = split.strip().lower() if isinstance(split, str) else split
        texts = [captions] if isinstance(captions, str) or captions is None else captions
        if not isinstance(name, str) or not name.strip():
            self.broken[place] = f"expected the name of a picture, got {_shorten(name)}"
        elif not isinstance(texts, list) or not all(isinstance(t, str | None) for t in texts):
            self.broken[place] = f"expected captions as text, got {_shorten(captions)}"
        elif not all(is_text(text or "") for text in [name, *texts]):
            self.broken[place] = "expected UTF-8, got other bytes; convert the file to UTF-8"
        elif word not in (None, "", *SPLIT_OF):
            self.broken[place] = f"{_EXPECTED_SPLIT}, got {_shorten(split)}"
        else:
            stripped = tuple((text or "").strip() for text in texts)
            own = SPLIT_OF[str(word)] if word else ""
            self.rows.append(CaptionRow(place, name, stripped, image_id, own))


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
    """The path of a name below a folder; links that lie there may lead anywhere.

    Raises:
        ValueError: the name itself leads out of the folder ("..", an absolute path) or nowhere.
    """
    below = Path(name)
    if below.anchor:  # absolute; on Windows a drive alone, too
        roots = [
            each for each in (folder.absolute(), folder.resolve()) if below.is_relative_to(each)
        ]
        below = below.relative_to(roots[0]) if roots else Path("..")
    if ".." in below.parts or "\0" in name:
        raise ValueError(
            f"Expected a path below {folder}, but {_shorten(name)} leads out of it or has '..' in "
            "it; name the folder that holds the pictures, and write paths from there."
        )
    return folder / below


def gather(
    annotations: Annotations, images: Path, split: str, source: str, checks: Checks = "pictures"
) -> UsableImages:
    """Joins the rows of each picture, in the order of its first, and leaves out what is unusable.

    Where no row has a split, the folders train, val and test are the splits, if there are such.

    Args:
        annotations: rows; several may name one picture.
        images: the folder that their names are below.
        split: as in `CaptionedImages`.
        source: as in `CaptionedImages`.
        checks: as in `sort_out`.

    Raises:
        ValueError: some pictures lie in folders that are splits, and others do not.
    """
    broken, outside = dict(annotations.broken), dict[Path, str]()
    with_splits = any(row.split for row in annotations.rows)
    pictures: dict[Path, list[CaptionRow]] = {}
    for row in annotations.rows:
        if with_splits and not row.split:
            broken[row.place] = f"{_EXPECTED_SPLIT} as other rows have, got none"
            continue
        try:
            pictures.setdefault(path_inside(images, row.name), []).append(row)
        except ValueError as error:
            outside[Path(row.name)] = str(error)
    for path, (first, *others) in list(pictures.items()):
        if other := next((row for row in others if row.split != first.split), None):
            broken[other.place] = (
                f"expected one split a picture, got {first.split} ({first.place}) and "
                f"{other.split} for {_shorten(first.name)}, which is left out"
            )
            del pictures[path]
    paths, splits = list(pictures), [rows[0].split for rows in pictures.values()]
    if not with_splits:
        splits = split_by_folder(paths, images)
    ids = [next((row.image_id for row in rows if row.image_id), "") for rows in pictures.values()]
    found = sort_out(
        paths,
        [[caption for row in rows for caption in row.captions] for rows in pictures.values()],
        split,
        source,
        ids if any(ids) else (),
        checks,
        splits,
    )
    return replace(
        found,
        unreadable=annotations.unusable | outside | found.unreadable,
        broken_rows=broken,
        splits_from=annotations.splits_from if with_splits else "folders" if splits else "",
        linked=count_links(found.dataset.paths, images),
    )


def name_folder(folder: Path) -> str:
    """What to call the data of a folder."""
    return folder.resolve().name or "pictures"


def find_images(candidates: Sequence[Path], names: Iterable[str]) -> Path:
    """The first of some folders that has one of the named pictures, else the first of them."""
    tried = [name for name, _ in zip(names, range(20), strict=False)]
    for folder in candidates:
        for name in tried:
            try:
                if path_inside(folder, name).is_file():
                    return folder
            except (ValueError, OSError):  # said with its reason when its turn comes
                continue
    return candidates[0]


def read_lines(path: Path, called: str = "") -> Iterator[tuple[str, str]]:
    """Yields each line with its place ("results.csv:7"); bytes that are no UTF-8 fail `is_text`.

    Args:
        path: the file.
        called: what places call it; left out, its name.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{called or path.name}:{number}", line.rstrip("\n")
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
