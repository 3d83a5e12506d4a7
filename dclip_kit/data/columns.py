"""Which column of a table says each picture's split, and what splits are called."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

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


def find_split_column(
    rows: Sequence[Mapping[str, Any]], file: Path, others: Collection[str] = ()
) -> tuple[str, tuple[str, ...]]:
    """Which column of a table says each picture's split.

    That is one with a usual name whose values are splits' names. What else looks as if it said
    splits is not passed over: it would put pictures into train that the file calls test.

    Args:
        rows: of the table.
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
    for row in rows:
        for column in row.keys() - {*others}:
            word = read_word(row[column])
            if word and (word in SPLIT_OF or len(words_of[column]) < _MANY):
                words_of[column].add(word)
    called = {each: re.sub(r"[\W_]+", "", each.lower()) for each in words_of}
    usual = [c for name in _SPLIT_COLUMNS for c in sorted(words_of) if called[c] == name]
    splits = {column: words for column, words in words_of.items() if words <= SPLIT_OF.keys()}

    def is_split(column: str) -> bool:
        held_out = {SPLIT_OF.get(word) for word in words_of[column]} & {"val", "test"}
        return called[column] == "split" or column in splits or bool(held_out)

    def agree(column: str) -> bool:
        both = ([SPLIT_OF.get(read_word(row.get(c))) for c in (column, chosen)] for row in rows)
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


def read_word(value: Any) -> str:
    """A cell as it is compared with splits' names."""
    return "" if value is None else str(value).strip().lower()
