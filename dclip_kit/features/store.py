"""Frozen features of pictures, regions, captions and tokens; and a store of them on disk.

A store is a folder that is filled shard by shard; finished, it holds one memory-mapped file. From
the start it has source.json, which says what the features are made from, and then a safetensors
file for every 512 pictures, each renamed into place. The process that fills it may be killed at any
moment; the next one makes the missing shards. When all exist, they are joined into one file.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from torch import Tensor

from dclip_kit.config import RegionSettings
from dclip_kit.data import CaptionedImages
from dclip_kit.data.paths import load_json
from dclip_kit.data.pictures import scan_pictures
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.detector import Detector, locate_weights, with_crops
from dclip_kit.models.encode import Pictures
from dclip_kit.models.regions import pad_rows
from dclip_kit.runtime.files import (
    load_tensors,
    raw_bytes,
    replacing,
    save_tensors,
    write_atomically,
)
from dclip_kit.runtime.processes import exists_for_all, is_main_process, own_turns, wait_for_all

FEATURES = "features.safetensors"  # in a finished store's folder
WHOLE_PICTURE = -1  # the label of a region that was not detected
SOURCE = "source.json"
_SHARDS = "shard-*.safetensors"
SHARD = 512  # pictures
# Region settings that no feature depends on, or that are recorded with the detector.
_NOT_OF_CROPS = ("detector", "confidence", "max_regions", "weighted")


@dataclass(frozen=True, eq=False)
class FrozenFeatures:
    """Features of a data set from the frozen CLIP and the detector; ragged ones are concatenated.

    Attributes:
        image: features of the whole pictures.
        size: of the pictures, width and height in pixels.
        region: features of all crops, picture by picture.
        region_count: regions of each picture, at least 1.
        xyxy: each region's box: left, top, right, bottom, in pixels of its picture.
        area: each region's share of its picture.
        confidence: each region's, 0 to 1.
        label: each region's class, by number in `Detector.names`; -1 for a whole picture.
        text: features of the captions.
        token: features of all captions' real tokens, caption by caption, in half precision.
        token_count: tokens of each caption.
        image_of_text: each caption's picture.
    """

    image: Float[Tensor, "image embed"]
    size: Int[Tensor, "image 2"]
    region: Float[Tensor, "region embed"]
    region_count: Int[Tensor, "image"]
    xyxy: Float[Tensor, "region 4"]
    area: Float[Tensor, "region"]
    confidence: Float[Tensor, "region"]
    label: Int[Tensor, "region"]
    text: Float[Tensor, "text embed"]
    token: Float[Tensor, "token embed"]
    token_count: Int[Tensor, "text"]
    image_of_text: Int[Tensor, "text"]

    def __len__(self) -> int:
        return len(self.image)

    @property
    def without_detections(self) -> int:
        """How many pictures have the whole picture as their only region."""
        return int(
            (self.label[self.region_count.cumsum(0) - self.region_count] == WHOLE_PICTURE).sum()
        )

    def regions_of(
        self, images: Int[Tensor, "chosen"]
    ) -> tuple[Float[Tensor, "chosen item embed"], Bool[Tensor, "chosen item"]]:
        """The regions of some pictures, padded, and a mask that is True at real ones."""
        return pad_rows(self.region, self.region_count, images)

    def boxes_of(self, images: Int[Tensor, "chosen"]) -> Float[Tensor, "chosen item 5"]:
        """Some pictures' boxes, in shares of their sides, and confidences; padded with 0."""
        boxes, _ = pad_rows(self.xyxy, self.region_count, images)
        shares = boxes / self.size[images].repeat(1, 2)[:, None]
        confidence, _ = pad_rows(self.confidence, self.region_count, images)
        return torch.cat([shares, confidence[..., None]], dim=-1)

    def tokens_of(
        self, texts: Int[Tensor, "chosen"]
    ) -> tuple[Float[Tensor, "chosen item embed"], Bool[Tensor, "chosen item"]]:
        """The tokens of some captions, as `regions_of`, in single precision."""
        token, mask = pad_rows(self.token, self.token_count, texts)
        return token.float(), mask

    def first_texts(self) -> Int[Tensor, "captioned"]:
        """The index of each captioned picture's first caption, in the pictures' order."""
        order = self.image_of_text.argsort(stable=True)
        owners = self.image_of_text[order]
        return order[owners.diff(prepend=owners.new_tensor([-1])) > 0]

    def save(self, path: Path) -> None:
        """Writes one safetensors file, atomically."""
        save_tensors({field.name: getattr(self, field.name) for field in fields(self)}, path)

    @classmethod
    def load(cls, path: Path) -> "FrozenFeatures":
        """Maps into memory what `save` wrote: features are read when they are used.

        Args:
            path: the file, or the folder that `extract_features` filled.

        Raises:
            FileNotFoundError, ValueError: the file is missing, damaged or holds something else.
        """
        path = path / FEATURES if path.is_dir() else path
        tensors, names = load_tensors(path), {field.name for field in fields(cls)}
        if tensors.keys() != names:
            raise ValueError(
                f"Expected frozen features in {path}, got {sorted(tensors)[:5]}; "
                "extract them again."
            )
        return cls(**tensors)


