"""Every exercise takes right answers, however they are written, and names the usual mistakes."""

import itertools
import re
from functools import partial

import numpy as np
import pytest
import torch

from dclip_kit import exercises
from dclip_kit.exercises.checks import Exercise
from dclip_kit.metrics import ranks, recall_at_k

EVERY = [(name, getattr(exercises, name)) for name in exercises.__all__]
MISTAKES = [
    pytest.param(each, said, mistake, id=f"{name}-{number}")
    for name, each in EVERY
    for number, (said, mistake) in enumerate(each.mistakes.items())
]


def test_there_are_thirteen_exercises() -> None:
    assert len(EVERY) == 13 and all(len(each.mistakes) >= 2 for _, each in EVERY)


@pytest.mark.parametrize(("exercise", "said", "mistake"), MISTAKES)
def test_a_mistake_is_named(exercise: Exercise, said: str, mistake, capsys) -> None:
    exercise(mistake)
    assert capsys.readouterr().out == f"Not yet. {said}\n"


@pytest.mark.parametrize(("name", "exercise"), EVERY)
def test_an_unsolved_stub_says_so(name: str, exercise: Exercise, capsys) -> None:
    exercise(lambda *inputs: ...)
    exercise(lambda *inputs: None)
    assert capsys.readouterr().out == "Not yet. The function returns nothing so far.\n" * 2


@pytest.mark.parametrize(("name", "exercise"), EVERY)
def test_whatever_goes_wrong_nothing_is_raised(name: str, exercise: Exercise, capsys) -> None:
    exercise(lambda: 1)
    assert "It stops with TypeError: " in capsys.readouterr().out
    exercise(lambda *inputs: torch.full((7, 7), 3.25))
    assert ", got 7 × 7 numbers." in capsys.readouterr().out


def test_for_an_unknown_mistake_one_says_what_was_expected(capsys) -> None:
    exercises.check_overlap(lambda first, second: 0.0)
    said = capsys.readouterr().out
    assert re.fullmatch(r"Not yet\. For \(.+\) and \(.+\), expected 0\.\d+, got 0\.\n", said)
    exercises.check_recall(lambda similarity, owner, k: 0.0)
    assert "For one input, expected " in capsys.readouterr().out


def test_the_shortest_input_that_fails_is_shown(capsys) -> None:
    exercises.check_average_precision(lambda relevant: 7.0)
    assert re.match(r"Not yet\. For \([01], [01], [01]\), expected ", capsys.readouterr().out)


@pytest.mark.parametrize(("name", "exercise"), EVERY)
def test_one_number_may_be_a_row_of_one_and_no_other_shape_will_do(name, exercise) -> None:
    def wrap(depth: int):
        return lambda *inputs: torch.as_tensor(exercise.solve(*inputs))[(None,) * depth]

    drawn = exercise.draw(torch.Generator().manual_seed(0))
    is_number = torch.as_tensor(exercise.solve(*drawn)).ndim == 0
    assert (exercise.find_fault(wrap(1)) is None) == is_number
    assert "numbers" in exercise.find_fault(wrap(2))


def test_a_row_of_one_may_be_a_number() -> None:
    def search(query, features, top_k):
        best = exercises.check_search.solve(query, features, top_k).tolist()
        return best[0] if top_k == 1 else best

    assert exercises.check_search.find_fault(search) is None


def test_an_answer_may_change_its_inputs(capsys) -> None:
    def rescore_in_place(similarity, reference, k, alpha):
        similarity -= alpha * reference.topk(k, dim=0).values.mean(0)
        return similarity

    exercises.check_rescore(rescore_in_place)
    assert capsys.readouterr().out == "Right, on 20 random inputs.\n"


def slow_loss(images, texts, temperature):
    """By hand, pair by pair."""
    unit = [[row / row.norm() for row in each] for each in (images, texts)]
    losses = []
    for queries, candidates in (unit, unit[::-1]):
        for place, query in enumerate(queries):
            scores = [float(query @ each) / temperature for each in candidates]
            losses.append(np.log(sum(np.exp(scores))) - scores[place])
    return sum(losses) / len(losses)


def slow_recall(similarity, owner, k):
    hits = 0
    for row, own in zip(similarity.tolist(), owner.tolist(), strict=True):
        ranked = enumerate(sorted(row, reverse=True), 1)
        hits += np.mean([place for place, score in ranked if score == row[own]]) <= k
    return hits / len(similarity)


def slow_average_precision(relevant):
    places = [place for place, right in enumerate(relevant.tolist(), 1) if right]
    return sum(seen / place for seen, place in enumerate(places, 1)) / len(places)


def slow_rescore(similarity, reference, k, alpha):
    rescored = similarity.clone()
    for query, candidate in itertools.product(*map(range, similarity.shape)):
        nearest = sorted(reference[:, candidate].tolist())[-k:]
        rescored[query, candidate] -= alpha * sum(nearest) / k
    return rescored.tolist()


def slow_gain(before, after, draws):
    gains = []
    for drawn in draws.tolist():
        found = [sum(float(hits[image]) for image in drawn) for hits in (before, after)]
        gains.append((found[1] - found[0]) / found[0])
    return gains


def slow_group_score(similarity):
    """Right are items whose two highest scores are those of the true pairs."""
    right = 0
    for (first, other), (another, second) in similarity.tolist():
        right += min(first, second) > max(other, another)
    return right / len(similarity)


