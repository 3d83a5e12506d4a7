"""A look at data before training: what is usable, what is twice, and what leaks."""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dclip_kit.data.annotations import UsableImages, list_reasons
from dclip_kit.data.images import SPLITS, CaptionedImages
from dclip_kit.data.leaks import LeakReport, find_leaks
from dclip_kit.data.read import read_format, recognise_format, require_readable
from dclip_kit.data.scan import scan_pictures
from dclip_kit.data.splits import assign_splits, read_evaluation
from dclip_kit.runtime.printing import printable

_CONTEXT = 77  # tokens of CLIP, the start's and the end's among them
_MOST_LINES = 10  # of a list; the report has all
_ORIGINS = {
    "digest": "a digest of the files",
    "file": "the data set's own files",
    "column": "a column",
    "folders": "folders",
}


def inspect_data(
    path: Path | str,
    images: Path | str | None = None,
    format: str | None = None,
    against: Sequence[CaptionedImages | Path | str] = (),
) -> dict[str, Any]:
    """Looks at a data set, all its splits, and reports what training could not use.

    Args:
        path: as in `read_captioned`.
        images: as in `read_captioned`.
        format: as in `read_captioned`.
        against: evaluation sets. A path stands for the splits val and test where the format has
            them, and for all of it where it has not; its pictures may be missing.

    Returns:
        JSON values: `format`; `pictures` with the count `usable` and the list `unusable` of path
        and reason (rows that name no usable picture among them, by their place in the file);
        `captions` with the counts `usable`, `empty` and, of the usable ones, `truncated`: longer
        than CLIP's 77 tokens; `splits`, how many usable pictures with captions training would put
        into train, val and test, and by what ("from": column, folders, file, or digest where the
        data says nothing); `linked`, how many pictures are links out of the data's folder;
        `duplicates`, groups of paths with equal pixels; `leaks`, of picture, evaluation and by.
        Pictures that leaks could only be looked for by name are told in a warning, and so are
        splits that have to be drawn from the data's own train.

    Raises:
        ValueError: the format is unknown or not recognised, or an evaluation set cannot be read.
        ModuleNotFoundError: imagehash is needed and not installed.
    """
    format = format or recognise_format(path)
    require_readable(path, images, format)
    evaluation = [
        each if isinstance(each, CaptionedImages) else read_evaluation(each) for each in against
    ]
    try:
        found = read_format(path, images, format, "all", "pictures")
    except ValueError as error:  # the file as a whole cannot be used
        found = UsableImages(CaptionedImages((), (), "all", str(path)), {str(path): str(error)})
    dataset = found.dataset
    groups: dict[str, list[str]] = {}
    for place, scan in zip(dataset.paths, scan_pictures(dataset.paths), strict=True):
        groups.setdefault(scan.pixels, []).append(printable(place))
    guard = find_leaks(dataset, evaluation) if evaluation else LeakReport((), {})
    if guard.not_compared:
        first, why = next(iter(guard.not_compared.items()))
        warnings.warn(
            f"{len(guard.not_compared)} pictures were compared by name and not by content; the "
            f"first is {printable(first)}: {printable(why)}",
            stacklevel=2,
        )
    return {
        "format": format,
        "pictures": {"usable": len(dataset), "unusable": list_reasons(found.unusable)},
        "captions": {
            "usable": len(dataset.texts),
            "empty": found.empty_captions,
            "truncated": count_truncated(dataset.texts),
        },
        "splits": _count_splits(found),
        "linked": found.linked,
        "duplicates": [group for group in groups.values() if len(group) > 1],
        "leaks": [leak.as_dict() for leak in guard.leaks],
    }


def count_truncated(captions: Sequence[str]) -> int:
    """How many captions are longer than CLIP's context, by open_clip's default tokenizer."""
    from open_clip import SimpleTokenizer  # takes seconds, and reading data needs none of it

    tokenizer = SimpleTokenizer()
    return sum(
        count
        for caption, count in Counter(captions).items()
        # A token has at least one byte: most captions are short enough without asking.
        if len(caption.encode()) > _CONTEXT - 2 and len(tokenizer.encode(caption)) > _CONTEXT - 2
    )


def _count_splits(found: UsableImages) -> dict[str, Any]:
    captioned = [i for i, captions in enumerate(found.dataset.captions) if captions]
    found = replace(found, dataset=found.dataset.select(captioned))
    splits = assign_splits(found)
    counts = {split: splits.count(split) for split in SPLITS}
    both = zip(found.dataset.splits, splits, strict=True)
    drawn = {split for own, split in both if own == "train"} - {"train"}
    if drawn:
        there = ", ".join(f"{split} {counts[split]:,}" for split in SPLITS if split in drawn)
        warnings.warn(
            f"Drawn from the data's own train, since it has no such split: {there}.", stacklevel=3
        )
    return {"from": found.splits_from or "digest", **counts}


def summarize(report: dict[str, Any], compared: bool) -> Iterator[str]:
    """The lines of a report by `inspect_data` that a person reads.

    Args:
        report: what it returned.
        compared: whether evaluation sets were given.
    """
    pictures, captions, splits = report["pictures"], report["captions"], report["splits"]
    yield f"Format: {report['format']}"
    yield f"Pictures: {pictures['usable']:,} usable, {len(pictures['unusable']):,} unusable"
    yield from _list_some([f"{each['path']}: {each['reason']}" for each in pictures["unusable"]])
    yield (
        f"Captions: {captions['usable']:,} usable ({captions['truncated']:,} of them longer than "
        f"CLIP's 77 tokens), {captions['empty']:,} empty"
    )
    counts = ", ".join(f"{split} {splits[split]:,}" for split in SPLITS)
    yield f"Splits, from {_ORIGINS[splits['from']]}: {counts}"
    if report["linked"]:
        yield f"Links out of the folder were followed to {report['linked']:,} pictures"
    yield f"Duplicates: {len(report['duplicates']):,} groups of equal pictures"
    yield from _list_some([" = ".join(group) for group in report["duplicates"]])
    if compared:
        yield f"Leaks: {len(report['leaks']):,} pictures that are evaluation pictures too"
        yield from _list_some(
            ["{picture} is {evaluation}, {by}".format(**leak) for leak in report["leaks"]]
        )


def _list_some(lines: Sequence[str]) -> Iterator[str]:
    yield from (f"  {printable(line)}" for line in lines[:_MOST_LINES])
    if len(lines) > _MOST_LINES:
        yield f"  … and {len(lines) - _MOST_LINES:,} more; --json FILE has all"
