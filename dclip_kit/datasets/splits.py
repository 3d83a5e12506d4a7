"""Pictures to train on, to choose on and to measure on, whatever data they come from; no twins.

A data set's own splits go first: Karpathy's, COCO's, a manifest's. Where there are none, a tenth of
the pictures is the test, another tenth is val, and the rest trains, as `draw_splits` divides them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dclip_kit.datasets.coco import find_captions
from dclip_kit.datasets.curate import FORMAT
from dclip_kit.datasets.division import FEWEST, draw_splits
from dclip_kit.datasets.images import CaptionedImages
from dclip_kit.datasets.leaks import Leak, remove_leaks
from dclip_kit.datasets.manifest import read_manifest
from dclip_kit.datasets.read import read_format, recognise_format
from dclip_kit.datasets.usable import UsableImages, require_usable, sort_out
from dclip_kit.printing import printable


@dataclass(frozen=True)
class LeftOut:
    """What could not be used of data, and why.

    Attributes:
        unusable: reason by picture, or by place in an annotation file.
        empty_captions: how many captions had no text.
        without_captions: how many pictures had none.
        leaks: pictures left out of train for being in val or test, and out of val for being in
            test.
        not_compared: reason by picture, of those compared with other splits by name alone.
    """

    unusable: dict[str, str]
    empty_captions: int
    without_captions: int
    leaks: tuple[Leak, ...]
    not_compared: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON beside a result."""
        leaks = [
            {"picture": str(leak.picture), "evaluation": str(leak.evaluation), "by": leak.by}
            for leak in self.leaks
        ]
        return {
            "unusable": [{"path": p, "reason": why} for p, why in self.unusable.items()],
            "empty_captions": self.empty_captions,
            "without_captions": self.without_captions,
            "leaks": leaks,
            "not_compared": len(self.not_compared),
        }

    def __str__(self) -> str:
        """A sentence, or nothing where nothing was left out."""
        parts = []
        if self.unusable:
            place, why = next(iter(self.unusable.items()))
            parts.append(f"{len(self.unusable):,} unusable (the first, {place}: {why.strip('.')})")
        if self.without_captions:
            parts.append(f"{self.without_captions:,} without a caption")
        if self.leaks:
            first = self.leaks[0]
            twins = f"{first.picture} is {first.evaluation} by {first.by}"
            parts.append(f"{len(self.leaks):,} that are in another split too (the first, {twins})")
        sentence = f"Pictures left out: {'; '.join(parts)}." if parts else ""
        if self.not_compared:
            sentence += f" Compared by name alone: {len(self.not_compared):,}."
        return printable(sentence.strip())


@dataclass(frozen=True)
class Splits:
    """Captioned pictures to train on, to choose on and to measure on, and what was left out."""

    train: CaptionedImages
    val: CaptionedImages
    test: CaptionedImages
    left_out: LeftOut


def read_splits(
    path: Path | str,
    images: Path | str | None = None,
    test: Path | str | None = None,
    seed: int = 0,
    by_content: bool = True,
) -> Splits:
    """Reads data as three splits without leaks between them.

    Args:
        path: a manifest that `curate` wrote, or as in `read_captioned`. Karpathy's splits serve as
            they are called, restval trains too; the val of COCO's folder is the test.
        images: as in `read_captioned`.
        test: data to measure on instead: of Karpathy's its test, of COCO's folder its val, of any
            other all. A manifest needs it; COCO's own val is val then.
        seed: of drawing the splits that the data has not.
        by_content: whether leaks are looked for by content too, which reads all pictures.

    Raises:
        ValueError: data cannot be read or is too little, or a manifest holds leaks or has no test.
        ModuleNotFoundError: imagehash is not installed, and `by_content` asks for it.
    """
    if is_manifest(path) and test is None:
        raise ValueError(
            f"Expected pictures to measure on beside the manifest {path}, got none; give a "
            "captioned data set as test, such as Karpathy's dataset_coco.json."
        )
    found = _read_parts(path, images, by_its_own=test is None)
    if test is not None:
        found["test"] = _read(test, None, "test" if _is_karpathy(test) else "val")
    parts = {split: _captioned(each, split) for split, each in found.items()}
    if test is None or by_content:
        parts = {split: _name_by_path(dataset) for split, dataset in parts.items()}
    parts |= draw_splits(parts["train"], [s for s in ("val", "test") if s not in parts], seed)
    splits = _without_leaks(parts, list(found.values()), by_content)
    measured = [leak for leak in splits.left_out.leaks if leak.evaluation in splits.test.paths]
    if is_manifest(path) and measured:
        raise ValueError(
            f"Expected a manifest without pictures of {test}, but {len(measured)} of {path} are; "
            "draw it again with curate, giving that as evaluation."
        )
    return splits


