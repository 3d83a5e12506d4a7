"""The one collector: rows of any format become captioned pictures; what is unusable is named."""

import html
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dclip_kit.data.columns import SPLIT_OF, read_word
from dclip_kit.data.paths import is_text, path_inside
from dclip_kit.data.pictures import SPLITS, CaptionedImages, count_links, scan_pictures
from dclip_kit.data.readers import Row
from dclip_kit.runtime.printing import printable

# How closely pictures are looked at: read whole, or not at all (as for evaluation data whose names
# are known and whose pictures are not at hand).
Checks = Literal["pictures", "names"]
# What tells each picture's split: a column of a table, the folders that the pictures are in, or the
# annotation file, as Karpathy's and COCO's do; "" where nothing does.
SplitsFrom = Literal["column", "folders", "file", ""]
_EXPECTED_SPLIT = f"expected a split ({', '.join(SPLIT_OF)})"


@dataclass(frozen=True)
class UsableImages:
    """What is left after leaving out what cannot be used, and what was left out.

    Attributes:
        dataset: pictures that can be read, with their captions that have text.
        unusable: reason by picture, or by place in an annotation file ("results.csv:19999").
        empty_captions: how many captions had no text.
        splits_from: where `dataset.splits` come from.
        linked: how many pictures of `dataset` lie outside the folder of pictures, which has links
            to them.
        not_splits: columns that are called as if they said splits, and do not.
    """

    dataset: CaptionedImages
    unusable: dict[str, str]
    empty_captions: int = 0
    splits_from: SplitsFrom = ""
    linked: int = 0
    not_splits: tuple[str, ...] = ()


# A row, and the folder that its picture's path is below; None where that leads anywhere.
PlacedRow = tuple[Row, Path | None]


def collect(
    rows: Sequence[PlacedRow],
    split: str,
    source: str,
    checks: Checks = "pictures",
    splits_from: SplitsFrom = "column",
) -> UsableImages:
    """Joins the rows of each picture, in the order of its first, and leaves out what is unusable.

    Where no row has a split, the folders train, val and test are the splits, if there are such.

    Args:
        rows: of which several may name one picture.
        split: which part to take of data that have splits, or "all"; several are joined by "+".
            What to call the data of others.
        source: as in `CaptionedImages`.
        checks: as in `drop_unusable`.
        splits_from: what the splits of rows come from, if they have any.

    Raises:
        ValueError: there is no such split, or some pictures lie in folders that are splits, and
            others do not.
    """
    unusable: dict[str, str] = {}
    judged = []
    for row, root in rows:
        if problem := _find_problem(row):
            unusable[row.where] = problem
        else:
            judged.append((_clean(row, unusable), root))
    with_splits = any(row.split for row, _ in judged)
    roots = {str(root) for _, root in rows if root}
    images = Path(os.path.commonpath(roots)) if roots else None  # of all pictures
    pictures = _join(judged, with_splits, unusable)
    texts = {path: [c for row in own for c in row.captions] for path, own in pictures.items()}
    splits = (
        [own[0].split for own in pictures.values()]
        if with_splits
        else split_by_folder(list(pictures), images or Path())
    )
    whole = CaptionedImages(
        tuple(pictures),
        tuple(tuple(filter(None, group)) for group in texts.values()),
        split,
        source,
        tuple(next((r.image_id for r in own if r.image_id), "") for own in pictures.values()),
        tuple(splits),
    )
    found = drop_unusable(take_split(whole, split), checks)
    return replace(
        found,
        unusable=unusable | found.unusable,
        empty_captions=sum(texts[path].count("") for path in found.dataset.paths),
        splits_from=splits_from if with_splits else "folders" if any(splits) else "",
        linked=count_links(found.dataset.paths, images) if images else 0,
        not_splits=tuple(dict.fromkeys(name for row, _ in rows for name in row.not_splits)),
    )


def _find_problem(row: Row) -> str:
    """Why nothing can be made of a row; nothing where something can."""
    texts, word = _list_texts(row), read_word(row.split)
    if row.problem:
        return row.problem
    if not isinstance(row.picture, str) or not row.picture.strip():
        return f"expected the name of a picture, got {reprlib.repr(row.picture)}"
    if not isinstance(texts, list) or not all(isinstance(text, str | None) for text in texts):
        return f"expected captions as text, got {reprlib.repr(row.captions)}"
    if not all(is_text(text or "") for text in [row.picture, *texts]):
        return "expected UTF-8, got other bytes; convert the file to UTF-8"
    if word and word not in SPLIT_OF:
        return f"{_EXPECTED_SPLIT}, got {reprlib.repr(row.split)}"
    return ""


def _list_texts(row: Row) -> Any:
    return [row.captions] if isinstance(row.captions, str | None) else row.captions


