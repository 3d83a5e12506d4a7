"""A look at data before training: what is usable, what is twice, and what leaks."""

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dclip_kit.data.coco import find_captions
from dclip_kit.data.images import SPLITS, CaptionedImages
from dclip_kit.data.leaks import LeakReport, find_leaks
from dclip_kit.data.read import read_format, recognise_format, require_readable
from dclip_kit.data.scan import scan_pictures
from dclip_kit.data.splits import assign_splits
from dclip_kit.data.usable import UsableImages, join_usable

_CONTEXT = 77  # tokens of CLIP, the start's and the end's among them


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
        ModuleNotFoundError: a library of the extra "data" is needed and not installed.
    """
    format = format or recognise_format(path)
    require_readable(path, images, format)
    evaluation = [
        each if isinstance(each, CaptionedImages) else read_evaluation(each) for each in against
    ]
    unusable: dict[str, str] = {}
    try:
        found = join_usable(
            [read_format(each, images, format, "all", "files") for each in _files(format, path)]
        )
    except ValueError as error:  # the file as a whole cannot be used
        found = UsableImages(CaptionedImages((), (), "all", str(path)), {}, 0)
        unusable[_printable(path)] = str(error)
    for reasons in (found.unreadable, found.broken_rows):
        unusable |= {_printable(place): why for place, why in reasons.items()}
    kept, groups = [], dict[str, list[str]]()
    paths = found.dataset.paths
    for index, scan in enumerate(scan_pictures(paths)):
        if scan.problem:
            unusable[_printable(paths[index])] = scan.problem
            continue
        groups.setdefault(scan.pixels, []).append(_printable(paths[index]))
        kept.append(index)
    usable = found.dataset.select(kept)
    guard = find_leaks(usable, evaluation) if evaluation else LeakReport((), {})
    if guard.not_compared:
        place, why = next(iter(guard.not_compared.items()))
        warnings.warn(
            f"{len(guard.not_compared)} pictures were compared by name and not by content; the "
            f"first is {_printable(place)}: {_printable(why)}",
            stacklevel=2,
        )
    return {
        "format": format,
        "pictures": {
            "usable": len(usable),
            "unusable": [
                {"path": place, "reason": _printable(why)} for place, why in unusable.items()
            ],
        },
        "captions": {
            "usable": len(usable.texts),
            "empty": found.empty_captions,
            "truncated": count_truncated(usable.texts),
        },
        "splits": _count_splits(replace(found, dataset=usable)),
        "linked": found.linked,
        "duplicates": [group for group in groups.values() if len(group) > 1],
        "leaks": [
            {
                "picture": _printable(leak.picture),
                "evaluation": _printable(leak.evaluation),
                "by": leak.by,
            }
            for leak in guard.leaks
        ],
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


def _files(format: str, path: Path | str, evaluation: bool = False) -> list[Path]:
    """What has to be read for all of a data set, or for its val and test: COCO has a file a split.

    Args:
        format: of the data set.
        path: of the data set.
        evaluation: whether its train is left out, if it has others.
    """
    path = Path(path)
    files = find_captions(path) if format == "coco" and path.is_dir() else []
    held_out = [file for file in files if not file.name.startswith("captions_train")]
    return (held_out if evaluation else []) or files or [path]


def read_evaluation(path: Path | str) -> CaptionedImages:
    """Reads an evaluation set by its annotations' word, as a missing picture leaks by name too.

    Of Karpathy's these are val and test, of COCO's folder what is not train, of other formats all.

    Raises:
        ValueError: it cannot be read, or there is nothing.
    """
    format = recognise_format(path)
    split = "val+test" if format == "karpathy" else "all"
    files = _files(format, path, evaluation=True)
    found = join_usable([read_format(each, None, format, split, "names") for each in files])
    if not len(found.dataset):
        raise ValueError(
            f"Expected evaluation pictures at {path}, found none to compare with; name another."
        )
    return found.dataset


def _count_splits(found: UsableImages) -> dict[str, Any]:
    captioned = [i for i, captions in enumerate(found.dataset.captions) if captions]
    found = replace(found, dataset=found.dataset.select(captioned))
    assigned = assign_splits(found)
    splits = Counter(assigned)
    origin = found.splits_from if found.dataset.splits else ""
    drawn = {
        split for own, split in zip(found.dataset.splits, assigned, strict=False) if own == "train"
    } - {"train"}
    if drawn:
        there = ", ".join(f"{split} {splits[split]:,}" for split in SPLITS if split in drawn)
        warnings.warn(
            f"Drawn from the data's own train, since it has no such split: {there}.", stacklevel=3
        )
    return {"from": origin or "digest", **{split: splits[split] for split in SPLITS}}


def _printable(path: Path | str) -> str:
    """A path as text that JSON and terminals take, even where its bytes are no UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")
