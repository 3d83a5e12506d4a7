"""A search index on disk: named vectors, memory-mapped, searched exactly.

Its folder holds shards, safetensors files of vectors and their names that never change, and
`index.json`, which says which shards count and which rows of them are deleted. A change writes
shards first and then `index.json`, each renamed into place: a crash between the two leaves the
index as it was, and a file that the next change deletes.
"""

import hashlib
import json
import secrets
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dclip_kit.runtime.files import load_tensors, save_tensors, write_atomically
from dclip_kit.search.nearest import Nearest, find_nearest

if sys.platform != "win32":  # which has no such lock: there, write from one process at a time
    import fcntl

SHARD_ROWS = 2**17  # 256 MB at CLIP's 512 numbers: what a small append reads and writes at most


@dataclass(frozen=True)
class Hits:
    """What one query finds, the best first.

    Attributes:
        ids: names of what was found.
        scores: its cosines with the query.
    """

    ids: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class _Shard:
    """A file's name, its rows, and which of them are deleted."""

    name: str
    vectors: Float[Tensor, "row embed"]
    ids: tuple[str, ...]
    deleted: frozenset[int] = frozenset()

    def kept(self) -> tuple[list[str], Tensor]:
        """Names and vectors of the rows that are not deleted."""
        rows = [row for row in range(len(self.ids)) if row not in self.deleted]
        return [self.ids[row] for row in rows], self.vectors[rows]


