"""A run's folder: which settings it had, how long it took, and the models that came out of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import open_clip
import torch

from dclip_kit.config import PROFILES, Profile
from dclip_kit.evaluation.arms import load_arm
from dclip_kit.evaluation.records import read_record, write_record
from dclip_kit.evaluation.seen import SeenPictures, describe_pocket, load_seen
from dclip_kit.features.source import differing_entries
from dclip_kit.models.clip import ClipBundle, load_clip
from dclip_kit.runtime.processes import is_main_process

SETTINGS = "settings.json"
SECONDS = "seconds.json"
_REPORT = "report.json"  # which says as much as the settings do
# Of a run's settings, those that a model is loaded and measured with; older runs lack some.
_OWN = ("clip", "pretrained", "data", "images", "test", "zero_shot", "templates", "seed")


def require_settings(settings: Profile, folder: Path) -> None:
    """Checks that a run's folder has no settings yet, or these.

    Raises:
        ValueError: it has others.
    """
    path = folder / SETTINGS
    if not path.exists():
        return
    older = {"recipe": Profile.recipe}  # runs from before there were recipes
    differing = read_record(path, lambda kept: differing_entries(older | kept, settings.as_dict()))
    if differing:
        raise ValueError(
            f"Expected the settings of the run in {folder}, but they differ in "
            f"{', '.join(differing)}; give the same ones to continue it, or another --out."
        )


@contextmanager
def count_seconds(folder: Path, began: float) -> Iterator[Callable[[], float]]:
    """Counts the seconds of a run over all its legs, however each of them ended.

    A leg that was killed counts up to the last file that it wrote into the run's folder, so that
    the next leg must write nothing before.

    Args:
        folder: of the run.
        began: what `time.monotonic` said when this leg began.

    Yields:
        A function that says how many there are so far.
    """
    path, before = folder / SECONDS, 0.0
    if path.is_file():
        before, since = read_record(
            path, lambda kept: (float(kept["seconds"]), float(kept["running_since"] or inf))
        )
        last = max(file.stat().st_mtime for file in folder.rglob("*") if file.is_file())
        before += max(0.0, last - since)

    def count() -> float:
        return before + time.monotonic() - began

    def keep(seconds: float, running_since: float | None) -> None:
        if is_main_process():
            record = {"seconds": round(seconds, 1), "running_since": running_since}
            write_record(record, path)

    keep(before, time.time() - (time.monotonic() - began))
    try:
        yield count
    finally:
        keep(count(), None)


@dataclass(frozen=True, eq=False)
class Run:
    """The run that an arm came out of.

    Attributes:
        folder: of the run.
        name: of the arm.
        profile: what of its settings a model is loaded and measured with.
        seen: the pictures that it has seen; None where it left no record of them.
    """

    folder: Path
    name: str
    profile: Profile
    seen: SeenPictures | None


def find_run(reference: Path | str) -> Run | None:
    """The run of an arm, by the arm's place; None for any other model.

    Raises:
        ValueError: the run's records are damaged.
    """
    place = Path(reference)
    folder, name = place.parent, place.name.removesuffix(".safetensors")
    found = [folder / each for each in (SETTINGS, _REPORT) if (folder / each).is_file()]
    if not found or not (folder / f"{name}.json").is_file():
        return None
    profile = read_record(found[0], _build_profile)
    seen = load_seen(folder)
    if seen is None and profile.data == "pocket":  # scenes that need no record
        seen = describe_pocket()
    return Run(folder, name, profile, seen)


def _build_profile(record: dict[str, Any]) -> Profile:
    settings = record.get("settings", record)
    needed = {"clip": settings["clip"], "pretrained": settings["pretrained"]}
    return replace(PROFILES["pocket"], **{k: v for k, v in settings.items() if k in _OWN} | needed)


def load_model(
    reference: str, pretrained: str | None = None, device: torch.device | str = "cpu"
) -> ClipBundle:
    """Loads a CLIP, or an arm that `distill` wrote: `runs/x/dclip`, with its run's own CLIP.

    Args:
        reference: the arm, or as in `load_clip`.
        pretrained: the weights of an architecture. Other models have their own beside it, so that
            one tag can be given for several models.
        device: where to put it.

    Raises:
        FileNotFoundError, ValueError: as `load_clip` and `load_arm`, or it is a run's whole folder.
    """
    if run := find_run(reference):
        clip = load_model(run.profile.clip, run.profile.pretrained, device)
        return replace(load_arm(run.name, clip, run.folder).clip, name=reference)
    places = sorted(Path(reference).glob("*.safetensors"))
    arms = [
        str(each.with_suffix("")) for each in places if each.stem != "teacher" and find_run(each)
    ]
    if arms:
        raise ValueError(
            f"Expected a model, got the folder of a run; name one of its arms: {', '.join(arms)}."
        )
    named = reference in open_clip.list_models()
    return load_clip(reference, pretrained if named else None, device)
