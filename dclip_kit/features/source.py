"""What features were made from, as a record that can be read and compared entry by entry."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip

from dclip_kit.config import RegionSettings
from dclip_kit.data import CaptionedImages
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.detector import Detector, locate_weights
from dclip_kit.runtime.files import fingerprint

Record = dict[str, Any]  # of JSON values

_FORMAT = "dclip_kit features 1"
# What decides no feature, or is said of the detector itself.
_NOT_OF_CROPS = ("detector", "confidence", "max_regions", "weighted")


def describe_source(
    bundle: ClipBundle,
    dataset: CaptionedImages,
    settings: RegionSettings,
    detector: Detector | None = None,
) -> Record:
    """Whatever decides features: weights, preprocessing, detector, regions, pictures, captions.

    Pictures are told by path, size and time, so that none is read.

    Args:
        bundle: the CLIP.
        dataset: pictures with captions.
        settings: how regions are made.
        detector: the loaded one; without it, its weights and thresholds are those of `settings`,
            and the size that it sees pictures in is left out, which follows from its weights.

    Returns:
        A record of records; long things are in it as digests.

    Raises:
        FileNotFoundError: the detector's weights are not where they were.
    """
    own = detector or settings
    weights = detector.source if detector else locate_weights(settings.detector)
    regions = {k: v for k, v in asdict(settings).items() if k not in _NOT_OF_CROPS}
    paths = [str(path.absolute()) for path in dataset.paths]
    dtype = str(next(bundle.model.parameters()).dtype).removeprefix("torch.")
    return {
        "format": _FORMAT,
        "dtype": dtype if bundle.precision == "no" else bundle.precision,
        "clip": {
            "weights": fingerprint(*bundle.model.state_dict().values()),
            "architecture": bundle.model_config,
            "preprocessing": open_clip.model.get_model_preprocess_cfg(bundle.model.visual),
            "vocabulary": _digest([bundle.merges.read_bytes()]) if bundle.merges else None,
        },
        "detector": {
            "weights": _digest_files(weights),
            "confidence": own.confidence,
            "max_regions": own.max_regions,
            **({"image_size": detector.image_size} if detector else {}),
        },
        "regions": regions,
        "pictures": {
            "count": len(dataset),
            "paths": _digest(path.encode() for path in paths),
            "sizes_and_times": _digest(_state(path) for path in dataset.paths),
        },
        "captions": _digest(json.dumps(group).encode() for group in dataset.captions),
    }


def differing_entries(kept: Record, now: Record, partial: bool = False) -> dict[str, str]:
    """Which entries of two records differ, such as `regions.margin`, and from what to what.

    Args:
        kept: one of them, as it was written as JSON or is going to be.
        now: the other.
        partial: what is missing now is not compared.
    """
    old, new = (_flatten(json.loads(json.dumps(each, default=str))) for each in (kept, now))
    names = new.keys() if partial else old.keys() | new
    return {
        name: f"{old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted(names)
        if old.get(name) != new.get(name)
    }


def digest_record(record: Record) -> str:
    """A short name for what a record says."""
    return _digest([json.dumps(record, sort_keys=True, default=str).encode()])


def _flatten(record: Record, prefix: str = "") -> Record:
    flat: Record = {}
    for name, value in record.items():
        deeper = isinstance(value, dict)
        flat |= _flatten(value, f"{prefix}{name}.") if deeper else {f"{prefix}{name}": value}
    return flat


def _state(path: Path) -> bytes:
    """What tells that a picture is still the one that was encoded."""
    try:
        stat = path.stat()
    except OSError:  # told by name when it is to be read
        return b"missing"
    return f"{stat.st_size} {stat.st_mtime_ns}".encode()


def _digest(parts: Iterable[bytes]) -> str:
    """A digest of parts, in which their borders count."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]


def _digest_files(place: Path) -> str:
    """Of a file, or of all in a folder."""
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    return _digest(file.read_bytes() for file in files if not file.is_dir())
