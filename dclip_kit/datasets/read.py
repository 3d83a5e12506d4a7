"""One entry to all formats: it recognises what lies at a path."""

from collections.abc import Callable
from pathlib import Path

from dclip_kit.datasets.coco import find_captions, read_coco
from dclip_kit.datasets.conceptual import read_conceptual
from dclip_kit.datasets.flickr import FILES as FLICKR_FILES
from dclip_kit.datasets.flickr import read_flickr
from dclip_kit.datasets.folder import PICTURE_SUFFIXES, read_csv, read_files, read_jsonl, walk_files
from dclip_kit.datasets.karpathy import read_karpathy
from dclip_kit.datasets.shards import find_shards, read_shards
from dclip_kit.datasets.usable import Checks, UsableImages, require_usable

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
        split: which part to read of a format that has parts (`karpathy`, `coco`), and what to call
            the data of the others.
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
    found = read_format(path, images, format, split, checks)
    require_usable(found)
    return found


def read_format(
    path: Path | str, images: Path | str | None, format: str, split: str, checks: Checks
) -> UsableImages:
    """Reads as `read_captioned` does, and may return that nothing is usable.

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
    formats = _formats_in_folder(path) if path.is_dir() else _formats_of_file(path)
    if len(formats) != 1:
        known = ", ".join(READERS)
        found = f"several ({', '.join(formats)})" if formats else "none that is recognised"
        raise ValueError(
            f"Expected data of one known format ({known}) at {path}, found {found}; say which "
            "format it is, or name the annotation file."
        )
    return formats[0]


def _formats_in_folder(path: Path) -> list[str]:
    signs = {
        "csv": (path / "captions.csv").is_file(),
        "jsonl": any(path.glob("*.jsonl")),
        "karpathy": any(path.glob("dataset_*.json")),
        "coco": bool(find_captions(path)),
        "flickr": any((path / name).is_file() for name in FLICKR_FILES),
        "conceptual": any(path.glob("*.tsv")),
        "shards": bool(find_shards(path)),
    }
    formats = [format for format, there in signs.items() if there]
    # Texts beside pictures may accompany any annotation file, which then has the say.
    return formats or ["files"] * _has_texts_beside(path)


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


def _formats_of_file(path: Path) -> list[str]:
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
