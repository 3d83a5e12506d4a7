"""Exact search in memory and on disk, against plain sorting and vectors written by hand."""

import json
import re
import sys
import warnings

import jaxtyping
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from dclip_kit.runtime.files import load_tensors
from dclip_kit.search import index as search_index
from dclip_kit.search.index import (
    Hits,
    SearchIndex,
    find_nearest,
    related_share,
    search_images,
)

# In memory


IMAGES = torch.tensor([[1.0, 0], [0, 2], [3, 3], [-1, 0]])
QUERY = torch.tensor([1.0, 0.5])  # cosines with these: .894, .447, .949, -.894


def test_the_nearest_come_first_whatever_their_length() -> None:
    found = search_images(QUERY, IMAGES, 3)
    assert found.images == (2, 0, 1)
    assert found.scores == pytest.approx((1.5 / 2.5**0.5, 1 / 1.25**0.5, 0.5 / 1.25**0.5))
    assert search_images(100 * QUERY, IMAGES, 3).images == found.images


def test_one_query_may_be_a_vector_or_a_row(index) -> None:
    expected = search_images(QUERY, IMAGES, 3)
    assert search_images(QUERY[None], IMAGES, 3) == expected
    assert index.search(QUERIES[0], 3) == index.search(QUERIES[:1], 3)


def test_what_is_left_out_is_not_found() -> None:
    assert search_images(QUERY, IMAGES, 4, [2, 1]).images == (0, 3)
    assert isinstance(search_images(QUERY, IMAGES, 99), Hits)
    assert search_images(QUERY, IMAGES, 99).images == (2, 0, 1, 3)
    assert search_images(QUERY, IMAGES, 1, [2, 2, 7]).images == (0,)


def test_a_search_does_not_copy_the_pictures_vectors(monkeypatch) -> None:
    given, images = [], torch.eye(4)

    def find(queries, candidates, top_k):
        given.append(candidates)
        return find_nearest(queries, candidates, top_k)

    monkeypatch.setattr(search_index, "find_nearest", find)
    search_images(images[0], images, 2, [0])
    assert given[0][0].data_ptr() == images.data_ptr()


THINGS = [frozenset(names) for names in (("dog", "cup"), ("cup",), ("dog",), ("kite",))]


def test_a_picture_does_not_count_as_its_own_neighbour() -> None:
    # Nearest to each: 2 to 0, 2 to 1, 0 (ties with 1) to 2, 1 to 3.
    images = torch.tensor([[1.0, 0], [0, 1], [1, 0.9], [-1, 0.1]])
    assert related_share(images, THINGS, 1).tolist() == [1, 0, 1, 0]
    every = related_share(images, THINGS, 3).tolist()
    assert every == pytest.approx([2 / 3, 1 / 3, 1 / 3, 0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"query": torch.ones(3)}, "vectors of 3 numbers.*got 4 of 2"),
        ({"query": torch.zeros(2)}, "not all zeros"),
        ({"query": torch.tensor([1.0, float("nan")])}, "finite"),
        ({"top_k": 0}, "top_k from 1.*got 0"),
        ({"leave_out": [0, 1, 2, 3]}, "something to find, got 0"),
        ({"image_features": torch.full((3, 2), float("inf"))}, "3 of them not finite"),
    ],
)
def test_a_search_that_cannot_be_says_why(change, says) -> None:
    with pytest.raises(ValueError, match=says):
        search_images(**{"query": QUERY, "image_features": IMAGES, "top_k": 2} | change)


def test_other_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="got 3 and 1"):
        related_share(IMAGES, THINGS[:3], 1)
    with pytest.raises(ValueError, match="got 4 and 4"):
        related_share(IMAGES, THINGS, 4)


# The nearest


def sort_slowly(queries, candidates, top_k):
    """By score, then by index; one pair after the other."""
    rows = []
    for query in queries.tolist():
        scored = [
            (-sum(a * b for a, b in zip(query, each, strict=True)), index)
            for index, each in enumerate(candidates.tolist())
        ]
        rows.append([index for _, index in sorted(scored)[:top_k]])
    return rows


