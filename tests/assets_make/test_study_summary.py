"""What a study's records say together, on records written by hand."""

import json
from dataclasses import replace

import pytest

from assets.make.study import read_study
from assets.make.study_summary import summarise
from dclip_kit.config import CONTROL
from dclip_kit.evaluation.evaluate import WAYS
from dclip_kit.evaluation.study_table import format_study
from dclip_kit.runtime.files import write_record
from tests.assets_make.test_study import counts, write_study


def point(alpha: float, retention: float, forth: str, back: str = "11") -> dict:
    """Of a frontier on two pictures, the first with four captions and the second with two."""
    return {
        "alpha": alpha,
        "text_to_image": sum(counts(forth)) / 6,
        "image_to_text": sum(counts(back)) / 2,
        "retention": retention,
        "retention_held_out_style": None,
        "hits": {"text_to_image": forth, "image_to_text": back},
    }


def by_hand(frontier, alpha=0.0, correct="1111100000", val=((0.0, 0.25, 1.0),), **more) -> dict:
    """A record."""
    chosen = next(each for each in frontier if each["alpha"] == alpha)
    figures = {way: {"recall_at_1": chosen[way], "recall_at_5": 0.5 + alpha} for way in WAYS}
    names = ("alpha", "recall_at_1", "retention")
    return {
        "seed": 0,
        "settings_digest": "x",
        "steps": 3,
        "seconds": 1.5,
        "alpha": alpha,
        "val": [dict(zip(names, each, strict=True)) for each in val],
        "frontier": frontier,
        "queries": {"text_to_image": "42", "image_to_text": "11"},
        "chosen": figures | {"correct": correct},
        "probe": None,
        **more,
    }


@pytest.fixture
def written(tmp_path):
    """A study of which some records were written down, none of it was run."""
    study = read_study(write_study(tmp_path))
    records = {
        ("clip", 0): by_hand([point(0.0, 1.0, "10")]),
        (CONTROL, 0): by_hand(
            [point(0.0, 1.0, "10"), point(0.2, 0.97, "21"), point(0.4, 0.92, "41", "10")],
            alpha=0.2,
            correct="1111000000",
            val=((0.0, 0.25, 1.0), (0.2, 0.5, 0.975), (0.4, 0.7, 0.935)),
        ),
        (CONTROL, 1): by_hand(
            [point(0.0, 1.0, "10"), point(0.2, 0.99, "20"), point(0.4, 0.96, "42", "00")],
            alpha=0.4,
            correct="1111100000",
            val=((0.0, 0.25, 1.0), (0.2, 0.45, 0.95), (0.4, 0.9, 0.99)),
            seed=1,
        ),
    }
    for (name, seed), found in records.items():
        arm = next(arm for arm in study.arms if arm.name == name)
        write_record(found | {"settings": study.describe(arm, seed)}, study.record_of(arm, seed))
    return study


def test_records_of_other_settings_are_not_summed_up(written) -> None:
    with pytest.raises(
        ValueError, match=r"of the settings in .*, but they differ in measured\.gallery"
    ):
        summarise(replace(written, gallery=77))


@pytest.mark.parametrize("kind", ["captioned", "labelled"])
def test_records_of_other_pictures_are_not_compared(kind, written) -> None:
    """As they are when pictures have come to the data since some were trained."""
    place = written.record_of(written.arms[2], 1)
    record = json.loads(place.read_text())
    if kind == "captioned":
        record["queries"]["text_to_image"] = "421"
    else:
        record["chosen"]["correct"] += "1"
    write_record(record, place)
    with pytest.raises(ValueError, match=rf"{written.arms[2].name} was measured on others than"):
        summarise(written)


def test_arms_are_compared_at_one_retention_between_their_mixtures(written) -> None:
    """Worked out by hand: seed 0 falls to 95.5 % at 0.3 of the way, seed 1 never does."""
    result = summarise(written)
    assert list(result["arms"]) == ["clip", CONTROL]  # what has no record is left out
    found = result["arms"][CONTROL]["at_95_5"]
    # Hits of seed 0: (2, 1) + 0.3 (2, 0) = (2.6, 1); of seed 1: (4, 2). Their mean: (3.3, 1.5).
    assert found["text_to_image"]["recall_at_1"] == pytest.approx(4.8 / 6)
    # (1, 1) - 0.3 (0, 1) = (1, 0.7), and (0, 0): (0.5, 0.35).
    assert found["image_to_text"]["recall_at_1"] == pytest.approx(0.85 / 2)
    clip = result["arms"]["clip"]["at_95_5"]
    assert clip["text_to_image"]["recall_at_1"] == pytest.approx(1 / 6)
    gain = found["text_to_image"]["vs"]["clip"]
    assert gain["relative"] == pytest.approx(3.8)
    # A resample is one of the pictures twice or both; clip finds nothing of the second.
    assert gain["ci95"] == pytest.approx([3.3 / 1 - 1, 4.8 / 1 - 1])
    back = clip["text_to_image"]["vs"][CONTROL]
    assert back["relative"] == pytest.approx(1 / 4.8 - 1)
    assert list(found["text_to_image"]["vs"]) == ["clip"]


