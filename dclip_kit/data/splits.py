"""Pictures to train on, to choose on and to measure on, whatever data they come from; no twins.

What the data says of splits is heeded: Karpathy's, COCO's and a manifest's own, a column, folders.
What it does not say is drawn: about a tenth of the pictures is the test, another tenth is val, and
the rest trains. A digest of a seed and of a picture's bytes is a number from 0 to 1, and where that
lies is the picture's split. So a picture keeps its split whatever is added to its data set, neither
its name nor its place matters, copies of one file stay together, and the same pictures are divided
alike on another machine.

The paper's training mixture is drawn by a seed alone, once, and written down picture by picture: a
manifest. And a look at data says before training what is usable, what is twice, and what leaks.
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

# How many pictures of each data set the paper draws: 75,000, of which a tenth is held out, so that
# 67,500 train. Our reading: a picture with all its captions counts as one image-caption pair.
PAPER_MIXTURE = {"coco": 50_000, "flickr30k": 15_000, "conceptual_captions": 10_000}
HELD_OUT = 0.1
FEWEST = 2  # pictures of a split: with one, every model finds all
SHARE = 0.1  # of the pictures, for each of val and test
_START = {"val": 0.0, "test": SHARE}  # of each split's numbers
_MOST_LINES = 10  # of a list; the report has all
_ORIGINS = {
    "digest": "a digest of the files",
    "file": "the data set's own files",
    "column": "a column",
    "folders": "folders",
}


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
        copies: how many of them are the same file as another of their split.
        not_splits: columns that are called as if they said splits, and do not.
    """

    unusable: dict[str, str]
    empty_captions: int
    without_captions: int
    leaks: tuple[Leak, ...]
    not_compared: dict[Path, str]
    linked: int = 0
    copies: int = 0
    not_splits: tuple[str, ...] = ()

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
            f"Copies of pictures in the same split, each of which counts: {self.copies:,}."
            if self.copies
            else "",
            f"{say_not_splits(self.not_splits)}." if self.not_splits else "",
        )
        return printable(" ".join(filter(None, sentences)))


@dataclass(frozen=True)
class Splits:
    """Captioned pictures to train on, to choose on and to measure on, and what was left out.

    Of the pocket's, which are whole, nothing was: None.
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
        test: data to measure on instead: its own test, of COCO's folder and of a manifest its val,
            of any other all. What `path` has for a test is left alone then.
        seed: of drawing the splits that the data has not.
        by_content: whether leaks are looked for by content too, which reads all pictures.

    Raises:
        ValueError: data cannot be read or is too little.
        ModuleNotFoundError: imagehash is not installed, and `by_content` asks for it.
    """
    found = [read_captioned(path, images, split="all")]
    splits = assign_splits(found[0], seed, ("val", "test") if test is None else ("val",))
    parts = {name: _select(found[0], splits, name) for name in SPLITS}
    if test is not None:
        found.append(read_captioned(test, split="all"))
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
        copies=sum(map(_count_copies, kept.values())) if by_content else 0,
        not_splits=tuple(dict.fromkeys(name for each in found for name in each.not_splits)),
    )
    if min(map(len, kept.values())) < FEWEST:
        raise ValueError(
            f"Expected at least {FEWEST} pictures in each split of {found[0].dataset.source}, got "
            f"train {len(kept['train'])}, val {len(kept['val'])}, test {len(kept['test'])}; give "
            "more, say each picture's split in a column split or by folders train, val and test, "
            f"or name other data to measure on. {left_out}".strip()
        )
    return Splits(**kept, left_out=left_out)


def read_test(
    path: Path | str,
    images: Path | str | None = None,
    test: Path | str | None = None,
    seed: int = 0,
) -> CaptionedImages:
    """Reads the test of `read_splits` alone; arguments and errors as there.

    What leaks is left out of the other splits, so that nothing need be compared by content. What
    could not be used is printed.
    """
    if test is not None:
        found = read_captioned(test, split="all")
        return say_left_out(found, _measured_part(found))
    found = read_captioned(path, images, split="all", checks="names")
    # What cannot be read is drawn for no split, and might have been for this one.
    drawn = [split or "test" for split in assign_splits(found, seed, ("test",))]
    usable = drop_unusable(_select(found, drawn, "test"))
    unusable = found.unusable | usable.unusable
    own = say_left_out(replace(found, unusable=unusable), usable.dataset)
    if len(own) < FEWEST:
        raise ValueError(
            f"Expected at least {FEWEST} pictures to measure on in {path}, got {len(own)} of "
            f"{len(found.dataset)}; give more, or measure on all with split all."
        )
    return own


