"""One look at each picture, remembered for as long as it stays what it was."""

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from PIL import Image

from dclip_kit.data import inspect_data, pictures
from dclip_kit.data.pictures import Scan, open_picture, scan_pictures
from dclip_kit.data.splits import read_splits, read_test
from tests.data.test_leaks import scene
from tests.data.test_splits import write_own


@pytest.fixture
def opened(monkeypatch, tmp_path) -> list[Path]:
    """Which pictures were opened, with nothing remembered from before."""
    monkeypatch.setattr(pictures, "cache_path", (tmp_path / "cache").joinpath)
    found: list[Path] = []
    monkeypatch.setattr(
        pictures, "open_picture", lambda path: found.append(path) or open_picture(path)
    )
    return found


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
    paths = [tmp_path / "ab"[seed % 2] / f"{seed}.png" for seed in range(6)]
    for seed, path in enumerate(paths):
        scene(seed).save(path)
    return paths


def test_a_scan_tells_what_a_picture_is(paths, opened, tmp_path) -> None:
    scene(0).save(tmp_path / "same.tif")
    Image.new("RGB", (9, 9), "navy").save(tmp_path / "plain.png")
    (tmp_path / "cut.png").write_bytes(paths[0].read_bytes()[:-60])
    others = [tmp_path / name for name in ("same.tif", "plain.png", "cut.png", "gone.png")]
    first, second, *_, same, plain, cut, gone = scan_pictures([*paths, *others])
    assert first.digest == hashlib.sha256(paths[0].read_bytes()).hexdigest()
    assert first.pixels == same.pixels != second.pixels and first.digest != same.digest
    assert first.phash == same.phash != second.phash and len(first.phash) == 16
    assert plain.phash == "" and plain.pixels and not plain.problem
    assert "cut.png" in cut.problem and "gone.png" in gone.problem


def test_what_is_known_is_not_looked_at_again(paths, opened) -> None:
    found = scan_pictures(paths)
    assert sorted(opened) == sorted(paths)
    opened.clear()
    assert scan_pictures(paths[::-1]) == found[::-1] and not opened
    assert scan_pictures(paths, decode=False) == found and not opened


def test_what_has_changed_is_looked_at_again(paths, opened) -> None:
    before = scan_pictures(paths)
    opened.clear()
    scene(77).save(paths[3])
    os.utime(paths[3], ns=(1, 2))
    after = scan_pictures(paths)
    assert opened == [paths[3]] and after[3] != before[3]
    assert [a for i, a in enumerate(after) if i != 3] == [b for i, b in enumerate(before) if i != 3]


def test_a_picture_replaced_in_place_is_looked_at_again(paths, opened, tmp_path) -> None:
    """As `cp -p`, `rsync -t` and archives with fixed times do."""
    for path in paths:
        scene(int(path.stem)).save(path, format="BMP")  # all of one size
        os.utime(path, ns=(5, 5))
    before = scan_pictures(paths)
    opened.clear()
    shutil.copy2(paths[0], tmp_path / "copy.png")  # over the old one, whose place it takes
    shutil.copy2(tmp_path / "copy.png", paths[1])
    os.replace(paths[2], tmp_path / "moved.png")  # in place of the old one
    os.replace(paths[3], paths[2])
    os.replace(tmp_path / "moved.png", paths[3])
    assert {path.stat().st_mtime_ns for path in paths} == {5}
    for decode in (False, True):
        after = scan_pictures(paths, decode=decode)
        assert [each.digest for each in after[:4]] == [before[i].digest for i in (0, 0, 3, 2)]
    assert after == [before[i] for i in (0, 0, 3, 2, *range(4, len(paths)))]
    assert sorted(opened) == sorted(paths[1:4])


def test_a_file_that_only_looks_new_is_read_and_not_decoded(paths, opened) -> None:
    before = scan_pictures(paths)
    opened.clear()
    for path in paths:
        path.chmod(0o600)
        os.utime(path, ns=(7, 7))
    assert scan_pictures(paths) == before and not opened


