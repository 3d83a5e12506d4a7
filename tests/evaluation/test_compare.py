"""What may be claimed of two arms: tables, gains, queries won and lost; the report."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dclip_kit.config import CONTROL, get_profile
from dclip_kit.data import CaptionedImages
from dclip_kit.evaluation.arms import Arm, ArmResult, Candidate
from dclip_kit.evaluation.compare import (
    WAYS,
    compare,
    describe_arm,
    describe_gain,
    draw_queries,
    format_compositions,
    format_probe,
    format_report,
    format_retrieval,
    format_zero_shot,
    make_report,
    recall_gains,
    say_gain,
    say_luck,
    say_report,
    warn_of_captions,
    warn_of_few,
    won_and_lost,
)
from dclip_kit.evaluation.evaluate import ZeroShot
from dclip_kit.evaluation.inspection import ShortcutProbe
from dclip_kit.metrics import (
    COMPOSITION_CHANCE,
    Gain,
    Interval,
    paired_bootstrap,
    retrieval_metrics,
)
from dclip_kit.runtime.files import write_record

OWNER = torch.tensor([0, 0, 1, 2])  # three pictures, four captions


def measured(texts: torch.Tensor):
    """Pictures are the axes, so that a caption's coordinates are its scores."""
    return retrieval_metrics(torch.eye(3), texts, OWNER, (1, 2))


@pytest.fixture
def before():
    return measured(torch.tensor([[0.9, 0, 0], [0, 0.9, 0.1], [0, 0.9, 0], [0.9, 0.1, 0.5]]))


@pytest.fixture
def after():
    return measured(torch.tensor([[0.9, 0, 0], [0.9, 0.5, 0], [0.9, 0.5, 0], [0, 0, 0.9]]))


# Text → image ranks: before 1, 3, 1, 2; after 1, 1, 2, 1.


def test_the_example_is_what_it_says(before, after) -> None:
    assert before.text_to_image.ranks.tolist() == [1, 3, 1, 2]
    assert after.text_to_image.ranks.tolist() == [1, 1, 2, 1]


def test_the_table_has_every_arm_metric_and_direction(before, after) -> None:
    text = format_retrieval({"clip": before, "dclip": after})
    blocks = [block.splitlines() for block in text.split("\n\n")]
    assert [block[0].split("  ")[0] for block in blocks] == list(WAYS.values())
    for block, way in zip(blocks, WAYS, strict=True):
        assert block[0].split()[-2:] == ["clip", "dclip"]
        rows = {line[:13].strip(): re.findall(r"([\d.]+) \[", line) for line in block[1:]}
        assert list(rows) == ["Recall@1", "Recall@2", "MAP", "MRR", "median rank"]
        for name, result in (("clip", before), ("dclip", after)):
            found = getattr(result, way)
            column = ["clip", "dclip"].index(name)
            expected = [*found.recall_at.values(), found.mean_average_precision]
            expected.append(found.mean_reciprocal_rank)
            shown = [float(row[column]) for row in list(rows.values())[:4]]
            assert shown == pytest.approx([100 * value for value in expected], abs=0.051)
            assert f"{found.median_rank:g}" in block[-1]
    assert len({len(line) for block in blocks for line in block}) == 1


def test_compositions_have_a_row_for_each_kind_and_model() -> None:
    scores = {name: Interval(0.5, 0.4, 0.6) for name in COMPOSITION_CHANCE}
    other = scores | {"group": Interval(0.125, 0.1, 0.15)}
    found = {"clip": {"size": scores, "order": other}, "dclip": {"size": other, "order": scores}}
    head, _, *rows = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in format_compositions(found).splitlines()
    ]
    scores_by_chance = ["text (chance 25.0)", "image (chance 25.0)", "group (chance 16.7)"]
    assert head == ["kind", "model", *scores_by_chance]
    half = "50.0 [40.0–60.0]"
    assert [row[:2] for row in rows] == [
        [kind, name] for kind in ("size", "order") for name in ("clip", "dclip")
    ]
    assert rows[0][2:] == [half] * 3 and rows[1][2:] == [half, half, "12.5 [10.0–15.0]"]


