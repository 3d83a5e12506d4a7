"""Embeddings in files that other programs read, parquet or clip-retrieval's; and their search.

parquet has a file for each shard, with the columns path and embedding, a list of fixed size.
clip-retrieval's layout (github.com/rom1504/clip-retrieval) has img_emb/img_emb_0.npy and
metadata/metadata_0.parquet for each, the latter with the column image_path. What made them stands
in the metadata of the parquet's schema.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import open_clip
import torch
from jaxtyping import Float
from torch import Tensor

from dclip_kit.models.clip import ClipBundle
from dclip_kit.runtime.files import replacing, write_atomically
from dclip_kit.runtime.packages import require_packages
from dclip_kit.search.index import Hits, find_nearest, unit_vectors

Layout = Literal["parquet", "clip-retrieval"]
Precision = Literal["fp32", "fp16"]
BROKEN = "_broken"  # readers of whole folders pass by names that begin so
_ROWS = 1 << 16  # searched at a time
_DIGEST = "model_digest"
MODEL = "model"  # the key of its name, which is only told: the same weights have many
SHARD = "shard"  # the key of what pictures a shard has


class ShardError(ValueError):
    """The files of one shard are damaged or of other pictures; those of others may be right."""


def describe_maker(bundle: ClipBundle, precision: Precision) -> dict[str, str]:
    """What embeddings depend on beside the pictures, as it stands in the schema's metadata."""
    prepared = [open_clip.model.get_model_preprocess_cfg(bundle.model.visual), bundle.model_config]
    text = json.dumps(prepared, sort_keys=True, default=str)
    return {
        _DIGEST: bundle.digest,
        "preparation": hashlib.sha256(text.encode()).hexdigest()[:16],
        "computed_in": "fp32" if bundle.precision == "no" else bundle.precision,
        "stored_in": precision,
        "width": str(bundle.embed_dim),
        "normalised": "true",
    }


@dataclass(frozen=True)
class ShardFiles:
    """The files that a shard's embeddings are written to.

    Attributes:
        table: the parquet with the paths and, if there are no others, the embeddings.
        vectors: the embeddings' .npy in clip-retrieval's layout.
        broken: JSON lines of the pictures that cannot be used, with the reason; if there are any.
    """

    table: Path
    vectors: Path | None
    broken: Path

    @classmethod
    def below(cls, out: Path, layout: Layout, name: str, number: int, count: int) -> "ShardFiles":
        """The files in a folder.

        Args:
            out: the folder.
            layout: of the files.
            name: of the shard, which may have folders in it.
            number: of the shard, from 0.
            count: of all shards, for numbers of equal length.
        """
        broken = out / BROKEN / f"{name}.jsonl"
        if layout == "parquet":
            return cls(out / f"{name}.parquet", None, broken)
        digits = f"{number:0{len(str(max(1, count)))}d}"  # as clip-retrieval writes them
        return cls(
            out / "metadata" / f"metadata_{digits}.parquet",
            out / "img_emb" / f"img_emb_{digits}.npy",
            broken,
        )

    def read_counts(self, facts: Mapping[str, str]) -> tuple[int, int] | None:
        """How many embeddings and broken pictures are there; None if the shard is not complete.

        Args:
            facts: what its metadata must say.

        Raises:
            ShardError: it says other pictures, or the file is damaged.
            ValueError: it says another model or precision.
        """
        if not self.table.exists():
            return None
        try:
            metadata = open_table(self.table).metadata
        except ValueError as error:
            raise ShardError(str(error)) from error
        told = _decode(metadata.metadata)
        if odd := [key for key in facts if told.get(key) != facts[key]]:
            kind = ShardError if odd == [SHARD] else ValueError
            said = "; ".join(f"{key} {told.get(key)}, not {facts[key]}" for key in odd)
            raise kind(
                f"Expected {self.table} to hold the same pictures, by the same model, as are to be "
                f"embedded now, got another's ({said}); name another --out, or delete that file "
                "and those like it to embed their pictures again."
            )
        if self.vectors and not self.vectors.exists():
            return None
        return metadata.num_rows, int(told["broken"])

    def write(
        self,
        paths: list[str],
        embeddings: Float[Tensor, "row embed"],
        broken: Mapping[str, str],
        facts: Mapping[str, str],
    ) -> None:
        """Writes the embeddings, each file complete or not at all, and the one that counts last.

        Args:
            paths: of the pictures.
            embeddings: of any floating type, which is kept.
            broken: the reasons by path.
            facts: for the metadata.

        Raises:
            OSError: a file cannot be written.
        """
        import pyarrow as pa
        from pyarrow import parquet

        if self.vectors:  # else an earlier model's would pass for those of the new table
            self.vectors.unlink(missing_ok=True)
        if broken:
            lines = [json.dumps({"path": path, "reason": why}) for path, why in broken.items()]
            write_atomically(self.broken, "\n".join(lines) + "\n")
        else:
            self.broken.unlink(missing_ok=True)  # an earlier attempt's
        values, width = embeddings.numpy(), embeddings.shape[1]
        columns = {"image_path" if self.vectors else "path": pa.array(paths, pa.string())}
        if not self.vectors:
            element = pa.field("element", pa.from_numpy_dtype(values.dtype), nullable=False)
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(
                pa.array(values.reshape(-1)), type=pa.list_(element, width)
            )
        schema = pa.schema(
            [pa.field(name, column.type, nullable=False) for name, column in columns.items()],
            {**facts, "broken": str(len(broken))},
        )
        table = pa.Table.from_arrays(list(columns.values()), schema=schema)
        with replacing(self.table) as temporary:
            # Floats do not become smaller by compression.
            compression = {table.column_names[0]: "zstd", "embedding.list.element": "none"}
            parquet.write_table(table, temporary, use_dictionary=False, compression=compression)
        if self.vectors:
            with replacing(self.vectors) as temporary, temporary.open("wb") as file:
                np.save(file, values)


