"""Every exercise takes right answers, however they are written, and names the usual mistakes."""

import itertools

import numpy as np
import pytest
import torch

from dclip_kit import exercises
from dclip_kit.exercises.checks import Exercise

EVERY = [(name, getattr(exercises, name)) for name in exercises.__all__]
MISTAKES = [
    pytest.param(each, said, mistake, id=f"{name}-{number}")
    for name, each in EVERY
    for number, (said, mistake) in enumerate(each.mistakes.items())
]


def test_there_are_twelve_exercises() -> None:
    assert len(EVERY) == 12


@pytest.mark.parametrize(("name", "exercise"), EVERY)
def test_the_solution_is_right_and_two_mistakes_are_known(name: str, exercise: Exercise) -> None:
    assert exercise.find_fault(exercise.solve) is None
    assert len(exercise.mistakes) >= 2


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
    assert said.startswith("Not yet. For (") and said.endswith("), expected 0.0866, got 0.\n")
    exercises.check_recall(lambda similarity, owner, k: 0.0)
    assert "For one input, expected " in capsys.readouterr().out


def test_an_answer_may_change_its_inputs(capsys) -> None:
    def rescore_in_place(similarity, reference, k, alpha):
        similarity -= alpha * reference.topk(k, dim=0).values.mean(0)
        return similarity

    exercises.check_rescore(rescore_in_place)
    assert capsys.readouterr().out == "Right, on 20 random inputs.\n"


def slow_overlap(first, second):
    """Counts the fine cells of a grid that lie in both boxes, and in either."""
    cells = np.arange(0, 100, 0.05) + 0.025
    inside = [
        np.outer((box[1] < cells) & (cells < box[3]), (box[0] < cells) & (cells < box[2]))
        for box in (first, second)
    ]
    return (inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum()


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
        best = sorted(range(len(row)), key=lambda image: -row[image])[:k]
        hits += own in best
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


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [
        (exercises.check_contrastive_loss, slow_loss),
        (exercises.check_recall, slow_recall),
        (exercises.check_average_precision, slow_average_precision),
        (exercises.check_rescore, slow_rescore),
        (exercises.check_gain, slow_gain),
        (exercises.check_group_score, slow_group_score),
    ],
)
def test_an_answer_may_be_written_in_another_way(exercise: Exercise, answer, capsys) -> None:
    exercise(answer)
    assert capsys.readouterr().out == "Right, on 20 random inputs.\n"


def test_overlap_is_what_counting_cells_gives() -> None:
    rng = torch.Generator().manual_seed(3)
    for _ in range(10):
        boxes = exercises.check_overlap.draw(rng)
        found = float(exercises.check_overlap.solve(*boxes))
        assert found == pytest.approx(slow_overlap(*boxes), abs=0.01)
