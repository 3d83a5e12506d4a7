"""Approximate search for more than a million vectors, through faiss (extra `search`).

An inverted file: k-means divides the vectors among lists, and a query looks into the nearest lists
only. These hold a byte a number, and the best of what they give is scored again with the index's
own vectors, so that scores are exact and only what is found may not be. Of faiss' graphs (HNSW),
see tests/benchmarks/README.md.
"""

import json
import secrets
import time
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dclip_kit.runtime.files import replacing, write_atomically
from dclip_kit.search.index import Hits, SearchIndex
from dclip_kit.search.nearest import Nearest

_FILE = "approximate.json"
_TRAINED_ON = 64  # vectors a list that k-means sees: more takes longer and finds no better
_RESCORED = 4  # times top_k: a byte a number swaps neighbours, seldom across so many places
_RESCORED_AT_ONCE = 100  # queries, which bounds the memory
_QUERIES = 1000  # to measure with, where none are given


@dataclass(frozen=True)
class Measured:
    """What an approximate index was built of, and what it finds.

    Attributes:
        state: of the index that it was built on.
        lists: that vectors are divided among.
        probes: lists that a query looks into.
        recall_at_10: share of the exact ten nearest that it finds, on queries that did not choose
            the number of probes.
        queries: how many those were.
        seconds: that building took.
    """

    state: str
    lists: int
    probes: int
    recall_at_10: float
    queries: int
    seconds: float


