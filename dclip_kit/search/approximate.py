"""Approximate search for more than a million vectors, through faiss (extra `search`).

An inverted file: k-means divides the vectors among lists, and a query looks into the nearest lists
only. Scores are exact; what lies in the other lists is missed. Vectors that form no clusters, such
as random ones, want exact search.
"""

from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from dclip_kit.runtime.files import replacing
from dclip_kit.search.index import Hits, SearchIndex, unit_vectors

_TRAINED_ON = 64  # vectors a list that k-means sees: more takes longer and finds no better


class ApproximateIndex:
    """Finds almost what a `SearchIndex` finds, much faster where that is large.

    Attributes:
        index: that it was built on.
    """

    def __init__(self, index: SearchIndex) -> None:
        """Opens what `build` has left in the index's folder.

        Raises:
            ModuleNotFoundError: faiss is not installed.
            ValueError: nothing has been built on what the index holds now, or it is damaged.
        """
        faiss, self.index, self._state = _import_faiss(), index, index.state
        try:
            file = str(index.folder / f"{index.state}.faiss")
            self._lists = faiss.read_index(file, faiss.IO_FLAG_MMAP)
        except RuntimeError as error:
            raise ValueError(
                f"Expected an approximate index of what {index.folder} holds now, found none that "
                "is whole; build it with ApproximateIndex.build."
            ) from error

    @classmethod
    def build(cls, index: SearchIndex) -> "ApproximateIndex":
        """Builds one in the index's folder; again whenever the index has changed.

        Raises:
            ModuleNotFoundError: faiss is not installed.
            ValueError: the index is empty.
        """
        faiss = _import_faiss()
        if not len(index):
            raise ValueError(f"Expected vectors in {index.folder}, found none; append some.")
        lists = max(1, min(round(4 * len(index) ** 0.5), len(index) // _TRAINED_ON))
        built = faiss.index_factory(index.width, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
        built.nprobe = max(8, lists // 16)  # how many of them a query looks into
        step = max(1, len(index) // (lists * _TRAINED_ON))
        built.train(torch.cat([shard[::step] for shard in index.shards.values()]).numpy())
        for shard in index.shards.values():
            built.add(shard.numpy())
        for old in index.folder.glob("*.faiss*"):
            old.unlink()
        with replacing(index.folder / f"{index.state}.faiss") as temporary:
            faiss.write_index(built, str(temporary))
        return cls(index)

    def search(self, queries: Float[Tensor, "query embed"], top_k: int = 10) -> tuple[Hits, ...]:
        """Finds most of the nearest vectors; all, if the lists looked into hold fewer than top_k.

        Args:
            queries: as `SearchIndex.search` takes them.
            top_k: how many a query.

        Raises:
            ValueError: as `SearchIndex.search`, or the index has changed since this one was built.
        """
        if self.index.state != self._state:
            raise ValueError(
                f"Expected {self.index.folder} as it was when the approximate index was built, got "
                "a changed one; build it again with ApproximateIndex.build."
            )
        asked = unit_vectors(queries, self.index.width).numpy()
        scores, rows = self._lists.search(asked, min(max(top_k, 1), len(self.index)))
        if top_k < 1 or (rows < 0).any():  # exact search refuses the one and does the other
            return self.index.search(queries, top_k)
        return self.index.name_hits(torch.from_numpy(scores), torch.from_numpy(rows))

    def measure_recall(self, queries: Float[Tensor, "query embed"], top_k: int = 10) -> float:
        """The share of the exact nearest that it finds, 0 to 1.

        Args:
            queries: such as will be asked: captions lie elsewhere than pictures.
            top_k: how many a query.

        Raises:
            ValueError: as `search`.
        """
        both = zip(self.index.search(queries, top_k), self.search(queries, top_k), strict=True)
        shares = [len({*exact.ids} & {*found.ids}) / len(exact.ids) for exact, found in both]
        return sum(shares) / len(shares)


def _import_faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as error:
        raise ModuleNotFoundError(
            "Expected faiss for approximate search, got none installed; run "
            "pip install 'dclip-kit[search]', or search exactly."
        ) from error
    faiss.omp_set_num_threads(torch.get_num_threads())  # it has an OpenMP of its own
    return faiss