@pytest.mark.parametrize("scores_at_once", [4, 40, 2**22])
@pytest.mark.parametrize("top_k", [1, 5, 1000])
def test_it_finds_what_sorting_finds(top_k, scores_at_once, monkeypatch) -> None:
    monkeypatch.setattr(search_index, "_QUERIES", 4)
    monkeypatch.setattr(search_index, "_SCORES", scores_at_once)
    # Small whole numbers: products are exact in any order, and most scores tie.
    queries, candidates = (
        torch.randint(-2, 3, (7, 3)).float(),
        torch.randint(-2, 3, (83, 3)).float(),
    )
    scores, rows = find_nearest(queries, candidates.split([1, 50, 0, 32]), top_k)
    assert rows.tolist() == sort_slowly(queries, candidates, top_k)
    torch.testing.assert_close(scores, (queries @ candidates.T).gather(1, rows))


def test_scores_that_differ_are_in_order(monkeypatch) -> None:
    monkeypatch.setattr(search_index, "_SCORES", 5 * 700)
    queries, candidates = torch.randn(5, 8), torch.randn(5000, 8)
    found, expected = find_nearest(queries, [candidates], 20), (queries @ candidates.T).topk(20)
    assert torch.equal(found[1], expected.indices)
    torch.testing.assert_close(found[0], expected.values)
    below = find_nearest(-queries.abs(), [candidates.abs()], 20)[1]
    assert torch.equal(below, (-queries.abs() @ candidates.abs().T).topk(20).indices)


def test_equal_vectors_come_in_the_order_they_stand_in() -> None:
    found = find_nearest(torch.ones(2, 4), [torch.ones(3000, 4)], 7)[1]
    assert found.tolist() == [list(range(7))] * 2
    zeros = torch.tensor([[0.0, 1], [-1, 0], [1, 0], [0, -1]])  # of either sign, as products
    assert find_nearest(torch.tensor([[1.0, 0]]), [zeros], 4)[1].tolist() == [[2, 0, 3, 1]]


def test_half_precision_gradients_and_no_queries() -> None:
    images = torch.nn.Parameter(torch.randn(40, 8))
    expected = search_images(images[3].detach(), images.detach(), 3).images
    assert search_images(images[3], images, 3).images == expected
    assert search_images(images[3].half(), images.half(), 3).images == expected
    for many in ([torch.ones(40, 8)], [torch.ones(40, 8)] * 60):
        assert find_nearest(torch.empty(0, 8), many, 3)[1].shape == (0, 3)


@pytest.mark.parametrize("candidates", [[], [torch.empty(0, 8)]])
def test_nothing_to_find_is_said(candidates) -> None:
    with pytest.raises(ValueError, match="something to find, got 0; add vectors"):
        find_nearest(torch.ones(3, 8), candidates, 2)


# On disk

IDS = ["a", "b", "ü\n", "d"]
QUERIES = torch.tensor([[1.0, 0.5], [0.0, -9]])


@pytest.fixture
def index(tmp_path) -> SearchIndex:
    found = SearchIndex(tmp_path / "index")
    found.append(IDS, IMAGES)
    return found


def contents(index: SearchIndex) -> dict[str, list[float]]:
    """Its vectors by name, as somebody finds them who opens it anew."""
    again = SearchIndex(index.folder)
    assert (again.ids, again.width) == (index.ids, index.width)
    assert list(again.shards) == list(index.shards)
    vectors = [vector for shard in again.shards.values() for vector in shard.tolist()]
    return dict(zip(again.ids, vectors, strict=True))


def test_the_nearest_are_named_best_first(index) -> None:
    first, second = index.search(QUERIES, 3)
    assert first.ids == ("ü\n", "a", "b")
    assert (first.images, first.scores) == (
        (2, 0, 1),
        pytest.approx((1.5 / 2.5**0.5, 1 / 1.25**0.5, 0.5 / 1.25**0.5)),
    )
    assert second.ids == ("a", "d", "ü\n")  # a and d tie
    assert len(index.search(QUERIES, 99)[0].ids) == len(index) == 4
    assert index.search(QUERIES[:0]) == ()
    assert SearchIndex(index.folder).search(QUERIES, 3) == (first, second)


