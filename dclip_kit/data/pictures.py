"""Pictures: the two classes that hold all data, opening a picture, and scanning each once.

All pictures are opened here: whole, as RGB, and as a person sees them. A scan, in threads, tells
whether a picture is whole, and what distinguishes it from others. Scans are kept in the cache
folder, in one file for each folder of pictures, and hold while a picture's file is unchanged; in
doubt, its bytes decide. Pictures with a problem are scanned again.
"""

import hashlib
import importlib.util
import io
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm.auto import tqdm

from dclip_kit.runtime.files import (
    cache_path,
    file_digest,
    read_record,
    require_file,
    write_atomically,
)
from dclip_kit.runtime.machine import count_workers
from dclip_kit.runtime.packages import require_packages

SPLITS = ("train", "val", "test")
_ENOUGH = 4  # times the needed side: at twice, the cosine of some features to ours was 0.995
# Pictures whose brightest and darkest of 32×32 pixels differ by less than this are too plain to
# hash: all of them would count as one picture.
_MIN_CONTRAST = 8
_MOST_AT_ONCE = 8  # whole pictures in memory
_SCANS = "dclip-kit scans 2"  # the format of a cache file


@dataclass(frozen=True)
class CaptionedImages:
    """Pictures, each with any number of captions.

    Attributes:
        paths: one for each picture.
        captions: for each picture its captions.
        split: "train", "val", "test", …
        source: what to call the data in reports.
        image_ids: each picture's name in its data set ("coco:391895", "flickr:36979", its web
            address), for the leak guard, or "". Left out, all are "".
        splits: for each picture one of `SPLITS`, or "" where its data set gives none. Left out, all
            are "".

    Raises:
        ValueError: the lengths differ, a caption has no text, a picture's captions are a text
            instead of a tuple, or a split is unknown.
    """

    paths: tuple[Path, ...]
    captions: tuple[tuple[str, ...], ...]
    split: str
    source: str
    image_ids: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("image_ids", "splits"):
            if not getattr(self, name):
                object.__setattr__(self, name, ("",) * len(self.paths))
        # A text would pass for a group of letters.
        if isinstance(self.captions, str) or any(isinstance(group, str) for group in self.captions):
            raise ValueError(
                "Expected a tuple of captions for each picture, got a text; wrap each in a tuple."
            )
        for name in ("captions", "image_ids", "splits"):
            if len(getattr(self, name)) != len(self.paths):
                raise ValueError(
                    f"Expected {name} for each of {len(self.paths)} pictures, got "
                    f"{len(getattr(self, name))}; give an empty one for a picture without any."
                )
        if odd := set(self.splits) - {*SPLITS, ""}:
            raise ValueError(
                f"Expected each picture's split to be one of {', '.join(SPLITS)} or empty, got "
                f"{min(odd)!r}; rename it."
            )
        empty = [i for i, group in enumerate(self.captions) if not all(c.strip() for c in group)]
        if empty:
            raise ValueError(
                f"Expected captions with text, got an empty one at {self.paths[empty[0]]} (and "
                f"{len(empty) - 1} more pictures); leave them out."
            )

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def texts(self) -> list[str]:
        """All captions in one list, picture by picture."""
        return [caption for group in self.captions for caption in group]

    @cached_property
    def image_of_text(self) -> Tensor:
        """For each of `texts` the index of its picture, int64 of shape (text,)."""
        return torch.repeat_interleave(
            torch.tensor([len(group) for group in self.captions], dtype=torch.int64)
        )

    def select(self, indices: Sequence[int]) -> "CaptionedImages":
        """The pictures at these indices, in this order."""
        return replace(
            self,
            paths=tuple(self.paths[i] for i in indices),
            captions=tuple(self.captions[i] for i in indices),
            image_ids=tuple(self.image_ids[i] for i in indices),
            splits=tuple(self.splits[i] for i in indices),
        )


