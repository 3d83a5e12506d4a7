"""The leak guard: training pictures that are also pictures of an evaluation set.

Two pictures are one if their data sets call them by one name (COCO's and Flickr's numbers, an
address), or if they look the same (a perceptual hash). A crop, a mirror image or another photograph
of the same thing is not found.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dclip_kit.data.identity import picture_names
from dclip_kit.data.images import CaptionedImages
from dclip_kit.data.scan import Scan, import_imagehash, scan_pictures

# Bits of imagehash's 64-bit phash in which two pictures may differ and still count as one. Measured
# on photographs and on pocket scenes: JPEG down to quality 30, resizing from a quarter to double,
# WebP at half the size, gray: at most 4 bits. Of 124,750 pairs of different pocket scenes, which
# share ten backgrounds and look more alike than photographs do, one is as near; on average such
# pairs differ in 31 bits (standard deviation 4.4).
MAX_DISTANCE = 4


@dataclass(frozen=True)
class Leak:
    """A training picture that is also an evaluation picture.

    Attributes:
        picture: the training picture.
        evaluation: the evaluation picture.
        by: how that is known: "coco 391895", "flickr 36979", "url …", "path" or "content (2 bits)".
    """

    picture: Path
    evaluation: Path
    by: str


@dataclass(frozen=True)
class LeakReport:
    """What the guard found.

    Attributes:
        leaks: one for each training picture that leaks, by name if both ways tell.
        not_compared: reason by path, of pictures of either side whose content was not compared;
            their names were.
    """

    leaks: tuple[Leak, ...]
    not_compared: dict[Path, str]


@dataclass(frozen=True)
class LeakFreeImages:
    """What is left of training data without its leaks.

    Attributes:
        dataset: the pictures that do not leak.
        report: those that did, and what was not compared.
    """

    dataset: CaptionedImages
    report: LeakReport


@dataclass(frozen=True, eq=False)
class EvaluationIndex:
    """Pictures to compare with: those of evaluation sets, or those that a run has trained on.

    Attributes:
        names: a picture by each of its names; its file's digest is one of them ("bytes …").
        phash: perceptual hashes in hexadecimal, by picture; None if pictures are not compared by
            content.
        not_compared: reason by path, of the pictures without a hash.
    """

    names: dict[str, Path]
    phash: dict[Path, str] | None
    not_compared: dict[Path, str]

    @cached_property
    def bits(self) -> np.ndarray:
        """The hashes as −1 and 1, float32 of shape (picture, 64)."""
        return hash_bits(list((self.phash or {}).values()))

    def join(self, other: "EvaluationIndex") -> "EvaluationIndex":
        """With another's pictures too, compared by content if either's are."""
        neither = self.phash is None and other.phash is None
        return EvaluationIndex(
            self.names | other.names,
            None if neither else (self.phash or {}) | (other.phash or {}),
            self.not_compared | other.not_compared,
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON values for `from_dict`. Places are no names in it: another picture may lie there."""
        places = ("path ", "url file:")
        names = {n: str(path) for n, path in self.names.items() if not n.startswith(places)}
        hashes = None if self.phash is None else {str(p): h for p, h in self.phash.items()}
        return {"names": names, "phash": hashes}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "EvaluationIndex":
        """What `as_dict` made.

        Raises:
            ValueError: it is of another form.
        """
        try:
            names = {str(name): Path(path) for name, path in record["names"].items()}
            kept = record["phash"]
            hashes = None if kept is None else {Path(p): str(phash) for p, phash in kept.items()}
            found = cls(names, hashes, {})
            _ = found.bits
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"Expected names and phash of pictures, got others ({error}).") from (
                error
            )
        return found


def index_evaluation(
    evaluation: Sequence[CaptionedImages], by_content: bool = True
) -> EvaluationIndex:
    """Gathers what `find_leaks` compares with, to be made once and used often.

    Args:
        evaluation: evaluation sets; their pictures may be missing, and count by name then.
        by_content: whether to read the pictures and hash them.

    Raises:
        ModuleNotFoundError: imagehash is not installed, and `by_content` asks for it.
    """
    names: dict[str, Path] = {}
    for dataset in evaluation:
        for path, image_id in _with_ids(dataset):
            for name in picture_names(path, image_id):
                names.setdefault(name, path)
    if not by_content:
        return EvaluationIndex(names, None, {})
    paths = list(dict.fromkeys(path for dataset in evaluation for path in dataset.paths))
    scans = _scan(paths)
    for path, scan in scans.items():
        if scan.digest:
            names.setdefault(f"bytes {scan.digest}", path)
    hashes = {path: scan.phash for path, scan in scans.items() if scan.phash}
    return EvaluationIndex(names, hashes, _reasons(scans))


