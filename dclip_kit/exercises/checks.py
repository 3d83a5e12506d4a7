"""The notebooks' exercises: random inputs, the right answer, and the mistakes people make.

An answer is a function that a reader wrote. It is called with random inputs, so any way of
computing the right result is accepted; an answer that matches a known mistake is told which.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, normalize
from torchvision.ops import box_iou

from dclip_kit.metrics import composition_scores

_TRIALS = 20
_MOST_PRINTED = 6  # numbers to print of an input or a result


@dataclass(frozen=True)
class Exercise:
    """A function that readers write.

    Attributes:
        draw: draws inputs for it, with a generator.
        solve: a right answer.
        mistakes: wrong answers, by the message for each.
    """

    draw: Callable[[Generator], tuple[Any, ...]]
    solve: Callable[..., Any]
    mistakes: dict[str, Callable[..., Any]]

    def __call__(self, answer: Callable[..., Any]) -> None:
        """Prints whether an answer is right; raises nothing.

        Args:
            answer: takes what `draw` gives; returns a number, a list or a tensor.
        """
        fault = self.find_fault(answer)
        print(f"Not yet. {fault}" if fault else f"Right, on {_TRIALS} random inputs.")

    def find_fault(self, answer: Callable[..., Any]) -> str | None:
        """What is wrong with an answer, in a sentence; None if it is right."""
        rng = torch.Generator().manual_seed(0)
        inputs = [self.draw(rng) for _ in range(_TRIALS)]
        results, expected_results = _answer_all(answer, inputs), _answer_all(self.solve, inputs)
        if all(map(_agree, results, expected_results)):
            return None
        for message, mistake in self.mistakes.items():
            if all(map(_agree, results, _answer_all(mistake, inputs))):
                return message
        trials = zip(inputs, results, expected_results, strict=True)
        failed = [row for row in trials if not _agree(*row[1:])]
        example, got, expected = min(failed, key=lambda row: _count_numbers(row[0]))
        if isinstance(got, str) or isinstance(expected, str):
            return str(got)
        if got.shape != expected.shape:
            return f"Expected {_describe_size(expected)}, got {_describe_size(got)}."
        values = [torch.as_tensor(value).double() for value in example]
        short = all(value.numel() <= _MOST_PRINTED for value in values)
        text = " and ".join(f"({_format_values(x)})" for x in values) if short else "one input"
        return f"For {text}, expected {_format_values(expected)}, got {_format_values(got)}."


def _answer_all(answer: Callable[..., Any], drawn: list[tuple[Any, ...]]) -> list[Tensor | str]:
    """An answer's result for each input, or a sentence about why there is none."""
    results: list[Tensor | str] = []
    for inputs in drawn:
        try:
            result = answer(*copy.deepcopy(inputs))  # the answer may change them
            if result is None or result is ...:
                results.append("The function returns nothing so far.")
                continue
            if isinstance(result, list):  # as_tensor does not take a list of rows
                result = torch.stack(list(map(torch.as_tensor, result)))
            value = torch.as_tensor(result).double()
            results.append(value[0] if value.shape == (1,) else value)  # as good as a number
        except Exception as error:
            results.append(f"It stops with {type(error).__name__}: {error}")
    return results


def _agree(result: Tensor | str, expected: Tensor | str) -> bool:
    if isinstance(result, str) or isinstance(expected, str):
        return isinstance(result, str) and result == expected
    return result.shape == expected.shape and torch.allclose(
        result, expected, 1e-3, 1e-5, equal_nan=True
    )


def _count_numbers(inputs: tuple[Any, ...]) -> int:
    return sum(torch.as_tensor(value).numel() for value in inputs)


def _describe_size(value: Tensor) -> str:
    return f"{' × '.join(map(str, value.shape))} numbers" if value.ndim else "one number"


def _format_values(value: Tensor) -> str:
    numbers = [f"{number:.3g}" for number in value.flatten()[:_MOST_PRINTED].tolist()]
    return ", ".join(numbers) + " …" * (value.numel() > _MOST_PRINTED)


