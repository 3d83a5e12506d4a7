"""What a person reads of a report on data."""

from collections.abc import Iterator, Sequence
from typing import Any

from dclip_kit.runtime.printing import printable

_SHOWN = 10  # of a list; the report has all


def summarize(report: dict[str, Any], compared: bool) -> Iterator[str]:
    """The lines of a report by `inspect_data` that a person reads.

    Args:
        report: what it returned.
        compared: whether evaluation sets were given.
    """
    pictures, captions = report["pictures"], report["captions"]
    yield f"Format: {report['format']}"
    yield f"Pictures: {pictures['usable']:,} usable, {len(pictures['unusable']):,} unusable"
    yield from _list([f"{each['path']}: {each['reason']}" for each in pictures["unusable"]])
    yield (
        f"Captions: {captions['usable']:,} usable ({captions['truncated']:,} of them longer than "
        f"CLIP's 77 tokens), {captions['empty']:,} empty"
    )
    splits = report["splits"]
    origin = {"digest": "a digest of the files", "file": "the data set's own files"}
    origin |= {"column": "a column", "folders": "folders"}
    counts = ", ".join(f"{split} {splits[split]:,}" for split in ("train", "val", "test"))
    yield f"Splits, from {origin[splits['from']]}: {counts}"
    if report["linked"]:
        yield f"Links out of the folder were followed to {report['linked']:,} pictures"
    yield f"Duplicates: {len(report['duplicates']):,} groups of equal pictures"
    yield from _list([" = ".join(group) for group in report["duplicates"]])
    if compared:
        yield f"Leaks: {len(report['leaks']):,} pictures that are evaluation pictures too"
        twins = ((leak["picture"], leak["evaluation"], leak["by"]) for leak in report["leaks"])
        yield from _list([f"{picture} is {other}, {by}" for picture, other, by in twins])


def _list(lines: Sequence[str]) -> Iterator[str]:
    yield from (f"  {printable(line)}" for line in lines[:_SHOWN])
    if len(lines) > _SHOWN:
        yield f"  … and {len(lines) - _SHOWN:,} more; --json FILE has all"