def slow_agreement(ours, theirs):
    """By the lengths of a triangle's sides."""
    cosines = []
    for one, other in zip(ours.double(), theirs.double(), strict=True):
        a, b, c = (float(each.norm()) for each in (one, other, one - other))
        cosines.append((a * a + b * b - c * c) / (2 * a * b))
    return min(cosines)


def clipped_overlap(first, second):
    first, second = np.reshape(first, (2, 2)), np.reshape(second, (2, 2))
    sides = np.minimum(first[1], second[1]) - np.maximum(first[0], second[0])
    shared = sides.clip(0).prod()
    return shared / (np.prod(first[1] - first[0]) + np.prod(second[1] - second[0]) - shared)


def slow_nearest_class(feature, class_features):
    angles = [torch.cosine_similarity(feature, each, dim=0).acos() for each in class_features]
    return angles.index(min(angles))


def slow_weigh(area, confidence, similarity):
    weights = [float(a * b * c) for a, b, c in zip(area, confidence, similarity, strict=True)]
    return [weight / sum(weights) for weight in weights]


def slow_pool(regions, mask):
    real = [row for row, is_real in zip(regions.tolist(), mask.tolist(), strict=True) if is_real]
    return [sum(column) / len(real) for column in zip(*real, strict=True)]


def metric_recall(similarity, owner, k):
    """As the kit measures it, which takes differences up to a tolerance for ties."""
    own = torch.nn.functional.one_hot(owner, similarity.shape[1]).bool()
    return recall_at_k(ranks(similarity, own), k)


def rank_recall(similarity, owner, k, tied_share=0.5):
    own = similarity.gather(1, owner[:, None])
    higher, tied = (similarity > own).sum(1), (similarity == own).sum(1) - 1
    return (1 + higher + tied_share * tied <= k).float().mean().reshape(1)


def sort_recall(similarity, owner, k):
    """By a stable sort, in which the first of a tie comes first."""
    best = (-similarity.numpy()).argsort(axis=1, kind="stable")[:, :k]
    return float((best == owner.numpy()[:, None]).any(axis=1).mean())


def topk_recall(similarity, owner, k):
    return np.mean([own in row.topk(k)[1] for row, own in zip(similarity, owner, strict=True)])


def sort_search(query, features, top_k):
    query, features = query.double().numpy(), features.double().numpy()
    cosines = features @ query / np.linalg.norm(features, axis=1) / np.linalg.norm(query)
    return (-cosines).argsort()[:top_k].tolist()


def row_rescore(similarity, reference, k, alpha):
    bias = torch.tensor(np.sort(reference.numpy(), axis=0)[-k:].mean(axis=0))
    return [row - alpha * bias for row in similarity]


def summed_gain(before, after, draws):
    return [(after[drawn].sum() - before[drawn].sum()) / before[drawn].sum() for drawn in draws]


ANSWERS = {
    "overlap": [clipped_overlap],
    "nearest_class": [slow_nearest_class],
    "weigh": [slow_weigh, lambda *factors: sum(f.log() for f in factors).softmax(0).numpy()],
    "pool": [
        slow_pool,
        lambda regions, mask: mask.double() @ regions.double() / mask.sum(),
        lambda regions, mask: regions.numpy()[mask.numpy()].mean(axis=0),
        lambda regions, mask: (regions * mask.unsqueeze(1)).sum(0) / mask.sum(),
    ],
    "contrastive_loss": [slow_loss],
    "mix": [
        torch.lerp,
        lambda before, after, alpha: (1 - alpha) * before.numpy() + alpha * after.numpy(),
    ],
    "recall": [slow_recall, metric_recall, rank_recall],
    "average_precision": [slow_average_precision],
    "search": [sort_search],
    "rescore": [slow_rescore, row_rescore],
    "gain": [slow_gain, summed_gain],
    "group_score": [slow_group_score],
    "agreement": [
        slow_agreement,
        lambda ours, theirs: torch.nn.functional.cosine_similarity(theirs, ours, dim=1).amin(),
    ],
}


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        pytest.param(name, answer, id=f"{name}-{number}")
        for name, answers in ANSWERS.items()
        for number, answer in enumerate(answers)
    ],
)
def test_an_answer_may_be_written_in_another_way(name: str, answer, capsys) -> None:
    getattr(exercises, f"check_{name}")(answer)
    assert capsys.readouterr().out == "Right, on 20 random inputs.\n"


@pytest.mark.parametrize(
    "convert",
    [np.asarray, lambda answer: np.asarray(answer).tolist(), partial(np.asarray, dtype=np.float32)],
    ids=["numpy", "plain Python", "short numbers"],
)
@pytest.mark.parametrize(("name", "exercise"), EVERY)
def test_an_answer_may_be_of_another_type(name, exercise: Exercise, convert, capsys) -> None:
    exercise(lambda *inputs: convert(exercise.solve(*inputs)))
    assert capsys.readouterr().out == "Right, on 20 random inputs.\n"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(partial(rank_recall, tied_share=0), id="best-place"),
        pytest.param(partial(rank_recall, tied_share=1), id="worst-place"),
        topk_recall,
        sort_recall,
    ],
)
def test_recall_of_another_rule_for_ties_is_told_so(answer) -> None:
    assert exercises.check_recall.find_fault(answer).startswith("Ties ")