# Shared draws. Sizes and factors differ from input to input, so that no constant is right.


def _draw_size(rng: Generator, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (1,), generator=rng))


def _draw_share(rng: Generator) -> float:
    return float(torch.rand(1, generator=rng))


def _draw_vectors(rng: Generator, count: int, width: int) -> Tensor:
    """Vectors of very different lengths."""
    lengths = 4 * torch.rand(count, 1, generator=rng) + 0.2
    return normalize(torch.randn(count, width, generator=rng), dim=-1) * lengths


def _draw_gallery(rng: Generator) -> tuple[Any, ...]:
    width = _draw_size(rng, 3, 12)
    query = torch.randn(width, generator=rng)
    return query, _draw_vectors(rng, _draw_size(rng, 6, 30), width)


def _draw_some(rng: Generator, low: int, high: int) -> Tensor:
    """A mask of `low` to `high` positions, True at one or more of them, at random."""
    places = _draw_size(rng, low, high)
    return torch.randperm(places, generator=rng) < _draw_size(rng, 1, places)


# 01: boxes, and names


def _draw_boxes(rng: Generator) -> tuple[Any, ...]:
    corners = torch.rand(2, 2, 2, generator=rng).sort(dim=1).values  # box corner xy
    corners += torch.rand(2, 1, 2, generator=rng)  # so that many are apart on both axes
    return tuple((corners * 1000 ** _draw_share(rng)).flatten(1).tolist())


