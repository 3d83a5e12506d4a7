"""Divides any data into pictures to train on, to choose on and to measure on, without leaks.

Splits that the data has are kept: Karpathy's, COCO's and a manifest's own, a column's, folders'.
Missing ones are drawn: about a tenth of the pictures becomes test, another tenth val, and the rest
train. A digest of the seed and of a picture's bytes gives a number from 0 to 1, which decides its
split. So a picture keeps its split whatever is added to its data set, its name and folder do not
matter, copies of a file stay together, and another machine divides the same pictures alike.

The paper's training mixture is drawn once, by a seed alone, and written down picture by picture in
a manifest. `inspect_data` reports before training what is usable, what is duplicated and what
leaks.
"""

import hashlib
import json
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dclip_kit.data.collect import UsableImages, drop_unusable, list_reasons
from dclip_kit.data.formats import find_formats, read_captioned, read_format, recognise_format
from dclip_kit.data.leaks import (
    OWN,
    EvaluationIndex,
    Leak,
    find_leaks,
    index_evaluation,
    remove_leaks,
)
from dclip_kit.data.paths import is_picture, walk_files
from dclip_kit.data.pictures import (
    SPLITS,
    CaptionedImages,
    LabelledImages,
    count_links,
    scan_pictures,
)
from dclip_kit.data.readers import MANIFEST
from dclip_kit.runtime.files import write_atomically
from dclip_kit.runtime.printing import printable, say

# How many pictures of each data set the paper draws: 75,000, of which a tenth is held out: 67,500
# to train on. Our reading: a picture with all its captions counts as one image-caption pair.
PAPER_MIXTURE = {"coco": 50_000, "flickr30k": 15_000, "conceptual_captions": 10_000}
HELD_OUT = 0.1
FEWEST = 2  # pictures of a split: with one, any model has a perfect recall
SHARE = 0.1  # of the pictures, for each of val and test
_START = {"val": 0.0, "test": SHARE}  # where each split's interval of numbers starts
_MOST_LINES = 10  # printed of a list; the report has all
_ORIGINS = {
    "digest": "a digest of the files",
    "file": "the data set's own files",
    "column": "a column",
    "folders": "folders",
}


@dataclass(frozen=True)
class LeftOut:
    """What was left out of the data, and why.

    Attributes:
        unusable: reason by picture, or by place in an annotation file.
        empty_captions: how many captions had no text.
        without_captions: how many pictures had none.
        leaks: pictures left out of train because they are in val or test, and out of val because
            they are in test.
        not_compared: for pictures compared with other splits by name alone, the reason.
        linked: how many of the pictures used lie outside the data's folder, reached by links.
        copies: how many of them are the same file as another picture of their split.
    """

    unusable: dict[str, str]
    empty_captions: int
    without_captions: int
    leaks: tuple[Leak, ...]
    not_compared: dict[Path, str]
    linked: int = 0
    copies: int = 0

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
            f"{count:,} {what}" + "".join(f" (the first, {first})" for first in details[:1])
            for count, what, details in counted
            if count
        ]
        sentences = (
            f"Pictures left out: {'; '.join(parts)}." if parts else "",
            f"Compared by name alone: {len(self.not_compared):,}." if self.not_compared else "",
            f"Links out of the folder were followed to {self.linked:,} pictures."
            if self.linked
            else "",
            f"Copies of pictures in the same split, each of which counts: {self.copies:,}."
            if self.copies
            else "",
        )
        return printable(" ".join(filter(None, sentences)))


@dataclass(frozen=True)
class Splits:
    """Captioned pictures to train on, to choose on and to measure on, and what was left out.

    `left_out` is None for the pocket data, which are complete.
    """

    train: CaptionedImages
    val: CaptionedImages
    test: CaptionedImages
    left_out: LeftOut | None


