"""Approximate search against exact search, and what it was built on."""

import builtins

import pytest
import torch

from dclip_kit.search.index import ApproximateIndex, SearchIndex

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


def test_it_finds_nearly_all_among_clusters(index, centres) -> None:
    approximate, queries = ApproximateIndex.build(index), torch.randn(200, 16)
    assert approximate.measure_recall(around(centres, 5)) > 0.95
    exact, found = (each.search(queries) for each in (index, approximate))
    shares = [len(set(a.ids) & set(b.ids)) / 10 for a, b in zip(exact, found, strict=True)]
    recall = approximate.measure_recall(queries)  # elsewhere than the clusters: some are missed
    assert 0.8 < recall < 1 and recall == pytest.approx(sum(shares) / len(shares))
    assert ApproximateIndex(SearchIndex(index.folder)).search(queries) == found


def test_scores_are_exact_and_in_order(index, centres) -> None:
    queries = around(centres, 1)
    exact = index.search(queries, 8000)
    for right, hits in zip(exact, ApproximateIndex.build(index).search(queries, 20), strict=True):
        scores = dict(zip(right.ids, right.scores, strict=True))
        assert list(hits.scores) == sorted(hits.scores)[::-1]
        assert hits.ids == tuple(index.ids[image] for image in hits.images)
        assert hits.scores == pytest.approx([scores[name] for name in hits.ids], abs=1e-6)


@pytest.mark.filterwarnings("error")
def test_a_few_vectors_and_more_hits_than_the_lists_hold(tmp_path, index) -> None:
    small = SearchIndex(tmp_path / "small")
    small.append(["a", "b", "c"], torch.eye(3))
    approximate = ApproximateIndex.build(small)
    assert approximate.search(torch.tensor([[3.0, 2, 1]]), 99)[0].ids == ("a", "b", "c")
    assert approximate.measure_recall(torch.eye(3)) == 1
    queries = torch.randn(2, 16)
    narrow = ApproximateIndex.build(index)
    assert narrow.search(queries, 4000) == index.search(queries, 4000)
    assert narrow.search(queries[:0]) == ()


def test_a_changed_index_wants_building_again(index) -> None:
    approximate = ApproximateIndex.build(index)
    index.append(["new"], torch.ones(1, 16))
    with pytest.raises(ValueError, match="got a changed one; build it again"):
        approximate.search(torch.ones(1, 16))
    with pytest.raises(ValueError, match="found none that is whole; build"):
        ApproximateIndex(index)
    approximate = ApproximateIndex.build(index)
    assert "new" in approximate.search(torch.ones(1, 16))[0].ids
    assert len(list(index.folder.glob("*.faiss*"))) == 1
    index.rewrite(index.ids)
    with pytest.raises(ValueError, match="found none that is whole; build"):
        ApproximateIndex(index)


def test_none_or_a_damaged_one_wants_building(index) -> None:
    with pytest.raises(ValueError, match="holds now, found none"):
        ApproximateIndex(index)
    ApproximateIndex.build(index)
    (file,) = index.folder.glob("*.faiss")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="build it with"):
        ApproximateIndex(index)


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
        ApproximateIndex.build(index).search(queries, top_k)


def test_an_empty_index_has_nothing_to_build_on(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"vectors in .*new, found none; append"):
        ApproximateIndex.build(SearchIndex(tmp_path / "new"))


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
    ApproximateIndex.build(index)
    assert faiss.omp_get_max_threads() == torch.get_num_threads()
