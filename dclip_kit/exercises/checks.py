"""The notebooks' exercises: what is asked, how inputs are drawn, and the mistakes people make.

An answer is a function that a reader wrote. It is called with random inputs, so any way to compute
the right thing will do; an answer that computes what a known mistake computes is told which.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy, normalize
from torchvision.ops import box_iou

_TRIALS = 20


@dataclass(frozen=True)
class Exercise:
    """A function that is asked for.

    Attributes:
        draw: inputs for it, by a generator.
        solve: a right answer.
        mistakes: wrong answers, by what to say of each.
    """

    draw: Callable[[Generator], tuple[Any, ...]]
    solve: Callable[..., Any]
    mistakes: dict[str, Callable[..., Any]]

    def __call__(self, answer: Callable[..., Any]) -> None:
        """Prints what an answer is worth; nothing is raised.

        Args:
            answer: takes what `draw` gives; returns a number, a list or a tensor.
        """
        fault = self.find_fault(answer)
        print(f"Not yet. {fault}" if fault else f"Right, on {_TRIALS} random inputs.")

    def find_fault(self, answer: Callable[..., Any]) -> str | None:
        """What is wrong with an answer, in a sentence; None if it is right."""
        rng = torch.Generator().manual_seed(0)
        drawn = [self.draw(rng) for _ in range(_TRIALS)]
        try:
            given = [answer(*inputs) for inputs in drawn]
            if any(each is None or each is ... for each in given):
                return "The function returns nothing so far."
            got = [torch.as_tensor(each).double() for each in given]
        except Exception as error:
            return f"It stops with {type(error).__name__}: {error}"
        right = [_compute(self.solve, inputs) for inputs in drawn]
        if _agree(got, right):
            return None
        for said, mistake in self.mistakes.items():
            if _agree(got, [_compute(mistake, inputs) for inputs in drawn]):
                return said
        wrong = next(i for i in range(_TRIALS) if not _agree(got[i : i + 1], right[i : i + 1]))
        if got[wrong].shape != right[wrong].shape:
            shapes = f"{tuple(right[wrong].shape)}, got {tuple(got[wrong].shape)}"
            return f"Expected a result of shape {shapes}."
        return f"For one input, expected {_say(right[wrong])}, got {_say(got[wrong])}."


def _compute(solve: Callable[..., Any], inputs: tuple[Any, ...]) -> Tensor:
    return torch.as_tensor(solve(*inputs)).double()


def _agree(got: list[Tensor], expected: list[Tensor]) -> bool:
    pairs = zip(got, expected, strict=True)
    return all(a.shape == b.shape and torch.allclose(a, b, 1e-3, 1e-5) for a, b in pairs)


def _say(value: Tensor) -> str:
    few = [f"{each:.3g}" for each in value.flatten()[:6].tolist()]
    return ", ".join(few) + " …" * (value.numel() > 6)


# 01: boxes, and names


def _draw_boxes(rng: Generator) -> tuple[Any, ...]:
    corners = torch.rand(2, 2, 2, generator=rng).sort(dim=1).values * 100
    return tuple(corners.flatten(1).tolist())


def _sides(first: list[float], second: list[float]) -> tuple[float, float]:
    """Width and height of what two boxes share; negative where they do not touch."""
    wide = min(first[2], second[2]) - max(first[0], second[0])
    return wide, min(first[3], second[3]) - max(first[1], second[1])


def _area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _shared(first: list[float], second: list[float]) -> float:
    wide, high = _sides(first, second)
    return max(wide, 0.0) * max(high, 0.0)


def _unclamped(first: list[float], second: list[float]) -> float:
    wide, high = _sides(first, second)
    return wide * high / (_area(first) + _area(second) - wide * high)


check_overlap = Exercise(
    _draw_boxes,
    lambda a, b: box_iou(torch.tensor([a]), torch.tensor([b]))[0, 0],
    {
        "Boxes that do not touch share nothing: neither side of the shared part is below 0.": (
            _unclamped
        ),
        "What both cover is counted twice below the line; take it off once.": (
            lambda a, b: _shared(a, b) / (_area(a) + _area(b))
        ),
        "You divided by the smaller box; divide by what either of them covers.": (
            lambda a, b: _shared(a, b) / min(_area(a), _area(b))
        ),
        "You divided by the first box; divide by what either of them covers.": (
            lambda a, b: _shared(a, b) / _area(a)
        ),
        "Two sides below 0 have a product above 0: hold each side at 0 before you multiply.": (
            lambda a, b: max(_unclamped(a, b), 0.0)
        ),
    },
)

check_nearest_class = Exercise(
    lambda rng: (torch.randn(8, generator=rng), _draw_vectors(rng, 12)),
    lambda feature, classes: (normalize(classes, dim=-1) @ feature).argmax(),
    {
        "The longest class vector wins too often: bring all to length 1 first.": (
            lambda feature, classes: (classes @ feature).argmax()
        ),
        "That is the class at the greatest angle; take the smallest.": (
            lambda feature, classes: (normalize(classes, dim=-1) @ feature).argmin()
        ),
        "The nearest by distance is not the one at the smallest angle: lengths count there.": (
            lambda feature, classes: torch.cdist(feature[None], classes)[0].argmin()
        ),
        "Classes are counted from 0.": (
            lambda feature, classes: 1 + (normalize(classes, dim=-1) @ feature).argmax()
        ),
        "That is the greatest product; return the index of its class.": (
            lambda feature, classes: (normalize(classes, dim=-1) @ feature).max()
        ),
        "That is the greatest cosine; return the index of its class.": (
            lambda feature, classes: (normalize(classes, dim=-1) @ normalize(feature, dim=0)).max()
        ),
    },
)


def _draw_vectors(rng: Generator, count: int) -> Tensor:
    """Vectors of very different lengths."""
    lengths = 4 * torch.rand(count, 1, generator=rng) + 0.2
    return normalize(torch.randn(count, 8, generator=rng), dim=-1) * lengths


# 02: weights, and pooling

check_weigh = Exercise(
    lambda rng: tuple(torch.rand(3, 5, generator=rng)),
    lambda area, confidence, similarity: _to_one(area * confidence * similarity),
    {
        "The weights do not sum to 1: divide them by their sum.": (
            lambda area, confidence, similarity: area * confidence * similarity
        ),
        "The three factors are multiplied, not added.": (
            lambda area, confidence, similarity: _to_one(area + confidence + similarity)
        ),
        "A softmax evens the weights out; divide by their sum instead.": (
            lambda area, confidence, similarity: (area * confidence * similarity).softmax(0)
        ),
        "You divided by the greatest weight; divide by their sum.": (
            lambda area, confidence, similarity: (
                (area * confidence * similarity) / (area * confidence * similarity).max()
            )
        ),
        "The area is missing: all three factors count.": (
            lambda area, confidence, similarity: _to_one(confidence * similarity)
        ),
    },
)


def _to_one(weights: Tensor) -> Tensor:
    return weights / weights.sum()


def _draw_padded(rng: Generator) -> tuple[Any, ...]:
    mask = torch.arange(6) < torch.randint(1, 6, (1,), generator=rng)
    return torch.randn(6, 8, generator=rng) * mask[:, None], mask


check_pool = Exercise(
    _draw_padded,
    lambda regions, mask: regions[mask].mean(0),
    {
        "Padding is averaged in: divide by the number of real regions.": (
            lambda regions, mask: regions.mean(0)
        ),
        "That is the sum; divide it by the number of real regions.": (
            lambda regions, mask: regions[mask].sum(0)
        ),
        "You averaged over the wrong axis: one number a region, not one vector.": (
            lambda regions, mask: regions[mask].mean(1)
        ),
        "The mask is true where a region is real; you took the padding.": (
            lambda regions, mask: regions[~mask].mean(0)
        ),
    },
)

# 03: the contrastive loss, and mixed weights


def _logits(images: Tensor, texts: Tensor, temperature: float) -> Tensor:
    return normalize(images, dim=-1) @ normalize(texts, dim=-1).T / temperature


def _both_ways(logits: Tensor) -> Tensor:
    pairs = torch.arange(len(logits))
    return (cross_entropy(logits, pairs) + cross_entropy(logits.T, pairs)) / 2


check_contrastive_loss = Exercise(
    lambda rng: (_draw_vectors(rng, 6), _draw_vectors(rng, 6), 0.2),
    lambda images, texts, temperature: _both_ways(_logits(images, texts, temperature)),
    {
        "Bring the vectors to length 1 first, so that products are cosines.": (
            lambda images, texts, temperature: _both_ways(images @ texts.T / temperature)
        ),
        "Cosines are divided by the temperature, which makes differences count more.": (
            lambda images, texts, temperature: _both_ways(
                _logits(images, texts, temperature) * temperature**2
            )
        ),
        "The temperature is missing: divide the cosines by it.": (
            lambda images, texts, temperature: _both_ways(
                _logits(images, texts, temperature) * temperature
            )
        ),
        "Only pictures choose captions; let captions choose pictures too, and take the mean.": (
            lambda images, texts, temperature: cross_entropy(
                _logits(images, texts, temperature), torch.arange(len(images))
            )
        ),
        "Only captions choose pictures; let pictures choose captions too, and take the mean.": (
            lambda images, texts, temperature: cross_entropy(
                _logits(images, texts, temperature).T, torch.arange(len(images))
            )
        ),
        "That is the sum of both directions; take their mean.": (
            lambda images, texts, temperature: 2 * _both_ways(_logits(images, texts, temperature))
        ),
        "That is the sum over pairs; take their mean.": (
            lambda images, texts, temperature: (
                len(images) * _both_ways(_logits(images, texts, temperature))
            )
        ),
        "cross_entropy takes the softmax itself: give it the cosines over the temperature.": (
            lambda images, texts, temperature: _both_ways(
                _logits(images, texts, temperature).softmax(1)
            )
        ),
        "The sign is wrong: a loss is −log of the probability.": (
            lambda images, texts, temperature: -_both_ways(_logits(images, texts, temperature))
        ),
    },
)

check_mix = Exercise(
    lambda rng: (*torch.randn(2, 4, generator=rng), float(torch.rand(1, generator=rng))),
    lambda before, after, alpha: before + alpha * (after - before),
    {
        "The two are exchanged: at α = 1 only the fine-tuned weights are left.": (
            lambda before, after, alpha: after + alpha * (before - after)
        ),
        "That is the mean whatever α is; α is the share of the fine-tuned weights.": (
            lambda before, after, alpha: (before + after) / 2
        ),
        "The shares do not sum to 1: what α leaves over goes to the original weights.": (
            lambda before, after, alpha: before + alpha * after
        ),
        "That is the change alone; add it to the weights before.": (
            lambda before, after, alpha: alpha * (after - before)
        ),
    },
)

# 04: recall, and average precision


def _draw_similarity(rng: Generator) -> tuple[Any, ...]:
    owner = torch.arange(8).repeat_interleave(2)
    similarity = torch.rand(16, 8, generator=rng)
    return similarity, owner, int(torch.randint(1, 5, (1,), generator=rng))


def _ranks(similarity: Tensor, owner: Tensor) -> Tensor:
    own = similarity.gather(1, owner[:, None])
    return 1 + (similarity > own).sum(1)


check_recall = Exercise(
    _draw_similarity,
    lambda similarity, owner, k: (_ranks(similarity, owner) <= k).double().mean(),
    {
        "The first rank is 1, so rank K still counts, and rank K + 1 does not.": (
            lambda similarity, owner, k: (_ranks(similarity, owner) <= k + 1).double().mean()
        ),
        "Rank K counts too: the first K pictures are those of rank 1 to K.": (
            lambda similarity, owner, k: (_ranks(similarity, owner) < k).double().mean()
        ),
        "Those are the worst K pictures; sort from the most similar down.": (
            lambda similarity, owner, k: (_ranks(-similarity, owner) <= k).double().mean()
        ),
        "That counts the captions found; divide by how many there are.": (
            lambda similarity, owner, k: (_ranks(similarity, owner) <= k).sum()
        ),
        "Only rank K counts here; ranks 1 to K all do.": (
            lambda similarity, owner, k: (_ranks(similarity, owner) == k).double().mean()
        ),
        "Each caption counts once, however large K is: do not divide by K.": (
            lambda similarity, owner, k: (_ranks(similarity, owner) <= k).double().mean() / k
        ),
        "That is in percent; return a share from 0 to 1.": (
            lambda similarity, owner, k: 100 * (_ranks(similarity, owner) <= k).double().mean()
        ),
    },
)


def _draw_relevant(rng: Generator) -> tuple[Any, ...]:
    return (
        torch.tensor([True, True, False, False, False, False])[torch.randperm(6, generator=rng)],
    )


def _precisions(relevant: Tensor) -> Tensor:
    return (relevant.cumsum(0) / torch.arange(1, 7))[relevant]


check_average_precision = Exercise(
    _draw_relevant,
    lambda relevant: _precisions(relevant).mean(),
    {
        "That is the reciprocal rank, which stops at the first right answer; go on to the last.": (
            lambda relevant: _precisions(relevant)[0]
        ),
        "Divide by the number of right answers, not by the number of places.": (
            lambda relevant: _precisions(relevant).sum() / len(relevant)
        ),
        "That is the sum over right answers; take their mean.": (
            lambda relevant: _precisions(relevant).sum()
        ),
        "The answer at a place counts too: of the first place's one answer, one may be right.": (
            lambda relevant: ((relevant.cumsum(0) - 1) / torch.arange(1, 7))[relevant].mean()
        ),
        "Precision is averaged over the places of right answers alone.": (
            lambda relevant: (relevant.cumsum(0) / torch.arange(1, 7)).mean()
        ),
        "At the second right answer two are right: count those before it, too.": (
            lambda relevant: (1 / torch.arange(1, 7))[relevant].mean()
        ),
    },
)

# 05: searching, and rescoring

check_search = Exercise(
    lambda rng: (torch.randn(8, generator=rng), _draw_vectors(rng, 20), 3),
    lambda query, features, top_k: (normalize(features, dim=-1) @ query).topk(top_k).indices,
    {
        "Long vectors win: bring all to length 1 first.": (
            lambda query, features, top_k: (features @ query).topk(top_k).indices
        ),
        "The nearest by distance are not those at the smallest angles: lengths count there.": (
            lambda query, features, top_k: (
                (-torch.cdist(query[None], features)[0]).topk(top_k).indices
            )
        ),
        "Those are the least similar pictures; take the most similar.": (
            lambda query, features, top_k: (
                (-normalize(features, dim=-1) @ query).topk(top_k).indices
            )
        ),
        "Those are the right pictures, the best last; put the best first.": (
            lambda query, features, top_k: (
                (normalize(features, dim=-1) @ query).topk(top_k).indices.flip(0)
            )
        ),
        "Those are cosines; return the numbers of the pictures.": (
            lambda query, features, top_k: (
                (normalize(features, dim=-1) @ normalize(query, dim=0)).topk(top_k).values
            )
        ),
    },
)


def _top_mean(reference: Tensor, k: int, axis: int = 0) -> Tensor:
    return reference.topk(k, dim=axis).values.mean(axis)


check_rescore = Exercise(
    lambda rng: (torch.rand(4, 6, generator=rng), torch.rand(30, 6, generator=rng), 5, 0.75),
    lambda similarity, reference, k, alpha: similarity - alpha * _top_mean(reference, k),
    {
        "What a picture gets from everybody is taken off, not added.": (
            lambda similarity, reference, k, alpha: similarity + alpha * _top_mean(reference, k)
        ),
        "That is the mean over all reference captions; only the K nearest count.": (
            lambda similarity, reference, k, alpha: similarity - alpha * reference.mean(0)
        ),
        "α is missing: it says how much of the mean is taken off.": (
            lambda similarity, reference, k, alpha: similarity - _top_mean(reference, k)
        ),
        "That is the sum of the K nearest; take their mean.": (
            lambda similarity, reference, k, alpha: similarity - alpha * k * _top_mean(reference, k)
        ),
    },
)

# 07: a gain and its interval


def _draw_hits(rng: Generator) -> tuple[Any, ...]:
    before, after = (torch.rand(2, 40, generator=rng) < torch.tensor([[0.4], [0.6]])).double()
    before[0] = 1.0  # no draw below is without it
    draws = torch.randint(40, (9, 40), generator=rng)
    draws[:, 0] = 0
    return before, after, draws


check_gain = Exercise(
    _draw_hits,
    lambda before, after, draws: after[draws].mean(1) / before[draws].mean(1) - 1,
    {
        "That is the gain in points; divide it by what was found before.": (
            lambda before, after, draws: after[draws].mean(1) - before[draws].mean(1)
        ),
        "That is the ratio; a gain of nothing is 0, not 1.": (
            lambda before, after, draws: after[draws].mean(1) / before[draws].mean(1)
        ),
        "Both models must be measured on the pictures that were drawn.": (
            lambda before, after, draws: after[draws].mean(1) / before.mean() - 1
        ),
        "You divided by what was found after; divide by what was found before.": (
            lambda before, after, draws: 1 - before[draws].mean(1) / after[draws].mean(1)
        ),
        "That is in percent; a tenth more is 0.1.": (
            lambda before, after, draws: 100 * (after[draws].mean(1) / before[draws].mean(1) - 1)
        ),
        "Before and after are exchanged.": (
            lambda before, after, draws: before[draws].mean(1) / after[draws].mean(1) - 1
        ),
    },
)
