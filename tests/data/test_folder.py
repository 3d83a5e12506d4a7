"""Texts beside the pictures, in folders that may be links."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from dclip_kit.data.folder import read_files, walk_files


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
    for number, target in [(5, "elsewhere.txt"), (6, "nowhere.txt"), (7, "pipe")]:
        write_sample(folder, f"00001/00001000{number}.jpg", None)
        (folder / f"00001/00001000{number}.txt").symlink_to(tmp_path / target)
    (tmp_path / "elsewhere.txt").write_text("a link's text")
    os.mkfifo(tmp_path / "pipe")
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
    reasons = {path.name: reason for path, reason in found.unreadable.items()}
    numbers = ("00002", "10000", "10003", "10006", "10007")
    assert list(reasons) == [f"0000{n}.jpg" for n in numbers]
    assert "failed_to_resize" in reasons["000000002.jpg"]
    assert "found none" in reasons["000010000.jpg"] and "UTF-8" in reasons["000010003.jpg"]
    for number, target in [(6, "nowhere.txt"), (7, "pipe")]:
        reason = reasons[f"00001000{number}.jpg"]
        assert f"000010{number:03d}.txt (a link to {tmp_path / target}) failed" in reason
    assert list(found.broken_rows) == [
        "00001/000010002.json",
        "00001/000010008.json",
        "00001/000010004.txt",
    ]
    assert "a link to" in found.broken_rows["00001/000010008.json"]


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


def test_pictures_of_linked_folders_are_read_and_counted(tmp_path) -> None:
    for folder in ("store", "data"):
        (tmp_path / folder).mkdir()
    write_sample(tmp_path / "store", "a.jpg", "a cat")
    write_sample(tmp_path / "data", "b.jpg", "a dog")
    (tmp_path / "data/cats").symlink_to(tmp_path / "store")
    found = read_files(tmp_path / "data")
    assert sorted(found.dataset.texts) == ["a cat", "a dog"] and found.linked == 1


def test_files_need_a_folder_and_no_other_one(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"Expected a folder of pictures, got .*none"):
        read_files(tmp_path / "none")
    with pytest.raises(ValueError, match=r"leave --images \(images= in Python\) out"):
        read_files(tmp_path, tmp_path.parent)