def find_leaks(
    training: CaptionedImages,
    evaluation: Sequence[CaptionedImages] | EvaluationIndex,
    by_content: bool = True,
) -> LeakReport:
    """Finds the training pictures that are also evaluation pictures.

    Args:
        training: what a model would be trained on.
        evaluation: what it would be measured on, or their index, which says itself whether pictures
            are compared by content.
        by_content: whether to compare by content too, which reads all pictures.

    Raises:
        ModuleNotFoundError: imagehash is not installed, and `by_content` asks for it.
    """
    index = evaluation
    if not isinstance(index, EvaluationIndex):
        index = index_evaluation(index, by_content)
    scans: dict[Path, Scan] = {}
    if index.phash or any(name.startswith("bytes ") for name in index.names):
        scans = _scan(training.paths, hashes=bool(index.phash))
    leaks: dict[int, Leak] = {}
    for i, (path, image_id) in enumerate(_with_ids(training)):
        names = picture_names(path, image_id)
        if path in scans:
            names.append(f"bytes {scans[path].digest}")
        shared = [name for name in names if name in index.names]
        if shared:
            kind = "path" if shared[0].startswith("url file:") else shared[0].partition(" ")[0]
            by = {"path": "path", "bytes": "content (0 bits)"}.get(kind, shared[0])
            leaks[i] = Leak(path, index.names[shared[0]], by)
    not_compared = dict(index.not_compared)
    if index.phash:
        rest = [i for i, path in enumerate(training.paths) if i not in leaks]
        reasons = _reasons({training.paths[i]: scans[training.paths[i]] for i in rest})
        not_compared |= reasons
        hashed = [i for i in rest if training.paths[i] not in reasons]
        bits = hash_bits([scans[training.paths[i]].phash or "" for i in hashed])
        others = list(index.phash)
        for row, nearest, distance in _near(bits, index.bits):
            i = hashed[row]
            leaks[i] = Leak(training.paths[i], others[nearest], f"content ({distance} bits)")
    return LeakReport(tuple(leaks[i] for i in sorted(leaks)), not_compared)


def remove_leaks(
    training: CaptionedImages,
    evaluation: Sequence[CaptionedImages] | EvaluationIndex,
    by_content: bool = True,
) -> LeakFreeImages:
    """Leaves out the training pictures that `find_leaks` finds, and reports them.

    Args and errors are those of `find_leaks`.
    """
    report = find_leaks(training, evaluation, by_content)
    leaking = {leak.picture for leak in report.leaks}
    kept = [i for i, path in enumerate(training.paths) if path not in leaking]
    return LeakFreeImages(training.select(kept), report)


def require_no_leaks(
    training: CaptionedImages,
    evaluation: Sequence[CaptionedImages] | EvaluationIndex,
    by_content: bool = True,
) -> LeakReport:
    """Checks that no training picture is an evaluation picture, and reports what was not compared.

    Raises:
        ValueError: one is; says how many, and the first.
    """
    report = find_leaks(training, evaluation, by_content)
    if report.leaks:
        first = report.leaks[0]
        raise ValueError(
            f"Expected training data without evaluation pictures, but {len(report.leaks)} of "
            f"{len(training)} pictures of {training.source} are; the first is {first.picture}, "
            f"which is {first.evaluation} by {first.by}; leave them out with remove_leaks."
        )
    return report


def _with_ids(dataset: CaptionedImages) -> Iterator[tuple[Path, str]]:
    yield from zip(dataset.paths, dataset.image_ids or [""] * len(dataset), strict=True)


def _scan(paths: Sequence[Path], hashes: bool = True) -> dict[Path, Scan]:
    if hashes:
        import_imagehash()
    return dict(zip(paths, scan_pictures(paths, "comparing pictures", hashes), strict=True))


def _reasons(scans: dict[Path, Scan]) -> dict[Path, str]:
    """Why pictures have no hash, of those that have none."""
    plain = "it is too plain to be compared by content"
    return {path: scan.problem or plain for path, scan in scans.items() if not scan.phash}


def hash_bits(hashes: Sequence[str]) -> np.ndarray:
    """Perceptual hashes in hexadecimal as −1 and 1, float32 of shape (picture, 64)."""
    whole = np.array([int(each, 16) for each in hashes], dtype=np.uint64)[:, None]
    bits = (whole >> np.arange(63, -1, -1, dtype=np.uint64)) & np.uint64(1)
    return bits.astype(np.float32).reshape(-1, 64) * 2 - 1


def _near(bits: np.ndarray, others: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """For each row that is near another, its number, the nearest's, and their distance in bits."""
    for start in range(0, len(bits), 1024):  # 6,000 evaluation pictures make 25 MB a block
        # Of ±1 vectors, the dot product counts equal bits minus unequal ones.
        distance = (64 - bits[start : start + 1024] @ others.T) / 2
        nearest = distance.argmin(axis=1)
        for row, column in enumerate(nearest):
            if distance[row, column] <= MAX_DISTANCE:
                yield start + row, int(column), int(distance[row, column])
