"""Studies: recipes side by side, over several seeds, on many pictures that no training has seen.

A study is a short TOML file. When a training ends, it writes a small record into a folder beside
the file, of the file's name, and is not run again. So an interrupted study can continue, and no
training needs another's weights. A summary of the records is written beside the file, as JSON.
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
    StudentSettings,
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
    knows_none,
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
    chooses_teacher,
    prepare_terms,
    save_teacher_run,
    teacher_settings,
    train_teacher_of,
)
from dclip_kit.evaluation.inspection import region_probe
from dclip_kit.evaluation.profile_data import (
    MEASURED_BY,
    ProfileData,
    is_pocket,
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

ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0)  # of each arm's frontier, in addition to 0, unless it says so
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
        profile: how it trains, except for the seed; None for the untouched CLIP and recorded arms.
        steps: of its training; 0 for the profile's epochs.
        captions: share of the captioned pictures that it may use.
        rescoring: how scores are rescored by the training data; None leaves them as they are.
        recorded: whether only its records remain, since it can no longer be trained.
    """

    name: str
    profile: Profile | None
    steps: int = 0
    captions: float = 1.0
    rescoring: Rescoring | None = None
    recorded: bool = False

    def describe(self, seed: int) -> dict[str, Any]:
        """All that decides how it trains, for JSON; for a recorded arm, this is in its records."""
        if self.recorded:
            return {}
        profile = replace(self.profile, seed=seed).as_dict() if self.profile else None
        if profile and self.steps:
            profile["student"]["epochs"] = 0  # the steps decide them
        more = {} if self.rescoring in (None, NNN) else {"rescoring": asdict(self.rescoring)}
        return {
            "profile": profile,
            "steps": self.steps,
            "captions": self.captions,
            "nnn": self.rescoring == NNN,
        } | more


@dataclass(frozen=True)
class Study:
    """The arms to compare and their common settings.

    Attributes:
        path: of the TOML file.
        profile: the settings of all arms.
        control: the control, which may teach an arm: the study's own, if it has a row.
        seeds: of each arm's trainings.
        gallery: the number of pictures searched at a time; 0 for all.
        compositions: items of each kind to measure arms on, too; 0 for none.
        alphas: of each arm's frontier, in addition to 0.
        arms: in the order of the table.
    """

    path: Path
    profile: Profile
    control: StudyArm
    seeds: tuple[int, ...]
    gallery: int
    compositions: int
    alphas: tuple[float, ...]
    arms: tuple[StudyArm, ...]

    def record_of(self, arm: StudyArm, seed: int) -> Path:
        """The path of a training's record."""
        return self.path.with_suffix("") / f"{arm.name}-{seed}.json"

    def describe(self, arm: StudyArm, seed: int) -> dict[str, Any]:
        """All that decides a record, for JSON."""
        measured = {name: getattr(self.profile, name) for name in MEASURED_BY}
        measured |= {"gallery": self.gallery}
        if self.compositions:
            measured["compositions"] = self.compositions
        measured["alphas"] = list(self.alphas)
        return {**arm.describe(seed), "measured": measured}

    def seeds_of(self, arm: StudyArm) -> tuple[int, ...]:
        """The seeds of an arm; the untouched CLIP, the same for every seed, has one."""
        return self.seeds if arm.profile or arm.recorded else self.seeds[:1]


