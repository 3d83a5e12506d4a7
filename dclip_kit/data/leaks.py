"""The leak guard: training pictures that are also pictures of an evaluation set.

Two pictures count as the same if their data sets give them the same name (a COCO or Flickr number,
a web address), or if they look the same (by a perceptual hash), mirrored or not. Crops, and other
photographs of the same thing, are not found.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dclip_kit.data.pictures import CaptionedImages, Scan, require_imagehash, scan_pictures
from dclip_kit.runtime.printing import printable

# Bits of imagehash's 64-bit phash in which two pictures may differ and still count as one. Measured
# on photographs and on pocket scenes: JPEG down to quality 30, resizing from a quarter to double,
# WebP at half the size, gray: at most 4 bits. Of 124,750 pairs of different pocket scenes, which
# share ten backgrounds and look more alike than photographs do, one pair is that close; on average
# they differ in 31 bits (standard deviation 4.4).
MAX_DISTANCE = 4
# COCO's file names of 2014 and of 2017: twelve digits, of which six are zeros. img2dataset counts
# with nine, Flickr's numbers have no leading zeros, and bar codes have more than six other digits.
_COCO = re.compile(r"(?:COCO_)?(?:train|val|test)20[0-9]{2}_([0-9]{12})|(0{6}[0-9]{6})")
_FLICKR8K = re.compile(r"([0-9]+)_[0-9a-f]{10}(?:_[a-z])?")  # part of Flickr30k; adds a secret
_NUMBER = re.compile(r"[1-9][0-9]{0,11}")
# An id that says only this: a bare number in the file's name is not a COCO or Flickr number.
OWN = "own"


@dataclass(frozen=True)
class Leak:
    """A training picture that is also an evaluation picture.

    Attributes:
        picture: the training picture.
        evaluation: the evaluation picture; None if a record gives no path.
        by: how they match: "coco 391895", "flickr 36979", "url …", "path", "content (2 bits)"
            or "mirrored content (2 bits)".
    """

    picture: Path
    evaluation: Path | None
    by: str

    def as_dict(self) -> dict[str, str]:
        """JSON values."""
        return {name: printable(value) for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class LeakReport:
    """What the guard found.

    Attributes:
        leaks: one for each leaking training picture, by name if both name and content match.
        not_compared: for pictures of either side that were compared by name alone, the reason by
            path.
    """

    leaks: tuple[Leak, ...]
    not_compared: dict[Path, str]


@dataclass(frozen=True, eq=False)
class EvaluationIndex:
    """Pictures to compare with: those of evaluation sets, or those that a model has trained on.

    Attributes:
        names: each picture's path by each of its hashed names, one of which is its file's digest
            ("bytes …"); None in place of the path in an index from a record, which has no paths.
        phash: likewise by perceptual hash, in hexadecimal; None if pictures are not compared by
            content.
        not_compared: for pictures without a hash, the reason by path.
    """

    names: dict[str, Path | None]
    phash: dict[str, Path | None] | None
    not_compared: dict[Path, str]

    def join(self, other: "EvaluationIndex") -> "EvaluationIndex":
        """Joins two indices; compared by content if either is."""
        neither = self.phash is None and other.phash is None
        return EvaluationIndex(
            self.names | other.names,
            None if neither else (self.phash or {}) | (other.phash or {}),
            self.not_compared | other.not_compared,
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON values for `from_dict`, without paths: those may hold other pictures later."""
        names = sorted(name for name in self.names if not name.startswith("path "))
        return {"names": names, "phash": None if self.phash is None else sorted(self.phash)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "EvaluationIndex":
        """Builds an index from what `as_dict` returned.

        Raises:
            KeyError, TypeError, ValueError: it is of another form.
        """
        names, phash = record["names"], record["phash"]
        for values in (names, phash or []):
            if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                raise TypeError("expected lists of names and of hashes")
        _unpack_bits(phash or [])  # raises where a hash is malformed
        return cls(dict.fromkeys(names), None if phash is None else dict.fromkeys(phash), {})


def index_evaluation(
    evaluation: Sequence[CaptionedImages], by_content: bool = True
) -> EvaluationIndex:
    """Builds what `find_leaks` compares with, to reuse it in several calls.

    Args:
        evaluation: evaluation sets; missing pictures are compared by name.
        by_content: whether to read the pictures and hash them.

    Raises:
        ImportError: imagehash is not installed, and `by_content` asks for it.
    """
    paths = list(dict.fromkeys(path for dataset in evaluation for path in dataset.paths))
    scans = _scan(paths) if by_content else {}
    names: dict[str, Path | None] = {
        hash_name(name): path
        for dataset in evaluation
        for path, aliases in _name_pictures(dataset, scans)
        for name in aliases
    }
    hashes: dict[str, Path | None] = {s.phash: path for path, s in scans.items() if s.phash}
    return EvaluationIndex(names, hashes if by_content else None, _reasons(scans))


def find_leaks(
    training: CaptionedImages,
    evaluation: Sequence[CaptionedImages] | EvaluationIndex,
    by_content: bool = True,
) -> LeakReport:
    """Finds the training pictures that are also evaluation pictures.

    Args:
        training: what a model would be trained on.
        evaluation: the sets that it would be measured on, or an index of them, which then decides
            whether pictures are compared by content.
        by_content: whether to compare by content too, which reads all pictures.

    Raises:
        ImportError: imagehash is not installed, and `by_content` asks for it.
    """
    index = (
        evaluation
        if isinstance(evaluation, EvaluationIndex)
        else index_evaluation(evaluation, by_content)
    )
    needs_scan = index.phash or any(name.startswith("bytes ") for name in index.names)
    scans = _scan(training.paths, bool(index.phash)) if needs_scan else {}
    leaks: dict[Path, Leak] = {}
    for path, names in _name_pictures(training, scans):
        if shared := next((name for name in names if hash_name(name) in index.names), ""):
            by = {"path": "path", "bytes": "content (0 bits)"}.get(shared.split()[0], shared)
            leaks[path] = Leak(path, index.names[hash_name(shared)], by)
    not_compared = dict(index.not_compared)
    if index.phash:
        unmatched = {path: scan for path, scan in scans.items() if path not in leaks}
        not_compared |= _reasons(unmatched)
        hashed = {path: scan for path, scan in unmatched.items() if scan.phash}
        mirrored = {path: scan.mirrored or "" for path, scan in hashed.items()}
        leaks |= _find_near(mirrored, index.phash, "mirrored content")
        leaks |= _find_near({p: scan.phash or "" for p, scan in hashed.items()}, index.phash)
    return LeakReport(tuple(leaks[p] for p in training.paths if p in leaks), not_compared)


def hash_name(name: str) -> str:
    """Hashes one of `picture_names`: equal names can be recognised, but not read."""
    kind, _, rest = name.partition(" ")
    if kind == "bytes":  # already a digest
        return name
    return f"{kind} {hashlib.sha256(rest.encode(errors='surrogateescape')).hexdigest()[:16]}"


def remove_leaks(dataset: CaptionedImages, leaks: Iterable[Leak]) -> CaptionedImages:
    """Leaves out the pictures that `find_leaks` found."""
    leaking = {leak.picture for leak in leaks}
    return dataset.select([i for i, path in enumerate(dataset.paths) if path not in leaking])


def picture_names(path: Path, image_id: str = "") -> list[str]:
    """All names of a picture; two pictures that share one are the same picture.

    A bare number of unknown origin counts as both COCO's and Flickr's: leaving out a picture too
    many is the lesser harm. Ids with their origin ("coco:36979", as the readers give them) are
    unambiguous.

    Args:
        path: the picture's file.
        image_id: as in `CaptionedImages`; a COCO or Flickr file name, its number, a web address,
            a pocket scene's split and number, or `OWN`.

    Returns:
        Names such as "coco 391895", "flickr 36979", "url …", "pocket train/7", and last, "path …".
    """
    kind, _, rest = image_id.rpartition(":")
    stem = PurePosixPath(re.split("[?#]", rest)[0]).stem
    names = _names_of_stem(stem, numbers_count="://" not in image_id)
    if "://" in image_id:
        names = [f"url {image_id}", *names]
    elif kind:  # coco, flickr, or pocket with the split and number of a scene
        names = [name for name in names if name.startswith(f"{kind} ")] or [f"{kind} {rest}"]
    names += _names_of_stem(path.stem, numbers_count=not image_id)
    return list(dict.fromkeys([*names, f"path {path.absolute()}"]))


def _names_of_stem(stem: str, numbers_count: bool) -> list[str]:
    """Names found in a file name; a bare number is one only if `numbers_count`."""
    if coco := _COCO.fullmatch(stem):
        return [f"coco {int(coco[1] or coco[2])}"]
    if flickr := _FLICKR8K.fullmatch(stem):
        return [f"flickr {flickr[1]}"]
    return [f"coco {stem}", f"flickr {stem}"] if numbers_count and _NUMBER.fullmatch(stem) else []


def _name_pictures(
    dataset: CaptionedImages, scans: Mapping[Path, Scan]
) -> Iterator[tuple[Path, list[str]]]:
    """Yields each picture with its names, including its file's digest if that was read."""
    for path, image_id in zip(dataset.paths, dataset.image_ids, strict=True):
        digest = scans[path].digest if path in scans else ""
        yield path, picture_names(path, image_id) + [f"bytes {digest}"] * bool(digest)


def _scan(paths: Sequence[Path], hashes: bool = True) -> dict[Path, Scan]:
    if hashes:
        require_imagehash()
    return dict(zip(paths, scan_pictures(paths, "comparing pictures", hashes), strict=True))


def _reasons(scans: Mapping[Path, Scan]) -> dict[Path, str]:
    """For each picture without a hash, why it has none."""
    return {
        path: scan.problem or "it is too plain to be compared by content"
        for path, scan in scans.items()
        if not scan.phash
    }


def _unpack_bits(hashes: Iterable[str]) -> np.ndarray:
    """Perceptual hashes in hexadecimal as −1 and 1, float32 of shape (picture, 64)."""
    packed = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8)
    return np.unpackbits(packed).reshape(-1, 64).astype(np.float32) * 2 - 1


def _find_near(
    hashes: Mapping[Path, str], evaluation: Mapping[str, Path | None], label: str = "content"
) -> dict[Path, Leak]:
    """For each picture that looks like an evaluation picture, a leak with the most similar one."""
    bits, evaluation_bits = _unpack_bits(hashes.values()), _unpack_bits(evaluation)
    paths, evaluation_paths = list(hashes), list(evaluation.values())
    leaks = {}
    step = max(1, 6_000_000 // max(1, len(evaluation_bits)))  # blocks of 24 MB
    for start in range(0, len(bits), step):
        # Of ±1 vectors, the dot product counts equal bits minus unequal ones.
        distance = (64 - bits[start : start + step] @ evaluation_bits.T) / 2
        for row, column in enumerate(distance.argmin(axis=1)):
            if distance[row, column] <= MAX_DISTANCE:
                by = f"{label} ({int(distance[row, column])} bits)"
                leaks[paths[start + row]] = Leak(paths[start + row], evaluation_paths[column], by)
    return leaks
