"""Webdataset shards, written by the standard library, with members that had better stay inside."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.data.reading import read_shards


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path / "deep/er/cache"))
    return tmp_path / "deep/er/cache/shards"


def jpeg(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(stream, "JPEG")
    return stream.getvalue()


def write_shard(path: Path, members: dict[str, bytes | str]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path) -> Path:
    note = json.dumps({"url": "http://a/dog.jpg", "caption": "a dog", "status": "success"})
    write_shard(
        tmp_path / "web/00000.tar",
        {
            "000000000.jpg": jpeg("red"),
            "000000000.txt": b"a cat",
            "000000001.jpg": jpeg("blue"),
            "000000001.json": note.encode(),
            "000000001.cls": b"7",
        },
    )
    write_shard(
        tmp_path / "web/00001.tar",
        {
            "000000000.png": jpeg("lime"),  # the same key as in the other shard
            "000000000.txt": b"a frog",
            "../../../climbed.jpg": jpeg("red"),
            "../../../climbed.txt": b"outside",
            f"{tmp_path}/absolute.jpg": jpeg("red"),
            "linked.txt": "/etc/passwd",
            "cut.jpg": jpeg("red")[:200],
            "cut.txt": b"cut short",
            "deep/._000000001.jpg": b"macOS' notes on a file",
        },
    )
    return tmp_path / "web"


def test_shards_are_unpacked_once_and_read_as_files(shards, tmp_path, cache, monkeypatch) -> None:
    found = read_shards(shards, split="val")
    assert found.dataset.captions == (("a cat",), ("a dog",), ("a frog",))
    assert found.dataset.image_ids == ("", "http://a/dog.jpg", "")
    assert (found.dataset.split, found.dataset.source) == ("val", "web")
    *refused, cut = found.unusable
    assert Path(cut).name == "cut.jpg"
    assert refused == [
        "00001.tar:../../../climbed.jpg",
        "00001.tar:../../../climbed.txt",
        f"00001.tar:{tmp_path}/absolute.jpg",
        "00001.tar:linked.txt",
        "00001.tar:deep/._000000001.jpg",
    ]
    assert found.unusable["00001.tar:../../../climbed.jpg"] == "its name leads out of the shard"
    assert "got a link" in found.unusable["00001.tar:linked.txt"]
    assert not [*tmp_path.rglob("climbed.*"), *tmp_path.rglob("absolute.jpg")]
    assert len(list(cache.iterdir())) == 1  # nothing half-made is left

    monkeypatch.setattr("dclip_kit.data.readers._unpack", None)  # would fail if called again
    assert read_shards(shards, split="val") == found


def test_a_changed_shard_is_unpacked_again(shards, tmp_path) -> None:
    first = read_shards(shards / "00000.tar")
    write_shard(shards / "00000.tar", {"a.jpg": jpeg("red"), "a.txt": b"another cat"})
    again = read_shards(shards / "00000.tar")
    assert (first.dataset.texts, again.dataset.texts) == (["a cat", "a dog"], ["another cat"])
    assert first.dataset.source == "00000"


@pytest.mark.parametrize("keep", [0, 700, 2600])
def test_a_shard_cut_short_is_named_and_read_so_far(shards, tmp_path, keep) -> None:
    shard = shards / "00000.tar"
    shard.write_bytes(shard.read_bytes()[:keep])
    found = read_shards(shards)
    assert "a frog" in found.dataset.texts
    assert ("a cat" in found.dataset.texts) == (keep == 2600)
    assert found.unusable["00000.tar"].startswith("expected a whole shard")


def test_a_shard_damaged_in_the_middle_is_named(shards) -> None:
    shard = shards / "00000.tar"
    content = bytearray(shard.read_bytes())
    place = content.index(b"000000001.jpg")
    content[place : place + 512] = b"x" * 512  # a header
    shard.write_bytes(content)
    found = read_shards(shards)
    assert "a cat" in found.dataset.texts and "a dog" not in found.dataset.texts
    assert found.unusable["00000.tar"].startswith("expected a whole shard")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_fails_half_way_leaves_no_cache(shards, cache, monkeypatch, error) -> None:
    def fail(*_) -> None:
        raise error

    monkeypatch.setattr("dclip_kit.data.readers._unpack", fail)
    full = isinstance(error, OSError)
    says = r"unpack the shards at .*No space left.*DCLIP_CACHE" if full else None
    with pytest.raises((KeyboardInterrupt, ValueError), match=says):
        read_shards(shards)
    assert not list(cache.iterdir())


def test_members_whose_names_cannot_be_files_are_named(tmp_path) -> None:
    members = {
        "a.jpg": jpeg("red"),
        "a.txt": b"a cat",
        "x" * 300 + ".jpg": jpeg("blue"),
        "a.jpg/b.jpg": jpeg("blue"),
    }
    write_shard(tmp_path / "web/0.tar", members)
    found = read_shards(tmp_path / "web")
    assert found.dataset.texts == ["a cat"] and len(found.unusable) == 2
    assert all("its name cannot be a file's here" in reason for reason in found.unusable.values())


def test_shards_lie_together_with_and_without_a_number(tmp_path) -> None:
    for number, name in enumerate(("train.tar", "train-0.tar")):
        members = {f"{number}.jpg": jpeg("red"), f"{number}.txt": b"a cat"}
        write_shard(tmp_path / "web" / name, members)
    assert read_shards(tmp_path / "web", split="all").dataset.texts == ["a cat", "a cat"]


def test_a_full_disk_is_no_property_of_a_member(shards, monkeypatch) -> None:
    def fail(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(ValueError, match="No space left"):
        read_shards(shards)


def test_shards_in_the_folders_of_splits_are_one_data_set(tmp_path) -> None:
    for split in ("train", "val"):
        (tmp_path / "web" / split).mkdir(parents=True)
        members = {"0.jpg": jpeg("red"), "0.txt": split.encode(), "linked.txt": "/etc/passwd"}
        write_shard(tmp_path / "web" / split / "00000.tar", members)
    found = read_shards(tmp_path / "web", split="all")
    assert found.dataset.captions == (("train",), ("val",))
    assert (found.dataset.splits, found.splits_from) == (("train", "val"), "folders")
    assert list(found.unusable) == ["train/00000.tar:linked.txt", "val/00000.tar:linked.txt"]
    alone = read_shards(tmp_path / "web/val").dataset
    assert (alone.captions, alone.splits) == ((("val",),), ("",))
    for split in ("train", "val"):
        (tmp_path / "web" / split / "00000.tar").rename(tmp_path / f"web/{split}.tar")
    found = read_shards(tmp_path / "web", split="all")
    assert found.dataset.splits == ("train", "val")
    alone = read_shards(tmp_path / "web/val.tar").dataset
    assert (alone.captions, alone.splits) == ((("val",),), ("",))


@pytest.mark.parametrize("name", ["{}-000000.tar", "{}_00000-of-00002.tar", "{}.tar"])
def test_shards_that_are_called_like_splits_are_splits(name, tmp_path) -> None:
    for split in ("train", "validation", "test"):
        shard = tmp_path / name.format(split)
        write_shard(shard, {"0.jpg": jpeg("red"), "0.txt": split.encode()})
    found = read_shards(tmp_path, split="all")
    assert (found.dataset.splits, found.splits_from) == (("test", "train", "val"), "folders")
    assert found.dataset.captions == (("test",), ("train",), ("validation",))
    alone = read_shards(tmp_path / name.format("test")).dataset
    assert (alone.captions, alone.splits) == ((("test",),), ("",))


def test_of_members_that_come_twice_the_last_is_taken(tmp_path) -> None:
    shard = tmp_path / "odd.tar"
    write_shard(shard, {"a.jpg": jpeg("red"), "a.txt": b"a cat"})
    with tarfile.open(shard, "a") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"a dog"))
    assert read_shards(shard).dataset.texts == ["a dog"]


def test_a_folder_without_shards_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"one file \*\.tar in .*, got none"):
        read_shards(tmp_path)


def test_a_name_with_several_dots_is_a_picture_too(tmp_path) -> None:
    members = {"p.v2.jpg": jpeg("red"), "p.v2.txt": b"second version", "q.mask.npy": b"numbers"}
    write_shard(tmp_path / "0.tar", members)
    found = read_shards(tmp_path)
    assert found.dataset.captions == (("second version",),)
    assert not found.unusable