def read_training_captions(
    path: Path | str,
    images: Path | str | None = None,
    test: Path | str | None = None,
    seed: int = 0,
) -> list[str]:
    """Reads the captions of the train of `read_splits`, by their annotations' word.

    What leaks is left in, and so is what cannot be read: nothing is trained or measured on it.
    Arguments and errors as there.
    """
    found = read_captioned(path, images, split="all", checks="names")
    splits = assign_splits(found, seed, ("val", "test") if test is None else ("val",))
    return _select(found, splits, "train").texts


def say_left_out(found: UsableImages, used: CaptionedImages | None = None) -> CaptionedImages:
    """Prints what could not be used of data.

    Args:
        found: the data.
        used: the part of it that is used, none of which lacks a caption; left out, all is.

    Returns:
        What is used.
    """
    without = sum(not group for group in found.dataset.captions) if used is not None else 0
    used = found.dataset if used is None else used
    copies = _count_copies(used)
    left_out = LeftOut(
        found.unusable,
        found.empty_captions,
        without,
        (),
        {},
        found.linked,
        copies,
        found.not_splits,
    )
    if str(left_out):
        say(f"Of {found.dataset.source}: {left_out}")
    return used


def say_not_splits(columns: Sequence[str]) -> str:
    """What is said of columns that are called as if they said splits."""
    return f"Not taken for splits, as its values are no names of splits: {', '.join(columns)}"


def _count_copies(pictures: CaptionedImages) -> int:
    digests = [scan.digest for scan in scan_pictures(pictures.paths, decode=False)]
    return len(digests) - len(set(digests))


def read_evaluation(path: Path | str) -> CaptionedImages:
    """Reads an evaluation set by its annotations' word, as a missing picture leaks by name too.

    Of Karpathy's and COCO's these are val and test, of other formats all.

    Raises:
        ValueError: it cannot be read, or there is nothing.
    """
    found = read_format(path, None, None, "all", "names")
    splits = found.dataset.splits
    kept = [i for i, own in enumerate(splits) if own != "train" or found.splits_from != "file"]
    if not kept:
        raise ValueError(
            f"Expected evaluation pictures at {path}, found none to compare with; name another."
        )
    return found.dataset.select(kept)


def assign_splits(
    found: UsableImages, seed: int = 0, needed: Sequence[str] = ("val", "test")
) -> list[str]:
    """The split of each picture; "" for those of a test that is not measured on.

    Where a split is needed and not there, about a tenth of train is drawn for it; then what cannot
    be read has the split "", too.

    Args:
        found: all of a data set.
        seed: of the splits that are drawn.
        needed: of val and test; they are drawn where the data has none. Without test, other data is
            measured on.
    """
    splits = [own or "train" for own in found.dataset.splits]
    if "test" not in needed:
        splits = ["" if split == "test" else split for split in splits]
    elif found.splits_from == "file" and "test" not in splits:  # COCO's val is what people report
        splits = ["test" if split == "val" else split for split in splits]
    missing = [split for split in needed if split not in splits]
    rest = [i for i, split in enumerate(splits) if split == "train" and missing]
    paths = [found.dataset.paths[i] for i in rest]
    for i, scan in zip(rest, scan_pictures(paths, "dividing pictures", decode=False), strict=True):
        digest = hashlib.sha256(f"{seed} {scan.digest}".encode()).hexdigest()
        place = int(digest[:16], 16) / 16**16
        drawn = (split for split in missing if 0 <= place - _START[split] < SHARE)
        splits[i] = "" if scan.problem else next(drawn, "train")
    return splits


