"""Readers of the formats of captioned pictures: short generators over csv, json and tarfile.

A reader yields rows as its file has them, unchecked: `collect` checks them, for all formats alike.
To read another format, write a generator and add it to `READERS`.
"""

import csv
import errno
import hashlib
import json
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from dclip_kit.data.columns import find_split_column
from dclip_kit.data.paths import (
    PICTURE_SUFFIXES,
    is_hidden,
    is_picture,
    is_text,
    load_json,
    path_inside,
    read_lines,
    walk_files,
)
from dclip_kit.data.pictures import SPLITS, scan_pictures
from dclip_kit.runtime.files import cache_path, filling, open_file, write_atomically

# The names of a table's columns, or of a JSON's keys.
PICTURE_COLUMNS = ("image", "file_name")
CAPTION_COLUMNS = ("captions", "caption", "text")
MANIFEST = "dclip-kit manifest 1"  # the format of the file that `curate` writes
MOST_BYTES = 1 << 27  # of a file in a shard, which is read whole
# What systems say of a name that cannot be a file's: too long, or a folder's already.
_ODD_NAME = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL}
_REFUSED = "refused.json"  # what unpacking left out, reported whenever the cache is read
_COCO_NAME = re.compile(r"captions_(train|val|test)(.*)\.json")
_SHARD_OF_SPLIT = re.compile(
    r"^(train|training|val|valid|validation|dev|test|testing)[-_]\d.*", re.IGNORECASE
)
_ADDRESS = re.compile(r"\w+://\S+")
_TOKEN = re.compile(r"([^\t]+)#\d+\t(.*)")
_BARS = re.compile(r"([^|]+)\|[^|]*\|(.*)")  # a comment may have bars


@dataclass(frozen=True, slots=True)
class Row:
    """One entry of an annotation file, unchecked.

    Attributes:
        where: its place: "captions.csv:7", "captions_val2017.json:images[3]", or a file.
        picture: its path below the folder of pictures.
        captions: a text, or a list of them.
        split: the picture's split in the file's words; None or "" if it has none.
        image_id: as in `CaptionedImages`.
        problem: why the entry is unusable; the other fields are unset then.
    """

    where: str
    picture: Any = None
    captions: Any = None
    split: Any = None
    image_id: str = ""
    problem: str = ""


def read_table(file: Path, images: Path) -> Iterator[Row]:
    """Reads a CSV, TSV or JSONL with the columns image, caption and perhaps split, in any order.

    Args:
        file: the table; Hugging Face's metadata files are such tables, too.
        images: the folder of the pictures; unused here and in most readers.

    Raises:
        ValueError: a column is missing, or as `find_split_column`.
    """
    read = _read_json_lines if file.suffix.lower() == ".jsonl" else _read_cells
    rows = list(read(file))
    cells = [row for _, row in rows if isinstance(row, dict)]
    split = find_split_column(cells, file, (*PICTURE_COLUMNS, *CAPTION_COLUMNS))
    for where, row in rows:
        if isinstance(row, str):
            yield Row(where, problem=row)
            continue
        picture, captions = (
            next((row[column] for column in columns if column in row), None)
            for columns in (PICTURE_COLUMNS, CAPTION_COLUMNS)
        )
        picture = picture.strip() if isinstance(picture, str) else picture
        # A column without a name, as pandas writes one of row numbers, is not the split's.
        value = row.get(split) if split else None
        yield Row(where, picture, captions, value)


