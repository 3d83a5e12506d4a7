"""The leak guard: training pictures that are also pictures of an evaluation set.

Two pictures are one if their data sets call them by one name (COCO's and Flickr's numbers, an
address), or if they look the same (a perceptual hash), be it in a mirror. A crop or another
photograph of the same thing is not found.
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
# share ten backgrounds and look more alike than photographs do, one is as near; on average such
# pairs differ in 31 bits (standard deviation 4.4).
MAX_DISTANCE = 4
# COCO's file names of 2014 and of 2017. Twelve digits are COCO's alone: img2dataset counts with
# nine, and Flickr's numbers have no zeros in front.
_COCO = re.compile(r"(?:COCO_)?(?:train|val|test)20[0-9]{2}_([0-9]{12})|([0-9]{12})")
_FLICKR8K = re.compile(r"([0-9]+)_[0-9a-f]{10}(?:_[a-z])?")  # part of Flickr30k, with secrets added
_NUMBER = re.compile(r"[1-9][0-9]{0,11}")
# An id that says no more than that a bare number in the file's name is no other data set's.
OWN = "own"


@dataclass(frozen=True)
class Leak:
    """A training picture that is also an evaluation picture.

    Attributes:
        picture: the training picture.
        evaluation: the evaluation picture; None where a record names none.
        by: how that is known: "coco 391895", "flickr 36979", "url …", "path", "content (2 bits)"
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
        leaks: one for each training picture that leaks, by name if both ways tell.
        not_compared: reason by path, of pictures of either side whose content was not compared;
            their names were.
    """

    leaks: tuple[Leak, ...]
    not_compared: dict[Path, str]


@dataclass(frozen=True, eq=False)
class EvaluationIndex:
    """Pictures to compare with: those of evaluation sets, or those that a model has trained on.

    Attributes:
        names: a picture by each of its names, hashed; its file's digest is one of them
            ("bytes …"). None for a picture of a record, which has no paths.
        phash: the same by perceptual hash, in hexadecimal; None if pictures are not compared by
            content.
        not_compared: reason by path, of the pictures without a hash.
    """

    names: dict[str, Path | None]
    phash: dict[str, Path | None] | None
    not_compared: dict[Path, str]

    def join(self, other: "EvaluationIndex") -> "EvaluationIndex":
        """With another's pictures too, compared by content if either's are."""
        neither = self.phash is None and other.phash is None
        return EvaluationIndex(
            self.names | other.names,
            None if neither else (self.phash or {}) | (other.phash or {}),
            self.not_compared | other.not_compared,
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON values for `from_dict`, without paths: another picture may lie there."""
        names = sorted(name for name in self.names if not name.startswith("path "))
        return {"names": names, "phash": None if self.phash is None else sorted(self.phash)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "EvaluationIndex":
        """What `as_dict` made.

        Raises:
            KeyError, TypeError, ValueError: it is of another form.
        """
        names, phash = record["names"], record["phash"]
        for each in (names, phash or []):
            if not isinstance(each, list) or not all(isinstance(name, str) for name in each):
                raise TypeError("expected lists of names and of hashes")
        _unpack_bits(phash or [])  # which fails with hashes that are none
        return cls(dict.fromkeys(names), None if phash is None else dict.fromkeys(phash), {})


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
    paths = list(dict.fromkeys(path for dataset in evaluation for path in dataset.paths))
    scans = _scan(paths) if by_content else {}
    names: dict[str, Path | None] = {
        hash_name(name): path
        for dataset in evaluation
        for path, own in _name_pictures(dataset, scans)
        for name in own
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
        evaluation: what it would be measured on, or their index, which says itself whether pictures
            are compared by content.
        by_content: whether to compare by content too, which reads all pictures.

    Raises:
        ModuleNotFoundError: imagehash is not installed, and `by_content` asks for it.
    """
    index = (
        evaluation
        if isinstance(evaluation, EvaluationIndex)
        else index_evaluation(evaluation, by_content)
    )
    looked = index.phash or any(name.startswith("bytes ") for name in index.names)
    scans = _scan(training.paths, bool(index.phash)) if looked else {}
    leaks: dict[Path, Leak] = {}
    for path, names in _name_pictures(training, scans):
        if shared := next((name for name in names if hash_name(name) in index.names), ""):
            by = {"path": "path", "bytes": "content (0 bits)"}.get(shared.split()[0], shared)
            leaks[path] = Leak(path, index.names[hash_name(shared)], by)
    not_compared = dict(index.not_compared)
    if index.phash:
        rest = {path: scan for path, scan in scans.items() if path not in leaks}
        not_compared |= _reasons(rest)
        hashed = {path: scan for path, scan in rest.items() if scan.phash}
        mirrored = {path: scan.mirrored or "" for path, scan in hashed.items()}
        leaks |= _find_near(mirrored, index.phash, "mirrored content")
        leaks |= _find_near({p: scan.phash or "" for p, scan in hashed.items()}, index.phash)
    return LeakReport(tuple(leaks[p] for p in training.paths if p in leaks), not_compared)


def hash_name(name: str) -> str:
    """One of `picture_names` in a form that tells whether two are equal, and not what they say."""
    kind, _, rest = name.partition(" ")
    if kind == "bytes":  # which is a digest already
        return name
    return f"{kind} {hashlib.sha256(rest.encode(errors='surrogateescape')).hexdigest()[:16]}"


def remove_leaks(dataset: CaptionedImages, leaks: Iterable[Leak]) -> CaptionedImages:
    """Leaves out the pictures that `find_leaks` found."""
    leaking = {leak.picture for leak in leaks}
    return dataset.select([i for i, path in enumerate(dataset.paths) if path not in leaking])


def picture_names(path: Path, image_id: str = "") -> list[str]:
    """All names of a picture; two pictures that share one are the same picture.

    A bare number is COCO's or Flickr's where nothing tells which: then it counts as both, as a
    guard had better leave out a picture too many. Ids that say which ("coco:36979", as the readers
    give them) are never mistaken.

    Args:
        path: the picture's file.
        image_id: as in `CaptionedImages`; a COCO or Flickr file name, its number, an address, the
            place of a scene of the pocket, or `OWN`.

    Returns:
        Such as "coco 391895", "flickr 36979", "url …", "pocket train/7", and last, "path …".
    """
    kind, _, rest = image_id.rpartition(":")
    stem = PurePosixPath(re.split("[?#]", rest)[0]).stem
    names = _names_of_stem(stem, alone="://" not in image_id)
    if "://" in image_id:
        names = [f"url {image_id}", *names]
    elif kind:  # coco, flickr, or pocket, with split and number of a scene that the kit draws
        names = [name for name in names if name.startswith(f"{kind} ")] or [f"{kind} {rest}"]
    names += _names_of_stem(path.stem, alone=not image_id)
    return list(dict.fromkeys([*names, f"path {path.absolute()}"]))


def _names_of_stem(stem: str, alone: bool) -> list[str]:
    """Names that a file's name tells; a bare number counts only if it has to speak alone."""
    if coco := _COCO.fullmatch(stem):
        return [f"coco {int(coco[1] or coco[2])}"]
    if flickr := _FLICKR8K.fullmatch(stem):
        return [f"flickr {flickr[1]}"]
    return [f"coco {stem}", f"flickr {stem}"] if alone and _NUMBER.fullmatch(stem) else []


def _name_pictures(
    dataset: CaptionedImages, scans: Mapping[Path, Scan]
) -> Iterator[tuple[Path, list[str]]]:
    """Yields each picture with its names, the digest of its file among them if it was read."""
    for path, image_id in zip(dataset.paths, dataset.image_ids, strict=True):
        digest = scans[path].digest if path in scans else ""
        yield path, picture_names(path, image_id) + [f"bytes {digest}"] * bool(digest)


def _scan(paths: Sequence[Path], hashes: bool = True) -> dict[Path, Scan]:
    if hashes:
        require_imagehash()
    return dict(zip(paths, scan_pictures(paths, "comparing pictures", hashes), strict=True))


def _reasons(scans: Mapping[Path, Scan]) -> dict[Path, str]:
    """Why pictures have no hash, of those that have none."""
    return {
        path: scan.problem or "it is too plain to be compared by content"
        for path, scan in scans.items()
        if not scan.phash
    }


def _unpack_bits(hashes: Iterable[str]) -> np.ndarray:
    """Perceptual hashes in hexadecimal as −1 and 1, float32 of shape (picture, 64)."""
    whole = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8)
    return np.unpackbits(whole).reshape(-1, 64).astype(np.float32) * 2 - 1


def _find_near(
    hashes: Mapping[Path, str], others: Mapping[str, Path | None], called: str = "content"
) -> dict[Path, Leak]:
    """For each picture that looks like one of the others, the most similar one."""
    bits, other_bits = _unpack_bits(hashes.values()), _unpack_bits(others)
    paths, other_paths = list(hashes), list(others.values())
    leaks = {}
    for start in range(0, len(bits), 1024):  # 6,000 evaluation pictures make 25 MB a block
        # Of ±1 vectors, the dot product counts equal bits minus unequal ones.
        distance = (64 - bits[start : start + 1024] @ other_bits.T) / 2
        for row, column in enumerate(distance.argmin(axis=1)):
            if distance[row, column] <= MAX_DISTANCE:
                by = f"{called} ({int(distance[row, column])} bits)"
                leaks[paths[start + row]] = Leak(paths[start + row], other_paths[column], by)
    return leaks
