"""Rescoring against slow loops and a case worked out by hand."""

import pytest
import torch

from dclip_kit.metrics import retrieval_metrics
from dclip_kit.search.rescore import add_bias, nnn_bias, rescore


def test_nnn_by_hand() -> None:
    """Two queries find the hub first, the second candidate, until it is rescored."""
    similarity = torch.tensor([[0.5, 0.6, 0.1], [0.2, 0.6, 0.5]])
    reference = torch.tensor([[0.1, 0.6, 0.2], [0.3, 0.7, 0.0], [0.2, 0.1, 0.1]])
    found = rescore(similarity, reference, k=2, alpha=0.5)
    # Means of the two highest: 0.25, 0.65, 0.15; half of them is taken away.
    expected = torch.tensor([[0.375, 0.275, 0.025], [0.075, 0.275, 0.425]])
    torch.testing.assert_close(found, expected)
    assert similarity.argmax(1).tolist() == [1, 1] and found.argmax(1).tolist() == [0, 2]


@pytest.mark.parametrize(("k", "alpha"), [(1, 0.75), (3, 1.0), (7, 0.3), (100, 0.75)])
def test_nnn_against_a_slow_loop(k, alpha) -> None:
    generator = torch.Generator().manual_seed(0)
    similarity, reference = (torch.rand(n, 9, generator=generator) for n in (5, 7))
    found = rescore(similarity, reference, k=k, alpha=alpha)
    for query in range(5):
        for candidate in range(9):
            highest = sorted(reference[:, candidate].tolist(), reverse=True)[:k]
            bias = alpha * sum(highest) / len(highest)
            own = similarity[query, candidate].item() - bias
            assert found[query, candidate].item() == pytest.approx(own, abs=1e-6)


def test_a_bias_is_what_rescoring_takes_away() -> None:
    similarity, reference = torch.rand(5, 9), torch.rand(7, 9)
    bias = nnn_bias(reference, k=3, alpha=0.5)
    assert bias.shape == (9,)
    torch.testing.assert_close(similarity - bias, rescore(similarity, reference, k=3, alpha=0.5))
    assert torch.equal(nnn_bias(reference), nnn_bias(reference, 128, 0.75))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_bias_can_be_part_of_vectors_that_are_ranked_by_cosine(sign) -> None:
    queries, candidates, reference = (
        torch.nn.functional.normalize(torch.randn(count, 6), dim=1) for count in (40, 12, 30)
    )
    bias = sign * nnn_bias(reference @ candidates.T, k=4)
    wide, wider = add_bias(queries, candidates, bias)
    expected = queries @ candidates.T - bias
    assert wide.shape == (40, 8) and wider.shape == (12, 8)
    torch.testing.assert_close(wide @ wider.T, expected)
    lengths = wider.norm(dim=1)  # a cosine ranks as a product does where all are equally long
    torch.testing.assert_close(lengths, lengths[:1].expand(12))
    owner = torch.arange(40) % 12
    ranks = retrieval_metrics(wider, wide, owner).text_to_image.ranks
    own = expected[torch.arange(40), owner, None]
    assert torch.equal(ranks, 1 + (expected > own).sum(1).double())
    plain = retrieval_metrics(candidates, queries, owner).text_to_image.ranks
    assert not torch.equal(ranks, plain)


def test_without_weight_nothing_changes() -> None:
    similarity = torch.rand(3, 4)
    assert torch.equal(rescore(similarity, torch.rand(5, 4), alpha=0.0), similarity)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "softmax"}, "out of nnn, got 'softmax'"),
        ({"reference": torch.rand(0, 4)}, "4 candidates"),
        ({"reference": torch.rand(5, 3)}, r"got \(5, 3\)"),
        ({"k": 0}, "k from 1, got"),
    ],
)
def test_bad_input_is_refused(change, says) -> None:
    given = {"similarity": torch.rand(3, 4), "reference": torch.rand(5, 4)} | change
    with pytest.raises(ValueError, match=says):
        rescore(**given)
