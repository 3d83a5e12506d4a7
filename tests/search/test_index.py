"""An index on disk does what a list of names and vectors does, whatever happens in between."""

import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn.functional import normalize

from dclip_kit.runtime.files import load_tensors
from dclip_kit.search import index as search_index
from dclip_kit.search.index import Hits, SearchIndex

IDS = ["a", "b", "ü\n", "d"]
VECTORS = torch.tensor([[1.0, 0], [0, 2], [3, 3], [-1, 0]])
QUERIES = torch.tensor([[1.0, 0.5], [0.0, -9]])


@pytest.fixture
def index(tmp_path) -> SearchIndex:
    found = SearchIndex(tmp_path / "index")
    found.append(IDS, VECTORS)
    return found


def contents(index: SearchIndex) -> dict[str, list[float]]:
    """Its vectors by name, as somebody finds them who opens it anew."""
    again = SearchIndex(index.folder)
    rows = [row for row, gone in enumerate(again.left_out.tolist()) if not gone]
    vectors = again.take(torch.tensor(rows, dtype=torch.long)).tolist() if rows else []
    assert again.names == {again.ids[row] for row in rows} and len(again) == len(rows)
    assert again.state == index.state
    return {again.ids[row]: vector for row, vector in zip(rows, vectors, strict=True)}


def test_the_nearest_are_named_best_first(index) -> None:
    first, second = index.search(QUERIES, 3)
    assert first.ids == ("ü\n", "a", "b")
    assert first.scores == pytest.approx((1.5 / 2.5**0.5, 1 / 1.25**0.5, 0.5 / 1.25**0.5))
    assert second.ids == ("a", "d", "ü\n")  # a and d tie
    assert len(index.search(QUERIES, 99)[0].ids) == 4
    assert SearchIndex(index.folder).search(QUERIES, 3) == (first, second)


def test_vectors_are_kept_at_length_one_and_mapped(index) -> None:
    assert contents(index) == dict(zip(IDS, normalize(VECTORS).tolist(), strict=True))
    (file,) = index.folder.glob("*.safetensors")
    assert load_tensors(file)["vectors"].dtype == torch.float32
    if sys.platform == "linux":
        with open("/proc/self/maps") as maps:
            assert str(file) in maps.read()


def test_what_is_deleted_is_not_found(index) -> None:
    index.delete(["ü\n"])
    assert index.search(QUERIES, 3)[0].ids == ("a", "b", "d") and len(index) == 3
    index.delete(["a", "d"])
    assert contents(index) == {"b": [0, 1]}
    index.append(["a"], torch.tensor([[1.0, 1]]))
    assert index.search(QUERIES)[0].ids == ("a", "b")
    index.delete(["a", "b"])
    assert contents(index) == {}
    index.append(["wide"], torch.ones(1, 5))  # what is empty takes any width
    assert contents(index) == {"wide": [pytest.approx(5**-0.5)] * 5}


def test_a_name_that_is_there_gets_the_new_vector(index) -> None:
    index.append(["e", "a"], torch.tensor([[0.0, -1], [-1, -1]]))
    assert len(index) == 5 and index.search(QUERIES, 2)[1].ids == ("e", "a")
    assert index.search(QUERIES, 5)[0].ids == ("ü\n", "b", "e", "d", "a")


