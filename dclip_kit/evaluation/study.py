"""Studies: recipes side by side, over several seeds, on many pictures that no training has seen.

A study is a short TOML file. Each training leaves a small record in a folder beside it, of the
file's name; `study_runs` makes these. What the records say together is written beside the file, as
JSON.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dclip_kit.config import CONTROL, Profile, apply_recipe, change_settings, get_profile
from dclip_kit.evaluation.galleries import WAYS
from dclip_kit.evaluation.records import read_record
from dclip_kit.metrics import paired_bootstrap

RETENTION = 0.955  # at which arms are compared
# What of a profile decides what is measured, of the untouched CLIP too.
_MEASURED = ("clip", "pretrained", "data", "images", "test", "zero_shot", "templates", "seed")


@dataclass(frozen=True)
class StudyArm:
    """One line of a study's table.

    Attributes:
        name: in the table.
        profile: how it trains, its seed aside; None for the untouched CLIP.
        steps: of its training; 0 leaves that to the profile's epochs.
        captions: share of the captioned pictures that it may use.
        nnn: whether the untouched CLIP's scores are rescored by nearest-neighbour normalisation.
    """

    name: str
    profile: Profile | None
    steps: int = 0
    captions: float = 1.0
    nnn: bool = False

    def describe(self, seed: int) -> dict[str, Any]:
        """Whatever decides how it trains, for JSON."""
        profile = replace(self.profile, seed=seed).as_dict() if self.profile else None
        if profile and self.steps:
            profile["student"]["epochs"] = 0  # which the steps decide
        return {
            "profile": profile,
            "steps": self.steps,
            "captions": self.captions,
            "nnn": self.nnn,
        }


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        path: of the TOML file.
        profile: what all arms work with.
        seeds: of each arm's trainings.
        gallery: pictures that are searched at a time; 0 for all.
        arms: in the order of the table.
    """

    path: Path
    profile: Profile
    seeds: tuple[int, ...]
    gallery: int
    arms: tuple[StudyArm, ...]

    @property
    def result(self) -> Path:
        """Where what all records say together is written."""
        return self.path.with_suffix(".json")

    def record_of(self, arm: StudyArm, seed: int) -> Path:
        """Where a training's record is."""
        return self.path.with_suffix("") / f"{arm.name}-{seed}.json"

    def describe(self, arm: StudyArm, seed: int) -> dict[str, Any]:
        """Whatever decides a record, for JSON."""
        measured = {name: getattr(self.profile, name) for name in _MEASURED}
        return {**arm.describe(seed), "measured": measured | {"gallery": self.gallery}}

    def seeds_of(self, arm: StudyArm) -> tuple[int, ...]:
        """The untouched CLIP is the same for every seed."""
        return self.seeds if arm.profile else self.seeds[:1]


def read_study(path: Path) -> Study:
    """Reads a study's TOML file.

    It says `seeds` and perhaps `profile`, `gallery` and changes of the profile, and for each of
    `arms` a `recipe` ("none" for the untouched CLIP, which is `clip`), perhaps `steps`, `captions`
    and `nnn`, and changes of the profile, such as `student = { learning_rate = 1e-3 }`.

    Raises:
        ValueError: it is no TOML, or says something unknown.
    """
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
        profile = get_profile(said.pop("profile", "pocket"))
        seeds, arms = tuple(said.pop("seeds")), said.pop("arms")
        gallery = said.pop("gallery", 0)
        profile = change_settings(profile, said)
        if arms["clip"] != {"recipe": "none"}:
            raise ValueError("clip is the untouched one")
        every = tuple(_read_arm(profile, *arm) for arm in arms.items())
        return Study(path, profile, seeds, gallery, every)
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected a study in {path}, with seeds and arms, but it says something else ({error})"
            "; mend it."
        ) from error


