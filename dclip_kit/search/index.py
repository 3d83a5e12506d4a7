"""Exact search by cosine, in memory and in an index on disk.

Axes: query for what is searched with, candidate for what is searched, k for the ranks, embed for
the features.
"""

import json
import secrets
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dclip_kit.metrics import Array, require_strings
from dclip_kit.runtime.files import load_tensors, save_tensors, write_atomically

_QUERIES = 256  # in a block
_SCORES = 2**21  # in a block: 8 MB in float32, which a processor's cache may hold
_MANY = 1_000_000  # vectors; exact search of more takes long


@dataclass(frozen=True)
class Hits:
    """The results of one query, the best first; of equal scores, the earlier candidate first.

    Attributes:
        images: indices of the candidates, from 0.
        scores: their cosines with the query, or rescored ones.
        ids: their names, if a `SearchIndex` was searched.
    """

    images: tuple[int, ...]
    scores: tuple[float, ...]
    ids: tuple[str, ...] = ()


def search_images(
    query: Float[Array, "*_one embed"],
    image_features: Float[Array, "image _embed"],
    top_k: int = 5,
    leave_out: Sequence[int] = (),
) -> Hits:
    """Finds the pictures whose vectors are nearest to that of a query.

    Args:
        query: a caption's vector, or a picture's from the same model.
        image_features: of all pictures.
        top_k: how many to find; all, if there are fewer.
        leave_out: indices of pictures to skip, such as the query itself.

    Raises:
        ValueError: widths differ, a vector is not finite or all zeros, top_k is below 1, or no
            picture is left.
    """
    query = torch.as_tensor(query)
    images = unit_vectors(image_features, query.numel())
    wanted = top_k + len(leave_out) if top_k > 0 else top_k  # the latter is refused
    scores, indices = find_nearest(unit_vectors(query.reshape(1, -1)), [images], wanted)
    pairs = zip(indices[0].tolist(), scores[0].tolist(), strict=True)
    hits = [pair for pair in pairs if pair[0] not in leave_out][:top_k]
    if not hits:
        raise ValueError(
            f"Expected something to find, got 0 pictures beside the {len(leave_out)} left out; "
            "leave out fewer."
        )
    return Hits(*zip(*hits, strict=True))


def related_share(
    image_features: Float[Array, "image embed"], things: Sequence[frozenset[str]], k: int = 5
) -> Float[Tensor, "image"]:
    """For each picture, the share of its k nearest other pictures that show one of its things.

    Raises:
        ValueError: there is not one set of things for each picture, or k is below 1 or above the
            number of other pictures.
    """
    if len(things) != len(image_features) or not 1 <= k < len(things):
        raise ValueError(
            f"Expected the things in each of {len(image_features)} pictures and a k below that, "
            f"got {len(things)} and {k}; list each picture's things."
        )
    vectors = unit_vectors(image_features)
    nearest_images = find_nearest(vectors, [vectors], k + 1)[1].tolist()  # mostly including itself
    neighbours = [
        [i for i in nearest if i != query][:k] for query, nearest in enumerate(nearest_images)
    ]
    related = [
        sum(bool(things[image] & things[query]) for image in nearest)
        for query, nearest in enumerate(neighbours)
    ]
    return torch.tensor(related) / k


