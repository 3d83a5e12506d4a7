"""Rescoring against slow loops, and its ranks in an index that knows cosines alone."""

import math
import re

import jaxtyping
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dclip_kit.metrics import retrieval_metrics
from dclip_kit.search.index import find_nearest
from dclip_kit.search.rescoring import (
    METHODS,
    NNN,
    Rescoring,
    add_bias,
    list_settings,
    rescore,
)

BIASES = ("nnn", "inverted_softmax", "bsap")  # these rank by score − bias, as `add_bias` does


def unit(count: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + count)
    return F.normalize(torch.randn(count, width, generator=generator), dim=1)


def score_slowly(
    own: float, others: list[float], method: str, k: int, alpha: float, temperature: float
) -> float:
    """One query's new score for one candidate, from its old one and the references'."""
    if method == "nnn":
        highest = sorted(others, reverse=True)[:k]
        return own - alpha * sum(highest) / len(highest)
    mine = math.exp(own / temperature)
    rest = sum(math.exp(each / temperature) for each in others)
    chance = mine / (mine + rest)
    return {
        "inverted_softmax": temperature * math.log(mine / rest),
        "dual_softmax": own * chance,
        "bsap": temperature * math.log(chance),
        "bsap_h": (1 - alpha) * own + alpha * chance,
    }[method]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("k", "alpha", "temperature"), [(1, 0.75, 0.05), (3, 1.0, 0.2), (100, 0.3, 1.0)]
)
def test_each_method_against_a_slow_loop(method, k, alpha, temperature) -> None:
    generator = torch.Generator().manual_seed(0)
    similarity, reference = (torch.rand(n, 9, generator=generator).double() for n in (5, 7))
    found = rescore(similarity, reference, method, k, alpha, temperature)
    for query in range(5):
        for candidate in range(9):
            own, others = similarity[query, candidate].item(), reference[:, candidate].tolist()
            expected = score_slowly(own, others, method, k, alpha, temperature)
            assert found[query, candidate].item() == pytest.approx(expected, abs=1e-9)


def test_nnn_by_hand() -> None:
    """Two queries find the hub first, the second candidate, until it is rescored."""
    similarity = torch.tensor([[0.5, 0.6, 0.1], [0.2, 0.6, 0.5]])
    reference = torch.tensor([[0.1, 0.6, 0.2], [0.3, 0.7, 0.0], [0.2, 0.1, 0.1]])
    found = rescore(similarity, reference, k=2, alpha=0.5)
    # Means of the two highest: 0.25, 0.65, 0.15; half of them is taken away.
    expected = torch.tensor([[0.375, 0.275, 0.025], [0.075, 0.275, 0.425]])
    torch.testing.assert_close(found, expected)
    assert similarity.argmax(1).tolist() == [1, 1] and found.argmax(1).tolist() == [0, 2]


def test_a_softmax_by_hand() -> None:
    """At a temperature of 1 / ln 2, each tenth of a cosine is a factor of 2 to the power 0.1."""
    similarity, reference = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 2.0], [0.0, 2.0]])
    temperature = 1 / math.log(2)
    inverted = rescore(similarity, reference, "inverted_softmax", temperature=temperature)
    # 2 / (1 + 1) = 1 and 4 / (4 + 4) = 1/2, as logarithms to the base of 2.
    torch.testing.assert_close(inverted, torch.tensor([[0.0, -1.0]]))
    dual = rescore(similarity, reference, "dual_softmax", temperature=temperature)
    torch.testing.assert_close(dual, torch.tensor([[1.0 * 2 / 4, 2.0 * 4 / 12]]))


@pytest.mark.parametrize("method", METHODS)
def test_candidates_are_looked_at_in_parts(method, monkeypatch) -> None:
    references, candidates, queries = unit(30), unit(12), unit(5)
    how = Rescoring(method, k=4)
    whole = how.measure_bias(references, candidates)
    monkeypatch.setattr("dclip_kit.search.rescoring._SCORES", 61)
    torch.testing.assert_close(how.measure_bias(references, candidates), whole)
    torch.testing.assert_close(
        how.apply(queries @ candidates.T, whole),
        rescore(queries @ candidates.T, references @ candidates.T, method, k=4),
    )