def test_the_tables_columns_do_not_touch(before, after) -> None:
    perfect = replace(before, text_to_image=after.text_to_image)
    text = format_retrieval({"clip": perfect, "dclip": perfect})
    assert "[100.0–100.0]  100.0 [" in text
    assert len({len(line) for line in text.splitlines() if line}) == 1


def test_the_tables_intervals_are_bootstraps_over_images(before) -> None:
    hits = before.text_to_image.hits(1).double()
    spread = paired_bootstrap(0 * hits, hits, OWNER)
    ends = f"[{100 * spread.low:.1f}–{100 * spread.high:.1f}]"
    assert ends in format_retrieval({"clip": before}).splitlines()[1]


def test_gains_are_paired_differences_both_ways(before, after) -> None:
    found = compare(before, after)
    assert list(found) == list(WAYS.values())
    for way, title in WAYS.items():
        old, new = getattr(before, way), getattr(after, way)
        gains = {gain.name: gain for gain in found[title]}
        assert list(gains) == ["Recall@1", "Recall@2", "MAP", "MRR"]
        assert gains["Recall@1"].change == paired_bootstrap(
            old.hits(1), new.hits(1), old.image_of_query
        )
        precision = old.average_precision.double(), new.average_precision.double()
        assert gains["MAP"].change == paired_bootstrap(*precision, old.image_of_query)
        assert gains["MRR"].before == pytest.approx(old.mean_reciprocal_rank)
    assert found["text → image"][0].change.estimate == pytest.approx(0.25)


def test_captions_that_cannot_be_found_are_told(clip) -> None:
    """The tiny CLIP reads twelve tokens, start and end among them."""

    def told(*captions: tuple[str, ...]) -> str:
        paths = tuple(Path(f"{index}.png") for index in range(len(captions)))
        return warn_of_captions(CaptionedImages(paths, captions, "test", "own"), clip)

    assert told(("a cat", "a cat"), ("a dog",)) == ""  # twice of one picture is no other's
    shared = told(("a cat", "a tabby"), ("a cat",), ("a dog",))
    assert shared.startswith("2 captions are those of several pictures, which tie: no text →")
    assert "Recall@1 is above 75.0%" in shared  # two halves and two certainties
    twice = told(("a cat", "a cat"), ("a cat",))
    assert "Recall@1 is above 66.7%" in twice  # both of the first may find it
    assert told(("e " * 10,), ("a dog",)) == ""
    longer = told(("e " * 11,), ("a dog",))
    assert longer.startswith(f"1 captions are longer than what {clip.name} reads")


def test_a_test_of_few_pictures_is_told() -> None:
    assert warn_of_few(100, "own") == ""
    few = warn_of_few(20, "own\x1b[31m")
    assert few.startswith("Note: 20 pictures of own\\x1b[31m are few") and "by 5 points" in few
    assert "by 100 points" in warn_of_few(0, "own")  # and nothing is divided by


def test_gains_by_facet_are_of_recall_at_k(before, after) -> None:
    facets = {"size": ["small", "large", "large", "small"]}
    way = before.text_to_image, after.text_to_image
    large, small = recall_gains(*way, facets, {"size": ("large", "small")})["size"]
    assert (large.before, large.after, small.before, small.after) == (0.5, 0.5, 0.5, 1)
    (first, _) = recall_gains(*way, facets, {})["size"]
    assert first.name == "small"


@pytest.mark.parametrize(
    ("low", "high", "judged"),
    [
        (0.01, 0.03, "better"),
        (-0.03, -0.01, "worse"),
        (-0.01, 0.03, "not known to differ"),
        (0.0, 0.02, "not known to differ"),
    ],
)
def test_a_sentence_claims_what_the_interval_allows(low, high, judged) -> None:
    middle = (low + high) / 2
    sentence = say_gain(Gain("a", 5, 0.2, 0.2 + middle, Interval(middle, low, high)), "R@1")
    assert sentence.startswith(f"R@1: 20.0 → {20 + 100 * middle:.1f} %, {100 * middle:+.1f} points")
    assert sentence.endswith(f"[{100 * low:+.1f} to {100 * high:+.1f}]: {judged}")


def test_won_minus_lost_is_the_gain(before, after) -> None:
    swing = won_and_lost(before.text_to_image, after.text_to_image)
    assert (swing.won, swing.lost, swing.both, swing.neither) == ((1, 3), (2,), 1, 0)
    assert "2 won, 1 lost: +1 in all" in str(swing)