class SearchIndex:
    """Named vectors in a folder, searched by cosine: exact, and quick up to about a million.

    The folder holds shards, safetensors files of vectors and names that never change, and
    `index.json`, which lists the valid ones. A shard is written before the list, and both are
    renamed into place: an interruption between the two leaves the index as it was, and a file that
    is not listed. Only one process at a time may write.

    Attributes:
        folder: where the index is.
        ids: names by row, in the order in which they were appended.
        shards: vectors of length 1 by file, mapped from disk.
        width: numbers in a vector; None in an empty index.
    """

    def __init__(self, folder: Path | str) -> None:
        """Opens the index in a folder; an empty or missing folder is an empty index.

        Raises:
            FileNotFoundError, ValueError: a file of the index is missing or damaged.
        """
        self.folder = Path(folder)
        self.width: int | None = None
        self._warned = False
        self.ids: list[str] = []
        self.shards: dict[str, Float[Tensor, "row embed"]] = {}
        file = self.folder / "index.json"
        try:
            for name in json.loads(file.read_text(encoding="utf-8")) if file.exists() else ():
                self._open_shard(name)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"Expected a whole index at {self.folder}, got a damaged one ({error!r}); delete "
                "the folder and build it again."
            ) from error

    def __len__(self) -> int:
        """The number of vectors."""
        return len(self.ids)

    def append(self, ids: Sequence[str], vectors: Float[Array, "_row _embed"]) -> None:
        """Adds a shard behind the others.

        Args:
            ids: names of the vectors, which must be new to the index.
            vectors: of any length; stored in float32, at length 1.

        Raises:
            ValueError: there is no vector or not one for each name, a name is not a string or not
                new, or vectors are of another width than the index's, not finite or all zeros.
        """
        require_strings("ids", ids)
        vectors, new = unit_vectors(vectors, self.width), set(ids)
        if not 0 < len(new) == len(ids) == len(vectors) or not new.isdisjoint(self.ids):
            raise ValueError(
                f"Expected a new name for each of one vector or more, got {len(vectors)} vectors "
                f"and {len(ids)} names, {len(new.difference(self.ids))} of them new; name each "
                "vector once."
            )
        self._write_shard(ids, vectors, list(self.shards))

    def rewrite(self, ids: Sequence[str]) -> None:
        """Keeps only the vectors of these names, in this order and in one shard.

        Files that are not listed are deleted first. The shards listed until now stay for readers
        that have just read the list; the next call deletes them.

        Raises:
            ValueError: the index does not hold a name, or a name is given twice.
        """
        require_strings("ids", ids)
        row_of = {name: row for row, name in enumerate(self.ids)}
        rows = [row_of.pop(name, -1) for name in ids]
        if -1 in rows:
            raise ValueError(
                f"Expected names that the index holds, each once, got {ids[rows.index(-1)]!r}; "
                "leave it out, or append its vector first."
            )
        for file in self.folder.glob("*.safetensors*"):
            if file.name not in self.shards:
                file.unlink(missing_ok=True)
        if not self.shards:
            return
        vectors = torch.cat(list(self.shards.values()))[rows]
        self._write_shard(ids, vectors, [])

    def search(self, queries: Float[Array, "*_query _embed"], top_k: int = 10) -> tuple[Hits, ...]:
        """Finds the vectors nearest to each query, exactly; of equal ones, the earlier first.

        Beyond a million vectors it warns, once, that faiss may be the better choice.

        Args:
            queries: one or several, of any length, from the model that made the index's vectors.
            top_k: how many for each query; all, if the index holds fewer.

        Raises:
            ValueError: the index is empty, top_k is below 1, or queries are of another width, not
                finite or all zeros.
        """
        unit_queries = unit_vectors(queries, self.width)
        if len(self) > _MANY and not self._warned:
            self._warned = True
            warnings.warn(
                f"Exact search of {len(self):,} vectors takes long; faiss searches so many "
                f"approximately, and can be given those in {self.folder}: index.json lists "
                "safetensors files, whose `vectors` are float32 and of length 1, and whose `ids` "
                "are the names as JSON.",
                stacklevel=2,
            )
        scores, rows = find_nearest(unit_queries, list(self.shards.values()), top_k)
        pairs = zip(rows.tolist(), scores.tolist(), strict=True)
        return tuple(
            Hits(tuple(row), tuple(score), tuple(self.ids[index] for index in row))
            for row, score in pairs
        )

    def _write_shard(self, ids: Sequence[str], vectors: Tensor, shard_names: list[str]) -> None:
        """Writes a shard, and a list with it behind the shards that stay."""
        name = f"{secrets.token_hex(8)}.safetensors"
        id_bytes = torch.frombuffer(bytearray(json.dumps(list(ids)).encode()), dtype=torch.uint8)
        save_tensors({"vectors": vectors, "ids": id_bytes}, self.folder / name)
        write_atomically(
            self.folder / "index.json", json.dumps([*shard_names, name], indent=1) + "\n"
        )
        if not shard_names:
            self.ids, self.shards = [], {}
        self._open_shard(name)

    def _open_shard(self, name: str) -> None:
        tensors = load_tensors(self.folder / name)
        self.ids += json.loads(tensors["ids"].numpy().tobytes())
        self.shards[name] = tensors["vectors"]
        self.width = tensors["vectors"].shape[1]