def read_test(path: Path | str, images: Path | str | None = None, seed: int = 0) -> CaptionedImages:
    """Reads the test of `read_splits` alone, where the data has one; arguments and errors as there.

    What leaks is left out of the other splits, so that nothing need be compared by content.
    """
    own = "test" if _is_karpathy(path) else "val" if _has_both(path) else None
    if own:
        return _captioned(_read(path, images, own), "test")
    return read_splits(path, images, seed=seed, by_content=False).test


def has_splits(path: Path | str) -> bool:
    """Whether the format of what lies at a path has splits of its own, that have names."""
    return not is_manifest(path) and recognise_format(path) in ("karpathy", "coco")


def is_manifest(path: Path | str) -> bool:
    """Whether a file begins as those that `curate` writes."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return FORMAT.encode() in file.read(100)


def _read_parts(
    path: Path | str, images: Path | str | None, by_its_own: bool
) -> dict[str, UsableImages]:
    """What a data set has of the three splits; all of it is "train" where it has none."""
    if is_manifest(path):
        read = read_manifest(path, [])
        return {
            each.split: sort_out(
                # `curate` has read these pictures whole; only whether they are still there is new.
                *(each.paths, each.captions, each.split, each.source, each.image_ids, "files")
            )
            for each in (read.train, read.val)
        }
    if _is_karpathy(path):
        splits = {"train": "train+restval", "val": "val"} | ({"test": "test"} if by_its_own else {})
        return {split: _read(path, images, own) for split, own in splits.items()}
    if _has_both(path):
        return {
            "train": _read(path, images, "train"),
            "test" if by_its_own else "val": _read(path, images, "val"),
        }
    return {"train": _read(path, images, "all")}


def _is_karpathy(path: Path | str) -> bool:
    return not is_manifest(path) and recognise_format(path) == "karpathy"


def _has_both(path: Path | str) -> bool:
    """Whether it is a folder with COCO's train and val."""
    if not Path(path).is_dir() or recognise_format(path) != "coco":
        return False
    names = [file.name for file in find_captions(Path(path))]
    return all(any(name.startswith(f"captions_{s}") for name in names) for s in ("train", "val"))


def _read(path: Path | str, images: Path | str | None, split: str) -> UsableImages:
    format = recognise_format(path)
    if format == "coco" and not _has_both(path):
        split = "all"
    found = read_format(path, images, format, split, "pictures")
    require_usable(found)
    return found


def _captioned(found: UsableImages, split: str) -> CaptionedImages:
    """The pictures that have a caption: without, there is nothing to learn from or to search by."""
    kept = [i for i, captions in enumerate(found.dataset.captions) if captions]
    return replace(found.dataset.select(kept), split=split)


def _name_by_path(dataset: CaptionedImages) -> CaptionedImages:
    """Gives pictures without an id their place for one.

    In data of one's own, train/1.jpg and test/1.jpg are two pictures; to the leak guard, which
    knows the numbers of public data sets, a bare 1 would be one. What it shows still tells.
    """
    ids = dataset.image_ids or ("",) * len(dataset)
    own = [i or path.absolute().as_uri() for i, path in zip(ids, dataset.paths, strict=True)]
    return replace(dataset, image_ids=tuple(own))


def _without_leaks(
    parts: dict[str, CaptionedImages], found: Sequence[UsableImages], by_content: bool
) -> Splits:
    train, val, test = (parts[split] for split in ("train", "val", "test"))
    chosen = remove_leaks(val, [test], by_content)
    trained = remove_leaks(train, [val, test], by_content)
    reports = chosen.report, trained.report
    kept = {"train": trained.dataset, "val": chosen.dataset, "test": test}
    left_out = LeftOut(
        {str(k): v for each in found for k, v in (each.unreadable | each.broken_rows).items()},
        sum(each.empty_captions for each in found),
        sum(not captions for each in found for captions in each.dataset.captions),
        tuple(leak for report in reports for leak in report.leaks),
        {str(k): v for report in reports for k, v in report.not_compared.items()},
    )
    for split, dataset in kept.items():
        if len(dataset) < FEWEST:
            raise ValueError(
                f"Expected at least {FEWEST} pictures for {split}, got {len(dataset)}; give more. "
                f"{left_out}"
            )
    return Splits(**kept, left_out=left_out)