def _sides(first: list[float], second: list[float]) -> tuple[float, float]:
    """Width and height of two boxes' intersection; negative if they do not touch."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    return width, min(first[3], second[3]) - max(first[1], second[1])


def _area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _intersection(first: list[float], second: list[float]) -> float:
    width, height = _sides(first, second)
    return max(width, 0.0) * max(height, 0.0)


def _unclamped(first: list[float], second: list[float]) -> float:
    width, height = _sides(first, second)
    return width * height / (_area(first) + _area(second) - width * height)


check_overlap = Exercise(
    _draw_boxes,
    lambda a, b: box_iou(torch.tensor([a]), torch.tensor([b]))[0, 0],
    {
        "Boxes that do not touch share nothing: neither side of the shared part is below 0.": (
            _unclamped
        ),
        "What both cover is counted twice below the line; take it off once.": (
            lambda a, b: _intersection(a, b) / (_area(a) + _area(b))
        ),
        "You divided by the smaller box; divide by what either of them covers.": (
            lambda a, b: _intersection(a, b) / min(_area(a), _area(b))
        ),
        "You divided by the first box; divide by what either of them covers.": (
            lambda a, b: _intersection(a, b) / _area(a)
        ),
        "Two sides below 0 have a product above 0: hold each side at 0 before you multiply.": (
            lambda a, b: max(_unclamped(a, b), 0.0)
        ),
        "That is the area that both cover; divide it by what either of them covers.": _intersection,
        "That is in percent; return a share from 0 to 1.": (
            lambda a, b: 100 * box_iou(torch.tensor([a]), torch.tensor([b]))[0, 0]
        ),
        "Divide by what either box covers, not by the box around both.": (
            lambda a, b: (
                _intersection(a, b) / _area([*map(min, a[:2], b[:2]), *map(max, a[2:], b[2:])])
            )
        ),
        "The last two numbers are the right and bottom edge, not width and height.": (
            lambda a, b: box_iou(
                *(torch.tensor([[x, y, x + width, y + height]]) for x, y, width, height in (a, b))
            )[0, 0]
        ),
    },
)

check_nearest_class = Exercise(
    _draw_gallery,
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
        "Those are all cosines; return the index of the greatest.": (
            lambda feature, classes: normalize(classes, dim=-1) @ normalize(feature, dim=0)
        ),
        "Bring each row to length 1, which is a class's vector, not each column.": (
            lambda feature, classes: (normalize(classes, dim=0) @ feature).argmax()
        ),
    },
)

# 02: weights, and pooling

check_weigh = Exercise(
    lambda rng: tuple(torch.rand(3, _draw_size(rng, 2, 6), generator=rng)),
    lambda area, confidence, similarity: _normalise_sum(area * confidence * similarity),
    {
        "The weights do not sum to 1: divide them by their sum.": (
            lambda area, confidence, similarity: area * confidence * similarity
        ),
        "The three factors are multiplied, not added.": (
            lambda area, confidence, similarity: _normalise_sum(area + confidence + similarity)
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
            lambda area, confidence, similarity: _normalise_sum(confidence * similarity)
        ),
        "The confidence is missing: all three factors count.": (
            lambda area, confidence, similarity: _normalise_sum(area * similarity)
        ),
        "The similarity is missing: all three factors count.": (
            lambda area, confidence, similarity: _normalise_sum(area * confidence)
        ),
        "Each factor was brought to a sum of 1; do so once, after multiplying.": (
            lambda area, confidence, similarity: (
                _normalise_sum(area) * _normalise_sum(confidence) * _normalise_sum(similarity)
            )
        ),
        "You divided by the length; divide by the sum.": (
            lambda area, confidence, similarity: normalize(area * confidence * similarity, dim=0)
        ),
        "You divided by the number of regions; divide by the sum.": (
            lambda area, confidence, similarity: area * confidence * similarity / len(area)
        ),
    },
)


def _normalise_sum(weights: Tensor) -> Tensor:
    return weights / weights.sum()


def _draw_padded(rng: Generator) -> tuple[Any, ...]:
    """Only the mask says what is real: padding need not be zeros, and a real region may be."""
    mask = _draw_some(rng, 2, 8)
    regions = torch.randn(len(mask), _draw_size(rng, 2, 10), generator=rng)
    regions[torch.rand(len(mask), generator=rng) < 0.2] = 0.0
    return regions, mask


check_pool = Exercise(
    _draw_padded,
    lambda regions, mask: regions[mask].mean(0),
    {
        "Padding is averaged in: divide by the number of real regions.": (
            lambda regions, mask: regions.mean(0)
        ),
        "Padding need not be zeros: leave it out before you sum, too.": (
            lambda regions, mask: regions.sum(0) / mask.sum()
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
        "Those are the real regions; take their mean.": lambda regions, mask: regions[mask],
        "The mask has a number a region; mask[:, None] goes with every number of a row.": (
            lambda regions, mask: regions * mask
        ),
    },
)

# 03: the contrastive loss, and mixed weights


def _logits(images: Tensor, texts: Tensor, temperature: float) -> Tensor:
    return normalize(images, dim=-1) @ normalize(texts, dim=-1).T / temperature


def _both_ways(logits: Tensor, pairs: Tensor | None = None) -> Tensor:
    pairs = torch.arange(len(logits)) if pairs is None else pairs
    return (cross_entropy(logits, pairs) + cross_entropy(logits.T, pairs)) / 2


def _draw_pairs(rng: Generator) -> tuple[Any, ...]:
    pairs, width = _draw_size(rng, 2, 10), _draw_size(rng, 3, 12)
    return *_draw_vectors(rng, 2 * pairs, width).chunk(2), 0.05 + _draw_share(rng)


check_contrastive_loss = Exercise(
    _draw_pairs,
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
        "The logarithm is missing: the loss is −log of the probability.": (
            lambda images, texts, temperature: (
                -sum(_logits(images, texts, temperature).softmax(i).trace() for i in (0, 1))
                / (2 * len(images))
            )
        ),
        "Each row has a length of its own: norm(dim=1, keepdim=True), not one for the table.": (
            lambda images, texts, temperature: _both_ways(
                (images / images.norm()) @ (texts / texts.norm()).T / temperature
            )
        ),
        "In row i the right answer is column i: the classes are 0, 1, 2, …, not all 0.": (
            lambda images, texts, temperature: _both_ways(
                _logits(images, texts, temperature), torch.zeros(len(images), dtype=torch.long)
            )
        ),
    },
)

check_mix = Exercise(
    lambda rng: (*torch.randn(2, _draw_size(rng, 2, 6), generator=rng), _draw_share(rng)),
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
        "The change is after − before, not the other way round.": (
            lambda before, after, alpha: before + alpha * (before - after)
        ),
        "The original weights are missing: they have a share of 1 − α.": (
            lambda before, after, alpha: alpha * after
        ),
        "The fine-tuned weights have a share of α, and not all of it.": (
            lambda before, after, alpha: (1 - alpha) * before + after
        ),
    },
)

# 04: recall, and average precision


def _draw_similarity(rng: Generator) -> tuple[Any, ...]:
    """Scores in steps, so that some tie, including those of a caption's own picture.

    With K at most half of the pictures, a caption whose pictures all tie is never found.
    """
    texts, images = _draw_size(rng, 7, 20), _draw_size(rng, 8, 15)
    owner = torch.randint(images, (texts,), generator=rng)
    steps = torch.randint(-2, 3, (texts, images), generator=rng)
    steps[torch.arange(texts), owner] += 1  # so that more captions are found
    return steps / 10 ** _draw_size(rng, 1, 4), owner, _draw_size(rng, 1, 4)


def _own_scores(similarity: Tensor, owner: Tensor) -> Tensor:
    return similarity.gather(1, owner[:, None])


def _tied_places(similarity: Tensor, own: Tensor, axis: int = 1) -> Tensor:
    """The first and the last rank that own pictures may get among those they tie with."""
    return torch.stack([1 + (similarity > own).sum(axis), (similarity >= own).sum(axis)]).double()


def _ranks(similarity: Tensor, owner: Tensor) -> Tensor:
    """As `metrics.ranks`, unless all tie: tied pictures share the mean of their ranks."""
    return _tied_places(similarity, _own_scores(similarity, owner)).mean(0)


check_recall = Exercise(
    _draw_similarity,
    lambda similarity, owner, k: (_ranks(similarity, owner) <= k).double().mean(),
    {
        "Ties get the first of their places; take the mean of the first and the last.": (
            lambda similarity, owner, k: (
                (_tied_places(similarity, _own_scores(similarity, owner))[0] <= k).double().mean()
            )
        ),
        "Ties get the last of their places; take the mean of the first and the last.": (
            lambda similarity, owner, k: (
                (_tied_places(similarity, _own_scores(similarity, owner))[1] <= k).double().mean()
            )
        ),
        "Ties are put in some order by topk; count those that score higher and those that tie.": (
            lambda similarity, owner, k: (
                (similarity.topk(k, dim=1).indices == owner[:, None]).any(1).double().mean()
            )
        ),
        "Ties go to the picture stored first; count those that score higher and those that tie.": (
            lambda similarity, owner, k: (
                (similarity.sort(dim=1, descending=True, stable=True).indices[:, :k])
                .eq(owner[:, None])
                .any(1)
                .double()
                .mean()
            )
        ),
        "The first rank is 1, so rank K still counts, and rank K + 1 does not.": (
            lambda similarity, owner, k: (_ranks(similarity, owner) <= k + 1).double().mean()
        ),
        "Rank K counts too; and no picture ties with itself: the highest has rank 1.": (
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
        "K is not used: look at the first K pictures, not at the first alone.": (
            lambda similarity, owner, k: (similarity.argmax(1) == owner).double().mean()
        ),
        "True and false have no mean; make numbers of them first, with .double().": (
            lambda similarity, owner, k: (_ranks(similarity, owner) <= k).mean()
        ),
        "The own scores are a row; [:, None] makes a column that goes with the captions' rows.": (
            lambda similarity, owner, k: (
                (_tied_places(similarity, _own_scores(similarity, owner)[:, 0]).mean(0) <= k)
                .double()
                .mean()
            )
        ),
        "A caption's own picture is the one that owner says, not the one of its own number.": (
            lambda similarity, owner, k: (
                (similarity.topk(k, dim=1).indices == torch.arange(len(owner))[:, None])
                .any(1)
                .double()
                .mean()
            )
        ),
        "A caption's pictures stand in its row: count along dim=1.": (
            lambda similarity, owner, k: (
                (_tied_places(similarity, _own_scores(similarity, owner), 0).mean(0) <= k)
                .double()
                .mean()
            )
        ),
    },
)


def _precisions(relevant: Tensor) -> Tensor:
    return (relevant.cumsum(0) / _places(relevant))[relevant]


def _places(relevant: Tensor) -> Tensor:
    return torch.arange(1, len(relevant) + 1)


check_average_precision = Exercise(
    lambda rng: (_draw_some(rng, 3, 8),),
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
            lambda relevant: ((relevant.cumsum(0) - 1) / _places(relevant))[relevant].mean()
        ),
        "Precision is averaged over the places of right answers alone.": (
            lambda relevant: (relevant.cumsum(0) / _places(relevant)).mean()
        ),
        "At the second right answer two are right: count those before it, too.": (
            lambda relevant: (1 / _places(relevant))[relevant].mean()
        ),
        "The first rank is 1, not 0: divide by 1, 2, 3, ….": (
            lambda relevant: (relevant.cumsum(0) / (_places(relevant) - 1))[relevant].mean()
        ),
        "That is the precision at the last right answer; take the mean over all right ones.": (
            lambda relevant: _precisions(relevant)[-1]
        ),
    },
)

# 05: searching, and rescoring

check_search = Exercise(
    lambda rng: (*_draw_gallery(rng), _draw_size(rng, 1, 5)),
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
        "Bring each row to length 1, which is a picture's vector, not each column.": (
            lambda query, features, top_k: (normalize(features, dim=0) @ query).topk(top_k).indices
        ),
        "topk gives values and indices; return its .indices.": (
            lambda query, features, top_k: (normalize(features, dim=-1) @ query).topk(top_k)
        ),
    },
)


def _top_mean(reference: Tensor, k: int, axis: int = 0) -> Tensor:
    return reference.topk(k, dim=axis).values.mean(axis)


def _draw_scores(rng: Generator) -> tuple[Any, ...]:
    k, images = _draw_size(rng, 1, 6), _draw_size(rng, 6, 9)
    queries, captions = k + _draw_size(rng, 1, 3), _draw_size(rng, 10, 40)
    scores = torch.randn(queries + captions, images, generator=rng)
    return *scores.split([queries, captions]), k, _draw_share(rng)


check_rescore = Exercise(
    _draw_scores,
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
        "The mean is one number a picture, not a caption: topk and mean along dim=0.": (
            lambda similarity, reference, k, alpha: similarity - alpha * _top_mean(reference, k, 1)
        ),
        "Take the K highest of the reference scores, not of the questions' own.": (
            lambda similarity, reference, k, alpha: similarity - alpha * _top_mean(similarity, k)
        ),
        "That is the Kth highest alone; take the mean of the K.": (
            lambda similarity, reference, k, alpha: (
                similarity - alpha * reference.topk(k, dim=0).values[-1]
            )
        ),
        "That is the highest alone; take the mean of the K.": (
            lambda similarity, reference, k, alpha: similarity - alpha * reference.amax(0)
        ),
        "Those are the K lowest; take the K highest.": (
            lambda similarity, reference, k, alpha: similarity + alpha * _top_mean(-reference, k)
        ),
        "That is one number for all pictures; each has its own mean.": (
            lambda similarity, reference, k, alpha: (
                similarity - alpha * _top_mean(reference, k).mean()
            )
        ),
    },
)

# 07: a gain and its interval


def _draw_hits(rng: Generator) -> tuple[Any, ...]:
    images, size = _draw_size(rng, 10, 50), (_draw_size(rng, 2, 9), _draw_size(rng, 10, 50))
    rates = 0.2 + 0.6 * torch.rand(2, 1, generator=rng)
    before, after = (torch.rand(2, images, generator=rng) < rates).double()
    draws = torch.randint(images, size, generator=rng)
    before[draws[0, 0]] = 1.0
    draws[:, 0] = draws[0, 0]  # so that each draw has a hit before
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
        "Divide what was found in all, not picture by picture: many were not found before.": (
            lambda before, after, draws: (after[draws] / before[draws]).mean(1) - 1
        ),
        "A picture that was drawn twice counts twice: take the draws as they are.": (
            lambda before, after, draws: torch.stack(
                [after[each.unique()].sum() / before[each.unique()].sum() - 1 for each in draws]
            )
        ),
        "The draws are not used: measure both models on the pictures of each.": (
            lambda before, after, draws: after.mean() / before.mean() - 1
        ),
    },
)

# 08: two pictures, two captions


def _right(similarity: Tensor, score: str = "group") -> Tensor:
    return composition_scores(similarity)[score]


def _true_pairs(similarity: Tensor) -> Tensor:
    return similarity.diagonal(dim1=1, dim2=2)


def _false_pairs(similarity: Tensor) -> Tensor:
    return similarity.flip(2).diagonal(dim1=1, dim2=2)


def _compare(similarity: Tensor) -> Tensor:
    """Each item's four comparisons."""
    return (_true_pairs(similarity)[:, :, None] > _false_pairs(similarity)[:, None]).flatten(1)


