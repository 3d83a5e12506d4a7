"""Files: atomic writing, JSON, safetensors, the embedded assets, the cache folder."""

import errno
import hashlib
import json
import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, TypeVar

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dclip_kit.runtime.printing import printable, say

_PACKAGE = Path(__file__).resolve().parent.parent

Built = TypeVar("Built")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary file, renamed to `path` once complete: no reader sees half a file.

    Its name begins with a dot, by which readers of whole folders pass.

    Args:
        path: of the file.

    Raises:
        OSError: the file cannot be written, for example to a full or read-only disk.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # two may write at once
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except (OSError, SafetensorError) as error:  # safetensors raises its own type
        raise OSError(
            f"Expected to write {path}, but it cannot be written ({error}); make room or name "
            "another place."
        ) from error
    finally:
        with suppress(OSError):  # an earlier error is the one to report
            temporary.unlink()


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder, renamed to `folder` once filled; another process may be first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
        temporary_folder = Path(temporary) / folder.name
        temporary_folder.mkdir()
        yield temporary_folder
        with suppress(OSError):  # then another process has made it
            temporary_folder.rename(folder)


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder, whose files then replace those of the same names in `folder`."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:  # inside, since the folder may be a disk of its own
        with TemporaryDirectory(prefix=".", dir=folder, ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)
            for file in [path for path in Path(temporary).rglob("*") if path.is_file()]:
                target = folder / file.relative_to(temporary)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
    finally:
        if made:
            with suppress(OSError):  # not empty: it was filled
                folder.rmdir()


@contextmanager
def alone_at(folder: Path, work: str) -> Iterator[None]:
    """Locks a folder; if another process holds the lock, prints so and waits.

    The lock is in the cache folder, so it is among those who share that; without one that can be
    written to, nothing is locked.

    Args:
        folder: which need not exist yet.
        work: what is done there, such as "embedding pictures".
    """
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    lock = FileLock(cache_path("locks", f"{digest}.lock"))
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        say(printable(f"Another process is {work}: waiting for it."))
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def require_file(path: Path | str) -> None:
    """Refuses folders, pipes and devices: reading those could wait or go on for ever.

    Raises:
        OSError: the path exists and is not a file. A missing file is left to whatever opens it.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "it is no file but a folder, pipe or device", str(path))


def open_file(path: Path | str, mode: str = "rb", **options: Any) -> IO[Any]:
    """Opens a file as `open` does, but nothing that is not a file; used for all data files.

    Raises:
        OSError: as `open` and `require_file`.
    """
    require_file(path)
    return open(path, mode, **options)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; errors as `open_file`."""
    require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file, text as UTF-8, completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_record(record: Any, path: Path | str) -> None:
    """Writes JSON values into a file, atomically; JSON has no NaN, which becomes null."""
    write_atomically(Path(path), json.dumps(_without_nan(record), indent=1, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_record(path: Path, build: Callable[[Any], Built]) -> Built:
    """Builds something from the JSON values in a file.

    Args:
        path: the file.
        build: makes the result of the values; an error that it raises means that they are damaged.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: it is damaged, or may not be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected a record at {path}, found no file; name another path.")
    try:
        return build(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(
            f"Expected to read {path}, but it failed ({error}); permit it or name another path."
        ) from error
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected {path} as it was written, but it is damaged ({type(error).__name__}: "
            f"{error}); restore it."
        ) from error


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file atomically; shared storage is copied, as the format demands."""
    with replacing(path) as temporary:
        save_file(
            {name: value.detach().contiguous().clone() for name, value in tensors.items()},
            temporary,
        )
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Maps a safetensors file into memory: only what is used is read, and can be evicted again.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: it was cut short or is not a safetensors file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected a safetensors file at {path}, found none.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"Expected a whole safetensors file, but {path} is damaged or cut short ({error}); "
            "delete it or fetch it again."
        ) from error


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Loads weights strictly, refusing those of another architecture in one sentence.

    Args:
        module: receives the weights, in its own dtype.
        tensors: the weights by parameter name.
        source: what to call them in an error.

    Raises:
        ValueError: names or shapes differ.
    """
    weights = module.state_dict()
    missing, extra = (
        sorted(weights.keys() - tensors.keys()),
        sorted(tensors.keys() - weights.keys()),
    )
    shapes = [
        name
        for name in weights.keys() & tensors.keys()
        if weights[name].shape != tensors[name].shape
    ]
    if missing or extra or shapes:
        raise ValueError(
            f"Expected weights for {type(module).__name__}, but {source} is of another "
            f"architecture ({len(missing)} missing, {len(extra)} unknown, {len(shapes)} of another "
            f"shape; first: {(missing + extra + sorted(shapes))[0]}); load it into its own."
        )
    module.load_state_dict(dict(tensors))


def fingerprint(*tensors: Tensor) -> str:
    """A digest of tensors' contents, to notice that a checkpoint belongs to other tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()[:16]


def raw_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes, without a copy if it is contiguous and on the CPU."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def asset_path(*parts: str) -> Path:
    """Finds a file or folder of the embedded assets.

    Looks first in the installed package (the wheel carries the assets as `dclip_kit/_assets`),
    then in the repository's `assets/`.

    Args:
        *parts: path below the assets folder, for example `"pocket_yolo", "config.json"`.

    Returns:
        The existing path.

    Raises:
        FileNotFoundError: it is in neither.
    """
    paths = [root.joinpath(*parts) for root in (_PACKAGE / "_assets", _PACKAGE.parent / "assets")]
    for path in paths:
        if path.exists():
            return path
    raise FileNotFoundError(
        f"Expected the embedded {'/'.join(parts)!r} at {' or '.join(map(str, paths))}, found "
        "neither; take it from the repository (which alone has the arms that others are compared "
        "with), reinstall dclip_kit, or run `make pocket` to rebuild it."
    )


def cache_path(*parts: str) -> Path:
    """A path for what can be made again: below `DCLIP_CACHE`, else in the user's cache folder."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dclip_kit"
    return Path(os.environ.get("DCLIP_CACHE") or user).joinpath(*parts)