@dataclass(frozen=True, eq=False)
class EncodedPictures:
    """Pictures with their captions, their frozen features, and what training reads them from.

    Attributes:
        dataset: the pictures' files, and their captions if they have any.
        features: of both, from the untouched CLIP.
        pictures: the paths again, or bytes from `read_pixels`.

    Raises:
        ValueError: their numbers of pictures or captions differ.
    """

    dataset: CaptionedImages
    features: FrozenFeatures
    pictures: Pictures

    def __post_init__(self) -> None:
        count, texts = len(self.features), len(self.features.text)
        counts = len(self.dataset), len(self.pictures), len(self.dataset.texts)
        if counts != (count, count, texts):
            raise ValueError(
                f"Expected the {count} pictures and {texts} captions of the features, got "
                f"{counts[0]} paths, {counts[1]} pictures and {counts[2]} captions; give all of "
                "one data set."
            )


def open_store(folder: Path, source: dict[str, Any]) -> FrozenFeatures | None:
    """Opens the features in a folder, memory-mapped; None as long as any are missing.

    All processes must call it.

    Args:
        folder: where they are, or will be.
        source: what they must be made from; entries that it lacks are not compared.

    Raises:
        ValueError: they were made from something else (the message says what) or something unknown,
            or are damaged; or only some of several processes see them.
    """
    complete = exists_for_all(folder / FEATURES)
    record = folder / SOURCE
    if not record.is_file():
        if complete or any(folder.glob(_SHARDS)):
            raise ValueError(
                f"Expected {SOURCE} beside the features in {folder}, found none; give another "
                "folder, or delete what is in this one."
            )
        return None
    if "detector" in source:  # in older records, too, an entry only where there are crops
        source = source | {"detector": {"crops": None} | source["detector"]}
    differing = differing_entries(load_json(record), source)
    if differing:
        entries = ", ".join(f"{name} ({values})" for name, values in differing.items())
        raise ValueError(
            f"Expected features in {folder} that were made from the same data and settings, but "
            f"these entries of its {SOURCE} differ: {entries}; give another folder, or delete this "
            "one to make them again."
        )
    if not complete:
        return None
    _clear(folder)
    return FrozenFeatures.load(folder)


def fill_store(
    folder: Path,
    source: dict[str, Any],
    count: int,
    make: Callable[[Sequence[range]], Iterable[FrozenFeatures]],
) -> FrozenFeatures:
    """Makes the missing features, and opens the store; all processes must call it.

    Args:
        folder: for which `open_store` returned None.
        source: what they are made from, which is recorded first.
        count: of pictures.
        make: yields the features of some ranges of pictures, one by one; `image_of_text` counts
            pictures from the data set's first.

    Raises:
        FileNotFoundError: a shard is missing: another process wrote it to a place that this one
            does not see.
        ValueError: a shard is damaged.
    """
    parts = [range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]
    shards = {
        folder / f"shard-{part.start:09d}-{part.stop:09d}.safetensors": part for part in parts
    }
    own_files = own_turns([file for file in shards if not file.exists()])
    wait_for_all()  # else one could write a shard before another has listed those missing
    if is_main_process() and not (folder / SOURCE).exists():
        write_atomically(folder / SOURCE, json.dumps(source, indent=1, default=str) + "\n")
    for file, features in zip(own_files, make([shards[file] for file in own_files]), strict=True):
        features.save(file)
    wait_for_all()
    if is_main_process():
        join_files(list(shards), folder / FEATURES)
    _clear(folder)
    wait_for_all()
    return FrozenFeatures.load(folder)


def _clear(folder: Path) -> None:
    """Removes shards and temporary files beside the finished file and its record."""
    if is_main_process():
        # The last pattern is that of safetensors 0.8's own temporary files.
        for pattern in (_SHARDS, ".*.tmp", ".tmp??????"):
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)