def read_uncaptioned(
    path: Path | str, evaluation: Sequence[CaptionedImages], by_content: bool = True
) -> tuple[CaptionedImages, LeftOut]:
    """Reads pictures to learn from without captions.

    Args:
        path: a folder of pictures, all of which are taken whatever a table says of some, or as in
            `read_captioned`; captions are not kept.
        evaluation: pictures that are left out: those to choose and to measure on.
        by_content: whether they are looked for by content too, which reads all pictures.

    Returns:
        The pictures, none of which has a caption, and what was left out.

    Raises:
        ValueError: there is nothing at the path, or no picture that can be read and is not in
            evaluation.
        ModuleNotFoundError: imagehash is not installed, and `by_content` asks for it.
    """
    place = Path(path)
    if not place.is_dir() or find_formats(place).keys() - {"files", "csv", "jsonl"}:
        found = read_format(path, None, None, "all", "pictures")
    else:  # texts and tables beside the pictures are not read: they may not know them all
        paths = tuple(place / name for name in walk_files(place) if is_picture(name))
        found = drop_unusable(
            CaptionedImages(paths, ((),) * len(paths), "uncaptioned", place.resolve().name)
        )
        found = replace(found, linked=count_links(found.dataset.paths, place))
    pictures = replace(
        found.dataset,
        captions=((),) * len(found.dataset),
        split="uncaptioned",
        splits=(),
        # Their names are no data set's numbers, unless the format says so.
        image_ids=tuple(each or OWN for each in found.dataset.image_ids),
    )
    report = find_leaks(pictures, evaluation, by_content)
    left_out = LeftOut(found.unusable, 0, 0, report.leaks, report.not_compared, found.linked)
    kept = remove_leaks(pictures, report.leaks)
    if not len(kept):
        raise ValueError(
            f"Expected pictures to learn from in {path} that are in neither val nor test, found "
            f"none; name others. {left_out}".strip()
        )
    return kept, left_out


