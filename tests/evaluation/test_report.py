"""The report: the shape that was promised, JSON, and numbers that can be checked by hand."""

import json
import math
from dataclasses import replace

import pytest
import torch

from dclip_kit.config import CONTROL, get_profile
from dclip_kit.evaluation.arms import Arm, ArmResult, Candidate
from dclip_kit.evaluation.evaluate import ZeroShot
from dclip_kit.evaluation.probe import ShortcutProbe
from dclip_kit.evaluation.records import write_record
from dclip_kit.evaluation.report import describe_arm, describe_gain, format_report, make_report
from dclip_kit.metrics import retrieval_metrics

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
        Arm(name, clip, alpha, candidates, [{"epoch": 1, "loss": 1.0}]),
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


def test_the_report_prints_what_the_recipe_gains_over_clip_and_over_its_control(report) -> None:
    lines = format_report(report).splitlines()
    gains = [line.split(",")[0] for line in lines if " over " in line]
    assert gains == [f"{TAUGHT} over clip", f"{TAUGHT} over {CONTROL}"]


def test_the_interval_resamples_pictures_with_their_captions(results) -> None:
    """Of clip's and the other's hits a picture gains 1, 0, 2 and 0 captions of 2."""
    clip, taught = (results[name].retrieval.text_to_image.hits() for name in ("clip", TAUGHT))
    gain = describe_gain(clip, taught, OWNERS)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(4, (20000, 4), generator=generator)
    differences = torch.tensor([0.5, 0.0, 1.0, 0.0])[drawn].mean(1)
    low, high = differences.quantile(torch.tensor([0.025, 0.975])).tolist()
    assert gain["ci95"] == pytest.approx([low, high], abs=0.13)  # steps of an eighth
    assert gain["ci95"][0] <= gain["absolute"] <= gain["ci95"][1]
    none = describe_gain(taught, taught, OWNERS)
    assert (none["absolute"], none["relative"], none["ci95"]) == (0, 0, [0, 0])


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
