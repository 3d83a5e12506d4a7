"""Studies: recipes side by side, over several seeds, on many pictures that no training has seen.

A study is a short TOML file. Each training leaves a small record in a folder beside it, of the
file's name, as it ends, and is not run again: a study that was interrupted goes on, and no training
needs another's weights. What the records say together is written beside the file, as JSON.
"""

import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from dclip_kit.config import (
    CONTROL,
    Profile,
    RegionSettings,
    apply_recipe,
    change_settings,
    get_profile,
    require_recipe,
)
from dclip_kit.data.pictures import CaptionedImages
from dclip_kit.data.pocket import world as pocket
from dclip_kit.evaluation.arms import (
    Arm,
    Candidate,
    choose_candidate,
    describe_origin,
    prepare_evaluation,
    prepare_training,
    save_arm,
    train_arm,
)
from dclip_kit.evaluation.evaluate import (
    WAYS,
    GalleryMetrics,
    References,
    RetrievalSet,
    ZeroShotSet,
    encode_galleries,
    evaluate_zero_shot,
    measure_galleries,
    measure_hubness,
    prepare_galleries,
    prepare_references,
    prepare_zero_shot,
    score_compositions,
)
from dclip_kit.evaluation.experiment import (
    prepare_terms,
    save_teacher_run,
    teacher_settings,
    train_teacher_of,
)
from dclip_kit.evaluation.inspection import region_probe
from dclip_kit.evaluation.profile_data import (
    MEASURED_BY,
    ProfileData,
    load_data,
    load_uncaptioned,
    locate_uncaptioned,
)
from dclip_kit.evaluation.seen import (
    SeenPictures,
    add_trained,
    describe_seen,
    leave_out_seen,
    leave_out_trained_labelled,
    load_seen,
)
from dclip_kit.evaluation.study_table import RETENTION
from dclip_kit.features.extract import encode_pictures, load_or_extract_features
from dclip_kit.features.store import EncodedPictures, differing_entries, digest_record
from dclip_kit.metrics import composition_scores
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.teacher import kind_of
from dclip_kit.models.weights import clone_clip, interpolate, round_changed
from dclip_kit.runtime.files import read_record, write_record
from dclip_kit.runtime.machine import return_memory
from dclip_kit.runtime.printing import say
from dclip_kit.search.rescoring import NNN, Rescoring
from dclip_kit.training import StudentRun, distill, plan_epoch

ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0)  # of each arm's frontier, beside 0
_OF_POCKET = {  # its further scenes, to measure arms and teachers on
    "val": ("further_val", 2000),
    "test": ("further_test", 4000),
    "probe": ("further_val", 1000),
}


@dataclass(frozen=True)
class StudyArm:
    """One line of a study's table.

    Attributes:
        name: in the table.
        profile: how it trains, its seed aside; None for the untouched CLIP and what is recorded.
        steps: of its training; 0 leaves that to the profile's epochs.
        captions: share of the captioned pictures that it may use.
        rescoring: how scores are rescored by the training data; None leaves them as they are.
        recorded: whether it is what its records say, since it can no longer be trained.
    """

    name: str
    profile: Profile | None
    steps: int = 0
    captions: float = 1.0
    rescoring: Rescoring | None = None
    recorded: bool = False

    def describe(self, seed: int) -> dict[str, Any]:
        """Whatever decides how it trains, for JSON; of what is recorded, its records say it."""
        if self.recorded:
            return {}
        profile = replace(self.profile, seed=seed).as_dict() if self.profile else None
        if profile and self.steps:
            profile["student"]["epochs"] = 0  # which the steps decide
        more = {} if self.rescoring in (None, NNN) else {"rescoring": asdict(self.rescoring)}
        return {
            "profile": profile,
            "steps": self.steps,
            "captions": self.captions,
            "nnn": self.rescoring == NNN,
        } | more


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        path: of the TOML file.
        profile: what all arms work with.
        control: how the control trains, which may teach an arm.
        seeds: of each arm's trainings.
        gallery: pictures that are searched at a time; 0 for all.
        compositions: items of each kind that arms are asked for, too; 0 for none.
        arms: in the order of the table.
    """

    path: Path
    profile: Profile
    control: Profile
    seeds: tuple[int, ...]
    gallery: int
    compositions: int
    arms: tuple[StudyArm, ...]

    def record_of(self, arm: StudyArm, seed: int) -> Path:
        """Where a training's record is."""
        return self.path.with_suffix("") / f"{arm.name}-{seed}.json"

    def describe(self, arm: StudyArm, seed: int) -> dict[str, Any]:
        """Whatever decides a record, for JSON."""
        measured = {name: getattr(self.profile, name) for name in MEASURED_BY}
        measured |= {"gallery": self.gallery}
        if self.compositions:
            measured["compositions"] = self.compositions
        return {**arm.describe(seed), "measured": measured}

    def seeds_of(self, arm: StudyArm) -> tuple[int, ...]:
        """The untouched CLIP is the same for every seed."""
        return self.seeds if arm.profile or arm.recorded else self.seeds[:1]