@pytest.mark.parametrize("method", BIASES)
def test_a_bias_can_be_part_of_vectors_that_are_ranked_by_cosine(method) -> None:
    queries, candidates, references = unit(40), unit(12), unit(30)
    how = Rescoring(method, k=4)
    bias = how.measure_bias(references, candidates)
    wide, wider = add_bias(queries, candidates, bias)
    assert wide.shape == (40, 8) and wider.shape == (12, 8)
    torch.testing.assert_close(wide @ wider.T, queries @ candidates.T - bias)
    lengths = wider.norm(dim=1)  # a cosine ranks as a product does where all are equally long
    torch.testing.assert_close(lengths, lengths[:1].expand(12))
    scores = how.apply(queries @ candidates.T, bias)
    assert torch.equal((wide @ wider.T).argsort(1), scores.argsort(1))
    owner = torch.arange(40) % 12
    ranks = retrieval_metrics(wider, wide, owner).text_to_image.ranks
    own = scores[torch.arange(40), owner, None]
    assert torch.equal(ranks, 1 + (scores > own).sum(1).double())


@pytest.mark.parametrize("method", BIASES)
def test_vectors_with_the_bias_in_them_find_what_rescoring_finds(method) -> None:
    queries, candidates, references = unit(40), unit(48), unit(50)
    bias = Rescoring(method).measure_bias(references, candidates)
    wide, wider = add_bias(queries, candidates, bias)
    scores = rescore(queries @ candidates.T, references @ candidates.T, method)
    expected = scores.topk(10).indices.tolist()
    assert expected != (queries @ candidates.T).topk(10).indices.tolist()
    assert find_nearest(wide, wider, 10)[1].tolist() == expected


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_uses_is_varied(method) -> None:
    tried = list_settings(method)
    assert {each.method for each in tried} == {method} and len({*tried}) == len(tried) > 3
    plain, similarity, reference = Rescoring(method), torch.rand(3, 4), torch.rand(9, 4)
    found = rescore(similarity, reference, method)
    for name, other in (("k", 2), ("alpha", 0.2), ("temperature", 0.3)):
        used = not torch.equal(found, rescore(similarity, reference, method, **{name: other}))
        assert (name in plain.settings) == used
        assert len({getattr(each, name) for each in tried}) > used
    assert tried[-1].settings == {name: getattr(tried[-1], name) for name in plain.settings}


def test_without_weight_nothing_changes() -> None:
    similarity, reference = torch.rand(3, 4), torch.rand(5, 4)
    for method in ("nnn", "bsap_h"):
        assert torch.equal(rescore(similarity, reference, method, alpha=0.0), similarity)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"method": "best"},
            "out of nnn, inverted_softmax, .*, bsap_h, got 'best'",
        ),
        ({"reference": torch.rand(5, 3)}, r"of the 4 candidates, got \(5, 3\)"),
        ({"reference": torch.rand(0, 4)}, r"of the 4 candidates, got \(0, 4\)"),
        ({"k": 0}, "a k from 1, .* got 0"),
        ({"alpha": -0.5}, "an alpha from 0"),
        ({"temperature": 0.0}, "a temperature above 0"),
    ],
)
def test_rescoring_that_cannot_be_is_refused(change, says) -> None:
    given = {"similarity": torch.rand(3, 4), "reference": torch.rand(5, 4)} | change
    with pytest.raises(ValueError, match=says):
        rescore(**given)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"similarity": np.array([[0.1, math.nan]])}, r"similarity .*\[nan\] at \[\[0, 1\]\]"),
        ({"reference": torch.tensor([[math.inf, 0]])}, r"reference .*\[inf\] at \[\[0, 0\]\]"),
        ({"similarity": torch.rand(2)}, r"similarity \[query candidate\].*\(2,\)"),
        ({"reference": np.zeros(2)}, r"reference \[reference_query candidate\].*\(2,\)"),
        ({"alpha": math.nan}, "an alpha from 0.* nan"),
        ({"temperature": math.nan}, "a temperature above 0.* nan"),
    ],
)
def test_scores_that_are_none_are_said_in_one_sentence(change, says, monkeypatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as people's programs run
    given = {"similarity": torch.rand(3, 2), "reference": torch.rand(5, 2)} | change
    with pytest.raises(ValueError, match=says) as error:
        rescore(**given)
    assert re.fullmatch(r"Expected .*, got .*; .*\.", str(error.value))


@pytest.mark.parametrize("method", METHODS)
def test_arrays_of_numpy_are_rescored_as_tensors_are(method) -> None:
    similarity, reference = torch.rand(3, 4), torch.rand(9, 4)
    expected = rescore(similarity, reference, method)
    assert torch.equal(rescore(similarity.numpy(), reference.numpy(), method), expected)
    mixed = rescore(similarity.double().numpy(), reference, method)
    torch.testing.assert_close(mixed, expected.double(), rtol=1e-5, atol=1e-6)


def test_no_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="reference queries, got none"):
        NNN.measure_bias(unit(5)[:0], unit(4))
