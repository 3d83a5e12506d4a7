"""A run's folder: which settings it had, what it has seen, and the models that came out of it."""

import json
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
from dclip_kit.data.annotations import load_json
from dclip_kit.evaluation.arms import load_arm
from dclip_kit.evaluation.seen import SeenPictures, describe_pocket, load_seen
from dclip_kit.features.store import differing_entries
from dclip_kit.models.clip import ClipBundle, load_clip
from dclip_kit.runtime.files import write_atomically
from dclip_kit.runtime.processes import is_main_process

SETTINGS = "settings.json"
SECONDS = "seconds.json"
# Of the settings that an arm is loaded and measured with.
_KINDS: dict[str, Any] = {
    "clip": str,
    "pretrained": str | None,
    **dict.fromkeys(("data", "images", "test", "zero_shot", "templates"), str),
    "seed": int,
}
_RECORDS = (SETTINGS, "report.json")  # either says which CLIP the arms beside it are of


def require_settings(settings: Profile, folder: Path) -> None:
    """Checks that a run's folder has no settings yet, or these.

    Raises:
        ValueError: it has others.
    """
    path = folder / SETTINGS
    if not path.exists():
        return
    kept, now = _read(path), settings.as_dict()
    differing = differing_entries({"recipe": Profile.recipe} | kept, now)  # older runs have none
    if differing:
        raise ValueError(
            f"Expected the settings of the run in {folder}, but they differ in "
            f"{', '.join(differing)}; give the same ones to continue it, or another --out."
        )


def keep_settings(settings: Profile, folder: Path) -> None:
    """Writes a run's settings into its folder.

    To be called once data and models are loaded: before, a mistyped name would stay there.

    Raises:
        ValueError: it has others.
    """
    require_settings(settings, folder)
    path, content = folder / SETTINGS, json.dumps(settings.as_dict(), indent=1) + "\n"
    # Not written again: when a leg last wrote tells how long it ran, see `count_seconds`.
    if not path.exists() or path.read_text(encoding="utf-8") != content:
        write_atomically(path, content)


@contextmanager
def count_seconds(folder: Path, began: float) -> Iterator[Callable[[], float]]:
    """Counts the seconds of a run over all its legs, however each of them ended.

    A leg that was killed counts up to the last file that it wrote into the run's folder.

    Args:
        folder: of the run.
        began: what `time.monotonic` said when this leg began.

    Yields:
        A function that says how many there are so far.
    """
    path = folder / SECONDS
    before = 0.0
    if path.is_file():
        kept = _read(path)
        try:
            before, since = float(kept["seconds"]), float(kept["running_since"] or inf)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"Expected seconds and running_since in {path}, but it is damaged ({error}); "
                "delete it: the seconds before are not counted then."
            ) from error
        last = max(file.stat().st_mtime for file in folder.rglob("*") if file.is_file())
        before += max(0.0, last - since)

    def seconds() -> float:
        return before + time.monotonic() - began

    def keep(so_far: float, running_since: float | None) -> None:
        if is_main_process():
            record = {"seconds": round(so_far, 1), "running_since": running_since}
            write_atomically(path, json.dumps(record) + "\n")

    keep(before, time.time() - (time.monotonic() - began))
    try:
        yield seconds
    finally:
        keep(seconds(), None)


@dataclass(frozen=True, eq=False)
class Run:
    """The run that an arm came out of.

    Attributes:
        folder: of the run.
        settings: those of its profile, as JSON values.
        seen: the pictures that it has seen; None where it left no record of them.
    """

    folder: Path
    settings: dict[str, Any]
    seen: SeenPictures | None


def find_run(reference: Path | str) -> Run | None:
    """The run of an arm, by the arm's place; None for any other model.

    Raises:
        ValueError: the run's records are damaged.
    """
    place = Path(reference)
    place = place.with_suffix("") if place.suffix == ".safetensors" else place
    folder = place.parent
    records = [folder / name for name in _RECORDS if (folder / name).is_file()]
    if not records or not place.with_name(f"{place.name}.json").is_file():
        return None
    record = _read(records[0])
    settings = record.get("settings", record)
    if not isinstance(settings, dict) or not {"clip", "pretrained"} <= settings.keys():
        raise ValueError(f"Expected clip and pretrained among the settings in {records[0]}.")
    given = {name: settings[name] for name in _KINDS if name in settings}
    try:
        if odd := [name for name, value in given.items() if not isinstance(value, _KINDS[name])]:
            raise TypeError(f"{odd[0]} is {given[odd[0]]!r}")
        replace(PROFILES["pocket"], **given)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected settings that a run can have in {records[0]}, but {error}; restore the file."
        ) from error
    seen = load_seen(folder)
    if seen is None and settings.get("data") == "pocket":  # scenes that need no record
        seen = describe_pocket()
    return Run(folder, settings, seen)


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
    place = Path(reference)
    if run := find_run(place):
        clip = _load_clip(run.settings["clip"], run.settings["pretrained"], device)
        name = place.name.removesuffix(".safetensors")
        return replace(load_arm(name, clip, run.folder).clip, name=reference)
    arms = [each.stem for each in sorted(place.glob("*.safetensors")) if _is_arm(each)]
    if arms:
        raise ValueError(
            f"Expected a model, got the folder of a run; name one of its arms: "
            f"{', '.join(str(place / name) for name in arms)}."
        )
    return _load_clip(reference, pretrained, device)


def _load_clip(reference: str, pretrained: str | None, device: torch.device | str) -> ClipBundle:
    named = reference in open_clip.list_models()
    return load_clip(reference, pretrained if named else None, device)


def _is_arm(path: Path) -> bool:
    return path.stem != "teacher" and path.with_suffix(".json").is_file()


def _read(path: Path) -> dict[str, Any]:
    record = load_json(path)
    if not isinstance(record, dict):
        raise ValueError(f"Expected the settings of a run in {path}, got something else.")
    return record
