"""Pictures: the two shapes that all data takes, how one is opened, and one look at each.

They are opened here alone: whole, as RGB, and as a person sees them. A look, in threads, tells
whether a picture is whole, and what tells it from others. What was seen is remembered in the cache
folder, in a file for each folder of pictures, as long as a picture's file stays what it was; where
that is not sure, its bytes decide. Pictures with a problem are looked at again.
"""

import hashlib
import importlib.util
import json
import os
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
from PIL import ExifTags, Image, ImageOps
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

SPLITS = ("train", "val", "test")
_ENOUGH = 4  # times the side that is needed: at twice, some features had a cosine of 0.995 to ours
# Pictures whose brightest and darkest of 32×32 pixels are nearer than this show nothing to hash:
# all plain ones would count as one picture.
_MIN_CONTRAST = 8
_MOST_AT_ONCE = 8  # whole pictures in memory
_SCANS = "dclip-kit scans 2"  # how a file of what was seen says what it is


@dataclass(frozen=True)
class CaptionedImages:
    """Pictures, each with any number of captions.

    Attributes:
        paths: one a picture.
        captions: for each picture its captions.
        split: "train", "val", "test", …
        source: what to call the data in reports.
        image_ids: for each picture what its data set calls it ("coco:391895", "flickr:36979", the
            address that it came from), for the leak guard, or "". Left out, all are "".
        splits: for each picture which of `SPLITS` its data set puts it into, or "" where that says
            nothing. Left out, all are "".

    Raises:
        ValueError: the lengths differ, a caption has no text, a picture has a text where its group
            of captions should be, or a split is unknown.
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
                "Expected a group of captions a picture, got a single text; wrap each in a tuple."
            )
        for name in ("captions", "image_ids", "splits"):
            if len(getattr(self, name)) != len(self.paths):
                raise ValueError(
                    f"Expected {name} for each of {len(self.paths)} pictures, got "
                    f"{len(getattr(self, name))}; give an empty one to a picture without any."
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
        paths: one a picture.
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
                f"Expected one label a picture and one domain flag a class, got {len(self.labels)} "
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
            raise ValueError(f"Expected at least one picture a class, got {count}.")
        label_of = self.labels.__getitem__
        classes = groupby(sorted(range(len(self)), key=label_of), label_of)
        return self.select(sorted(i for _, own in classes for i in islice(own, count)))


def upright(picture: Image.Image) -> Image.Image:
    """A loaded picture, turned by its EXIF orientation if it has one."""
    # After loading, as Pillow turns TIFFs itself while it loads. Metadata that cannot be read turns
    # no picture: viewers show such a file as it is stored.
    with suppress(Exception):
        if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return ImageOps.exif_transpose(picture)
    return picture


def as_seen(picture: Image.Image) -> Image.Image:
    """A loaded picture as a person sees it, as RGB; what `open_picture` says of files."""
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

    That is: turned upright by its EXIF orientation, more than 8 bits a channel scaled down to 8,
    transparent parts over white, and of an animation the first frame. A plain RGB file arrives as
    it is stored. Colour profiles are not applied.

    Args:
        path: of the file.
        side: in pixels, where the picture is going to be scaled down to about that. A JPEG may then
            be decoded at a half, a quarter or an eighth of its size, which takes less time and
            memory: where that divides its sides and leaves four times as many pixels a side.
            Left out: all pixels, as boxes and crops need them.

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


def count_links(paths: Iterable[Path], folder: Path) -> int:
    """How many pictures lie outside a folder, which has links to them or to their folders."""
    root = os.path.realpath(folder)
    return sum(not Path(os.path.realpath(path)).is_relative_to(root) for path in paths)


def count_pixels(path: Path | str, side: int | None = None) -> int:
    """How many pixels `open_picture` would decode, read off the file's header.

    1 where that cannot be read: what is wrong is told when the picture is opened.
    """
    with suppress(Exception), _begin(path, side) as picture:  # of many types, as above
        return picture.width * picture.height
    return 1


def _begin(path: Path | str, side: int | None) -> Image.Image:
    """Reads a file's header, and sets how much of the picture is to be decoded."""
    require_file(path)
    picture = Image.open(path)
    # Pillow itself only warns up to twice this size, which is 0.7 GB as RGBA.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.width * picture.height > limit:
        picture.close()
        raise ValueError(
            f"{picture.width}×{picture.height} pixels, more than the {limit} that "
            "PIL.Image.MAX_IMAGE_PIXELS allows: a decompression bomb?"
        )
    # A JPEG can be decoded at a part of its size; other formats cannot be, and stay as they are.
    least = float("inf") if side is None else _ENOUGH * side
    for part in (8, 4, 2):
        width, height = picture.width // part, picture.height // part
        whole = (width * part, height * part) == picture.size  # else its pixels would be moved
        if whole and min(width, height) >= least:
            picture.draft(None, (width, height))
            break
    return picture