def read_study(path: Path) -> Study:
    """Reads a study's TOML file.

    It has `seeds` and optionally `profile`, `gallery`, `compositions`, `alphas` and changes of the
    profile.
    Each of `arms` has a `recipe` ("none" for the untouched CLIP, which is `clip`), and optionally
    `steps`, `captions`, `rescoring` and changes of the profile, such as `student = { learning_rate
    = 1e-3 }`. Arms that differ only in their rescoring share a training. All arms use the same data
    and the same CLIP. An arm that can no longer be trained, since a setting was removed, has the
    recipe "recorded" and nothing else: its records are shown.

    Raises:
        ValueError: it is no TOML, has an unknown entry or one that no training would use, or
            contradicts a recipe for all arms.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        profile = get_profile(content.pop("profile", "pocket"))
        seeds, arms = tuple(content.pop("seeds")), content.pop("arms")
        gallery, compositions = content.pop("gallery", 0), content.pop("compositions", 0)
        alphas = tuple(content.pop("alphas", ALPHAS))
        if not alphas or list(alphas) != sorted({*alphas}) or not 0 < alphas[0] <= alphas[-1] <= 1:
            raise ValueError("alphas ascend from above 0 to at most 1")
        profile = change_settings(profile, content)
        if arms["clip"] != {"recipe": "none"}:
            raise ValueError("clip is the untouched one")
        if {"seed", "selection"} & content.keys():
            raise ValueError("seed and selection have no effect; give seeds")
        study_arms = tuple(_read_arm(profile, content, *arm) for arm in arms.items())
        own = (arm for arm in study_arms if arm.name == CONTROL and arm.profile)
        # Settings for all arms override the control recipe's rates, as for the arms.
        unshown = StudyArm(CONTROL, change_settings(apply_recipe(profile, CONTROL), content))
        control = next(own, unshown)
        return Study(path, profile, control, seeds, gallery, compositions, alphas, study_arms)
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected a study in {path}, with seeds and arms, but it has something else "
            f"({error}); correct it."
        ) from error


def _read_arm(
    profile: Profile, common: Mapping[str, Any], name: str, entry: Mapping[str, Any]
) -> StudyArm:
    changes = dict(entry)
    arm_fields = {
        field.name: changes.pop(field.name) for field in fields(StudyArm) if field.name in changes
    }
    recipe = changes.pop("recipe")
    if "rescoring" in arm_fields:
        arm_fields["rescoring"] = Rescoring(**arm_fields["rescoring"])
    recorded = recipe == "recorded"
    excess = {*changes, *arm_fields} - (set() if recorded else {"rescoring"})
    if recipe in ("none", "recorded") and excess:
        raise ValueError(f"Expected no {', '.join(sorted(excess))} in {name}")
    if not 0 < arm_fields.get("captions", 1.0) <= 1:
        raise ValueError(f"Expected captions in {name} to be a share above 0")
    if shared := changes.keys() & {*MEASURED_BY, "leak_guard", "selection"}:
        raise ValueError(f"{', '.join(sorted(shared))} in {name} must be alike for all arms")
    trained: Profile | None = None
    if recipe not in ("none", "recorded"):
        # Settings for all arms override their recipes' rates, as options do.
        trained = change_settings(apply_recipe(profile, recipe), common)
        require_recipe(trained)
        trained = change_settings(trained, changes)
    return StudyArm(name, trained, recorded=recorded, **arm_fields)


# Running


def pack_counts(counts: Tensor) -> str:
    """Packs each picture's count into one character, "0" for 0, for a record."""
    return "".join(chr(48 + int(count)) for count in counts)


def unpack_counts(text: str) -> Tensor:
    """Unpacks the counts from `pack_counts`."""
    return torch.tensor([ord(character) - 48 for character in text], dtype=torch.double)


MeasuredOn = tuple[tuple[RetrievalSet, ...], ZeroShotSet, ZeroShotSet | None]


def prepare_measuring(
    clip: ClipBundle, study: Study, data: ProfileData, part: Literal["val", "test"]
) -> MeasuredOn:
    """Reads pictures and encodes texts once; for the pocket, further scenes are used.

    Returns:
        Galleries, labelled pictures, and labelled ones of the held-out style if any.
    """
    captioned, labelled, held_out = data.val, data.zero_shot_val, None
    if part == "test":
        captioned, labelled, held_out = data.test, data.zero_shot, data.zero_shot_held_out
    if is_pocket(study.profile.data):
        captioned = pocket.load_captioned(*_OF_POCKET[part])
    size = study.gallery or len(captioned)
    if remainder := len(captioned) % size:
        say(f"The last gallery of {part} has {remainder:,} of {size:,} pictures: it finds more.")
    return (
        prepare_galleries(clip, captioned, size),
        prepare_zero_shot(clip, labelled, templates=data.templates),
        prepare_zero_shot(clip, held_out, templates=data.templates) if held_out else None,
    )


