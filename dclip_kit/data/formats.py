"""Reads captioned pictures: recognises the format at a path, and calls its reader."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dclip_kit.config import FORMATS
from dclip_kit.data.collect import Checks, PlacedRow, UsableImages, collect
from dclip_kit.data.columns import SPLIT_OF
from dclip_kit.data.hub import TABLE, has_parquet, is_dataset, unpack_dataset
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
    """A format of captioned pictures.

    Attributes:
        files: patterns of its files in a folder.
        read: yields the rows of a file, given the folder of the pictures.
        in_splits: whether each folder named like a split may have a file of its own.
        says_splits: whether the format itself has splits, other than by a column.
        own_pictures: whether the data locates its pictures, so that no folder can be given.
    """

    files: tuple[str, ...]
    read: Callable[[Path, Path], Iterator[Row]]
    in_splits: bool = False
    says_splits: bool = False
    own_pictures: bool = False


_TABLES = ("captions.csv", "captions.tsv", "captions.txt", "metadata.tsv", "metadata.csv")
_FLICKR = ("results_20130124.token", "results.csv", "Flickr8k.token.txt")
_COCO = ("annotations/captions_*.json", "captions_*.json")
READERS = {
    "csv": Format(_TABLES, read_table, in_splits=True),
    "jsonl": Format(("*.jsonl",), read_table, in_splits=True),
    "files": Format((), read_texts, own_pictures=True),
    "karpathy": Format(("dataset_*.json",), read_karpathy, says_splits=True),
    "coco": Format(_COCO, read_coco, says_splits=True),
    "flickr": Format(_FLICKR, read_flickr, says_splits=True),
    "conceptual": Format(("*.tsv",), read_conceptual),
    "shards": Format(("*.tar",), read_shards, in_splits=True, own_pictures=True),
    "datasets": Format((), read_table, own_pictures=True),
    "manifest": Format((), read_manifest, says_splits=True, own_pictures=True),
}
_FOLD = "test_1k_"  # five folds of 1,000 of COCO's test; many papers report their mean
_TRIED = 20  # pictures to look for in each folder where they may be
# A file's suffix, what its beginning contains (as a pattern, if that matters), and its format; the
# first that fits counts.
_MARKS = (
    (".csv", rb"^image_name\||\| ?0\|", "flickr"),
    (".csv", b"", "csv"),
    (".jsonl", b"", "jsonl"),
    (".json", re.escape(MANIFEST.encode()), "manifest"),
    (".json", rb'"sentences"\s*:', "karpathy"),
    (".json", rb'"(annotations|file_name)"\s*:', "coco"),
    (".token", b"", "flickr"),
    (".txt", rb"#0\t", "flickr"),
    (".tsv", rb"^(\w+://\S+\t[^\t\n]*|[^\t\n]*\t\w+://\S+)\s*$", "conceptual"),
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
        images: the folder that pictures are named from; left out, it is looked for near the
            annotations.
        format: one of `READERS`; left out, it is recognised.
        split: which split to read (of Karpathy's, COCO's, a column's or folders'), several joined
            by "+", or "all"; for data without splits, the name to give it.
        checks: "pictures" reads every picture once, "names" trusts the annotations.

    Returns:
        `dataset`, and what was left out of it and why.

    Raises:
        ValueError: the format is unknown or not recognised, a file lacks what its format demands,
            or nothing usable is left.
    """
    usable = read_format(path, images, format, split, checks)
    reason = next((f"; the first, {place}: {why}" for place, why in usable.unusable.items()), ".")
    if not any(usable.dataset.captions):
        raise ValueError(
            f"Expected captioned pictures in {usable.dataset.source}, but none was left "
            f"({len(usable.dataset)} without a caption, {usable.empty_captions} captions without "
            f"text, {len(usable.unusable)} unusable pictures or rows){reason}"
        )
    return usable