def test_drawn_queries_are_of_different_pictures_and_by_lot() -> None:
    owner = torch.arange(40) // 4
    chosen = list(range(3, 40))
    drawn = [draw_queries(chosen, owner, 10, seed) for seed in range(5)]
    for each in drawn:
        assert sorted(owner[each].tolist()) == list(range(10)) and set(each) <= set(chosen)
    assert len({tuple(each) for each in drawn}) == 5
    assert draw_queries(chosen, owner, 3, 1) == drawn[1][:3]
    assert draw_queries([], owner, 3) == []


def test_zero_shot_is_said_with_intervals_and_what_is_kept() -> None:
    def result(right: int) -> ZeroShot:
        correct = torch.arange(20) < right
        return ZeroShot(correct, right / 20, None, None)

    first, second = format_zero_shot({"clip": result(20), "dclip": result(10)}).splitlines()
    assert first == "clip: 100.0 [100.0–100.0] %"
    low, high = re.fullmatch(
        r"dclip: 50\.0 \[(.+)–(.+)\] %, 50\.0 \[\1–\2\] % of the first's", second
    ).groups()
    assert 20 < float(low) < 50 < float(high) < 80
    nothing = format_zero_shot({"clip": result(0), "dclip": result(10)})
    assert "of the first's" not in nothing


def test_columns_are_as_wide_as_their_names(before, after) -> None:
    table = format_retrieval({"a": before, "runs/of last week/dclip": after})
    lines = [line for line in table.splitlines() if line]
    assert {len(line) for line in lines} == {13 + 2 * len("  runs/of last week/dclip")}


# The report


OWNERS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
TAUGHT = "region_taught"  # the recipe of the profiles


def result(clip, name: str, hits: list[int], correct: list[int], held_out: list[int]) -> ArmResult:
    """Four pictures with two captions each, of which those in `hits` find their picture first."""
    texts = torch.eye(4)[OWNERS].clone()
    for caption in range(8):
        if caption not in hits:
            texts[caption] = torch.eye(4)[(OWNERS[caption] + 1) % 4]

    def zero_shot(values: list[int]) -> ZeroShot:
        right = torch.tensor(values, dtype=torch.bool)
        return ZeroShot(right, right.float().mean().item(), 1.0, None)

    alpha = None if name == "clip" else 0.4
    candidates = () if name == "clip" else (Candidate(0.4, 0.5, 0.9),)
    return ArmResult(
        Arm(clip, alpha, candidates, [{"epoch": 1, "loss": 1.0}]),
        retrieval_metrics(torch.eye(4), texts, OWNERS),
        zero_shot(correct),
        zero_shot(held_out),
    )


@pytest.fixture
def results(clip) -> dict[str, ArmResult]:
    return {
        "clip": result(clip, "clip", [0, 2], [1, 1, 1, 1, 0], [1, 0]),
        CONTROL: result(clip, CONTROL, [0, 1, 2], [1, 1, 0, 0, 1], [0, 0]),
        TAUGHT: result(clip, TAUGHT, [0, 1, 2, 4, 5], [1, 1, 1, 0, 0], [1, 1]),
    }


@pytest.fixture
def report(results) -> dict:
    probe = ShortcutProbe(own=0.6, shuffled=0.1, blank=0.05)
    return make_report(get_profile("pocket"), results, probe, 0.93, 12.34, [TAUGHT], note="more")


# A dict promises its keys and what stands below; a type promises itself.
NUMBER, GAIN = float, {"absolute": float, "relative": float, "ci95": [float, float]}
DIRECTION = {
    "recall_at": {"1": NUMBER, "5": NUMBER, "10": NUMBER},
    "mean_average_precision": NUMBER,
}
ARM = {
    "text_to_image": DIRECTION,
    "image_to_text": DIRECTION,
    "zero_shot": {
        "top1": NUMBER,
        "top1_held_out_style": NUMBER,
        "retention": NUMBER,
        "retention_ci95": [NUMBER, NUMBER],
    },
    "alpha": float | None,
}
PROMISED = {
    "profile": str,
    "trained_in_this_run": bool,
    "seconds": NUMBER,
    "peak_memory_mb": int,
    "arms": {"clip": ARM, CONTROL: ARM, TAUGHT: ARM},
    "gain": {"text_to_image_recall_at_1": GAIN},
    "gain_over_control": {"text_to_image_recall_at_1": GAIN},
    "teacher_probe": {"own": NUMBER, "shuffled": NUMBER, "blank": NUMBER},
    "ceiling": NUMBER,
}


