"""Pictures to train on, to choose on and to measure on, whatever data they come from; no twins.

What the data says of splits is heeded: Karpathy's, COCO's and a manifest's own, a column, folders.
What it does not say is drawn: about a tenth of the pictures is the test, another tenth is val, and
the rest trains. A digest of a seed and of a picture's bytes is a number from 0 to 1, and where that
lies is the picture's split. So a picture keeps its split whatever is added to its data set, neither
its name nor its place matters, copies of one file stay together, and the same pictures are divided
alike on another machine.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dclip_kit.data.annotations import (
    Checks,
    UsableImages,
    drop_unusable,
    list_reasons,
    require_usable,
)
from dclip_kit.data.curate import is_manifest, read_manifest
from dclip_kit.data.folder import is_picture, walk_files
from dclip_kit.data.images import SPLITS, CaptionedImages, LabelledImages
from dclip_kit.data.leaks import OWN, Leak, find_leaks, remove_leaks
from dclip_kit.data.pictures import count_links
from dclip_kit.data.read import find_formats, read_format, recognise_format
from dclip_kit.data.scan import scan_pictures
from dclip_kit.runtime.printing import printable

FEWEST = 2  # pictures of a split: with one, every model finds all
SHARE = 0.1  # of the pictures, for each of val and test
_START = {"val": 0.0, "test": SHARE}  # of each split's numbers


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
    not_compared: dict[Path, str]
    linked: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON beside a result."""
        return vars(self) | {
            "unusable": list_reasons(self.unusable),
            "leaks": [leak.as_dict() for leak in self.leaks],
            "not_compared": len(self.not_compared),
        }

    def __str__(self) -> str:
        """A sentence, or nothing where nothing was left out."""
        unusable = [f"{place}: {why.strip('.')}" for place, why in self.unusable.items()]
        leaks = [f"{leak.picture} is {leak.evaluation} by {leak.by}" for leak in self.leaks]
        counted: tuple[tuple[int, str, list[str]], ...] = (
            (len(unusable), "unusable", unusable),
            (self.without_captions, "without a caption", []),
            (len(leaks), "that are in another split too", leaks),
        )
        parts = [
            f"{count:,} {what}" + "".join(f" (the first, {first})" for first in each[:1])
            for count, what, each in counted
            if count
        ]
        sentences = (
            f"Pictures left out: {'; '.join(parts)}." if parts else "",
            f"Compared by name alone: {len(self.not_compared):,}." if self.not_compared else "",
            f"Links out of the folder were followed to {self.linked:,} pictures."
            if self.linked
            else "",
        )
        return printable(" ".join(filter(None, sentences)))


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
    found = [_read(path, images, needs_test=test is None)]
    splits = assign_splits(found[0], seed, ("val", "test") if test is None else ("val",))
    parts = {name: _select(found[0], splits, name) for name in SPLITS}
    if test is not None:
        found.append(_read(test, None))
        parts["test"] = _measured_part(found[1])
    if test is None or by_content:
        # In data of one's own, train/1.jpg and test/1.jpg are two pictures; to the leak guard,
        # which knows the numbers of public data sets, a bare 1 would be one. What it shows tells.
        parts = {
            name: replace(part, image_ids=tuple(each or OWN for each in part.image_ids))
            for name, part in parts.items()
        }
    leaks: list[Leak] = []
    not_compared: dict[Path, str] = {}
    kept = dict(parts)
    for name, others in (("val", ["test"]), ("train", ["val", "test"])):
        report = find_leaks(parts[name], [parts[other] for other in others], by_content)
        kept[name] = remove_leaks(parts[name], report.leaks)
        leaks += report.leaks
        not_compared |= report.not_compared
    left_out = LeftOut(
        unusable={place: why for each in found for place, why in each.unusable.items()},
        empty_captions=sum(each.empty_captions for each in found),
        without_captions=sum(not group for each in found for group in each.dataset.captions),
        leaks=tuple(leaks),
        not_compared=not_compared,
        linked=sum(each.linked for each in found),
    )
    if min(map(len, kept.values())) < FEWEST:
        raise ValueError(
            f"Expected at least {FEWEST} pictures in each split of {found[0].dataset.source}, got "
            f"train {len(kept['train'])}, val {len(kept['val'])}, test {len(kept['test'])}; give "
            "more, say each picture's split in a column split or by folders train, val and test, "
            f"or name other data to measure on. {left_out}".strip()
        )
    measured = [leak for leak in leaks if leak.evaluation in kept["test"].paths]
    if measured and is_manifest(path):
        raise ValueError(
            f"Expected a manifest without pictures of {test}, but {len(measured)} of {path} are; "
            "draw it again with curate, giving that as evaluation."
        )
    return Splits(**kept, left_out=left_out)


