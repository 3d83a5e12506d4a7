"""Shards of any kind get the features of `encode_images`, once, whatever stops the work."""

import io
import json
import os
import secrets
import socket
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from dclip_kit.models.encode import encode_images
from dclip_kit.search import embeddings, shards
from dclip_kit.search.shards import (
    Embedder,
    Shard,
    ShardCount,
    embed_on_ray,
    embed_shard,
    embed_shards,
    list_shards,
)
from tests.data.test_shards import write_shard


def encode(picture: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def contents(pictures) -> dict[str, bytes]:
    return {f"{number}.png": encode(picture) for number, picture in enumerate(pictures)}


@pytest.fixture
def features(clip, pictures) -> torch.Tensor:
    return encode_images(clip, pictures)


def write_tars(folder: Path, contents: dict[str, bytes], size: int = 2) -> Path:
    names = list(contents)
    for start in range(0, len(names), size):
        part = {name: contents[name] for name in names[start : start + size]}
        write_shard(folder / f"{start // size:05d}.tar", part | {"notes.txt": b"a caption"})
    return folder


def write_rows(folder: Path, contents: dict[str, bytes]) -> Path:
    """As Hugging Face's datasets writes pictures; the paths beside them lead out."""
    rows = [{"bytes": x, "path": f"/etc/{name}"} for name, x in contents.items()]
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": rows, "text": ["a caption"] * len(rows)})
    parquet.write_table(table, folder / "a.parquet", row_group_size=4)
    return folder


def write_files(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "notes.txt").write_text("no picture")
    return folder


def read(out: Path) -> tuple[list[str], torch.Tensor]:
    """All paths and embeddings, by pyarrow alone."""
    table = parquet.read_table(out)
    rows = table["embedding"].combine_chunks().flatten().to_numpy()
    return table["path"].to_pylist(), torch.tensor(rows).reshape(len(table), -1)


def reasons(out: Path) -> dict[str, str]:
    lines = [line for file in out.glob("_broken/**/*.jsonl") for line in file.open()]
    return {record["path"]: record["reason"] for record in map(json.loads, lines)}


@pytest.mark.parametrize(
    ("write", "paths", "count"),
    [
        (write_tars, [f"{i // 2:05d}.tar:{i}.png" for i in range(6)], 3),
        (write_rows, [f"a.parquet:{i}" for i in range(6)], 2),
        (write_files, [f"{i}.png" for i in range(6)], 2),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_features_are_those_of_encode_images(
    write, paths, count, precision, contents, features, clip, tmp_path
) -> None:
    found = list_shards(write(tmp_path / "in", contents), size=4)
    assert [(x.number, x.count) for x in found] == [(i, count) for i in range(count)]
    done = [embed_shard(clip, shard, tmp_path / "out", precision=precision) for shard in found]
    assert sum(x.pictures for x in done) == 6 and not any(x.broken for x in done)
    named, embedded = read(tmp_path / "out")
    assert named == paths and not (tmp_path / "out/_broken").exists()
    assert embedded.dtype == (torch.float32 if precision == "fp32" else torch.float16)
    torch.testing.assert_close(
        embedded.float(), features, rtol=0, atol=1e-6 if precision == "fp32" else 5e-4
    )


def test_a_single_file_is_a_source_too(contents, tmp_path) -> None:
    tars, rows = write_tars(tmp_path / "tars", contents), write_rows(tmp_path / "rows", contents)
    files = write_files(tmp_path / "files", contents)
    assert [x.name for x in list_shards(tars / "00001.tar")] == ["00001"]
    assert [x.name for x in list_shards(rows / "a.parquet")] == ["a-00000", "a-00001"]
    assert [x.paths for x in list_shards(files / "3.png")] == [("3.png",)]


def test_shards_in_subfolders_keep_their_names_apart(contents, clip, tmp_path) -> None:
    for split in ("train", "val"):
        (tmp_path / "in" / split).mkdir(parents=True)
        write_tars(tmp_path / "in" / split, contents, 6)
    for shard in list_shards(tmp_path / "in"):
        embed_shard(clip, shard, tmp_path / "out")
    assert len(set(read(tmp_path / "out")[0])) == 12
    assert (tmp_path / "out/train/00000.parquet").exists()


def test_only_one_kind_of_source_is_read(contents, tmp_path) -> None:
    folder = write_tars(tmp_path / "in", contents)
    (folder / "00000.parquet").write_bytes(b"img2dataset's notes, which are not opened")
    assert len(list_shards(folder)) == 3
    (folder / "a.png").write_bytes(contents["0.png"])
    with pytest.raises(ValueError, match="only one of these kinds, got 3 tars, 1 pictures"):
        list_shards(folder)
    with pytest.raises(ValueError, match="got none"):
        list_shards(tmp_path / "nowhere")


def test_notes_beside_folders_of_pictures_are_not_opened(contents, tmp_path) -> None:
    for number in ("00000", "00001"):
        (tmp_path / number).mkdir()
        write_files(tmp_path / number, contents)
        (tmp_path / f"{number}.parquet").write_bytes(b"img2dataset's notes")
    (shard,) = list_shards(tmp_path)
    assert len(shard.paths) == 2 * len(contents)


def test_a_picture_that_was_replaced_is_noticed(contents, clip_folder, tmp_path) -> None:
    folder = write_files(tmp_path / "in", contents)
    embed_shards(folder, tmp_path / "out", str(clip_folder))
    (again,) = embed_shards(folder, tmp_path / "out", str(clip_folder)).counts.values()
    assert not again.new
    first = next(iter(contents))
    (folder / first).write_bytes(contents[first] + b"\0")
    with pytest.raises(ValueError, match="shard"):  # pictures may have moved between numbers
        embed_shards(folder, tmp_path / "out", str(clip_folder))


def test_a_shard_that_has_changed_or_is_damaged_does_not_stop_the_others(
    contents, clip_folder, tmp_path
) -> None:
    folder, out = write_tars(tmp_path / "in", contents), tmp_path / "out"
    embed_shards(folder, out, str(clip_folder))
    write_shard(folder / "00000.tar", {"another.png": contents["5.png"]})
    (out / "00001.parquet").write_bytes(b"damaged")
    (out / "00002.parquet").unlink()
    done = embed_shards(folder, out, str(clip_folder))
    assert done.counts == {"00002": ShardCount(2, 0, new=True)}
    assert "the same pictures" in done.failed["00000"] and "damaged" in done.failed["00001"]


def test_another_model_stops_at_once(contents, clip_folder, tmp_path) -> None:
    """Else what it embeds would stand beside the first one's."""
    folder, out = write_tars(tmp_path / "in", contents), tmp_path / "out"
    embed_shards(folder, out, str(clip_folder))
    (out / "00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"model_digest .*, not "):
        embed_shards(folder, out, "pocket")
    assert not (out / "00002.parquet").exists()


def test_a_folder_that_a_machine_does_not_reach_is_no_shard(contents, clip, tmp_path) -> None:
    """Its pictures are not broken, and the work is done elsewhere."""
    folder = write_files(tmp_path / "in", contents)
    (shard,) = list_shards(folder)
    folder.rename(tmp_path / "not mounted")
    with pytest.raises(FileNotFoundError, match=r"found none of 6; see that this machine reaches"):
        embed_shard(clip, shard, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_worker_makes_no_folder_that_others_do_not_see(clip_folder, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="on each machine"):
        Embedder(str(clip_folder), None, tmp_path / "out", "parquet", "fp32", "fp32", "cpu")
    assert not (tmp_path / "out").exists()


def test_what_killed_workers_left_half_written_is_cleared_away(
    contents, clip_folder, tmp_path
) -> None:
    folder, out = write_tars(tmp_path / "in", contents), tmp_path / "out"
    out.mkdir()
    left, new = out / ".00000.parquet.0a.tmp", out / ".00001.parquet.0b.tmp"
    foreign = out / ".notes.tmp"
    for file in (left, new, foreign):
        file.write_text("half")
    for file in (left, foreign):
        os.utime(file, (0, 0))
    embed_shards(folder, out, str(clip_folder))
    assert not left.exists() and foreign.exists()
    assert new.exists()  # another process may be writing it


def test_pictures_can_be_encoded_in_bf16(contents, features, clip_folder, tmp_path) -> None:
    folder, out = write_tars(tmp_path / "in", contents), tmp_path / "out"
    embed_shards(folder, out, str(clip_folder), compute="bf16")
    metadata = parquet.read_schema(out / "00000.parquet").metadata
    assert metadata[b"computed_in"] == b"bf16" and metadata[b"model"].startswith(b"clip")
    embedded = read(out)[1]
    torch.testing.assert_close(embedded, features, rtol=0, atol=0.05)
    assert (embedded - features).abs().max() > 1e-5


def test_a_single_tar_may_lie_beside_what_is_written(contents, clip_folder, tmp_path) -> None:
    folder = write_tars(tmp_path, contents)
    done = embed_shards(folder / "00001.tar", tmp_path / "out", str(clip_folder))
    assert {name: x.pictures for name, x in done.counts.items()} == {"00001": 2}


@pytest.mark.parametrize("name", ["_a.tar", "_train/a.tar", "a/_b.parquet", "caf\udce9.tar"])
def test_names_that_readers_of_parquet_pass_by_are_refused(name, contents, tmp_path) -> None:
    if name.endswith(".tar"):
        write_shard(tmp_path / name, contents)
    else:
        write_rows(tmp_path / "rows", contents)
        (tmp_path / "a").mkdir()
        (tmp_path / "rows/a.parquet").rename(tmp_path / name)
    with pytest.raises(ValueError, match=r"do not begin with _ or a dot.*; rename it"):
        list_shards(tmp_path)


def test_parquet_that_is_damaged_or_empty_is_named(contents, tmp_path) -> None:
    file = write_rows(tmp_path, contents) / "a.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"a\.parquet, but it is missing or damaged"):
        list_shards(tmp_path)
    schema = pa.schema([("image", pa.binary())])
    parquet.ParquetWriter(file, schema).close()
    with pytest.raises(ValueError, match="Expected rows in the parquet files"):
        list_shards(tmp_path)


@pytest.mark.parametrize("columns", [{"text": ["a"]}, {"a": [b"1"], "b": [b"2"]}])
def test_a_table_without_one_column_of_pictures_is_refused(columns, tmp_path) -> None:
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"one column with the bytes of pictures.*call it image"):
        list_shards(tmp_path)


# Pictures that cannot be used


def test_hostile_members_of_a_tar_are_counted_and_nothing_else(
    contents, clip, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("dclip_kit.data.readers.MOST_BYTES", 10_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    members = {
        "good.png": contents["0.png"],
        "../../climbed.png": contents["1.png"],  # a name, and nothing that is opened
        "linked.png": "/etc/passwd",
        "cut.png": contents["2.png"][:60],
        "text.png": b"no picture",
        "bomb.png": encode(Image.new("L", (200, 200))),
        "large.png": bytes(20_000),
        "caf\udce9.png": contents["3.png"],
        "twice.png": contents["4.png"],
    }
    write_shard(tmp_path / "in/0.tar", members)
    with tarfile.open(tmp_path / "in/0.tar", "a") as archive:
        member = tarfile.TarInfo("twice.png")
        member.size = len(contents["5.png"])
        archive.addfile(member, io.BytesIO(contents["5.png"]))
    (shard,) = list_shards(tmp_path / "in")
    done = embed_shard(clip, shard, tmp_path / "out/deep")
    assert done == ShardCount(3, 6, new=True)
    paths, embedded = read(tmp_path / "out/deep")
    assert paths == ["0.tar:good.png", "0.tar:../../climbed.png", "0.tar:twice.png"]
    expected = encode_images(
        clip, [Image.open(io.BytesIO(contents[f"{i}.png"])) for i in (0, 1, 5)]
    )
    torch.testing.assert_close(embedded, expected, rtol=0, atol=1e-6)
    why = reasons(tmp_path / "out/deep")
    assert {path.partition(":")[2]: reason.split("(")[0] for path, reason in why.items()} == {
        "linked.png": "expected a file, got a link, a device or a folder",
        "cut.png": "Expected a whole picture, but reading it failed ",
        "text.png": "Expected a whole picture, but reading it failed ",
        "bomb.png": "Expected a whole picture, but reading it failed ",
        "large.png": "expected at most 10,000 bytes, got 20,000",
        "caf\\udce9.png": "expected a name in UTF-8",
    }
    assert "decompression bomb" in why["0.tar:bomb.png"] and "0x" not in why["0.tar:text.png"]
    assert not list(tmp_path.rglob("climbed.png"))


@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize("order", ["good, broken", "broken, good"])
def test_the_last_of_one_path_counts(order, batch_size, contents, clip, tmp_path) -> None:
    given = {"good": contents["0.png"], "broken": b"no picture"}
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for each in order.split(", "):
            member = tarfile.TarInfo("x.png")
            member.size = len(given[each])
            archive.addfile(member, io.BytesIO(given[each]))
    (shard,) = list_shards(tmp_path)
    done = embed_shard(clip, shard, tmp_path / "out", batch_size=batch_size)
    is_good = order.endswith("good")
    assert done == ShardCount(int(is_good), int(not is_good), new=True)
    assert set(reasons(tmp_path / "out")) == (set() if is_good else {"0.tar:x.png"})


def test_a_tar_cut_short_is_named_and_embedded_so_far(contents, clip, tmp_path) -> None:
    folder = write_tars(tmp_path / "in", contents, 6)
    whole = (folder / "00000.tar").read_bytes()
    (folder / "00000.tar").write_bytes(whole[: whole.index(b"5.png") + 700])
    (shard,) = list_shards(folder)
    assert embed_shard(clip, shard, tmp_path / "out") == ShardCount(5, 1, new=True)
    assert "expected a whole shard" in reasons(tmp_path / "out")["00000.tar:"]


def test_files_that_are_no_pictures_are_counted(contents, clip, tmp_path) -> None:
    folder = write_files(tmp_path / "in", contents)
    (folder / "gone.png").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.png")
    (shard,) = list_shards(folder)
    (folder / "0.png").unlink()
    assert embed_shard(clip, shard, tmp_path / "out") == ShardCount(5, 3, new=True)
    assert set(reasons(tmp_path / "out")) == {"0.png", "gone.png", "pipe.png"}


def test_a_failing_disk_is_no_property_of_a_picture(contents, clip, tmp_path, monkeypatch) -> None:
    (shard,) = list_shards(write_files(tmp_path / "in", contents))

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shards, "open_file", fail)
    with pytest.raises(OSError, match="Input/output"):
        embed_shard(clip, shard, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_without_bytes_are_counted(contents, clip, tmp_path) -> None:
    rows = [
        {"bytes": contents["0.png"], "path": None},
        {"bytes": None, "path": "/etc/passwd"},
        None,
    ]
    table = pa.table({"image": rows})
    parquet.write_table(table, tmp_path / "a.parquet")
    (shard,) = list_shards(tmp_path)
    assert embed_shard(clip, shard, tmp_path / "out") == ShardCount(1, 2, new=True)


def test_a_shard_without_a_picture_is_done_as_well(clip, tmp_path) -> None:
    write_shard(tmp_path / "in/0.tar", {"a.txt": b"no picture"})
    (shard,) = list_shards(tmp_path / "in")
    for layout in ("parquet", "clip-retrieval"):
        for new in (True, False):
            done = embed_shard(clip, shard, tmp_path / layout, layout, "fp16")
            assert done == ShardCount(0, 0, new)


# Going on


@pytest.mark.parametrize("layout", ["parquet", "clip-retrieval"])
def test_what_is_there_is_not_embedded_again(layout, contents, clip, tmp_path, monkeypatch) -> None:
    folder, out = write_tars(tmp_path / "in", contents), tmp_path / "out"
    write_shard(folder / "00009.tar", {"bad.png": b"no"})
    found = list_shards(folder)
    first = [embed_shard(clip, shard, out, layout) for shard in found]
    monkeypatch.setattr(shards, "encode_pixels", None)  # would fail if called again
    again = [embed_shard(clip, shard, out, layout) for shard in found]
    assert all(x.new for x in first) and not any(x.new for x in again)
    assert [replace(x, new=True) for x in again] == first
    assert first[-1] == ShardCount(0, 1, new=True)


@pytest.mark.parametrize("layout", ["parquet", "clip-retrieval"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_write_that_fails_leaves_no_shard(
    layout, error, contents, clip, tmp_path, monkeypatch
) -> None:
    (shard,), out = list_shards(write_tars(tmp_path / "in", contents, 6)), tmp_path / "out"

    def fail(*given, **_):
        (name,) = (Path(each.name).name for each in given if hasattr(each, "name"))
        assert name.startswith(".")  # readers of the whole folder pass it by
        raise error

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, OSError)):
        patch.setattr(
            *((parquet, "write_table") if layout == "parquet" else (embeddings.np, "save")), fail
        )
        embed_shard(clip, shard, out, layout)
    assert not list(out.rglob("*.tmp"))
    assert embed_shard(clip, shard, out, layout) == ShardCount(6, 0, new=True)
    assert embed_shard(clip, shard, out, layout) == ShardCount(6, 0, new=False)


def test_an_earlier_models_vectors_never_pass_for_the_new_ones(
    contents, clip, tmp_path, monkeypatch
) -> None:
    (shard,), out = list_shards(write_tars(tmp_path / "in", contents, 6)), tmp_path / "out"
    embed_shard(clip, shard, out, "clip-retrieval")
    (table,) = out.glob("metadata/*")
    table.unlink()  # as the error advises to embed again
    with torch.no_grad():
        clip.model.visual.proj += 0.1

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(embeddings.np, "save", fail)
        embed_shard(clip, shard, out, "clip-retrieval")
    assert embed_shard(clip, shard, out, "clip-retrieval") == ShardCount(6, 0, new=True)


def test_what_was_broken_in_a_stopped_attempt_is_not_told_for_ever(
    contents, clip, tmp_path, monkeypatch
) -> None:
    folder = write_files(tmp_path / "in", contents | {"late.png": b"no"})
    (shard,) = list_shards(folder)
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(embeddings, "replacing", None)
        embed_shard(clip, shard, tmp_path / "out")
    assert set(reasons(tmp_path / "out")) == {"late.png"}
    (folder / "late.png").write_bytes(contents["0.png"])
    assert embed_shard(clip, shard, tmp_path / "out") == ShardCount(7, 0, new=True)
    assert not reasons(tmp_path / "out")


@pytest.mark.parametrize("layout", ["parquet", "clip-retrieval"])
@pytest.mark.parametrize(
    "changed", ["weights", "preparation", "fp16", "bf16", "pictures", "pictures of that size"]
)
def test_what_is_there_by_another_model_is_not_mixed(
    layout, changed, contents, clip, tmp_path
) -> None:
    folder, out = write_tars(tmp_path / "in", contents), tmp_path / "out"
    shard, precision = list_shards(folder)[0], "fp32"
    embed_shard(clip, shard, out, layout)
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    if changed == "weights":
        with torch.no_grad():
            clip.model.visual.proj += 0.1
    elif changed == "preparation":
        clip = replace(clip, model_config=clip.model_config | {"quick_gelu": True})
    elif changed == "fp16":
        precision = "fp16"
    elif changed == "bf16":
        clip = replace(clip, precision="bf16")
    elif changed == "pictures":
        write_shard(folder / "00000.tar", {f"{i}.png": contents["0.png"] for i in range(30)})
    else:
        size = (folder / "00000.tar").stat().st_size
        (folder / "00001.tar").replace(folder / "00000.tar")
        assert (folder / "00000.tar").stat().st_size == size
    with pytest.raises(ValueError, match=r"Expected .* same model.* another's \(.*; name another"):
        embed_shard(clip, shard, out, layout, precision)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before and before


def test_a_damaged_shard_is_named(contents, clip, tmp_path) -> None:
    shard, out = list_shards(write_tars(tmp_path / "in", contents))[0], tmp_path / "out"
    embed_shard(clip, shard, out)
    (out / "00000.parquet").write_bytes((out / "00000.parquet").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"00000\.parquet.*restore or delete it"):
        embed_shard(clip, shard, out)


# All shards


def test_all_shards_in_a_loop_and_again(contents, features, clip_folder, tmp_path) -> None:
    folder, out = write_tars(tmp_path / "in", contents), tmp_path / "out"
    done = embed_shards(folder, out, str(clip_folder))
    assert not done.failed and [x.new for x in done.counts.values()] == [True] * 3
    (out / "00001.parquet").unlink()
    written = (out / "00000.parquet").stat().st_mtime_ns
    done = embed_shards(folder, out, str(clip_folder))
    assert {name: x.new for name, x in done.counts.items()} == {
        "00000": False,
        "00001": True,
        "00002": False,
    }
    assert (out / "00000.parquet").stat().st_mtime_ns == written
    torch.testing.assert_close(read(out)[1], features, rtol=0, atol=1e-6)


def test_files_of_another_source_or_layout_are_refused(contents, clip_folder, tmp_path) -> None:
    folder, out, model = write_tars(tmp_path / "in", contents), tmp_path / "out", str(clip_folder)
    embed_shards(folder, out, model)
    with pytest.raises(
        ValueError, match=r"got 3 other files \(00000.parquet\); name another --out"
    ):
        embed_shards(folder, out, model, layout="clip-retrieval")
    (folder / "00002.tar").unlink()
    with pytest.raises(ValueError, match=r"got 1 other files \(00002.parquet\)"):
        embed_shards(folder, out, model)
    with pytest.raises(ValueError, match="--out outside"):
        embed_shards(folder, folder / "out", model)


def test_workers_elsewhere_load_the_same_model(
    contents, clip_folder, tmp_path, monkeypatch
) -> None:
    """Paths are given to Ray's workers whole, since these run in other folders."""
    folder, given = write_tars(tmp_path / "in", contents), []
    monkeypatch.setattr(
        shards, "embed_on_ray", lambda *asked: given.append(asked[3:5]) or (x for x in ())
    )
    monkeypatch.chdir(clip_folder.parent)
    weights = Path(clip_folder.name, "open_clip_model.safetensors")
    for model, pretrained in (
        (clip_folder.name, None),
        ("pocket_vit", None),
        ("ViT-B-32", str(weights)),
        ("ViT-B-32", "openai"),
    ):
        embed_shards(folder, tmp_path / "out", model, pretrained, ray="local")
    assert given == [
        (str(clip_folder), None),
        ("pocket_vit", None),
        ("ViT-B-32", str(clip_folder.parent / weights)),
        ("ViT-B-32", "openai"),
    ]


def test_a_shard_that_cannot_be_read_does_not_stop_the_others(
    contents, clip_folder, tmp_path, monkeypatch
) -> None:
    folder, once = write_tars(tmp_path / "in", contents), shards.read_members

    def fail_at_second(path, *suffixes):
        if path.name == "00001.tar":
            raise OSError(5, "Input/output error")
        return once(path, *suffixes)

    monkeypatch.setattr(shards, "read_members", fail_at_second)
    done = embed_shards(folder, tmp_path / "out", str(clip_folder))
    assert set(done.counts) == {"00000", "00002"} and "Input/output" in done.failed["00001"]


@pytest.mark.parametrize("missing", ["pyarrow", "ray"])
def test_a_missing_extra_names_the_line_that_brings_it(
    missing, contents, tmp_path, monkeypatch
) -> None:
    folder = write_tars(tmp_path / "in", contents)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"{missing} .*run pip install 'dclip-kit\[scale\]'"):
        embed_shards(folder, tmp_path / "out", ray="local")


# Ray itself; a local one is in tests/commands/test_embed_shards.py


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster on this machine, which tests join and leave."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--port={address.partition(':')[2]}", "--num-cpus=2", "--disable-usage-stats"]
    command.append("--include-dashboard=false")
    with pytest.MonkeyPatch.context() as patch:  # each test has another home, and no token in it
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as head:
            yield address
            assert head.poll() is None  # nobody has ended it
            head.terminate()


class Light(Shard):
    """Comes to a worker without what its class is made of, PyTorch and open_clip."""

    def __reduce__(self):
        return SimpleNamespace, (), {"name": self.name, "number": self.number}


@pytest.mark.slow
def test_a_shard_that_breaks_every_worker_ends(tmp_path, contents, cluster, monkeypatch) -> None:
    class Fragile:
        def __init__(self, log, *_):
            self.log = log

        def embed(self, shard):
            with open(self.log, "a") as file:
                file.write(f"{shard.name}\n")
            if shard.number == 1:
                os._exit(1)
            if shard.number == 2:
                raise OSError("disk")
            if shard.number == 3:
                raise ValueError("another model")
            return shard.number

    monkeypatch.setattr(shards, "Embedder", Fragile)
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    found = [Light(**vars(x)) for x in list_shards(write_tars(tmp_path / "in", contents, 1))]
    results = {x.number: y for x, y in embed_on_ray(found, cluster, 2, str(tmp_path / "log"))}
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert {results[i] for i in (0, 4, 5)} == {0, 4, 5}
    assert isinstance(results[1], OSError) and isinstance(results[2], OSError)
    assert isinstance(results[3], ValueError) and str(results[3]) == "another model"
    tried = (tmp_path / "log").read_text().split()
    assert [tried.count(f"{i:05d}") for i in range(6)] == [1, 4, 4, 1, 1, 1]


@pytest.mark.slow
def test_a_cluster_is_found_by_its_address_and_left_running(
    tmp_path, contents, features, clip_folder, cluster
) -> None:
    """One that this process has joined is left alone."""
    import ray

    folder, out = write_tars(tmp_path / "in", contents), tmp_path / "out"
    done = embed_shards(folder, out, str(clip_folder), ray=cluster, workers=1)
    assert not done.failed and not ray.is_initialized()
    torch.testing.assert_close(read(out)[1], features, rtol=0, atol=1e-6)
    ray.init(cluster, log_to_driver=False)
    try:
        with pytest.raises(ConnectionError, match=r"has joined one; call ray\.shutdown"):
            embed_shards(folder, out, str(clip_folder), ray=cluster)
        assert ray.is_initialized()
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_a_worker_that_reaches_no_shard_does_not_use_up_their_tries(
    tmp_path, contents, cluster, monkeypatch
) -> None:
    class Apart:
        def __init__(self, folder, *_):
            self.folder = folder
            try:
                os.mkdir(f"{folder}/first")
                self.reaches = False
            except FileExistsError:
                self.reaches = True

        def embed(self, shard):
            if not self.reaches:
                os.mkdir(f"{self.folder}/{shard.number}")
                raise OSError("not mounted")
            while len(os.listdir(self.folder)) < 5:  # until the other one has had its chances
                time.sleep(0.01)
            return shard.number

    monkeypatch.setattr(shards, "Embedder", Apart)
    found = [Light(**vars(x)) for x in list_shards(write_tars(tmp_path / "in", contents, 1))]
    (tmp_path / "log").mkdir()
    results = {x.number: y for x, y in embed_on_ray(found, cluster, 2, str(tmp_path / "log"))}
    assert results == {number: number for number in range(6)}


def test_a_cluster_without_a_core_is_said(contents, clip_folder, tmp_path, monkeypatch) -> None:
    ray = pytest.importorskip("ray")
    folder = write_tars(tmp_path / "in", contents)
    monkeypatch.setattr(shards, "_connect", lambda *_: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"memory": 1.0})
    with pytest.raises(ConnectionError, match="start its workers first"):
        embed_shards(folder, tmp_path / "out", str(clip_folder), ray="10.0.0.1:6379")


@pytest.mark.slow
def test_a_model_that_no_worker_can_load_is_said(tmp_path, contents, cluster) -> None:
    folder = write_tars(tmp_path / "in", contents)
    with pytest.raises((ValueError, OSError), match="no-such-clip"):
        embed_shards(folder, tmp_path / "out", "no-such-clip", ray=cluster, workers=1)