def join_files(files: list[Path], path: Path) -> None:
    """Concatenates the tensors of several safetensors files, by name, into one file.

    They are never in memory at once: they are mapped, and copied one by one.

    Args:
        files: with the same tensors, which may differ in length along the first axis only.
        path: the file to write, atomically.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    parts = [load_tensors(file) for file in files]
    # The widest numbers first, so that each tensor is aligned to its own width, as readers want.
    names = sorted(parts[0], key=lambda name: (-parts[0][name].element_size(), name))
    header, end = {}, 0
    with safe_open(files[0], "pt") as first_file:
        for name in names:
            start, end = end, end + sum(part[name].nbytes for part in parts)
            shape = [sum(len(part[name]) for part in parts), *parts[0][name].shape[1:]]
            dtype = first_file.get_slice(name).get_dtype()
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    header_bytes = json.dumps(header).encode()
    header_bytes += b" " * (-len(header_bytes) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(header_bytes).to_bytes(8, "little") + header_bytes)
        for name in names:
            for part in parts:
                file.write(raw_bytes(part[name]))


# What features are made from


def describe_source(
    bundle: ClipBundle,
    dataset: CaptionedImages,
    settings: RegionSettings,
    detector: Detector | None = None,
) -> dict[str, Any]:
    """Whatever features depend on: weights, preprocessing, detector, regions, pictures, captions.

    A picture is identified by its path and bytes, which are read again only if its file changed.

    Args:
        bundle: the CLIP.
        dataset: pictures with captions.
        settings: how regions are made.
        detector: if loaded; without it, weights and thresholds are taken from `settings`, and its
            input size is left out, which follows from its weights.

    Returns:
        A nested record, with digests in place of long values.

    Raises:
        FileNotFoundError: a picture or the detector's weights are missing.
    """
    limits = detector or settings
    weights = detector.source if detector else locate_weights(settings.detector)
    files = [weights] if weights else []
    if weights and weights.is_dir():
        files = sorted(weights.rglob("*"))
    crops = detector.crops if detector else with_crops(settings.detector)
    scans = scan_pictures(dataset.paths, "comparing pictures", decode=False)
    if problem := next((scan.problem for scan in scans if scan.problem), ""):
        raise FileNotFoundError(f"Expected pictures that can be read, but {problem}")
    dtype = str(next(bundle.model.parameters()).dtype).removeprefix("torch.")
    return {
        "format": "dclip_kit features 2",
        "dtype": dtype if bundle.precision == "no" else bundle.precision,
        "clip": {
            "weights": bundle.digest,
            "architecture": bundle.model_config,
            "preprocessing": open_clip.model.get_model_preprocess_cfg(bundle.model.visual),
            "vocabulary": _digest([bundle.merges.read_bytes()]) if bundle.merges else None,
        },
        "detector": {
            "weights": _digest(file.read_bytes() for file in files if file.is_file()),
            "confidence": limits.confidence,
            "max_regions": limits.max_regions,
            **({"image_size": detector.image_size} if detector else {}),
            **({"crops": True} if crops else {}),
        },
        "regions": {k: v for k, v in asdict(settings).items() if k not in _NOT_OF_CROPS},
        "pictures": {
            "count": len(dataset),
            "paths": _digest(os.fsencode(path.absolute()) for path in dataset.paths),
            "bytes": _digest(scan.digest.encode() for scan in scans),
        },
        "captions": _digest(json.dumps(group).encode() for group in dataset.captions),
    }


def differing_entries(kept: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """Lists the entries of a kept record that differ from the current one, with both values.

    Args:
        kept: the record as it was, or will be, written as JSON.
        now: what it has to agree with; entries missing here are not compared.

    Returns:
        Both values as text, by the entry's name, such as `regions.margin`.
    """
    kept_values, current_values = (
        _flatten(json.loads(json.dumps(record, default=str))) for record in (kept, now)
    )
    return {
        name: f"{kept_values.get(name)!r}, now {value!r}"
        for name, value in sorted(current_values.items())
        if kept_values.get(name) != value
    }


def digest_record(record: dict[str, Any]) -> str:
    """A digest of a record, for use as a short name."""
    return _digest([json.dumps(record, sort_keys=True, default=str).encode()])


def _flatten(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        flat |= (
            _flatten(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {f"{prefix}{name}": value}
        )
    return flat


def _digest(parts: Iterable[bytes]) -> str:
    """A digest of parts, which depends on their borders, too."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]