def read_study(path: Path) -> Study:
    """Reads a study's TOML file.

    It says `seeds` and perhaps `profile`, `gallery`, `compositions` and changes of the profile, and
    for each of `arms` a `recipe` ("none" for the untouched CLIP, which is `clip`), perhaps `steps`,
    `captions` and `rescoring`, and changes of the profile, such as `student = { learning_rate =
    1e-3 }`. Arms that differ in their rescoring alone share a training. All work with the same data
    and the same CLIP. An arm that can no longer be trained, since a setting was removed, has the
    recipe "recorded" and nothing else: its records are shown.

    Raises:
        ValueError: it is no TOML, says something unknown or what no training would heed, or
            contradicts a recipe for all arms.
    """
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
        profile = get_profile(said.pop("profile", "pocket"))
        seeds, arms = tuple(said.pop("seeds")), said.pop("arms")
        gallery, compositions = said.pop("gallery", 0), said.pop("compositions", 0)
        profile = change_settings(profile, said)
        if arms["clip"] != {"recipe": "none"}:
            raise ValueError("clip is the untouched one")
        if {"seed", "selection"} & said.keys():
            raise ValueError("seed and selection have no effect; it has seeds")
        read = tuple(_read_arm(profile, said, *arm) for arm in arms.items())
        # What is said for all arms outdoes its recipe's rates, as it does for them.
        control = change_settings(apply_recipe(profile, CONTROL), said)
        return Study(path, profile, control, seeds, gallery, compositions, read)
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected a study in {path}, with seeds and arms, but it says something else ({error})"
            "; mend it."
        ) from error


def _read_arm(
    profile: Profile, common: Mapping[str, Any], name: str, said: Mapping[str, Any]
) -> StudyArm:
    rest = dict(said)
    own = {field.name: rest.pop(field.name) for field in fields(StudyArm) if field.name in rest}
    recipe = rest.pop("recipe")
    if "rescoring" in own:
        own["rescoring"] = Rescoring(**own["rescoring"])
    recorded = recipe == "recorded"
    odd = {*rest, *own} - (set() if recorded else {"rescoring"})
    if recipe in ("none", "recorded") and odd:
        raise ValueError(f"Expected no {', '.join(sorted(odd))} in {name}")
    if not 0 < own.get("captions", 1.0) <= 1:
        raise ValueError(f"Expected captions in {name} to be a share above 0")
    if unheeded := rest.keys() & {*MEASURED_BY, "leak_guard", "selection"}:
        raise ValueError(f"{', '.join(sorted(unheeded))} in {name} must be alike for all arms")
    trained: Profile | None = None
    if recipe not in ("none", "recorded"):
        # What is said for all arms outdoes their recipes' rates, as options do.
        trained = change_settings(apply_recipe(profile, recipe), common)
        require_recipe(trained)
        trained = change_settings(trained, rest)
    return StudyArm(name, trained, recorded=recorded, **own)


# Running


def pack_counts(counts: Tensor) -> str:
    """A character a number, "0" for 0: a picture's share of a record."""
    return "".join(chr(48 + int(count)) for count in counts)


def unpack_counts(text: str) -> Tensor:
    """What `pack_counts` has packed."""
    return torch.tensor([ord(each) - 48 for each in text], dtype=torch.double)


MeasuredOn = tuple[tuple[RetrievalSet, ...], ZeroShotSet, ZeroShotSet | None]