def test_vectors_are_kept_at_length_one_and_mapped(index) -> None:
    assert contents(index) == dict(zip(IDS, normalize(IMAGES).tolist(), strict=True))
    (file,) = index.folder.glob("*.safetensors")
    assert load_tensors(file)["vectors"].dtype == torch.float32
    if sys.platform == "linux":
        with open("/proc/self/maps") as maps:
            assert str(file) in maps.read()


def test_appended_shards_are_searched_as_one_list(tmp_path) -> None:
    index, vectors = SearchIndex(tmp_path), normalize(torch.randn(30, 3))
    for rows in torch.arange(30).split([1, 20, 9]):
        index.append([str(row) for row in rows.tolist()], vectors[rows])
    assert [len(shard) for shard in index.shards.values()] == [1, 20, 9]
    queries = torch.randn(2, 3)
    best = (queries @ vectors.T).topk(5).indices.tolist()
    for each in (index, SearchIndex(tmp_path)):
        assert [hits.images for hits in each.search(queries, 5)] == [tuple(row) for row in best]
        assert [hits.ids for hits in each.search(queries, 5)] == [
            tuple(str(i) for i in row) for row in best
        ]


def test_a_rewritten_index_holds_what_was_named_in_that_order(index) -> None:
    before = contents(index)
    index.append(["e"], torch.tensor([[0.0, -1]]))
    index.rewrite(["e", "d", "a"])
    assert list(contents(index).items()) == [("e", [0, -1]), ("d", before["d"]), ("a", before["a"])]
    assert len(index.shards) == 1 and index.search(QUERIES, 2)[1].ids == ("e", "d")
    index.append(["b"], torch.tensor([[1.0, 0]]))  # the name is free again
    assert index.ids == ["e", "d", "a", "b"]


def test_an_empty_index_may_be_rewritten(tmp_path) -> None:
    index = SearchIndex(tmp_path)
    index.rewrite([])
    assert len(index) == 0


def test_a_reader_keeps_what_it_opened_and_files_on_no_list_go(index) -> None:
    reader = SearchIndex(index.folder)
    index.append(["e"], torch.eye(2)[:1])
    index.rewrite(["e"])
    assert reader.search(QUERIES, 9)[0].ids == ("ü\n", "a", "b", "d")
    (index.folder / ".half.safetensors.0a.tmp").write_bytes(b"ha")
    index.rewrite(["e"])
    assert len(list(index.folder.glob("*.safetensors*"))) == 2  # this one's and the last one's


@pytest.mark.parametrize("change", ["append", "rewrite"])
@pytest.mark.parametrize("cut_off", ["save_tensors", "write_atomically"])
def test_a_crash_while_writing_loses_nothing(change, cut_off, index, monkeypatch) -> None:
    before = contents(index)

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(search_index, cut_off, crash)
        with pytest.raises(KeyboardInterrupt):
            if change == "append":
                index.append(["e", "f"], torch.randn(2, 2))
            else:
                index.rewrite(["a"])
    assert contents(index) == before
    assert index.search(QUERIES, 4) == SearchIndex(index.folder).search(QUERIES, 4)
    index.append(["e", "f"], torch.eye(2))
    assert contents(index) == before | {"e": [1, 0], "f": [0, 1]}


