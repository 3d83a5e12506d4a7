"""Tests models on order and relations, and whether teachers use their regions."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dclip_kit.evaluation.arms import read_origin
from dclip_kit.evaluation.compare import format_compositions, format_probe
from dclip_kit.evaluation.evaluate import evaluate_compositions
from dclip_kit.evaluation.experiment import load_saved_teacher
from dclip_kit.evaluation.inspection import ShortcutProbe, probe_teacher, score_teachers
from dclip_kit.evaluation.profile_data import has_captions, read_measured
from dclip_kit.evaluation.seen import TRAINING, leave_out_trained, load_seen
from dclip_kit.features.extract import load_or_extract_features
from dclip_kit.metrics import COMPOSITION_CHANCE, Interval
from dclip_kit.models.teacher import CONFIG_FILE, KINDS
from dclip_kit.runtime.files import asset_path
from dclip_kit.runtime.printing import printable, say

Compositions = dict[str, dict[str, Interval]]  # by kind and score, from `evaluate_compositions`


def find_teachers(reference: str) -> dict[str, Path]:
    """The folders of the teachers that a reference names, by the names to print.

    Args:
        reference: a teacher's folder, the folder of a run with teachers, or "pocket".

    Raises:
        FileNotFoundError: it names none.
    """
    folder = asset_path("pocket_arms") if reference == "pocket" else Path(reference)
    candidates = {reference: folder} | {f"{reference}/{name}": folder / name for name in KINDS}
    teachers = {name: path for name, path in candidates.items() if (path / CONFIG_FILE).is_file()}
    if not teachers:
        raise FileNotFoundError(
            f"Expected a trained teacher in {folder}, found none; name the folder that train-"
            'teacher or distill wrote one to, or "pocket".'
        )
    return teachers


def probe_saved_teacher(
    folder: Path, items: int, device: str = "cpu"
) -> tuple[Compositions, ShortcutProbe | None]:
    """Measures a teacher on compositions, and on its run's test pictures with regions exchanged.

    Args:
        folder: of the teacher.
        items: compositions of each kind.
        device: where to put the CLIP whose features it reads.

    Returns:
        Its scores of compositions, and its Recall@1 with its regions exchanged; None for the latter
        if its run had no captions, which is printed.

    Raises:
        FileNotFoundError, ValueError: the teacher, its CLIP or its data is missing or damaged.
    """
    run, origin = load_saved_teacher(folder), read_origin(folder)
    if origin is None:
        raise FileNotFoundError(
            f"Expected {TRAINING}, which names the teacher's CLIP, in {folder}, found none; "
            "restore it."
        )
    clip, regions = origin.load_base(device), origin.profile.regions
    compositions = evaluate_compositions(score_teachers({"": run}, clip, regions, items)[""])
    if not has_captions(origin.profile):
        say(f"Whether {folder} uses its regions is not known: its run's pictures have no captions.")
        return compositions, None
    seen = load_seen(folder)
    seen_by_teacher = {str(folder): seen} if seen else {}
    unseen = leave_out_trained(read_measured(origin.profile), seen_by_teacher)
    features = load_or_extract_features(clip, unseen.dataset, regions, None)
    return compositions, probe_teacher(run, clip, features, regions)


def describe_probes(
    compositions: Mapping[str, Compositions], looks: Mapping[str, ShortcutProbe], items: int
) -> dict[str, Any]:
    """All figures, for JSON.

    Args:
        compositions: by model or teacher.
        looks: by teacher, its Recall@1 with its regions exchanged.
        items: compositions of each kind.
    """
    return {
        "items": items,
        "chance": COMPOSITION_CHANCE,
        "compositions": {
            name: {
                kind: {score: asdict(interval) for score, interval in scores.items()}
                for kind, scores in by_kind.items()
            }
            for name, by_kind in compositions.items()
        },
        "looks": {name: asdict(probe) for name, probe in looks.items()},
    }


def format_probes(
    compositions: Mapping[str, Compositions], looks: Mapping[str, ShortcutProbe], items: int
) -> str:
    """All figures with their intervals, as text; arguments as in `describe_probes`."""
    lines = [f"{printable(name)}: {format_probe(asdict(x))}" for name, x in looks.items()]
    return "\n".join(
        [
            *lines,
            *[""] * bool(lines),
            f"Compositions: {items:,} pairs of pocket scenes a kind",
            format_compositions({printable(name): x for name, x in compositions.items()}),
        ]
    )
