"""From rows of annotation files to captioned pictures: the part that all readers share."""

import html
import json
import os
import re
import reprlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from dclip_kit.data.pictures import (
    SPLITS,
    CaptionedImages,
    count_links,
    scan_pictures,
)
from dclip_kit.runtime.files import open_file
from dclip_kit.runtime.printing import printable

# How closely pictures are looked at: read whole, or not at all (as for evaluation data whose names
# are known and whose pictures are not at hand).
Checks = Literal["pictures", "names"]
# What tells each picture's split: a column of a table, the folders that the pictures are in, or the
# annotation file, as Karpathy's and COCO's do; "" where nothing does.
SplitsFrom = Literal["column", "folders", "file", ""]
# What data sets call the splits; a folder or a column may say them in capitals.
SPLIT_OF = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Columns that usually say each picture's split, whatever stands between the words of their names.
_SPLIT_COLUMNS = ("split", "splits", "datasplit", "set", "subset", "partition", "fold")
# Columns that say what is in a picture: COCO has a class called train.
_LABEL_COLUMNS = ("label", "labels", "class", "classes", "category", "categories", "tag", "tags")
_MANY = 20  # different values: more than there are names of splits
_BOOLEANS = {"true", "false", "yes", "no", "0", "1", "0.0", "1.0"}
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
        unusable: as in `UsableImages`, of the others.
        splits_from: as in `UsableImages`, if a row has a split.
        not_splits: as in `UsableImages`.
    """

    rows: list[CaptionRow] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)
    splits_from: SplitsFrom = "column"
    not_splits: tuple[str, ...] = ()

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
            self.unusable[place] = f"expected the name of a picture, got {reprlib.repr(name)}"
        elif not isinstance(texts, list) or not all(isinstance(t, str | None) for t in texts):
            self.unusable[place] = f"expected captions as text, got {reprlib.repr(captions)}"
        elif not all(is_text(text or "") for text in [name, *texts]):
            self.unusable[place] = "expected UTF-8, got other bytes; convert the file to UTF-8"
        elif word not in (None, "", *SPLIT_OF):
            self.unusable[place] = f"{_EXPECTED_SPLIT}, got {reprlib.repr(split)}"
        else:
            stripped = [(text or "").strip() for text in texts]
            if silent := [text for text in stripped if text and not says_something(text)]:
                self.unusable[place] = (
                    f"expected a caption that says something, got {reprlib.repr(silent[0])}, of "
                    "which a tokenizer reads nothing"
                )
            read = tuple(text for text in stripped if text not in silent)
            self.rows.append(CaptionRow(place, name, read, image_id, SPLIT_OF.get(str(word), "")))

    def find_images(self, file: Path, *below: str) -> Path:
        """The folder that has one of the pictures, else the first that may.

        Args:
            file: pictures are looked for beside it and a folder further up.
            below: the folders there that may have them.
        """
        candidates = [place / each for place in (file.parent, file.parent.parent) for each in below]
        tried = [row.name for row in islice(self.rows, 20)]
        found = (each for each in candidates for name in tried if os.path.isfile(each / name))
        return next(found, candidates[0])


def gather(
    annotations: Annotations, images: Path, split: str, source: str, checks: Checks = "pictures"
) -> UsableImages:
    """Joins the rows of each picture, in the order of its first, and leaves out what is unusable.

    Where no row has a split, the folders train, val and test are the splits, if there are such.

    Args:
        annotations: rows; several may name one picture.
        images: the folder that their names are below.
        split: which part to take of data that have splits, or "all"; several are joined by "+".
            What to call the data of others.
        source: as in `CaptionedImages`.
        checks: as in `drop_unusable`.

    Raises:
        ValueError: there is no such split, or some pictures lie in folders that are splits, and
            others do not.
    """
    unusable = dict(annotations.unusable)
    with_splits = any(row.split for row in annotations.rows)
    pictures: dict[Path, list[CaptionRow]] = {}
    for row in annotations.rows:
        if with_splits and not row.split:
            unusable[row.place] = f"{_EXPECTED_SPLIT} as other rows have, got none"
            continue
        try:
            pictures.setdefault(path_inside(images, row.name), []).append(row)
        except ValueError as error:
            unusable[row.name] = str(error)
    for path, (first, *others) in list(pictures.items()):
        if other := next((row for row in others if row.split != first.split), None):
            unusable[other.place] = (
                f"expected one split a picture, got {first.split} ({first.place}) and "
                f"{other.split} for {reprlib.repr(first.name)}, which is left out"
            )
            del pictures[path]
    texts = {path: [c for row in rows for c in row.captions] for path, rows in pictures.items()}
    splits = (
        [rows[0].split for rows in pictures.values()]
        if with_splits
        else split_by_folder(list(pictures), images)
    )
    whole = CaptionedImages(
        tuple(pictures),
        tuple(tuple(filter(None, group)) for group in texts.values()),
        split,
        source,
        tuple(next((r.image_id for r in rows if r.image_id), "") for rows in pictures.values()),
        tuple(splits),
    )
    found = drop_unusable(take_split(whole, split), checks)
    return replace(
        found,
        unusable=unusable | found.unusable,
        empty_captions=sum(texts[path].count("") for path in found.dataset.paths),
        splits_from=annotations.splits_from if with_splits else "folders" if any(splits) else "",
        linked=count_links(found.dataset.paths, images),
        not_splits=annotations.not_splits,
    )


def find_split_column(
    rows: Sequence[tuple[str, Mapping[str, Any]]], file: Path, others: Collection[str] = ()
) -> tuple[str, tuple[str, ...]]:
    """Which column of a table says each picture's split.

    That is one with a usual name whose values are splits' names. What else looks as if it said
    splits is not passed over: it would put pictures into train that the file calls test.

    Args:
        rows: of the table, each with its place.
        file: to name in an error.
        others: columns that say something else.

    Returns:
        The column's name, "" if there is none; and the columns that are called like one of splits,
        and have other values.

    Raises:
        ValueError: a column of another name has splits' names alone, more than one, or is called
            like a test and says yes or no; or two columns say different splits.
    """
    words_of: dict[str, set[str]] = defaultdict(set)
    for _, row in rows:
        for column in row.keys() - {*others}:
            word = _read_word(row[column])
            if word and (word in SPLIT_OF or len(words_of[column]) < _MANY):
                words_of[column].add(word)
    called = {each: re.sub(r"[\W_]+", "", each.lower()) for each in words_of}
    usual = [c for name in _SPLIT_COLUMNS for c in sorted(words_of) if called[c] == name]
    splits = {column: words for column, words in words_of.items() if words <= SPLIT_OF.keys()}

    def is_split(column: str) -> bool:
        held_out = {SPLIT_OF.get(word) for word in words_of[column]} & {"val", "test"}
        return called[column] == "split" or column in splits or bool(held_out)

    def agree(column: str) -> bool:
        both = ([SPLIT_OF.get(_read_word(row.get(c))) for c in (column, chosen)] for _, row in rows)
        return all(one == other for one, other in both)

    chosen = next(filter(is_split, usual), "")
    for column, words in splits.items():
        one_class = called[column] in _LABEL_COLUMNS or {SPLIT_OF[w] for w in words} == {"train"}
        if column == chosen or one_class or len(words) < 2 or agree(column):
            continue
        raise ValueError(
            f"Expected the splits of {file} in a column called split, got {column!r} with "
            f"{', '.join(sorted(words))}{f', and others in {chosen!r}' if chosen else ''}; call it "
            "split if it says what to train and to test on, or leave it out."
        )
    for column, words in words_of.items():
        asks = {"test", "testing", "train", "training"} & {*re.split(r"[\W_]+", column.lower())}
        if words <= _BOOLEANS and asks and not chosen:
            raise ValueError(
                f"Expected the splits of {file} in a column called split with train, val and test, "
                f"got {column!r} with {', '.join(sorted(words))}; write such a column in its "
                "place, or leave it out if it says something else."
            )
    return chosen, tuple(c for c in usual if c != chosen and c not in splits)


def _read_word(value: Any) -> str:
    """A cell as it is compared with splits' names."""
    return "" if value is None else str(value).strip().lower()


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


