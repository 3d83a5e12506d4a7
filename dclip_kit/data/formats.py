"""The formats that captioned pictures come in, and the one entry to all of them."""

import csv
import hashlib
import json
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from dclip_kit.config import FORMATS
from dclip_kit.data.annotations import (
    SPLIT_OF,
    Annotations,
    Checks,
    UsableImages,
    drop_unusable,
    find_file,
    find_files,
    find_split_column,
    gather,
    is_text,
    load_json,
    path_inside,
    read_lines,
    take_split,
)
from dclip_kit.data.pictures import CaptionedImages, scan_pictures
from dclip_kit.runtime.files import cache_path, filling, open_file, write_atomically

PICTURE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jfif",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".avif",
        ".ppm",
        ".pgm",
        # Which Pillow may not read: they are counted and reported, and not overlooked.
        ".heic",
        ".heif",
        ".jp2",
        ".jxl",
    }
)
# The files by which a folder's format is known.
_FILES = {
    "csv": ("captions.csv", "captions.tsv", "metadata.tsv", "metadata.csv"),
    "jsonl": ("*.jsonl",),
    "karpathy": ("dataset_*.json",),
    "coco": ("annotations/captions_*.json", "captions_*.json"),
    "flickr": ("results_20130124.token", "results.csv"),
    "conceptual": ("*.tsv",),
    "shards": ("*.tar",),
}
# The names of a table's columns, or of a JSON's keys.
_PICTURE = ("image", "file_name")
_CAPTION = ("captions", "caption", "text")
_REFUSED = "refused.json"  # what unpacking left out, reported whenever the cache is read
_COCO_NAME = re.compile(r"captions_(train|val|test)(.*)\.json")
MANIFEST = "dclip-kit manifest 1"  # how the file says what it is
_NUMBERED = re.compile(rf"^({'|'.join(SPLIT_OF)})[-_]\d.*", re.IGNORECASE)  # a split's shard
_TOKEN = re.compile(r"([^\t]+)#\d+\t(.*)")
_CSV = re.compile(r"([^|]+)\|[^|]*\|(.*)")  # a comment may have bars


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
    return READERS[recognise_format(path, images, format)](
        Path(path), Path(images) if images else None, split, checks
    )


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
    if not path.exists():
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
    if images is not None and format in ("files", "shards", "manifest"):
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
        if fitting == ["conceptual"] and _is_table(path):
            fitting = ["csv"]
        return dict.fromkeys(fitting[:1], path)
    files = {
        format: find_files(path, *patterns, in_splits=format in ("csv", "jsonl", "shards"))
        for format, patterns in _FILES.items()
    }
    files["conceptual"] = [file for file in files["conceptual"] if not _is_table(file)]
    found = {format: each[0] for format, each in files.items() if each}
    if found:  # texts beside pictures may accompany any annotation file, which then has the say
        return found
    names = set(walk_files(path))
    pictures = (Path(name) for name in names if is_picture(name))
    return {"files": path} if any(str(p.with_suffix(".txt")) in names for p in pictures) else {}


def _is_table(path: Path) -> bool:
    """Whether a TSV's first line names columns with pictures and captions, as a table's does."""
    first = next((line for _, line in read_lines(path)), "")
    columns = {column.strip().lower() for column in first.split("\t")}
    return bool(columns & {*_PICTURE} and columns & {*_CAPTION})


