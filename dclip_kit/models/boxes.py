"""Regions without a detector of ours: the boxes of any other one, in a file, and fixed crops."""

import filecmp
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import torch

from dclip_kit.data.paths import load_json
from dclip_kit.models.regions import Regions

CROP_NAMES = ("upper left", "upper right", "lower left", "lower right", "centre")
_LOW, _HIGH = 0.4, 0.6  # each crop has 60 % of the width and of the height
_CROPS = torch.tensor(
    [
        [0.0, 0.0, _HIGH, _HIGH],
        [_LOW, 0.0, 1.0, _HIGH],
        [0.0, _LOW, _HIGH, 1.0],
        [_LOW, _LOW, 1.0, 1.0],
        [_LOW / 2, _LOW / 2, 1 - _LOW / 2, 1 - _LOW / 2],
    ]
)


@dataclass(frozen=True, eq=False)
class StoredBoxes:
    """What some detector found in pictures.

    Attributes:
        names: all labels.
        file: where they were read.
        regions: of each picture, by its path below the folder that has all of them.
        root: that folder, which may have moved since.
    """

    names: tuple[str, ...]
    file: Path
    regions: dict[PurePath, Regions]
    root: PurePath

    def find(self, path: Path | str | None, size: tuple[int, int]) -> Regions:
        """A picture's regions; the whole picture if the file does not list it.

        Args:
            path: of the picture, None if it is not known; the file has the end of it.
            size: the picture's width and height in pixels.

        Raises:
            ValueError: the boxes are those of a picture of another size.
        """
        key = self.match(path)
        if key is None:
            return Regions.whole_image(size)
        regions = self.regions[key]
        if regions.image_size != size:
            expected, got = ("×".join(map(str, each)) for each in (regions.image_size, size))
            raise ValueError(
                f"Expected {path} with the {expected} pixels that its boxes in {self.file} are "
                f"for, got {got}; find boxes in these pictures."
            )
        return regions

    def match(self, path: Path | str | None) -> PurePath | None:
        """A picture's path in the file, the longest that fits; None if it is not listed."""
        if path is None:
            raise ValueError(
                f"Expected the path of a picture to find its boxes in {self.file}, got the picture "
                "alone; give paths."
            )
        parts = PurePath(path).parts
        ends = (PurePath(*parts[start:]) for start in range(len(parts)))
        key = next((end for end in ends if end in self.regions), None)
        # Another folder may have another picture of that name.
        return key if key is None or _may_be(Path(self.root / key), Path(path)) else None

    def count_unlisted(self, paths: Sequence[Path]) -> int:
        """How many pictures the file does not list.

        Raises:
            ValueError: two pictures have the same boxes.
        """
        found: dict[PurePath, Path] = {}
        for path in paths:
            key = self.match(path)
            if key is not None and found.setdefault(key, path) != path:
                raise ValueError(
                    f"Expected one picture for each path in {self.file}, got {found[key]} and "
                    f"{path} for {key}; write the boxes with paths that tell them apart."
                )
        return len(paths) - len(found)


def read_boxes(file: Path, confidence: float = 0.0, max_regions: int = 1000) -> StoredBoxes:
    """Reads boxes in the form that the command detect writes.

    That is `{"pictures": [{"path", "width", "height", "regions": [{"label", "confidence",
    "xyxy"}]}]}`, with boxes in pixels: left, top, right, bottom. Other entries are ignored.

    Args:
        file: the .json.
        confidence: what a region's confidence must exceed.
        max_regions: the most regions a picture, by falling confidence; fixed crops come beside.

    Raises:
        ValueError: it has another form, a picture twice, or a box that does not fit its picture.
    """
    regions: dict[PurePath, Regions] = {}
    names: dict[str, None] = {}
    entries: dict[str, Any] = {}
    try:
        for entry in load_json(file)["pictures"]:
            path = str(entry["path"])
            if "/" not in path:  # as Windows writes it
                path = PureWindowsPath(path).as_posix()
            if entries.setdefault(path, entry) is not entry:
                raise ValueError(f"{path} twice")
        parents = [PurePath(path).parent for path in entries]
        root = PurePath(os.path.commonpath(parents) if parents else "")
        for path, entry in entries.items():
            kept = [each for each in entry["regions"] if each["confidence"] > confidence]
            kept = sorted(kept, key=lambda each: -each["confidence"])
            fixed = [each for each in kept if each["label"] in CROP_NAMES]  # beyond those found
            kept = [each for each in kept if each["label"] not in CROP_NAMES][:max_regions] + fixed
            labels = [str(each["label"]) for each in kept]
            names |= dict.fromkeys(labels)
            found = Regions.from_boxes(
                torch.tensor([each["xyxy"] for each in kept]).float().reshape(-1, 4),
                torch.tensor([each["confidence"] for each in kept]).float(),
                labels,
                (int(entry["width"]), int(entry["height"])),
            )
            regions[PurePath(path).relative_to(root)] = found
        found_ones = [x for x in regions.values() if not x.is_whole_image]
        if found_ones and max(float(x.xyxy.max()) for x in found_ones) <= 1:
            raise ValueError("no box is longer than a pixel: they are shares of the picture")
    except (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected boxes as the command detect writes them in {file}, got another form "
            f"({type(error).__name__}: {str(error)[:200]}); write each picture's path, width, "
            "height and regions (label, confidence, xyxy)."
        ) from error
    return StoredBoxes(tuple(sorted(names)), file, regions, root)


def add_crops(regions: Regions) -> Regions:
    """Appends the five fixed crops to a picture's regions; the whole picture is no longer one.

    As all regions, they are cut with the settings' margin.
    """
    crops = _CROPS * torch.tensor(regions.image_size * 2)
    if regions.is_whole_image:
        fixed = Regions(crops, torch.ones(len(crops)), CROP_NAMES, regions.image_size)
        return replace(fixed, dropped=regions.dropped)
    return Regions(
        torch.cat([regions.xyxy, crops]),
        torch.cat([regions.confidence, torch.ones(len(crops))]),
        (*regions.label, *CROP_NAMES),
        regions.image_size,
        dropped=regions.dropped,
    )


def _may_be(stored: Path, path: Path) -> bool:
    """Whether boxes of one file can be another's: unless both exist and differ."""
    both = stored.is_file() and path.is_file()
    return not both or os.path.samefile(stored, path) or filecmp.cmp(stored, path, shallow=False)