def read_test(path: Path | str, images: Path | str | None = None, seed: int = 0) -> CaptionedImages:
    """Reads the test of `read_splits` alone; arguments and errors as there.

    What leaks is left out of the other splits, so that nothing need be compared by content.
    """
    found = _read(path, images, "files", needs_test=True)
    test = drop_unusable(_select(found, assign_splits(found, seed, ("test",)), "test")).dataset
    if len(test) < FEWEST:
        raise ValueError(
            f"Expected at least {FEWEST} pictures to measure on in {path}, got {len(test)} of "
            f"{len(found.dataset)}; give more, or measure on all with split all."
        )
    return test


def read_given_test(path: Path | str) -> CaptionedImages:
    """Reads what `read_splits` measures on when it is given this as its `test`."""
    return _measured_part(_read(path, None))


def read_evaluation(path: Path | str) -> CaptionedImages:
    """Reads an evaluation set by its annotations' word, as a missing picture leaks by name too.

    Of Karpathy's and COCO's these are val and test, of other formats all.

    Raises:
        ValueError: it cannot be read, or there is nothing.
    """
    found = read_format(path, None, recognise_format(path), "all", "names")
    to_train = "train" if found.splits_from == "file" else None
    held_out = [i for i, own in enumerate(found.dataset.splits) if own != to_train]
    dataset = found.dataset.select(held_out)
    if not len(dataset):
        raise ValueError(
            f"Expected evaluation pictures at {path}, found none to compare with; name another."
        )
    return dataset


def assign_splits(
    found: UsableImages, seed: int = 0, needed: Sequence[str] = ("val", "test")
) -> list[str]:
    """The split of each picture; "" for those of a test that is not measured on.

    Args:
        found: all of a data set.
        seed: of the splits that are drawn.
        needed: of val and test; they are drawn where the data has none. Without test, other data is
            measured on.

    Raises:
        ValueError: a picture's split is to be drawn, and it cannot be read.
    """
    splits = [own or "train" for own in found.dataset.splits]
    if "test" not in needed:
        splits = ["" if split == "test" else split for split in splits]
    elif found.splits_from == "file" and "test" not in splits:  # COCO's val is what people report
        splits = ["test" if split == "val" else split for split in splits]
    rest = [i for i, split in enumerate(splits) if split == "train"]
    missing = [split for split in needed if split not in splits]
    drawn = draw_splits([found.dataset.paths[i] for i in rest], missing, seed)
    for i, split in zip(rest, drawn, strict=True):
        splits[i] = split
    return splits


def draw_splits(paths: Sequence[Path], splits: Sequence[str], seed: int = 0) -> list[str]:
    """The split of each picture: about a tenth for each of some splits, "train" for the rest.

    Args:
        paths: of pictures.
        splits: which to draw, of val and test.
        seed: another one divides otherwise.

    Raises:
        ValueError: a file cannot be read.
    """
    if not splits:
        return ["train"] * len(paths)
    drawn = []
    for scan in scan_pictures(paths, "dividing pictures", decode=False):
        if scan.problem:
            raise ValueError(f"Expected to divide all pictures into splits: {scan.problem}")
        place = int(_digest(f"{seed} {scan.digest}")[:16], 16) / 16**16
        own = (split for split in splits if 0 <= place - _START[split] < SHARE)
        drawn.append(next(own, "train"))
    return drawn


