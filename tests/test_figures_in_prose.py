"""Figures in sentences are those of the records: each is read out of its sentence and compared."""

import json
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from dclip_kit.evaluation.compare import say_luck

ROOT = Path(__file__).parent.parent
README, STUDIES = "README.md", "assets/studies/README.md"
FORTH, BACK = "text_to_image", "image_to_text"


@cache
def arms(study: str) -> dict[str, Any]:
    path = ROOT / "assets" / "studies" / f"{study}.json"
    return json.loads(path.read_text(encoding="utf-8"))["arms"]


def gain(study: str, arm: str, rival: str, way: str = FORTH, digits: int = 0) -> list[str]:
    """A gain in percent with its interval."""
    found = arms(study)[arm]["at_95_5"][way]["vs"][rival]
    return [f"{100 * each:.{digits}f}" for each in (found["relative"], *found["ci95"])]


def at_chosen(
    arm: str, rival: str, way: str = FORTH, digits: int = 0, study: str = "photo_table"
) -> list[str]:
    """A gain on photographs, at the weights that val chose."""
    found = arms(study)[arm]["chosen"][way]["vs"][rival]
    return [f"{100 * each:.{digits}f}" for each in (found["relative"], *found["ci95"])]


def untrained() -> list[str]:
    """Recall@1 on val of the mean of picture and crops, and of the untouched CLIP."""
    folder = ROOT / "assets" / "studies" / "photo_table"
    record = json.loads((folder / "crops_taught-0.json").read_text(encoding="utf-8"))
    recalls = record["teacher"]["val_recall_at_1"]["mean, 1"], record["val"][0]["recall_at_1"]
    assert record["teacher"]["weight"] == 1
    return [f"{100 * recall:.1f}" for recall in recalls]


def alone(study: str, arm: str, rival: str, way: str = FORTH) -> list[str]:
    """The gain alone; what is said of a loss has no sign."""
    return [gain(study, arm, rival, way)[0].lstrip("-")]


def by_training(arm: str, rival: str, way: str = FORTH) -> list[str]:
    """What each training gains over the rival's of its seed."""
    table = arms("pocket_table")
    beaten = {run["seed"]: run[way] for run in table[rival]["runs"]}
    return [f"{100 * (run[way] / beaten[run['seed']] - 1):.1f}" for run in table[arm]["runs"]]


def told_apart(kind: str, score: str) -> list[str]:
    """Shares of compositions, in percent with their intervals, of three models."""
    found = [
        arms("pocket_compositions")[arm]["compositions"][kind][score]
        for arm in ("region_taught", CONTROL, "clip")
    ]
    return [f"{100 * x:.0f}" for each in found for x in (each["estimate"], *each["ci95"])]


def recall(study: str, arm: str) -> list[str]:
    return [f"{100 * arms(study)[arm]['at_95_5'][FORTH]['recall_at_1']:.1f}"]


def unmixed(arm: str) -> list[str]:
    """The share of zero-shot accuracy that a vision transformer keeps at α = 1, in percent."""
    (whole,) = (x for x in arms("pocket_lora")[arm]["frontier"] if x["alpha"] == 1)
    return [f"{100 * whole['retention']:.0f}"]


def luck() -> list[str]:
    """As the kit says it of a report, which `assets.make.seed_luck` has measured."""
    said = r"of (\d+) pairs of such trainings (\d+)"
    frozen, text = (re.findall(said, say_luck(train_text))[0] for train_text in (False, True))
    return [*frozen, text[1], text[0]]


