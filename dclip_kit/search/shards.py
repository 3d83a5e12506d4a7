"""Embedding pictures by shards: tars, parquet's row groups, or thousands of paths of a folder.

A shard is embedded whole or not at all, and what is there is skipped: so any loop over shards, on
one machine or on many under Ray, may stop anywhere and be started again.
"""

import hashlib
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from dclip_kit.data.paths import PICTURE_SUFFIXES, is_picture, is_text, walk_files
from dclip_kit.data.pictures import decode_picture
from dclip_kit.data.readers import MOST_BYTES, PICTURE_COLUMNS, read_members
from dclip_kit.models.clip import POCKET, ClipBundle, find_folder, load_clip
from dclip_kit.models.encode import encode_pixels, read_ahead
from dclip_kit.runtime.files import open_file
from dclip_kit.runtime.packages import require_packages
from dclip_kit.search.embeddings import (
    MODEL,
    SHARD,
    Layout,
    Precision,
    ShardError,
    ShardFiles,
    describe_maker,
    open_table,
)

PATHS = 10_000  # of a folder in a shard
_ENDS = 1 << 16  # bytes
Compute = Literal["fp32", "bf16"]
_STALE = 3600  # seconds since anything was written to a temporary file
_TRIES = 4  # for a shard under Ray: one that breaks every worker must end


@dataclass(frozen=True)
class Shard:
    """Pictures that are embedded together.

    Attributes:
        name: of the files to write, which may have folders in it.
        root: the folder that paths are told from.
        file: a tar or a parquet file below it; "" if the shard is of pictures.
        row_group: of the parquet file.
        paths: of the pictures below the root, if they are files.
        number: of the shard, from 0.
        count: of all shards.
    """

    name: str
    root: Path
    file: str = ""
    row_group: int = 0
    paths: tuple[str, ...] = ()
    number: int = 0
    count: int = 1

    @property
    def identity(self) -> str:
        """A text that is another if the shard is made of other files.

        A tar or parquet file is known by its name, its length, its beginning and its end, a picture
        by its path and its length: so copies are the same, and not each of terabytes is read again.

        Raises:
            OSError: the file cannot be read, or not a single picture is there.
        """
        if self.file:
            ends = _digest_ends(self.root / self.file)
            return f"{self.file} {self.row_group} {ends}"
        files = [self.root / path for path in self.paths]
        if all(_size(file) < 0 and not file.is_symlink() for file in files):
            raise FileNotFoundError(
                f"Expected pictures below {self.root}, found none of {len(self.paths):,}; see that "
                "this machine reaches the folder."
            )
        sizes = (f"{path}\0{_size(self.root / path)}\0" for path in self.paths)
        digest = hashlib.sha256("".join(sizes).encode(errors="surrogateescape")).hexdigest()
        return f"{len(self.paths)} paths {digest[:16]}"

    def read(self) -> Iterator[tuple[str, bytes | str]]:
        """Yields each picture's path and bytes; instead of bytes, why it has none.

        Paths are told as `file:member` in tars and `file:row` in parquet files.

        Raises:
            OSError: a file cannot be read for a reason that is none of the picture's.
        """
        if self.paths:
            yield from ((path, _read_file(self.root / path)) for path in self.paths)
        elif self.file.lower().endswith(".tar"):
            for name, content in read_members(self.root / self.file, PICTURE_SUFFIXES):
                yield f"{self.file}:{name}", content
        else:
            yield from self._read_rows()

    def _read_rows(self) -> Iterator[tuple[str, bytes | str]]:
        from pyarrow import parquet

        with parquet.ParquetFile(self.root / self.file) as table:
            column = _picture_column(table.schema_arrow, self.root / self.file)
            groups = [table.metadata.row_group(i) for i in range(self.row_group)]
            row = sum(group.num_rows for group in groups)
            for batch in table.iter_batches(64, [self.row_group], [column]):
                for value in batch[column].to_pylist():
                    # A path beside the bytes is never opened: it may lead anywhere.
                    content = value.get("bytes") if isinstance(value, dict) else value
                    yield f"{self.file}:{row}", content or "expected its bytes in the row, got none"
                    row += 1