def _read_arm(profile: Profile, name: str, said: Mapping[str, Any]) -> StudyArm:
    rest = dict(said)
    own = {field.name: rest.pop(field.name) for field in fields(StudyArm) if field.name in rest}
    recipe = rest.pop("recipe")
    odd = {*rest, *own} - {"nnn"} if recipe == "none" else {*own} & {"nnn"}
    if odd:
        raise ValueError(f"Expected no {', '.join(sorted(odd))} in {name}")
    if not 0 < own.get("captions", 1.0) <= 1:
        raise ValueError(f"Expected captions in {name} to be a share above 0")
    if recipe == "none":
        return StudyArm(name, None, **own)
    trained = change_settings(apply_recipe(profile, recipe), rest)
    if trained.student.soup > 1:
        raise ValueError(
            f"Expected student.soup in {name} to be 1, since each seed is one training"
        )
    return StudyArm(name, trained, **own)


# Records


def pack_counts(counts: Tensor) -> str:
    """A character a number, "0" for 0: a picture's share of a record."""
    return "".join(chr(48 + int(count)) for count in counts)


def unpack_counts(text: str) -> Tensor:
    """What `pack_counts` has packed."""
    return torch.tensor([ord(each) - 48 for each in text], dtype=torch.double)


# What the records say together


def summarise(study: Study) -> dict[str, Any]:
    """What all records of a study say together; arms without any are left out.

    Arms are compared at one retention, read off each one's frontier linearly between its weights
    α; values of a picture are averaged over seeds, and intervals are bootstraps over pictures.
    """
    kept: dict[str, list[dict[str, Any]]] = {}
    for arm in study.arms:
        places = [study.record_of(arm, seed) for seed in study.seeds_of(arm)]
        found = [read_record(path, dict) for path in places if path.exists()]
        if found:
            kept[arm.name] = found
    fixed = {name: [_at_retention(each) for each in own] for name, own in kept.items()}
    chosen = {name: [_at_alpha(each, each["alpha"]) for each in own] for name, own in kept.items()}
    arms = {
        name: {
            "runs": [
                {key: each[key] for key in ("seed", "settings_digest", "steps", "seconds", "alpha")}
                for each in own
            ],
            "frontier": _average_frontiers(own),
            "at_95_5": _compare(name, fixed, kept),
            "chosen": _describe_chosen(_compare(name, chosen, kept), own, kept),
            "val": sum(_on_val(each) for each in own) / len(own),
            "probe": own[0]["probe"],
        }
        for name, own in kept.items()
    }
    return {"profile": study.profile.name, "seeds": list(study.seeds), "arms": arms}


def _at_alpha(record: Mapping[str, Any], alpha: float) -> dict[str, Tensor]:
    point = next(each for each in record["frontier"] if each["alpha"] == alpha)
    return {way: unpack_counts(point["hits"][way]) for way in WAYS}