def prepare_measuring(
    clip: ClipBundle, study: Study, data: ProfileData, part: Literal["val", "test"]
) -> MeasuredOn:
    """Reads pictures, and encodes texts once. The pocket has further scenes for it.

    Returns:
        Galleries, labelled pictures, and labelled ones of the held-out style if any.
    """
    captioned, labelled, held_out = data.val, data.zero_shot_val, None
    if part == "test":
        captioned, labelled, held_out = data.test, data.zero_shot, data.zero_shot_held_out
    if study.profile.data == "pocket":
        captioned = pocket.load_further(*_OF_POCKET[part])
    size = study.gallery or len(captioned)
    if rest := len(captioned) % size:
        say(f"Of galleries of {size:,} the last of {part} has {rest:,}, where more is found.")
    return (
        prepare_galleries(clip, captioned, size),
        prepare_zero_shot(clip, labelled, templates=data.templates),
        prepare_zero_shot(clip, held_out, templates=data.templates) if held_out else None,
    )


@dataclass(frozen=True, eq=False)
class Measurement:
    """One model's results.

    Attributes:
        found: by direction.
        correct: for each labelled picture whether it is named.
        held_out: share of the labelled pictures of the held-out style that are.
        hubness: of rescored scores, as `measure_hubness`, a mean over galleries.
    """

    found: dict[str, GalleryMetrics]
    correct: Bool[Tensor, "image"]
    held_out: float | None
    hubness: dict[str, dict[str, float]] | None = None


def measure(
    clip: ClipBundle,
    place: MeasuredOn,
    rescorings: Sequence[Rescoring | None] = (None,),
    references: References | None = None,
    hubs: bool = False,
) -> dict[Rescoring | None, Measurement]:
    """Measures a model in all galleries, and on labelled pictures.

    Args:
        clip: the model.
        place: what is measured.
        rescorings: of scores, each measured; None leaves them as they are.
        references: what this model makes of the training data, to rescore candidates by.
        hubs: whether to measure the hubness of rescored scores, too.
    """
    galleries, zero_shot, held_out = place
    features = encode_galleries(clip, galleries)
    known = evaluate_zero_shot(clip, zero_shot, progress=False).correct
    other = evaluate_zero_shot(clip, held_out, progress=False).top1 if held_out else None

    def look(how: Rescoring | None) -> Measurement:
        if how is None:
            return Measurement(measure_galleries(features), known, other)
        assert references
        found, hubness = measure_galleries(features, references, how), None
        if hubs:
            each = [measure_hubness(*some[:2], references, how) for some in features]
            hubness = {
                way: {x: fmean(one[way][x] for one in each) for x in each[0][way]} for way in WAYS
            }
        return Measurement(found, known, other, hubness)

    return {how: look(how) for how in rescorings}


def run_study(
    study: Study,
    clip: ClipBundle,
    work: Path,
    names: Sequence[str] = (),
    repeat: tuple[str, int] | None = None,
) -> None:
    """Trains and measures what has no record yet, and writes the records.

    Args:
        study: what to train.
        clip: the untouched one.
        work: the folder for features, checkpoints, teachers and the trained arms.
        names: of the arms to train now, beside the untouched CLIP; all if left out.
        repeat: an arm's name and a seed: trains only this, again from its beginning, and keeps its
            record in `work`.

    Raises:
        ValueError: an arm is unknown, there is nothing to repeat, a record is of other settings, or
            one of a recorded arm is missing.
    """
    known = {arm.name: arm for arm in study.arms}
    wanted = [repeat[0]] if repeat else ["clip", *names] if names else list(known)
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"Expected arms out of {', '.join(known)}, got {unknown[0]!r}.")
    if repeat:
        if known[repeat[0]].recorded:
            raise ValueError(
                f"Expected an arm that can be trained, got {repeat[0]}, of which there are only "
                "records; repeat another."
            )
        rows = [(known[repeat[0]], repeat[1])]
        if not has_record(study, *rows[0]):
            raise ValueError(
                f"Expected a record of {repeat[0]} with the seed {repeat[1]} to repeat, found "
                "none; run the study first."
            )
    else:
        rows = [
            (arm, seed)
            for seed in study.seeds
            for arm in (known[name] for name in dict.fromkeys(wanted))
            if seed in study.seeds_of(arm) and not has_record(study, arm, seed)
        ]
    if not rows:
        return
    workshop = _Workshop(study, clip, work, anew=repeat is not None)
    records = work / "repeated" if repeat else study.path.with_suffix("")
    trainings: dict[tuple[StudyArm, int], list[StudyArm]] = {}
    for arm, seed in rows:
        alike = replace(arm, name="", rescoring=None)
        trainings.setdefault((alike, seed), []).append(arm)
    for (_, seed), arms in trainings.items():
        say(f"{study.path.stem}: {', '.join(arm.name for arm in arms)}, seed {seed}.")
        for arm, record in zip(arms, workshop.run(arms, seed), strict=True):
            write_record(record, records / study.record_of(arm, seed).name)
        return_memory()


