"""Search scores, corrected by what each candidate gets from queries that are not about it.

Some candidates, hubs, get high scores whatever is asked. All methods take from a candidate's score
one number, which reference queries decide: captions of the training data to rescore text→image, its
pictures to rescore image→text, never the queries that are measured. Nothing is trained.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Method = Literal["nnn", "inverted_softmax", "dual_softmax", "bsap", "bsap_h"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Rescoring:
    """A method and its settings; those that the method does not use are ignored.

    With s a cosine and P = exp(s/τ) / (exp(s/τ) + Σ exp(s'/τ)) over the candidate's reference
    scores s', which is how likely the query is among them:

    - "nnn", nearest-neighbour normalisation (arXiv 2410.24114): s − α · mean of the k highest s'.
    - "inverted_softmax" (arXiv 1702.03859): exp(s/τ) / Σ exp(s'/τ), given as τ times its logarithm.
    - "dual_softmax" (arXiv 2109.04290, with reference queries for the others of the test, as in
      arXiv 2112.12777): s · P.
    - "bsap" (arXiv 2402.18400, our reading: its auxiliary prompts are the reference queries, its
      normaliser a softmax): P, given as τ times its logarithm.
    - "bsap_h" (likewise, our reading: a convex mix): (1 − α) · s + α · P.

    Attributes:
        method: one of these.
        k: how many of a candidate's reference scores are averaged; all, where there are fewer.
        alpha: α, from 0, which changes nothing.
        temperature: τ, above 0; the smaller, the more the nearest reference queries count.
    """

    method: Method = "nnn"
    k: int = 128
    alpha: float = 0.75
    temperature: float = 0.05

    def __post_init__(self) -> None:
        """Raises ValueError for settings out of range."""
        if self.method not in METHODS:
            raise ValueError(
                f"Expected a method out of {', '.join(METHODS)}, got {self.method!r}; name one."
            )
        if self.k < 1 or self.alpha < 0 or self.temperature <= 0:
            raise ValueError(
                "Expected a k from 1, an alpha from 0 and a temperature above 0, got "
                f"{self.k}, {self.alpha} and {self.temperature}."
            )

    @property
    def is_bias(self) -> bool:
        """Whether `score − bias` ranks as the method does, so that `add_bias` serves any index."""
        return self.method in ("nnn", "inverted_softmax", "bsap")

    def measure_bias(
        self, reference: Float[Tensor, "reference_query candidate"]
    ) -> Float[Tensor, "candidate"]:
        """The one number of each candidate, in the unit of scores.

        Raises:
            ValueError: there is no reference query.
        """
        if not len(reference):
            raise ValueError("Expected reference queries, got none; give captions to train on.")
        if self.method == "nnn":
            return self.alpha * reference.topk(min(self.k, len(reference)), dim=0).values.mean(0)
        return self.temperature * (reference / self.temperature).logsumexp(0)

    def apply(
        self, similarity: Float[Tensor, "query candidate"], bias: Float[Tensor, "candidate"]
    ) -> Float[Tensor, "query candidate"]:
        """Scores by the method, from cosines and what `measure_bias` gave."""
        beyond = similarity - bias
        if self.method in ("nnn", "inverted_softmax"):
            return beyond
        if self.method == "bsap":
            return self.temperature * F.logsigmoid(beyond / self.temperature)
        chance = torch.sigmoid(beyond / self.temperature)
        if self.method == "dual_softmax":
            return similarity * chance
        return (1 - self.alpha) * similarity + self.alpha * chance


def rescore(
    similarity: Float[Tensor, "query candidate"],
    reference: Float[Tensor, "reference_query _candidate"],
    method: Method = "nnn",
    k: int = 128,
    alpha: float = 0.75,
    temperature: float = 0.05,
) -> Float[Tensor, "query candidate"]:
    """Takes from each candidate's score what it gets from reference queries anyway.

    Args:
        similarity: cosines of queries and candidates.
        reference: cosines of reference queries and the same candidates. They come from training
            data: captions to rescore text→image, pictures for image→text.
        method: as in `Rescoring`, like the settings that follow.
        k: for "nnn".
        alpha: for "nnn" and "bsap_h".
        temperature: for the others.

    Raises:
        ValueError: the method is unknown, a setting is out of range, there is no reference query,
            or they are of other candidates.
    """
    if reference.shape[1] != similarity.shape[1]:
        raise ValueError(
            f"Expected reference scores of the {similarity.shape[1]} candidates, got those of "
            f"{reference.shape[1]}; score the same candidates by training data."
        )
    rescoring = Rescoring(method, k, alpha, temperature)
    return rescoring.apply(similarity, rescoring.measure_bias(reference))
