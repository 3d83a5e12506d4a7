"""A stored study's table, of a result written by hand."""

import pytest

from dclip_kit.config import CONTROL
from dclip_kit.evaluation.evaluate import WAYS
from dclip_kit.evaluation.study_table import format_study


def arm(recall: float, seeds: int = 1, **gains: float) -> dict:
    versus = {name: {"relative": x, "ci95": [x - 0.1, x + 0.1]} for name, x in gains.items()}
    return {
        "runs": [{}] * seeds,
        "val": 0.5,
        "at_95_5": {way: {"recall_at_1": recall, "vs": versus} for way in WAYS},
        "chosen": {"retention": {"estimate": 0.97}},
    }


def rows_of(text: str) -> list[list[str]]:
    lines = text.replace("\N{NO-BREAK SPACE}", " ").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_an_arm_stands_beside_clip_and_the_control() -> None:
    arms = {"clip": arm(0.1, **{CONTROL: -0.5}), CONTROL: arm(0.2, 3, clip=1.0)}
    rows = rows_of(format_study({"arms": arms}))
    assert rows[0][4:6] == ["over clip, %", f"over {CONTROL}, %"]
    assert rows[2][:6] == ["clip", "1", "50.0", "10.0", "–", "-50.0 [-60.0, -40.0]"]
    assert rows[3][:6] == [CONTROL, "3", "50.0", "20.0", "+100.0 [90.0, 110.0]", "–"]
    assert rows[3][-1] == "97.0"


def test_arms_may_be_compared_at_what_val_chose() -> None:
    arms = {"clip": arm(0.1, **{CONTROL: -0.5}), CONTROL: arm(0.2, clip=1.0)}
    chosen = {
        way: {"recall_at_1": 0.3, "vs": {"clip": {"relative": 2.0, "ci95": [1, 3]}}} for way in WAYS
    }
    arms[CONTROL]["chosen"] |= chosen
    arms["clip"]["chosen"] |= {way: {"recall_at_1": 0.1, "vs": {}} for way in WAYS}
    row = rows_of(format_study({"arms": arms}, "chosen"))[3]
    assert row[3:5] == ["30.0", "+200.0 [100.0, 300.0]"] and row[-1] == "97.0"


def test_without_the_control_no_column_compares_with_it() -> None:
    rows = rows_of(format_study({"arms": {"clip": arm(0.1), "dclip": arm(0.2, clip=1.0)}}))
    assert rows[0][4] == "over clip, %" and CONTROL not in "".join(rows[0])


def test_compositions_have_a_table_of_their_own() -> None:
    share = {"estimate": 0.625, "ci95": [0.5, 0.75]}
    asked = {"compositions": {"order": {"text": share, "image": share, "group": share}}}
    text = format_study({"arms": {"clip": arm(0.1) | asked}})
    first, second = text.split("\n\n")
    assert "62.5" not in first and rows_of(second)[2][2] == "62.5 [50.0–75.0]"


def test_a_result_of_another_form_is_no_table() -> None:
    with pytest.raises(KeyError):
        format_study({})