def read_table(
    path: Path,
    images: Path | None = None,
    split: str = "train",
    checks: Checks = "pictures",
    format: str = "csv",
) -> UsableImages:
    """Reads a CSV or TSV, or a JSONL of an object a line; Hugging Face's metadata are such tables.

    Columns or keys are image (or file_name), caption (or text) and perhaps split. A picture may
    have several rows; in a JSONL a caption may be a list of several, and be called captions.

    Args:
        path: the file, or the folder with its captions.csv or metadata.csv (or .tsv; its only
            .jsonl), or the folder whose folders train, val and test have a metadata.csv (a .jsonl)
            each.
        images: the folder that the names are below; left out, the file's own.
        split: as in `gather`.
        checks: as in `drop_unusable`.
        format: csv or jsonl.

    Raises:
        ValueError: there is no such file or two, a CSV lacks a column, or as `gather`.
    """
    read_rows = {"csv": _read_csv_rows, "jsonl": _read_jsonl_rows}[format]
    folder = path if path.is_dir() else path.parent
    files = find_files(path, *_FILES[format], in_splits=True)
    if not files or files[0].parent == folder:
        files = [find_file(path, *_FILES[format])]
    found = Annotations()
    for file in files:
        # Names in a table in the folder of a split are below that folder.
        below = "" if file.parent == folder else file.parent.name
        rows = list(read_rows(found, file, os.path.join(below, file.name)))
        split_column, not_splits = find_split_column(rows, file, (*_PICTURE, *_CAPTION))
        found.not_splits = (*found.not_splits, *not_splits)
        for place, row in rows:
            name, caption = (
                next((row[key] for key in keys if key in row), None)
                for keys in (_PICTURE, _CAPTION)
            )
            if isinstance(name, str) and name.strip():
                name = os.path.join(below, name.strip())
            found.add(place, name, caption, split=row.get(split_column))
    return gather(found, images or folder, split, folder.resolve().name, checks)