TABLE = partial(gain, "pocket_table")
CONTROL = "contrastive_rehearsal"
AT_HIGH_RATE = "region_taught_2", "contrastive_rehearsal_2"
NUMBER = r"[-+−]?(\d+(?:\.\d)?)"
INTERVAL = rf"{NUMBER} % \[{NUMBER}, {NUMBER}\]"
# Where, a sentence with a group for each figure, and what these are now.
CLAIMS: list[tuple[str, str, Callable[[], list[str]]]] = [
    (
        README,
        r"it finds (\d+) % more pictures by their captions than CLIP",
        lambda: alone("pocket_table", "region_taught", "clip"),
    ),
    (
        README,
        r"and (\d+) % more than its control",
        lambda: alone("pocket_table", "region_taught", CONTROL),
    ),
    (
        README,
        rf"without a teacher \({INTERVAL} more than a student that this control teaches",
        lambda: TABLE("region_taught", "self_taught"),
    ),
    (
        README,
        rf"the default one loses {INTERVAL} from picture",
        lambda: [at_chosen("region_taught", CONTROL, BACK)[each] for each in (0, 2, 1)],
    ),
    (
        README,
        r"captions alone bring (\d+) % over CLIP",
        lambda: alone("pocket_table", f"{CONTROL}_text", "clip"),
    ),
    (
        README,
        r"the paper's own recipe at our sizes and rates, finds (\d+) % less than the control",
        lambda: alone("pocket_table", "dclip", CONTROL),
    ),
    (
        README,
        r"to which our teacher adds (\d+) %",
        lambda: alone("pocket_table", "region_taught_text", f"{CONTROL}_text"),
    ),
    (README, rf"captions bring {INTERVAL} over CLIP", lambda: at_chosen(CONTROL, "clip")),
    (
        README,
        rf"over CLIP, {INTERVAL} where the text encoder learns",
        lambda: at_chosen(f"{CONTROL}_text", "clip"),
    ),
    (
        STUDIES,
        rf"\(`contrastive_rehearsal_text`\), it finds {INTERVAL} more",
        lambda: at_chosen(f"{CONTROL}_text", "clip"),
    ),
    (
        STUDIES,
        rf"and {INTERVAL} more than with a frozen one",
        lambda: at_chosen(f"{CONTROL}_text", CONTROL),
    ),
    (
        STUDIES,
        rf"`region_taught_text` finds {INTERVAL} t→i over its control",
        lambda: at_chosen("region_taught_text", f"{CONTROL}_text"),
    ),
    (
        STUDIES,
        rf"over its control, and {INTERVAL} less i→t",
        lambda: [
            at_chosen("region_taught_text", f"{CONTROL}_text", BACK)[each] for each in (0, 2, 1)
        ],
    ),
    (
        STUDIES,
        rf"boxes \(t→i {INTERVAL} over the control\)",
        lambda: at_chosen("region_taught_crops", CONTROL),
    ),
    (STUDIES, rf"and `self_taught` \({INTERVAL}\)", lambda: at_chosen("self_taught", CONTROL)),
    (
        STUDIES,
        rf"`whole_picture_taught` \({INTERVAL}\)",
        lambda: at_chosen("whole_picture_taught", CONTROL),
    ),
    (
        STUDIES,
        rf"`contrastive`, which rehearses nothing, finds {INTERVAL} more i→t",
        lambda: at_chosen("contrastive", CONTROL, BACK),
    ),
    (
        STUDIES,
        rf"or less than `contrastive` \(t→i {INTERVAL}, i→t",
        lambda: at_chosen("dclip", "contrastive", digits=1),
    ),
    (
        STUDIES,
        rf"than `contrastive` \(t→i .*?, i→t {INTERVAL}\)",
        lambda: at_chosen("dclip", "contrastive", BACK, digits=1),
    ),
    (
        STUDIES,
        rf"control at that rate, either \(t→i {INTERVAL}, i→t",
        lambda: at_chosen(*AT_HIGH_RATE, study="photo_choice"),
    ),
    (
        STUDIES,
        rf"at that rate, either \(t→i .*?, i→t {INTERVAL}; single",
        lambda: at_chosen(*AT_HIGH_RATE, BACK, study="photo_choice"),
    ),
    (
        README,
        rf"taught by their own crops, bring {INTERVAL}",
        lambda: at_chosen("crops_taught_unpaired", "clip"),
    ),
    (
        STUDIES,
        rf"`contrastive_rehearsal` finds {INTERVAL} more t→i than CLIP",
        lambda: at_chosen(CONTROL, "clip"),
    ),
    (
        STUDIES,
        rf"`crops_taught` finds {INTERVAL} over it",
        lambda: at_chosen("crops_taught", CONTROL, digits=1),
    ),
    (
        STUDIES,
        rf"and `region_taught` {INTERVAL}; i→t",
        lambda: at_chosen("region_taught", CONTROL, digits=1),
    ),
    (
        STUDIES,
        rf"i→t, `region_taught` even finds {INTERVAL} less",
        lambda: [at_chosen("region_taught", CONTROL, BACK)[each] for each in (0, 2, 1)],
    ),
    (STUDIES, rf"finds more than CLIP, {NUMBER} and not {NUMBER} % on val", untrained),
    (
        STUDIES,
        rf"untrained mean does, and finds {INTERVAL} more t→i than CLIP",
        lambda: at_chosen("crops_taught_unpaired", "clip"),
    ),
    (STUDIES, rf"`sds` finds {INTERVAL} more t→i than CLIP", lambda: TABLE("sds", "clip")),
    (
        STUDIES,
        rf"`sds` over them {INTERVAL}, `pocket_sds`",
        lambda: gain("pocket_sds", "sds", "contrastive_norms", digits=1),
    ),
    (
        STUDIES,
        rf"finds {INTERVAL} more than `whole_picture_taught`",
        lambda: TABLE("region_taught", "whole_picture_taught"),
    ),
    (
        STUDIES,
        rf"as many steps, finds {INTERVAL} more than the control",
        lambda: TABLE("self_taught", CONTROL),
    ),
    (
        STUDIES,
        rf"and `region_taught` {INTERVAL} more than that",
        lambda: TABLE("region_taught", "self_taught"),
    ),
    (
        STUDIES,
        rf"plus its regions' mean, finds {INTERVAL} less than the control",
        lambda: [TABLE("crops_taught", CONTROL)[each] for each in (0, 2, 1)],
    ),
    (
        STUDIES,
        rf"not known to find more than CLIP: {INTERVAL}",
        lambda: TABLE("crops_taught_unpaired", "clip", digits=1),
    ),
    (
        STUDIES,
        rf"then finds {INTERVAL} more t→i",
        lambda: TABLE("region_taught_text", f"{CONTROL}_text"),
    ),
    (
        STUDIES,
        rf"and {INTERVAL} more i→t, than its own control",
        lambda: TABLE("region_taught_text", f"{CONTROL}_text", BACK),
    ),
    (
        STUDIES,
        rf"its trainings gain {NUMBER}, {NUMBER} and {NUMBER} % t→i",
        lambda: by_training("region_taught_text", f"{CONTROL}_text"),
    ),
    (
        STUDIES,
        rf"those of `region_taught` gain {NUMBER}, {NUMBER} and {NUMBER} % over",
        lambda: by_training("region_taught", CONTROL),
    ),
    (
        STUDIES,
        rf"`lora_2` finds {INTERVAL} t→i over `full_1`, and {INTERVAL} i→t",
        lambda: [
            *gain("pocket_lora", "lora_2", "full_1", digits=1),
            *gain("pocket_lora", "lora_2", "full_1", BACK, digits=1),
        ],
    ),
    (
        STUDIES,
        rf"mixed in, it keeps {NUMBER} % of zero-shot accuracy, and `full_1` {NUMBER} %",
        lambda: [*unmixed("lora_2"), *unmixed("full_1")],
    ),
    (
        STUDIES,
        rf"the control with all \(t→i {INTERVAL}",
        lambda: gain("pocket_captions", "region_taught_25", f"{CONTROL}_100", digits=1),
    ),
    (
        STUDIES,
        rf"no known gain over six \({INTERVAL}",
        lambda: gain("pocket_steps", "region_taught_3600", "region_taught_2400", digits=1),
    ),
    (
        STUDIES,
        rf"it still gains {NUMBER} % over it",
        lambda: alone("pocket_steps", "region_taught_600", CONTROL),
    ),
    (
        STUDIES,
        rf"their own in {INTERVAL} of items, the control in {INTERVAL}, and CLIP in {INTERVAL}",
        lambda: told_apart("size", "text"),
    ),
    (
        STUDIES,
        rf"on these scenes \({INTERVAL}",
        lambda: gain("pocket_choice", "dclip_2", "dclip_1", digits=1),
    ),
    (
        STUDIES,
        rf"trainings of `contrastive` find {NUMBER} %",
        lambda: recall("pocket_table", "contrastive"),
    ),
    (
        STUDIES,
        rf"in bfloat16 as well, three find {NUMBER} %",
        lambda: recall("pocket_precision", "contrastive_bf16"),
    ),
    (
        STUDIES,
        rf"in full precision {INTERVAL} more than that",
        lambda: gain("pocket_precision", "contrastive_fp32", "contrastive_bf16"),
    ),
    (STUDIES, r"Of (\d+) pairs of trainings .* tells (\d+) apart.*trains, (\d+) of (\d+)", luck),
]


@pytest.mark.parametrize(("file", "sentence", "figures"), CLAIMS, ids=range(len(CLAIMS)))
def test_a_figure_in_a_sentence_is_that_of_its_record(file, sentence, figures) -> None:
    text = " ".join((ROOT / file).read_text(encoding="utf-8").split())
    found = re.search(sentence, text)
    assert found, f"Expected a sentence like {sentence!r} in {file}, found none: change both."
    assert list(found.groups()) == [each.lstrip("-") for each in figures()]


def test_most_intervals_of_the_studies_page_are_read_out_of_it() -> None:
    """Those that are not stand in the table, whose own test compares it."""
    text = " ".join((ROOT / STUDIES).read_text(encoding="utf-8").split())
    prose = re.sub(r"<!-- study.*?/study -->", "", text)
    every = [found.span() for found in re.finditer(INTERVAL, prose)]
    read = [found.span() for _, claim, _ in CLAIMS if (found := re.search(claim, prose))]
    missed = [prose[a:b] for a, b in every if not any(c <= a and b <= d for c, d in read)]
    assert every and not missed