def search_embeddings(
    bundle: ClipBundle, folder: Path, query: Float[Tensor, "1 embed"], top_k: int
) -> Hits:
    """Finds the pictures nearest to a query, exactly, reading all embeddings once.

    Memory is bounded by those of a block, whatever their number.

    Args:
        bundle: the CLIP that encoded the query.
        folder: with embeddings in either layout, by this kit or by others.
        query: of length 1.
        top_k: how many.

    Returns:
        The hits; their `ids` are paths as the files have them.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: there are no embeddings, a file is damaged, or they are by another model.
    """
    require_packages("scale", "pyarrow")
    hits: list[tuple[float, int, str]] = []
    start = 0
    for paths, embeddings in _read_blocks(folder, bundle.digest):
        vectors = unit_vectors(embeddings, bundle.embed_dim)
        scores, rows = find_nearest(query, vectors, top_k)
        names = paths.take(rows[0].numpy()).to_pylist()
        hits += zip(scores[0].tolist(), (start + rows[0]).tolist(), names, strict=True)
        hits = sorted(hits, key=lambda hit: (-hit[0], hit[1]))[:top_k]
        start += len(vectors)
    if not hits:
        raise ValueError(
            f"Expected embeddings in {folder}, found none: neither .parquet with the columns path "
            "and embedding nor img_emb/*.npy with metadata/*.parquet; write them with embed-shards."
        )
    scores_, images, ids = zip(*hits, strict=True)
    return Hits(images, scores_, ids)


def _read_blocks(folder: Path, digest: str) -> Iterator[tuple[Any, Tensor]]:
    """Yields blocks of paths, as arrays of pyarrow, with their embeddings."""
    files: list[tuple[Path, Path | None]] = [
        (folder / "metadata" / f"{array.stem.replace('img_emb', 'metadata', 1)}.parquet", array)
        for array in sorted((folder / "img_emb").glob("*.npy"))
    ]
    for file, array in files or [(file, None) for file in sorted(folder.rglob("*.parquet"))]:
        table = open_table(file)
        told = _decode(table.metadata.metadata)
        maker = told.get(_DIGEST, digest)  # others do not say theirs
        if maker != digest:
            raise ValueError(
                f"Expected embeddings by the model that searches (digest {digest}), got those of "
                f"another ({told.get(MODEL)}, {maker}) in {file}; name that one with --model."
            )
        columns = ["image_path"] if array else ["path", "embedding"]
        if missing := [name for name in columns if name not in table.schema_arrow.names]:
            raise ValueError(
                f"Expected the columns {' and '.join(columns)} in {file}, got none called "
                f"{missing[0]}; name a folder that embed-shards or clip-retrieval wrote."
            )
        stored = _map_array(array, table.metadata.num_rows) if array else None
        start = 0
        for batch in table.iter_batches(_ROWS, columns=columns):
            if not len(batch):
                continue
            if stored is None:
                block = batch["embedding"].flatten().to_numpy(zero_copy_only=False)
                block = block.reshape(len(batch), -1)
            else:
                block = stored[start : start + len(batch)]
            start += len(batch)
            # In float32, and a copy: torch warns of what cannot be written to.
            yield batch[columns[0]], torch.from_numpy(block.astype(np.float32))


def _map_array(file: Path, rows: int) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r")  # which reads no pickle
        if array.ndim != 2 or len(array) != rows:
            raise ValueError(f"{array.shape}, for {rows} paths")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"Expected a row for each of {rows} pictures in {file}, but it is damaged or another's "
            f"({error}); restore it."
        ) from error
    return array


def open_table(file: Path) -> Any:
    """pyarrow's reader of a parquet file.

    Raises:
        ValueError: it is missing or damaged.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(file, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"Expected a parquet file at {file}, but it is missing or damaged ({error}); restore "
            "or delete it."
        ) from error


def _decode(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    """A file's metadata as text."""
    return {
        key.decode(errors="replace"): value.decode(errors="replace")
        for key, value in (metadata or {}).items()
    }
