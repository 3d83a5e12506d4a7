"""One entry to all formats: it recognises what lies at a path."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dclip_kit.config import FORMATS
from dclip_kit.data.coco import find_captions, read_coco
from dclip_kit.data.conceptual import read_conceptual
from dclip_kit.data.flickr import FILES as FLICKR_FILES
from dclip_kit.data.flickr import read_flickr
from dclip_kit.data.folder import PICTURE_SUFFIXES, read_files, walk_files
from dclip_kit.data.images import SPLITS
from dclip_kit.data.karpathy import read_karpathy
from dclip_kit.data.shards import find_shards, read_shards
from dclip_kit.data.tables import find_tables, read_csv, read_jsonl
from dclip_kit.data.usable import Checks, UsableImages, require_usable

READERS: dict[str, Callable[..., UsableImages]] = {
    "csv": read_csv,
    "jsonl": read_jsonl,
    "files": read_files,
    "karpathy": read_karpathy,
    "coco": read_coco,
    "flickr": read_flickr,
    "conceptual": read_conceptual,
    "shards": read_shards,
}


def read_captioned(
    path: Path | str,
    images: Path | str | None = None,
    format: str | None = None,
    split: str = "train",
    checks: Checks = "pictures",
) -> UsableImages:
    """Reads pictures and their captions, whatever format they are in.

    Args:
        path: an annotation file, a shard, or a folder with annotations, shards, or pictures that
            have text files beside them.
        images: the folder that the pictures' names are below; left out, it is looked for near the
            annotations.
        format: one of `READERS`; left out, it is recognised.
        split: which part to read of data that have splits of their own (Karpathy's, COCO's, those
            that a column or folders tell), or "all"; and what to call the data of the others.
        checks: "pictures" reads every picture once, "files" only asks whether there is one, "names"
            takes the annotations' word for it.

    Returns:
        `dataset`, and what was left out of it and why.

    Raises:
        ValueError: the format is unknown or not recognised, a file lacks what its format demands,
            or nothing usable is left.
        ModuleNotFoundError: a format's library is not installed.
    """
    format = format or recognise_format(path)
    found = _take_split(read_format(path, images, format, split, checks), split)
    require_usable(found)
    return found


def _take_split(found: UsableImages, split: str) -> UsableImages:
    """The part that is asked for, where a column or folders tell parts; the file's are read so."""
    dataset, wanted = found.dataset, set(split.split("+"))
    if found.splits_from not in ("column", "folders") or split == "all" or not dataset.splits:
        return found
    there = [each for each in SPLITS if each in dataset.splits]
    if not wanted <= set(there):
        raise ValueError(
            f"Expected a split that pictures of {dataset.source} are of ({', '.join(there)}), some "
            f"joined by '+', or all, got {split!r} ({len(found.unreadable)} unreadable); give "
            "another with --split (split= in Python)."
        )
    kept = [i for i, own in enumerate(dataset.splits) if own in wanted]
    return replace(found, dataset=dataset.select(kept))


def read_format(
    path: Path | str, images: Path | str | None, format: str, split: str, checks: Checks
) -> UsableImages:
    """Reads as `read_captioned` does, and may return that nothing is usable (see `is_usable`).

    Of the splits that a column or folders tell it reads all: `dataset.splits` says which is whose.

    Raises:
        ValueError: the format is unknown, or a file lacks what its format demands.
        ModuleNotFoundError: a format's library is not installed.
    """
    require_readable(path, images, format)
    folder = None if images is None else Path(images)
    return READERS[format](Path(path), folder, split, checks)


def require_readable(path: Path | str, images: Path | str | None, format: str) -> None:
    """Checks what can be known before reading.

    Raises:
        ValueError: the format is unknown, or there is nothing at the path or no folder of pictures.
    """
    if format not in READERS:
        raise ValueError(f"Expected a format of {', '.join(READERS)}, got {format!r}.")
    if not Path(path).exists():
        raise ValueError(f"Expected a file or folder at {path}, found nothing; check the path.")
    if images is not None and not Path(images).is_dir():
        raise ValueError(f"Expected a folder of pictures at {images}, found none; check the path.")


def recognise_format(path: Path | str) -> str:
    """Says which format lies at a path.

    Raises:
        ValueError: none of the known ones, or several.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"Expected a file or folder at {path}, found nothing; check the path.")
    found = _find_formats(path) if path.is_dir() else {each: path for each in _formats_of(path)}
    if len(found) > 1:
        files = ", ".join(f"{format} ({file.name})" for format, file in found.items())
        raise ValueError(
            f"Expected data of one format at {path}, found several: {files}; name the annotation "
            "file, or say which with --format (format= in Python)."
        )
    if not found:
        inside = (each for pattern in ("*.parquet", "*/*.parquet") for each in path.glob(pattern))
        parquet = path if path.suffix == ".parquet" else next(inside, None)
        if parquet:
            raise ValueError(
                f"Expected captions in a format that is read here, got {parquet}, and Parquet is "
                "not; write it as metadata.csv with the columns file_name and text, and pictures "
                "that it holds as files beside that."
            )
        known = ", ".join(f"{format} ({needed})" for format, needed in FORMATS.items())
        raise ValueError(
            f"Expected captioned pictures in a known format at {path}, found none that is "
            f"recognised; say which with --format (format= in Python), or bring them into one: "
            f"{known}."
        )
    return next(iter(found))


def _find_formats(path: Path) -> dict[str, Path]:
    """The formats that a folder has files of, with the first of their files."""
    files = {
        "csv": find_tables(path, ".csv"),
        "jsonl": find_tables(path, ".jsonl"),
        "karpathy": sorted(path.glob("dataset_*.json")),
        "coco": find_captions(path),
        "flickr": [path / name for name in FLICKR_FILES if (path / name).is_file()],
        "conceptual": sorted(path.glob("*.tsv")),
        "shards": find_shards(path),
    }
    found = {format: each[0] for format, each in files.items() if each}
    # Texts beside pictures may accompany any annotation file, which then has the say.
    return found or ({"files": path} if _has_texts_beside(path) else {})


def _has_texts_beside(path: Path) -> bool:
    pictures, texts = set(), set()
    for name in walk_files(path):
        stem, suffix = str(Path(name).with_suffix("")), Path(name).suffix.lower()
        if suffix in PICTURE_SUFFIXES:
            pictures.add(stem)
        elif suffix == ".txt":
            texts.add(stem)
        if stem in pictures and stem in texts:
            return True
    return False


def _formats_of(path: Path) -> list[str]:
    by_suffix = {".jsonl": "jsonl", ".tsv": "conceptual", ".tar": "shards", ".token": "flickr"}
    suffix = path.suffix.lower()
    if suffix in by_suffix:
        return [by_suffix[suffix]]
    with path.open("rb") as file:
        head = file.read(1 << 16)  # these files run to 100 MB and more, and begin with an entry
    if suffix == ".csv":
        return ["flickr" if head.partition(b"\n")[0].count(b"|") == 2 else "csv"]
    if suffix == ".json":
        if b'"sentences"' in head:
            return ["karpathy"]
        if b'"annotations"' in head or b'"file_name"' in head:
            return ["coco"]
    return []