@dataclass(frozen=True, eq=False)
class Measurement:
    """One model's results.

    Attributes:
        found: retrieval by direction.
        correct: whether each labelled picture is classified correctly.
        held_out: share of correct ones among the labelled pictures of the held-out style.
        hubness: of rescored scores, from `measure_hubness`, averaged over galleries.
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
        place: the data to measure on.
        rescorings: to measure, one after the other; None leaves scores as they are.
        references: this model's features of the training data, to rescore candidates by.
        hubs: whether to measure the hubness of rescored scores, too.
    """
    galleries, zero_shot, held_out = place
    features = encode_galleries(clip, galleries)
    correct = evaluate_zero_shot(clip, zero_shot, progress=False).correct
    held_out_top1 = evaluate_zero_shot(clip, held_out, progress=False).top1 if held_out else None

    def look(rescoring: Rescoring | None) -> Measurement:
        if rescoring is None:
            return Measurement(measure_galleries(features), correct, held_out_top1)
        assert references
        metrics, hubness = measure_galleries(features, references, rescoring), None
        if hubs:
            skews = [measure_hubness(*gallery[:2], references, rescoring) for gallery in features]
            hubness = {
                way: {when: fmean(skew[way][when] for skew in skews) for when in skews[0][way]}
                for way in WAYS
            }
        return Measurement(metrics, correct, held_out_top1, hubness)

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
        clip: the untouched CLIP.
        work: the folder for features, checkpoints, teachers and the trained arms.
        names: of the arms to train now, in addition to the untouched CLIP; all if left out.
        repeat: an arm's name and a seed: trains only this one, again from the beginning, and writes
            its record to `work`.

    Raises:
        ValueError: an arm is unknown, there is nothing to repeat, a record has other settings, or
            a recorded arm lacks a record.
    """
    arms_by_name = {arm.name: arm for arm in study.arms}
    wanted = [repeat[0]] if repeat else ["clip", *names] if names else list(arms_by_name)
    if unknown := [name for name in wanted if name not in arms_by_name]:
        raise ValueError(f"Expected arms out of {', '.join(arms_by_name)}, got {unknown[0]!r}.")
    if repeat:
        if arms_by_name[repeat[0]].recorded:
            raise ValueError(
                f"Expected an arm that can be trained, got {repeat[0]}, which has only records; "
                "repeat another."
            )
        rows = [(arms_by_name[repeat[0]], repeat[1])]
        if not has_record(study, *rows[0]):
            raise ValueError(
                f"Expected a record of {repeat[0]} with the seed {repeat[1]} to repeat, found "
                "none; run the study first."
            )
    else:
        rows = [
            (arm, seed)
            for seed in study.seeds
            for arm in (arms_by_name[name] for name in dict.fromkeys(wanted))
            if seed in study.seeds_of(arm) and not has_record(study, arm, seed)
        ]
    if not rows:
        return
    workshop = _Workshop(study, clip, work, repeated=repeat is not None)
    records = work / "repeated" if repeat else study.path.with_suffix("")
    trainings: dict[tuple[StudyArm, int], list[StudyArm]] = {}
    for arm, seed in rows:
        training = replace(arm, name="", rescoring=None)
        trainings.setdefault((training, seed), []).append(arm)
    for (_, seed), arms in trainings.items():
        say(f"{study.path.stem}: {', '.join(arm.name for arm in arms)}, seed {seed}.")
        for arm, record in zip(arms, workshop.run(arms, seed), strict=True):
            write_record(record, records / study.record_of(arm, seed).name)
        return_memory()


def has_record(study: Study, arm: StudyArm, seed: int) -> bool:
    """Whether a training is done, so that it is not run again.

    Raises:
        ValueError: its record is damaged or has other settings than the file, or it is missing and
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
    current = study.describe(arm, seed)
    # Older records lack these and newer settings, which had the defaults. Compositions that were
    # not measured cannot be filled in.
    measured = {k: v for k, v in current["measured"].items() if k != "compositions"}
    defaults = {"measured": measured | {"alphas": list(ALPHAS)}}
    if arm.profile:
        defaults["profile"] = Profile("", "", None).as_dict()
    recorded = read_record(path, lambda record: _fill(record["settings"], defaults))
    if differing := differing_entries(recorded, current):
        raise ValueError(
            f"Expected {path} to be of the settings in {study.path}, but they differ in "
            f"{', '.join(differing)}; "
            + (f"take {arm.name} out." if arm.recorded else "delete it to train again.")
        )
    return True


