"""Pictures to train on, to choose on and to measure on, whatever data they come from; no twins.

What the data says of splits is heeded: Karpathy's, COCO's and a manifest's own, a column, folders.
What it does not say, `draw_splits` draws: about a tenth of the pictures is the test, another tenth
is val, and the rest trains.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dclip_kit.data.coco import find_captions
from dclip_kit.data.curate import FORMAT
from dclip_kit.data.division import draw_splits
from dclip_kit.data.images import SPLITS, CaptionedImages
from dclip_kit.data.leaks import Leak, remove_leaks
from dclip_kit.data.manifest import read_manifest
from dclip_kit.data.read import read_format, recognise_format
from dclip_kit.data.usable import (
    Checks,
    UsableImages,
    join_usable,
    require_usable,
    sort_out,
)
from dclip_kit.runtime.printing import printable

FEWEST = 2  # pictures of a split: with one, every model finds all


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
        linked: how many of the pictures that are used are links out of the data's folder.
    """

    unusable: dict[str, str]
    empty_captions: int
    without_captions: int
    leaks: tuple[Leak, ...]
    not_compared: dict[str, str]
    linked: int = 0

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
            "linked": self.linked,
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
        if self.linked:
            sentence += f" Links out of the folder were followed to {self.linked:,} pictures."
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
        path: a manifest that `curate` wrote, or as in `read_captioned`.
        images: as in `read_captioned`.
        test: data to measure on instead: its own test, of COCO's folder its val, of any other all.
            What `path` has for a test is left alone then. A manifest needs it.
        seed: of drawing the splits that the data has not.
        by_content: whether leaks are looked for by content too, which reads all pictures.

    Raises:
        ValueError: data cannot be read or is too little, or a manifest holds leaks or has no test.
        ModuleNotFoundError: imagehash is not installed, and `by_content` asks for it.
    """
    found = _read(path, images, "pictures", needs_test=test is None)
    parts = _select(found, assign_splits(found, seed, elsewhere=test is not None))
    every = [found]
    if test is not None:
        every.append(_read(test, None, "pictures"))
        parts["test"] = _select(every[1], _measured_part(every[1]))["test"]
    if test is None or by_content:
        parts = {split: _name_by_path(dataset) for split, dataset in parts.items()}
    splits = _without_leaks(parts, every, by_content)
    measured = [leak for leak in splits.left_out.leaks if leak.evaluation in splits.test.paths]
    if is_manifest(path) and measured:
        raise ValueError(
            f"Expected a manifest without pictures of {test}, but {len(measured)} of {path} are; "
            "draw it again with curate, giving that as evaluation."
        )
    return splits


def read_test(path: Path | str, images: Path | str | None = None, seed: int = 0) -> CaptionedImages:
    """Reads the test of `read_splits` alone; arguments and errors as there.

    What leaks is left out of the other splits, so that nothing need be compared by content.
    """
    found = _read(path, images, "files", needs_test=True)
    test = _select(found, assign_splits(found, seed, drawn=("test",)))["test"]
    given = test.paths, test.captions, test.split, test.source, test.image_ids
    test = sort_out(*given, checks="pictures").dataset
    if len(test) < FEWEST:
        raise ValueError(
            f"Expected at least {FEWEST} pictures to measure on in {path}, got {len(test)} of "
            f"{len(found.dataset)}; give more, or measure on all with split all."
        )
    return test


def read_given_test(path: Path | str) -> CaptionedImages:
    """Reads what `read_splits` measures on when it is given this as its `test`."""
    found = _read(path, None, "pictures")
    return _select(found, _measured_part(found))["test"]


def assign_splits(
    found: UsableImages,
    seed: int = 0,
    elsewhere: bool = False,
    drawn: Sequence[str] = ("val", "test"),
) -> list[str]:
    """The split of each picture; "" for those of a test that is not measured on.

    Args:
        found: all of a data set.
        seed: of the splits that are drawn.
        elsewhere: whether other data is measured on.
        drawn: which splits to draw where the data has none.

    Raises:
        ValueError: a picture's split is to be drawn, and it cannot be read.
    """
    splits = list(found.dataset.splits) or ["train"] * len(found.dataset)
    if elsewhere:
        splits = ["" if split == "test" else split for split in splits]
        drawn = [split for split in drawn if split != "test"]
    elif found.splits_from == "file" and "test" not in splits:  # COCO's val is what people report
        splits = ["test" if split == "val" else split for split in splits]
    rest = [i for i, split in enumerate(splits) if split == "train"]
    missing = [split for split in drawn if split not in splits]
    for i, split in zip(
        rest, draw_splits([found.dataset.paths[i] for i in rest], missing, seed), strict=True
    ):
        splits[i] = split
    return splits


def _measured_part(found: UsableImages) -> list[str]:
    """Which pictures of data that is given to measure on are its test: its own, or all."""
    splits = found.dataset.splits or ("",) * len(found.dataset)
    own = "val" if found.splits_from == "file" and "val" in splits else ""
    own = "test" if "test" in splits else own
    return ["test" if own in ("", split) else "" for split in splits]


def _select(found: UsableImages, splits: Sequence[str]) -> dict[str, CaptionedImages]:
    """The pictures of each split that have a caption: others teach nothing and answer nothing."""
    kept = {
        name: [i for i, split in enumerate(splits) if split == name and found.dataset.captions[i]]
        for name in SPLITS
    }
    return {
        name: replace(found.dataset.select(own), split=name, splits=())
        for name, own in kept.items()
    }


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


def _read(
    path: Path | str, images: Path | str | None, checks: Checks, needs_test: bool = False
) -> UsableImages:
    """All of a data set, with each picture's split where it has one."""
    if is_manifest(path):
        if needs_test:
            raise ValueError(
                f"Expected pictures to measure on beside the manifest {path}, got none; give a "
                "captioned data set as test, such as Karpathy's dataset_coco.json."
            )
        read = read_manifest(path, [])
        # `curate` has read these pictures whole; only whether they are still there is new.
        parts = [
            sort_out(
                *(each.paths, each.captions, each.split, each.source, each.image_ids, "files"),
                splits=(each.split,) * len(each),
            )
            for each in (read.train, read.val)
        ]
        return replace(join_usable(parts), splits_from="file")
    format = recognise_format(path)
    if format == "coco" and _has_both(Path(path)):
        subsets = ("train", "val")
        found = join_usable([read_format(path, images, format, each, checks) for each in subsets])
    else:
        found = read_format(path, images, format, "all", checks)
        if format == "coco":  # one file, whose pictures are all of a split
            found = replace(found, dataset=replace(found.dataset, splits=()), splits_from="")
    require_usable(found)
    return found