@pytest.mark.parametrize(
    ("method", "arguments", "says"),
    [
        ("append", (["e"], torch.ones(2, 2)), "got 2 vectors and 1 names, 1 of them new"),
        ("append", (["e", "e"], torch.ones(2, 2)), "got 2 vectors and 2 names, 1 of them new"),
        ("append", (["e", "a"], torch.ones(2, 2)), "got 2 vectors and 2 names, 1 of them new"),
        ("append", ([], torch.ones(0, 2)), "one vector or more, got 0"),
        ("append", (["e"], torch.ones(1, 3)), "vectors of 2 numbers.*got 1 of 3"),
        ("append", (["e"], torch.tensor([[1, float("nan")]])), "1 of them not finite"),
        (
            "append",
            (["e", "f"], torch.tensor([[1, float("inf")], [0.0, 0]])),
            "2 of them not finite",
        ),
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


@pytest.mark.parametrize(
    ("method", "arguments", "says"),
    [
        ("append", ("xy", torch.eye(2)), "ids.*'xy'"),
        ("append", ("x", torch.eye(2)[:1]), "ids.*'x'"),
        ("append", ([7, "e"], torch.eye(2)), "ids.*got 7;"),
        ("append", (np.array([7, 8]), torch.eye(2)), r"ids.*got np.int64\(7\);|ids.*got 7;"),
        ("append", ([None], torch.eye(2)[:1]), "ids.*None"),
        ("append", (["e", "f"], torch.ones(2)), "1 vectors and 2 names"),
        ("append", (["e"], torch.ones(1, 1, 2)), "got 1 of 1 of 2"),
        ("rewrite", ("abd",), "ids.*'abd'"),
        ("rewrite", ([0],), "ids.*got 0;"),
        ("rewrite", (["a", "nope"],), "got 'nope'"),
        ("rewrite", (["a", "b", "a"],), "each once, got 'a'"),
        ("search", (torch.ones(1, 1, 2),), "got 1 of 1 of 2"),
    ],
)
def test_what_cannot_be_is_said_without_type_checks(method, arguments, says, index, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as people's programs run
    before, orphan = contents(index), index.folder / ".half.safetensors.0a.tmp"
    orphan.write_bytes(b"ha")
    with pytest.raises(ValueError, match=says) as error:
        getattr(index, method)(*arguments)
    assert re.fullmatch(r"Expected .*, got .*; .*\.", str(error.value))
    assert contents(index) == before and orphan.exists()


def test_arrays_of_numpy_are_searched_as_tensors_are(index, tmp_path) -> None:
    found = SearchIndex(tmp_path / "arrays")
    found.append(IDS, IMAGES.double().numpy())
    assert contents(found) == contents(index)
    for queries in (QUERIES, QUERIES[0]):
        assert found.search(queries.numpy(), 3) == index.search(queries, 3)
    expected = search_images(QUERY, IMAGES, 3, [2])
    assert search_images(QUERY.numpy(), IMAGES.numpy(), 3, [2]) == expected
    expected = related_share(IMAGES, THINGS, 1).tolist()
    assert related_share(IMAGES.numpy(), THINGS, 1).tolist() == expected


def test_an_empty_index_says_so(tmp_path) -> None:
    index = SearchIndex(tmp_path / "new")
    with pytest.raises(ValueError, match="something to find, got 0; add vectors"):
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
    for text in ("{", "[7]", "7"):
        (index.folder / "index.json").write_text(text)
        with pytest.raises(ValueError, match=r"whole index at .*build it again"):
            SearchIndex(index.folder)


def test_the_list_names_the_shards_that_count(index) -> None:
    (file,) = index.folder.glob("*.safetensors")
    assert json.loads((index.folder / "index.json").read_text()) == [file.name]
    assert isinstance(index.search(QUERIES)[0], Hits)


def test_files_of_others_in_the_folder_are_passed_over(index) -> None:
    """Such as those that faiss writes."""
    before = contents(index)
    (index.folder / "one.faiss").write_bytes(b"IwFl")
    assert contents(index) == before
    index.append(["e"], torch.eye(2)[:1])
    index.rewrite(["e", "d"])
    assert contents(index) == {"e": [1, 0], "d": before["d"]}


def test_among_too_many_it_searches_exactly_and_says_once_what_faiss_can_read(
    index, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(search_index, "_MANY", 4)
    with warnings.catch_warnings(action="error"):
        expected = index.search(QUERIES, 3)
    monkeypatch.setattr(search_index, "_MANY", 3)
    with pytest.warns(UserWarning) as told:
        assert index.search(QUERIES, 3) == index.search(QUERIES, 3) == expected
    (message,) = (str(each.message) for each in told)
    for part in (" 4 vectors", "faiss", str(index.folder), "safetensors", "`vectors`", "`ids`"):
        assert part in message
    assert capsys.readouterr().out == ""  # where `search --json` writes


def test_plain_safetensors_and_json_read_the_shards(index) -> None:
    index.append(["e"], torch.tensor([[0.0, -1]]))
    names = json.loads((index.folder / "index.json").read_text())
    shards = [load_file(index.folder / name) for name in names]
    assert [name for each in shards for name in json.loads(bytes(each["ids"]))] == [*IDS, "e"]
    vectors = torch.cat([each["vectors"] for each in shards])
    assert torch.equal(vectors, normalize(torch.cat([IMAGES, torch.tensor([[0.0, -1]])])))
