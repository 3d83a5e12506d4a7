"""Finds the column of a table with each picture's split, and knows the names of splits."""

import re
import warnings
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dclip_kit.runtime.printing import printable

# What data sets call the splits; case does not matter.
SPLIT_OF = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Usual names of a split column, compared without what separates their words.
_SPLIT_COLUMNS = ("split", "splits", "datasplit", "set", "subset", "partition", "fold")
# Columns that say what is in a picture: COCO has a class called train.
_LABEL_COLUMNS = ("label", "labels", "class", "classes", "category", "categories", "tag", "tags")
_MANY = 20  # different values, more than there are names of splits
_BOOLEANS = {"true", "false", "yes", "no", "0", "1", "0.0", "1.0"}


def names_split(column: str) -> bool:
    """Whether a column has one of the usual names of those with splits."""
    return _plain(column) in _SPLIT_COLUMNS


def _plain(column: str) -> str:
    return re.sub(r"[\W_]+", "", column.lower())


def find_split_column(
    rows: Sequence[Mapping[str, Any]], file: Path, known: Collection[str] = ()
) -> str:
    """Finds the column of a table with each picture's split.

    It has a usual name, and names of splits as its values; a warning tells of columns with a usual
    name and other values. Another column that may hold splits is an error: to ignore it could put
    pictures into train that the file calls test.

    Args:
        rows: of the table.
        file: to name in an error.
        known: columns known to hold something else.

    Returns:
        The column's name; "" if there is none.

    Raises:
        ValueError: a column without a usual name holds two or more names of splits and nothing
            else, or is named after a split and holds yes or no; or two columns disagree.
    """
    words_of: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for column in row.keys() - {*known}:
            word = read_word(row[column])
            if word and (word in SPLIT_OF or len(words_of[column]) < _MANY):
                words_of[column].add(word)
    plain = {column: _plain(column) for column in words_of}
    candidates = [c for name in _SPLIT_COLUMNS for c in sorted(words_of) if plain[c] == name]
    splits = {column: words for column, words in words_of.items() if words <= SPLIT_OF.keys()}

    def is_split(column: str) -> bool:
        held_out = {SPLIT_OF.get(word) for word in words_of[column]} & {"val", "test"}
        return plain[column] == "split" or column in splits or bool(held_out)

    def agree(column: str) -> bool:
        pairs = ([SPLIT_OF.get(read_word(row.get(c))) for c in (column, chosen)] for row in rows)
        return all(first == second for first, second in pairs)

    chosen = next(filter(is_split, candidates), "")
    for column, words in splits.items():
        one_class = plain[column] in _LABEL_COLUMNS or {SPLIT_OF[w] for w in words} == {"train"}
        if column == chosen or one_class or len(words) < 2 or agree(column):
            continue
        raise ValueError(
            f"Expected the splits of {file} in a column called split, got {column!r} with "
            f"{', '.join(sorted(words))}{f', and others in {chosen!r}' if chosen else ''}; call it "
            "split if it says what to train and to test on, or leave it out."
        )
    for column, words in words_of.items():
        name_words = {*re.split(r"[\W_]+", column.lower())}
        names_split = name_words & {"test", "testing", "train", "training"}
        if words <= _BOOLEANS and names_split and not chosen:
            raise ValueError(
                f"Expected the splits of {file} in a column called split with train, val and test, "
                f"got {column!r} with {', '.join(sorted(words))}; replace it by such a column, "
                "or leave it out if it says something else."
            )
    if others := [c for c in candidates if c != chosen and c not in splits]:
        warnings.warn(
            f"Not taken for splits in {printable(file)}, as its values are no names of splits: "
            f"{printable(', '.join(others))}.",
            stacklevel=2,
        )
    return chosen


def read_word(value: Any) -> str:
    """A cell's text, normalised to be compared with names of splits."""
    return "" if value is None else str(value).strip().lower()