def halve_labelled(dataset: LabelledImages, seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
    """Divides labelled pictures into a half to choose on and a half to measure on.

    Class by class, in an order that a digest of the seed and of the picture's name decides, they go
    to one and the other in turn.
    """
    digests = [
        hashlib.sha256(f"{seed} {i} {path.name}".encode(errors="surrogateescape")).hexdigest()
        for i, path in enumerate(dataset.paths)
    ]
    order = sorted(range(len(dataset)), key=lambda i: (dataset.labels[i], digests[i]))
    return dataset.select(sorted(order[::2])), dataset.select(sorted(order[1::2]))


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

    The same seed draws the same pictures, whatever order they were read in. Pictures that cannot be
    read, have no caption or leak are passed over for the next; each is named in the manifest. A
    tenth of each data set goes to split "val".

    Args:
        datasets: by name, as in the mixture, those of its data sets that are present. They may have
            been read with checks="names": pictures are read here, and only those that are drawn.
        manifest: the JSON file to write.
        evaluation: the sets that a model will be measured on.
        mixture: how many pictures to draw by name.
        seed: of the draw.
        by_content: whether leaks are looked for by content too.

    Returns:
        What was written: format, recipe, seed, counts, leaks, unusable, not_compared, entries.

    Raises:
        ValueError: a data set is not of the mixture, or nothing was drawn.
        ModuleNotFoundError: imagehash is not installed, and `by_content` asks for it.
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
            # They stand in random order, so that the last are held out.
            held_out = len(drawn) - round(HELD_OUT * len(drawn))
            entries = [
                {
                    # Below the manifest's folder, so that both can move together.
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
    """Goes through the pictures in a random order until there are enough without fault.

    What is left out on the way is noted in the record.
    """
    paths, ids = dataset.paths, dataset.image_ids
    # By id and name and not by folder, so that the draw is the same on another machine.
    order = sorted(range(len(dataset)), key=lambda i: (ids[i], paths[i].name, i))
    rng.shuffle(order)
    chosen: list[int] = []
    while order and len(chosen) < count:
        # What leaks or fails is made up for from the next ones in the order.
        size = count - len(chosen)
        batch, order = order[:size], order[size:]
        found = drop_unusable(dataset.select(batch))
        report = find_leaks(found.dataset, index)
        unusable = found.unusable | {
            str(paths[i]): "it has no caption" for i in batch if not dataset.captions[i]
        }
        left_out = unusable.keys() | {str(leak.picture) for leak in report.leaks}
        chosen += [i for i in batch if str(paths[i]) not in left_out]
        blind = {p: why for p, why in report.not_compared.items() if p not in index.not_compared}
        record["leaks"] += [leak.as_dict() for leak in report.leaks]
        record["unusable"] += list_reasons(unusable)
        record["not_compared"] += list_reasons(blind)
    return dataset.select(chosen)


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
        than CLIP's 77 tokens, or with its end token inside; `splits`, how many usable pictures with
        captions training would put into train, val and test, and by what ("from": column, folders,
        file, or digest where the data says nothing); `not_splits`, the columns that are called as
        if they said splits and do not; `linked`, how many pictures are links out of the data's
        folder; `duplicates`, groups of paths with equal pixels; `leaks`, of picture, evaluation and
        by.
        Pictures that leaks could only be looked for by name are told in a warning, and so are
        splits that have to be drawn from the data's own train.

    Raises:
        ValueError: the format is unknown or not recognised, or an evaluation set cannot be read.
        ModuleNotFoundError: imagehash is needed and not installed.
    """
    format = recognise_format(path, images, format)
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
    guard = find_leaks(dataset, evaluation, by_content=bool(evaluation))
    if guard.not_compared:
        first, why = next(iter(guard.not_compared.items()))
        warnings.warn(
            f"{len(guard.not_compared)} pictures were compared by name and not by content; the "
            f"first is {printable(first)}: {printable(why)}",
            stacklevel=2,
        )
    captioned = dataset.select([i for i, captions in enumerate(dataset.captions) if captions])
    splits = assign_splits(replace(found, dataset=captioned))
    counts = {split: splits.count(split) for split in SPLITS}
    both = zip(captioned.splits, splits, strict=True)
    if drawn := {split for own, split in both if own == "train"} - {"train"}:
        there = ", ".join(f"{split} {counts[split]:,}" for split in SPLITS if split in drawn)
        warnings.warn(
            f"Drawn from the data's own train, since it has no such split: {there}.", stacklevel=2
        )
    return {
        "format": format,
        "pictures": {"usable": len(dataset), "unusable": list_reasons(found.unusable)},
        "captions": {
            "usable": len(dataset.texts),
            "empty": found.empty_captions,
            "truncated": count_truncated(dataset.texts),
        },
        "splits": {"from": found.splits_from or "digest", **counts},
        "not_splits": list(found.not_splits),
        "linked": found.linked,
        "duplicates": [group for group in groups.values() if len(group) > 1],
        "leaks": [leak.as_dict() for leak in guard.leaks],
    }


def count_truncated(captions: Sequence[str], tokenizer: Any = None) -> int:
    """How many captions say more than a model reads: its context ends, or they hold its end token.

    Args:
        captions: of any length.
        tokenizer: the model's; left out, CLIP's with 77 tokens.
    """
    if tokenizer is None:
        from open_clip import SimpleTokenizer  # takes seconds, and reading data needs none of it

        tokenizer = SimpleTokenizer()
    size = tokenizer(["a"]).shape[1]
    # A token has at least one byte: most captions are short enough without asking.
    asked = [c for c in captions if len(c.encode()) > size - 2 or "end_of_text" in c.lower()]
    asked = asked or ["a"]
    # Where a caption that is cut ends, it goes on if there is more room.
    ids, roomier = tokenizer(asked), tokenizer(asked, context_length=size + 1)[:, :size]
    ended = (ids == getattr(tokenizer, "eot_token_id", -1)).sum(1) > 1
    return int((ended | (ids != roomier).any(1)).sum())


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
        f"Captions: {captions['usable']:,} usable ({captions['truncated']:,} of them cut after "
        f"CLIP's 77 tokens or at its end token), {captions['empty']:,} empty"
    )
    counts = ", ".join(f"{split} {splits[split]:,}" for split in SPLITS)
    yield f"Splits, from {_ORIGINS[splits['from']]}: {counts}"
    if report["not_splits"]:
        yield say_not_splits(report["not_splits"])
    if report["linked"]:
        yield f"Links out of the folder were followed to {report['linked']:,} pictures"
    yield f"Groups of equal pictures: {len(report['duplicates']):,}"
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
