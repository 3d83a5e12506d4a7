"""One entry to all formats: it recognises what lies at a path."""

from collections.abc import Callable
from pathlib import Path

from dclip_kit.config import FORMATS
from dclip_kit.data import coco, flickr, tables
from dclip_kit.data.annotations import Checks, UsableImages, find_files, require_usable
from dclip_kit.data.folder import is_picture, read_conceptual, read_files, walk_files
from dclip_kit.data.karpathy import read_karpathy
from dclip_kit.data.shards import read_shards

READERS: dict[str, Callable[..., UsableImages]] = {
    "csv": tables.read_csv,
    "jsonl": tables.read_jsonl,
    "files": read_files,
    "karpathy": read_karpathy,
    "coco": coco.read_coco,
    "flickr": flickr.read_flickr,
    "conceptual": read_conceptual,
    "shards": read_shards,
}
# How files end, what they begin with, and their format; the first that fits.
_MARKS = (
    (".csv", b"image_name|", "flickr"),
    (".csv", b"", "csv"),
    (".jsonl", b"", "jsonl"),
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
        path: an annotation file, a shard, or a folder with annotations, shards, or pictures that
            have text files beside them.
        images: the folder that the pictures' names are below; left out, it is looked for near the
            annotations.
        format: one of `READERS`; left out, it is recognised.
        split: which part to read of data that have splits of their own (Karpathy's, COCO's, those
            that a column or folders tell), several joined by "+", or "all"; and what to call the
            data of the others.
        checks: "pictures" reads every picture once, "files" only asks whether there is one, "names"
            takes the annotations' word for it.

    Returns:
        `dataset`, and what was left out of it and why.

    Raises:
        ValueError: the format is unknown or not recognised, a file lacks what its format demands,
            or nothing usable is left.
    """
    found = read_format(path, images, format or recognise_format(path), split, checks)
    require_usable(found)
    return found


def read_format(
    path: Path | str, images: Path | str | None, format: str, split: str, checks: Checks
) -> UsableImages:
    """Reads as `read_captioned` does, and may return that nothing is usable.

    Raises:
        ValueError: the format is unknown, or a file lacks what its format demands.
    """
    require_readable(path, images, format)
    folder = None if images is None else Path(images)
    return READERS[format](Path(path), folder, split, checks)


def require_readable(path: Path | str, images: Path | str | None, format: str) -> None:
    """Checks what can be known before reading.

    Raises:
        ValueError: the format is unknown or takes no folder of pictures, or there is none.
    """
    if format not in READERS:
        raise ValueError(f"Expected a format of {', '.join(READERS)}, got {format!r}.")
    if images is not None and format in ("files", "shards"):
        raise ValueError(
            f"Expected the pictures of {path} there, got another folder of pictures ({images}); "
            "leave --images (images= in Python) out."
        )
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
    found = find_formats(path) if path.is_dir() else {_recognise_file(path): path}
    if len(found) > 1:
        files = ", ".join(f"{format} ({file.name})" for format, file in found.items())
        raise ValueError(
            f"Expected data of one format at {path}, found several: {files}; name the annotation "
            "file, or say which with --format (format= in Python)."
        )
    format = next(iter(found), "")
    if not format:
        known = ", ".join(f"{format} ({needed})" for format, needed in FORMATS.items())
        raise ValueError(
            f"Expected captioned pictures in a known format at {path}, found none that is "
            f"recognised; say which with --format (format= in Python), or bring them into one: "
            f"{known}."
        )
    return format


def find_formats(path: Path) -> dict[str, Path]:
    """The formats that a folder has files of, with the first of their files."""
    files = {
        "csv": find_files(path, *tables.CSV_FILES, in_splits=True),
        "jsonl": find_files(path, *tables.JSONL_FILES, in_splits=True),
        "karpathy": find_files(path, "dataset_*.json"),
        "coco": find_files(path, *coco.FILES),
        "flickr": find_files(path, *flickr.FILES),
        "conceptual": find_files(path, "*.tsv"),
        "shards": find_files(path, "*.tar", in_splits=True),
    }
    found = {format: each[0] for format, each in files.items() if each}
    if found:  # texts beside pictures may accompany any annotation file, which then has the say
        return found
    names = set(walk_files(path))
    pictures = (Path(name) for name in names if is_picture(name))
    return {"files": path} if any(str(p.with_suffix(".txt")) in names for p in pictures) else {}


def _recognise_file(path: Path) -> str:
    """The format of a file, or nothing."""
    with path.open("rb") as file:
        head = file.read(1 << 16)  # these files run to 100 MB and more, and begin with an entry
    suffix = path.suffix.lower()
    found = (format for ending, mark, format in _MARKS if suffix == ending and mark in head)
    return next(found, "")
