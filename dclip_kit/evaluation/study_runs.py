"""Running studies: each training leaves its record as it ends, and is not run again.

A study that was interrupted goes on, and no training needs another's weights.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from dclip_kit.config import CONTROL, Profile, RegionSettings, apply_recipe
from dclip_kit.data import LabelledImages
from dclip_kit.data.pocket import world as pocket
from dclip_kit.evaluation.arms import Arm, Candidate, choose_candidate, save_arm, train_arm
from dclip_kit.evaluation.evaluate import (
    RetrievalSet,
    ZeroShotSet,
    evaluate_zero_shot,
    prepare_zero_shot,
)
from dclip_kit.evaluation.experiment import (
    EncodedPictures,
    encode_pictures,
    load_or_extract_features,
    prepare_evaluation,
    prepare_lessons,
    prepare_rehearsal,
    prepare_training,
    teacher_settings,
    train_and_save_teacher,
)
from dclip_kit.evaluation.galleries import (
    WAYS,
    GalleryMetrics,
    measure_galleries,
    prepare_galleries,
)
from dclip_kit.evaluation.probe import region_probe
from dclip_kit.evaluation.profile_data import (
    ProfileData,
    load_data,
    load_uncaptioned,
    name_uncaptioned,
)
from dclip_kit.evaluation.records import read_record, write_record
from dclip_kit.evaluation.study import RETENTION, Study, StudyArm, pack_counts
from dclip_kit.features.store import differing_entries, digest_record
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.weights import interpolate
from dclip_kit.runtime.machine import return_memory
from dclip_kit.runtime.printing import say
from dclip_kit.training import StudentRun, distill, plan_epoch

ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0)  # of each arm's frontier, beside 0
_OF_POCKET = {  # its further scenes, to measure arms and teachers on
    "val": ("further_val", 2000),
    "test": ("further_test", 4000),
    "probe": ("further_val", 1000),
}


@dataclass(frozen=True, eq=False)
class MeasuredOn:
    """Pictures that models are measured on: galleries, and labelled ones."""

    galleries: tuple[RetrievalSet, ...]
    zero_shot: ZeroShotSet
    held_out: ZeroShotSet | None


def prepare_measuring(
    clip: ClipBundle, study: Study, data: ProfileData, part: Literal["val", "test"]
) -> MeasuredOn:
    """Reads pictures, and encodes texts once. The pocket has further scenes for it."""
    captioned, labelled, held_out = getattr(data, part), data.zero_shot_val, None
    if study.profile.data == "pocket":
        captioned = pocket.load_further(*_OF_POCKET[part])

    def prepare(found: LabelledImages) -> ZeroShotSet:
        return prepare_zero_shot(clip, found, True, data.templates)

    if part == "test":
        labelled = data.zero_shot
        held_out = prepare(data.zero_shot_held_out) if data.zero_shot_held_out else None
    galleries = prepare_galleries(clip, captioned, study.gallery or len(captioned))
    return MeasuredOn(galleries, prepare(labelled), held_out)


@dataclass(frozen=True, eq=False)
class Measurement:
    """One model's results.

    Attributes:
        found: by direction.
        correct: for each labelled picture whether it is named.
        held_out: share of the labelled pictures of the held-out style that are.
    """

    found: dict[str, GalleryMetrics]
    correct: Bool[Tensor, "image"]
    held_out: float | None


def measure(
    clip: ClipBundle, place: MeasuredOn, references: tuple[Tensor, Tensor] | None = None
) -> Measurement:
    """Measures a model in all galleries, and on labelled pictures; as `measure_galleries`."""
    found = measure_galleries(clip, place.galleries, references)
    correct = evaluate_zero_shot(clip, place.zero_shot, progress=False).correct
    held_out = None
    if place.held_out:
        held_out = evaluate_zero_shot(clip, place.held_out, progress=False).top1
    return Measurement(found, correct, held_out)


# Running


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
        ValueError: an arm is unknown, there is nothing to repeat, or a record is of other settings.
    """
    known = {arm.name: arm for arm in study.arms}
    wanted = [repeat[0]] if repeat else ["clip", *names] if names else list(known)
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"Expected arms out of {', '.join(known)}, got {unknown[0]!r}.")
    rows = [(known[name], seed) for seed in study.seeds for name in dict.fromkeys(wanted)]
    rows = [(arm, seed) for arm, seed in rows if seed in study.seeds_of(arm)]
    if repeat:
        rows = [(known[repeat[0]], repeat[1])]
        if not _is_done(study, *rows[0]):
            raise ValueError(
                f"Expected a record of {repeat[0]} with the seed {repeat[1]} to repeat, found "
                "none; run the study first."
            )
    else:
        rows = [(arm, seed) for arm, seed in rows if not _is_done(study, arm, seed)]
    if not rows:
        return
    workshop = _Workshop(study, clip, work, anew=repeat is not None)
    for arm, seed in rows:
        say(f"{study.path.stem}: {arm.name}, seed {seed}.")
        record = workshop.run(arm, seed)
        place = study.record_of(arm, seed)
        if repeat:
            place = work / "repeated" / place.name
        write_record(record, place)
        return_memory()