def _draw_items(rng: Generator) -> tuple[Any, ...]:
    """Cosines in steps, so that some tie; those of true pairs are mostly higher."""
    steps = torch.randint(-3, 2, (_draw_size(rng, 6, 40), 2, 2), generator=rng)
    return ((steps + 2 * torch.eye(2)) / 10 ** _draw_size(rng, 1, 4),)


check_group_score = Exercise(
    _draw_items,
    lambda similarity: _right(similarity).double().mean(),
    {
        "That is the text score: pictures choose captions. Captions must choose pictures, too.": (
            lambda similarity: _right(similarity, "text").double().mean()
        ),
        "That is the image score: captions choose pictures. Pictures must choose captions, too.": (
            lambda similarity: _right(similarity, "image").double().mean()
        ),
        "A tie is wrong: a model that cannot tell the two apart must get nothing for it.": (
            lambda similarity: (
                (_true_pairs(similarity).amin(1) >= _false_pairs(similarity).amax(1))
                .double()
                .mean()
            )
        ),
        "argmax takes the first of a tie, and a tie is wrong: compare the scores with >.": (
            lambda similarity: (
                (
                    (similarity.argmax(1) == torch.arange(2))
                    & (similarity.argmax(2) == torch.arange(2))
                )
                .all(1)
                .double()
                .mean()
            )
        ),
        "That is the mean of the four comparisons; an item is right if all four are.": (
            lambda similarity: _compare(similarity).double().mean()
        ),
        "One right comparison of four is not enough; all must be.": (
            lambda similarity: _compare(similarity).any(1).double().mean()
        ),
        "The true pairs' mean hides a comparison that fails; the lower of them must win, too.": (
            lambda similarity: (
                (_true_pairs(similarity).sum(1) > _false_pairs(similarity).sum(1)).double().mean()
            )
        ),
        "An item needs both text and image right; one of them is not enough.": (
            lambda similarity: (
                (_right(similarity, "text") | _right(similarity, "image")).double().mean()
            )
        ),
        "The product of the two scores does not say that the same items are right in both.": (
            lambda similarity: (
                _right(similarity, "text").double().mean()
                * _right(similarity, "image").double().mean()
            )
        ),
        "The second caption is forgotten: the second picture must be nearer to it.": (
            lambda similarity: (
                (similarity[:, :1, 0] > _false_pairs(similarity)).all(1).double().mean()
            )
        ),
        "The first caption is forgotten: the first picture must be nearer to it.": (
            lambda similarity: (
                (similarity[:, 1:, 1] > _false_pairs(similarity)).all(1).double().mean()
            )
        ),
        "all() without an axis asks whether every item is right; each item has its own answer.": (
            lambda similarity: _compare(similarity).all().double()
        ),
        "That says of each item whether it is right; return their share.": _right,
        "That counts the right items; divide by how many there are.": (
            lambda similarity: _right(similarity).sum()
        ),
        "True and false have no mean; make numbers of them first, with .double().": (
            lambda similarity: _right(similarity).mean()
        ),
        "That is in percent; return a share from 0 to 1.": (
            lambda similarity: 100 * _right(similarity).double().mean()
        ),
    },
)