def _fill(record: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Fills in what a record lacks."""
    filled = {
        name: _fill(record[name], value) if isinstance(value, dict) else record[name]
        for name, value in defaults.items()
        if name in record
    }
    return {**defaults, **record, **filled}


def arm_place(work: Path, study: Study, name: str, seed: int) -> Path:
    """The folder of a trained arm in the work of studies, whose arms may have the same names."""
    return work / "arms" / study.path.stem / f"seed-{seed}" / name


def teacher_place(work: Path, arm: StudyArm, seed: int) -> Path:
    """The folder of an arm's teacher in a study's work; arms with the same teacher share it."""
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
    """Data, features and teachers that a study's trainings share, made when they are needed."""

    def __init__(self, study: Study, clip: ClipBundle, work: Path, repeated: bool) -> None:
        self.study, self.clip, self.work = study, clip, work
        # Repeated trainings use no checkpoint, and have a folder of their own.
        self.place = work / "repeated" if repeated else work
        self.states = None if repeated else work / "checkpoints"
        self.data = load_data(study.profile)
        self.before = load_seen(study.profile.clip)
        if self.before:
            self.data = leave_out_seen(self.data, self.before, study.profile.clip)
        self.read_uncaptioned = cache(self._read_uncaptioned)
        if not is_pocket(study.profile.zero_shot):  # whose pictures are separate
            trained = {arm.profile.uncaptioned: arm.profile for arm in study.arms if arm.profile}
            sources = [name for name, profile in trained.items() if locate_uncaptioned(profile)]
            for source in ("", *sources):
                self.data = leave_out_trained_labelled(self.data, self._describe_seen(source))
        self.chosen_on = prepare_measuring(clip, study, self.data, "val")
        self.measured_on = prepare_measuring(clip, study, self.data, "test")
        self.captioned, self.uncaptioned = cache(self._captioned), cache(self._uncaptioned)

    @cached_property
    def untouched(self) -> tuple[Measurement, Measurement]:
        """The untouched CLIP on val and on test."""
        on_val, on_test = (
            measure(self.clip, data)[None] for data in (self.chosen_on, self.measured_on)
        )
        if not (on_val.correct.any() and on_test.correct.any()):
            raise knows_none()
        return on_val, on_test

    def _read_uncaptioned(self, source: str) -> CaptionedImages | None:
        profile = apply_recipe(replace(self.study.profile, uncaptioned=source), "region_taught")
        return load_uncaptioned(profile, self.data)

    def _describe_seen(self, source: str = "") -> SeenPictures:
        """What an arm has seen, including these uncaptioned pictures if any."""
        profile, val = self.study.profile, self.data.val
        if is_pocket(profile.data):
            val = pocket.load_captioned(*_OF_POCKET["val"])
        labelled = () if is_pocket(profile.zero_shot) else self.data.zero_shot_val.paths
        by_content, before = profile.leak_guard == "content", [self.before] if self.before else []
        seen = describe_seen(self.data.train, val, labelled, by_content, before)
        uncaptioned = self.read_uncaptioned(source) if source else None
        return add_trained(seen, uncaptioned, by_content) if uncaptioned else seen

    def _select(self, share: float) -> CaptionedImages:
        train = self.data.train
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        return train.select(sorted(order[: round(share * len(train))].tolist()))

    def _captioned(self, regions: RegionSettings, share: float) -> EncodedPictures:
        return encode_pictures(self.clip, self._select(share), regions, self.work)

    def _uncaptioned(self, regions: RegionSettings, source: str) -> EncodedPictures | None:
        pictures = self.read_uncaptioned(source)
        return encode_pictures(self.clip, pictures, regions, self.work) if pictures else None

    def run(self, arms: Sequence[StudyArm], seed: int) -> list[dict[str, Any]]:
        """Trains once and returns a record for each arm; they differ only in their rescoring.

        A record has the frontier from the untouched CLIP to the student, and how it was made.
        """
        began, profile = time.monotonic(), arms[0].profile
        rescorings = list(dict.fromkeys(arm.rescoring for arm in arms))
        measured: dict[float, list[dict[Rescoring | None, Measurement]]] = {}

        def measure_mix(alpha: float, clip: ClipBundle) -> None:
            """Measures a mix on val and on test."""
            train = self._select(arms[0].captions)
            references = prepare_references(clip, train) if any(rescorings) else None
            measured[alpha] = [
                measure(clip, self.chosen_on, rescorings, references),
                measure(clip, self.measured_on, rescorings, references, hubs=True),
            ]

        base_on_val, base_on_test = self.untouched
        steps, taught, run, alpha = 0, dict[str, Any](), None, 0.0
        if rescorings == [None]:
            measured[0.0] = [{None: measurement} for measurement in self.untouched]
        else:
            measure_mix(0.0, self.clip)
        if profile:
            run, steps, taught = self._train(arms[0], replace(profile, seed=seed))
            for share in self.study.alphas:
                measure_mix(share, interpolate(self.clip, run.student, share))
        records = []
        for arm in arms:
            points = {
                share: [results[arm.rescoring] for results in parts]
                for share, parts in measured.items()
            }
            val = [
                Candidate(
                    share,
                    on_val.found["text_to_image"].figures["recall_at_1"],
                    _retention(on_val, base_on_val),
                )
                for share, (on_val, _) in points.items()
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
                "val": [asdict(candidate) for candidate in val],
                **_describe_frontier(
                    {share: on_test for share, (_, on_test) in points.items()}, base_on_test, alpha
                ),
                "probe": taught.get("probe"),
                **({"teacher": taught["chosen"]} if taught.get("chosen") else {}),
                "compositions": self._ask_compositions(mixed),
                "settings": settings,
            }
            records.append(record)
        return records

    def _save(self, arm: Arm, name: str, profile: Profile, seed: int) -> None:
        """Saves an arm; its record was measured before its weights are rounded."""
        rounded = clone_clip(arm.clip)
        round_changed(self.clip, rounded)
        source = profile.uncaptioned if profile.student.uncaptioned_batch else ""
        origin = describe_origin(replace(profile, seed=seed), self.clip)
        folder = arm_place(self.place, self.study, name, seed)
        save_arm(replace(arm, clip=rounded), folder, origin, self._describe_seen(source))

    def _ask_compositions(self, clip: ClipBundle) -> dict[str, dict[str, str]] | None:
        if not self.study.compositions:
            return None
        return {
            kind: {
                name: pack_counts(correct)
                for name, correct in composition_scores(similarity).items()
            }
            for kind, similarity in score_compositions(clip, self.study.compositions).items()
        }

    def _train(self, arm: StudyArm, profile: Profile) -> tuple[StudentRun, int, dict[str, Any]]:
        """Trains a student; returns it, its number of steps, and its teacher's choice and probe."""
        captioned = self.captioned(profile.regions, arm.captions)
        student, steps = _choose_epochs(arm, profile, captioned)
        teacher: Any = None
        uncaptioned, taught = None, dict[str, Any]()
        if student.distillation_weight:
            if student.uncaptioned_batch:
                uncaptioned = self.uncaptioned(profile.regions, profile.uncaptioned)
            if profile.teacher_model == "control":
                teacher = self._train_control(arm, profile)
            else:
                teacher_folder = teacher_place(self.place, arm, profile.seed)
                state = self.states and self.states / f"teacher-{teacher_folder.name}.safetensors"
                val = None
                if chooses_teacher(profile):
                    val = self._encode_further("val", profile.regions)
                run = train_teacher_of(profile, captioned.features, state, self.clip.device, val)
                folder, seen = teacher_folder / kind_of(run.settings), self._describe_seen()
                save_teacher_run(run, folder, profile, self.clip, seen)
                teacher, taught["chosen"] = run.teacher, run.chosen
            if profile.teacher_model == "region":
                test_features = self._encode_further("probe", profile.regions)
                probe = region_probe(teacher, test_features, profile.region_teacher)
                taught["probe"] = asdict(probe)
        terms = prepare_terms(profile, self.clip, captioned, teacher, uncaptioned)
        key = digest_record(replace(arm, rescoring=None).describe(profile.seed))
        # Without the arm's name: arms that differ only in their rescoring share a checkpoint.
        state = self.states and self.states / f"student-{key}.safetensors"
        trained = distill(self.clip, captioned, terms, student, seed=profile.seed, checkpoint=state)
        return trained, student.epochs * steps, taught

    def _encode_further(self, part: Literal["val", "probe"], regions: RegionSettings) -> Any:
        """Features of pictures that choose a teacher, or that it is probed on."""
        pictures = self.data.val if part == "val" else self.data.test
        if is_pocket(self.study.profile.data):
            pictures = pocket.load_captioned(*_OF_POCKET[part])
        return load_or_extract_features(self.clip, pictures, regions, self.work)

    def _train_control(self, arm: StudyArm, profile: Profile) -> ClipBundle:
        """The control, trained once by its own settings, for its own row and as a teacher."""
        control_arm = replace(self.study.control, captions=arm.captions, rescoring=None)
        assert control_arm.profile
        control = replace(control_arm.profile, seed=profile.seed)
        captioned = self.captioned(control.regions, arm.captions)
        sets = prepare_evaluation(self.clip, self.data)
        training_set = prepare_training(self.clip, captioned, sets, control.selection)
        key = digest_record(control_arm.describe(profile.seed))
        state = self.states and self.states / f"student-{key}.safetensors"
        terms = prepare_terms(control, self.clip, captioned)
        (student, _), seed = _choose_epochs(control_arm, control, captioned), profile.seed
        return train_arm(self.clip, training_set, terms, student, seed=seed, checkpoint=state).clip


def _choose_epochs(
    arm: StudyArm, profile: Profile, captioned: EncodedPictures
) -> tuple[StudentSettings, int]:
    """A student's settings, with about as many steps as its arm says; and the steps of an epoch."""
    student = profile.student
    steps = len(plan_epoch(captioned.features, student, profile.seed, 0))
    if arm.steps:
        student = replace(student, epochs=max(1, round(arm.steps / steps)))
        if abs(student.epochs * steps / arm.steps - 1) > 0.1:
            say(
                f"{arm.name} trains {student.epochs * steps:,} steps for {arm.steps:,}, in whole "
                f"epochs of {steps:,}."
            )
    return student, steps


def _retention(measurement: Measurement, base: Measurement) -> float:
    return float(measurement.correct.double().mean() / base.correct.double().mean())


def _describe_frontier(
    points: Mapping[float, Measurement], base: Measurement, alpha: float
) -> dict[str, Any]:
    """The part of a record on the mixes, by weight, one of which was chosen."""
    chosen = points[alpha]
    return {
        "frontier": [_describe(share, measurement, base) for share, measurement in points.items()],
        "queries": {way: pack_counts(base.found[way].image.bincount()) for way in WAYS},
        "chosen": {
            **{way: chosen.found[way].figures for way in WAYS},
            "correct": pack_counts(chosen.correct),
        },
        "skewness_of_k_occurrence": chosen.hubness,
    }


def _describe(alpha: float, measurement: Measurement, base: Measurement) -> dict[str, Any]:
    held_out = measurement.held_out and base.held_out and measurement.held_out / base.held_out
    return {
        "alpha": alpha,
        **{way: metrics.figures["recall_at_1"] for way, metrics in measurement.found.items()},
        "retention": _retention(measurement, base),
        "retention_held_out_style": held_out,
        "hits": {
            way: pack_counts(torch.bincount(metrics.image, metrics.hits.double()))
            for way, metrics in measurement.found.items()
        },
    }
