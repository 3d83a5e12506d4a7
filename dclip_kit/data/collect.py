"""Turns the rows of any format into captioned pictures, and lists what cannot be used."""

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

# How pictures are checked: each is read whole, or none is (evaluation data may have names without
# picture files).
Checks = Literal["pictures", "names"]
# Where the splits come from: a table's column, the pictures' folders, or the annotation file itself
# (Karpathy's, COCO's); "" where the data has none.
SplitsFrom = Literal["column", "folders", "file", ""]
_EXPECTED_SPLIT = f"expected a split ({', '.join(SPLIT_OF)})"


@dataclass(frozen=True)
class UsableImages:
    """A data set without what cannot be used, and a record of what was left out.

    Attributes:
        dataset: the readable pictures with their non-empty captions.
        unusable: reason by picture, or by place in an annotation file ("results.csv:19999").
        empty_captions: how many captions had no text.
        splits_from: where `dataset.splits` come from.
        linked: how many pictures of `dataset` lie outside the folder of pictures, reached by links.
    """

    dataset: CaptionedImages
    unusable: dict[str, str]
    empty_captions: int = 0
    splits_from: SplitsFrom = ""
    linked: int = 0


# A row, and the folder that its picture must be in; None where its path may lead anywhere.
PlacedRow = tuple[Row, Path | None]


def collect(
    rows: Sequence[PlacedRow],
    split: str,
    source: str,
    checks: Checks = "pictures",
    splits_from: SplitsFrom = "column",
) -> UsableImages:
    """Joins the rows of each picture, in order of first appearance, and drops what is unusable.

    Where no row has a split, folders called train, val and test decide, if there are any.

    Args:
        rows: several may name the same picture.
        split: the split to take, several joined by "+", or "all"; for data without splits, the
            name to give it.
        source: as in `CaptionedImages`.
        checks: as in `drop_unusable`.
        splits_from: where the rows' splits come from, if they have any.

    Raises:
        ValueError: there is no such split, or only some of the pictures lie in folders of splits.
    """
    unusable: dict[str, str] = {}
    clean_rows = []
    for row, root in rows:
        if problem := _find_problem(row):
            unusable[row.where] = problem
        else:
            clean_rows.append((_clean(row, unusable), root))
    with_splits = any(row.split for row, _ in clean_rows)
    roots = {str(root) for _, root in rows if root}
    images = Path(os.path.commonpath(roots)) if roots else None  # of all pictures
    rows_of = _join(clean_rows, with_splits, unusable)
    texts = {path: [c for row in group for c in row.captions] for path, group in rows_of.items()}
    splits = (
        [group[0].split for group in rows_of.values()]
        if with_splits
        else split_by_folder(list(rows_of), images or Path())
    )
    whole_dataset = CaptionedImages(
        tuple(rows_of),
        tuple(tuple(filter(None, group)) for group in texts.values()),
        split,
        source,
        tuple(next((r.image_id for r in group if r.image_id), "") for group in rows_of.values()),
        tuple(splits),
    )
    usable = drop_unusable(take_split(whole_dataset, split), checks)
    return replace(
        usable,
        unusable=unusable | usable.unusable,
        empty_captions=sum(texts[path].count("") for path in usable.dataset.paths),
        splits_from=splits_from if with_splits else "folders" if any(splits) else "",
        linked=count_links(usable.dataset.paths, images) if images else 0,
    )


def _find_problem(row: Row) -> str:
    """Why a row cannot be used; "" if it can."""
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
    """A row with a split of `SPLITS` and a list of captions, some of which may be empty."""
    stripped = [(text or "").strip() for text in _list_texts(row)]
    wordless = [text for text in stripped if text and not says_something(text)]
    if wordless:
        unusable[row.where] = (
            f"expected a caption that says something, got {reprlib.repr(wordless[0])}, in "
            "which CLIP's tokenizer reads nothing"
        )
    captions = [text for text in stripped if text not in wordless]
    return replace(row, captions=captions, split=SPLIT_OF.get(read_word(row.split), ""))