@dataclass(frozen=True)
class LabelledImages:
    """Pictures, each of one class, for zero-shot classification.

    Attributes:
        paths: one for each picture.
        labels: index of each picture's class.
        class_names: the classes.
        in_domain: for each class, whether fine-tuning data may show it.
        source: what to call the data in reports.

    Raises:
        ValueError: the lengths differ, or a label is out of range.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    in_domain: tuple[bool, ...]
    source: str

    def __post_init__(self) -> None:
        if len(self.paths) != len(self.labels) or len(self.class_names) != len(self.in_domain):
            raise ValueError(
                f"Expected a label per picture and a domain flag per class, got {len(self.labels)} "
                f"for {len(self.paths)} pictures and {len(self.in_domain)} for "
                f"{len(self.class_names)} classes."
            )
        if self.labels and not 0 <= min(self.labels) <= max(self.labels) < len(self.class_names):
            raise ValueError(
                f"Expected labels from 0 to {len(self.class_names) - 1}, got "
                f"{min(self.labels)} to {max(self.labels)}."
            )

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, indices: Sequence[int]) -> "LabelledImages":
        """The pictures at these indices, in this order, and all classes."""
        return replace(
            self,
            paths=tuple(self.paths[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices),
        )

    def take_per_class(self, count: int) -> "LabelledImages":
        """The first `count` pictures of each class, or all where it has fewer.

        Raises:
            ValueError: count is below 1.
        """
        if count < 1:
            raise ValueError(f"Expected at least one picture per class, got {count}.")
        label_of = self.labels.__getitem__
        classes = groupby(sorted(range(len(self)), key=label_of), label_of)
        return self.select(sorted(i for _, group in classes for i in islice(group, count)))


_TURNS = {  # by EXIF's number, what makes a picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(picture: Image.Image) -> Image.Image:
    """A loaded picture, turned by its EXIF orientation if it has one."""
    # After loading, as Pillow turns TIFFs itself while it loads. With unreadable metadata the
    # picture stays as stored, which is how viewers show it.
    with suppress(Exception):
        turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
        if turn is not None:
            turned = picture.transpose(turn)
            notes = [key for key in turned.info if re.search("exif|xmp", str(key), re.IGNORECASE)]
            for key in notes:  # it would be turned again
                del turned.info[key]
            return turned
    return picture


def as_seen(picture: Image.Image) -> Image.Image:
    """A loaded picture as a person sees it, as RGB; see `open_picture`."""
    picture = upright(picture)
    if picture.mode == "F" or picture.mode.startswith("I"):
        return _scale_to_8_bits(picture).convert("RGB")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    # A conversion to the same mode would copy it.
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def open_picture(path: Path | str, side: int | None = None) -> Image.Image:
    """Reads a picture whole, as RGB, and as a person sees it.

    It is turned upright by its EXIF orientation, more than 8 bits a channel are scaled down to 8,
    transparent parts are laid over white, and an animation gives its first frame. A plain RGB file
    arrives as it is stored. Colour profiles are not applied.

    Args:
        path: of the file.
        side: in pixels, if the picture will be scaled down to about that. To save time and memory,
            a JPEG is then decoded at a half, a quarter or an eighth of its size, if that divides
            its sides and leaves at least four times `side`. Left out, all pixels are decoded, as
            boxes and crops need them.

    Raises:
        ValueError: it is missing, cut short, no picture, or has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS` (a small file may unfold into more than the memory holds).
    """
    try:
        with _begin(path, side) as picture:
            picture.load()
            return as_seen(picture)
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        link = f" (a link to {os.readlink(path)})" if os.path.islink(path) else ""
        reason = getattr(error, "strerror", None) or error  # which does not repeat the path
        raise ValueError(
            f"Expected a whole picture at {path}{link}, but reading it failed ({reason}); restore "
            "it, leave it out, or name the folder that has the pictures."
        ) from error


def decode_picture(content: bytes, side: int | None = None) -> Image.Image:
    """As `open_picture`, from the bytes of a file.

    Raises:
        ValueError: they are cut short, no picture, or unfold into too many pixels.
    """
    try:
        with _begin(io.BytesIO(content), side) as picture:
            picture.load()
            return as_seen(picture)
    except Exception as error:  # many types, as above
        # Pillow would name the buffer by its address.
        reason = "it is none" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"Expected a whole picture, but reading it failed ({reason}).") from error


def count_links(paths: Iterable[Path], folder: Path) -> int:
    """How many pictures lie outside a folder, reached by links to them or their folders."""
    root = os.path.realpath(folder)
    return sum(not Path(os.path.realpath(path)).is_relative_to(root) for path in paths)


def count_pixels(path: Path | str, side: int | None = None) -> int:
    """How many pixels `open_picture` would decode, from the file's header.

    1 where the header cannot be read: opening the picture will report the problem.
    """
    with suppress(Exception), _begin(path, side) as picture:  # many types, as above
        return picture.width * picture.height
    return 1


def _begin(file: Path | str | io.BytesIO, side: int | None) -> Image.Image:
    """Reads a file's header, and sets the size at which the picture will be decoded."""
    if not isinstance(file, io.BytesIO):
        require_file(file)
    try:
        picture = Image.open(file)
    except ImportError as error:  # ultralytics' Image.open wants a package for what it cannot read
        raise UnidentifiedImageError("cannot identify image file") from error
    # Pillow itself only warns up to twice this size, which takes 0.7 GB as RGBA.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.width * picture.height > limit:
        picture.close()
        raise ValueError(
            f"{picture.width}×{picture.height} pixels, more than the {limit} that "
            "PIL.Image.MAX_IMAGE_PIXELS allows: a decompression bomb?"
        )
    # Only a JPEG can be decoded at a fraction of its size; for other formats this does nothing.
    least = float("inf") if side is None else _ENOUGH * side
    for part in (8, 4, 2):
        width, height = picture.width // part, picture.height // part
        divides = (width * part, height * part) == picture.size  # else its pixels would be moved
        if divides and min(width, height) >= least:
            picture.draft(None, (width, height))
            break
    return picture


def _scale_to_8_bits(picture: Image.Image) -> Image.Image:
    """Scales gray of 16 or 32 bits or floats, which Pillow's own conversion would clip to white.

    Integers are taken as 16-bit, as in PNG and PGM, and floats as running to 1 or to 255. Where
    values exceed that range, their own extremes become black and white.
    """
    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it has pixels that are not finite numbers")
    low, high = float(values.min()), float(values.max())
    usual_maxima = (1.0, 255.0) if picture.mode == "F" else (65535.0,)
    if maxima := [value for value in usual_maxima if low >= 0 and high <= value]:
        low, high = 0.0, maxima[0]
    scaled = (values - low) / ((high - low) or 1.0)
    transparent_value = picture.info.get("transparency")
    if isinstance(transparent_value, int):  # a PNG may name one gray that is transparent
        scaled[values == transparent_value] = 1.0
    return Image.fromarray(np.rint(scaled * 255).astype(np.uint8))


@dataclass(frozen=True)
class Scan:
    """What a scan of a picture tells.

    Attributes:
        digest: SHA-256 of the file's bytes; "" if they cannot be read.
        pixels: SHA-256 of the pixels, the same for the same picture in another lossless format; ""
            if they were not decoded.
        phash: imagehash's perceptual hash in hexadecimal; "" if the picture is too plain to have
            one, None if it was not decoded or imagehash is not installed.
        mirrored: likewise of the picture with left and right exchanged.
        problem: why the picture cannot be used; "" if it can.
    """

    digest: str = ""
    pixels: str = ""
    phash: str | None = None
    mirrored: str | None = None
    problem: str = ""


def scan_pictures(
    paths: Sequence[Path], title: str = "reading pictures", decode: bool = True
) -> list[Scan]:
    """Scans pictures, except those that were scanned before and are unchanged.

    Args:
        paths: of files.
        title: of the progress bar.
        decode: False only reads the files, without pixels and hashes.

    Returns:
        A scan for each path, in their order.
    """
    folders = {path: os.fsencode(path.absolute().parent) for path in paths}
    cache_files = {
        path: cache_path("scans", f"{hashlib.sha256(folder).hexdigest()[:16]}.json")
        for path, folder in folders.items()
    }
    records = {cache_file: _recall(cache_file) for cache_file in set(cache_files.values())}
    with_hashes = importlib.util.find_spec("imagehash") is not None
    scans: dict[Path, Scan] = {}
    doubtful: dict[Path, Scan] = {}
    states = {path: file_state(path) for path in paths}
    for path, state in states.items():
        known_state, scan = records[cache_files[path]].get(path.name, ("", Scan()))
        complete = scan.pixels and (scan.phash is not None or not with_hashes)
        if state and known_state and (complete or not decode):
            (scans if state == known_state else doubtful)[path] = scan
    new = [path for path in states if path not in scans]

    def scan_file(path: Path) -> Scan:
        return _scan_file(path, decode, with_hashes, doubtful.get(path))

    try:
        with ThreadPoolExecutor(count_workers(most=_MOST_AT_ONCE)) as pool:
            results = pool.map(scan_file, new)
            for path, scan in zip(new, tqdm(results, title, len(new), delay=2), strict=True):
                scans[path] = scan
                if not scan.problem:
                    records[cache_files[path]][path.name] = states[path], scan
    finally:  # also when it is stopped: the next call goes on from there
        for cache_file in {cache_files[path] for path in new if path in scans}:
            try:
                _remember(records[cache_file], cache_file)
            except OSError as error:  # scanning again is slower, but no reason to stop
                warnings.warn(
                    f"Pictures are scanned again each time, since {cache_file.parent} cannot be "
                    f"written ({error.__cause__ or error}); name another folder in DCLIP_CACHE.",
                    stacklevel=2,
                )
    return [scans[path] for path in paths]


def file_state(path: Path) -> str:
    """A text that changes with a file: size, times and inode; "" if the file is gone.

    Size and modification time are not enough: programs that copy files may set the time. Why a file
    cannot be read is reported by whatever opens it.
    """
    stat = path.stat() if os.path.exists(path) else None
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino} {stat.st_ctime_ns}" if stat else ""


def _recall(cache_file: Path) -> dict[str, tuple[str, Scan]]:
    """Reads the scans in a cache file, each with its picture's file state, by file name."""

    def build(record: dict[str, Any]) -> dict[str, tuple[str, Scan]]:
        if record["format"] != _SCANS:
            raise ValueError("it is of another version")
        return {name: (state, Scan(*values)) for name, (state, *values) in record["seen"].items()}

    try:
        return read_record(cache_file, build)
    except (FileNotFoundError, ValueError):  # it will be written again
        return {}


def _remember(record: Mapping[str, tuple[str, Scan]], cache_file: Path) -> None:
    entries = {name: [state, *astuple(scan)] for name, (state, scan) in record.items()}
    write_atomically(cache_file, json.dumps({"format": _SCANS, "seen": entries}))


def _scan_file(path: Path, decode: bool, with_hashes: bool, known: Scan | None) -> Scan:
    """Scans a picture; `known`, an earlier scan, is returned if the file has the same bytes."""
    try:
        if known and file_digest(path) == known.digest:
            return known
        if not decode:
            return Scan(file_digest(path))
        picture = open_picture(path)
        digest = file_digest(path)
    except (OSError, ValueError) as error:
        return Scan(problem=str(error))
    pixels = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
    if not with_hashes:
        return Scan(digest, pixels)
    import imagehash

    # imagehash starts with this step, too: the second hash costs next to nothing.
    small = picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    levels = np.asarray(picture.convert("L").resize((32, 32)))
    if int(levels.max()) - int(levels.min()) < _MIN_CONTRAST:
        return Scan(digest, pixels, "", "")
    hashes = (str(imagehash.phash(image)) for image in (small, ImageOps.mirror(small)))
    return Scan(digest, pixels, *hashes)


def require_imagehash() -> None:
    """Checks for imagehash, which tells pictures by their content.

    Raises:
        ImportError: it is not installed.
    """
    by_name = ", or compare by name alone (--leak-guard names in a shell)"
    require_packages("data", "imagehash", instead=by_name)
