"""Texts beside the pictures, in folders that may be links."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from dclip_kit.data.paths import walk_files
from tests.data.reading import read_conceptual, read_files


def write_sample(folder: Path, name: str, text: str | None, **note) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4), "blue").save(folder / name)
    if text is not None:
        (folder / name).with_suffix(".txt").write_text(text)
    if note:
        (folder / name).with_suffix(".json").write_text(json.dumps(note))


def test_files_pair_pictures_with_the_texts_beside_them(tmp_path) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    url = "https://somewhere/cat.jpg"
    write_sample(
        folder, "00000/000000000.jpg", "a cat", caption="a\ncat", url=url, status="success"
    )
    write_sample(folder, "00000/000000001.JPG", "a dog\n\nit barks\n")
    write_sample(folder, "00000/000000002.jpg", "x", caption="x", status="failed_to_resize")
    write_sample(folder, "00001/000010000.jpg", None)
    write_sample(folder, "00001/000010001.jpg", "")
    write_sample(folder, "00001/000010002.jpg", "no note")
    (folder / "00001/000010002.json").write_text("{")
    write_sample(folder, "00001/000010003.jpg", None)
    (folder / "00001/000010003.txt").write_bytes(b"caf\xe9")
    (folder / "00001/000010004.txt").write_text("no picture")
    (folder / "00000_stats.json").write_text('{"count": 3}')
    for number, target in [(5, "elsewhere.txt"), (6, "nowhere.txt")]:
        write_sample(folder, f"00001/00001000{number}.jpg", None)
        (folder / f"00001/00001000{number}.txt").symlink_to(tmp_path / target)
    (tmp_path / "elsewhere.txt").write_text("a link's text")
    write_sample(folder, "00001/000010008.jpg", "its text")
    (folder / "00001/000010008.json").symlink_to(tmp_path / "nowhere.json")

    found = read_files(folder)
    assert [path.name for path in found.dataset.paths] == [
        "000000000.jpg",
        "000000001.JPG",
        "000010001.jpg",
        "000010002.jpg",
        "000010005.jpg",
        "000010008.jpg",
    ]
    assert found.dataset.captions == (
        ("a\ncat",),
        ("a dog", "it barks"),
        (),
        ("no note",),
        ("a link's text",),
        ("its text",),
    )
    assert found.dataset.image_ids == (url, "", "", "", "", "")
    assert (found.dataset.source, found.empty_captions) == ("web", 1)
    reasons = {Path(place).name: reason for place, reason in found.unusable.items()}
    numbers = ("00002", "10000", "10003", "10006")
    others = {"000010002.json", "000010008.json", "000010004.txt"}
    assert set(reasons) == {f"0000{n}.jpg" for n in numbers} | others
    assert any(place.endswith("00001/000010004.txt") for place in found.unusable)
    assert "failed_to_resize" in reasons["000000002.jpg"]
    for number in ("10000", "10006"):
        assert "No such file" in reasons[f"0000{number}.jpg"]
    assert "utf-8" in reasons["000010003.jpg"] and "No such file" in reasons["000010008.json"]


def test_links_to_folders_are_walked_once_on_each_way(tmp_path) -> None:
    for name in ("data/own/a.txt", "else/where/b.txt", "else/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "data/linked").symlink_to(tmp_path / "else")
    assert list(walk_files(tmp_path / "data")) == [
        "linked/c.txt",
        "linked/where/b.txt",
        "own/a.txt",
    ]
    for loop, target in [("data/own/up", "data"), ("data/own/self", "data/own")]:
        (tmp_path / loop).symlink_to(tmp_path / target)
    (tmp_path / "else/where/back").symlink_to(tmp_path / "data")
    (tmp_path / "else/above").symlink_to(tmp_path)
    found = list(walk_files(tmp_path / "data"))
    assert sorted(name for name in found if "above" not in name) == [
        "linked/c.txt",
        "linked/where/b.txt",
        "own/a.txt",
    ]
    assert not [name for name in found if name.startswith("linked/above/data")]
    assert len(found) < 10


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch) -> None:
    for name in ("open/a.txt", "shut/b.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("")
    scan = os.scandir

    def refuse(place):
        if str(place).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)  # who runs as root may read everything
    with pytest.raises(PermissionError, match="shut"):
        list(walk_files(tmp_path))


def test_pictures_of_linked_folders_are_read_and_counted(tmp_path) -> None:
    for folder in ("store", "data"):
        (tmp_path / folder).mkdir()
    write_sample(tmp_path / "store", "a.jpg", "a cat")
    write_sample(tmp_path / "data", "b.jpg", "a dog")
    (tmp_path / "data/cats").symlink_to(tmp_path / "store")
    found = read_files(tmp_path / "data")
    assert sorted(found.dataset.texts) == ["a cat", "a dog"] and found.linked == 1


# Conceptual Captions: the published list over a download of img2dataset


def write_download(folder: Path, key: str, url: str | None, **note) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(folder / f"{key}.jpg")
    (folder / f"{key}.txt").write_text("the download's own text")
    if url is not None:
        note = {"url": url, "caption": "c", "key": key, "status": "success"} | note
    (folder / f"{key}.json").write_text(json.dumps(note))


@pytest.fixture
def tsv(tmp_path) -> Path:
    shard = tmp_path / "cc3m/00000"
    write_download(shard, "000000000", "http://a/cat.jpg")
    write_download(shard, "000000001", "http://a/dog.jpg?x=1")
    write_download(shard, "000000002", "http://a/unlisted.jpg")
    write_download(shard, "000000003", "http://a/bad.jpg", status="failed_to_download")
    write_download(shard, "000000004", None)
    Image.new("RGB", (4, 4)).save(shard / "000000005.jpg")
    (shard / "000000005.json").write_text("{")
    rows = [
        "a very typical cat\thttp://a/cat.jpg",
        "the same cat\thttp://a/cat.jpg",
        "a dog\thttp://a/dog.jpg?x=1",
        "gone\thttp://a/gone.jpg",
        "not successful\thttp://a/bad.jpg",
        "no address",
        "\thttp://a/dog.jpg?x=1",
    ]
    file = tmp_path / "Train_GCC-training.tsv"
    file.write_text("\n".join(rows) + "\n")
    return file


@pytest.mark.parametrize("header", ["", "caption\turl\n"])
def test_captions_come_to_pictures_by_address(tsv, header) -> None:
    tsv.write_text(header + tsv.read_text())
    found = read_conceptual(tsv, tsv.parent / "cc3m")
    assert [path.name for path in found.dataset.paths] == ["000000000.jpg", "000000001.jpg"]
    assert found.dataset.captions == (("a very typical cat", "the same cat"), ("a dog",))
    assert found.dataset.image_ids == ("http://a/cat.jpg", "http://a/dog.jpg?x=1")
    assert (found.dataset.source, found.empty_captions) == (tsv.parent.name, 1)
    first = 4 + bool(header)
    assert found.unusable[f"{tsv.name}:{first}"] == (
        "its picture was not downloaded (http://a/gone.jpg)"
    )
    reasons = {Path(place).name: reason for place, reason in found.unusable.items()}
    pictures = {f"00000000{n}.jpg" for n in (2, 3, 4, 5)}
    assert set(reasons) == pictures | {"000000005.json"} | {
        f"{tsv.name}:{n}" for n in range(first, first + 3)
    }
    assert "'http://a/unlisted.jpg' is not there" in reasons["000000002.jpg"]
    assert "failed_to_download" in reasons["000000003.jpg"]


def test_the_address_may_come_first(tsv) -> None:
    expected = read_conceptual(tsv, tsv.parent / "cc3m").dataset
    rows = [line.split("\t")[::-1] for line in tsv.read_text().splitlines()]
    tsv.write_text("\n".join("\t".join(row) for row in rows))
    assert read_conceptual(tsv, tsv.parent / "cc3m").dataset == expected


def test_the_download_may_lie_beside_the_list(tsv) -> None:
    assert len(read_conceptual(tsv.parent).dataset) == 2
    (tsv.parent / "second.tsv").write_text("a cat\thttp://a/cat.jpg\n")
    with pytest.raises(ValueError, match=r"Expected one file \*.tsv in .*, got T.*, second.tsv"):
        read_conceptual(tsv.parent)


def test_systems_own_folders_are_passed_by(tmp_path) -> None:
    hidden = (".thumbnails/0.jpg", "sub/._0.jpg")
    for name in ("a.jpg", "@eaDir/a.jpg/thumb.jpg", "sub/__MACOSX/b.jpg", *hidden):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert list(walk_files(tmp_path)) == ["a.jpg"]