def test_there_is_no_gain_over_a_rival_that_finds_nothing(written) -> None:
    place = written.record_of(written.arms[0], 0)
    record = json.loads(place.read_text())
    write_record(record | {"frontier": [point(0.0, 1.0, "00")]}, place)
    found = summarise(written)["arms"][CONTROL]["at_95_5"]
    assert found["text_to_image"]["vs"] == {} and list(found["image_to_text"]["vs"]) == ["clip"]


def test_what_val_chose_is_averaged_over_seeds(written) -> None:
    found = summarise(written)["arms"][CONTROL]
    chosen = found["chosen"]
    # (2, 1) of seed 0 at 0.2, (4, 2) of seed 1 at 0.4.
    assert chosen["text_to_image"]["recall_at_1"] == pytest.approx((3 + 6) / 2 / 6)
    for way in WAYS:
        assert chosen[way].keys() == {"recall_at_1", "recall_at_5", "vs"}
        assert chosen[way]["recall_at_5"] == pytest.approx(0.8)  # the mean of 0.7 and 0.9
    kept = chosen["retention"]
    assert kept["estimate"] == pytest.approx((4 + 5) / 2 / 5)
    assert kept["ci95"][0] < 0.9 < kept["ci95"][1] == 1  # nothing is named that clip does not name
    # On val seed 0 falls to 95.5 % half-way between 0.2 and 0.4, seed 1 at 0.9 of 0 to 0.2.
    assert found["val"] == pytest.approx((0.6 + (0.25 + 0.9 * 0.2)) / 2)
    assert [run["alpha"] for run in found["runs"]] == [0.2, 0.4]
    assert [run["seed"] for run in found["runs"]] == [0, 1]


def test_each_training_is_read_at_the_retention_too(written) -> None:
    one, other = summarise(written)["arms"][CONTROL]["runs"]
    assert [one[way] for way in WAYS] == pytest.approx([3.6 / 6, 1.7 / 2])  # (2.6, 1), (1, 0.7)
    assert [other[way] for way in WAYS] == pytest.approx([1.0, 0.0])


def test_frontiers_are_averaged_over_seeds(written) -> None:
    frontier = summarise(written)["arms"][CONTROL]["frontier"]
    assert [point["alpha"] for point in frontier] == [0.0, 0.2, 0.4]
    assert [point["retention"] for point in frontier] == pytest.approx([1.0, 0.98, 0.94])
    assert frontier[2]["text_to_image"] == pytest.approx((5 + 6) / 2 / 6)
    assert frontier[2]["image_to_text"] == pytest.approx((1 + 0) / 2 / 2)
    assert {point["retention_held_out_style"] for point in frontier} == {None}


def test_the_table_says_recall_and_gains_in_percent(written) -> None:
    lines = format_study(summarise(written)).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    over = ["over clip, %", f"over {CONTROL}, %"]
    assert rows[0] == [
        *("arm", "seeds", "val", "t→i R@1"),
        *over,
        "i→t R@1",
        *over,
        "kept at α",
    ]
    assert set("".join(rows[1])) == {"-", ":"} and len({len(line) for line in lines}) == 1
    assert rows[2][:5] == ["clip", "1", "25.0", "16.7", "–"] and rows[2][-1] == "100.0"
    assert rows[3][:4] == [CONTROL, "2", "51.5", "80.0"] and rows[3][-1] == "90.0"
    assert rows[3][4:7] == ["+380.0\N{NO-BREAK SPACE}[230.0,\N{NO-BREAK SPACE}380.0]", "–", "42.5"]


def test_compositions_are_shares_of_items_beside_other_arms(written) -> None:
    """Worked out by hand: four items, of which two seeds tell different ones apart."""
    told = {"clip": ["1000"], CONTROL: ["1100", "1110"]}
    for arm in written.arms:
        for seed, right in enumerate(told.get(arm.name, [])):
            place = written.record_of(arm, seed)
            asked = {"order": {"text": right, "image": "0000", "group": "0000"}}
            write_record(json.loads(place.read_text()) | {"compositions": asked}, place)
    result = summarise(written)
    found = result["arms"][CONTROL]["compositions"]["order"]
    assert found["text"]["estimate"] == pytest.approx(2.5 / 4)
    assert found["image"]["estimate"] == 0 and found["image"]["ci95"] == [0, 0]
    gain = found["text"]["vs"]["clip"]
    assert gain["difference"] == pytest.approx(1.5 / 4)
    assert 0 <= gain["ci95"][0] < 1.5 / 4 < gain["ci95"][1] <= 1
    lines = format_study(result).splitlines()
    assert any("order" in line and CONTROL in line and "62.5" in line for line in lines)


def test_skewness_is_averaged_over_seeds(written) -> None:
    for seed, after in enumerate((1.0, 2.0)):
        place = written.record_of(written.arms[2], seed)
        hubs = {way: {"before": 4.0, "after": after} for way in WAYS}
        write_record(json.loads(place.read_text()) | {"skewness_of_k_occurrence": hubs}, place)
    arms = summarise(written)["arms"]
    both = {way: {"before": 4.0, "after": 1.5} for way in WAYS}
    assert arms[CONTROL]["skewness_of_k_occurrence"] == both
    assert "skewness_of_k_occurrence" not in arms["clip"]


def test_a_study_without_a_record_is_an_empty_table(tmp_path) -> None:
    result = summarise(read_study(write_study(tmp_path)))
    assert result["arms"] == {} and len(format_study(result).splitlines()) == 2
