"""Embeddings in files are read by pyarrow, DuckDB, numpy and faiss; those of others, by the kit."""

import duckdb
import faiss
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest
import torch
from pyarrow import parquet
from torch.nn.functional import normalize

from dclip_kit.search import embeddings
from dclip_kit.search.embeddings import ShardFiles, describe_maker, search_embeddings
from dclip_kit.search.index import search_images

VECTORS = normalize(torch.randn(13, 32, generator=torch.Generator().manual_seed(0)))
PATHS = [f"{number}.jpg" for number in range(13)]


@pytest.fixture
def write(clip, tmp_path):
    """Writes thirteen vectors as three shards, the last of them empty."""

    def write_shards(layout: str, precision: str = "fp32"):
        out = tmp_path / layout
        facts = describe_maker(clip, precision) | {"shard": "a", "model": "mine"}
        vectors = VECTORS if precision == "fp32" else VECTORS.half()
        for number, rows in enumerate((slice(0, 8), slice(8, 13), slice(13, 13))):
            files = ShardFiles.below(out, layout, f"{number}", number, 3)
            files.write(PATHS[rows], vectors[rows], {"bad.jpg": "no"} if number == 1 else {}, facts)
        return out

    return write_shards


def ranked(query: torch.Tensor, vectors: torch.Tensor = VECTORS, count: int = 5) -> list[str]:
    return [PATHS[i] for i in search_images(query, vectors, count).images]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_pyarrow_reads_a_folder_of_parquet(precision, write, clip) -> None:
    out = write("parquet", precision)
    (out / ".0.parquet.1f2e.tmp").write_bytes(b"of a worker that was killed while it wrote")
    table = parquet.read_table(out)
    assert table.equals(pa.dataset.dataset(out).to_table())
    element = pa.float32() if precision == "fp32" else pa.float16()
    assert table.schema.names == ["path", "embedding"]
    kind = table.schema.field("embedding").type
    assert pa.types.is_fixed_size_list(kind) and kind.list_size == 32
    assert kind.value_type == element and not kind.value_field.nullable
    assert not any(field.nullable for field in table.schema)
    assert table["path"].to_pylist() == PATHS
    rows = np.stack(table["embedding"].to_numpy())
    assert np.array_equal(rows, VECTORS.numpy().astype(rows.dtype))
    told = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert told["model_digest"] == clip.digest
    assert (told["width"], told["normalised"], told["stored_in"]) == ("32", "true", precision)
    chunk = parquet.ParquetFile(out / "0.parquet").metadata.row_group(0).column(1)
    assert "BYTE_STREAM_SPLIT" not in chunk.encodings and chunk.compression == "UNCOMPRESSED"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_duckdb_finds_what_the_kit_finds(precision, write) -> None:
    out, query = write("parquet", precision), VECTORS[3]
    rows = duckdb.execute(
        "SELECT path, array_cosine_similarity(embedding::FLOAT[32], ?::FLOAT[32]) AS score "
        f"FROM '{out}/*.parquet' ORDER BY score DESC LIMIT 5",
        [query.tolist()],
    ).fetchall()
    assert [path for path, _ in rows] == ranked(query)
    expected = search_images(query, VECTORS, 5).scores
    assert [score for _, score in rows] == pytest.approx(expected, abs=1e-3)
    nulls = f"SELECT count(*) FROM '{out}/*.parquet' WHERE embedding IS NULL"
    assert duckdb.execute(nulls).fetchall() == [(0,)]


@pytest.mark.parametrize("layout", ["parquet", "clip-retrieval"])
def test_faiss_finds_what_the_kit_finds(layout, write) -> None:
    out, query = write(layout), VECTORS[3]
    if layout == "parquet":
        table = parquet.read_table(out)
        vectors, paths = np.stack(table["embedding"].to_numpy()), table["path"].to_pylist()
    else:  # as its own readers do, by the order of names
        vectors = np.concatenate([np.load(file) for file in sorted((out / "img_emb").iterdir())])
        paths = parquet.read_table(out / "metadata")["image_path"].to_pylist()
    index = faiss.IndexFlatIP(32)
    index.add(vectors)
    found = index.search(query[None].numpy(), 5)[1][0]
    assert [paths[i] for i in found] == ranked(query)


