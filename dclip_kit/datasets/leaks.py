"""The leak guard: training pictures that are also pictures of an evaluation set.

Two pictures are one if their data sets call them by one name (COCO's and Flickr's numbers, an
address), or if they look the same (a perceptual hash). A crop, a mirror image or another photograph
of the same thing is not found.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from tqdm.auto import tqdm

from dclip_kit.datasets.identity import picture_names
from dclip_kit.datasets.images import CaptionedImages
from dclip_kit.datasets.pictures import open_picture

# Bits of imagehash's 64-bit phash in which two pictures may differ and still count as one. Measured
# on photographs and on pocket scenes: JPEG down to quality 30, resizing from a quarter to double,
# WebP at half the size, gray: at most 4 bits. Of 124,750 pairs of different pocket scenes, which
# share ten backgrounds and look more alike than photographs do, one is as near; on average such
# pairs differ in 31 bits (standard deviation 4.4).
MAX_DISTANCE = 4
# Pictures whose brightest and darkest of 32×32 pixels are nearer than this show nothing to hash:
# all plain ones would count as one picture.
_MIN_CONTRAST = 8


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
    """The pictures of evaluation sets, ready to be compared with.

    Attributes:
        names: an evaluation picture by each of its names.
        hashed: the pictures that have a row in `bits`.
        bits: their perceptual hashes as −1 and 1, float32 of shape (picture, 64); None if pictures
            are not compared by content.
        not_compared: reason by path, of the pictures without a row.
    """

    names: dict[str, Path]
    hashed: tuple[Path, ...]
    bits: np.ndarray | None
    not_compared: dict[Path, str]


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
        return EvaluationIndex(names, (), None, {})
    paths = list(dict.fromkeys(path for dataset in evaluation for path in dataset.paths))
    bits, hashed, reasons = _hash_pictures(paths, "hashing evaluation pictures")
    return EvaluationIndex(names, tuple(paths[i] for i in hashed), bits, reasons)


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
    leaks: dict[int, Leak] = {}
    for i, (path, image_id) in enumerate(_with_ids(training)):
        shared = [name for name in picture_names(path, image_id) if name in index.names]
        if shared:
            by = "path" if shared[0].startswith("path ") else shared[0]
            leaks[i] = Leak(path, index.names[shared[0]], by)
    not_compared = dict(index.not_compared)
    if index.bits is not None and index.hashed:
        rest = [i for i in range(len(training)) if i not in leaks]
        paths = [training.paths[i] for i in rest]
        bits, hashed, reasons = _hash_pictures(paths, "hashing training pictures")
        not_compared |= reasons
        for row, nearest, distance in _near(bits, index.bits):
            i = rest[hashed[row]]
            by = f"content ({distance} bits)"
            leaks[i] = Leak(training.paths[i], index.hashed[nearest], by)
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


def _hash_pictures(
    paths: Sequence[Path], title: str
) -> tuple[np.ndarray, list[int], dict[Path, str]]:
    """Perceptual hashes as −1 and 1, whose they are, and why others have none."""
    imagehash = _import_imagehash()
    rows, hashed, reasons = [], [], {}
    for i, path in enumerate(tqdm(paths, desc=title, delay=2)):
        try:
            picture = open_picture(path)
        except ValueError as error:
            reasons[path] = str(error)
            continue
        levels = np.asarray(picture.convert("L").resize((32, 32)))
        if int(levels.max()) - int(levels.min()) < _MIN_CONTRAST:
            reasons[path] = "it is too plain to be compared by content"
            continue
        rows.append(np.where(imagehash.phash(picture).hash.ravel(), 1, -1))
        hashed.append(i)
    return np.array(rows, dtype=np.float32).reshape(-1, 64), hashed, reasons


def _near(bits: np.ndarray, others: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """For each row that is near another, its number, the nearest's, and their distance in bits."""
    for start in range(0, len(bits), 1024):  # 6,000 evaluation pictures make 25 MB a block
        # Of ±1 vectors, the dot product counts equal bits minus unequal ones.
        distance = (64 - bits[start : start + 1024] @ others.T) / 2
        nearest = distance.argmin(axis=1)
        for row, column in enumerate(nearest):
            if distance[row, column] <= MAX_DISTANCE:
                yield start + row, int(column), int(distance[row, column])


def _import_imagehash() -> ModuleType:
    try:
        import imagehash
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Expected imagehash to compare pictures by content, but it is not installed; pip "
            "install 'dclip-kit[data]', or have pictures compared by their names alone."
        ) from error
    return imagehash
