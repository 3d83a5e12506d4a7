"""A folder's pictures are embedded once; new and changed ones again, and nothing else."""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
from PIL import Image

from dclip_kit.models.encode import encode_images
from dclip_kit.search import folder_index as index
from dclip_kit.search.folder_index import PictureIndex, find_pictures, index_pictures
from dclip_kit.search.index import search_images


@pytest.fixture
def folder(pictures, tmp_path) -> Path:
    place = tmp_path / "pictures"
    (place / "deep").mkdir(parents=True)
    for number, picture in enumerate(pictures):
        picture.save(place / ("deep" if number > 3 else "") / f"{number}.png")
    (place / "notes.txt").write_text("no picture")
    return place


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many pictures each encoding had."""
    counts: list[int] = []

    def counting(bundle, pictures, **more):
        counts.append(len(pictures))
        return encode_images(bundle, pictures, **more)

    monkeypatch.setattr(index, "encode_images", counting)
    return counts


def test_pictures_are_found_in_folders_or_alone(folder, tmp_path) -> None:
    found = [path.relative_to(folder).as_posix() for path in find_pictures(folder)]
    assert found == ["0.png", "1.png", "2.png", "3.png", "deep/4.png", "deep/5.png"]
    assert find_pictures(folder / "0.png") == [folder / "0.png"]
    with pytest.raises(ValueError, match=r"Expected pictures .* at .*nowhere or .*, found none"):
        find_pictures(folder / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"Expected pictures \(\.avif.*empty"):
        find_pictures(tmp_path / "empty")


def test_pictures_are_found_through_links_and_no_link_is_a_trap(folder, tmp_path) -> None:
    (tmp_path / "else").mkdir()
    shutil.copy(folder / "0.png", tmp_path / "else/a.png")
    (folder / "linked").symlink_to(tmp_path / "else")
    (tmp_path / "else/back").symlink_to(folder)
    (folder / "b.png").symlink_to(tmp_path / "else/a.png")
    found = {path.relative_to(folder).as_posix() for path in find_pictures(folder)}
    own = {"0.png", "1.png", "2.png", "3.png", "deep/4.png", "deep/5.png"}
    assert found == own | {"b.png", "linked/a.png"}


def features(found: PictureIndex) -> torch.Tensor:
    """The vectors of an index, in the order of its paths."""
    assert len(found.vectors) == len(found.paths)
    return found.vectors


def test_the_features_are_the_pictures_own(folder, clip, cache) -> None:
    found = index_pictures(clip, folder, cache)
    assert list(found.paths) == find_pictures(folder)
    torch.testing.assert_close(features(found), encode_images(clip, found.paths))
    assert (found.embedded, found.unreadable) == (6, {})


def test_a_search_finds_places_among_the_paths(folder, clip, cache) -> None:
    for old, new in (("0.png", "0.png"), ("0.png", "zzz.png")):  # then others' places change
        (folder / old).rename(folder / new)
        found, pictures = index_pictures(clip, folder, cache), find_pictures(folder)
        encoded = encode_images(clip, pictures)
        for query in encoded:
            every, hits = search_images(query, encoded, 99), found.search(query[None], 99)
            assert hits.images == every.images
            assert hits.scores == pytest.approx(every.scores, abs=1e-6)


def test_what_was_embedded_before_a_stop_is_kept(folder, clip, cache, monkeypatch) -> None:
    monkeypatch.setattr(index, "_BATCH", 4)

    def stop(bundle, pictures, **more):
        if len(pictures) < 4:
            raise KeyboardInterrupt
        return encode_images(bundle, pictures, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(index, "encode_images", stop)
        index_pictures(clip, folder, cache)
    found = index_pictures(clip, folder, cache)
    assert found.embedded == 2
    torch.testing.assert_close(features(found), encode_images(clip, found.paths))


def test_only_what_is_new_or_changed_is_embedded_again(
    folder, clip, cache, encoded, pictures
) -> None:
    first = index_pictures(clip, folder, cache)
    assert index_pictures(clip, folder, cache).embedded == 0 and encoded == [6]
    shutil.copy(folder / "0.png", folder / "new.png")
    pictures[5].save(folder / "1.png")
    os.utime(folder / "1.png", ns=(1, 1))
    (folder / "2.png").unlink()
    second = index_pictures(clip, folder, cache)
    assert (second.embedded, encoded) == (2, [6, 2])
    names = [path.name for path in second.paths]
    assert names == ["0.png", "1.png", "3.png", "new.png", "4.png", "5.png"]
    torch.testing.assert_close(features(second), encode_images(clip, second.paths))
    assert torch.equal(features(second)[0], features(first)[0])
    assert len(list(cache.glob("*/*"))) == 1  # one file, however many batches there were
    assert index_pictures(clip, folder, cache).embedded == 0


def test_pictures_that_exchange_names_exchange_vectors(tmp_path, clip, cache, encoded) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    for name, color in (("a.bmp", "red"), ("b.bmp", "blue"), ("c.bmp", "lime")):
        Image.new("RGB", (32, 32), color).save(folder / name)
        os.utime(folder / name, ns=(5, 5))
    index_pictures(clip, folder, cache)
    for old, new in (("a.bmp", "x"), ("b.bmp", "a.bmp"), ("x", "b.bmp")):
        (folder / old).rename(folder / new)
    found = index_pictures(clip, folder, cache)
    torch.testing.assert_close(features(found), encode_images(clip, found.paths))
    assert encoded == [3, 2]


def test_what_only_looks_new_is_not_embedded_again(folder, clip, cache, encoded) -> None:
    index_pictures(clip, folder, cache)
    for path in find_pictures(folder):
        os.utime(path, ns=(7, 7))
    assert index_pictures(clip, folder, cache).embedded == 0 and encoded == [6]


def test_two_that_index_one_folder_take_turns(folder, clip, cache, encoded, monkeypatch) -> None:
    """The second begins while the first one embeds, waits, and finds the work done."""
    began, counting = Event(), index.encode_images

    def slowly(bundle, pictures, **more):
        began.set()
        time.sleep(0.5)
        return counting(bundle, pictures, **more)

    monkeypatch.setattr(index, "encode_images", slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(index_pictures, clip, folder, cache)
        assert began.wait(60)
        second = pool.submit(index_pictures, clip, folder, cache)
        assert (first.result().embedded, second.result().embedded) == (6, 0)
    assert encoded == [6]


def test_another_model_has_features_of_its_own(folder, clip, cache, encoded) -> None:
    index_pictures(clip, folder, cache)
    with torch.no_grad():
        clip.model.visual.proj += 0.1
    assert index_pictures(clip, folder, cache).embedded == 6
    assert len(list(cache.glob("*"))) == 2
    assert index_pictures(replace(clip, precision="bf16"), folder, cache).embedded == 6
    assert len(list(cache.glob("*"))) == 3


def test_what_cannot_be_read_is_named_and_found_once_mended(folder, clip, cache) -> None:
    shutil.copy(folder / "0.png", folder / "broken.png")
    (folder / "broken.png").write_bytes(b"no")
    (folder / "link.png").symlink_to(folder / "gone.png")
    found = index_pictures(clip, folder, cache)
    assert {path.name for path in found.unreadable} == {"broken.png", "link.png"}
    assert len(found.paths) == len(features(found)) == 6
    shutil.copy(folder / "0.png", folder / "broken.png")
    found = index_pictures(clip, folder, cache)
    assert (found.embedded, len(found.paths)) == (1, 7)


def test_nothing_readable_says_so(clip, tmp_path, cache) -> None:
    (tmp_path / "a.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"pictures that can be read in .*a\.png"):
        index_pictures(clip, tmp_path, cache)


def test_a_damaged_cache_is_made_again(folder, clip, cache, encoded) -> None:
    index_pictures(clip, folder, cache)
    for damage in (lambda whole: whole[:-5], lambda whole: b"", lambda whole: whole[:100]):
        (file,) = cache.glob("*/*")
        file.write_bytes(damage(file.read_bytes()))
        assert index_pictures(clip, folder, cache).embedded == 6
        assert index_pictures(clip, folder, cache).embedded == 0


def test_of_a_damaged_part_only_its_own_pictures_are_embedded_again(
    folder, clip, cache, monkeypatch
) -> None:
    monkeypatch.setattr(index, "_BATCH", 2)

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        index_pictures(clip, folder, cache, on_batch=stop)
    first, _ = cache.glob("*/*.safetensors")
    first.write_bytes(first.read_bytes()[:-5])
    (first.parent / f".{first.name}.0a.tmp").write_bytes(b"ha")  # of a crash while it was written
    found = index_pictures(clip, folder, cache)
    assert found.embedded == 4
    torch.testing.assert_close(features(found), encode_images(clip, found.paths))
    assert len(list(cache.glob("*/*"))) == 1


def test_a_crash_while_one_file_is_made_of_all_loses_nothing(
    folder, clip, cache, monkeypatch
) -> None:
    """Nor do vectors that are in two files, as where a file could not be deleted."""
    first = index_pictures(clip, folder, cache)
    (old,) = cache.glob("*/*")
    kept = old.read_bytes()
    (folder / "0.png").unlink()

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(index, "save_tensors", crash)
        index_pictures(clip, folder, cache)
    assert old.read_bytes() == kept
    assert index_pictures(clip, folder, cache).embedded == 0 and not old.exists()
    old.write_bytes(kept)
    found = index_pictures(clip, folder, cache)
    assert found.embedded == 0 and torch.equal(features(found), features(first)[1:])


def test_a_query_that_cannot_be_is_refused(folder, clip, cache) -> None:
    found = index_pictures(clip, folder, cache)
    query = features(found)[:1]
    for bad, top_k, says in (
        (query[:, 1:], 3, "vectors of .* numbers"),
        (0 * query, 3, "not all zeros"),
        (query / 0, 3, "finite"),
        (query, 0, "top_k from 1"),
    ):
        with pytest.raises(ValueError, match=says):
            found.search(bad, top_k)


def test_the_cache_is_the_users(folder, clip, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path / "mine"))
    index_pictures(clip, folder)
    assert len(list((tmp_path / "mine/search").glob("*/*.safetensors"))) == 1


def test_work_that_is_stopped_between_batches_keeps_what_is_embedded(
    clip, folder, cache, encoded, monkeypatch
) -> None:
    monkeypatch.setattr(index, "_BATCH", 2)
    told = []

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if done == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        index_pictures(clip, folder, cache, on_batch=stop)
    assert told == [(0, 6), (2, 6), (4, 6)] and encoded == [2, 2]
    again = index_pictures(clip, folder, cache, on_batch=lambda *step: told.append(step))
    assert told[3:] == [(0, 2)] and encoded == [2, 2, 2]
    assert len(again.paths) == 6 and again.embedded == 2


def test_of_equal_scores_the_earlier_comes_first_rescored_or_not() -> None:
    features = torch.eye(3).repeat(40, 1)
    paths = tuple(Path(f"{number}.png") for number in range(len(features)))
    found = PictureIndex(paths, features, {}, 0, 0)
    for references in (None, torch.eye(3)):
        hits = found.search(torch.eye(3)[:1], 5, references)
        assert hits.images == (0, 3, 6, 9, 12)
