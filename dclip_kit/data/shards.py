"""Webdataset's shards: unpacked once into a cache folder, and read from there as files."""

import errno
import hashlib
import json
import tarfile
from dataclasses import replace
from pathlib import Path

from tqdm.auto import tqdm

from dclip_kit.data.annotations import Checks, UsableImages, find_files, load_json, path_inside
from dclip_kit.data.folder import PICTURE_SUFFIXES, filling, read_files
from dclip_kit.runtime.files import cache_path, write_atomically

_KEPT = PICTURE_SUFFIXES | {".txt", ".json"}
# What a member's name is to blame for: too long, or there already.
_BAD_NAME = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_REFUSED = "refused.json"  # what unpacking left out, reported whenever the cache is read


def read_shards(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads .tar shards of pictures with .txt or .json of the same key, as img2dataset writes them.

    They are unpacked below `DCLIP_CACHE` or the user's cache folder. That takes as much disk again,
    and happens once for as long as their names, sizes and times stay.

    Args:
        path: one shard, a folder of them, or a folder whose folders train, val and test have them.
            Shards train.tar, val.tar and test.tar of one folder are splits as well.
        images: unused, as shards hold their pictures.
        split: as in `gather`.
        checks: as in `drop_unusable`.

    Raises:
        ValueError: there are no shards, they cannot be unpacked, or as `gather`.
    """
    shards = find_files(path, "*.tar", in_splits=True)
    if not shards:
        raise ValueError(f"Expected .tar shards at {path}, found none; name a shard or a folder.")
    root = path if path.is_dir() else path.parent
    # The folders that shards lie in are the cache's too, and so part of what it is known by.
    known = [
        (str(s.resolve()), s.stat().st_size, s.stat().st_mtime_ns, *s.relative_to(root).parts[:-1])
        for s in shards
    ]
    folder = cache_path("shards", hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16])
    if not folder.is_dir():
        refused: dict[str, str] = {}
        try:
            with filling(folder) as unpacked:
                for shard in tqdm(shards, desc="unpacking shards", delay=2):
                    place = shard.relative_to(root)
                    _unpack(shard, place.as_posix(), unpacked / place.with_suffix(""), refused)
                write_atomically(unpacked / _REFUSED, json.dumps(refused, indent=1))
        except OSError as error:
            raise ValueError(
                f"Expected to unpack the shards at {path}, but it failed ({error}); make room, or "
                "give another folder with DCLIP_CACHE."
            ) from error
    pictures = folder if path.is_dir() else folder / path.stem
    found = read_files(pictures, None, split, checks, source=path.resolve().stem)
    return replace(found, unusable=load_json(folder / _REFUSED) | found.unusable)


def _unpack(shard: Path, called: str, folder: Path, refused: dict[str, str]) -> None:
    """Writes the pictures, texts and notes of a shard; its other members are not needed."""
    folder.mkdir(parents=True)
    try:
        with shard.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                kept = Path(member.name).suffix.lower() in _KEPT
                if kept and (problem := _write_member(archive, member, folder)):
                    refused[f"{called}:{ascii(member.name)[1:-1]}"] = problem
            # To tarfile, a damaged header is an end too; a real one is a block of zeros.
            stream.seek(archive.offset)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("its end is missing")
    except tarfile.TarError as error:
        refused[called] = f"expected a whole shard, but reading on failed ({error})"


def _write_member(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> str:
    """Writes a file; or says why not, if what it is or its name is to blame."""
    file = archive.extractfile(member) if member.isreg() and not member.issparse() else None
    if file is None:
        return "expected a file, got a link, a device or a folder"
    content = file.read()
    try:
        path = path_inside(folder, member.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as own:
            own.write(content)
    except ValueError:
        return "its name leads out of the shard"
    except OSError as error:
        if error.errno not in _BAD_NAME:
            raise  # a full disk, say, is no property of the shard to remember
        return f"it could not be written ({error.strerror})"
    return ""