def _at_retention(record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Hits by direction and picture at `RETENTION`."""
    before, after, share = _find_retention(record["frontier"])
    old, new = (_at_alpha(record, each["alpha"]) for each in (before, after))
    return {way: torch.lerp(old[way], new[way], share) for way in WAYS}


def _on_val(record: Mapping[str, Any]) -> float:
    """Text→image Recall@1 on val at `RETENTION`: what settings are chosen by."""
    before, after, share = _find_retention(record["val"])
    return before["recall_at_1"] + share * (after["recall_at_1"] - before["recall_at_1"])


def _find_retention(points: Sequence[Any]) -> tuple[Any, Any, float]:
    """Two points of a frontier, and how far between them it first falls to `RETENTION`.

    Where it never does, that is its end.
    """
    for before, after in pairwise(points):
        if after["retention"] < RETENTION:
            fall = before["retention"] - after["retention"]
            return before, after, (before["retention"] - RETENTION) / fall
    return points[-1], points[-1], 0.0


def _compare(
    name: str,
    found: Mapping[str, Sequence[Mapping[str, Tensor]]],
    kept: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """An arm's Recall@1 by direction, and what it gains over each other arm."""

    def shares(arm: str, way: str) -> tuple[Tensor, Tensor]:
        """Of each query, and its picture; queries of a picture share its mean."""
        queries = unpack_counts(kept[arm][0]["queries"][way])
        hits = torch.stack([each[way] for each in found[arm]]).mean(0)
        image = torch.arange(len(queries)).repeat_interleave(queries.long())
        return (hits / queries.clamp(min=1))[image], image

    result: dict[str, Any] = {}
    for way in WAYS:
        own, image = shares(name, way)
        versus = {}
        for other in found:
            theirs, _ = shares(other, way)
            if other != name and float(theirs.sum()) > 0:
                gain = paired_bootstrap(theirs, own, image, "relative")
                versus[other] = {"relative": gain.estimate, "ci95": [gain.low, gain.high]}
        result[way] = {"recall_at_1": float(own.mean()), "vs": versus}
    return result


def _describe_chosen(
    compared: Mapping[str, Any],
    own: Sequence[Mapping[str, Any]],
    kept: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """What an arm finds and retains at the weights that val chose, averaged over seeds."""

    def mean(way: str, metric: str) -> float:
        return sum(each["chosen"][way][metric] for each in own) / len(own)

    ways = {
        way: {metric: mean(way, metric) for metric in own[0]["chosen"][way]} | found
        for way, found in compared.items()
    }
    correct = torch.stack([unpack_counts(each["chosen"]["correct"]) for each in own]).mean(0)
    base = unpack_counts(kept["clip"][0]["chosen"]["correct"])
    spread = paired_bootstrap(base, correct, torch.arange(len(base)), "ratio")
    retained = {"estimate": spread.estimate, "ci95": [spread.low, spread.high]}
    return {**ways, "retention": retained}


def _average_frontiers(own: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    names = ("alpha", *WAYS, "retention", "retention_held_out_style")
    return [
        {
            name: None if row[0][name] is None else sum(each[name] for each in row) / len(row)
            for name in names
        }
        for row in zip(*(each["frontier"] for each in own), strict=True)
    ]


def format_study(result: Mapping[str, Any]) -> str:
    """A study's table: Recall@1 at one retention, in percent, and what each arm gains over two."""
    arms = result["arms"]
    rivals = [name for name in ("clip", CONTROL) if name in arms]
    head = ["arm", "seeds", "val", "t→i R@1", *(f"over {name}" for name in rivals), "i→t R@1"]
    rows = [[*head, *(f"over {name}" for name in rivals), "kept at α"]]
    for name, arm in arms.items():
        cells = [name, str(len(arm["runs"])), f"{100 * arm['val']:.1f}"]
        for way in WAYS:
            found = arm["at_95_5"][way]
            cells.append(f"{100 * found['recall_at_1']:.1f}")
            cells += [_say_gain(found["vs"].get(rival)) for rival in rivals]
        cells.append(f"{100 * arm['chosen']['retention']['estimate']:.1f}")
        rows.append(cells)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * (width - 1) + ":" for width in widths])
    return "\n".join(
        f"| {' | '.join(cell.rjust(w) for cell, w in zip(row, widths, strict=True))} |"
        for row in rows
    )


def _say_gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return "–"
    low, high = gain["ci95"]
    return f"{100 * gain['relative']:+.1f} % [{100 * low:+.1f}, {100 * high:+.1f}]"


def format_repeated(study: Study, work: Path, name: str, seed: int) -> str:
    """What a repeated training finds beside what its record says, by weight α."""
    arm = next(each for each in study.arms if each.name == name)
    paths = [study.record_of(arm, seed), work / "repeated" / f"{name}-{seed}.json"]
    before, now = ({p["alpha"]: p for p in read_record(path, dict)["frontier"]} for path in paths)
    lines = ["| α | " + " | ".join(f"{way}, now" for way in (*WAYS, "retention")) + " |"]
    for alpha in before.keys() & now.keys():
        pairs = ((before[alpha][each], now[alpha][each]) for each in (*WAYS, "retention"))
        cells = (f"{100 * old:.1f}, {100 * new:.1f}" for old, new in pairs)
        lines.append(f"| {alpha:g} | " + " | ".join(cells) + " |")
    return "\n".join([lines[0], "|--:" * 4 + "|", *sorted(lines[1:])])