def _join(
    rows: Sequence[PlacedRow], with_splits: bool, unusable: dict[str, str]
) -> dict[Path, list[Row]]:
    """The rows of each picture by its path; notes rows without a usable path or a single split."""
    pictures: dict[Path, list[Row]] = {}
    for row, root in rows:
        if with_splits and not row.split:
            unusable[row.where] = "expected a split, as other rows have, got none"
            continue
        try:
            path = path_inside(root, row.picture) if root else Path(row.picture)
            pictures.setdefault(path, []).append(row)
        except ValueError as error:
            unusable[row.picture] = str(error)
    for path, (first, *later) in list(pictures.items()):
        if differing := next((row for row in later if row.split != first.split), None):
            unusable[differing.where] = (
                f"expected one split for a picture, got {first.split} ({first.where}) and "
                f"{differing.split} for {reprlib.repr(first.picture)}, which is left out"
            )
            del pictures[path]
    return pictures


def take_split(dataset: CaptionedImages, split: str) -> CaptionedImages:
    """The pictures of a split, as in `collect`.

    Raises:
        ValueError: there is no such split.
    """
    present = [name for name in SPLITS if name in dataset.splits]
    if split == "all" or not present:
        return dataset
    wanted = {SPLIT_OF.get(name, name) for name in split.split("+")}
    if not wanted <= set(present):
        raise ValueError(
            f"Expected a split of {dataset.source} ({', '.join(present)}), several joined by '+', "
            f"or all, got {split!r}; give another with --split (split= in Python)."
        )
    return dataset.select([i for i, name in enumerate(dataset.splits) if name in wanted])


def split_by_folder(paths: Sequence[Path], images: Path) -> list[str]:
    """The split of each picture: that of the first folder on its path named like a split.

    Folders called train alone are not splits: train may be a class (locomotives). Nor is a folder
    test further down, unless every picture is in such a folder (cat/train, dog/test).

    Returns:
        As `CaptionedImages.splits`; empty where no folder is val or test.

    Raises:
        ValueError: only some of the pictures lie in such folders.
    """
    names = [path.relative_to(images) for path in paths]
    folders = [tuple(part.lower() for part in name.parent.parts) for name in names]
    splits = [next((SPLIT_OF[x] for x in parts if x in SPLIT_OF), "") for parts in folders]
    if "" in splits:  # at the top, a mistake unless all are splits; further down, a mere name
        depth = len(Path(os.path.commonpath([name.parent for name in names])).parts)
        splits = [SPLIT_OF.get("".join(parts[depth : depth + 1]), "") for parts in folders]
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
    """Leaves out pictures that cannot be used, and says why.

    Args:
        dataset: its pictures may be missing or broken.
        checks: "pictures" reads every picture once, "names" reads none.
    """
    if checks == "names":
        return UsableImages(dataset, {})
    scans = zip(dataset.paths, scan_pictures(dataset.paths), strict=True)
    problems = {path: scan.problem for path, scan in scans if scan.problem}
    indices = [i for i, path in enumerate(dataset.paths) if path not in problems]
    return UsableImages(dataset.select(indices), {str(path): why for path, why in problems.items()})


def says_something(text: str) -> bool:
    """Whether CLIP's tokenizer reads words in a text: not blank, and no end token in front."""
    plain = html.unescape(html.unescape(text)).strip()
    if plain.lower().startswith("<end_of_text>"):
        return False
    if "\x1b" not in plain and any(map(str.isalnum, plain)):
        return True  # nearly all
    from open_clip.tokenizer import basic_clean  # takes seconds

    return bool(basic_clean(text).strip())


def list_reasons(reasons: Mapping[Any, str]) -> list[dict[str, str]]:
    """Reasons by picture or place, as JSON values that are safe to print."""
    return [{"path": printable(p), "reason": printable(why)} for p, why in reasons.items()]