def read_splits(
    path: Path | str,
    images: Path | str | None = None,
    test: Path | str | None = None,
    seed: int = 0,
    by_content: bool = True,
) -> Splits:
    """Reads data as three splits without leaks between them.

    Args:
        path: as in `read_captioned`.
        images: as in `read_captioned`.
        test: other data to measure on: its test split; without one, the val split of COCO's folder
            or a manifest, and all of any other data. The test split of `path` is not used then.
        seed: for drawing the splits that the data lacks.
        by_content: whether leaks are looked for by content too, which reads all pictures.

    Raises:
        ValueError: the data cannot be read, or a split has too few pictures.
        ImportError: imagehash is not installed, and `by_content` asks for it.
    """
    sources = [read_captioned(path, images, split="all")]
    splits = assign_splits(sources[0], seed, ("val", "test") if test is None else ("val",))
    parts = {name: _select(sources[0], splits, name) for name in SPLITS}
    if test is not None:
        sources.append(read_captioned(test, split="all"))
        parts["test"] = _measured_part(sources[1])
    if test is None or by_content:
        # In users' own data, train/1.jpg and test/1.jpg are two pictures. The leak guard would take
        # a bare 1 for a public data set's number, and both for one: only their content may tell.
        parts = {
            name: replace(part, image_ids=tuple(image_id or OWN for image_id in part.image_ids))
            for name, part in parts.items()
        }
    leaks: list[Leak] = []
    not_compared: dict[Path, str] = {}
    leak_free = dict(parts)
    for name, evaluation in (("val", ["test"]), ("train", ["val", "test"])):
        report = find_leaks(parts[name], [parts[split] for split in evaluation], by_content)
        leak_free[name] = remove_leaks(parts[name], report.leaks)
        leaks += report.leaks
        not_compared |= report.not_compared
    left_out = LeftOut(
        unusable={place: why for data in sources for place, why in data.unusable.items()},
        empty_captions=sum(data.empty_captions for data in sources),
        without_captions=sum(not group for data in sources for group in data.dataset.captions),
        leaks=tuple(leaks),
        not_compared=not_compared,
        linked=sum(data.linked for data in sources),
        copies=sum(map(_count_copies, leak_free.values())) if by_content else 0,
    )
    if min(map(len, leak_free.values())) < FEWEST:
        counts = ", ".join(f"{name} {len(part)}" for name, part in leak_free.items())
        raise ValueError(
            f"Expected at least {FEWEST} pictures in each split of {sources[0].dataset.source}, "
            f"got {counts}; give more, say each picture's split in a column split or by folders "
            f"train, val and test, or name other data to measure on. {left_out}".strip()
        )
    return Splits(**leak_free, left_out=left_out)


def read_test(
    path: Path | str,
    images: Path | str | None = None,
    test: Path | str | None = None,
    seed: int = 0,
) -> CaptionedImages:
    """Reads only the test split of `read_splits`; the same arguments and errors.

    Leaking pictures are left out of the other splits, so nothing is compared by content here. What
    could not be used is printed.
    """
    if test is not None:
        source = read_captioned(test, split="all")
        return say_left_out(source, _measured_part(source))
    source = read_captioned(path, images, split="all", checks="names")
    # Unreadable pictures get no split. They might belong to test: read them, to report them.
    splits = [split or "test" for split in assign_splits(source, seed, ("test",))]
    usable = drop_unusable(_select(source, splits, "test"))
    unusable = source.unusable | usable.unusable
    test_pictures = say_left_out(replace(source, unusable=unusable), usable.dataset)
    if len(test_pictures) < FEWEST:
        raise ValueError(
            f"Expected at least {FEWEST} pictures to measure on in {path}, got "
            f"{len(test_pictures)} of {len(source.dataset)}; give more, or measure on all with "
            "split all."
        )
    return test_pictures


def read_training_captions(
    path: Path | str,
    images: Path | str | None = None,
    test: Path | str | None = None,
    seed: int = 0,
) -> list[str]:
    """Reads the captions of `read_splits`' train split, without checking its pictures.

    Captions of leaking and of unreadable pictures stay in: nothing is trained or measured on them.
    The arguments and errors are the same.
    """
    usable = read_captioned(path, images, split="all", checks="names")
    splits = assign_splits(usable, seed, ("val", "test") if test is None else ("val",))
    return _select(usable, splits, "train").texts


def say_left_out(found: UsableImages, used: CaptionedImages | None = None) -> CaptionedImages:
    """Prints what was left out of the data.

    Args:
        found: the data.
        used: the part to be used, in which every picture has a caption; left out, all of it.

    Returns:
        The part to be used.
    """
    without = sum(not group for group in found.dataset.captions) if used is not None else 0
    used = found.dataset if used is None else used
    copies = _count_copies(used)
    left_out = LeftOut(found.unusable, found.empty_captions, without, (), {}, found.linked, copies)
    if str(left_out):
        say(f"Of {found.dataset.source}: {left_out}")
    return used


