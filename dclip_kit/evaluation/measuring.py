"""Measures models side by side: chooses the data, measures each model, and formats the results.

This covers retrieval, with and without rescoring, and zero-shot classification; `probing` tests
models on order and relations, and teachers on whether they use their regions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
    """The data that models are measured on.

    Attributes:
        profile: with the names of the data.
        split: of the captioned pictures.
        unseen: captioned pictures that no model has trained on.
        labelled: by source, labelled pictures that no model was trained or chosen on.
        without: by source, how many of them were left out.
        seen: by model, its record; None if nothing is known of it.
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
        """The texts that class names are put into."""
        return choose_templates(self.profile.zero_shot, self.profile.templates)

    @property
    def name(self) -> str:
        """The name of the captioned pictures."""
        profile = self.profile
        return profile.test if profile.test and self.split == "test" else profile.data


def choose_measured_on(
    models: Sequence[str], profile: Profile, split: str = "test", **asked: Any
) -> MeasuredOn:
    """Reads the data to measure models on, without what any of them has seen.

    Args:
        models: by name; the run of the first that the kit trained decides the data.
        profile: decides it if the kit trained none of them.
        split: as in `read_measured`.
        asked: as in `choose_measured`.

    Raises:
        ValueError: as `choose_measured`, `read_measured` and `leave_out_trained`.
    """
    origins = [origin.profile for name in models if (origin := read_origin(name))]
    chosen = choose_measured(origins, profile, **asked)
    seen = {name: load_seen(name) for name in models}
    records = {name: record for name, record in seen.items() if record}
    unseen = leave_out_trained(read_measured(chosen, split), records)
    digests = frozenset[str]().union(*(record.files for record in records.values()))
    labelled_sets = read_zero_shot(chosen.zero_shot) if chosen.zero_shot else ()
    labelled = {images.source: leave_out_labelled(images, digests) for images in labelled_sets}
    without = {
        images.source: len(images) - len(labelled[images.source]) for images in labelled_sets
    }
    return MeasuredOn(chosen, split, unseen, labelled, without, seen)


@dataclass(frozen=True, eq=False)
class Rescored:
    """Retrieval by rescored scores.

    Attributes:
        retrieval: by the settings that find most on val.
        tried: by direction, all settings with their Recall@1 on val, best first.
        hubness: as `measure_hubness`.
    """

    retrieval: RetrievalMetrics
    tried: dict[str, dict[Rescoring, float]]
    hubness: dict[str, dict[str, float]]


@dataclass(frozen=True, eq=False)
class ModelResult:
    """The results of one model.

    Attributes:
        retrieval: both ways.
        rescored: the same by rescored scores, if requested.
        zero_shot: by the source of the labelled pictures.
        note: on the limits of the captions, or empty.
    """

    retrieval: RetrievalMetrics
    rescored: Rescored | None
    zero_shot: dict[str, ZeroShot]
    note: str


def load_rescoring_parts(on: MeasuredOn) -> Splits:
    """Train and val of the measured data, to rescore by.

    Raises:
        ValueError: pictures of train or val are measured on.
    """
    parts = load_splits(on.profile)
    if shared := {*parts.train.paths, *parts.val.paths} & {*on.captioned.paths}:
        raise ValueError(
            "Expected a split without pictures of train and val, which rescoring works with, got "
            f"{on.split!r} with {len(shared):,} of them; measure another with --split."
        )
    # Settings that are chosen on what a model knows by heart would flatter it.
    seen = {name: record for name, record in on.seen.items() if record}
    return replace(parts, val=leave_out_trained(parts.val, seen).dataset)


