"""What can be used of the pictures and captions that were found, and what was left out and why."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tqdm.auto import tqdm

from dclip_kit.data.images import CaptionedImages, check_groups
from dclip_kit.data.pictures import name_with_link
from dclip_kit.data.scan import scan_pictures

# How closely pictures are looked at: read whole, only that they are there, or not at all (as for
# evaluation data whose names are known and whose pictures are not at hand).
Checks = Literal["pictures", "files", "names"]
# What tells each picture's split: a column of a table, the folders that the pictures are in, or the
# annotation file, as Karpathy's and COCO's do; "" where nothing does.
SplitsFrom = Literal["column", "folders", "file", ""]


@dataclass(frozen=True)
class UsableImages:
    """What is left after leaving out what cannot be used, and what was left out.

    Attributes:
        dataset: pictures that can be read, with their captions that have text.
        unreadable: reason by path.
        empty_captions: how many captions had no text.
        broken_rows: reason by place ("results.csv:19999"), for what annotations say and nobody can
            use.
        splits_from: where `dataset.splits` come from.
        linked: how many pictures of `dataset` lie outside the folder of pictures, which has links
            to them.
    """

    dataset: CaptionedImages
    unreadable: dict[Path, str]
    empty_captions: int
    broken_rows: dict[str, str] = field(default_factory=dict)
    splits_from: SplitsFrom = ""
    linked: int = 0


def sort_out(
    paths: Sequence[Path],
    captions: Sequence[Sequence[str]],
    split: str,
    source: str,
    image_ids: Sequence[str] = (),
    checks: Checks = "pictures",
    splits: Sequence[str] = (),
) -> UsableImages:
    """Leaves out, counted, what training could not use; perhaps everything.

    Args:
        paths: one a picture.
        captions: for each picture its captions, some perhaps empty.
        split: as in `CaptionedImages`.
        source: as in `CaptionedImages`.
        image_ids: as in `CaptionedImages`.
        checks: "pictures" reads every picture once, "files" only asks whether there is one, "names"
            takes them as they are.
        splits: as in `CaptionedImages`.

    Raises:
        ValueError: the lengths differ, or a picture has a text for its group.
    """
    check_groups(paths, captions)
    problems = _find_problems([Path(path) for path in paths], checks)
    kept = [index for index, problem in enumerate(problems) if not problem]
    unreadable = {Path(paths[i]): problem for i, problem in enumerate(problems) if problem}
    kept_captions = [tuple(text for text in captions[i] if text.strip()) for i in kept]
    empty = sum(len(captions[i]) for i in kept) - sum(map(len, kept_captions))
    dataset = CaptionedImages(
        tuple(Path(paths[i]) for i in kept),
        tuple(kept_captions),
        split,
        source,
        tuple(image_ids[i] for i in kept) if image_ids else (),
        tuple(splits[i] for i in kept) if splits else (),
    )
    return UsableImages(dataset, unreadable, empty)


def join_usable(parts: Sequence[UsableImages]) -> UsableImages:
    """Puts together what was read from several files of one data set."""
    first = parts[0].dataset
    datasets = [part.dataset for part in parts]
    ids = [each.image_ids or ("",) * len(each) for each in datasets]
    splits = [each.splits or ("",) * len(each) for each in datasets]
    dataset = CaptionedImages(
        tuple(path for each in datasets for path in each.paths),
        tuple(captions for each in datasets for captions in each.captions),
        first.split if len(parts) == 1 else "all",
        first.source,
        tuple(image_id for each in ids for image_id in each),
        tuple(own for each in splits for own in each) if any(map(any, splits)) else (),
    )
    return UsableImages(
        dataset,
        {path: reason for part in parts for path, reason in part.unreadable.items()},
        sum(part.empty_captions for part in parts),
        {place: reason for part in parts for place, reason in part.broken_rows.items()},
        next((part.splits_from for part in parts if part.splits_from), ""),
        sum(part.linked for part in parts),
    )


def drop_unusable(
    paths: Sequence[Path], captions: Sequence[Sequence[str]], split: str, source: str
) -> UsableImages:
    """Reads every picture once and leaves out, counted, what training could not use.

    Args:
        paths: one a picture.
        captions: for each picture its captions, some perhaps empty.
        split: as in `CaptionedImages`.
        source: as in `CaptionedImages`.

    Raises:
        ValueError: nothing is left, the lengths differ, or a picture has a text for its group.
    """
    found = sort_out(paths, captions, split, source)
    require_usable(found)
    return found


def is_usable(found: UsableImages) -> bool:
    """Whether at least one picture has a caption: without, there is nothing to learn or search."""
    return any(found.dataset.captions)


def require_usable(found: UsableImages) -> None:
    """Checks that there is at least one captioned picture.

    Raises:
        ValueError: there is none; says how much was left out, and the first reason.
    """
    if is_usable(found):
        return
    total = len(found.dataset) + len(found.unreadable)
    reasons = [*found.unreadable.values(), *(f"{k}: {v}" for k, v in found.broken_rows.items())]
    raise ValueError(
        f"Expected captioned pictures in {found.dataset.source}, but of {total} none was left "
        f"({len(found.unreadable)} unreadable, {found.empty_captions} captions without text"
        + (f", {len(found.dataset)} pictures without a caption" if len(found.dataset) else "")
        + (f", {len(found.broken_rows)} broken rows" if found.broken_rows else "")
        + ")"
        + (f"; the first reason: {reasons[0]}" if reasons else ".")
    )


def _find_problems(paths: list[Path], checks: Checks) -> list[str]:
    """Why each path cannot be used; "" where it can."""
    if checks == "names":
        return [""] * len(paths)
    problems = [_find_absence(path) for path in tqdm(paths, desc="finding pictures", delay=2)]
    if checks == "pictures":
        there = [index for index, problem in enumerate(problems) if not problem]
        for index, scan in zip(there, scan_pictures([paths[i] for i in there]), strict=True):
            problems[index] = scan.problem
    return problems


def _find_absence(path: Path) -> str:
    try:
        there = path.is_file()  # a named pipe would be waited for, for ever
    except OSError as error:  # a name too long, a folder that must not be read
        return f"Expected a picture at {name_with_link(path)}, but it cannot be one ({error})."
    if there:
        return ""
    kind = "something that is no file" if path.exists() else "nothing"
    return (
        f"Expected a whole picture at {name_with_link(path)}, but found {kind}; restore it, or "
        "name the folder that has the pictures."
    )