def _count_copies(pictures: CaptionedImages) -> int:
    digests = [scan.digest for scan in scan_pictures(pictures.paths, decode=False)]
    return len(digests) - len(set(digests))


def read_evaluation(path: Path | str) -> CaptionedImages:
    """Reads the annotations of an evaluation set: pictures may be missing, as names tell of leaks.

    Formats with splits of their own (Karpathy's, COCO's) give val and test, others everything.

    Raises:
        ValueError: it cannot be read, or is empty.
    """
    usable = read_format(path, None, None, "all", "names")
    splits = usable.dataset.splits
    indices = [
        i for i, split in enumerate(splits) if split != "train" or usable.splits_from != "file"
    ]
    if not indices:
        raise ValueError(
            f"Expected evaluation pictures at {path}, found none to compare with; name another."
        )
    return usable.dataset.select(indices)


def assign_splits(
    found: UsableImages, seed: int = 0, needed: Sequence[str] = ("val", "test")
) -> list[str]:
    """The split of each picture; "" for those of a test split that is not needed.

    About a tenth of train is drawn for each needed split that is missing; unreadable pictures then
    get the split "", too.

    Args:
        found: all of a data set.
        seed: for the splits that are drawn.
        needed: which of val and test; without test, other data is measured on.
    """
    splits = [split or "train" for split in found.dataset.splits]
    if "test" not in needed:
        splits = ["" if split == "test" else split for split in splits]
    elif _measures_val(found):
        splits = ["test" if split == "val" else split for split in splits]
    missing = [split for split in needed if split not in splits]
    drawable = [i for i, split in enumerate(splits) if split == "train" and missing]
    paths = [found.dataset.paths[i] for i in drawable]
    scans = scan_pictures(paths, "dividing pictures", decode=False)
    for i, scan in zip(drawable, scans, strict=True):
        digest = hashlib.sha256(f"{seed} {scan.digest}".encode()).hexdigest()
        fraction = int(digest[:16], 16) / 16**16
        drawn = (split for split in missing if 0 <= fraction - _START[split] < SHARE)
        splits[i] = "" if scan.problem else next(drawn, "train")
    return splits


def _measures_val(found: UsableImages) -> bool:
    """Whether val takes the place of a missing test: COCO's val is what people report."""
    return found.splits_from == "file" and "test" not in found.dataset.splits


def read_uncaptioned(
    path: Path | str, evaluation: Sequence[CaptionedImages], by_content: bool = True
) -> tuple[CaptionedImages, LeftOut]:
    """Reads pictures to learn from without captions.

    Args:
        path: a folder of pictures, all of which are taken whatever its annotations list; or as in
            `read_captioned`. Captions are dropped.
        evaluation: the pictures to choose and to measure on, which are left out.
        by_content: whether they are looked for by content too, which reads all pictures.

    Returns:
        The pictures, without captions, and what was left out.

    Raises:
        ValueError: there is nothing at the path, or no readable picture outside `evaluation`.
        ImportError: imagehash is not installed, and `by_content` asks for it.
    """
    folder = Path(path)
    formats, paths = find_formats(folder) if folder.is_dir() else {}, tuple[Path, ...]()
    if folder.is_dir() and not formats.keys() & {"shards", "datasets"}:
        paths = tuple(folder / name for name in walk_files(folder) if is_picture(name))
    if not paths and (formats or not folder.is_dir()):  # in tars, or elsewhere, as annotations say
        usable = read_format(path, None, None, "all", "pictures")
    else:  # annotations beside the pictures are not read: they may not list all of them
        usable = drop_unusable(
            CaptionedImages(paths, ((),) * len(paths), "uncaptioned", folder.resolve().name)
        )
        usable = replace(usable, linked=count_links(usable.dataset.paths, folder))
    pictures = replace(
        usable.dataset,
        captions=((),) * len(usable.dataset),
        split="uncaptioned",
        splits=(),
        # Their names are not a public data set's numbers, unless the format says so, or nothing
        # else can tell.
        image_ids=tuple(image_id or OWN * by_content for image_id in usable.dataset.image_ids),
    )
    report = find_leaks(pictures, evaluation, by_content)
    left_out = LeftOut(usable.unusable, 0, 0, report.leaks, report.not_compared, usable.linked)
    leak_free = remove_leaks(pictures, report.leaks)
    if not len(leak_free):
        raise ValueError(
            f"Expected pictures to learn from in {path} that are in neither val nor test, found "
            f"none; name others. {left_out}".strip()
        )
    return leak_free, left_out


