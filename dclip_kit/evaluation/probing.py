"""Tests models on order and relations, and whether teachers use their regions."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dclip_kit.evaluation.arms import read_origin
from dclip_kit.evaluation.compare import format_compositions, format_probe
from dclip_kit.evaluation.evaluate import evaluate_compositions, score_compositions
from dclip_kit.evaluation.experiment import load_saved_teacher
from dclip_kit.evaluation.inspection import ShortcutProbe, probe_teacher, score_teachers
from dclip_kit.evaluation.profile_data import read_measured
from dclip_kit.evaluation.seen import TRAINING, leave_out_trained, load_seen
from dclip_kit.features.extract import load_or_extract_features
from dclip_kit.metrics import COMPOSITION_CHANCE, Interval
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.teacher import CONFIG_FILE, KINDS
from dclip_kit.runtime.files import asset_path
from dclip_kit.runtime.printing import printable


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """The result of one model or teacher.

    Attributes:
        compositions: by kind and score, from `evaluate_compositions`.
        looks: of a teacher, its Recall@1 with its regions exchanged.
    """

    compositions: dict[str, dict[str, Interval]]
    looks: ShortcutProbe | None = None


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


def probe_model(clip: ClipBundle, items: int) -> ProbeResult:
    """Measures a CLIP on compositions, `items` of each kind."""
    return ProbeResult(evaluate_compositions(score_compositions(clip, items)))


def probe_saved_teacher(folder: Path, items: int, device: str = "cpu") -> ProbeResult:
    """Measures a teacher on compositions, and on its run's test pictures with regions exchanged.

    Args:
        folder: of the teacher.
        items: compositions of each kind.
        device: where to put the CLIP whose features it reads.

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
    seen = load_seen(folder)
    seen_by_teacher = {str(folder): seen} if seen else {}
    unseen = leave_out_trained(read_measured(origin.profile), seen_by_teacher)
    features = load_or_extract_features(clip, unseen.dataset, regions, None)
    cosines = score_teachers({"": run}, clip, regions, items)[""]
    return ProbeResult(
        evaluate_compositions(cosines),
        probe_teacher(run, clip, features, regions),
    )


def describe_probes(results: Mapping[str, ProbeResult], items: int) -> dict[str, Any]:
    """All figures, for JSON."""
    return {
        "items": items,
        "chance": COMPOSITION_CHANCE,
        "compositions": {
            name: {
                kind: {score: asdict(interval) for score, interval in scores.items()}
                for kind, scores in result.compositions.items()
            }
            for name, result in results.items()
        },
        "looks": {name: asdict(result.looks) for name, result in results.items() if result.looks},
    }


def format_probes(results: Mapping[str, ProbeResult], items: int) -> str:
    """All figures with their intervals, as text."""
    by_name = {printable(name): result for name, result in results.items()}
    lines = [f"{name}: {format_probe(asdict(x.looks))}" for name, x in by_name.items() if x.looks]
    return "\n".join(
        [
            *lines,
            *[""] * bool(lines),
            f"Compositions: {items:,} pairs of pocket scenes a kind",
            format_compositions({name: result.compositions for name, result in by_name.items()}),
        ]
    )
