"""Studies: reading them, and their summary on records written by hand."""

from pathlib import Path

import pytest

from dclip_kit.config import CONTROL, PROFILES, apply_recipe, change_settings
from dclip_kit.evaluation.galleries import WAYS
from dclip_kit.evaluation.records import write_record
from dclip_kit.evaluation.study import StudyArm, format_study, read_study, summarise

COMMON = """
seeds = [0, 1]
gallery = 4
uncaptioned = "pocket:5"
region_teacher = { width = 24, heads = 3, epochs = 2 }
teacher = { heads = 4, epochs = 1 }
"""
ARMS = """
[arms]
clip = { recipe = "none" }
clip_nnn = { recipe = "none", nnn = true }
contrastive_rehearsal = { recipe = "contrastive_rehearsal", steps = 4 }
region_taught = { recipe = "region_taught", steps = 3, student = { learning_rate = 2e-3 } }
"""


def write_study(folder: Path, arms: str = ARMS, common: str = COMMON) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.toml"
    path.write_text(common + arms, encoding="utf-8")
    return path


def counts(text: str) -> list[int]:
    return [ord(each) - ord("0") for each in text]


# Reading


def test_a_study_says_what_is_compared(tmp_path) -> None:
    study = read_study(write_study(tmp_path))
    pocket_profile = change_settings(
        PROFILES["pocket"],
        {
            "uncaptioned": "pocket:5",
            "region_teacher": {"width": 24, "heads": 3, "epochs": 2},
            "teacher": {"heads": 4, "epochs": 1},
        },
    )
    assert study.profile == pocket_profile
    assert (study.seeds, study.gallery) == ((0, 1), 4)
    taught = apply_recipe(pocket_profile, "region_taught")
    taught = change_settings(taught, {"student": {"learning_rate": 2e-3}})
    assert study.arms == (
        StudyArm("clip", None),
        StudyArm("clip_nnn", None, nnn=True),
        StudyArm(CONTROL, apply_recipe(pocket_profile, CONTROL), 4),
        StudyArm("region_taught", taught, 3),
    )
    assert [study.seeds_of(arm) for arm in study.arms] == [(0,), (0,), (0, 1), (0, 1)]
    assert study.result == tmp_path / "tiny.json"
    assert study.record_of(study.arms[3], 1) == tmp_path / "tiny" / "region_taught-1.json"


def test_a_study_needs_seeds_and_arms_alone(tmp_path) -> None:
    arms = '[arms]\nclip = { recipe = "none" }\nfew = { recipe = "dclip", captions = 0.1 }\n'
    study = read_study(write_study(tmp_path, arms, 'profile = "base"\nseeds = [3]\n'))
    assert study.profile == PROFILES["base"] and study.gallery == 0
    few = StudyArm("few", apply_recipe(PROFILES["base"], "dclip"), 0, 0.1)
    assert study.arms[1] == few


CLIP = '[arms]\nclip = { recipe = "none" }\n'


@pytest.mark.parametrize(
    ("common", "arms", "says"),
    [
        ("seeds = [", CLIP, "Invalid value|Unclosed array"),
        ("", CLIP, "seeds"),
        ("seeds = [0]", "", "arms"),
        ("seeds = 3", CLIP, "not iterable"),
        ("seeds = [0]", '[arms]\nx = { recipe = "none" }', "clip"),
        ("seeds = [0]", '[arms]\nclip = { recipe = "dclip" }', "clip is the untouched one"),
        ("seeds = [0]\nseed = -1", CLIP, "seed to be a whole number"),
        ("seeds = [0]\nseedz = 1", CLIP, "a setting out of .*, got 'seedz'"),
        ('seeds = [0]\nprofile = "big"', CLIP, "got 'big'"),
        ("seeds = [0]\nstudent = { epoch = 3 }", CLIP, "got 'epoch'"),
        ("seeds = [0]", CLIP + "x = { steps = 3 }", "recipe"),
        ("seeds = [0]", CLIP + 'x = { recipe = "y" }', "a recipe out of .*, got 'y'"),
        ("seeds = [0]", CLIP + 'x = { recipe = "dclip", step = 3 }', "got 'step'"),
        ("seeds = [0]", CLIP + 'x = { recipe = "dclip", captions = 0.0 }', "captions in x to be"),
        ("seeds = [0]", CLIP + 'x = { recipe = "dclip", captions = 2 }', "captions in x to be"),
        ("seeds = [0]", CLIP + 'x = { recipe = "dclip", nnn = true }', "no nnn in x"),
        (
            "seeds = [0]\nstudent = { soup = 2 }",
            CLIP + 'x = { recipe = "dclip" }',
            "soup in x to be",
        ),
        ("seeds = [0]", CLIP + 'x = { recipe = "none", steps = 3, seed = 1 }', "no seed, steps in"),
    ],
)
def test_what_a_study_cannot_say_is_refused(common, arms, says, tmp_path) -> None:
    path = write_study(tmp_path, arms, common + "\n")
    with pytest.raises(ValueError, match=rf"Expected a study in {path}, .*{says}.*mend it"):
        read_study(path)


def test_a_study_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"Expected a study in .*none\.toml"):
        read_study(tmp_path / "none.toml")


# The summary


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
        write_record(found, study.record_of(arm, seed))
    return study


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
    over = ["over clip", f"over {CONTROL}"]
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
    assert rows[3][4:7] == ["+380.0 % [+230.0, +380.0]", "–", "42.5"]


def test_a_study_without_a_record_is_an_empty_table(tmp_path) -> None:
    result = summarise(read_study(write_study(tmp_path)))
    assert result["arms"] == {} and len(format_study(result).splitlines()) == 2
