"""Rescoring: corrects search scores by what each candidate gets from unrelated queries.

Some candidates, hubs, get high scores whatever the query. All methods subtract one number from a
candidate's scores, estimated with reference queries: captions of the training data to rescore
text→image, its pictures to rescore image→text, never the queries being measured. Nothing is
trained.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dclip_kit.metrics import TIE_TOLERANCE, Array, take_finite

METHODS = ("nnn", "inverted_softmax", "dual_softmax", "bsap", "bsap_h")
_SCORES = 2**24  # in a block
_TEMPERATURES = (0.01, 0.02, 0.05, 0.1)
_GRID: dict[str, dict[str, tuple[Any, ...]]] = {  # settings to choose from on a val set
    "nnn": {"k": (32, 128, 512), "alpha": (0.25, 0.5, 0.75, 1.0)},
    "inverted_softmax": {"temperature": _TEMPERATURES},
    "dual_softmax": {"temperature": _TEMPERATURES},
    "bsap": {"temperature": _TEMPERATURES},
    "bsap_h": {"alpha": (0.5, 0.9, 0.99), "temperature": _TEMPERATURES},
}


@dataclass(frozen=True)
class Rescoring:
    """A method and its settings; settings that the method does not use are ignored.

    With s a cosine and P = exp(s/τ) / (exp(s/τ) + Σ exp(s'/τ)) over the candidate's reference
    scores s', the softmax probability of the query among them:

    - "nnn", nearest-neighbour normalisation (arXiv 2410.24114): s − α · mean of the k highest s'.
    - "inverted_softmax" (arXiv 1702.03859): exp(s/τ) / Σ exp(s'/τ), given as τ times its logarithm.
    - "dual_softmax" (arXiv 2109.04290, with reference queries for the others of the test, as in
      arXiv 2112.12777): s · P.
    - "bsap" (arXiv 2402.18400, our reading: its auxiliary prompts are the reference queries, its
      normaliser a softmax): P, given as τ times its logarithm.
    - "bsap_h" (likewise, our reading: a convex mix): (1 − α) · s + α · P.

    Attributes:
        method: one of these.
        k: how many of a candidate's reference scores are averaged; all, if there are fewer.
        alpha: α, from 0, which changes nothing.
        temperature: τ, above 0; the smaller, the more weight the nearest reference queries have.
    """

    method: str = "nnn"
    k: int = 128
    alpha: float = 0.75
    temperature: float = 0.05

    def __post_init__(self) -> None:
        """Raises ValueError for settings out of range."""
        if self.method not in METHODS:
            raise ValueError(
                f"Expected a method out of {', '.join(METHODS)}, got {self.method!r}; name one."
            )
        if not (self.k >= 1 and self.alpha >= 0 and self.temperature > 0):
            raise ValueError(
                "Expected a k from 1, an alpha from 0 and a temperature above 0, got "
                f"{self.k}, {self.alpha} and {self.temperature}; leave out what you do not need."
            )

    @property
    def settings(self) -> dict[str, int | float]:
        """Those that the method uses, by name."""
        return {name: getattr(self, name) for name in _GRID[self.method]}

    @property
    def tolerance(self) -> float:
        """How close scores tie: 0 for probabilities, which near 0 and 1 are almost the same."""
        return TIE_TOLERANCE if self.method in ("nnn", "inverted_softmax") else 0.0

    def measure_bias(
        self,
        references: Float[Tensor, "reference_query embed"],
        candidates: Float[Tensor, "candidate embed"],
    ) -> Float[Tensor, "candidate"]:
        """The number to subtract for each candidate, in the unit of scores; in bounded memory.

        Args:
            references: queries from training data, of length 1.
            candidates: likewise.

        Raises:
            ValueError: there is no reference query.
        """
        if not len(references):
            raise ValueError("Expected reference queries, got none; give captions to train on.")
        parts = candidates.split(max(1, _SCORES // len(references)))
        return torch.cat([self._take(references @ part.T) for part in parts])

    def _take(self, reference: Float[Tensor, "reference_query candidate"]) -> Tensor:
        if self.method == "nnn":
            return self.alpha * reference.topk(min(self.k, len(reference)), dim=0).values.mean(0)
        return self.temperature * (reference / self.temperature).logsumexp(0)

    def apply(
        self, similarity: Float[Tensor, "query candidate"], bias: Float[Tensor, "candidate"]
    ) -> Float[Tensor, "query candidate"]:
        """Scores by the method, from cosines and the result of `measure_bias`."""
        margin = similarity - bias
        if self.method in ("nnn", "inverted_softmax"):
            return margin
        if self.method == "bsap":
            return self.temperature * F.logsigmoid(margin / self.temperature)
        probability = torch.sigmoid(margin / self.temperature)
        if self.method == "dual_softmax":
            return similarity * probability
        return (1 - self.alpha) * similarity + self.alpha * probability


NNN = Rescoring()


def list_settings(method: str) -> tuple[Rescoring, ...]:
    """A method's settings to choose from; those that it does not use are not varied."""
    values = _GRID[Rescoring(method).method]
    return tuple(
        Rescoring(method, **dict(zip(values, combination, strict=True)))
        for combination in product(*values.values())
    )


def rescore(
    similarity: Float[Array, "query candidate"],
    reference: Float[Array, "reference_query _candidate"],
    method: str = "nnn",
    k: int = 128,
    alpha: float = 0.75,
    temperature: float = 0.05,
) -> Float[Tensor, "query candidate"]:
    """Corrects each candidate's scores by what it gets from reference queries.

    Args:
        similarity: cosines of queries and candidates.
        reference: cosines of reference queries and the same candidates. Reference queries come from
            training data: captions to rescore text→image, pictures for image→text.
        method: as in `Rescoring`, like the settings that follow.
        k: for "nnn".
        alpha: for "nnn" and "bsap_h".
        temperature: for the others.

    Raises:
        ValueError: the method is unknown, a setting is out of range, there is no reference query,
            `reference` has other candidates, or a cosine is not finite.
    """
    similarity = take_finite("similarity", similarity, "query candidate")
    reference = take_finite("reference", reference, "reference_query candidate")
    if not len(reference) or reference.shape[1] != similarity.shape[1]:
        raise ValueError(
            f"Expected reference scores of the {similarity.shape[1]} candidates, got "
            f"{tuple(reference.shape)}; score the same candidates with training data."
        )
    rescoring = Rescoring(method, k, alpha, temperature)
    return rescoring.apply(similarity, rescoring._take(reference))


def add_bias(
    queries: Float[Tensor, "query embed"],
    candidates: Float[Tensor, "candidate embed"],
    bias: Float[Tensor, "candidate"],
) -> tuple[Float[Tensor, "query wider"], Float[Tensor, "candidate wider"]]:
    """Widens vectors so that their cosines rank candidates by `query · candidate − bias`.

    So any index that ranks by cosine can apply a bias. One dimension holds it, and another makes
    all candidates equally long.

    Args:
        queries, candidates: of length 1.
        bias: to take from each candidate's scores.

    Returns:
        Queries and candidates, two dimensions wider.
    """
    filler = (bias.square().max() - bias.square()).sqrt()
    wider = torch.cat([candidates, -bias[:, None], filler[:, None]], dim=1)
    ones = torch.ones_like(queries[:, :1])
    return torch.cat([queries, ones, torch.zeros_like(ones)], dim=1), wider
