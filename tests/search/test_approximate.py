"""Approximate search against exact search, and when its lists are built."""

import builtins

import pytest
import torch
from torch.nn.functional import normalize

from dclip_kit.search.index import SearchIndex
from dclip_kit.search.rescoring import BIASES, METHODS, Rescoring, add_bias, rescore

faiss = pytest.importorskip("faiss")


def around(centres: torch.Tensor, count: int) -> torch.Tensor:
    """Vectors around each centre."""
    return centres.repeat(count, 1) + 0.5 * torch.randn(count * len(centres), centres.shape[1])


@pytest.fixture
def centres() -> torch.Tensor:
    return torch.randn(40, 16)


@pytest.fixture
def index(centres, tmp_path) -> SearchIndex:
    """Eight thousand vectors in two shards."""
    vectors, found = around(centres, 200), SearchIndex(tmp_path / "index")
    found.append([f"v{i}" for i in range(3000)], vectors[:3000])
    found.append([f"v{i}" for i in range(3000, 8000)], vectors[3000:])
    return found


def measure_recall(index: SearchIndex, queries: torch.Tensor) -> float:
    """The share of the exact ten nearest that approximate search finds."""
    exact, found = (index.search(queries, approximate=each) for each in (False, True))
    shares = [len(set(a.ids) & set(b.ids)) / len(a.ids) for a, b in zip(exact, found, strict=True)]
    return sum(shares) / len(shares)


def test_it_finds_nearly_all_among_clusters(index, centres) -> None:
    queries = torch.randn(200, 16)
    assert measure_recall(index, around(centres, 5)) > 0.95
    assert 0.8 < measure_recall(index, queries) < 1  # elsewhere than the clusters
    (file,) = index.folder.glob("*.faiss")
    built = file.stat().st_mtime_ns
    found = index.search(queries, approximate=True)
    assert SearchIndex(index.folder).search(queries, approximate=True) == found
    assert file.stat().st_mtime_ns == built


def test_scores_are_exact_and_in_order(index, centres) -> None:
    queries = around(centres, 1)
    exact = index.search(queries, 8000)
    for right, hits in zip(exact, index.search(queries, 20, approximate=True), strict=True):
        scores = dict(zip(right.ids, right.scores, strict=True))
        assert list(hits.scores) == sorted(hits.scores)[::-1]
        assert hits.ids == tuple(index.ids[image] for image in hits.images)
        assert hits.scores == pytest.approx([scores[name] for name in hits.ids], abs=1e-6)


@pytest.mark.filterwarnings("error")
def test_a_few_vectors_and_more_hits_than_the_lists_hold(tmp_path, index) -> None:
    small = SearchIndex(tmp_path / "small")
    small.append(["a", "b", "c"], torch.eye(3))
    hits = small.search(torch.tensor([[3.0, 2, 1]]), 99, approximate=True)
    assert hits[0].ids == ("a", "b", "c")
    assert measure_recall(small, torch.eye(3)) == 1
    queries = torch.randn(2, 16)
    assert index.search(queries, 4000, approximate=True) == index.search(queries, 4000)
    assert index.search(queries[:0], approximate=True) == ()


def test_a_changed_index_is_built_again(index) -> None:
    asked = torch.ones(1, 16)
    assert "new" not in index.search(asked, approximate=True)[0].ids
    (before,) = index.folder.glob("*.faiss*")
    index.append(["new"], asked)
    assert "new" in index.search(asked, approximate=True)[0].ids
    (after,) = index.folder.glob("*.faiss*")
    index.rewrite(["new", *index.ids[:100]])
    assert index.search(asked, approximate=True)[0].images[0] == 0
    (last,) = index.folder.glob("*.faiss*")
    assert len({before, after, last}) == 3


@pytest.mark.parametrize("damage", [lambda old: old[:1000], lambda old: b"none"])
def test_damaged_lists_are_built_again(index, damage) -> None:
    asked = torch.ones(1, 16)
    before = index.search(asked, approximate=True)
    (file,) = index.folder.glob("*.faiss*")
    whole = file.read_bytes()
    file.unlink()  # `index` goes on with what it has mapped
    file.write_bytes(damage(whole))
    assert SearchIndex(index.folder).search(asked, approximate=True) == before
    assert file.stat().st_size == len(whole)


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
        index.search(queries, top_k, approximate=True)


def test_an_empty_index_has_nothing_to_find(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"something to find, got 0; add vectors"):
        SearchIndex(tmp_path / "new").search(torch.ones(1, 16), approximate=True)


def test_without_faiss_the_line_to_install_it(index, monkeypatch) -> None:
    def refuse(name, *arguments, **more):
        if name == "faiss":
            raise ModuleNotFoundError(name)
        return imported(name, *arguments, **more)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'dclip-kit\[search\]'"):
        index.search(torch.ones(1, 16), approximate=True)


def test_faiss_keeps_to_pytorchs_threads(index) -> None:
    index.search(torch.ones(1, 16), approximate=True)
    assert faiss.omp_get_max_threads() == torch.get_num_threads()


@pytest.mark.parametrize("method", [each for each in METHODS if each in BIASES])
def test_exact_and_approximate_search_rescore_alike(method, centres, tmp_path) -> None:
    """All lists of so small an index are looked into, so that nothing is missed."""
    candidates, queries = normalize(around(centres, 12), dim=1), normalize(centres, dim=1)
    references = normalize(torch.randn(50, 16) + centres[0], dim=1)
    bias = Rescoring(method).measure_bias(references, candidates)
    asked, wider = add_bias(queries, candidates, bias)
    index = SearchIndex(tmp_path / "index")
    index.append([f"v{i}" for i in range(len(wider))], wider)
    scores = rescore(queries @ candidates.T, references @ candidates.T, method)
    expected = scores.topk(10).indices.tolist()
    assert expected != (queries @ candidates.T).topk(10).indices.tolist()
    for approximate in (False, True):
        found = index.search(asked, 10, approximate)
        assert [list(hits.images) for hits in found] == expected
