"""Measuring models side by side: what they are measured on, a function a question, and the answers.

Retrieval, its rescoring and naming are asked here, of models; what is known of order and relations,
and whether a teacher looks at its regions, is asked by `probing`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dclip_kit.config import Profile
from dclip_kit.data import CaptionedImages, LabelledImages
from dclip_kit.data.splits import Splits
from dclip_kit.evaluation import compare
from dclip_kit.evaluation.arms import read_origin
from dclip_kit.evaluation.evaluate import (
    WAYS,
    Templates,
    ZeroShot,
    evaluate_zero_shot,
    measure_hubness,
    prepare_references,
    prepare_zero_shot,
    rescored_metrics,
    try_rescoring,
)
from dclip_kit.evaluation.profile_data import (
    choose_measured,
    choose_templates,
    load_splits,
    read_measured,
    read_zero_shot,
)
from dclip_kit.evaluation.seen import (
    SeenPictures,
    Unseen,
    leave_out_labelled,
    leave_out_trained,
    load_seen,
)
from dclip_kit.metrics import RetrievalMetrics, retrieval_metrics
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import encode_images, encode_texts
from dclip_kit.runtime.printing import printable
from dclip_kit.search.rescoring import Rescoring


@dataclass(frozen=True, eq=False)
class MeasuredOn:
    """What models are measured on.

    Attributes:
        profile: with the names of the data.
        split: of the captioned pictures.
        unseen: captioned pictures that no model has trained on.
        labelled: labelled ones that no model was trained or chosen on, by where they are from.
        without: of each of these how many were left out.
        seen: by model; models of which nothing is known have None.
    """

    profile: Profile
    split: str
    unseen: Unseen
    labelled: dict[str, LabelledImages]
    without: dict[str, int]
    seen: dict[str, SeenPictures | None]

    @property
    def captioned(self) -> CaptionedImages:
        """The captioned pictures."""
        return self.unseen.dataset

    @property
    def templates(self) -> Templates:
        """What classes are put into."""
        return choose_templates(self.profile.zero_shot, self.profile.templates)

    @property
    def name(self) -> str:
        """What to call the captioned pictures."""
        profile = self.profile
        return profile.test if profile.test and self.split == "test" else profile.data


def choose_measured_on(
    models: Sequence[str], profile: Profile, split: str = "test", **asked: Any
) -> MeasuredOn:
    """Reads what models are measured on, without what one of them has seen.

    Args:
        models: by name; the first that the kit trained decides what its run measured on.
        profile: for models that came out of no run.
        split: as in `read_measured`.
        asked: as in `choose_measured`.

    Raises:
        ValueError: as `choose_measured`, `read_measured` and `leave_out_trained`.
    """
    origins = [origin.profile for name in models if (origin := read_origin(name))]
    chosen = choose_measured(origins, profile, **asked)
    seen = {name: load_seen(name) for name in models}
    known = {name: each for name, each in seen.items() if each}
    unseen = leave_out_trained(read_measured(chosen, split), known)
    digests = frozenset[str]().union(*(each.files for each in known.values()))
    every = read_zero_shot(chosen.zero_shot) if chosen.zero_shot else ()
    labelled = {each.source: leave_out_labelled(each, digests) for each in every}
    without = {each.source: len(each) - len(labelled[each.source]) for each in every}
    return MeasuredOn(chosen, split, unseen, labelled, without, seen)


@dataclass(frozen=True, eq=False)
class Rescored:
    """Retrieval by rescored scores.

    Attributes:
        retrieval: by the settings that find most on val.
        tried: by direction, settings with their Recall@1 on val, the best first.
        hubness: as `measure_hubness`.
    """

    retrieval: RetrievalMetrics
    tried: dict[str, dict[Rescoring, float]]
    hubness: dict[str, dict[str, float]]


@dataclass(frozen=True, eq=False)
class ModelResult:
    """What one model answered.

    Attributes:
        retrieval: both ways.
        rescored: the same by rescored scores, if that was asked.
        zero_shot: by where the labelled pictures are from.
        note: on captions that it cannot read, or nothing.
    """

    retrieval: RetrievalMetrics
    rescored: Rescored | None
    zero_shot: dict[str, ZeroShot]
    note: str


def load_rescoring_parts(on: MeasuredOn) -> Splits:
    """Train and val of the data that is measured on, to rescore by.

    Raises:
        ValueError: pictures of them are measured on.
    """
    parts = load_splits(on.profile)
    if both := {*parts.train.paths, *parts.val.paths} & {*on.captioned.paths}:
        raise ValueError(
            "Expected a split without pictures of train and val, which rescoring works with, got "
            f"{on.split!r} with {len(both):,} of them; measure another with --split."
        )
    return parts


def measure_model(
    clip: ClipBundle, on: MeasuredOn, rescore: str | None = None, parts: Splits | None = None
) -> ModelResult:
    """Asks one model all questions.

    Args:
        clip: the model.
        on: what it is measured on.
        rescore: a method of rescoring, to be asked as well.
        parts: for that, from `load_rescoring_parts`.
    """
    captioned = on.captioned
    vectors = encode_images(clip, captioned.paths), encode_texts(clip, captioned.texts)
    rescored = None
    if rescore and parts:
        rescored = measure_rescoring(clip, (*vectors, captioned.image_of_text), rescore, parts)
    return ModelResult(
        retrieval_metrics(*vectors, captioned.image_of_text),
        rescored,
        {
            source: evaluate_zero_shot(clip, prepare_zero_shot(clip, each, False, on.templates))
            for source, each in on.labelled.items()
        },
        compare.warn_of_captions(captioned, clip),
    )


def measure_rescoring(
    clip: ClipBundle, features: tuple[Tensor, Tensor, Tensor], method: str, parts: Splits
) -> Rescored:
    """Retrieval by rescored scores, with those settings of a method that find most on val.

    Args:
        clip: the model.
        features: of pictures and captions that are measured, and each caption's picture.
        method: of rescoring.
        parts: train, whose pictures and captions rescore, and val, which chooses.
    """
    references = prepare_references(clip, parts.train)
    val = encode_images(clip, parts.val.paths), encode_texts(clip, parts.val.texts)
    tried = try_rescoring(method, *val, parts.val.image_of_text, references)
    best = [next(iter(each)) for each in tried.values()]
    return Rescored(
        rescored_metrics(*features, references, *best),
        tried,
        measure_hubness(*features[:2], references, *best),
    )


# The answers, as JSON and for a person


def list_retrievals(
    results: Mapping[str, ModelResult], rescore: str | None = None
) -> dict[str, RetrievalMetrics]:
    """Each model's retrieval by the model's name, and behind it the rescored one."""
    found = {}
    for name, each in results.items():
        found[name] = each.retrieval
        if each.rescored:
            found[f"{name} by {rescore}"] = each.rescored.retrieval
    return found


def compare_retrievals(
    found: Mapping[str, RetrievalMetrics],
) -> dict[str, dict[str, tuple[compare.Gain, ...]]]:
    """What each gains over the first."""
    first, *others = found
    return {name: compare.compare(found[first], found[name]) for name in others}


def describe_results(
    results: Mapping[str, ModelResult], on: MeasuredOn, rescore: str | None = None
) -> dict[str, Any]:
    """All figures, for JSON."""
    found, profile = list_retrievals(results, rescore), on.profile
    rescored = {name: each.rescored for name, each in results.items() if each.rescored}
    return {
        "data": profile.data,
        "test": profile.test if on.split == "test" else "",
        "split": on.split,
        "seed": profile.seed,
        "pictures": len(on.captioned),
        "captions": len(on.captioned.texts),
        "retrieval": {name: each.as_dict() for name, each in found.items()},
        "gains": {
            name: {way: [asdict(gain) for gain in each] for way, each in own.items()}
            for name, own in compare_retrievals(found).items()
        },
        "zero_shot": {
            source: {
                name: {"top1": each.zero_shot[source].top1, "top5": each.zero_shot[source].top5}
                for name, each in results.items()
            }
            for source in on.labelled
        },
        "rescoring_on_val": {
            name: {
                way: [how.settings | {"recall_at_1": x} for how, x in each.items()]
                for way, each in own.tried.items()
            }
            for name, own in rescored.items()
        },
        "skewness_of_k_occurrence": {name: own.hubness for name, own in rescored.items()},
        "left_out": {
            "trained_on": {
                name: [leak.as_dict() for leak in leaks]
                for name, leaks in on.unseen.trained.items()
            },
            "zero_shot_chosen_on": on.without,
        },
        "chosen_on": on.unseen.chosen,
        "no_record": _list_incomplete(on),
    }


def _list_incomplete(on: MeasuredOn) -> list[str]:
    return [name for name, each in on.seen.items() if each and not each.complete]


def format_results(
    results: Mapping[str, ModelResult], on: MeasuredOn, rescore: str | None = None
) -> str:
    """All figures with their intervals, and what is to be known of them, as text."""
    captioned, found = on.captioned, list_retrievals(results, rescore)
    shown = {printable(name): each for name, each in found.items()}
    counts = f"{len(captioned):,} pictures, {len(captioned.texts):,} captions"
    lines = [
        f"{counts}: {printable(on.name)} ({printable(on.split)})",
        *map(printable, filter(None, _list_notes(results, on))),
        "",
        compare.format_retrieval(shown),
    ]
    for name, own in compare_retrievals(shown).items():
        lines += ["", f"{name} beside {next(iter(shown))}"]
        lines += [f"  {compare.say_gain(first, f'{x} Recall@1')}" for x, (first, *_) in own.items()]
    for name, each in results.items():
        if each.rescored:
            lines += ["", f"{printable(name)}: the best of {rescore} on val, by Recall@1"]
            lines += _format_rescored(each.rescored)
    for source, labelled in on.labelled.items():
        rest, gone = len(labelled), on.without[source]
        others = f", without the {gone:,} that a model was trained or chosen on" if gone else ""
        lines += ["", f"Zero-shot top-1, {printable(source)}: {rest:,} pictures{others}"]
        named = {printable(name): each.zero_shot[source] for name, each in results.items()}
        lines += filter(None, [compare.format_zero_shot(named), compare.warn_of_few(rest, source)])
    return "\n".join(lines)


def _list_notes(results: Mapping[str, ModelResult], on: MeasuredOn) -> list[str]:
    unknown = [
        x for x, each in on.seen.items() if not each and Path(x.removeprefix("local-dir:")).is_dir()
    ]
    return [
        on.unseen.describe(on.name),
        compare.warn_of_few(len(on.captioned), on.captioned.source),
        *dict.fromkeys(each.note for each in results.values()),
        *(
            f"What {x} has trained on is not all known: its record, or its teacher's, is missing."
            for x in _list_incomplete(on)
        ),
        *(
            f"What {x} has trained on is not known: if on these pictures, its figures are too good."
            for x in unknown
        ),
    ]


def _format_rescored(rescored: Rescored) -> list[str]:
    lines = []
    for way, recalls in rescored.tried.items():
        how, recall = next(iter(recalls.items()))
        chosen = ", ".join(f"{x} {value:g}" for x, value in how.settings.items())
        skew = rescored.hubness[way]
        lines.append(
            f"  {WAYS[way]}: {chosen} ({100 * recall:.1f} %); skewness of k-occurrence "
            f"{skew['before']:.2f} → {skew['after']:.2f}"
        )
    return lines
