"""The one entry to captioned pictures: which format lies at a path, and reading it."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dclip_kit.config import FORMATS
from dclip_kit.data.collect import Checks, PlacedRow, UsableImages, collect
from dclip_kit.data.columns import SPLIT_OF
from dclip_kit.data.hub import TABLE, is_dataset, unpack_dataset
from dclip_kit.data.paths import is_picture, walk_files
from dclip_kit.data.readers import (
    MANIFEST,
    Row,
    is_table,
    read_coco,
    read_conceptual,
    read_flickr,
    read_karpathy,
    read_manifest,
    read_shards,
    read_table,
    read_texts,
    unpack_shards,
)
from dclip_kit.runtime.files import open_file


@dataclass(frozen=True)
class Format:
    """A form that captioned pictures come in.

    Attributes:
        files: patterns of its files in a folder.
        read: yields the rows of a file, given the folder of the pictures.
        source: what to call the data; left out, as the folder or file.
        in_splits: whether folders that are called like splits may have a file each.
        says_splits: whether the file itself tells splits, and not a column of it.
        own_pictures: whether it says where the pictures are, so that no folder can be named.
    """

    files: tuple[str, ...]
    read: Callable[[Path, Path], Iterator[Row]]
    source: str = ""
    in_splits: bool = False
    says_splits: bool = False
    own_pictures: bool = False


_TABLES = ("captions.csv", "captions.tsv", "metadata.tsv", "metadata.csv")
_COCO = ("annotations/captions_*.json", "captions_*.json")
READERS = {
    "csv": Format(_TABLES, read_table, in_splits=True),
    "jsonl": Format(("*.jsonl",), read_table, in_splits=True),
    "files": Format((), read_texts, own_pictures=True),
    "karpathy": Format(("dataset_*.json",), read_karpathy, says_splits=True),
    "coco": Format(_COCO, read_coco, "coco", says_splits=True),
    "flickr": Format(("results_20130124.token", "results.csv"), read_flickr, "flickr30k"),
    "conceptual": Format(("*.tsv",), read_conceptual, "conceptual_captions"),
    "shards": Format(("*.tar",), read_shards, in_splits=True, own_pictures=True),
    "datasets": Format((), read_table, own_pictures=True),
    "manifest": Format((), read_manifest, says_splits=True, own_pictures=True),
}
_FOLD = "test_1k_"  # of COCO's test, five thousands that many results are the mean of
_TRIED = 20  # pictures that are looked for, to find their folder
# How files end, what they begin with, and their format; the first that fits.
_MARKS = (
    (".csv", b"image_name|", "flickr"),
    (".csv", b"", "csv"),
    (".jsonl", b"", "jsonl"),
    (".json", MANIFEST.encode(), "manifest"),
    (".json", b'"sentences"', "karpathy"),
    (".json", b'"annotations"', "coco"),
    (".json", b'"file_name"', "coco"),
    (".token", b"", "flickr"),
    (".tsv", b"", "conceptual"),
    (".tar", b"", "shards"),
)


def read_captioned(
    path: Path | str,
    images: Path | str | None = None,
    format: str | None = None,
    split: str = "train",
    checks: Checks = "pictures",
) -> UsableImages:
    """Reads pictures and their captions, whatever format they are in.

    Args:
        path: an annotation file, a shard, a manifest that `curate` wrote, or a folder with
            annotations, shards, or pictures that have text files beside them.
        images: the folder that the pictures' names are below; left out, it is looked for near the
            annotations.
        format: one of `READERS`; left out, it is recognised.
        split: which part to read of data that have splits of their own (Karpathy's, COCO's, those
            that a column or folders tell), several joined by "+", or "all"; and what to call the
            data of the others.
        checks: "pictures" reads every picture once, "names" takes the annotations' word for it.

    Returns:
        `dataset`, and what was left out of it and why.

    Raises:
        ValueError: the format is unknown or not recognised, a file lacks what its format demands,
            or nothing usable is left.
    """
    found = read_format(path, images, format, split, checks)
    reason = next((f"; the first, {place}: {why}" for place, why in found.unusable.items()), ".")
    if not any(found.dataset.captions):
        raise ValueError(
            f"Expected captioned pictures in {found.dataset.source}, but none was left "
            f"({len(found.dataset)} without a caption, {found.empty_captions} captions without "
            f"text, {len(found.unusable)} unusable pictures or rows){reason}"
        )
    return found


def read_format(
    path: Path | str, images: Path | str | None, format: str | None, split: str, checks: Checks
) -> UsableImages:
    """Reads as `read_captioned` does, and may return that nothing is usable.

    Raises:
        ValueError: as `recognise_format`, or a file lacks what its format demands.
    """
    called, path = recognise_format(path, images, format), Path(path)
    form, files = READERS[called], _choose_files(path, called, split)
    folder, given = path if path.is_dir() else path.parent, Path(images) if images else None
    if called == "files":
        given = path
    elif called == "datasets":
        folder = unpack_dataset(str(path))
        files = [folder / TABLE]
    elif called == "shards":
        unpacked = unpack_shards(path, files)
        files, given = [unpacked], unpacked if path.is_dir() else unpacked / path.stem
    rows: list[PlacedRow] = []
    for file in files:
        own = list(form.read(file, given or file.parent))
        if split.startswith(_FOLD):
            own = _take_fold(own, split, file)
        # Tables in folders of splits name their pictures from there.
        below = file.parent.name if form.read is read_table and file.parent != folder else ""
        root = given / below if given else _find_images(own, file, form.read is not read_table)
        for row in own:
            where = os.path.join(below, row.where)
            rows.append((replace(row, where=where), root if called != "manifest" else None))
    if called == "karpathy":
        source = files[0].stem.removeprefix("dataset_")
    elif called == "datasets":
        source = path.name
    else:
        source = form.source or (path if form.own_pictures else folder).resolve().stem
    return collect(
        rows,
        "test" if split.startswith(_FOLD) else split,
        source,
        checks,
        "file" if form.says_splits else "column",
    )


def _take_fold(rows: Sequence[Row], split: str, file: Path) -> list[Row]:
    """One of the five thousands of COCO's test, in the file's order.

    A picture that cannot be read leaves its fold smaller.

    Raises:
        ValueError: there is no such fold, or there are not 5,000 test pictures.
    """
    folds, test = (
        [f"{_FOLD}{number}" for number in range(5)],
        [x for x in rows if x.split == "test"],
    )
    if split not in folds or len(test) != 5000:
        raise ValueError(
            f"Expected one of {', '.join(folds)}, of a file with 5,000 test pictures, got "
            f"{split!r} and {len(test):,} in {file}; folds are COCO's, give --split test."
        )
    start = 1000 * folds.index(split)
    return test[start : start + 1000]


def _find_images(rows: Sequence[Row], file: Path, above: bool) -> Path:
    """The folder near a file that has the most of its first pictures; else the file's own.

    Folders of its own name come first: train2014 for captions_train2014.json.

    Args:
        rows: of the file.
        file: pictures are looked for in its folder and in usual folders there.
        above: whether to look in the folder above, too.
    """
    own = file.stem.removeprefix("captions_").removeprefix("dataset_")
    usual = (own, f"images/{own}", "", "images", "Images", f"{own}_images", f"{own}-images")
    below = dict.fromkeys((*usual, "flickr30k_images", "flickr30k-images"))
    names = [str(row.picture) for row in rows[:_TRIED] if not row.problem]
    near = (file.parent, file.parent.parent)[: 1 + above]
    places = [place / each for place in near for each in below]

    def count(place: Path) -> int:
        return sum("\0" not in name and os.path.isfile(place / name) for name in names)

    best = max(places, key=count)
    return best if count(best) else file.parent


def recognise_format(
    path: Path | str, images: Path | str | None = None, format: str | None = None
) -> str:
    """Says which format lies at a path, and checks what can be known before reading.

    Args:
        path: as in `read_captioned`.
        images: as in `read_captioned`.
        format: where it is known already.

    Raises:
        ValueError: none of the known formats is there, or several; or the format takes no folder of
            pictures, or there is none.
    """
    path = Path(path)
    if format is None and is_dataset(path):
        format = "datasets"
    if not path.exists() and format != "datasets":
        raise ValueError(f"Expected a file or folder at {path}, found nothing; check the path.")
    found = {format: path} if format else find_formats(path)
    if len(found) > 1:
        files = ", ".join(f"{format} ({file.name})" for format, file in found.items())
        raise ValueError(
            f"Expected data of one format at {path}, found several: {files}; name the annotation "
            "file, or say which with --format (format= in Python)."
        )
    if not found:
        known = ", ".join(f"{format} ({needed})" for format, needed in FORMATS.items())
        raise ValueError(
            f"Expected captioned pictures in a known format at {path}, found none that is "
            f"recognised; say which with --format (format= in Python), or bring them into one: "
            f"{known}."
        )
    (format,) = found
    if format not in READERS:
        raise ValueError(f"Expected a format of {', '.join(READERS)}, got {format!r}.")
    if images is not None and READERS[format].own_pictures:
        raise ValueError(
            f"Expected the pictures of {path} there, got another folder of pictures ({images}); "
            "leave --images (images= in Python) out."
        )
    if images is not None and not Path(images).is_dir():
        raise ValueError(f"Expected a folder of pictures at {images}, found none; check the path.")
    return format


def find_formats(path: Path) -> dict[str, Path]:
    """The formats that a folder has files of, with the first of their files; or that of a file."""
    if not path.is_dir():
        with open_file(path) as file:
            head = file.read(1 << 16)  # these run to 100 MB and more, and begin with an entry
        suffix = path.suffix.lower()
        fitting = [kind for ending, mark, kind in _MARKS if suffix == ending and mark in head]
        if fitting == ["conceptual"] and is_table(path):
            fitting = ["csv"]
        return dict.fromkeys(fitting[:1], path)
    files = {format: _list_files(path, format) for format in READERS}
    files["conceptual"] = [file for file in files["conceptual"] if not is_table(file)]
    found = {format: each[0] for format, each in files.items() if each}
    if found:  # texts beside pictures may accompany any annotation file, which then has the say
        return found
    names = set(walk_files(path))
    pictures = (Path(name) for name in names if is_picture(name))
    return {"files": path} if any(str(p.with_suffix(".txt")) in names for p in pictures) else {}


def _list_files(folder: Path, called: str) -> list[Path]:
    """A format's files in a folder; else, where they may lie there, in its folders of splits."""
    form = READERS[called]
    own = [file for pattern in form.files for file in sorted(folder.glob(pattern))]
    if own or not form.in_splits:
        return own
    below = sorted(folder.glob(f"*/{form.files[-1]}"))
    return [file for file in below if file.parent.name.lower() in SPLIT_OF]


def _choose_files(path: Path, called: str, split: str) -> list[Path]:
    """The files of a format to read for a split: one, or one a split.

    Raises:
        ValueError: there is none, or too many to tell which is meant.
    """
    if not path.is_dir() or called in ("files", "manifest", "datasets"):
        return [path]
    files = _list_files(path, called)
    groups: dict[str, list[Path]] = {}
    for file in files:
        named = re.match(r"captions_(train|val|test)", file.name) if called == "coco" else None
        group = named[1] if named else "" if file.parent == path else str(file.parent)
        groups.setdefault(str(file) if called == "shards" else group, []).append(file)
    if called == "coco" and split in groups:
        groups = {split: groups[split]}
    if not groups or any(len(group) > 1 for group in groups.values()):
        names = ", ".join(str(file.relative_to(path)) for file in files) or "none"
        raise ValueError(
            f"Expected one file {' or '.join(READERS[called].files)} in {path}, got {names}; name "
            "the file."
        )
    return [file for group in groups.values() for file in group]