def halve_labelled(dataset: LabelledImages, seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
    """Divides labelled pictures into a half to choose on and a half to measure on.

    The pictures of each class, ordered by a digest of the seed, of their places in the data set and
    of their names, go to the two halves in turn; so one picture more may change the halves.
    """
    digests = [
        hashlib.sha256(f"{seed} {i} {path.name}".encode(errors="surrogateescape")).hexdigest()
        for i, path in enumerate(dataset.paths)
    ]
    order = sorted(range(len(dataset)), key=lambda i: (dataset.labels[i], digests[i]))
    return dataset.select(sorted(order[::2])), dataset.select(sorted(order[1::2]))


def _select(usable: UsableImages, splits: Sequence[str], name: str) -> CaptionedImages:
    """A split's pictures with captions: others can neither be trained nor measured on."""
    indices = [i for i, split in enumerate(splits) if split == name and usable.dataset.captions[i]]
    return replace(usable.dataset.select(indices), split=name, splits=())


def _measured_part(usable: UsableImages) -> CaptionedImages:
    """The part of other data to measure on: its test split, COCO's val, or else all."""
    splits = usable.dataset.splits
    test_split = "val" if _measures_val(usable) else "test"
    has_none = test_split not in splits
    parts = ["test" if has_none or split == test_split else "" for split in splits]
    return _select(usable, parts, "test")


def curate(
    datasets: Mapping[str, CaptionedImages],
    manifest: Path | str,
    evaluation: Sequence[CaptionedImages],
    *,
    mixture: Mapping[str, int] = PAPER_MIXTURE,
    seed: int = 0,
    by_content: bool = True,
) -> dict[str, Any]:
    """Draws a training mixture without leaks and writes it as a manifest, atomically.

    The same seed draws the same pictures, in whatever order they were read. A picture that cannot
    be read, has no caption or leaks is replaced by the next, and named in the manifest. A tenth of
    each data set goes to split "val".

    Args:
        datasets: by their names in the mixture, of which some may be missing. They may have been
            read with checks="names": only pictures that are drawn are read, here.
        manifest: the JSON file to write.
        evaluation: the sets that a model will be measured on.
        mixture: how many pictures to draw by name.
        seed: of the draw.
        by_content: whether leaks are looked for by content too.

    Returns:
        What was written: format, recipe, seed, counts, leaks, unusable, not_compared, entries.

    Raises:
        ValueError: a data set is not in the mixture, or nothing was drawn.
        ImportError: imagehash is not installed, and `by_content` asks for it.
    """
    if unknown := sorted(datasets.keys() - mixture.keys()):
        raise ValueError(
            f"Expected data sets of the mixture ({', '.join(mixture)}), got {', '.join(unknown)}; "
            "name them so, or give a mixture that has them."
        )
    index = index_evaluation(evaluation, by_content)
    record: dict[str, Any] = {
        "format": MANIFEST,
        "recipe": {"mixture": dict(mixture), "held_out": HELD_OUT, "by_content": by_content},
        "seed": seed,
        "counts": {},
        "leaks": [],
        "unusable": [],
        "not_compared": list_reasons(index.not_compared),
        "entries": [],
    }
    folder = Path(manifest).absolute().parent
    for name, count in mixture.items():
        entries = []
        if name in datasets:
            rng = random.Random(f"{seed} {name}")
            drawn = _draw(datasets[name], count, rng, index, record)
            # They are in random order, so the last can be held out.
            held_out = len(drawn) - round(HELD_OUT * len(drawn))
            entries = [
                {
                    # Relative below the manifest's folder, so that both can move together.
                    "path": (p.relative_to(folder) if p.is_relative_to(folder) else p).as_posix(),
                    "id": drawn.image_ids[i],
                    "captions": list(drawn.captions[i]),
                    "source": name,
                    "split": "train" if i < held_out else "val",
                }
                for i, p in enumerate(map(Path.absolute, drawn.paths))
            ]
        train = sum(entry["split"] == "train" for entry in entries)
        record["counts"][name] = {"asked": count, "train": train, "val": len(entries) - train}
        record["entries"] += entries
    if not record["entries"]:
        raise ValueError(
            f"Expected pictures to draw from {', '.join(datasets) or 'at least one data set'}, but "
            "none was usable and free of leaks; read one of the mixture's data sets first."
        )
    write_atomically(Path(manifest), json.dumps(record, indent=1) + "\n")
    return record


def _draw(
    dataset: CaptionedImages,
    count: int,
    rng: random.Random,
    index: EvaluationIndex,
    record: dict[str, Any],
) -> CaptionedImages:
    """Goes through the pictures in random order until enough are usable and free of leaks.

    Pictures left out on the way are noted in the record.
    """
    paths, ids = dataset.paths, dataset.image_ids
    # By id and name and not by folder, so that the draw is the same on another machine.
    order = sorted(range(len(dataset)), key=lambda i: (ids[i], paths[i].name, i))
    rng.shuffle(order)
    chosen: list[int] = []
    while order and len(chosen) < count:
        # Pictures that leak or fail are replaced by the next ones in the order.
        size = count - len(chosen)
        batch, order = order[:size], order[size:]
        usable = drop_unusable(dataset.select(batch))
        report = find_leaks(usable.dataset, index)
        unusable = usable.unusable | {
            str(paths[i]): "it has no caption" for i in batch if not dataset.captions[i]
        }
        left_out = unusable.keys() | {str(leak.picture) for leak in report.leaks}
        chosen += [i for i in batch if str(paths[i]) not in left_out]
        not_compared = {
            path: why for path, why in report.not_compared.items() if path not in index.not_compared
        }
        record["leaks"] += [leak.as_dict() for leak in report.leaks]
        record["unusable"] += list_reasons(unusable)
        record["not_compared"] += list_reasons(not_compared)
    return dataset.select(chosen)


def inspect_data(
    path: Path | str,
    images: Path | str | None = None,
    format: str | None = None,
    against: Sequence[CaptionedImages | Path | str] = (),
) -> dict[str, Any]:
    """Checks all splits of a data set, and reports what training could not use.

    Args:
        path: as in `read_captioned`.
        images: as in `read_captioned`.
        format: as in `read_captioned`.
        against: evaluation sets. A path stands for the splits val and test where the format has
            splits of its own, else for all of the data; its pictures may be missing.

    Returns:
        JSON values: `format`; `pictures` with the count `usable` and the list `unusable` of path
        and reason (including rows that name no usable picture, by their place in the file);
        `captions` with the counts `usable`, `empty` and, of the usable ones, `truncated`: longer
        than CLIP's 77 tokens, or with its end token inside; `splits`, how many usable pictures with
        captions training would put into train, val and test, and by what ("from": column, folders,
        file, or digest where the data has none); `linked`, how many pictures lie outside the data's
        folder, reached by links; `duplicates`, groups of paths with equal pixels; `leaks`, of
        picture, evaluation and by.
        Warnings tell of pictures that could be compared by name only, of splits that have to be
        drawn from the data's own train, and of columns that only seem to hold splits.

    Raises:
        ValueError: the format is unknown or not recognised, or an evaluation set cannot be read.
        ImportError: imagehash is needed and not installed.
    """
    format = recognise_format(path, images, format)
    evaluation = [
        _let_content_tell(data if isinstance(data, CaptionedImages) else read_evaluation(data))
        for data in against
    ]
    try:
        usable = read_format(path, images, format, "all", "pictures")
    except ValueError as error:  # the file as a whole cannot be used
        usable = UsableImages(CaptionedImages((), (), "all", str(path)), {str(path): str(error)})
    dataset = usable.dataset
    groups: dict[str, list[str]] = {}
    for picture, scan in zip(dataset.paths, scan_pictures(dataset.paths), strict=True):
        groups.setdefault(scan.pixels, []).append(printable(picture))
    leak_report = find_leaks(dataset, evaluation, by_content=bool(evaluation))
    if leak_report.not_compared:
        first_path, why = next(iter(leak_report.not_compared.items()))
        warnings.warn(
            f"{len(leak_report.not_compared)} pictures were compared by name and not by content; "
            f"the first is {printable(first_path)}: {printable(why)}",
            stacklevel=2,
        )
    captioned = dataset.select([i for i, captions in enumerate(dataset.captions) if captions])
    splits = assign_splits(replace(usable, dataset=captioned))
    counts = {split: splits.count(split) for split in SPLITS}
    pairs = zip(captioned.splits, splits, strict=True)
    if drawn := {split for original, split in pairs if original == "train"} - {"train"}:
        sizes = ", ".join(f"{split} {counts[split]:,}" for split in SPLITS if split in drawn)
        warnings.warn(
            f"Drawn from the data's own train, since it has no such split: {sizes}.", stacklevel=2
        )
    return {
        "format": format,
        "pictures": {"usable": len(dataset), "unusable": list_reasons(usable.unusable)},
        "captions": {
            "usable": len(dataset.texts),
            "empty": usable.empty_captions,
            "truncated": count_truncated(dataset.texts),
        },
        "splits": {"from": usable.splits_from or "digest", **counts},
        "linked": usable.linked,
        "duplicates": [group for group in groups.values() if len(group) > 1],
        "leaks": [leak.as_dict() for leak in leak_report.leaks],
    }


def _let_content_tell(evaluation: CaptionedImages) -> CaptionedImages:
    """Takes bare numbers of pictures that can be read for their own, as `read_splits` does.

    Where a picture is missing, its number is all that may tell.
    """
    scans = scan_pictures(evaluation.paths, "comparing pictures")
    image_ids = tuple(
        image_id or OWN * (not scan.problem)
        for scan, image_id in zip(scans, evaluation.image_ids, strict=True)
    )
    return replace(evaluation, image_ids=image_ids)


def count_truncated(captions: Sequence[str], tokenizer: Any = None) -> int:
    """How many captions a model does not read to their end: too long, or with its end token inside.

    Args:
        captions: of any length.
        tokenizer: the model's; left out, CLIP's with 77 tokens.
    """
    if tokenizer is None:
        from open_clip import SimpleTokenizer  # takes seconds, and reading data does not need it

        tokenizer = SimpleTokenizer()
    size = tokenizer(["a"]).shape[1]
    # A token has at least one byte, so most captions need not be tokenized to know that they fit.
    candidates = [c for c in captions if len(c.encode()) > size - 2 or "end_of_text" in c.lower()]
    candidates = candidates or ["a"]
    # A caption that was cut has another token in place of its end token if there is more room.
    ids = tokenizer(candidates)
    longer_ids = tokenizer(candidates, context_length=size + 1)[:, :size]
    has_end_token = (ids == getattr(tokenizer, "eot_token_id", -1)).sum(1) > 1
    return int((has_end_token | (ids != longer_ids).any(1)).sum())


def summarize(report: dict[str, Any], compared: bool) -> Iterator[str]:
    """Yields the lines that sum up a report by `inspect_data` for a person.

    Args:
        report: as `inspect_data` returned it.
        compared: whether evaluation sets were given.
    """
    pictures, captions, splits = report["pictures"], report["captions"], report["splits"]
    yield f"Format: {report['format']}"
    yield f"Pictures: {pictures['usable']:,} usable, {len(pictures['unusable']):,} unusable"
    yield from _list_some(_join_equal(pictures["unusable"]))
    yield (
        f"Captions: {captions['usable']:,} usable ({captions['truncated']:,} of them cut after "
        f"CLIP's 77 tokens or at its end token), {captions['empty']:,} empty"
    )
    counts = ", ".join(f"{split} {splits[split]:,}" for split in SPLITS)
    yield f"Splits, from {_ORIGINS[splits['from']]}: {counts}"
    if report["linked"]:
        yield f"Links out of the folder were followed to {report['linked']:,} pictures"
    yield f"Groups of equal pictures: {len(report['duplicates']):,}"
    yield from _list_some([" = ".join(group) for group in report["duplicates"]])
    if compared:
        yield f"Leaks: {len(report['leaks']):,} pictures that are evaluation pictures too"
        yield from _list_some(
            ["{picture} is {evaluation}, {by}".format(**leak) for leak in report["leaks"]]
        )


def _join_equal(entries: Sequence[dict[str, str]]) -> list[str]:
    """A line for each reason, with the first place and the number of places that share it."""
    places: dict[str, list[str]] = {}
    for entry in entries:
        # A reason may name its picture.
        places.setdefault(entry["reason"].replace(entry["path"], "it"), []).append(entry["path"])
    return [
        f"{first}{f' and {len(others):,} more' if others else ''}: {reason}"
        for reason, (first, *others) in places.items()
    ]


def _list_some(lines: Sequence[str]) -> Iterator[str]:
    yield from (f"  {printable(line)}" for line in lines[:_MOST_LINES])
    if len(lines) > _MOST_LINES:
        yield f"  … and {len(lines) - _MOST_LINES:,} more; --json FILE has all"