def has_record(study: Study, arm: StudyArm, seed: int) -> bool:
    """Whether a training has been done, so that it is not run again.

    Raises:
        ValueError: its record is damaged or of other settings than the file's, or it is missing and
            the arm can no longer be trained.
    """
    path = study.record_of(arm, seed)
    if not path.exists():
        if arm.recorded:
            raise ValueError(
                f"Expected a record at {path}, since {arm.name} can no longer be trained, found "
                f"none; restore it, or take {arm.name} out of {study.path}."
            )
        return False
    now = study.describe(arm, seed)
    # Older records lack this, and newer settings; but what they were not asked, they cannot say.
    known = {"measured": {k: v for k, v in now["measured"].items() if k != "compositions"}}
    if arm.profile:
        known["profile"] = Profile("", "", None).as_dict()
    kept = read_record(path, lambda record: _fill(record["settings"], known))
    if differing := differing_entries(kept, now):
        raise ValueError(
            f"Expected {path} to be of the settings in {study.path}, but they differ in "
            f"{', '.join(differing)}; "
            + (f"take {arm.name} out." if arm.recorded else "delete it to train that anew.")
        )
    return True


def _fill(kept: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A record with what it lacks."""
    both = {
        name: _fill(kept[name], value) if isinstance(value, dict) else kept[name]
        for name, value in defaults.items()
        if name in kept
    }
    return {**defaults, **kept, **both}


def teacher_place(work: Path, arm: StudyArm, seed: int) -> Path:
    """The folder that a study's work has an arm's teacher in; arms of one teacher share it."""
    assert arm.profile  # the untouched CLIP has no teacher
    settings = asdict(arm.profile)
    decisive = {
        "teacher": asdict(teacher_settings(arm.profile)),
        **{name: settings[name] for name in ("clip", "pretrained", "data", "images", "regions")},
        "seed": seed,
        "captions": arm.captions,
    }
    return work / "teachers" / digest_record(decisive)


class _Workshop:
    """What trainings of a study share: data, features, teachers; each made when it is needed."""

    def __init__(self, study: Study, clip: ClipBundle, work: Path, anew: bool) -> None:
        self.study, self.clip, self.work = study, clip, work
        # What is trained anew goes on from no checkpoint, and lies apart.
        self.place = work / "repeated" if anew else work
        self.states = None if anew else work / "checkpoints"
        self.data = load_data(study.profile)
        self.before = load_seen(study.profile.clip)
        if self.before:
            self.data = leave_out_seen(self.data, self.before, study.profile.clip)
        self.read_uncaptioned = cache(self._read_uncaptioned)
        if study.profile.zero_shot != "pocket":  # whose pictures are apart
            trained = {arm.profile.uncaptioned: arm.profile for arm in study.arms if arm.profile}
            named = [name for name, each in trained.items() if locate_uncaptioned(each)[0]]
            for each in ("", *named):
                self.data = leave_out_trained_labelled(self.data, self._describe_seen(each))
        self.chosen_on = prepare_measuring(clip, study, self.data, "val")
        self.measured_on = prepare_measuring(clip, study, self.data, "test")
        self.captioned, self.uncaptioned = cache(self._captioned), cache(self._uncaptioned)

    @cached_property
    def untouched(self) -> tuple[Measurement, Measurement]:
        """The untouched CLIP on val and on test."""
        one, other = (measure(self.clip, x)[None] for x in (self.chosen_on, self.measured_on))
        if not (one.correct.any() and other.correct.any()):
            raise ValueError(
                "Expected a CLIP that knows some of the classes, got none right; give it classes "
                "that it can name."
            )
        return one, other

    def _read_uncaptioned(self, named: str) -> CaptionedImages | None:
        profile = apply_recipe(replace(self.study.profile, uncaptioned=named), "region_taught")
        return load_uncaptioned(profile, self.data)

    def _describe_seen(self, named: str = "") -> SeenPictures:
        """What an arm has seen that learns from these uncaptioned pictures, too."""
        profile, val = self.study.profile, self.data.val
        if profile.data == "pocket":
            val = pocket.load_further(*_OF_POCKET["val"])
        labelled = () if profile.zero_shot == "pocket" else self.data.zero_shot_val.paths
        by_content, before = profile.leak_guard == "content", [self.before] if self.before else []
        seen = describe_seen(self.data.train, val, labelled, by_content, before)
        more = self.read_uncaptioned(named) if named else None
        return add_trained(seen, more, by_content) if more else seen

    def _select(self, share: float) -> CaptionedImages:
        train = self.data.train
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        return train.select(sorted(order[: round(share * len(train))].tolist()))

    def _captioned(self, regions: RegionSettings, share: float) -> EncodedPictures:
        return encode_pictures(self.clip, self._select(share), regions, self.work)

    def _uncaptioned(self, regions: RegionSettings, named: str) -> EncodedPictures | None:
        pictures = self.read_uncaptioned(named)
        return encode_pictures(self.clip, pictures, regions, self.work) if pictures else None

    def run(self, arms: Sequence[StudyArm], seed: int) -> list[dict[str, Any]]:
        """Records of one training, for arms that differ in their rescoring alone.

        Each has the frontier from the untouched CLIP to the student, and how it came.
        """
        began, profile = time.monotonic(), arms[0].profile
        rescorings = list(dict.fromkeys(arm.rescoring for arm in arms))
        seen: dict[float, list[dict[Rescoring | None, Measurement]]] = {}

        def look(alpha: float, clip: ClipBundle) -> None:
            """On val and on test."""
            known = self._select(arms[0].captions)
            references = prepare_references(clip, known) if any(rescorings) else None
            seen[alpha] = [
                measure(clip, self.chosen_on, rescorings, references),
                measure(clip, self.measured_on, rescorings, references, hubs=True),
            ]

        first, base = self.untouched
        steps, probe, run, alpha = 0, None, None, 0.0
        if rescorings == [None]:
            seen[0.0] = [{None: each} for each in self.untouched]
        else:
            look(0.0, self.clip)
        if profile:
            run, steps, probe = self._train(arms[0], replace(profile, seed=seed))
            for share in ALPHAS:
                look(share, interpolate(self.clip, run.student, share))
        records = []
        for arm in arms:
            points = {share: [each[arm.rescoring] for each in two] for share, two in seen.items()}
            val = [
                Candidate(
                    share,
                    each.found["text_to_image"].figures["recall_at_1"],
                    _retention(each, first),
                )
                for share, (each, _) in points.items()
            ]
            mixed = self.clip
            if profile and run:
                alpha = choose_candidate(val, RETENTION).alpha
                mixed = interpolate(self.clip, run.student, alpha)
                self._save(Arm(mixed, alpha, tuple(val), run.history), arm.name, profile, seed)
            settings = self.study.describe(arm, seed)
            record = {
                "arm": arm.name,
                "seed": seed,
                "settings_digest": digest_record(settings),
                "steps": steps,
                "seconds": round(time.monotonic() - began, 1),
                "alpha": alpha,
                "val": [asdict(each) for each in val],
                **_describe_frontier({x: found for x, (_, found) in points.items()}, base, alpha),
                "probe": probe,
                "compositions": self._ask_compositions(mixed),
                "settings": settings,
            }
            records.append(record)
        return records

    def _save(self, arm: Arm, name: str, profile: Profile, seed: int) -> None:
        """Keeps an arm; what is recorded of it was measured before its weights are rounded."""
        rounded = clone_clip(arm.clip)
        round_changed(self.clip, rounded)
        named = profile.uncaptioned if profile.student.uncaptioned_batch else ""
        origin = describe_origin(replace(profile, seed=seed), self.clip)
        place = self.place / "arms" / f"seed-{seed}" / name
        save_arm(replace(arm, clip=rounded), place, origin, self._describe_seen(named))

    def _ask_compositions(self, clip: ClipBundle) -> dict[str, dict[str, str]] | None:
        if not self.study.compositions:
            return None
        return {
            kind: {name: pack_counts(each) for name, each in composition_scores(found).items()}
            for kind, found in score_compositions(clip, self.study.compositions).items()
        }

    def _train(self, arm: StudyArm, profile: Profile) -> tuple[StudentRun, int, Any]:
        """A student, how many steps it took, and the probe of its teacher."""
        captioned, student = self.captioned(profile.regions, arm.captions), profile.student
        steps = len(plan_epoch(captioned.features, student, profile.seed, 0))  # of an epoch
        if arm.steps:
            student = replace(student, epochs=max(1, round(arm.steps / steps)))
            if abs(student.epochs * steps / arm.steps - 1) > 0.1:
                say(
                    f"{arm.name} trains {student.epochs * steps:,} steps for {arm.steps:,}, in "
                    f"whole epochs of {steps:,}."
                )
        teacher: Any = None
        uncaptioned = probe = None
        if student.distillation_weight:
            if student.uncaptioned_batch:
                uncaptioned = self.uncaptioned(profile.regions, profile.uncaptioned)
            if profile.teacher_model == "control":
                teacher = self._train_control(arm, profile)
            else:
                place = teacher_place(self.place, arm, profile.seed)
                state = self.states and self.states / f"teacher-{place.name}.safetensors"
                run = train_teacher_of(profile, captioned.features, state, self.clip.device)
                folder, seen = place / kind_of(run.settings), self._describe_seen()
                save_teacher_run(run, folder, profile, self.clip, seen)
                teacher = run.teacher
            if profile.teacher_model == "region":
                further = self.data.test
                if self.study.profile.data == "pocket":
                    further = pocket.load_further(*_OF_POCKET["probe"])
                tested = load_or_extract_features(self.clip, further, profile.regions, self.work)
                probe = asdict(region_probe(teacher, tested, profile.region_teacher))
        terms = prepare_terms(profile, self.clip, captioned, teacher, uncaptioned)
        key = digest_record(replace(arm, rescoring=None).describe(profile.seed))
        # Of no arm's name: those that differ in their rescoring go on from one another's.
        state = self.states and self.states / f"student-{key}.safetensors"
        trained = distill(self.clip, captioned, terms, student, seed=profile.seed, checkpoint=state)
        return trained, student.epochs * steps, probe

    def _train_control(self, arm: StudyArm, profile: Profile) -> ClipBundle:
        """The control by its own settings, trained once for its own row and for what it teaches."""
        control = replace(self.study.control, seed=profile.seed)
        captioned = self.captioned(control.regions, arm.captions)
        sets = prepare_evaluation(self.clip, self.data)
        shown = prepare_training(self.clip, captioned, sets, control.selection)
        key = digest_record(
            replace(arm, profile=control, steps=0, rescoring=None).describe(profile.seed)
        )
        state = self.states and self.states / f"student-{key}.safetensors"
        terms = prepare_terms(control, self.clip, captioned)
        student, seed = control.student, profile.seed
        return train_arm(self.clip, shown, terms, student, seed=seed, checkpoint=state).clip


def _retention(found: Measurement, base: Measurement) -> float:
    return float(found.correct.double().mean() / base.correct.double().mean())


def _describe_frontier(
    points: Mapping[float, Measurement], base: Measurement, alpha: float
) -> dict[str, Any]:
    """What is recorded of mixes by their weights, one of which was chosen."""
    chosen = points[alpha]
    return {
        "frontier": [_describe(share, found, base) for share, found in points.items()],
        "queries": {way: pack_counts(base.found[way].image.bincount()) for way in WAYS},
        "chosen": {
            **{way: chosen.found[way].figures for way in WAYS},
            "correct": pack_counts(chosen.correct),
        },
        "skewness_of_k_occurrence": chosen.hubness,
    }


def _describe(alpha: float, found: Measurement, base: Measurement) -> dict[str, Any]:
    held_out = found.held_out and base.held_out and found.held_out / base.held_out
    return {
        "alpha": alpha,
        **{way: each.figures["recall_at_1"] for way, each in found.found.items()},
        "retention": _retention(found, base),
        "retention_held_out_style": held_out,
        "hits": {
            way: pack_counts(torch.bincount(each.image, each.hits.double()))
            for way, each in found.found.items()
        },
    }