def _clean(row: Row, unusable: dict[str, str]) -> Row:
    """A row with its split by our word and its captions as a list, of which some may be empty."""
    stripped = [(text or "").strip() for text in _list_texts(row)]
    silent = [text for text in stripped if text and not says_something(text)]
    if silent:
        unusable[row.where] = (
            f"expected a caption that says something, got {reprlib.repr(silent[0])}, of which a "
            "tokenizer reads nothing"
        )
    captions = [text for text in stripped if text not in silent]
    return replace(row, captions=captions, split=SPLIT_OF.get(read_word(row.split), ""))


def _join(
    rows: Sequence[PlacedRow], with_splits: bool, unusable: dict[str, str]
) -> dict[Path, list[Row]]:
    """The rows of each picture, by its path; notes what has no place or two splits."""
    pictures: dict[Path, list[Row]] = {}
    for row, root in rows:
        if with_splits and not row.split:
            unusable[row.where] = f"{_EXPECTED_SPLIT} as other rows have, got none"
            continue
        try:
            path = path_inside(root, row.picture) if root else Path(row.picture)
            pictures.setdefault(path, []).append(row)
        except ValueError as error:
            unusable[row.picture] = str(error)
    for path, (first, *others) in list(pictures.items()):
        if other := next((row for row in others if row.split != first.split), None):
            unusable[other.where] = (
                f"expected one split a picture, got {first.split} ({first.where}) and "
                f"{other.split} for {reprlib.repr(first.picture)}, which is left out"
            )
            del pictures[path]
    return pictures


def take_split(dataset: CaptionedImages, split: str) -> CaptionedImages:
    """The pictures of a split, as in `gather`.

    Raises:
        ValueError: there is no such split.
    """
    there = [each for each in SPLITS if each in dataset.splits]
    if split == "all" or not there:
        return dataset
    wanted = {SPLIT_OF.get(each, each) for each in split.split("+")}
    if not wanted <= set(there):
        raise ValueError(
            f"Expected a split that pictures of {dataset.source} are of ({', '.join(there)}), some "
            f"joined by '+', or all, got {split!r}; give another with --split (split= in Python)."
        )
    return dataset.select([i for i, own in enumerate(dataset.splits) if own in wanted])


def split_by_folder(paths: Sequence[Path], images: Path) -> list[str]:
    """The split of each picture, by the first folder on its way that is called like one.

    A folder train alone is no split: it may be a class of locomotives. Neither is a folder test
    somewhere further down, unless every picture is in such a folder (cat/train, dog/test).

    Returns:
        As `CaptionedImages.splits`: nothing where no folder is val or test.

    Raises:
        ValueError: some pictures lie in such folders, and others do not.
    """
    names = [path.relative_to(images) for path in paths]
    folders = [tuple(each.lower() for each in name.parent.parts) for name in names]
    splits = [next((SPLIT_OF[each] for each in on if each in SPLIT_OF), "") for on in folders]
    if "" in splits:  # beside folders of splits others are a mistake; further down it is a name
        depth = len(Path(os.path.commonpath([name.parent for name in names])).parts)
        splits = [SPLIT_OF.get("".join(on[depth : depth + 1]), "") for on in folders]
    if not {"val", "test"} & set(splits):
        return []
    if "" in splits:
        raise ValueError(
            f"Expected all pictures of {images} in folders of splits or none, got "
            f"{splits.count('')} of {len(splits)} elsewhere (the first, "
            f"{str(names[splits.index('')])!a}); move them into train, val or test, or give a "
            "captions.csv with a column split."
        )
    return splits


def drop_unusable(dataset: CaptionedImages, checks: Checks = "pictures") -> UsableImages:
    """Leaves out pictures that cannot be used, with their reasons.

    Args:
        dataset: of which pictures may be missing or broken.
        checks: "pictures" reads every picture once, "names" takes them as they are.
    """
    if checks == "names":
        return UsableImages(dataset, {})
    scans = zip(dataset.paths, scan_pictures(dataset.paths), strict=True)
    problems = {path: scan.problem for path, scan in scans if scan.problem}
    kept = [i for i, path in enumerate(dataset.paths) if path not in problems]
    return UsableImages(dataset.select(kept), {str(path): why for path, why in problems.items()})


def says_something(text: str) -> bool:
    """Whether CLIP's tokenizer reads anything of a text: it is not blank, nor ended at once."""
    plain = html.unescape(html.unescape(text)).strip()
    if plain.lower().startswith("<end_of_text>"):
        return False
    if "\x1b" not in plain and any(map(str.isalnum, plain)):
        return True  # nearly all
    from open_clip.tokenizer import basic_clean  # takes seconds

    return bool(basic_clean(text).strip())


def list_reasons(reasons: Mapping[Any, str]) -> list[dict[str, str]]:
    """Reasons by picture or place as JSON values that a terminal may show."""
    return [{"path": printable(p), "reason": printable(why)} for p, why in reasons.items()]