def measure_model(
    clip: ClipBundle, on: MeasuredOn, rescore: str | None = None, parts: Splits | None = None
) -> ModelResult:
    """Measures one model.

    Args:
        clip: the model.
        on: the data to measure on.
        rescore: a method of rescoring to measure as well.
        parts: for rescoring, from `load_rescoring_parts`.
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
            source: evaluate_zero_shot(clip, prepare_zero_shot(clip, labelled, False, on.templates))
            for source, labelled in on.labelled.items()
        },
        compare.warn_of_captions(captioned, clip),
    )


def measure_rescoring(
    clip: ClipBundle, features: tuple[Tensor, Tensor, Tensor], method: str, parts: Splits
) -> Rescored:
    """Retrieval by rescored scores, with the settings of a method that find most on val.

    Args:
        clip: the model.
        features: of the measured pictures and captions, and each caption's picture.
        method: of rescoring.
        parts: train, to rescore by, and val, to choose the settings on.
    """
    references = prepare_references(clip, parts.train)
    val = encode_images(clip, parts.val.paths), encode_texts(clip, parts.val.texts)
    tried = try_rescoring(method, *val, parts.val.image_of_text, references)
    best = [next(iter(recalls)) for recalls in tried.values()]
    return Rescored(
        rescored_metrics(*features, references, *best),
        tried,
        measure_hubness(*features[:2], references, *best),
    )


# The results, as JSON and as text


def list_retrievals(
    results: Mapping[str, ModelResult], rescore: str | None = None
) -> dict[str, RetrievalMetrics]:
    """Each model's retrieval by the model's name, followed by its rescored retrieval."""
    retrievals = {}
    for name, result in results.items():
        retrievals[name] = result.retrieval
        if result.rescored:
            retrievals[f"{name} by {rescore}"] = result.rescored.retrieval
    return retrievals


def compare_retrievals(
    found: Mapping[str, RetrievalMetrics],
) -> dict[str, dict[str, tuple[compare.Gain, ...]]]:
    """What each model gains over the first."""
    first, *others = found
    return {name: compare.compare(found[first], found[name]) for name in others}


def describe_results(
    results: Mapping[str, ModelResult], on: MeasuredOn, rescore: str | None = None
) -> dict[str, Any]:
    """All figures, for JSON."""
    retrievals, profile = list_retrievals(results, rescore), on.profile
    rescored = {name: result.rescored for name, result in results.items() if result.rescored}
    return {
        "data": profile.data,
        "test": profile.test if on.split == "test" else "",
        "split": on.split,
        "seed": profile.seed,
        "pictures": len(on.captioned),
        "captions": len(on.captioned.texts),
        "retrieval": {name: metrics.as_dict() for name, metrics in retrievals.items()},
        "gains": {
            name: {way: [asdict(gain) for gain in gains] for way, gains in by_way.items()}
            for name, by_way in compare_retrievals(retrievals).items()
        },
        "zero_shot": {
            source: {
                name: {"top1": result.zero_shot[source].top1, "top5": result.zero_shot[source].top5}
                for name, result in results.items()
            }
            for source in on.labelled
        },
        "rescoring_on_val": {
            name: {
                way: [how.settings | {"recall_at_1": recall} for how, recall in recalls.items()]
                for way, recalls in result.tried.items()
            }
            for name, result in rescored.items()
        },
        "skewness_of_k_occurrence": {name: result.hubness for name, result in rescored.items()},
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
    return [name for name, record in on.seen.items() if record and not record.complete]


def format_results(
    results: Mapping[str, ModelResult], on: MeasuredOn, rescore: str | None = None
) -> str:
    """All figures with their intervals, and notes on their limits, as text."""
    captioned, retrievals = on.captioned, list_retrievals(results, rescore)
    by_name = {printable(name): metrics for name, metrics in retrievals.items()}
    counts = f"{len(captioned):,} pictures, {len(captioned.texts):,} captions"
    lines = [
        f"{counts}: {printable(on.name)} ({printable(on.split)})",
        *map(printable, filter(None, _list_notes(results, on))),
        "",
        compare.format_retrieval(by_name),
    ]
    for name, gains in compare_retrievals(by_name).items():
        lines += ["", f"{name} beside {next(iter(by_name))}"]
        for title, (gain, *_) in gains.items():
            lines.append(f"  {compare.say_gain(gain, f'{title} Recall@1')}")
    for name, result in results.items():
        if result.rescored:
            lines += ["", f"{printable(name)}: the best of {rescore} on val, by Recall@1"]
            lines += _format_rescored(result.rescored)
    for source, labelled in on.labelled.items():
        count, left_out = len(labelled), on.without[source]
        note = (
            f", without the {left_out:,} that a model was trained or chosen on" if left_out else ""
        )
        lines += ["", f"Zero-shot top-1, {printable(source)}: {count:,} pictures{note}"]
        zero_shot = {printable(name): result.zero_shot[source] for name, result in results.items()}
        lines += filter(
            None, [compare.format_zero_shot(zero_shot), compare.warn_of_few(count, source)]
        )
    return "\n".join(lines)


def _list_notes(results: Mapping[str, ModelResult], on: MeasuredOn) -> list[str]:
    unknown = [
        name
        for name, record in on.seen.items()
        if not record
        and (name.startswith("hf-hub:") or Path(name.removeprefix("local-dir:")).is_dir())
    ]
    return [
        on.unseen.describe(on.name),
        compare.warn_of_few(len(on.captioned), on.captioned.source),
        *dict.fromkeys(result.note for result in results.values()),
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
        rescoring, recall = next(iter(recalls.items()))
        settings = ", ".join(f"{name} {value:g}" for name, value in rescoring.settings.items())
        skew = rescored.hubness[way]
        lines.append(
            f"  {WAYS[way]}: {settings} ({100 * recall:.1f} %); skewness of k-occurrence "
            f"{skew['before']:.2f} → {skew['after']:.2f}"
        )
    return lines