@pytest.mark.parametrize("shard_rows", [4, 2**17])
def test_it_holds_what_a_dict_holds(shard_rows, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(search_index, "SHARD_ROWS", shard_rows)
    draw, index, expected = random.Random(1), SearchIndex(tmp_path), {}
    for _ in range(60):
        names = draw.sample("abcdefghijklmnopqrstuvwxyz", draw.randint(0, 9))
        if draw.random() < 0.6:
            vectors = normalize(torch.randn(len(names), 3))
            index.append(names, vectors)
            for name, vector in zip(names, vectors.tolist(), strict=True):
                expected.pop(name, None)
                expected[name] = pytest.approx(vector)
        else:
            names = [name for name in names if name in expected]
            index.delete(names)
            for name in names:
                del expected[name]
        found = contents(index)
        assert list(found.items()) == list(expected.items())  # in this order, too
        assert all(len(shard) <= shard_rows for shard in index.vectors)
    query = torch.randn(2, 3)
    best = (query @ torch.tensor(list(found.values())).T).argsort(dim=1, descending=True)[:, :5]
    named = [tuple(list(found)[i] for i in row) for row in best.tolist()]
    assert [hits.ids for hits in index.search(query, 5)] == named


def test_many_small_appends_leave_few_files(tmp_path) -> None:
    index = SearchIndex(tmp_path)
    for number in range(33):
        index.append([str(number)], torch.randn(1, 3))
    assert [len(each) for each in index.vectors] == [32, 1]
    assert index.ids == [str(number) for number in range(33)]
    index.append([], torch.empty(0, 3))
    assert len(list(tmp_path.glob("*.safetensors"))) <= 3  # one of before the change, at most


@pytest.mark.parametrize("change", ["append", "delete"])
def test_a_crash_between_shard_and_index_loses_nothing(change, index, monkeypatch) -> None:
    before = contents(index)

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(search_index, "write_atomically", crash)
        with pytest.raises(KeyboardInterrupt):
            if change == "append":
                index.append(["e", "f"], torch.randn(2, 2))
            else:
                index.delete(["a", "b", "d"])
    assert contents(index) == before
    assert index.search(QUERIES, 4) == SearchIndex(index.folder).search(QUERIES, 4)
    assert len(list(index.folder.glob("*.safetensors"))) == 2
    (index.folder / "half.safetensors.0a.tmp").write_bytes(b"ha")
    index.append(["e", "f"], torch.eye(2))
    assert contents(index) == before | {"e": [1, 0], "f": [0, 1]}
    assert len(list(index.folder.glob("*.safetensors*"))) == 2


def test_a_crash_while_a_shard_is_written_loses_nothing(index, monkeypatch) -> None:
    before = contents(index)
    monkeypatch.setattr(search_index, "SHARD_ROWS", 2)
    written = []

    def cut_off(tensors, path):
        if written:
            raise OSError("No space left on device")
        written.append(save_tensors(tensors, path))

    save_tensors = search_index.save_tensors
    monkeypatch.setattr(search_index, "save_tensors", cut_off)
    with pytest.raises(OSError, match="No space"):
        index.append(["e", "f", "g"], torch.randn(3, 2))
    assert written and contents(index) == before


def test_writers_build_on_each_other_and_readers_keep_what_they_opened(index) -> None:
    other, reader = SearchIndex(index.folder), SearchIndex(index.folder)
    index.append(["e"], torch.eye(2)[:1])
    other.append(["f"], torch.eye(2)[:1])
    other.delete(["a"])
    index.delete(["b", "d"])
    assert contents(index).keys() == {"ü\n", "e", "f"}
    assert reader.search(QUERIES, 9)[0].ids == ("ü\n", "a", "b", "d")


def test_writers_wait_for_each_other(tmp_path) -> None:
    def write(name: str) -> None:
        index = SearchIndex(tmp_path)  # a lock of its own, as another process has
        for number in range(20):
            index.append([f"{name}{number}"], torch.randn(1, 3))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, "abc"))
    assert len(SearchIndex(tmp_path)) == 60


@pytest.mark.parametrize(
    ("method", "arguments", "says"),
    [
        ("append", (["e"], torch.ones(2, 2)), "each of 2 vectors, got 1, 0 of them again"),
        ("append", (["e", "e"], torch.ones(2, 2)), "each of 2 vectors, got 2, 1 of them again"),
        ("append", (["e"], torch.ones(1, 3)), "vectors of 2 numbers.*got 1 of 3"),
        ("append", (["e"], torch.tensor([[1, float("nan")]])), "1 of them not so"),
        ("append", (["e", "f"], torch.tensor([[1, float("inf")], [0.0, 0]])), "2 of them not so"),
        ("delete", (["a", "x"],), "1 of 2 are not, such as 'x'"),
        ("search", (torch.ones(1, 3),), "vectors of 2 numbers.*got 1 of 3"),
        ("search", (torch.tensor([[1, float("nan")]]),), "finite vectors"),
        ("search", (torch.zeros(1, 2),), "not all zeros"),
        ("search", (QUERIES, 0), "top_k from 1"),
    ],
)
def test_what_cannot_be_is_said_and_changes_nothing(method, arguments, says, index) -> None:
    before = contents(index)
    with pytest.raises(ValueError, match=says):
        getattr(index, method)(*arguments)
    assert contents(index) == before


def test_an_empty_index_says_so(tmp_path) -> None:
    index = SearchIndex(tmp_path / "new")
    with pytest.raises(ValueError, match=r"vectors in the index at .*new, found none"):
        index.search(QUERIES)
    assert len(index) == 0 and not (tmp_path / "new").exists()


def test_damage_is_said(index) -> None:
    (shard,) = index.folder.glob("*.safetensors")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-3])
    with pytest.raises(ValueError, match="damaged or cut short"):
        SearchIndex(index.folder)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="safetensors"):
        SearchIndex(index.folder)
    shard.write_bytes(whole)
    for text in ("{", "[]", '{"shards": [{"deleted": []}]}'):
        (index.folder / "index.json").write_text(text)
        with pytest.raises(ValueError, match=r"whole index at .*build it again"):
            SearchIndex(index.folder)


def test_the_record_says_what_counts(index) -> None:
    index.delete(["a"])
    record = json.loads((index.folder / "index.json").read_text())
    (file,) = index.folder.glob("*.safetensors")
    assert record == {"shards": [{"file": file.name, "deleted": [0]}]}
    assert isinstance(index.search(QUERIES)[0], Hits)