def _read_csv_rows(
    found: Annotations, path: Path, called: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each row with its place, and notes of others why they are none."""
    with open_file(path, "r", newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
        # Strict, as a quote that is never closed would otherwise swallow the rows after it.
        tabs = path.suffix.lower() == ".tsv"
        delimiter, called_so = ("\t", "tabs") if tabs else (",", "commas")
        rows = csv.reader(lines, strict=True, skipinitialspace=True, delimiter=delimiter)
        try:
            columns = [column.strip().lower() for column in next(filter(None, rows), [])]
        except csv.Error as error:
            columns = [str(error)]
        counts = [columns.count(each) for each in (*_PICTURE, *_CAPTION, "split")]
        # A column captions would be a list in other words: ['a dog', 'a brown dog'].
        if (
            not ({*_PICTURE} & {*columns} and {*_CAPTION} & {*columns})
            or "captions" in columns
            or max(counts) > 1
        ):
            raise ValueError(
                f"Expected the columns image and caption (or file_name and text) once in {path}, "
                f"got {ascii(columns)[:200]}; put a first line that names them, and save the "
                f"file with {called_so} between columns and in UTF-8."
            )
        row: list[str] | None = []
        while row is not None:
            place = f"{called}:{rows.line_num + 1}"
            try:
                row = next(rows, None)
            except csv.Error as error:
                found.unusable[place] = f"expected CSV, got {error} (up to line {rows.line_num})"
                continue
            if any(
                name in _CAPTION and re.fullmatch(r"\s*\[\s*(['\"]).*\1\s*\]\s*", cell, re.DOTALL)
                for name, cell in zip(columns, row or (), strict=False)
            ):
                found.unusable[place] = "expected a caption, got a list of them; give each a row"
            elif row and len(row) == len(columns):
                yield place, dict(zip(columns, row, strict=True))
            elif row:
                found.unusable[place] = (
                    f"expected {len(columns)} fields, got {len(row)}; quote captions "
                    f"with {called_so}"
                )


def _read_jsonl_rows(
    found: Annotations, path: Path, called: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each row with its place, and notes of others why they are none."""
    for place, line in read_lines(path, called):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # brackets within brackets, thousands deep
            row = str(error)
        if isinstance(row, dict) and {*_CAPTION} & {*row}:
            yield place, row
        else:
            found.unusable[place] = (
                "expected an object with image (or file_name) and caption (or captions, text), got "
                f"{ascii(row)[:60]}"
            )


def read_files(
    path: Path,
    images: Path | None = None,
    split: str = "train",
    checks: Checks = "pictures",
    source: str = "",
) -> UsableImages:
    """Reads pictures with a text file of the same name beside each: img2dataset's `files` layout.

    A text file holds one caption a line. Where img2dataset's .json lies beside it too, its caption
    is taken whole, its address is the picture's id, and a status other than "success" is a reason
    to leave the picture out.

    Args:
        path: the folder; folders in it are read too.
        images: unused, as the texts lie beside the pictures.
        split: as in `gather`.
        checks: as in `drop_unusable`.
        source: as in `CaptionedImages`; left out, the folder's name.

    Raises:
        ValueError: as `gather`.
    """
    found = Annotations()
    names = list(walk_files(path))
    for name, note in _read_notes(found, path, names):
        captions, url = note.get("caption"), note.get("url")
        if not isinstance(captions, str):
            try:
                beside = (path / name).with_suffix(".txt")
                with open_file(beside, "r", encoding="utf-8-sig") as file:
                    text = file.read()
            except (OSError, ValueError) as error:
                found.unusable[str(path / name)] = (
                    f"Expected its caption beside it, but reading that failed ({error})."
                )
                continue
            captions = [line for line in text.split("\n") if line.strip()] or [""]
        found.add(name, name, captions, url if isinstance(url, str) and is_text(url) else "")
    texts = {str(Path(name).with_suffix(".txt")) for name in names if is_picture(name)}
    for name in names:
        if name.endswith(".txt") and name not in texts:
            found.unusable[name] = "expected a picture of the same name beside it, found none"
    return gather(found, path, split, source or path.resolve().name, checks)


def read_conceptual(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads Conceptual Captions' TSV (caption, tab, address) over what img2dataset downloaded.

    Many of its addresses are dead by now: each row without a picture is named among what is
    unusable, and so is each picture that the list does not know.

    Args:
        path: the TSV, with or without a header, or the folder with the only one.
        images: the folder that img2dataset wrote with output_format="files", a .json beside each
            picture; left out, the TSV's own.
        split: as in `gather`.
        checks: as in `drop_unusable`.

    Raises:
        ValueError: there is no such file, or there are several.
    """
    path = find_file(path, *_FILES["conceptual"])
    if _is_table(path):
        raise ValueError(
            f"Expected captions and addresses in {path}, got a table of pictures and captions; "
            "name the file itself, without --format (format= in Python) or with csv."
        )
    folder = images or path.parent
    found = Annotations()
    pictures: dict[str, list[str]] = {}
    for name, note in _read_notes(found, folder, walk_files(folder)):
        pictures.setdefault(str(note.get("url")).strip(), []).append(name)
    listed = set()
    for place, line in read_lines(path):
        caption, _, url = (field.strip() for field in line.partition("\t"))
        listed.add(url)
        if url not in pictures and (caption, url) != ("caption", "url"):  # a header, if there is
            found.unusable[place] = f"its picture was not downloaded ({ascii(url)[1:-1]})"
        for name in pictures.get(url, ()):
            found.add(place, name, caption, url)
    found.unusable |= {
        str(folder / name): f"Expected its address in {path.name}, but {url!a} is not there."
        for url, names in pictures.items()
        for name in names
        if url not in listed
    }
    return gather(found, folder, split, "conceptual_captions", checks)


def read_shards(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads .tar shards of pictures with .txt or .json of the same key, as img2dataset writes them.

    They are unpacked below `DCLIP_CACHE` or the user's cache folder. That takes as much disk again,
    and happens once for as long as their names and bytes stay.

    Args:
        path: one shard, a folder of them, or a folder whose folders train, val and test have them.
            Shards of one folder are splits as well if they are called train.tar, val.tar, test.tar
            or, with a number, train-000000.tar and so on.
        images: unused, as shards hold their pictures.
        split: as in `gather`.
        checks: as in `drop_unusable`.

    Raises:
        ValueError: there are no shards, they cannot be unpacked, or as `gather`.
    """
    shards = find_files(path, *_FILES["shards"], in_splits=True)
    if not shards:
        raise ValueError(f"Expected .tar shards at {path}, found none; name a shard or a folder.")
    root = path if path.is_dir() else path.parent
    places = {shard: shard.relative_to(root).with_suffix("") for shard in shards}
    if path.is_dir():
        places = {s: p.parent / _NUMBERED.sub(r"\1/\g<0>", p.name) for s, p in places.items()}
    # Where they are unpacked to is part of what the cache is known by.
    scans = scan_pictures(shards, "comparing shards", decode=False)
    known = [
        (str(shard.resolve()), scan.digest or scan.problem, place.as_posix())
        for (shard, place), scan in zip(places.items(), scans, strict=True)
    ]
    folder = cache_path("shards", hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16])
    if not folder.is_dir():
        refused: dict[str, str] = {}
        try:
            with filling(folder) as unpacked:
                for shard, place in tqdm(places.items(), desc="unpacking shards", delay=2):
                    _unpack(shard, shard.relative_to(root).as_posix(), unpacked / place, refused)
                write_atomically(unpacked / _REFUSED, json.dumps(refused, indent=1))
        except OSError as error:
            raise ValueError(
                f"Expected to unpack the shards at {path}, but it failed ({error}); make room, or "
                "give another folder with DCLIP_CACHE."
            ) from error
    pictures = folder if path.is_dir() else folder / path.stem
    found = read_files(pictures, None, split, checks, source=path.resolve().stem)
    return replace(found, unusable=load_json(folder / _REFUSED) | found.unusable)


def walk_files(folder: Path) -> Iterator[str]:
    """Yields the paths of all files below a folder, relative to it, in order of their names.

    Links to folders are followed, unless they lead back to where the way to them has been.

    Raises:
        OSError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:  # else a folder that cannot be read would be an empty one
        raise type(error)(
            f"Expected to read all folders below {folder}, but {error.filename} cannot be read "
            f"({error.strerror}); name a folder that has pictures alone."
        ) from error

    above = {str(folder): {os.path.realpath(folder)}}
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        been = above.pop(place)
        real = {name: os.path.realpath(os.path.join(place, name)) for name in folders}
        folders[:] = sorted(name for name in folders if real[name] not in been)
        above |= {os.path.join(place, name): been | {real[name]} for name in folders}
        for name in sorted(files):
            yield os.path.relpath(os.path.join(place, name), folder)


def is_picture(name: str) -> bool:
    """Whether a file is called like a picture."""
    return Path(name).suffix.lower() in PICTURE_SUFFIXES


def _read_notes(
    found: Annotations, folder: Path, names: Iterable[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each picture with img2dataset's note beside it, but for those that it says failed."""
    for name in filter(is_picture, names):
        file = Path(name).with_suffix(".json")
        note = {}
        try:
            if os.path.lexists(folder / file):
                note = load_json(folder / file)
        except ValueError as error:
            found.unusable[str(file)] = f"expected img2dataset's JSON, but got none ({error})"
        note = note if isinstance(note, dict) else {}
        if note.get("status") in (None, "success"):
            yield name, note
        else:
            found.unusable[str(folder / name)] = (
                f"img2dataset notes that it is no success ({note['status']!r})"
            )


def _unpack(shard: Path, called: str, folder: Path, refused: dict[str, str]) -> None:
    """Writes the pictures, texts and notes of a shard; its other members are not needed."""
    folder.mkdir(parents=True)
    try:
        with open_file(shard) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                if Path(member.name).suffix.lower() not in PICTURE_SUFFIXES | {".txt", ".json"}:
                    continue
                place = f"{called}:{ascii(member.name)[1:-1]}"
                file = archive.extractfile(member) if member.isreg() else None
                if file is None:
                    refused[place] = "expected a file, got a link, a device or a folder"
                    continue
                try:
                    path = path_inside(folder, member.name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(file.read())
                except ValueError:
                    refused[place] = "its name leads out of the shard"
            # To tarfile, a damaged header is an end too; a real one is a block of zeros.
            stream.seek(archive.offset)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("its end is missing")
    except tarfile.TarError as error:
        refused[called] = f"expected a whole shard, but reading on failed ({error})"


def read_coco(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads captions_train2014.json, captions_val2017.json and their like.

    Args:
        path: the file, or the folder of the data set, whose annotations/ has one file a split.
        images: the folder with the pictures; left out, train2014/ and so on is looked for.
        split: "train", "val" or "test", as a file's name says (COCO has no captions of its test;
            others do), or "all".
        checks: as in `drop_unusable`.

    Raises:
        ValueError: there is no such file, it is of another split or of another form, or it has
            objects and no captions.
    """
    wanted = ["train", "val", "test"] if split == "all" and path.is_dir() else [split]
    names = {each: [name.replace("*", f"{each}*") for name in _FILES["coco"]] for each in wanted}
    there = [each for each in wanted if find_files(path, *names[each])]
    files = [find_file(path, *names[each]) for each in there or wanted[:1]]
    parts = [_read_coco_file(file, images, split, checks) for file in files]
    joined: dict[str, Any] = {
        name: tuple(chain.from_iterable(getattr(part.dataset, name) for part in parts))
        for name in ("paths", "captions", "image_ids", "splits")
    }
    return replace(
        parts[0],
        dataset=replace(parts[0].dataset, **joined),
        unusable={place: why for part in parts for place, why in part.unusable.items()},
        empty_captions=sum(part.empty_captions for part in parts),
        linked=sum(part.linked for part in parts),
    )


def _read_coco_file(path: Path, images: Path | None, split: str, checks: Checks) -> UsableImages:
    """Brings each caption to its picture; a picture without captions stays."""
    named = _COCO_NAME.fullmatch(path.name)
    own, subset = (named[1], f"{named[1]}{named[2]}") if named else ("", "images")
    found = Annotations(splits_from="file")
    captions = defaultdict(list)
    try:
        record = load_json(path)
        for entry in record["annotations"]:
            captions[entry["image_id"]].append(entry["caption"])
        for index, entry in enumerate(record["images"]):
            place, number = f"{path.name}:images[{index}]", entry["id"]
            # In a file of COCO's form that is not COCO's, the number is nobody else's.
            image_id = f"coco:{number}" if named and named[2].startswith("20") else ""
            found.add(place, entry["file_name"], captions.pop(number, []), image_id, own)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"Expected COCO's captions in {path}, got another form ({error!r}); name a file such "
            "as captions_train2017.json."
        ) from error
    found.unusable |= {
        f"{path.name}:image_id {number}": "expected captions of a picture of this file"
        for number in captions
    }
    images = images or found.find_images(path, subset, f"images/{subset}", "", "images")
    return gather(found, images, split, "coco", checks)


def read_karpathy(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads dataset_coco.json or dataset_flickr30k.json (or one of that form).

    A COCO picture has five captions, a few have more, and all are kept. What the file calls restval
    is of train, as is usual.

    Args:
        path: the file, or the folder with the only one.
        images: the folder that has val2014/ and train2014/ (COCO) or the pictures (Flickr30k); left
            out, it is looked for beside the file.
        split: train, val, test, several joined by "+", "all", or test_1k_0 to test_1k_4: the five
            thousands of COCO's test in the file's order, which many results are the mean of.
        checks: as in `drop_unusable`.

    Raises:
        ValueError: there is no such file or split, or it is of another form.
    """
    path = find_file(path, *_FILES["karpathy"])
    found = Annotations(splits_from="file")
    try:
        record = load_json(path)
        source = str(record.get("dataset") or path.stem.removeprefix("dataset_"))
        numbered = list(enumerate(record["images"]))
        if split.startswith("test_1k_"):  # a picture that cannot be read leaves its fold smaller
            folds = [f"test_1k_{number}" for number in range(5)]
            test = [(i, each) for i, each in numbered if each["split"] == "test"]
            if split not in folds or len(test) != 5000:
                raise ValueError(
                    f"Expected one of {', '.join(folds)}, of a file with 5,000 test pictures, got "
                    f"{split!r} and {len(test):,} in {path}; folds are COCO's, give --split test."
                )
            start = 1000 * folds.index(split)
            numbered, split = test[start : start + 1000], "test"
        for index, entry in numbered:
            name, image_id = entry["filename"], ""
            if "cocoid" in entry:
                image_id = f"coco:{entry['cocoid']}"
            elif source.startswith("flickr"):
                image_id = f"flickr:{Path(name).stem}"
            captions = [each["raw"] for each in entry["sentences"]]
            name = os.path.join(entry.get("filepath", ""), name)
            found.add(f"{path.name}:images[{index}]", name, captions, image_id, entry["split"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected one of Karpathy's files at {path}, got another form ({error!r}); name one."
        ) from error
    images = images or found.find_images(
        path, "", "images", f"{source}_images", f"{source}-images", source
    )
    return gather(found, images, split, source, checks)


def read_flickr(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads all of Flickr30k; it has no splits of its own (Karpathy's file has).

    The known results.csv has one row (2199200615.jpg's fifth) that lacks the bar before the
    comment; such rows are left out and named.

    Args:
        path: the file, or the folder with the only one.
        images: the folder with the pictures; left out, it is looked for beside the file.
        split: what to call the data.
        checks: as in `drop_unusable`.

    Raises:
        ValueError: the folder has no such file, or both.
    """
    path = find_file(path, *_FILES["flickr"])
    row = _CSV if path.suffix == ".csv" else _TOKEN
    found = Annotations()
    for place, line in read_lines(path):
        match = row.fullmatch(line)
        if match and match[1] != "image_name":  # the header's
            name = match[1].strip()
            found.add(place, name, match[2], f"flickr:{Path(name).stem}")
        elif not match:
            found.unusable[place] = "expected a picture, its caption's number and a caption"
    images = images or found.find_images(path, "flickr30k_images", "flickr30k-images", "", "images")
    return gather(found, images, split, "flickr30k", checks)


def read_manifest(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads what `curate` wrote: pictures of the splits train and val.

    Args:
        path: the file.
        images: unused, as the manifest says where the pictures are.
        split: as in `gather`.
        checks: as in `drop_unusable`.

    Raises:
        ValueError: there is no such file or split, or it is no manifest.
    """
    try:
        entries = load_json(path)["entries"]
        for entry in entries:
            # A single text would pass for a list of letters.
            if not isinstance(entry["captions"], list) or not all(
                map(is_text, [entry["path"], entry["id"], *entry["captions"]])
            ):
                raise TypeError(f"the entry {ascii(entry)[:200]}")
        whole = CaptionedImages(
            tuple(path.parent / entry["path"] for entry in entries),
            tuple(tuple(entry["captions"]) for entry in entries),
            split,
            path.stem,
            tuple(entry["id"] for entry in entries),
            tuple(entry["split"] for entry in entries),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected a manifest ({MANIFEST}) at {path}, got another form ({error!r}); write one "
            "with curate."
        ) from error
    return replace(drop_unusable(take_split(whole, split), checks), splits_from="file")


READERS: dict[str, Callable[..., UsableImages]] = {
    "csv": partial(read_table, format="csv"),
    "jsonl": partial(read_table, format="jsonl"),
    "files": read_files,
    "karpathy": read_karpathy,
    "coco": read_coco,
    "flickr": read_flickr,
    "conceptual": read_conceptual,
    "shards": read_shards,
    "manifest": read_manifest,
}
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
