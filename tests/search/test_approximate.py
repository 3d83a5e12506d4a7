"""Approximate search against exact search; what it was built on, and what it says it finds."""

import builtins
import json

import pytest
import torch
from torch.nn.functional import normalize

from dclip_kit.search.approximate import ApproximateIndex
from dclip_kit.search.index import SearchIndex

faiss = pytest.importorskip("faiss")


@pytest.fixture
def index(tmp_path) -> SearchIndex:
    """Four thousand vectors around forty, in two shards, some of them deleted."""
    centres = torch.randn(40, 16)
    vectors = centres.repeat(100, 1) + 0.5 * torch.randn(4000, 16)
    found = SearchIndex(tmp_path / "index")
    found.append([f"v{i}" for i in range(3000)], vectors[:3000])
    found.append([f"v{i}" for i in range(3000, 4000)], vectors[3000:])
    found.delete([f"v{i}" for i in range(0, 4000, 7)])
    return found


def recall(approximate: ApproximateIndex, queries: torch.Tensor) -> float:
    exact, found = (each.search(queries) for each in (approximate.index, approximate))
    pairs = zip(exact, found, strict=True)
    return sum(len(set(a.ids) & set(b.ids)) for a, b in pairs) / (10 * len(queries))


def test_it_finds_what_it_says(index) -> None:
    queries = torch.randn(400, 16)
    approximate = ApproximateIndex.build(index, queries, recall=0.95)
    measured = approximate.measured
    assert (measured.lists, measured.queries) == (53, 200) and 1 < measured.probes < 53
    assert recall(approximate, queries[1::2]) == pytest.approx(measured.recall_at_10)
    assert recall(approximate, queries[::2]) >= 0.95 and measured.recall_at_10 > 0.9
    again = ApproximateIndex(SearchIndex(index.folder))
    assert again.measured == measured and again.search(queries) == approximate.search(queries)


def test_scores_are_exact_and_what_is_deleted_is_not_found(index) -> None:
    approximate = ApproximateIndex.build(index, recall=1.0)
    queries = index.take(torch.arange(0, 4000, 7))  # each of them deleted
    exact, found = index.search(queries, 20), approximate.search(queries, 20)
    for right, hits in zip(exact, found, strict=True):
        scores = dict(zip(right.ids, right.scores, strict=True))
        assert set(hits.ids) <= index.names and list(hits.scores) == sorted(hits.scores)[::-1]
        for name, score in zip(hits.ids, hits.scores, strict=True):
            assert score == pytest.approx(scores.get(name, score), abs=1e-6)


def test_a_vector_of_the_index_does_not_count_as_found_by_itself(index) -> None:
    # One list in 53 would always give a vector itself.
    measured = ApproximateIndex.build(index, recall=0.0).measured
    queries = index.take((~index.left_out).nonzero().flatten())
    approximate = ApproximateIndex(index)
    exact, found = (each.search(queries, 11) for each in (index, approximate))
    shares = [len(set(a.ids[1:]) & set(b.ids)) / 10 for a, b in zip(exact, found, strict=True)]
    assert measured.probes == 1 and measured.queries == 500
    assert measured.recall_at_10 == pytest.approx(sum(shares) / len(shares), abs=0.03)


def test_equal_scores_come_as_in_exact_search(tmp_path) -> None:
    index = SearchIndex(tmp_path)
    index.append([str(i) for i in range(300)], normalize(torch.randn(3, 8)).repeat(100, 1))
    approximate = ApproximateIndex.build(index, recall=1.0)
    hits = approximate.search(index.take(torch.tensor([1])), 3)[0]
    assert len(set(hits.scores)) == 1 and list(hits.ids) == sorted(hits.ids, key=int)


def test_a_few_vectors_and_more_hits_than_a_list_holds(tmp_path, index) -> None:
    small = SearchIndex(tmp_path / "small")
    small.append(["a", "b", "c"], torch.eye(3))
    approximate = ApproximateIndex.build(small)
    assert approximate.search(torch.tensor([[3.0, 2, 1]]), 99)[0].ids == ("a", "b", "c")
    assert approximate.measured.recall_at_10 == 1
    narrow = ApproximateIndex.build(index, recall=0.0)
    queries = torch.randn(2, 16)
    assert [each.ids for each in narrow.search(queries, 1000)] == [
        each.ids for each in index.search(queries, 1000)
    ]
    assert narrow.search(queries[:0]) == ()


def test_a_changed_index_wants_building_again(index) -> None:
    approximate = ApproximateIndex.build(index)
    index.append(["new"], torch.ones(1, 16))
    with pytest.raises(ValueError, match="it has changed; build it again"):
        approximate.search(torch.ones(1, 16))
    with pytest.raises(ValueError, match="found one of another state; build"):
        ApproximateIndex(index)
    approximate = ApproximateIndex.build(index)
    assert "new" in approximate.search(torch.ones(1, 16))[0].ids
    assert len(list(index.folder.glob("*.faiss*"))) == 1


def test_none_or_a_damaged_one_wants_building(index) -> None:
    with pytest.raises(ValueError, match="holds now, found none; build"):
        ApproximateIndex(index)
    ApproximateIndex.build(index)
    record = index.folder / "approximate.json"
    file = index.folder / json.loads(record.read_text())["file"]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="build it with"):
        ApproximateIndex(index)
    record.write_text("{")
    with pytest.raises(ValueError, match="build it with"):
        ApproximateIndex(index)


def test_a_crash_before_the_record_leaves_the_old_one(index, monkeypatch) -> None:
    ApproximateIndex.build(index, recall=0.5)
    before = ApproximateIndex(index).measured

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dclip_kit.search.approximate.write_atomically", crash)
        with pytest.raises(KeyboardInterrupt):
            ApproximateIndex.build(index)
    assert ApproximateIndex(index).measured == before
    ApproximateIndex.build(index)
    assert len(list(index.folder.glob("*.faiss*"))) == 1


@pytest.mark.parametrize(
    ("queries", "top_k", "says"),
    [
        (torch.ones(1, 3), 5, "vectors of 16 numbers"),
        (torch.full((1, 16), float("nan")), 5, "finite"),
        (torch.ones(1, 16), 0, "top_k from 1"),
    ],
)
def test_what_cannot_be_is_said(queries, top_k, says, index) -> None:
    with pytest.raises(ValueError, match=says):
        ApproximateIndex.build(index, recall=0.0).search(queries, top_k)


def test_too_little_to_build_on(tmp_path, index) -> None:
    with pytest.raises(ValueError, match="got 0 and 0; search so few exactly"):
        ApproximateIndex.build(SearchIndex(tmp_path / "new"))
    with pytest.raises(ValueError, match="and 1; search"):
        ApproximateIndex.build(index, torch.ones(1, 16))


def test_without_faiss_the_line_to_install_it(index, monkeypatch) -> None:
    def refuse(name, *arguments, **more):
        if name == "faiss":
            raise ModuleNotFoundError(name)
        return imported(name, *arguments, **more)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'dclip-kit\[search\]'"):
        ApproximateIndex.build(index)


def test_faiss_keeps_to_pytorchs_threads(index) -> None:
    ApproximateIndex.build(index, recall=0.0)
    assert faiss.omp_get_max_threads() == torch.get_num_threads()
