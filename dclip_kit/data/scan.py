"""One look at each picture, in threads: whether it is whole, and what tells it from others.

What was seen is remembered in the cache folder, in a file for each folder of pictures, as long as a
picture's size and time stay what they were. Pictures with a problem are looked at again.
"""

import hashlib
import importlib.util
import json
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from tqdm.auto import tqdm

from dclip_kit.data.pictures import open_picture
from dclip_kit.runtime.files import cache_path, write_atomically
from dclip_kit.runtime.machine import count_workers

# Pictures whose brightest and darkest of 32×32 pixels are nearer than this show nothing to hash:
# all plain ones would count as one picture.
_MIN_CONTRAST = 8
_MOST_AT_ONCE = 8  # whole pictures in memory


@dataclass(frozen=True)
class Scan:
    """What one look at a picture tells.

    Attributes:
        digest: SHA-256 of the file's bytes; "" if they cannot be read.
        pixels: SHA-256 of the pixels, the same for the same picture in another lossless format; ""
            if they were not looked at.
        phash: imagehash's perceptual hash in hexadecimal; "" where the picture is too plain to
            have one, None where nobody looked or imagehash is not installed.
        problem: why the picture cannot be used; "" if it can.
    """

    digest: str = ""
    pixels: str = ""
    phash: str | None = None
    problem: str = ""


def scan_pictures(
    paths: Sequence[Path], title: str = "reading pictures", decode: bool = True
) -> list[Scan]:
    """Looks at pictures, unless they are known and unchanged.

    Args:
        paths: of files.
        title: of the progress bar.
        decode: False reads the files and leaves pixels and hash out.

    Returns:
        A scan a path, in their order.
    """
    known = {folder: _recall(folder) for folder in {path.absolute().parent for path in paths}}
    hashes = importlib.util.find_spec("imagehash") is not None
    found: dict[Path, Scan] = {}
    states = {path: _state(path) for path in paths}
    for path, state in states.items():
        kept = known[path.absolute().parent].get(path.name)
        if kept and kept[0] == state:
            scan = Scan(*kept[1:])
            if not decode or (scan.pixels and (scan.phash is not None or not hashes)):
                found[path] = scan
    new = [path for path in states if path not in found]
    pool = ThreadPoolExecutor(count_workers(most=_MOST_AT_ONCE))
    try:
        looked = pool.map(lambda path: _look(path, decode, hashes), new)
        for path, scan in zip(new, tqdm(looked, title, len(new), delay=2), strict=True):
            found[path] = scan
            if not scan.problem:
                known[path.absolute().parent][path.name] = [states[path], *astuple(scan)]
    finally:  # also when it is stopped: the next look goes on from there
        pool.shutdown(cancel_futures=True)
        for folder in {path.absolute().parent for path in new if path in found}:
            _remember(folder, known[folder])
    return [found[path] for path in paths]


def _look(path: Path, decode: bool, hashes: bool) -> Scan:
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if not decode:
            return Scan(digest)
        picture = open_picture(path)
    except (OSError, ValueError) as error:
        return Scan(problem=str(error))
    pixels = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
    if not hashes:
        return Scan(digest, pixels)
    levels = np.asarray(picture.convert("L").resize((32, 32)))
    plain = int(levels.max()) - int(levels.min()) < _MIN_CONTRAST
    return Scan(digest, pixels, "" if plain else str(import_imagehash().phash(picture)))


def import_imagehash() -> ModuleType:
    """The library that hashes pictures by what they show.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        import imagehash
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Expected imagehash to compare pictures by content, but it is not installed; pip "
            "install 'dclip-kit[data]', or compare by name alone (--leak-guard names in a shell)."
        ) from error
    return imagehash


def _place(folder: Path) -> Path:
    return cache_path("scans", f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.json")


def _remember(folder: Path, entries: dict[str, list]) -> None:
    try:
        write_atomically(_place(folder), json.dumps(entries))
    except OSError as error:  # looking again is slower, and no reason to stop
        warnings.warn(
            f"Pictures are looked at again each time, since {cache_path('scans')} cannot be "
            f"written ({error.__cause__ or error}); DCLIP_CACHE may name another folder.",
            stacklevel=3,
        )


def _recall(folder: Path) -> dict[str, list]:
    try:
        kept = json.loads(_place(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there is none, or it is damaged: it is made again
        return {}
    entries = kept.items() if isinstance(kept, dict) else ()
    return {name: entry for name, entry in entries if isinstance(entry, list) and len(entry) == 5}


def _state(path: Path) -> str:
    """What tells that a picture is still the one that was looked at."""
    stat = path.stat() if os.path.exists(path) else None  # else told when it is looked at
    return f"{stat.st_size} {stat.st_mtime_ns}" if stat else ""