def is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8: no half characters, no bytes of another encoding."""
    return text.encode(errors="ignore").decode() == text


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
            f"Expected a path below {folder}, but {reprlib.repr(name)} leads out of it or has '..' "
            "in it; name the folder that holds the pictures, and write paths from there."
        )
    return folder / below


def find_files(path: Path, *patterns: str, in_splits: bool = False) -> list[Path]:
    """The file itself, or a folder's files of these patterns.

    Args:
        path: a file or folder.
        patterns: of files in the folder.
        in_splits: whether, where there is none, to look for those of the last pattern in its
            folders that are called like splits.
    """
    if not path.is_dir():
        return [path]
    own = [file for pattern in patterns for file in sorted(path.glob(pattern))]
    below = sorted(path.glob(f"*/{patterns[-1]}")) if in_splits else []
    return own or [file for file in below if file.parent.name.lower() in SPLIT_OF]


def find_file(path: Path, *patterns: str) -> Path:
    """The file itself, or a folder's only file of these patterns.

    Raises:
        ValueError: the folder has none, or several.
    """
    files = find_files(path, *patterns)
    if len(files) != 1:
        raise ValueError(
            f"Expected one file {' or '.join(patterns)} in {path}, got "
            f"{', '.join(file.name for file in files) or 'none'}; name the file."
        )
    return files[0]


def read_lines(path: Path, called: str = "") -> Iterator[tuple[str, str]]:
    """Yields each line with its place ("results.csv:7"); bytes that are no UTF-8 fail `is_text`.

    Args:
        path: the file.
        called: what places call it; left out, its name.
    """
    with open_file(path, "r", encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{called or path.name}:{number}", line.rstrip("\n")


def load_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: it cannot be read, or is no JSON.
    """
    try:
        with open_file(path, "r", encoding="utf-8-sig") as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError) as error:  # brackets, thousands deep
        raise ValueError(
            f"Expected to read {path}, but it failed ({error}); restore the file or name another."
        ) from error


def list_reasons(reasons: Mapping[Any, str]) -> list[dict[str, str]]:
    """Reasons by picture or place as JSON values that a terminal may show."""
    return [{"path": printable(p), "reason": printable(why)} for p, why in reasons.items()]
