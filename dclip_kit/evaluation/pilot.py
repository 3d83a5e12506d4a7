"""Will it help me? A profile tried on a small part of its data, before hours are spent."""

import time
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dclip_kit.config import (
    Profile,
    SelectionRule,
    StudentSettings,
    control_of,
    require_recipe,
    trains_teacher,
)
from dclip_kit.evaluation.arms import Candidate, choose_candidate, knows_none
from dclip_kit.evaluation.compare import compare, say_gain
from dclip_kit.evaluation.evaluate import (
    WAYS,
    RetrievalSet,
    ZeroShot,
    ZeroShotSet,
    evaluate_retrieval,
    evaluate_zero_shot,
    prepare_retrieval,
    prepare_zero_shot,
)
from dclip_kit.evaluation.experiment import SETTINGS, Begun, begin, prepare_terms
from dclip_kit.evaluation.profile_data import lacks_captions, require_data
from dclip_kit.features.extract import encode_pictures
from dclip_kit.features.store import EncodedPictures
from dclip_kit.metrics import Gain, RetrievalMetrics
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import read_few
from dclip_kit.models.weights import interpolate
from dclip_kit.runtime.files import read_record
from dclip_kit.runtime.machine import peak_memory_mb
from dclip_kit.runtime.printing import say
from dclip_kit.training import distill
from dclip_kit.training.order import plan_epoch

PILOT = "pilot.json"  # of a pilot's folder, beside its settings
LADDER = (1 / 3, 1.0, 3.0)  # times the control's learning rate
MEASURED = 200  # pictures of val, and labelled ones
FEW = 500  # captioned pictures, below which fine-tuning mostly learns them by heart
_ALPHAS = (0.5, 1.0)
_UNCHANGED = (
    "Nothing changed at any rate: these steps are too few to tell; give more with --steps and "
    "--minutes, or try higher rates with --student.learning-rate."
)


@dataclass(frozen=True)
class Rung:
    """A learning rate, tried for a few steps.

    Attributes:
        factor: of the control's own learning rate.
        learning_rate: the peak.
        alpha, recall_at_1, retention: of the mixture that val chooses; 0 is the untouched CLIP.
        gain: in text→image Recall@1 over the untouched CLIP.
        loss: of the last step.
        changed: whether any mixture finds or names another picture than the untouched CLIP does.
    """

    factor: float
    learning_rate: float
    alpha: float
    recall_at_1: float
    retention: float
    gain: Gain
    loss: float
    changed: bool = True


@dataclass(frozen=True, eq=False)
class Part:
    """A small part of a run's data.

    Attributes:
        captioned: to train on.
        retrieval, zero_shot: to measure on, from val.
        seconds_a_picture: that finding and encoding regions took.
    """

    captioned: EncodedPictures
    retrieval: RetrievalSet
    zero_shot: ZeroShotSet
    seconds_a_picture: float