def _read_cells(file: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Yields each row of a CSV or TSV by column, or its problem."""
    tabs = file.suffix.lower() == ".tsv"
    delimiter, separator = ("\t", "tabs") if tabs else (",", "commas")
    with open_file(file, "r", newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
        # Strict, as an unclosed quote would otherwise swallow the rows after it.
        rows = csv.reader(lines, strict=True, skipinitialspace=True, delimiter=delimiter)
        columns = _read_columns(file, rows, separator)
        row: list[str] | None = []
        while row is not None:
            where = f"{file.name}:{rows.line_num + 1}"
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield where, f"expected CSV, got {error} (up to line {rows.line_num})"
                continue
            cells = dict(zip(columns, row or (), strict=False))
            texts = [cells[column] for column in CAPTION_COLUMNS if column in cells]
            if any(re.fullmatch(r"\s*\[\s*['\"].*['\"]\s*\]\s*", x, re.DOTALL) for x in texts):
                yield where, "expected a caption, got a list of them; give each a row"
            elif row and len(row) == len(columns):
                yield where, cells
            elif row:
                count = f"expected {len(columns)} fields, got {len(row)}"
                yield where, f"{count}; quote captions with {separator}"


def _read_columns(file: Path, rows: Iterator[list[str]], separator: str) -> list[str]:
    """The column names in a CSV's first row.

    Raises:
        ValueError: the picture's or the caption's column is missing or ambiguous.
    """
    try:
        columns = [column.strip().lower() for column in next(filter(None, rows), [])]
    except csv.Error as error:
        columns = [str(error)]
    names = (*PICTURE_COLUMNS, *CAPTION_COLUMNS, "split")
    has_both = {*PICTURE_COLUMNS} & {*columns} and {*CAPTION_COLUMNS} & {*columns}
    # A column called captions would hold lists as text: ['a dog', 'a brown dog'].
    if not has_both or "captions" in columns or max(map(columns.count, names)) > 1:
        raise ValueError(
            f"Expected the columns image and caption (or file_name and text) once in {file}, "
            f"got {ascii(columns)[:200]}; put a first line that names them, and save the file with "
            f"{separator} between columns and in UTF-8."
        )
    return columns


def _read_json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Yields each line of a JSONL as an object, or its problem."""
    for where, line in read_lines(file):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # brackets within brackets, thousands deep
            row = str(error)
        if isinstance(row, dict) and {*CAPTION_COLUMNS} & {*row}:
            yield where, row
        else:
            yield (
                where,
                "expected an object with image (or file_name) and caption (or captions, text), got "
                f"{ascii(row)[:60]}",
            )


def read_texts(folder: Path, images: Path) -> Iterator[Row]:
    """Reads pictures with a .txt of the same name beside each, one caption a line; recursively.

    If img2dataset's .json is there as well, its caption is taken whole, its address becomes the
    picture's id, and a status other than "success" excludes the picture.
    """
    names = list(walk_files(folder))
    texts = {str(Path(name).with_suffix(".txt")) for name in names if is_picture(name)}
    for name, note in _read_notes(folder, names):
        where = str(folder / name)
        if isinstance(note, str):
            yield Row(where, problem=note)
            continue
        captions, url = note.get("caption"), note.get("url")
        if not isinstance(captions, str):
            try:
                with open_file(
                    (folder / name).with_suffix(".txt"), "r", encoding="utf-8-sig"
                ) as file:
                    captions = [x for x in file.read().split("\n") if x.strip()] or [""]
            except (OSError, ValueError) as error:
                reason = f"expected its caption beside it, but reading that failed ({error})"
                yield Row(where, problem=reason)
                continue
        yield Row(where, name, captions, None, url if isinstance(url, str) and is_text(url) else "")
    for name in names:
        if name.endswith(".txt") and name not in texts:
            reason = "expected a picture of the same name beside it, found none"
            yield Row(str(folder / name), problem=reason)


def _read_notes(folder: Path, names: list[str]) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Yields each picture with its img2dataset note ({} if none), or a file with its problem."""
    for name in filter(is_picture, names):
        file, note = Path(name).with_suffix(".json"), {}
        try:
            if os.path.lexists(folder / file):
                note = load_json(folder / file)
        except ValueError as error:
            yield str(file), f"expected img2dataset's JSON, but got none ({error})"
        note = note if isinstance(note, dict) else {}
        status = note.get("status", "success")
        failure = f"img2dataset notes a failure ({status!r})"
        yield name, note if status in (None, "success") else failure


def read_conceptual(file: Path, images: Path) -> Iterator[Row]:
    """Reads Conceptual Captions' TSV (caption, tab, address) with what img2dataset downloaded.

    CC12M's has the address first.

    Many of its addresses are dead by now: rows without a picture are reported, and so are pictures
    that are not in the list.

    Args:
        file: with or without a header.
        images: the folder that img2dataset wrote, with a .json beside each picture.
    """
    pictures: dict[str, list[str]] = defaultdict(list)
    for name, note in _read_notes(images, list(walk_files(images))):
        if isinstance(note, str):
            yield Row(str(images / name), problem=note)
        else:
            pictures[str(note.get("url")).strip()].append(name)
    listed = set()
    for where, line in read_lines(file):
        caption, _, url = (field.strip() for field in line.partition("\t"))
        if _ADDRESS.fullmatch(caption):
            caption, url = url, caption
        listed.add(url)
        if url not in pictures and {caption, url} != {"caption", "url"}:  # not a header
            yield Row(where, problem=f"its picture was not downloaded ({ascii(url)[1:-1]})")
        for name in pictures.get(url, ()):
            yield Row(where, name, caption, None, url)
    for url in pictures.keys() - listed:
        for name in pictures[url]:
            reason = f"expected its address in {file.name}, but {url!a} is not there"
            yield Row(str(images / name), problem=reason)


def is_table(path: Path) -> bool:
    """Whether the first line names columns with pictures and captions, as a table's does.

    Args:
        path: a TSV, or a file with commas.
    """
    first = next((line for _, line in read_lines(path)), "")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        cells = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:  # a field of more than 131,072 characters
        return False
    columns = {column.strip().lower() for column in cells}
    return bool(columns & {*PICTURE_COLUMNS} and columns & {*CAPTION_COLUMNS})


def read_shards(folder: Path, images: Path) -> Iterator[Row]:
    """Reads what `unpack_shards` has unpacked into a folder: pictures with texts beside them."""
    for where, reason in load_json(folder / _REFUSED).items():
        yield Row(where, problem=reason)
    yield from read_texts(images, images)


def unpack_shards(path: Path, shards: list[Path]) -> Path:
    """Unpacks img2dataset's .tar shards, pictures with .txt or .json of the same key.

    They are unpacked below `DCLIP_CACHE` or the user's cache folder, which takes as much disk again
    and is repeated only if their names or bytes change. Shards called train.tar or, with a number,
    train-000000.tar are put into folders of their split.

    Args:
        path: one shard, or the folder of all.
        shards: the files.

    Raises:
        ValueError: they cannot be unpacked.
    """
    root = path if path.is_dir() else path.parent
    subfolders = {shard: shard.relative_to(root).with_suffix("") for shard in shards}
    if path.is_dir():
        subfolders = {
            shard: subfolder.parent / _SHARD_OF_SPLIT.sub(r"\1/\g<0>", subfolder.name)
            for shard, subfolder in subfolders.items()
        }
    # The cache's key includes where in the folder they are unpacked to.
    scans = scan_pictures(shards, "comparing shards", decode=False)
    key = [
        (str(shard.resolve()), scan.digest or scan.problem, subfolder.as_posix())
        for (shard, subfolder), scan in zip(subfolders.items(), scans, strict=True)
    ]
    folder = cache_path("shards", hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16])
    if not folder.is_dir():
        refused: dict[str, str] = {}
        try:
            with filling(folder) as unpacked:
                for shard, subfolder in tqdm(subfolders.items(), desc="unpacking shards", delay=2):
                    _unpack(
                        shard, shard.relative_to(root).as_posix(), unpacked / subfolder, refused
                    )
                write_atomically(unpacked / _REFUSED, json.dumps(refused, indent=1))
        except OSError as error:
            raise ValueError(
                f"Expected to unpack the shards at {path}, but it failed ({error}); make room, or "
                "give another folder with DCLIP_CACHE."
            ) from error
    return folder


def _unpack(shard: Path, shard_name: str, folder: Path, refused: dict[str, str]) -> None:
    """Writes the pictures, texts and notes of a shard; other members are ignored."""
    folder.mkdir(parents=True, exist_ok=True)  # that of train.tar has the one of train-0.tar in it
    for name, content in read_members(shard, PICTURE_SUFFIXES | {".txt", ".json"}):
        place = f"{shard_name}:{ascii(name)[1:-1]}" if name else shard_name
        if isinstance(content, str):
            refused[place] = content
            continue
        try:
            path = path_inside(folder, name)
            if any(map(is_hidden, Path(name).parts)):
                refused[place] = "its name is that of a hidden file"
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except ValueError:
            refused[place] = "its name leads out of the shard"
        except OSError as error:
            if error.errno not in _ODD_NAME:
                raise
            refused[place] = f"its name cannot be a file's here ({error.strerror})"


def read_members(shard: Path, suffixes: Collection[str]) -> Iterator[tuple[str, bytes | str]]:
    """Yields a shard's files, of these suffixes, by name; for those without bytes, the reason.

    Names are as the shard has them: they may lead anywhere. If the shard is damaged, the last name
    is empty.

    Raises:
        OSError: the shard cannot be read.
    """
    try:
        with open_file(shard) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                if Path(member.name).suffix.lower() not in suffixes:
                    continue
                file = archive.extractfile(member) if member.isreg() else None
                if file is None:
                    yield member.name, "expected a file, got a link, a device or a folder"
                elif member.size > MOST_BYTES:  # of which a sparse file need not have any
                    yield member.name, f"expected at most {MOST_BYTES:,} bytes, got {member.size:,}"
                else:
                    yield member.name, file.read()
            # tarfile takes a damaged header for the end, too; the real end is a block of zeros.
            stream.seek(archive.offset)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("its end is missing")
    except tarfile.TarError as error:
        yield "", f"expected a whole shard, but reading on failed ({error})"


def read_coco(file: Path, images: Path) -> Iterator[Row]:
    """Reads captions_train2014.json, captions_val2017.json and the like, one file per split.

    Raises:
        ValueError: it is of another form, or has objects instead of captions.
    """
    match = _COCO_NAME.fullmatch(file.name)
    captions = defaultdict(list)
    try:
        record = load_json(file)
        for entry in record["annotations"]:
            captions[entry["image_id"]].append(entry["caption"])
        for index, entry in enumerate(record["images"]):
            number = entry["id"]
            # In other data of COCO's form, the numbers are not COCO's.
            image_id = f"coco:{number}" if match and match[2].startswith("20") else ""
            texts, split = captions.pop(number, []), match[1] if match else ""
            yield Row(f"{file.name}:images[{index}]", entry["file_name"], texts, split, image_id)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"Expected COCO's captions in {file}, got another form ({error!r}); name a file such "
            "as captions_train2017.json."
        ) from error
    for number in captions:
        reason = "expected captions of a picture in this file's images, got another id"
        yield Row(f"{file.name}:image_id {number}", problem=reason)


def read_karpathy(file: Path, images: Path) -> Iterator[Row]:
    """Reads dataset_coco.json, dataset_flickr30k.json, or a file of that form.

    A COCO picture has five captions, a few have more, and all are kept.

    Raises:
        ValueError: it is of another form.
    """
    try:
        record = load_json(file)
        flickr = "flickr" in str(record.get("dataset") or file.stem)
        for index, entry in enumerate(record["images"]):
            name, image_id = entry["filename"], ""
            if "cocoid" in entry:
                image_id = f"coco:{entry['cocoid']}"
            elif flickr:
                image_id = f"flickr:{Path(name).stem}"
            captions = [sentence["raw"] for sentence in entry["sentences"]]
            picture = os.path.join(entry.get("filepath", ""), name)
            yield Row(f"{file.name}:images[{index}]", picture, captions, entry["split"], image_id)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected one of Karpathy's files at {file}, got another form ({error!r}); name one."
        ) from error


def read_flickr(file: Path, images: Path) -> Iterator[Row]:
    """Reads Flickr30k's results.csv, with bars, or results_20130124.token; or Flickr8k.token.txt.

    Flickr30k has no splits. Flickr8k's are lists of pictures beside the file; a picture in none of
    them is reported. The common results.csv has one row (2199200615.jpg's fifth) that lacks
    the bar before the comment; such rows are reported, too.
    """
    pattern, split_of = _BARS if file.suffix == ".csv" else _TOKEN, dict[str, str]()
    for split in ("train", "dev", "test"):
        split_file = file.parent / f"Flickr_8k.{split}Images.txt"
        if file.name.startswith("Flickr8k") and split_file.is_file():
            split_of |= {line.strip(): split for _, line in read_lines(split_file)}
    for where, line in read_lines(file):
        match = pattern.fullmatch(line)
        if not match:
            yield Row(where, problem="expected a picture, its caption's number and a caption")
        elif match[1] != "image_name":  # the header's
            name = match[1].strip()
            yield Row(where, name, match[2], split_of.get(name), f"flickr:{Path(name).stem}")


def read_manifest(file: Path, images: Path) -> Iterator[Row]:
    """Reads what `curate` wrote: pictures of the splits train and val, wherever they are.

    Raises:
        ValueError: it is not a manifest.
    """
    try:
        for index, entry in enumerate(load_json(file)["entries"]):
            captions, split = entry["captions"], entry["split"]
            # A single text would pass for a list of letters.
            has_captions = isinstance(captions, list) and all(text.strip() for text in captions)
            is_utf8 = all(map(is_text, [entry["path"], entry["id"], *captions]))
            if not has_captions or not is_utf8 or split not in SPLITS:
                raise TypeError(f"the entry {ascii(entry)[:200]}")
            picture = str(file.parent / entry["path"])
            yield Row(f"{file.name}:entries[{index}]", picture, captions, split, entry["id"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected a manifest ({MANIFEST}) at {file}, got another form ({error!r}); write one "
            "with curate."
        ) from error