def read_uncaptioned(
    path: Path | str, evaluation: Sequence[CaptionedImages], by_content: bool = True
) -> tuple[CaptionedImages, LeftOut]:
    """Reads pictures to learn from without captions.

    Args:
        path: a folder of pictures, all of which are taken, or as in `read_captioned`; captions are
            not kept.
        evaluation: pictures that are left out: those to choose and to measure on.
        by_content: whether they are looked for by content too, which reads all pictures.

    Returns:
        The pictures, none of which has a caption, and what was left out.

    Raises:
        ValueError: there is nothing at the path, no picture can be read, or all are in evaluation.
        ModuleNotFoundError: imagehash is not installed, and `by_content` asks for it.
    """
    found = _read_pictures(path)
    if not len(found.dataset):
        reason = next((f"{place}: {why}" for place, why in found.unusable.items()), "it is empty")
        raise ValueError(
            f"Expected pictures to learn from in {path}, but none of {len(found.unusable)} can be "
            f"read ({reason}); name others."
        )
    pictures = replace(
        found.dataset, captions=((),) * len(found.dataset), split="uncaptioned", splits=()
    )
    report = find_leaks(pictures, evaluation, by_content)
    kept = remove_leaks(pictures, report.leaks)
    if not len(kept):
        raise ValueError(
            f"Expected pictures in {path} that are in neither val nor test, but all "
            f"{len(pictures)} are; name others."
        )
    unusable, linked = found.unusable, found.linked
    return kept, LeftOut(unusable, 0, 0, report.leaks, report.not_compared, linked)


def _read_pictures(path: Path | str) -> UsableImages:
    """All pictures at a path; texts beside those of a folder are not read."""
    place = Path(path)
    if not place.is_dir() or find_formats(place).keys() - {"files"}:
        return read_format(path, None, recognise_format(path), "all", "pictures")
    paths = tuple(place / name for name in walk_files(place) if is_picture(name))
    whole = CaptionedImages(paths, ((),) * len(paths), "uncaptioned", place.resolve().name)
    found = drop_unusable(whole)
    return replace(found, linked=count_links(found.dataset.paths, place))


def halve_labelled(dataset: LabelledImages, seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
    """Divides labelled pictures into a half to choose on and a half to measure on.

    Class by class, in an order that a digest of the seed and of the picture's name decides, they go
    to one and the other in turn.
    """
    order = sorted(
        range(len(dataset)),
        key=lambda i: (dataset.labels[i], _digest(f"{seed} {i} {dataset.paths[i].name}")),
    )
    return dataset.select(sorted(order[::2])), dataset.select(sorted(order[1::2]))


def has_splits(path: Path | str) -> bool:
    """Whether the format of what lies at a path has splits of its own, that have names."""
    return not is_manifest(path) and recognise_format(path) in ("karpathy", "coco")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _select(found: UsableImages, splits: Sequence[str], name: str) -> CaptionedImages:
    """The pictures of a split that have a caption: others teach nothing and answer nothing."""
    own = [i for i, split in enumerate(splits) if split == name and found.dataset.captions[i]]
    return replace(found.dataset.select(own), split=name, splits=())


def _measured_part(found: UsableImages) -> CaptionedImages:
    """Of data that is given to measure on its own test, of COCO's its val, else all."""
    splits = found.dataset.splits
    own = "val" if found.splits_from == "file" and "val" in splits else ""
    own = "test" if "test" in splits else own
    return _select(found, ["test" if own in ("", split) else "" for split in splits], "test")


def _read(
    path: Path | str,
    images: Path | str | None,
    checks: Checks = "pictures",
    needs_test: bool = False,
) -> UsableImages:
    """All of a data set, with each picture's split where it has one."""
    if not is_manifest(path):
        found = read_format(path, images, recognise_format(path), "all", checks)
        require_usable(found)
        return found
    if needs_test:
        raise ValueError(
            f"Expected pictures to measure on beside the manifest {path}, got none; give a "
            "captioned data set as test, such as Karpathy's dataset_coco.json."
        )
    # `curate` has read these pictures whole; only whether they are still there is new.
    return replace(drop_unusable(read_manifest(path), "files"), splits_from="file")