def breaches(found, promised, place: str = "report") -> list[str]:
    if isinstance(promised, dict):
        return [
            breach
            for key, below in promised.items()
            for breach in (
                breaches(found[key], below, f"{place}.{key}")
                if isinstance(found, dict) and key in found
                else [f"{place} has no {key}"]
            )
        ]
    if isinstance(promised, list):
        fits = isinstance(found, list) and len(found) == len(promised)
        return [] if fits and all(map(isinstance, found, promised)) else [f"{place} is {found}"]
    fits = isinstance(found, promised) and not (isinstance(found, float) and math.isnan(found))
    return [] if fits else [f"{place} is {found!r}"]


def test_a_report_is_json_of_the_promised_shape(report, tmp_path) -> None:
    write_record(report, tmp_path / "runs" / "report.json")
    saved = json.loads((tmp_path / "runs" / "report.json").read_text(encoding="utf-8"))
    assert saved == json.loads(json.dumps(report, allow_nan=False))
    assert breaches(saved, PROMISED) == []
    assert saved["trained_in_this_run"] is True and saved["note"] == "more"
    trained = {name: arm["trained"] for name, arm in saved["arms"].items()}
    assert trained == {"clip": False, CONTROL: False, TAUGHT: True}
    assert saved["settings"]["selection"]["least_retention"] == 0.955
    del saved["arms"][TAUGHT]["zero_shot"]["retention"]
    assert breaches(saved, PROMISED) == [f"report.arms.{TAUGHT}.zero_shot has no retention"]


def test_what_is_not_known_stays_open(results) -> None:
    """Own data has neither a ceiling nor a style that no training shows."""
    plain = {name: replace(each, held_out=None) for name, each in results.items()}
    probe = ShortcutProbe(own=0.6, shuffled=0.1, blank=0.05)
    report = make_report(get_profile("base"), plain, probe, None, 1.0, [])
    assert report["ceiling"] is None and report["trained_in_this_run"] is False
    assert report["arms"][TAUGHT]["zero_shot"]["top1_held_out_style"] is None


def test_gains_are_differences_of_the_right_arms(report) -> None:
    recalls = {n: a["text_to_image"]["recall_at"]["1"] for n, a in report["arms"].items()}
    assert recalls == {"clip": 2 / 8, CONTROL: 3 / 8, TAUGHT: 5 / 8}
    for name, absolute, relative in (
        ("gain", 3 / 8, 5 / 2 - 1),
        ("gain_over_control", 2 / 8, 5 / 3 - 1),
        ("gain_of_control", 1 / 8, 3 / 2 - 1),
    ):
        gain = report[name]["text_to_image_recall_at_1"]
        assert gain["absolute"] == pytest.approx(absolute)
        assert gain["relative"] == pytest.approx(relative)


def test_the_reports_table_has_an_arm_in_each_row(report) -> None:
    lines = [line for line in format_report(report).splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in lines}) == 1 and {len(row) for row in table} == {13}
    assert [row[0] for row in table[2:]] == ["clip", CONTROL, TAUGHT]
    for row, (name, arm) in zip(table[2:], report["arms"].items(), strict=True):
        shares = []
        for side in (arm["text_to_image"], arm["image_to_text"]):
            shares += [*side["recall_at"].values(), side["mean_average_precision"]]
        assert row[:9] == [name, *(f"{100 * share:.1f}" for share in shares)]
    assert table[2][9:] == ["80.0", "50.0", "100.0 [100.0, 100.0]", "–"]
    low, high = report["arms"][TAUGHT]["zero_shot"]["retention_ci95"]
    kept = f"75.0 [{100 * low:.1f}, {100 * high:.1f}]"
    assert table[4][9:] == ["60.0", "100.0", kept, "0.40"]


@pytest.mark.parametrize("renamed", [False, True])
def test_a_reciprocal_rank_under_the_published_name_is_called_so(renamed, report) -> None:
    text = format_report(report | {"settings": {"reciprocal_rank_as_map": renamed}})
    assert ("MAP here is" in text and "mean reciprocal rank (MRR)" in text) == renamed