def test_what_is_no_file_is_told_and_not_read(opened, tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    odd = [tmp_path / f"{name}.png" for name in ("pipe", "zero", "folder")]
    for decode in (False, True):
        for scan in scan_pictures(odd, decode=decode):
            assert "it is no file" in scan.problem and not scan.digest


def test_a_problem_is_not_remembered(paths, opened) -> None:
    content = paths[2].read_bytes()
    paths[2].write_bytes(content[:-60])
    assert scan_pictures(paths)[2].problem
    opened.clear()
    paths[2].write_bytes(content)
    assert not scan_pictures(paths)[2].problem and opened == [paths[2]]


def test_files_that_were_only_read_are_decoded_when_it_is_asked_for(paths, opened) -> None:
    read = scan_pictures(paths, decode=False)
    assert not opened and read[0] == Scan(hashlib.sha256(paths[0].read_bytes()).hexdigest())
    assert all(each.pixels for each in scan_pictures(paths)) and sorted(opened) == sorted(paths)


def test_a_hash_that_could_not_be_made_is_made_later(paths, opened, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "imagehash", None)
        assert {each.phash for each in scan_pictures(paths)} == {None}
        opened.clear()
        scan_pictures(paths)
        assert not opened
    assert all(each.phash for each in scan_pictures(paths)) and len(opened) == len(paths)


@pytest.mark.parametrize(
    "content",
    [
        *("", "nonsense", "[]", "5", "null", '"text"', "{}", "[" * 100_000),
        '{"0.png": ["1 2", "digest", "pixels", "phash", ""], "1.png": 5}',  # an earlier version's
        '{"format": "dclip-kit scans 2", "seen": {"0.png": ["1 2"], "1.png": {}}}',
        '{"format": "dclip-kit scans 2", "seen": [1]}',
    ],
)
def test_a_damaged_memory_is_made_again(content, paths, opened, tmp_path) -> None:
    found = scan_pictures(paths)
    for file in (tmp_path / "cache" / "scans").iterdir():
        file.write_text(content)
    opened.clear()
    assert scan_pictures(paths) == found and sorted(opened) == sorted(paths)


def test_what_was_looked_at_before_a_stop_is_kept(paths, opened, monkeypatch) -> None:
    def stop(path: Path) -> Image.Image:
        if path == paths[4]:
            raise KeyboardInterrupt
        return open_picture(path)

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "open_picture", stop)
        patch.setattr(pictures, "count_workers", lambda most: 1)
        with pytest.raises(KeyboardInterrupt):
            scan_pictures(paths)
    opened.clear()
    scan_pictures(paths)
    assert set(opened) == set(paths[4:])


def test_several_threads_look(paths, opened, monkeypatch) -> None:
    together = threading.Barrier(2, timeout=60)

    def wait(path: Path) -> Image.Image:
        together.wait()  # which a single thread would never leave
        return open_picture(path)

    monkeypatch.setattr(pictures, "open_picture", wait)
    assert not any(each.problem for each in scan_pictures(paths))


def test_a_start_opens_each_picture_once_and_the_next_none(opened, tmp_path) -> None:
    own = write_own(tmp_path / "own", range(60))
    read_splits(own)
    assert sorted(opened) == sorted(own.glob("*.png"))
    opened.clear()
    read_splits(own)
    read_test(own)
    inspect_data(own)
    assert not opened


def test_names_that_are_no_text_are_remembered(opened, tmp_path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    try:
        scene(1).save(path)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    before = scan_pictures([path])
    assert scan_pictures([path]) == before and opened == [path]
    (kept,) = (tmp_path / "cache" / "scans").iterdir()
    assert [*json.loads(kept.read_text())["seen"]] == [path.name]


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(opened, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(pictures, "cache_path", (tmp_path / "file").joinpath)  # no folder
    Image.new("RGB", (8, 8), "red").save(tmp_path / "1.png")
    for _ in range(2):
        with pytest.warns(UserWarning, match=f"again each time.*{tmp_path}.*DCLIP_CACHE"):
            (seen,) = scan_pictures([tmp_path / "1.png"])
        assert seen.pixels and not seen.problem
    assert len(opened) == 2