def run_pilot(
    profile: Profile,
    out: Path,
    *,
    pictures: int = 256,
    steps: int = 10,
    minutes: float = 10.0,
    device: str = "auto",
) -> dict[str, Any]:
    """Tries the control of a profile's recipe on a part of its data, at three learning rates.

    The control learns from captions alone, so that no teacher has to be trained first; one epoch
    before shows how long a step takes. What a factor did to the control's rate, it is expected to
    do to the recipe's.

    Args:
        profile: all settings.
        out: a folder of the pilot's own, for its settings; an earlier pilot's are replaced.
        pictures: to train on, with captions.
        steps: of each training, about.
        minutes: for the three trainings, about; where steps are slow, there are fewer, but an
            epoch.
        device: where to compute.

    Returns:
        What was counted and measured, `rungs`, `advice`, and as `student` the settings to take:
        `learning_rate_factor`, of the recipe's own, and the rate that this makes.

    Raises:
        FileNotFoundError, ValueError: as `experiment.run`.
    """
    require_recipe(profile)
    require_data(profile)
    if lacks_captions(profile):
        raise ValueError(
            f"Expected captioned pictures to try, got {profile.data}, which has none; run distill "
            "without a pilot."
        )
    if (out / PILOT).is_file() and {path.name for path in out.iterdir()} <= {SETTINGS, PILOT}:
        for name in (PILOT, SETTINGS):  # there is nothing to continue
            (out / name).unlink(missing_ok=True)
    begun = begin(profile, out, device=device)
    data, uncaptioned, control = begun.data, begun.uncaptioned, control_of(profile)
    settings = control.student
    part = _take_part(begun, pictures)
    features = part.captioned.features
    steps_of_epoch = plan_epoch(features, settings, profile.seed, 0)
    epoch_steps = len(steps_of_epoch)
    few = replace(settings, epochs=max(1, -(-steps // epoch_steps)))
    rungs, step_seconds = _climb_ladder(begun, part, replace(control, student=few), minutes)
    unchanged = not any(rung.changed for rung in rungs)
    best = max(rungs, key=lambda rung: (rung.recall_at_1, -rung.factor))
    if unchanged:  # no rate is known to be better: the recipe's own
        best = min(rungs, key=lambda rung: abs(rung.factor - 1))
    rate = profile.student.learning_rate * best.factor
    batches = [batch for step in steps_of_epoch for batch in step]
    shown = sum(map(len, batches)) + len(batches) * settings.rehearsal_batch
    picture_seconds = step_seconds * epoch_steps / shown
    seconds = {
        name: picture_seconds * _count_shown(each.student, len(data.train), bool(uncaptioned))
        for name, each in (("the control", control), (profile.recipe, profile))
    }
    report = {
        "profile": profile.name,
        "recipe": profile.recipe,
        "pictures": {
            "captioned": len(data.train),
            "uncaptioned": len(uncaptioned or ()),
            "val": len(data.val),
            "left_out": data.left_out.as_dict() if data.left_out else {},
        },
        "tried_on": {
            "captioned": len(features),
            "val": len(part.retrieval.pictures),
            "labelled": len(part.zero_shot.labels),
        },
        "regions_a_picture": float(features.region_count.float().mean()),
        "without_regions": features.without_detections,
        "seconds_a_step": step_seconds,
        "seconds_of_the_run": {
            "regions and features": part.seconds_a_picture
            * (len(data.train) + len(uncaptioned or ())),
            **seconds,
        },
        "megabytes": peak_memory_mb(),
        "rungs": [asdict(rung) for rung in rungs],
        "student": {"learning_rate_factor": best.factor, "learning_rate": rate},
    }
    if len(data.train) >= FEW and unchanged:
        return report | {"advice": _UNCHANGED}
    return report | {"advice": _advise(best, rate, len(data.train), trains_teacher(profile))}


def _count_shown(student: StudentSettings, pictures: int, with_uncaptioned: bool) -> int:
    """How many pictures a whole training encodes, of all kinds."""
    beside = student.rehearsal_batch if student.rehearsal_weight else 0
    if with_uncaptioned and student.distillation_weight:
        beside += student.uncaptioned_batch
    return student.epochs * -(-pictures // student.batch_size) * (student.batch_size + beside)


def _take_part(begun: Begun, pictures: int) -> Part:
    clip, data, profile = begun.clip, begun.data, begun.profile
    small = data.train.select(_spread(len(data.train), pictures))
    began = time.monotonic()
    captioned = encode_pictures(clip, small, profile.regions)
    seconds = time.monotonic() - began
    val = data.val.select(_spread(len(data.val), MEASURED))
    retrieval = prepare_retrieval(clip, val)
    zero_shot = prepare_zero_shot(clip, data.zero_shot_val, False, data.templates)
    zero_shot = zero_shot.every(max(1, len(zero_shot.labels) // MEASURED))
    zero_shot = replace(zero_shot, pictures=read_few(clip, zero_shot.pictures))
    return Part(captioned, retrieval, zero_shot, seconds / len(small))


def _climb_ladder(
    begun: Begun, part: Part, control: Profile, minutes: float
) -> tuple[list[Rung], float]:
    """Trains the control once for each rate; also returns the seconds of a step."""
    clip, profile, few = begun.clip, begun.profile, control.student
    terms = prepare_terms(control, clip, part.captioned)
    before = evaluate_retrieval(clip, part.retrieval, progress=False)
    named = evaluate_zero_shot(clip, part.zero_shot, progress=False)
    if not named.top1:
        raise knows_none()
    lowest = few.learning_rate * min(LADDER)
    began, once = time.monotonic(), replace(few, epochs=1, learning_rate=lowest)
    distill(clip, part.captioned, terms, once, seed=profile.seed)
    epoch_seconds = time.monotonic() - began
    few = replace(few, epochs=_fit_epochs(few.epochs, epoch_seconds, minutes))
    rungs, seconds = list[Rung](), list[float]()
    for factor in LADDER:
        settings = replace(few, learning_rate=few.learning_rate * factor)
        ticks, losses = [time.monotonic()], list[float]()

        def follow(_: int, loss: float, ticks: list = ticks, losses: list = losses) -> None:
            ticks.append(time.monotonic())
            losses.append(loss)

        try:
            run = distill(clip, part.captioned, terms, settings, seed=profile.seed, on_step=follow)
            chosen, gain, changed = _choose(
                clip, run.student, part, before, named, profile.selection
            )
        except ValueError as error:  # weights that are no longer finite: a lower rate may do
            if not rungs:
                raise
            say(f"The control's rate {settings.learning_rate:.1e} is too high: {error}")
            break
        # The first step also waits for what is prepared once.
        seconds += [late - early for early, late in pairwise(ticks[1:])]
        measured = chosen.alpha, chosen.recall_at_1, chosen.retention
        rungs.append(Rung(factor, settings.learning_rate, *measured, gain, losses[-1], changed))
        say(_say_rung(rungs[-1], len(losses)))
    steps = len(plan_epoch(part.captioned.features, few, profile.seed, 0))
    return rungs, median(seconds or [epoch_seconds / steps])


def _fit_epochs(epochs: int, seconds: float, minutes: float) -> int:
    """As many epochs of so many seconds as the minutes allow at three rates; at least one."""
    return max(1, min(epochs, int(60 * minutes / (len(LADDER) * seconds))))


def _choose(
    clip: ClipBundle,
    student: ClipBundle,
    part: Part,
    before: RetrievalMetrics,
    named: ZeroShot,
    rule: SelectionRule,
) -> tuple[Candidate, Gain, bool]:
    """The mixture that a rule chooses out of few, its gain, and whether any differs from CLIP."""
    candidates = {0.0: Candidate(0.0, before.text_to_image.recall_at[1], 1.0)}
    metrics, changed = {0.0: before}, False
    for alpha in _ALPHAS:
        mixed = interpolate(clip, student, alpha)
        metrics[alpha] = evaluate_retrieval(mixed, part.retrieval, progress=False)
        names = evaluate_zero_shot(mixed, part.zero_shot, progress=False)
        found, recall = metrics[alpha].text_to_image, metrics[alpha].text_to_image.recall_at[1]
        candidates[alpha] = Candidate(alpha, recall, names.top1 / named.top1)
        changed |= not torch.equal(found.hits(1), before.text_to_image.hits(1))
        changed |= not torch.equal(names.correct, named.correct)
    chosen = choose_candidate([*candidates.values()], rule.least_retention)
    gains = compare(before, metrics[chosen.alpha])[WAYS["text_to_image"]]
    return chosen, gains[0], changed


def read_rates(file: Path, student: StudentSettings) -> StudentSettings:
    """A student's settings with its rate times the factor that a pilot found.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is not a pilot's.
    """

    def take(record: dict[str, Any]) -> StudentSettings:
        factor = record["student"]["learning_rate_factor"]
        return replace(student, learning_rate=student.learning_rate * factor)

    return read_record(file, take)


def say_pilot(report: dict[str, Any]) -> list[str]:
    """A pilot's report as lines for a person."""
    pictures, tried = report["pictures"], report["tried_on"]
    seconds = report["seconds_of_the_run"]
    parts = ", ".join(f"{name} {_say_time(value)}" for name, value in seconds.items())
    return [
        f"Usable: {pictures['captioned']:,} pictures with captions to train on, "
        f"{pictures['uncaptioned']:,} without, {pictures['val']:,} to choose on. Tried on "
        f"{tried['captioned']:,} of them, and measured on {tried['val']:,} of val and "
        f"{tried['labelled']:,} labelled ones.",
        f"Regions a picture: {report['regions_a_picture']:.1f}; nothing was found in "
        f"{report['without_regions']:,} of {tried['captioned']:,}.",
        f"A step takes {report['seconds_a_step']:.2f} s, so the whole run about "
        f"{_say_time(sum(seconds.values()))} here ({parts}), without the teacher and measuring. "
        f"So far it took {report['megabytes']:,.0f} MB.",
        report["advice"],
    ]


def _say_rung(rung: Rung, steps: int) -> str:
    gain = say_gain(rung.gain, "R@1 text→image")
    return (
        f"The control's rate {rung.learning_rate:.1e}, {steps} steps: {gain}; "
        f"{rung.retention:.0%} of zero-shot kept, at α = {rung.alpha:g}."
    )


def _advise(best: Rung, rate: float, captioned: int, has_teacher: bool) -> str:
    """One sentence: what to do; the rate is the recipe's."""
    change = best.gain.change
    interval = f"{100 * change.low:+.1f} to {100 * change.high:+.1f} points of R@1"
    if captioned < FEW:
        return (
            f"Too few captions: {captioned:,} pictures have some, and below {FEW:,} a model learns "
            "them by heart; collect more, or search with the CLIP as it is."
        )
    if not best.alpha:
        return (
            "Nothing to gain was seen: at each rate the model lost more than it found; search with "
            f"the CLIP as it is, or try a --student.learning-rate below {rate:.1e}."
        )
    option = f"--student.learning-rate {rate:.1e}"
    if change.low <= 0:
        return (
            f"Run it with {option} if the hours are cheap: in these few steps no gain was certain "
            f"({interval})."
        )
    more = ", and its teacher comes on top" if has_teacher else ""
    return f"Run it with {option}: already these few steps brought {interval}{more}."


def _spread(count: int, most: int) -> list[int]:
    """At most so many indices, spread evenly."""
    number = min(count, most)
    return [index * count // number for index in range(number)]


def _say_time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