def _scale_to_8_bits(picture: Image.Image) -> Image.Image:
    """Gray of 16 or 32 bits or floats, which Pillow's own conversion would clip to white.

    Integers are of 16 bits, as PNG and PGM have them, and floats run to 1 or to 255; values out of
    that range say nothing about black and white, so that their own extremes stand for them.
    """
    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it has pixels that are not finite numbers")
    low, high = float(values.min()), float(values.max())
    tops = (1.0, 255.0) if picture.mode == "F" else (65535.0,)
    if fitting := [top for top in tops if low >= 0 and high <= top]:
        low, high = 0.0, fitting[0]
    scaled = (values - low) / ((high - low) or 1.0)
    clear = picture.info.get("transparency")
    if isinstance(clear, int):  # a PNG may name one gray that is transparent
        scaled[values == clear] = 1.0
    return Image.fromarray(np.rint(scaled * 255).astype(np.uint8))


@dataclass(frozen=True)
class Scan:
    """What one look at a picture tells.

    Attributes:
        digest: SHA-256 of the file's bytes; "" if they cannot be read.
        pixels: SHA-256 of the pixels, the same for the same picture in another lossless format; ""
            if they were not looked at.
        phash: imagehash's perceptual hash in hexadecimal; "" where the picture is too plain to
            have one, None where nobody looked or imagehash is not installed.
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
    """Looks at pictures, unless they are known and unchanged.

    Args:
        paths: of files.
        title: of the progress bar.
        decode: False reads the files and leaves pixels and hashes out.

    Returns:
        A scan a path, in their order.
    """
    folders = {path: os.fsencode(path.absolute().parent) for path in paths}
    places = {
        path: cache_path("scans", f"{hashlib.sha256(folder).hexdigest()[:16]}.json")
        for path, folder in folders.items()
    }
    known = {place: _recall(place) for place in set(places.values())}
    hashes = importlib.util.find_spec("imagehash") is not None
    found: dict[Path, Scan] = {}
    doubtful: dict[Path, Scan] = {}
    states = {path: file_state(path) for path in paths}
    for path, state in states.items():
        kept, scan = known[places[path]].get(path.name, ("", Scan()))
        whole = scan.pixels and (scan.phash is not None or not hashes)
        if state and kept and (whole or not decode):
            (found if state == kept else doubtful)[path] = scan
    new = [path for path in states if path not in found]

    def look(path: Path) -> Scan:
        return _look(path, decode, hashes, doubtful.get(path))

    try:
        with ThreadPoolExecutor(count_workers(most=_MOST_AT_ONCE)) as pool:
            looked = pool.map(look, new)
            for path, scan in zip(new, tqdm(looked, title, len(new), delay=2), strict=True):
                found[path] = scan
                if not scan.problem:
                    known[places[path]][path.name] = states[path], scan
    finally:  # also when it is stopped: the next look goes on from there
        for place in {places[path] for path in new if path in found}:
            try:
                _remember(known[place], place)
            except OSError as error:  # looking again is slower, and no reason to stop
                warnings.warn(
                    f"Pictures are looked at again each time, since {place.parent} cannot be "
                    f"written ({error.__cause__ or error}); DCLIP_CACHE may name another folder.",
                    stacklevel=2,
                )
    return [found[path] for path in paths]


def file_state(path: Path) -> str:
    """What tells that a file is still the one that was looked at; nothing of one that is gone.

    Size and time of writing alone do not: what copies a file may set its time. Whoever looks at the
    file says why it cannot be read.
    """
    stat = path.stat() if os.path.exists(path) else None
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino} {stat.st_ctime_ns}" if stat else ""


def _recall(place: Path) -> dict[str, tuple[str, Scan]]:
    """What was seen, with its file's state, by the file's name."""

    def build(record: dict[str, Any]) -> dict[str, tuple[str, Scan]]:
        if record["format"] != _SCANS:
            raise ValueError("it is of another version")
        return {name: (state, Scan(*each)) for name, (state, *each) in record["seen"].items()}

    try:
        return read_record(place, build)
    except (FileNotFoundError, ValueError):  # it is made again
        return {}


def _remember(seen: Mapping[str, tuple[str, Scan]], place: Path) -> None:
    entries = {name: [state, *astuple(scan)] for name, (state, scan) in seen.items()}
    write_atomically(place, json.dumps({"format": _SCANS, "seen": entries}))


def _look(path: Path, decode: bool, hashes: bool, known: Scan | None) -> Scan:
    """Looks at a picture; if its file has the bytes that were seen, nothing else has changed."""
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
    if not hashes:
        return Scan(digest, pixels)
    import imagehash

    # imagehash itself begins with this, so that both hashes cost one.
    small = picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    levels = np.asarray(picture.convert("L").resize((32, 32)))
    if int(levels.max()) - int(levels.min()) < _MIN_CONTRAST:
        return Scan(digest, pixels, "", "")
    both = (str(imagehash.phash(each)) for each in (small, ImageOps.mirror(small)))
    return Scan(digest, pixels, *both)


def require_imagehash() -> None:
    """Checks that the library is there that hashes pictures by what they show.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if importlib.util.find_spec("imagehash") is None:
        raise ModuleNotFoundError(
            "Expected imagehash to compare pictures by content, but it is not installed; pip "
            "install 'dclip-kit[data]', or compare by name alone (--leak-guard names in a shell)."
        )