def read_format(
    path: Path | str, images: Path | str | None, format: str | None, split: str, checks: Checks
) -> UsableImages:
    """Reads as `read_captioned` does, but returns even if nothing is usable.

    Raises:
        ValueError: as `recognise_format`, or a file lacks what its format demands.
    """
    format_name, path = recognise_format(path, images, format), Path(path)
    reader, files = READERS[format_name], _choose_files(path, format_name, split)
    folder, images_folder = path if path.is_dir() else path.parent, Path(images) if images else None
    if format_name == "files":
        images_folder = path
    elif format_name == "datasets":
        files = [unpack_dataset(path.as_posix()) / TABLE]
    elif format_name == "shards":
        unpacked = unpack_shards(path, files)
        files, images_folder = [unpacked], unpacked if path.is_dir() else unpacked / path.stem
    rows: list[PlacedRow] = []
    for file in files:
        file_rows = list(reader.read(file, images_folder or file.parent))
        if split.startswith(_FOLD):
            file_rows = _take_fold(file_rows, split, file)
        # A table in a folder of a split names pictures relative to that folder.
        subfolder = file.parent.name if reader.read is read_table and file.parent != folder else ""
        root = (
            images_folder / subfolder
            if images_folder
            else _find_images(file_rows, file, reader.read is not read_table)
        )
        for row in file_rows:
            where = os.path.join(subfolder, row.where)
            rows.append((replace(row, where=where), root if format_name != "manifest" else None))
    # A file's name says more than its folder's, unless it is a table's: captions.csv.
    by_file = reader.own_pictures or reader.says_splits
    source = (path if by_file else folder).resolve().stem
    return collect(
        rows,
        "test" if split.startswith(_FOLD) else split,
        source,
        checks,
        "file" if reader.says_splits else "column",
    )


def _take_fold(rows: Sequence[Row], split: str, file: Path) -> list[Row]:
    """One of the five folds of 1,000 of COCO's test, in the file's order.

    A picture that cannot be read makes its fold smaller.

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
            f"{split!r} and {len(test):,} in {file}; only COCO has folds, so give --split test."
        )
    start = 1000 * folds.index(split)
    return test[start : start + 1000]


def _find_images(rows: Sequence[Row], file: Path, look_above: bool) -> Path:
    """The folder near a file with the most of its first pictures; its own folder if none has any.

    Folders named after the file come first: train2014 for captions_train2014.json.

    Args:
        rows: of the file.
        file: its folder and the usual subfolders of that are searched.
        look_above: whether to search the folder above, too.
    """
    stem = file.stem.removeprefix("captions_").removeprefix("dataset_")
    usual = (stem, f"images/{stem}", "", "images", "Images", f"{stem}_images", f"{stem}-images")
    flickr = ("flickr30k_images", "flickr30k-images", "Flicker8k_Dataset")  # the latter's own name
    subfolders = dict.fromkeys((*usual, *flickr))
    names = [str(row.picture) for row in rows[:_TRIED] if not row.problem]
    names = [name for name in names if not Path(name).is_absolute()]  # which say it themselves
    bases = (file.parent, file.parent.parent)[: 1 + look_above]
    folders = [base / subfolder for base in bases for subfolder in subfolders]

    def count(folder: Path) -> int:
        return sum("\0" not in name and os.path.isfile(folder / name) for name in names)

    best = max(folders, key=count)
    return best if count(best) else file.parent


def recognise_format(
    path: Path | str, images: Path | str | None = None, format: str | None = None
) -> str:
    """Names the format of the data at a path, and checks what can be checked before reading.

    Args:
        path: as in `read_captioned`.
        images: as in `read_captioned`.
        format: if it is known already.

    Raises:
        ValueError: the format is unknown, none or several are found; or `images` is no folder, or
            is given for a format that locates its own pictures.
    """
    path = Path(path)
    may_be_dataset = format in (None, "datasets") and is_dataset(path)
    if not path.exists() and not may_be_dataset:
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
            f"Expected no other folder for the pictures of {path}, got {images}; leave --images "
            "(images= in Python) out."
        )
    if images is not None and not Path(images).is_dir():
        raise ValueError(f"Expected a folder of pictures at {images}, found none; check the path.")
    return format


def find_formats(path: Path) -> dict[str, Path]:
    """The formats of the files in a folder, each with its first file; or the format of a file."""
    if is_dataset(path):
        return {"datasets": path}
    if not path.is_dir():
        format = _recognise_file(path)
        return {format: path} if format else {}
    files = {format: _list_files(path, format) for format in READERS}
    found = {format: paths[0] for format, paths in files.items() if paths}
    if found:  # texts may lie beside the pictures of any annotation file, which takes precedence
        return found
    names = set(walk_files(path))
    pictures = (Path(name) for name in names if is_picture(name))
    if any(str(picture.with_suffix(".txt")) in names for picture in pictures):
        return {"files": path}
    return {"datasets": path} if has_parquet(path) else {}


def _recognise_file(path: Path) -> str:
    """A file's format by its contents, or by its name if somebody added the reader; "" if none."""
    built_in = {format for *_, format in _MARKS}
    for format, reader in READERS.items():
        if format not in built_in and any(path.match(pattern) for pattern in reader.files):
            return format
    suffix = path.suffix.lower()
    if path.name in ("dataset_info.json", "dataset_infos.json"):  # Hugging Face's, of its columns
        return ""
    if suffix in (".csv", ".tsv", ".txt") and is_table(path):
        return "csv"
    marks = [(mark, format) for ending, mark, format in _MARKS if suffix == ending]
    if not any(mark for mark, _ in marks):  # of thousands of shards, none need be opened
        return marks[0][1] if marks else ""
    with open_file(path) as file:
        head = file.read(1 << 16)  # files run to 100 MB and more, and begin with an entry
    return next((format for mark, format in marks if re.search(mark, head, re.MULTILINE)), "")