def _size(path: Path) -> int:
    """A file's length in bytes; -1 if there is no such file."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _digest_ends(path: Path) -> str:
    with open_file(path) as file:
        size = file.seek(0, os.SEEK_END)
        content = b""
        for start in (0, max(0, size - _ENDS)):
            file.seek(start)
            content += file.read(_ENDS)
    return f"{size} {hashlib.sha256(content).hexdigest()[:16]}"


def _read_file(path: Path) -> bytes | str:
    """A picture's bytes, or the reason for having none; a failing disk is no picture's fault."""
    try:
        with open_file(path) as file:
            content = file.read(MOST_BYTES + 1)
    except (FileNotFoundError, PermissionError) as error:
        return f"expected a file, but it cannot be opened ({error.strerror})"
    except OSError as error:
        if path.exists() and not path.is_file():
            return f"expected a file ({error.strerror})"
        raise
    return content if len(content) <= MOST_BYTES else f"expected at most {MOST_BYTES:,} bytes"


def _picture_column(schema: Any, file: Path) -> str:
    """The column with pictures' bytes, alone or in Hugging Face's structure with a path.

    Raises:
        ValueError: there is none, or several.
    """
    from pyarrow import types

    columns = [
        field.name
        for field in schema
        if types.is_binary(field.type)
        or types.is_large_binary(field.type)
        or (types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]
    usual = [name for name in columns if name in PICTURE_COLUMNS] or columns
    if len(usual) != 1:
        raise ValueError(
            f"Expected one column with the bytes of pictures in {file}, got "
            f"{', '.join(map(ascii, columns)) or 'none'}; call it {PICTURE_COLUMNS[0]}."
        )
    return usual[0]


def list_shards(source: Path | str, size: int = PATHS) -> list[Shard]:
    """The shards of a tar, a parquet file or a picture, or of a folder with files of one kind.

    Parquet files beside tars, or folders of pictures, of the same names are img2dataset's notes,
    and left out. Embeddings are named after tars and parquet files.

    Args:
        source: the file or folder, which is searched with its subfolders.
        size: most paths in a shard, if the pictures are files.

    Raises:
        ValueError: there is nothing to embed, or files of several kinds; or a file is damaged, or
            has a name that readers of parquet pass by.
        ImportError: pyarrow is needed and not installed.
    """
    source = Path(source).absolute()
    root, names = (source.parent, [source.name]) if source.is_file() else (source, [])
    if source.is_dir():
        names = list(walk_files(source))
    suffixes = {name: Path(name).suffix.lower() for name in names}
    tars = [name for name in names if suffixes[name] == ".tar"]
    # img2dataset writes notes beside each tar, or beside each folder of pictures.
    noted = {str(Path(name).with_suffix("")) for name in tars}
    noted |= {str(Path(name).parent) for name in names if is_picture(name)}
    tables = [
        name
        for name in names
        if suffixes[name] == ".parquet" and str(Path(name).with_suffix("")) not in noted
    ]
    pictures = [name for name in names if is_picture(name)]
    kinds = {"tars": tars, "parquet files": tables, "pictures": pictures}
    if sum(map(bool, kinds.values())) != 1:
        got = ", ".join(f"{len(found):,} {kind}" for kind, found in kinds.items() if found)
        raise ValueError(
            f"Expected tars, parquet files or pictures at {source}, and only one of these kinds, "
            f"got {got or 'none'}; name a folder or a file with one of them."
        )
    for name in tars + tables:
        if not is_text(name) or any(part[0] in "_." for part in Path(name).parts):
            raise ValueError(
                f"Expected files and folders below {root} with names in UTF-8 that do not begin "
                "with _ or a dot, as readers of parquet want them of the embeddings, got "
                f"{name!a}; rename it."
            )
    shards = [Shard(str(Path(name).with_suffix("")), root, name) for name in tars]
    for name in tables:
        require_packages("scale", "pyarrow")
        with open_table(root / name) as table:
            _picture_column(table.schema_arrow, root / name)
            shards += [
                Shard(f"{Path(name).with_suffix('')}-{group:05d}", root, name, group)
                for group in range(table.num_row_groups)
            ]
    shards += [
        Shard(f"{start // size:05d}", root, paths=tuple(pictures[start : start + size]))
        for start in range(0, len(pictures), size)
    ]
    if not shards:
        raise ValueError(f"Expected rows in the parquet files at {source}, got none; name others.")
    return [replace(x, number=number, count=len(shards)) for number, x in enumerate(shards)]


@dataclass(frozen=True)
class ShardCount:
    """What became of a shard.

    Attributes:
        pictures: how many have an embedding.
        broken: how many cannot be used.
        new: whether it was embedded now.
    """

    pictures: int
    broken: int
    new: bool


def embed_shard(
    bundle: ClipBundle,
    shard: Shard,
    out: Path | str,
    layout: Layout = "parquet",
    precision: Precision = "fp32",
    batch_size: int = 64,
) -> ShardCount:
    """Embeds a shard's pictures into files of a folder, unless they are there already.

    The features are those of `encode_images`. Of several pictures with one path, as a tar may have
    them, the last counts. Pictures that cannot be read are listed in a file of their own.

    Args:
        bundle: the CLIP.
        shard: one of `list_shards`.
        out: the folder to write.
        layout: parquet, or clip-retrieval's.
        precision: of what is stored; it is computed in the CLIP's.
        batch_size: pictures at a time.

    Raises:
        ImportError: pyarrow is not installed.
        OSError: a file cannot be read or written; another attempt may succeed.
        ShardError: what is there is damaged or of other pictures.
        ValueError: what is there is by another model or in another precision; or a feature is not
            finite.
    """
    require_packages("scale", "pyarrow")
    files = ShardFiles.below(Path(out), layout, shard.name, shard.number, shard.count)
    facts = describe_maker(bundle, precision) | {SHARD: shard.identity}
    if counts := files.read_counts(facts):
        return ShardCount(*counts, new=False)

    def read(item: tuple[str, bytes | str]) -> tuple[str, Tensor | str]:
        path, content = item
        if not is_text(path):
            return ascii(path)[1:-1], "expected a name in UTF-8"
        if isinstance(content, str):
            return path, content
        try:
            return path, bundle.to_pixels(decode_picture(content, bundle.side))
        except ValueError as error:
            return path, str(error)

    dtype = torch.float16 if precision == "fp16" else torch.float32
    embeddings: dict[str, Tensor] = {}
    broken: dict[str, str] = {}
    items = shard.read()
    batches = iter(lambda: list(islice(items, batch_size)), [])
    for batch in read_ahead(read, batches, bundle.device):
        last = dict(batch)
        for path in last:  # an earlier one of that path does not count
            embeddings.pop(path, None)
            broken.pop(path, None)
        broken |= {path: reason for path, reason in last.items() if isinstance(reason, str)}
        pixels = {path: value for path, value in last.items() if isinstance(value, Tensor)}
        if pixels:
            features = encode_pixels(bundle, torch.stack(list(pixels.values())))
            embeddings |= zip(pixels, features.to(dtype), strict=True)
    rows = [torch.empty(0, bundle.embed_dim, dtype=dtype), *(x[None] for x in embeddings.values())]
    told = facts | {MODEL: Path(bundle.name).name}
    files.write(list(embeddings), torch.cat(rows), broken, told)
    return ShardCount(len(embeddings), len(broken), new=True)


class Embedder:
    """A CLIP that embeds shards, in a process of its own under Ray."""

    def __init__(
        self,
        model: str,
        pretrained: str | None,
        out: Path,
        layout: Layout,
        precision: Precision,
        compute: Compute,
        device: str,
        siblings: int = 1,
    ) -> None:
        """Loads the CLIP.

        Args:
            model: as in `load_clip`.
            pretrained: likewise.
            out: as in `embed_shard`.
            layout: likewise.
            precision: likewise.
            compute: what pictures are encoded in.
            device: to compute on.
            siblings: how many such processes share the machine's cores.
        """
        if siblings > 1:
            os.environ["LOCAL_WORLD_SIZE"] = str(siblings)  # which `count_workers` reads
        if not out.is_dir():  # made here, nobody else might see it
            raise FileNotFoundError(
                f"Expected the folder {out} on each machine, found none; mount it there."
            )
        clip = load_clip(model, pretrained, device)
        self.bundle = replace(clip, precision="bf16" if compute == "bf16" else "no")
        self.options = out, layout, precision

    def embed(self, shard: Shard) -> ShardCount:
        """As `embed_shard`."""
        return embed_shard(self.bundle, shard, *self.options)


def embed_on_ray(
    shards: Sequence[Shard], address: str, workers: int, *options: Any
) -> Generator[tuple[Shard, ShardCount | Exception]]:
    """Embeds shards under Ray, an actor a GPU, or a core where the cluster has no GPU.

    An actor that dies is started again, and a shard that fails is tried again, by any actor. The
    telemetry of a local Ray is off unless RAY_USAGE_STATS_ENABLED says otherwise; that of a
    cluster is for whoever starts it to choose.

    Args:
        shards: of `list_shards`; all nodes must see their files under the same paths.
        address: of a cluster, or "local" for one of this machine alone, which ends with this.
        workers: most actors; 0 for as many as the cluster has GPUs or cores.
        *options: of `Embedder`, up to the device.

    Yields:
        Each shard, once, with what became of it, or with the error after the last try.

    Raises:
        ImportError: Ray is not installed.
        ValueError, OSError: the model cannot be loaded by an actor.
        ConnectionError: there is no cluster at the address, or nothing in it to compute with; or
            this process has joined one already.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before the import, which reads it
    require_packages("scale", "ray", "pyarrow")
    import ray

    if ray.is_initialized():  # to a cluster which is not ours to end
        raise ConnectionError(
            "Expected a process that is in no Ray cluster, got one that has joined one; call "
            "ray.shutdown() first."
        )
    _connect(ray, address)
    try:
        resources = ray.cluster_resources()
        gpus, cores = (int(resources.get(kind, 0)) for kind in ("GPU", "CPU"))
        if not gpus and not cores:
            raise ConnectionError(
                f"Expected a Ray cluster with GPUs or cores at {address}, got one without any; "
                "start its workers first."
            )
        count = min(gpus or cores, len(shards), workers or len(shards))
        siblings = -(-count // sum(node["Alive"] for node in ray.nodes()))
        asked: dict[str, Any] = {"num_cpus": 1, "num_gpus": int(gpus > 0), "max_restarts": -1}
        kind: Any = ray.remote(**asked)(Embedder)
        device = "cuda:0" if gpus else "cpu"  # of those that Ray shows to the actor
        running: dict[Any, tuple[Any, Shard | None]] = {}

        def wait_for(actor: Any) -> None:
            """A shard is given only to an actor that runs: in a busy cluster, some never start."""
            running[actor.__ray_ready__.options(max_task_retries=-1).remote()] = actor, None

        for _ in range(count):
            wait_for(kind.remote(*options, device, siblings))
        left, tries, failures = deque(shards), Counter[str](), Counter[Any]()
        while left or any(shard for _, shard in running.values()):
            (done,), _ = ray.wait(list(running))
            actor, shard = running.pop(done)
            result: Any
            died = False
            try:
                result = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                result = error.cause
            except ray.exceptions.RayError as error:
                result, died = OSError(str(error).strip().splitlines()[-1]), True
            if died and not shard:
                raise result  # it has not even loaded the model
            failures[actor] = failures[actor] + 1 if isinstance(result, OSError) else 0
            # Ray's own retries of a task would be used up before the actor has started again.
            if shard and isinstance(result, OSError) and tries[shard.name] < _TRIES - 1:
                tries[shard.name] += 1
                left.append(shard)
            elif shard:
                yield shard, result
            if died:
                wait_for(actor)
            # An actor that fails at all it is given, such as on a machine without the folder, gets
            # no more while there are others: it would use up all tries.
            elif left and (failures[actor] < _TRIES or not running):
                shard = left.popleft()
                running[actor.embed.remote(shard)] = actor, shard
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    """Joins a cluster, or starts one of this machine alone.

    Raises:
        ConnectionError: there is none, or it does not start.
    """
    own = {"include_dashboard": False} if address == "local" else {}
    tries = 3 if own else 1  # a busy machine may take longer than the half minute that Ray waits
    for left in reversed(range(tries)):
        try:
            ray.init(address, logging_level=logging.WARNING, log_to_driver=False, **own)
            return
        except Exception as error:  # many types, some of them Exception itself
            ray.shutdown()
            if not left:
                reason = " ".join(str(error).split())[:300]
                raise ConnectionError(
                    f"Expected a Ray cluster at {address}, but there is none ({reason}); start it "
                    "with ray start --head, or name another address, or local."
                ) from error


@dataclass(frozen=True)
class Embedded:
    """What became of all shards.

    Attributes:
        counts: of each shard that is done, by name.
        failed: of the others, the reason.
    """

    counts: dict[str, ShardCount]
    failed: dict[str, str]


def embed_shards(
    source: Path | str,
    out: Path | str,
    model: str = "pocket",
    pretrained: str | None = None,
    layout: Layout = "parquet",
    precision: Precision = "fp32",
    compute: Compute = "fp32",
    device: str = "cpu",
    ray: str = "",
    workers: int = 0,
) -> Embedded:
    """Embeds all shards of a source, in a loop or under Ray; the same call goes on after a stop.

    Args:
        source: as in `list_shards`.
        out: the folder to write; outside the source, if that is a folder.
        model: as in `load_clip`.
        pretrained: likewise.
        layout: as in `embed_shard`.
        precision: likewise.
        compute: what pictures are encoded in; bf16 is faster where the hardware has it.
        device: to compute on, without Ray.
        ray: the address of a cluster, "local", or "" for a loop in this process.
        workers: as in `embed_on_ray`.

    Raises:
        ImportError: a package of the extra is not installed.
        ValueError: there is nothing to embed; the folder has files of another source, model or
            precision; or the model cannot be loaded.
    """
    require_packages("scale", "pyarrow")
    out = Path(out).absolute()
    shards = list_shards(source)
    root = shards[0].root.resolve()
    if Path(source).is_dir() and any(x.is_relative_to(root) for x in (out, out.resolve())):
        raise ValueError(f"Expected --out outside {root}, got {out}; name another folder.")
    files = [ShardFiles.below(out, layout, x.name, x.number, x.count) for x in shards]
    known = {path for x in files for path in (x.table, x.vectors)}
    if foreign := {*out.rglob("*.parquet"), *out.rglob("*.npy")} - known:
        raise ValueError(
            f"Expected in {out} only embeddings of {source} as it is now, in the layout {layout}, "
            f"got {len(foreign)} other files ({min(foreign).relative_to(out)}); name another --out."
        )
    if (folder := find_folder(model)) and model not in POCKET:  # Ray's workers run elsewhere
        model = str(folder.absolute())
    if pretrained and Path(pretrained).is_file():
        pretrained = str(Path(pretrained).absolute())
    out.mkdir(parents=True, exist_ok=True)
    for stale in [*out.rglob(".*.parquet.*.tmp"), *out.rglob(".*.npy.*.tmp")]:
        with suppress(OSError):  # it may be renamed meanwhile
            if time.time() - stale.stat().st_mtime > _STALE:  # of a worker that was killed
                stale.unlink()
    options = model, pretrained, out, layout, precision, compute
    results = (
        embed_on_ray(shards, ray, workers, *options)
        if ray
        else _embed_here(shards, Embedder(*options, device))
    )
    counts, failed = dict[str, ShardCount](), dict[str, str]()
    # Where shards are numbered, another number of files moves pictures from one to the next.
    are_named = layout == "parquet" and bool(shards[0].file)
    with closing(results), tqdm(desc="pictures", unit="") as pictures:
        for shard, result in tqdm(results, "shards", len(shards)):
            if isinstance(result, ShardCount):
                counts[shard.name] = result
                pictures.update(result.pictures)
            elif isinstance(result, OSError) or (are_named and isinstance(result, ShardError)):
                failed[shard.name] = str(result)
            else:
                raise result
    return Embedded(counts, failed)


def _embed_here(
    shards: Sequence[Shard], embedder: Embedder
) -> Generator[tuple[Shard, ShardCount | Exception]]:
    for shard in shards:
        try:
            yield shard, embedder.embed(shard)
        except (OSError, ShardError) as error:
            yield shard, error
