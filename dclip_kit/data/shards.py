"""Webdataset shards: unpacked once into a cache folder, and read from there as files."""

import errno
import hashlib
import json
import secrets
import shutil
import tarfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from tqdm.auto import tqdm

from dclip_kit.data.annotations import load_json, path_inside
from dclip_kit.data.folder import PICTURE_SUFFIXES, read_files
from dclip_kit.data.own_splits import is_split
from dclip_kit.data.usable import Checks, UsableImages
from dclip_kit.runtime.files import cache_path, write_atomically

# What a member's name is to blame for: too long, or a folder where another member is a file.
_BAD_NAME = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_REFUSED = "refused.json"  # what unpacking left out, told again whenever the cache is read


def read_shards(
    path: Path,
    images: Path | None = None,
    split: str = "train",
    checks: Checks = "pictures",
    cache: Path | None = None,
) -> UsableImages:
    """Reads .tar shards of pictures with .txt or .json of the same key, as img2dataset writes them.

    Unpacking takes as much disk again as the shards, and happens once for as long as their names,
    sizes and times stay.

    Args:
        path: one shard, a folder of them, or a folder whose folders train, val and test have them.
            Shards train.tar, val.tar and test.tar of one folder are splits as well.
        images: not for shards, which hold their pictures.
        split: as in `CaptionedImages`.
        checks: as in `sort_out`.
        cache: where to unpack; left out, below `DCLIP_CACHE` or the user's cache folder.

    Raises:
        ModuleNotFoundError: webdataset is not installed.
        ValueError: there are no shards, they cannot be unpacked, `images` is given, or as `gather`.
    """
    if images is not None:
        raise ValueError(
            f"Expected the pictures of {path} in its shards, got a folder of pictures ({images}); "
            "leave --images (images= in Python) out."
        )
    shards = find_shards(path)
    if not shards:
        raise ValueError(f"Expected .tar shards at {path}, found none; name a shard or a folder.")
    try:
        folder = unpack_shards(shards, cache or cache_path("shards"), path)
    except OSError as error:
        raise ValueError(
            f"Expected to unpack the shards at {path}, but it failed ({error}); make room, or give "
            "another folder with DCLIP_CACHE."
        ) from error
    pictures = folder if path.is_dir() else folder / path.stem
    found = read_files(pictures, None, split, checks, source=path.resolve().stem)
    refused: dict[str, str] = load_json(folder / _REFUSED)
    return replace(found, broken_rows=refused | found.broken_rows)


def find_shards(path: Path) -> list[Path]:
    """The shard itself, or a folder's shards in order of their names; else those of its splits."""
    if not path.is_dir():
        return [path] * path.is_file()
    below = (each for each in path.glob("*/*.tar") if is_split(each.parent))
    return sorted(path.glob("*.tar")) or sorted(below)


def unpack_shards(shards: list[Path], cache: Path, root: Path) -> Path:
    """Unpacks shards into a folder of the cache, unless they are there already.

    Args:
        shards: in `root`, or in folders of it.
        cache: where to unpack.
        root: a folder, or the only shard.

    Returns:
        The folder, with one folder a shard where the shard is in `root`, and in refused.json the
        reason for each member that was left out: a name that leads out of its shard, or something
        that is no file.

    Raises:
        ModuleNotFoundError: webdataset is not installed.
    """
    # Asked first, so that whether the extra is there does not depend on what an earlier run left.
    webdataset = _import_webdataset()
    top = root if root.is_dir() else root.parent
    places = {shard: shard.relative_to(top) for shard in shards}
    stats = [(str(shard.resolve()), shard.stat(), place) for shard, place in places.items()]
    # The folders that shards lie in are the cache's too, and so part of what it is known by.
    known = [(name, each.st_size, each.st_mtime_ns, *at.parts[:-1]) for name, each, at in stats]
    state = json.dumps(known)
    folder = cache / hashlib.sha256(state.encode()).hexdigest()[:16]
    if folder.is_dir():
        return folder
    temporary = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.tmp")
    refused: dict[str, str] = {}
    try:
        for shard, place in tqdm(places.items(), desc="unpacking shards", delay=2):
            _unpack(webdataset, shard, place.as_posix(), temporary / place.with_suffix(""), refused)
        write_atomically(temporary / _REFUSED, json.dumps(refused, indent=1))
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # unless another process was first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _import_webdataset() -> ModuleType:
    try:
        import webdataset
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Expected webdataset to read shards, but it is not installed; pip install "
            "'dclip-kit[data]'."
        ) from error
    return webdataset


def _unpack(
    webdataset: ModuleType, shard: Path, called: str, folder: Path, refused: dict[str, str]
) -> None:
    """Writes the pictures, texts and notes of a shard; its other members are not needed."""
    folder.mkdir(parents=True)

    def note(error: Exception) -> bool:
        """Says whether to go on."""
        if isinstance(error, OSError):  # a full disk, say, is no property of the shard to remember
            raise error
        detail = ascii(error.args[0]) if error.args else type(error).__name__
        if isinstance(error, tarfile.TarError):
            refused[called] = f"expected a whole shard, but reading on failed ({detail})"
            return False  # what follows a damaged place cannot be found
        refused[f"{called}:{len(refused)}"] = f"a member cannot be used ({detail})"
        return True

    _note_irregular(shard, called, refused)
    try:
        with shard.open("rb") as stream:
            # A stream of our own, as webdataset would run a path that begins with "pipe:".
            source = [{"url": called, "stream": stream}]
            members = webdataset.tariterators.tar_file_expander(source, handler=note)
            for sample in webdataset.tariterators.group_by_keys(members, handler=note):
                _write_sample(sample, folder, called, refused)
    except tarfile.TarError as error:
        note(error)
    if called not in refused and not _has_end(shard):
        refused[called] = "expected a whole shard, but its end is missing"


def _has_end(shard: Path) -> bool:
    """Whether a tar ends with its mark, blocks of zeros; tarfile takes a cut header for the end."""
    with shard.open("rb") as stream:
        stream.seek(max(0, shard.stat().st_size - tarfile.BLOCKSIZE))
        return stream.read() == bytes(tarfile.BLOCKSIZE)


def _note_irregular(shard: Path, called: str, refused: dict[str, str]) -> None:
    """Names the links and devices of a shard, which webdataset passes over in silence."""
    # A damaged place ends this look; it is noted where the files are read.
    with suppress(OSError, tarfile.TarError), tarfile.open(shard, "r:") as archive:
        for member in archive:
            if not member.isreg() and not member.isdir():
                place = f"{called}:{ascii(member.name)[1:-1]}"
                refused[place] = "expected a file, got a link or device"


def _write_sample(sample: dict, folder: Path, shard: str, refused: dict[str, str]) -> None:
    for suffix, content in sample.items():
        # To webdataset a suffix begins at a name's first dot ("photo.v2.jpg"); here the last tells,
        # as it does where files lie in a folder. A slash is never in it.
        if f".{suffix.rpartition('.')[2]}" not in PICTURE_SUFFIXES | {".txt", ".json"}:
            continue
        name = f"{sample['__key__']}.{suffix}"
        place = f"{shard}:{ascii(name)[1:-1]}"
        try:
            path = path_inside(folder, name)
        except ValueError:
            refused[place] = "its name leads out of the shard"
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            if error.errno not in _BAD_NAME:
                raise
            refused[place] = f"it could not be written ({error.strerror})"