class ApproximateIndex:
    """Finds almost what a `SearchIndex` finds, much faster where that is large.

    Attributes:
        index: that it was built on; its vectors score what is found.
        measured: how much of it is found.
    """

    def __init__(self, index: SearchIndex) -> None:
        """Opens what `build` has left in the index's folder.

        Raises:
            ModuleNotFoundError: faiss is not installed.
            ValueError: nothing has been built on what the index holds now, or it is damaged.
        """
        faiss, file = _import_faiss(), index.folder / _FILE
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            self.index, self.measured = index, Measured(**record["measured"])
            self._lists = None
            if self.measured.state == index.state:
                self._lists = faiss.read_index(str(index.folder / record["file"]))
                self._lists.nprobe = self.measured.probes
        except (OSError, KeyError, TypeError, ValueError, RuntimeError):
            self._lists = None
        if self._lists is None:
            raise ValueError(
                f"Expected an approximate index of what {index.folder} holds now, found "
                f"{'one of another state' if file.exists() else 'none'}; build it with "
                "ApproximateIndex.build."
            )

    @classmethod
    def build(
        cls,
        index: SearchIndex,
        queries: Float[Tensor, "query embed"] | None = None,
        recall: float = 0.99,
        seed: int = 0,
    ) -> "ApproximateIndex":
        """Builds one in the index's folder, and measures it against exact search.

        Args:
            index: what it is to find things in; built again whenever that has changed.
            queries: some of those that will be asked, two or more, such as encoded captions: every
                other one sets how many lists are looked into, and the rest are measured. Left out,
                they are 1,000 of the index's vectors, each of which is not to find itself; then the
                recall says nothing about searching pictures by texts, which lie elsewhere.
            recall: share of the exact ten nearest to find, 0 to 1.
            seed: of the choice of vectors that k-means and queries are made from.

        Raises:
            ModuleNotFoundError: faiss is not installed.
            ValueError: the index holds fewer than two vectors, or there are not two queries.
        """
        faiss, began = _import_faiss(), time.perf_counter()
        if len(index) < 2 or (queries is not None and len(queries) < 2):
            raise ValueError(
                f"Expected an index of two vectors or more and as many queries, got {len(index)} "
                f"and {0 if queries is None else len(queries)}; search so few exactly."
            )
        generator = torch.Generator().manual_seed(seed)
        rows = (~index.left_out).nonzero().flatten()
        shuffled = rows[torch.randperm(len(rows), generator=generator)]
        lists = max(1, min(round(4 * len(rows) ** 0.5), len(rows) // _TRAINED_ON))
        width = index.vectors[0].shape[1]
        built = faiss.index_factory(width, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        built.cp.seed, built.cp.max_points_per_centroid = seed, _TRAINED_ON
        built.cp.min_points_per_centroid = 1  # else it warns of few
        built.train(index.take(shuffled[: lists * _TRAINED_ON].sort().values).numpy())
        for some in rows.split(2**16):
            built.add_with_ids(index.take(some).numpy(), some.numpy())

        # An index's own vectors are asked with for eleven, and must not find themselves.
        itself = shuffled[:_QUERIES] if queries is None else torch.full((len(queries),), -1)
        asked = index.prepare(index.take(itself) if queries is None else queries)
        exact = _ten_others(index.find_rows(asked, 11), itself)

        def recall_of(probes: int, first: int) -> float:
            built.nprobe = probes
            found = _ten_others(_find(built, index, asked[first::2], 11), itself[first::2])
            pairs = zip(found, exact[first::2], strict=True)
            return sum(len(some & right) / len(right) for some, right in pairs) / len(found)

        probes = 1
        while probes < lists and recall_of(probes, 0) < recall:
            probes = min(lists, 2 * probes)
        seconds = time.perf_counter() - began
        measured = Measured(
            index.state, lists, probes, recall_of(probes, 1), len(asked) // 2, seconds
        )
        name = f"approximate.{secrets.token_hex(8)}.faiss"
        with replacing(index.folder / name) as temporary:
            faiss.write_index(built, str(temporary))
        record = {"file": name, "measured": asdict(measured)}
        write_atomically(index.folder / _FILE, json.dumps(record, indent=1) + "\n")
        for old in index.folder.glob("approximate.*.faiss*"):
            if old.name != name:
                old.unlink()
        return cls(index)

    def search(self, queries: Float[Tensor, "query embed"], top_k: int = 10) -> tuple[Hits, ...]:
        """Finds most of the nearest vectors.

        A query in whose lists there are fewer than top_k is searched exactly.

        Args:
            queries: as `SearchIndex.search` takes them.
            top_k: how many a query.

        Raises:
            ValueError: as `SearchIndex.search`, or the index has changed since this one was built.
        """
        if self.index.state != self.measured.state:
            raise ValueError(
                f"Expected {self.index.folder} as it was when the approximate index was built, but "
                "it has changed; build it again with ApproximateIndex.build."
            )
        if top_k < 1:
            raise ValueError(f"Expected top_k from 1, got {top_k}; ask for at least one hit.")
        asked = self.index.prepare(queries)
        return self.index.name_hits(_find(self._lists, self.index, asked, top_k))


def _find(
    lists: Any, index: SearchIndex, queries: Float[Tensor, "query embed"], top_k: int
) -> Nearest:
    """Finds by the bytes in the lists, and scores what was found by the index's own vectors."""
    top_k = min(top_k, len(index))
    found = [torch.empty(0, top_k).long()], [torch.empty(0, top_k)]
    for some in queries.split(_RESCORED_AT_ONCE):
        rough = lists.search(some.numpy(), min(len(index), _RESCORED * top_k))[1]
        rows = torch.from_numpy(rough).sort(dim=1).values  # ties stay in order; −1 means none
        vectors = index.take(rows.clamp(min=0).flatten()).unflatten(0, rows.shape)
        scores = (vectors @ some[:, :, None])[:, :, 0].masked_fill(rows < 0, -torch.inf)
        best, places = scores.sort(dim=1, descending=True, stable=True)
        best, rows = best[:, :top_k], rows.gather(1, places[:, :top_k])
        short = rows[:, -1] < 0
        if short.any():
            exact = index.find_rows(some[short], top_k)
            best[short], rows[short] = exact.scores, exact.indices
        found[0].append(rows)
        found[1].append(best)
    return Nearest(torch.cat(found[0]), torch.cat(found[1]))


def _ten_others(found: Nearest, itself: Int[Tensor, "query"]) -> list[set[int]]:
    """The first ten rows that each query finds, but for its own."""
    pairs = zip(found.indices.tolist(), itself.tolist(), strict=True)
    return [set([row for row in rows if row != own][:10]) for rows, own in pairs]


def _import_faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as error:
        raise ModuleNotFoundError(
            "Expected faiss for approximate search, but it is not installed; run "
            "pip install 'dclip-kit[search]', or search exactly."
        ) from error
    faiss.omp_set_num_threads(torch.get_num_threads())  # it has an OpenMP of its own
    return faiss
