"""Conceptual Captions: the published list over a download of img2dataset."""

import json
from pathlib import Path

import pytest
from PIL import Image

from dclip_kit.data.conceptual import read_conceptual


def write_sample(folder: Path, key: str, url: str | None, **note) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(folder / f"{key}.jpg")
    (folder / f"{key}.txt").write_text("the download's own text")
    if url is not None:
        note = {"url": url, "caption": "c", "key": key, "status": "success"} | note
    (folder / f"{key}.json").write_text(json.dumps(note))


@pytest.fixture
def tsv(tmp_path) -> Path:
    shard = tmp_path / "cc3m/00000"
    write_sample(shard, "000000000", "http://a/cat.jpg")
    write_sample(shard, "000000001", "http://a/dog.jpg?x=1")
    write_sample(shard, "000000002", "http://a/unlisted.jpg")
    write_sample(shard, "000000003", "http://a/bad.jpg", status="failed_to_download")
    write_sample(shard, "000000004", None)
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
    assert (found.dataset.source, found.empty_captions) == ("conceptual_captions", 1)
    first = 4 + bool(header)
    assert list(found.broken_rows) == [f"{tsv.name}:{n}" for n in range(first, first + 3)]
    assert found.broken_rows[f"{tsv.name}:{first}"] == (
        "its picture was not downloaded (http://a/gone.jpg)"
    )
    reasons = {path.name: reason for path, reason in found.unreadable.items()}
    assert set(reasons) == {f"00000000{n}.jpg" for n in (2, 3, 4, 5)}
    assert "'http://a/unlisted.jpg' is not there" in reasons["000000002.jpg"]
    assert "failed_to_download" in reasons["000000003.jpg"]


def test_the_download_may_lie_beside_the_list(tsv) -> None:
    assert len(read_conceptual(tsv.parent).dataset) == 2
    (tsv.parent / "second.tsv").write_text("")
    with pytest.raises(ValueError, match=r"Expected one .tsv in .*, got 2"):
        read_conceptual(tsv.parent)


def test_a_download_that_is_not_there_is_an_error(tsv) -> None:
    with pytest.raises(ValueError, match=r"Expected a folder of pictures, got .*none"):
        read_conceptual(tsv, tsv.parent / "none")