@pytest.mark.parametrize(("count", "name"), [(1, "0"), (9, "3"), (10, "03"), (1000, "0003")])
def test_the_numbers_are_as_clip_retrieval_writes_them(count, name, tmp_path) -> None:
    number = 0 if count == 1 else 3
    files = ShardFiles.below(tmp_path, "clip-retrieval", "x", number, count)
    assert files.vectors == tmp_path / f"img_emb/img_emb_{name}.npy"
    assert files.table == tmp_path / f"metadata/metadata_{name}.parquet"


@pytest.mark.parametrize("rows", [2, 1 << 16])
@pytest.mark.parametrize("top_k", [1, 5, 99])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("layout", ["parquet", "clip-retrieval"])
def test_a_search_finds_the_nearest(
    layout, precision, top_k, rows, write, clip, monkeypatch
) -> None:
    monkeypatch.setattr(embeddings, "_ROWS", rows)
    out = write(layout, precision)
    for query in VECTORS[:3]:
        hits, expected = (
            search_embeddings(clip, out, query[None], top_k),
            search_images(query, VECTORS, top_k),
        )
        assert hits.images == expected.images and list(hits.ids) == [PATHS[i] for i in hits.images]
        tolerance = 1e-6 if precision == "fp32" else 1e-3
        assert hits.scores == pytest.approx(expected.scores, abs=tolerance)


def test_of_equal_scores_the_earlier_comes_first(clip, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(embeddings, "_ROWS", 3)
    facts = describe_maker(clip, "fp32") | {"shard": "a"}
    for number in range(2):
        files = ShardFiles.below(tmp_path, "parquet", f"{number}", number, 2)
        files.write([f"{number}{row}" for row in range(5)], VECTORS[:1].repeat(5, 1), {}, facts)
    hits = search_embeddings(clip, tmp_path, VECTORS[:1], 7)
    assert hits.images == tuple(range(7)) and hits.ids[-2:] == ("10", "11")


def test_what_clip_retrieval_itself_wrote_is_searched(clip, tmp_path) -> None:
    for name in ("img_emb", "metadata"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "img_emb/img_emb_0.npy", VECTORS.half().numpy())
    table = pa.table({"image_path": PATHS, "caption": PATHS})
    parquet.write_table(table, tmp_path / "metadata/metadata_0.parquet")
    assert list(search_embeddings(clip, tmp_path, VECTORS[3:4], 5).ids) == ranked(VECTORS[3])


@pytest.mark.parametrize("layout", ["parquet", "clip-retrieval"])
def test_embeddings_of_another_model_are_refused(layout, write, clip) -> None:
    out = write(layout)
    with torch.no_grad():
        clip.model.visual.proj += 0.1
    with pytest.raises(ValueError, match=r"another \(mine, .*; name that one"):
        search_embeddings(clip, out, VECTORS[:1], 1)


def test_files_that_cannot_be_searched_are_named(write, clip, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"Expected embeddings in .*empty, found none"):
        search_embeddings(clip, tmp_path / "empty", VECTORS[:1], 1)
    parquet.write_table(pa.table({"path": PATHS}), tmp_path / "empty/a.parquet")
    with pytest.raises(ValueError, match=r"columns path and embedding in .* none called embedding"):
        search_embeddings(clip, tmp_path / "empty", VECTORS[:1], 1)
    out = write("clip-retrieval")
    for damage in (b"", b"\x93NUMPY", (out / "img_emb/img_emb_0.npy").read_bytes()):
        (out / "img_emb/img_emb_1.npy").write_bytes(damage)
        with pytest.raises(ValueError, match=r"a row for each of 5 pictures in .*img_emb_1\.npy"):
            search_embeddings(clip, out, VECTORS[:1], 1)
    (out / "metadata/metadata_0.parquet").unlink()
    with pytest.raises(ValueError, match=r"metadata_0\.parquet, but it is missing or damaged"):
        search_embeddings(clip, out, VECTORS[:1], 1)


def test_no_pickle_is_read(write, clip) -> None:
    out = write("clip-retrieval")
    np.save(out / "img_emb/img_emb_1.npy", np.array([[print]] * 5, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="a row for each of 5"):
        search_embeddings(clip, out, VECTORS[:1], 1)