def _is_done(study: Study, arm: StudyArm, seed: int) -> bool:
    path = study.record_of(arm, seed)
    if not path.exists():
        return False
    kept = read_record(path, lambda record: dict(record["settings"]))
    now = study.describe(arm, seed)
    kept = _fill(kept, {"measured": now["measured"]})  # older records lack this, and newer settings
    if arm.profile:
        kept = _fill(kept, {"profile": Profile("", "", None).as_dict()})
    if differing := differing_entries(kept, now):
        raise ValueError(
            f"Expected {path} to be of the settings in {study.path}, but they differ in "
            f"{', '.join(differing)}; delete it to train that anew."
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
    """The folder that a study's work has an arm's teacher in; arms of one teacher share it.

    Raises:
        ValueError: the arm has no settings.
    """
    if arm.profile is None:
        raise ValueError(f"Expected an arm with a teacher, got {arm.name}; name another.")
    names = ("clip", "pretrained", "data", "images", "regions")
    own = {name: each for name, each in asdict(arm.profile).items() if name in names}
    settings = asdict(teacher_settings(arm.profile))
    decisive = {"teacher": settings, **own, "seed": seed, "captions": arm.captions}
    return work / "teachers" / digest_record(decisive)


class _Workshop:
    """What trainings of a study share: data, features, teachers; each made when it is needed."""

    def __init__(self, study: Study, clip: ClipBundle, work: Path, anew: bool) -> None:
        self.study, self.clip, self.work = study, clip, work
        # What is trained anew goes on from no checkpoint, and lies apart.
        self.place = work / "repeated" if anew else work
        self.states = None if anew else work / "checkpoints"
        self.data = load_data(study.profile)
        self.chosen_on = prepare_measuring(clip, study, self.data, "val")
        self.measured_on = prepare_measuring(clip, study, self.data, "test")
        self.sets = prepare_evaluation(clip, self.data)
        self.captioned, self.uncaptioned = cache(self._captioned), cache(self._uncaptioned)
        self.untouched = cache(self._untouched)

    def measure(self, clip: ClipBundle) -> Measurement:
        return measure(clip, self.measured_on)

    def _untouched(self) -> tuple[Measurement, Measurement]:
        """The untouched CLIP on val and on test."""
        found = measure(self.clip, self.chosen_on), self.measure(self.clip)
        if not all(each.correct.any() for each in found):
            raise ValueError(
                "Expected a CLIP that knows some of the classes, got none right; give it classes "
                "that it can name."
            )
        return found

    def _captioned(self, regions: RegionSettings, share: float) -> EncodedPictures:
        train = self.data.train
        if share < 1:
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
            train = train.select(sorted(order[: round(share * len(train))].tolist()))
        profile = replace(self.study.profile, regions=regions)
        return encode_pictures(profile, self.clip, train, self.work)

    def _uncaptioned(self, regions: RegionSettings, named: str) -> EncodedPictures | None:
        profile = replace(self.study.profile, regions=regions, uncaptioned=named)
        pictures = load_uncaptioned(apply_recipe(profile, "region_taught"), self.data)
        if pictures is None:
            return None
        return encode_pictures(profile, self.clip, pictures, self.work)

    def run(self, arm: StudyArm, seed: int) -> dict[str, Any]:
        """One row's record."""
        began = time.monotonic()
        settings = self.study.describe(arm, seed)
        head = {"arm": arm.name, "seed": seed, "settings_digest": digest_record(settings)}
        if arm.profile is None:
            references = None
            if arm.nnn:
                features = self.captioned(self.study.profile.regions, 1.0).features
                references = features.text, features.image
            found = measure(self.clip, self.measured_on, references)
            points, val = {0.0: found}, [_as_candidate(0.0, *[self.untouched()[0]] * 2)]
            steps, probe, alpha = 0, None, 0.0
        else:
            profile = replace(arm.profile, seed=seed)
            run, steps, probe = self._train(arm, profile)
            points, val = self._follow(run.student)
            alpha = choose_candidate(val, RETENTION).alpha
            mixed = interpolate(self.clip, run.student, alpha)
            text = profile.student.train_text
            kept = Arm(arm.name, mixed, alpha, tuple(val), run.history, text)
            save_arm(kept, self.place / "arms" / f"seed-{seed}")
        base = self.untouched()[1]
        return head | {
            "steps": steps,
            "seconds": round(time.monotonic() - began, 1),
            "alpha": alpha,
            "val": [asdict(each) for each in val],
            "frontier": [_describe(x, found, base) for x, found in points.items()],
            "queries": {way: pack_counts(base.found[way].image.bincount()) for way in WAYS},
            "chosen": {
                **{way: points[alpha].found[way].figures for way in WAYS},
                "correct": pack_counts(points[alpha].correct),
            },
            "probe": probe,
            "settings": settings,
        }

    def _train(self, arm: StudyArm, profile: Profile) -> tuple[StudentRun, int, Any]:
        """A student, how many steps it took, and the probe of its teacher."""
        captioned = self.captioned(profile.regions, arm.captions)
        profile = _count_epochs(profile, arm.steps, captioned)
        student, key = profile.student, digest_record(arm.describe(profile.seed))
        lessons = probe = None
        if student.distillation_weight:
            uncaptioned = None
            if student.uncaptioned_batch and name_uncaptioned(profile):
                uncaptioned = self.uncaptioned(profile.regions, profile.uncaptioned)
            if profile.teacher_model == "control":
                teacher: Any = self._train_control(arm, profile)
            else:
                teacher = self._train_teacher(profile, captioned, arm)
            lessons = prepare_lessons(profile, teacher, captioned, uncaptioned)
            if profile.teacher_model == "region":
                further = self.data.test
                if self.study.profile.data == "pocket":
                    further = pocket.load_further(*_OF_POCKET["probe"])
                tested = load_or_extract_features(profile, self.clip, further, self.work)
                probe = asdict(region_probe(teacher, tested, profile.region_teacher))
        run = distill(
            self.clip,
            captioned.pictures,
            captioned.features,
            student,
            lessons.embeddings if lessons else None,
            uncaptioned=lessons.uncaptioned if lessons else None,
            rehearsal=prepare_rehearsal(profile, self.clip, captioned),
            texts=captioned.dataset.texts,
            seed=profile.seed,
            checkpoint=self.states and self.states / f"{arm.name}-{key}.safetensors",
        )
        steps = student.epochs * len(plan_epoch(captioned.features, student, profile.seed, 0))
        return run, steps, probe

    def _train_control(self, arm: StudyArm, profile: Profile) -> ClipBundle:
        """The control by its own settings; arms that it teaches share its checkpoint."""
        control = replace(apply_recipe(self.study.profile, CONTROL), seed=profile.seed)
        captioned = self.captioned(control.regions, arm.captions)
        shown = prepare_training(control, self.clip, captioned, self.sets)
        key = digest_record(replace(arm, profile=control, steps=0).describe(profile.seed))
        state = self.states and self.states / f"{CONTROL}-{key}.safetensors"
        features = captioned.features
        return train_arm(CONTROL, self.clip, shown, features, control, checkpoint=state).clip

    def _train_teacher(self, profile: Profile, captioned: EncodedPictures, arm: StudyArm) -> Any:
        place = teacher_place(self.place, arm, profile.seed)
        state = self.states and self.states / f"teacher-{place.name}.safetensors"
        return train_and_save_teacher(profile, captioned.features, place, state).teacher

    def _follow(self, trained: ClipBundle) -> tuple[dict[float, Measurement], list[Candidate]]:
        """The frontier between the untouched CLIP and a student, on test and on val."""
        first, base = self.untouched()
        points, candidates = {0.0: base}, [_as_candidate(0.0, first, first)]
        for alpha in ALPHAS:
            mixed = interpolate(self.clip, trained, alpha)
            points[alpha] = self.measure(mixed)
            own = measure(mixed, self.chosen_on)
            candidates.append(_as_candidate(alpha, own, first))
        return points, candidates


def _count_epochs(profile: Profile, steps: int, captioned: EncodedPictures) -> Profile:
    if not steps:
        return profile
    each = len(plan_epoch(captioned.features, profile.student, profile.seed, 0))
    return replace(profile, student=replace(profile.student, epochs=max(1, round(steps / each))))


def _as_candidate(alpha: float, found: Measurement, base: Measurement) -> Candidate:
    recall = found.found["text_to_image"].figures["recall_at_1"]
    return Candidate(alpha, recall, _retention(found, base))


def _retention(found: Measurement, base: Measurement) -> float:
    return float(found.correct.double().mean() / base.correct.double().mean())


def _describe(alpha: float, found: Measurement, base: Measurement) -> dict[str, Any]:
    held_out = found.held_out and base.held_out and found.held_out / base.held_out
    recalls = {way: each.figures["recall_at_1"] for way, each in found.found.items()}
    kept = {"retention": _retention(found, base), "retention_held_out_style": held_out}
    hits = {
        way: pack_counts(torch.bincount(each.image, each.hits.double()))
        for way, each in found.found.items()
    }
    return {"alpha": alpha, **recalls, **kept, "hits": hits}