class SearchIndex:
    """Named vectors in a folder, searched by cosine: exact, and quick up to about a million.

    Beyond that, build a `dclip_kit.search.approximate.ApproximateIndex` on it.

    Attributes:
        folder: where it lies.
        names: of what can be found.
        ids: names by row, in the order of appending; of deleted rows, too.
        left_out: True at deleted rows.
        vectors: of length 1, in one tensor or several; mapped from disk, and read when searched.
        state: tells what the index holds from what it held before any change.
    """

    def __init__(self, folder: Path | str) -> None:
        """Opens what is in a folder; nothing, or no folder yet, is an empty index.

        Raises:
            FileNotFoundError, ValueError: a file of the index is missing or damaged.
        """
        self.folder = Path(folder)
        self._shards: list[_Shard] = []
        self._read()

    def __len__(self) -> int:
        """The number of vectors that can be found."""
        return len(self.names)

    def append(self, ids: Sequence[str], vectors: Float[Tensor, "_row _embed"]) -> None:
        """Adds vectors behind those that the index holds, by now and from other processes, too.

        Args:
            ids: their names; what the index holds under one of them is replaced.
            vectors: of any length; kept in float32, at length 1.

        Raises:
            ValueError: not a vector for each name, a name comes twice, or vectors are of another
                width than the index's or hold NaN, infinity or nothing but zeros.
        """
        if not len(ids) == len(set(ids)) == len(vectors):
            raise ValueError(
                f"Expected a name for each of {len(vectors)} vectors, got {len(ids)}, "
                f"{len(ids) - len(set(ids))} of them again; give each vector its own."
            )
        with self._changing():
            names, new, shards = list(ids), self._normalize(vectors), self._without(ids)
            # Counting in binary: many small appends leave few shards, and a vector is written
            # again only when the shard that it is in doubles.
            while shards and len(shards[-1].ids) <= min(len(names), SHARD_ROWS - len(names)):
                before, old = shards.pop().kept()
                names, new = before + names, torch.cat([old, new])
            for start in range(0, len(names), SHARD_ROWS):
                rows = slice(start, start + SHARD_ROWS)
                shards.append(self._write_shard(names[rows], new[rows]))
            self._commit(shards)

    def delete(self, ids: Sequence[str]) -> None:
        """Takes vectors out; a shard is written again once more than half of it is deleted.

        Raises:
            ValueError: the index does not hold a name.
        """
        with self._changing():
            unknown = [name for name in ids if name not in self.names]
            if unknown:
                raise ValueError(
                    f"Expected names in the index at {self.folder}, but {len(unknown)} of "
                    f"{len(ids)} are not, such as {unknown[0]!r}; leave these out."
                )
            self._commit(self._without(ids))

    def _without(self, ids: Iterable[str]) -> list[_Shard]:
        """The shards less some names; each is written again once most of it is deleted."""
        gone, shards = self.names.intersection(ids), []
        for shard in self._shards:
            rows = {row for row, name in enumerate(shard.ids) if name in gone} if gone else set()
            shard = replace(shard, deleted=shard.deleted | rows)
            if rows and len(shard.deleted) > len(shard.ids) / 2:
                ids, vectors = shard.kept()
                if not ids:
                    continue
                shard = self._write_shard(ids, vectors)
            shards.append(shard)
        return shards

    def search(self, queries: Float[Tensor, "_query _embed"], top_k: int = 10) -> tuple[Hits, ...]:
        """Finds the nearest vectors to each query, exactly; of equal ones, what was added earlier.

        Args:
            queries: from the model that made the index's vectors; of any length.
            top_k: how many a query; fewer where the index holds fewer.

        Raises:
            ValueError: the index is empty, top_k is below 1, or queries are of another width or
                hold NaN, infinity or nothing but zeros.
        """
        return self.name_hits(self.find_rows(self.prepare(queries), top_k))

    def prepare(self, queries: Float[Tensor, "query _embed"]) -> Float[Tensor, "query embed"]:
        """Queries of length 1, checked as `search` says."""
        if not len(self):
            raise ValueError(f"Expected vectors in the index at {self.folder}, found none; append.")
        return self._normalize(queries)

    def find_rows(self, queries: Float[Tensor, "query embed"], top_k: int) -> Nearest:
        """What `search` finds, by row, for queries that are prepared."""
        return find_nearest(queries, self.vectors, top_k, self.left_out)

    def name_hits(self, found: Nearest) -> tuple[Hits, ...]:
        """What was found by row, by name."""
        return tuple(
            Hits(tuple(self.ids[row] for row in rows), tuple(scores))
            for rows, scores in zip(found.indices.tolist(), found.scores.tolist(), strict=True)
        )

    def take(self, rows: Int[Tensor, "row"]) -> Float[Tensor, "row embed"]:
        """The vectors in some rows."""
        taken, start = torch.empty(len(rows), self.vectors[0].shape[1]), 0
        for shard in self.vectors:
            inside = ((rows >= start) & (rows < start + len(shard))).nonzero()[:, 0]
            taken[inside] = shard[rows[inside] - start]
            start += len(shard)
        return taken

    def _normalize(self, vectors: Tensor) -> Tensor:
        width = self.vectors[0].shape[1] if self.vectors else vectors.shape[1]
        bad = int((~(vectors.isfinite().all(1) & vectors.any(1))).sum())
        if vectors.shape[1] != width or bad:
            raise ValueError(
                f"Expected finite vectors of {width} numbers, not all zeros, got {len(vectors)} of "
                f"{vectors.shape[1]}, {bad} of them not so; encode with the index's own model."
            )
        return F.normalize(vectors.detach().cpu().float(), dim=1)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One process at a time, each on what the one before has left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            if sys.platform != "win32":
                fcntl.flock(lock, fcntl.LOCK_EX)  # the system frees it, also after a crash
            self._read()
            used = {shard.name for shard in self._shards}
            # Not right after a change: somebody may just have read which shards to open.
            for file in self.folder.glob("*.safetensors*"):
                if file.name not in used:
                    with suppress(PermissionError):  # Windows: another process has it mapped
                        file.unlink()
            yield

    def _write_shard(self, ids: list[str], vectors: Tensor) -> _Shard:
        name = f"{secrets.token_hex(8)}.safetensors"
        names = torch.frombuffer(bytearray(json.dumps(ids).encode()), dtype=torch.uint8)
        save_tensors({"vectors": vectors, "ids": names}, self.folder / name)
        return self._load_shard(name)  # mapped, in place of what is in memory

    def _load_shard(self, name: str) -> _Shard:
        tensors = load_tensors(self.folder / name)
        return _Shard(name, tensors["vectors"], tuple(json.loads(tensors["ids"].numpy().tobytes())))

    def _commit(self, shards: Sequence[_Shard]) -> None:
        entries = [{"file": each.name, "deleted": sorted(each.deleted)} for each in shards]
        write_atomically(self.folder / "index.json", json.dumps({"shards": entries}) + "\n")
        self._read({each.name: each for each in shards})

    def _read(self, known: dict[str, _Shard] | None = None) -> None:
        """Takes on what `index.json` says, with the shards that are open already."""
        file = self.folder / "index.json"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        known = known or {each.name: each for each in self._shards}
        shards = []
        try:
            for each in json.loads(text)["shards"] if text else ():
                shard = known.get(each["file"]) or self._load_shard(each["file"])
                shards.append(replace(shard, deleted=frozenset(each["deleted"])))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"Expected a whole index at {self.folder}, but it is damaged ({error!r}); delete "
                "the folder and build it again."
            ) from error
        self._shards = shards
        self.state = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.vectors = [shard.vectors for shard in self._shards]
        self.ids = [name for shard in self._shards for name in shard.ids]
        self.left_out = torch.zeros(len(self.ids), dtype=torch.bool)
        start = 0
        for shard in self._shards:
            self.left_out[[start + row for row in shard.deleted]] = True
            start += len(shard.ids)
        self.names = {self.ids[row] for row in (~self.left_out).nonzero().flatten().tolist()}