# 09: the same vectors, by two libraries


def _draw_libraries(rng: Generator) -> tuple[Any, ...]:
    """Vectors in pairs, more or less alike, and of any lengths."""
    count, width = _draw_size(rng, 4, 30), _draw_size(rng, 3, 12)
    ours = normalize(torch.randn(count, width, generator=rng), dim=-1)
    noise = torch.randn(count, width, generator=rng) * torch.rand(count, 1, generator=rng)
    theirs, lengths = ours + noise, 4 * torch.rand(2, count, 1, generator=rng) + 0.2
    return ours * lengths[0], theirs * lengths[1]


check_agreement = Exercise(
    _draw_libraries,
    lambda ours, theirs: cosine_similarity(ours, theirs).min(),
    {
        "That is a dot product, which grows with both lengths: bring both to length 1 first.": (
            lambda ours, theirs: (ours * theirs).sum(1).min()
        ),
        "Ours are of length 1 now, theirs are not: bring both to length 1.": (
            lambda ours, theirs: (normalize(ours) * theirs).sum(1).min()
        ),
        "Theirs are of length 1 now, ours are not: bring both to length 1.": (
            lambda ours, theirs: (ours * normalize(theirs)).sum(1).min()
        ),
        "norm() without an axis is that of the whole table; each row has a length of its own.": (
            lambda ours, theirs: (ours / ours.norm() * theirs / theirs.norm()).sum(1).min()
        ),
        "Bring each row to length 1, which is a picture's vector, not each column.": (
            lambda ours, theirs: (normalize(ours, dim=0) * normalize(theirs, dim=0)).sum(1).min()
        ),
        "The mean hides the one vector that differs; return the least cosine.": (
            lambda ours, theirs: cosine_similarity(ours, theirs).mean()
        ),
        "That is the pair that agrees best; return the least cosine.": (
            lambda ours, theirs: cosine_similarity(ours, theirs).max()
        ),
        "Those are the cosines, one for each picture; return the least.": cosine_similarity,
        "That says which pair agrees least; return its cosine.": (
            lambda ours, theirs: cosine_similarity(ours, theirs).argmin()
        ),
        "Compare each vector with the other library's of the same picture, not with all.": (
            lambda ours, theirs: (normalize(ours) @ normalize(theirs).T).min()
        ),
        "That is the greatest difference of two numbers; return the least cosine.": (
            lambda ours, theirs: (normalize(ours) - normalize(theirs)).abs().max()
        ),
        "That is the greatest distance; return the least cosine.": (
            lambda ours, theirs: (normalize(ours) - normalize(theirs)).norm(dim=1).max()
        ),
        "That is the cosine of two columns; the vectors are the rows.": (
            lambda ours, theirs: cosine_similarity(ours, theirs, dim=0).min()
        ),
        "That is one cosine of the whole tables; each row has its own.": (
            lambda ours, theirs: cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
        ),
        "norm(dim=1) alone is divided by along the wrong axis; give it keepdim=True.": (
            lambda ours, theirs: (
                (ours / ours.norm(dim=1) * (theirs / theirs.norm(dim=1))).sum(1).min()
            )
        ),
    },
)
