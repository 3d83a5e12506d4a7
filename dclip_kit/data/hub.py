"""Data sets of Hugging Face's `datasets`: on the hub, saved as Arrow, or parquet with pictures.

Folders and tables are not read with it: it silently infers splits from their file names, leaves
files out, and takes captions like "None" for missing ones.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from dclip_kit.data.columns import SPLIT_OF, names_split
from dclip_kit.data.pictures import scan_pictures
from dclip_kit.data.readers import CAPTION_COLUMNS, PICTURE_COLUMNS
from dclip_kit.runtime.files import cache_path, filling
from dclip_kit.runtime.packages import require_packages

PREFIX = "hf:"  # of a name on the hub
TABLE = "metadata.jsonl"  # written with the unpacked pictures
_ARROW = ("dataset_info.json", "dataset_dict.json")  # written by `save_to_disk`
_PLAIN = re.compile(r"\w[\w.-]{0,80}\.\w{3,4}", re.ASCII)  # a file name that any disk takes
_PARQUET = ("*.parquet", "data/*.parquet")  # as in repositories on the hub


def is_dataset(path: Path | str) -> bool:
    """Whether a path is clearly a data set's: on the hub, saved as Arrow, or a parquet file."""
    path = Path(path)
    if str(path).startswith(PREFIX) or path.suffix == ".parquet":
        return True
    return any((path / name).is_file() for name in _ARROW)


def has_parquet(folder: Path) -> bool:
    """Whether a folder has parquet files, which may also be notes beside data in another format."""
    return any(file for pattern in _PARQUET for file in folder.glob(pattern))


def unpack_dataset(reference: str) -> Path:
    """Writes a data set's pictures below the cache folder, with a table of captions and splits.

    Each version of a data set is unpacked once; the pictures' bytes are not changed.

    Args:
        reference: "hf:organisation/name", with ":split" behind it for a single split; the folder of
            an Arrow data set; a .parquet file, or a folder of such files.

    Returns:
        A folder with metadata.jsonl.

    Raises:
        ImportError: datasets is not installed.
        ValueError: the data set cannot be read, or lacks a column of pictures or of captions.
    """
    require_packages("hub", "datasets")
    import datasets

    try:
        version, splits = _open(datasets, reference)
    except Exception as error:  # many types: no network, no such name, a damaged file
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"Expected a Hugging Face data set at {reference}, but it cannot be read "
            f"({reason}); check its name, the network and HF_HUB_OFFLINE."
        ) from error
    folder = cache_path("datasets", hashlib.sha256(f"4 {version}".encode()).hexdigest()[:16])
    if not folder.is_dir():
        with filling(folder) as unpacked, (unpacked / TABLE).open("w", encoding="utf-8") as table:
            for split, rows in splits.items():
                for row in _write_pictures(
                    datasets, rows, unpacked, split, reference, len(splits) == 1
                ):
                    table.write(json.dumps(row) + "\n")
    return folder


def _open(datasets: Any, reference: str) -> tuple[str, dict[str, Any]]:
    """A text that identifies the data set's version, and its splits by name."""
    path = Path(reference)
    if reference.startswith(PREFIX):
        name, _, split = reference.removeprefix(PREFIX).partition(":")
        builder = datasets.load_dataset_builder(name)
        builder.download_and_prepare()
        dataset, version = builder.as_dataset(split=split or None), f"{builder.cache_dir} {split}"
    else:
        files = [path] if path.is_file() else sorted(x for x in path.rglob("*") if x.is_file())
        scans = scan_pictures(files, "comparing files", decode=False)
        version = json.dumps([[str(x), scan.digest] for x, scan in zip(files, scans, strict=True)])
        split = ""
        if path.is_file():
            dataset = datasets.load_dataset("parquet", data_files=str(path))
        elif any((path / name).is_file() for name in _ARROW):
            dataset = datasets.load_from_disk(str(path))
        else:
            dataset = datasets.load_dataset(str(path.resolve()))
    splits = dataset if isinstance(dataset, dict) else {split or str(dataset.split or ""): dataset}
    return version, splits


def _write_pictures(
    datasets: Any, rows: Any, folder: Path, split: str, reference: str, unnamed: bool
) -> Iterable[dict[str, Any]]:
    """Writes the pictures of a split, and yields their rows of the table.

    The only split of a data set, which is called train where nobody has named it, may have a
    column that says more.
    """
    features = rows.features.items()
    picture_columns = [name for name, kind in features if isinstance(kind, datasets.Image)]
    caption_columns = [name for name in CAPTION_COLUMNS if name in rows.features]
    if not picture_columns or not caption_columns:
        raise ValueError(
            "Expected columns of pictures (with the feature Image of datasets) and captions "
            f"({', '.join(CAPTION_COLUMNS)}) in {reference}, got "
            f"{', '.join(map(ascii, rows.features))[:200]}; rename them, or store pictures by "
            "cast_column(NAME, datasets.Image())."
        )
    usual = (name for name in PICTURE_COLUMNS if name in picture_columns)
    picture_column = next(usual, picture_columns[0])
    own = [
        name
        for name, kind in features
        if unnamed and names_split(name) and "string" in str(getattr(kind, "dtype", ""))
    ]
    # A single split may have any name (full, train[:10%]), which is then no split.
    named_split = not unnamed or split.lower() in SPLIT_OF
    split_entry = {"split": split} if named_split else {}
    rows = rows.select_columns([picture_column, caption_columns[0], *own])
    rows = rows.cast_column(picture_column, datasets.Image(decode=False))
    (folder / (split or "all")).mkdir()
    taken: set[str] = set()
    known: dict[bytes | str | int, str] = {}  # a table may have a row for each caption
    for number, row in enumerate(tqdm(rows, f"unpacking {split}", delay=2)):
        picture = row[picture_column] or {}
        content, path = picture.get("bytes"), Path(picture.get("path") or "")
        key = hashlib.sha256(content).digest() if content else (path.name and str(path)) or number
        file_name = known.get(key, "")
        if not file_name:
            numbered = f"{number:09d}{path.suffix.lower() or '.png'}"
            # Its own name tells the leak guard of a public data set's picture.
            names = [path.name, numbered] if _PLAIN.fullmatch(path.name) else [numbered]
            free = (f"{split or 'all'}/{name}" for name in (*names, f"row-{numbered}"))
            file_name = next(name for name in free if name not in taken)
            known[key] = file_name
            taken.add(file_name)
            if content:
                (folder / file_name).write_bytes(content)
            elif path.name and _is_own(datasets, path, reference):
                shutil.copyfile(path, folder / file_name)
        entry = {"image": file_name, "captions": row[caption_columns[0]]}
        yield entry | ({name: row[name] for name in own} or split_entry)


def _is_own(datasets: Any, path: Path, reference: str) -> bool:
    """Whether a file belongs to a data set: a path in a table of others may lead anywhere."""
    from huggingface_hub.constants import HF_HUB_CACHE

    place = Path(reference)
    folders = [Path(datasets.config.HF_DATASETS_CACHE), Path(HF_HUB_CACHE)]
    if not reference.startswith(PREFIX):
        folders.append(place if place.is_dir() else place.parent)
    real = Path(os.path.realpath(path))
    return real.is_file() and any(real.is_relative_to(os.path.realpath(x)) for x in folders)