def _list_files(folder: Path, format_name: str, by_name: bool = False) -> list[Path]:
    """A format's files in a folder; if none, those in its folders of splits, where allowed.

    A name alone may mislead (a results.csv may be a log), so contents decide, unless `by_name`.
    """
    reader = READERS[format_name]

    def find(prefix: str) -> list[Path]:
        files = [file for name in reader.files for file in sorted(folder.glob(prefix + name))]
        if prefix:
            files = [file for file in files if file.parent.name.lower() in SPLIT_OF]
        return [file for file in files if by_name or _recognise_file(file) == format_name]

    return find("") or (find("*/") if reader.in_splits else [])


def _choose_files(path: Path, format_name: str, split: str) -> list[Path]:
    """The files of a format to read for a split: one file, or one for each split.

    Raises:
        ValueError: there is none, or too many to tell which is meant.
    """
    if not path.is_dir() or format_name in ("files", "manifest", "datasets"):
        return [path]
    # Where none looks like the format, somebody said which it is: its reader tells what is wrong.
    files = _list_files(path, format_name) or _list_files(path, format_name, by_name=True)
    groups: dict[str, list[Path]] = {}
    for file in files:
        match = re.match(r"captions_(train|val|test)", file.name) if format_name == "coco" else None
        group = match[1] if match else "" if file.parent == path else str(file.parent)
        groups.setdefault(str(file) if format_name == "shards" else group, []).append(file)
    if format_name == "coco" and split in groups:
        groups = {split: groups[split]}
    if not groups or any(len(group) > 1 for group in groups.values()):
        names = ", ".join(str(file.relative_to(path)) for file in files) or "none"
        raise ValueError(
            f"Expected one file {' or '.join(READERS[format_name].files)} in {path}, got {names}; "
            "name the file."
        )
    return [file for group in groups.values() for file in group]
