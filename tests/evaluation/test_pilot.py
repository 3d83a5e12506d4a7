"""What a pilot advises, and the rates that a run takes over from it; the whole is in test_fit."""

from dataclasses import replace
from itertools import pairwise

import pytest

from dclip_kit.config import PROFILES
from dclip_kit.evaluation.pilot import (
    FEW,
    Rung,
    _advise,
    _fit_epochs,
    _spread,
    read_rates,
    say_pilot,
)
from dclip_kit.metrics import Gain, Interval
from dclip_kit.runtime.files import write_record


def rung(low: float, high: float, alpha: float = 1.0) -> Rung:
    middle = (low + high) / 2
    gain = Gain("Recall@1", 100, 0.1, 0.1 + middle, Interval(middle, low, high))
    return Rung(3.0, 3e-5, alpha, 0.1 + middle, 0.97, gain, 1.0)


@pytest.mark.parametrize(
    ("best", "captioned", "says"),
    [
        (rung(0.01, 0.03), FEW - 1, "Too few captions: 499 pictures"),
        (rung(0.0, 0.0, alpha=0.0), 5000, "Nothing to gain was seen"),
        (rung(-0.01, 0.03), 5000, "no gain was certain (-1.0 to +3.0 points of R@1)"),
        (rung(0.01, 0.03), 5000, "already these few steps brought +1.0 to +3.0 points"),
    ],
)
def test_advice_is_one_sentence(best, captioned, says) -> None:
    said = _advise(best, 2e-4, captioned, has_teacher=True)
    assert says in said and said.endswith(".") and "\n" not in said
    runs = captioned > FEW and best.alpha > 0
    assert ("Run it with --student.learning-rate 2.0e-04" in said) == runs


@pytest.mark.parametrize(
    ("epochs", "seconds", "minutes", "fitting"),
    [(5, 1.0, 10.0, 5), (5, 60.0, 10.0, 3), (5, 1000.0, 10.0, 1), (5, 60.0, 0.0, 1)],
)
def test_where_steps_are_slow_there_are_fewer(epochs, seconds, minutes, fitting) -> None:
    assert _fit_epochs(epochs, seconds, minutes) == fitting


def test_a_teacher_is_spoken_of_where_there_is_one() -> None:
    assert ["teacher" in _advise(rung(0.01, 0.03), 3e-5, 5000, has) for has in (False, True)] == [
        0,
        1,
    ]


def test_the_factor_is_taken_over_and_nothing_else(tmp_path) -> None:
    """What was tried is the control's rate, and the recipe's own may be another."""
    student = replace(PROFILES["base"].student, learning_rate=0.25)
    tried = {"learning_rate_factor": 3.0, "learning_rate": 0.01}
    write_record({"student": tried}, tmp_path / "pilot.json")
    found = read_rates(tmp_path / "pilot.json", student)
    assert found == replace(student, learning_rate=0.75)


@pytest.mark.parametrize(
    "content", ["{}", "[]", "no", '{"student": {"learning_rate_factor": "high"}}']
)
def test_other_files_are_refused(content, tmp_path) -> None:
    file = tmp_path / "pilot.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"pilot\.json"):
        read_rates(file, PROFILES["base"].student)
    with pytest.raises(FileNotFoundError):
        read_rates(tmp_path / "nowhere.json", PROFILES["base"].student)


@pytest.mark.parametrize(
    ("count", "most"), [(10, 3), (3, 10), (1, 1), (7, 7), (1000, 256), (511, 256)]
)
def test_a_part_is_spread_over_the_whole(count, most) -> None:
    found = _spread(count, most)
    assert len(found) == min(count, most) and found == sorted(set(found))
    gaps = [after - before for before, after in pairwise([*found, count])]
    assert found[0] == 0 and max(gaps) - min(gaps) <= 1  # up to the end


def test_a_person_reads_hours_and_megabytes() -> None:
    report = {
        "pictures": {"captioned": 6000, "uncaptioned": 0, "val": 1000},
        "tried_on": {"captioned": 256, "val": 200, "labelled": 150},
        "regions_a_picture": 2.5,
        "without_regions": 4,
        "seconds_a_step": 12.5,
        "seconds_of_the_run": {"regions": 60.0, "the control": 600.0, "region_taught": 36_000.0},
        "megabytes": 1234.4,
        "advice": "Run it.",
    }
    said = "\n".join(say_pilot(report))
    for words in ("6,000 pictures", "2.5; nothing was found in 4 of 256", "12.50 s", "10.2 h"):
        assert words in said
    for words in ("regions 60 s", "the control 10 min", "region_taught 10.0 h", "1,234 MB"):
        assert words in said
    assert said.endswith("Run it.")