def test_the_report_prints_what_the_recipe_gains_over_clip_and_over_its_control(report) -> None:
    lines = format_report(report).splitlines()
    gains = [line.split(",")[0] for line in lines if " over " in line]
    assert gains == [f"{TAUGHT} over clip", f"{TAUGHT} over {CONTROL}"]


def test_the_report_says_its_sentences_below_its_table(report) -> None:
    table, sentences = format_report(report).split("\n\n")
    assert sentences.splitlines() == say_report(report)
    assert all(line.startswith("|") for line in table.splitlines())
    assert format_probe(report["teacher_probe"]) in say_report(report)
    assert say_report(report)[-1].startswith("Profile pocket, trained in this run: 12 s, ")
    assert format_probe({"own": 0.6, "blank": 0.05}).endswith(": own 60.0, blank 5.0.")
    unprobed = report | {"teacher_probe": None}
    assert not any("Teacher" in each for each in say_report(unprobed))


def test_the_report_says_in_numbers_what_its_intervals_do_not_cover(report) -> None:
    said = format_report(report)
    assert say_luck(False) in said and say_luck(True) not in said
    settings = report["settings"] | {
        "student": report["settings"]["student"] | {"train_text": True}
    }
    assert say_luck(True) in format_report(report | {"settings": settings})
    assert "seed" in said and "1 % of itself" in said and "3 to 4 %" in say_luck(True)


def test_the_interval_resamples_pictures_with_their_captions(results) -> None:
    """Of clip's and the other's hits a picture gains 1, 0, 2 and 0 captions of 2."""
    clip, taught = (results[name].retrieval.text_to_image.hits() for name in ("clip", TAUGHT))
    gain = describe_gain(clip, taught, OWNERS)["text_to_image_recall_at_1"]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(4, (20000, 4), generator=generator)
    differences = torch.tensor([0.5, 0.0, 1.0, 0.0])[drawn].mean(1)
    low, high = differences.quantile(torch.tensor([0.025, 0.975])).tolist()
    assert gain["ci95"] == pytest.approx([low, high], abs=0.13)  # steps of an eighth
    assert gain["ci95"][0] <= gain["absolute"] <= gain["ci95"][1]
    none = describe_gain(taught, taught, OWNERS)["text_to_image_recall_at_1"]
    assert (none["absolute"], none["relative"], none["ci95"]) == (0, 0, [0, 0])


def test_a_ratio_to_nothing_is_left_out_of_the_report(results) -> None:
    def lose(result):
        zero_shot = replace(result.zero_shot, correct=torch.zeros_like(result.zero_shot.correct))
        return replace(result, zero_shot=zero_shot)

    clip = results["clip"].retrieval.text_to_image.hits()
    gain = describe_gain(torch.zeros_like(clip), clip, OWNERS)["text_to_image_recall_at_1"]
    assert gain["relative"] is gain["relative_ci95"] is None and gain["absolute"] > 0
    lost = {name: lose(each) for name, each in results.items()}
    report = make_report(get_profile("pocket"), lost, None, None, 1.0, [])
    report["gain"] = {"text_to_image_recall_at_1": gain}
    assert {each["zero_shot"]["retention"] for each in report["arms"].values()} == {None}
    assert "– [–, –]" in format_report(report)
    assert "% relative" not in format_report(report).split("over clip")[1].splitlines()[0]


def test_retention_is_of_the_untouched_clip(results) -> None:
    clip = describe_arm(results["clip"], results["clip"])
    taught = describe_arm(results[TAUGHT], results["clip"])
    assert clip["zero_shot"]["retention"] == 1 and clip["alpha"] is None
    assert taught["zero_shot"]["retention"] == pytest.approx(3 / 4)
    assert taught["zero_shot"]["top1"] == pytest.approx(3 / 5)
    assert taught["zero_shot"]["top1_held_out_style"] == 1
    assert (taught["zero_shot"]["top1_domain"], taught["zero_shot"]["top1_never_fine_tuned"]) == (
        1.0,
        None,
    )
    low, high = taught["zero_shot"]["retention_ci95"]
    assert 0 <= low < 3 / 4 < high <= 1  # no picture was lost that it has