def unit_vectors(
    vectors: Float[Array, "*_row _embed"], width: int | None = None
) -> Float[Tensor, "row _embed"]:
    """Scales vectors, or a single one, to length 1, in float32 on the CPU.

    Those that have it are returned as they are, without a copy.

    Raises:
        ValueError: they are of another width than `width`, or one is not finite or all zeros.
    """
    rows = torch.atleast_2d(torch.as_tensor(vectors)).detach().cpu().float()
    bad_count = int((~(rows.isfinite().all(-1) & rows.any(-1))).sum())
    if rows.ndim != 2 or width not in (None, rows.shape[1]) or bad_count:
        raise ValueError(
            f"Expected finite vectors of {width or rows.shape[-1]} numbers, not all zeros, got "
            f"{' of '.join(map(str, rows.shape))}, {bad_count} of them not finite, or all "
            "zeros; encode queries and candidates with one model."
        )
    is_unit = bool(((rows.norm(dim=1) - 1).abs() < 1e-6).all())
    return rows if is_unit else F.normalize(rows, dim=1)


@torch.no_grad()
def find_nearest(
    queries: Float[Tensor, "query embed"],
    candidates: Sequence[Float[Tensor, "_candidate embed"]],
    top_k: int,
) -> tuple[Float[Tensor, "query k"], Int[Tensor, "query k"]]:
    """Finds the candidates with the largest dot products, exactly and in bounded memory.

    Args:
        queries: in float32; of length 1, if scores are to be cosines.
        candidates: likewise, in one or several tensors; indices count through all of them.
        top_k: how many for each query; all, if there are fewer.

    Returns:
        Scores and indices as from `torch.topk`, but of equal scores the earlier candidate first.

    Raises:
        ValueError: there is no candidate, or top_k is below 1.
    """
    top_k = min(top_k, sum(map(len, candidates)))
    if top_k < 1:
        raise ValueError(f"Expected top_k from 1 and something to find, got {top_k}; add vectors.")
    columns = max(1, _SCORES // min(_QUERIES, max(1, len(queries))))
    tiles = [tile for shard in candidates for tile in shard.split(columns)]
    results = []
    for batch in queries.split(_QUERIES):
        best, rows, start = batch[:, :0], batch[:, :0].long(), 0
        for tile in tiles:
            tile_scores, tile_rows = stable_topk(batch @ tile.T, top_k)
            best, order = stable_topk(torch.cat([best, tile_scores], dim=1), top_k)
            rows = torch.cat([rows, tile_rows + start], dim=1).gather(1, order)
            start += len(tile)
        results.append((best, rows))
    return torch.cat([best for best, _ in results]), torch.cat([rows for _, rows in results])


def stable_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`torch.topk`, but of equal scores it takes the earlier ones."""
    best, indices = scores.topk(min(k + 1, scores.shape[1]))
    tied = (best[:, 1:] == best[:, :-1]).any(1)
    if tied.any():
        exact, order = scores[tied].sort(dim=1, descending=True, stable=True)
        best[tied], indices[tied] = exact[:, : k + 1], order[:, : k + 1]
    return best[:, :k], indices[:, :k]