def _has_both(path: Path) -> bool:
    """Whether it is a folder with COCO's train and val."""
    names = [file.name for file in find_captions(path)] if path.is_dir() else []
    return all(any(name.startswith(f"captions_{s}") for name in names) for s in ("train", "val"))


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
    chosen = remove_leaks(parts["val"], [parts["test"]], by_content)
    trained = remove_leaks(parts["train"], [parts["val"], parts["test"]], by_content)
    reports = chosen.report, trained.report
    kept = {"train": trained.dataset, "val": chosen.dataset, "test": parts["test"]}
    left_out = LeftOut(
        {str(k): v for each in found for k, v in (each.unreadable | each.broken_rows).items()},
        sum(each.empty_captions for each in found),
        sum(not captions for each in found for captions in each.dataset.captions),
        tuple(leak for report in reports for leak in report.leaks),
        {str(k): v for report in reports for k, v in report.not_compared.items()},
        sum(each.linked for each in found),
    )
    if min(map(len, kept.values())) < FEWEST:
        counts = ", ".join(f"{split} {len(dataset)}" for split, dataset in kept.items())
        raise ValueError(
            f"Expected at least {FEWEST} pictures in each split of {found[0].dataset.source}, got "
            f"{counts}; give more, say each picture's split in a column split or by folders train, "
            f"val and test, or name other data to measure on. {left_out}".strip()
        )
    return Splits(**kept, left_out=left_out)
