"""Labelled pictures for zero-shot classification: ImageNet, CIFAR, and any folder a class.

torchvision and open_clip are imported where they are called, as other readers do without them.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from PIL import Image
from tqdm.auto import tqdm

from dclip_kit.data.annotations import load_json, read_lines
from dclip_kit.data.images import LabelledImages
from dclip_kit.runtime.machine import warn_unless_answered

_WORDNET_ID = re.compile(r"n\d{8}")
_CLASSES_FILES = ("classes.json", "classes.txt")


def read_labelled(reference: str | Path) -> LabelledImages:
    """Reads labelled pictures by one text, as a shell passes it.

    Args:
        reference: "imagenet:FOLDER", "cifar10:FOLDER", "cifar100:FOLDER", or a folder with a folder
            of pictures a class, as `read_class_folders` takes it.

    Raises:
        FileNotFoundError, ValueError: as the reader of that kind.
    """
    kind, _, folder = str(reference).partition(":")
    if kind in LABELLED_READERS and folder:
        return LABELLED_READERS[kind](Path(folder))
    return read_class_folders(Path(reference))


def require_labelled(reference: str) -> None:
    """Checks that there is a folder for `read_labelled`, before anything is read.

    Raises:
        FileNotFoundError: there is none.
    """
    kind, _, folder = reference.partition(":")
    place = Path(folder) if kind in LABELLED_READERS and folder else Path(reference)
    if not place.is_dir():
        raise FileNotFoundError(
            f"Expected a folder of labelled pictures at {place}, found none; check the path."
        )


def read_class_folders(folder: Path | str, names: Path | str | None = None) -> LabelledImages:
    """Reads a folder with a folder of pictures a class, as torchvision's `ImageFolder` does.

    Args:
        folder: classes are in the order of their folders' names.
        names: what the classes are called: a JSON object or lines of "folder name". Left out, this
            is the folder's classes.json or classes.txt; without any, folders' names with spaces
            for underscores.

    Raises:
        FileNotFoundError: there is no folder of pictures, or one without.
        ValueError: a class has no name, or a number for it.
    """
    folder = Path(folder)
    paths, labels, called = _find_pictures(folder)
    inside = (folder / each for each in _CLASSES_FILES)
    file = Path(names) if names else next(filter(Path.is_file, inside), None)
    if file:
        name_of = _read_names(file)
        unnamed = [each for each in called if not name_of.get(each)]
        if unnamed:
            raise ValueError(
                f"Expected a name for each of {len(called)} classes in {file}, got none for "
                f"{', '.join(unnamed[:3])}; add {len(unnamed)}."
            )
        class_names = tuple(name_of[each] for each in called)
    elif all(_WORDNET_ID.fullmatch(each) for each in called):
        raise ValueError(
            f"Expected folders in {folder} that are called like their classes, got WordNet's "
            f"numbers ({called[0]}); say their names in classes.txt, or read all 1000 of ImageNet "
            "with imagenet:FOLDER (read_imagenet in Python)."
        )
    else:
        class_names = tuple(each.replace("_", " ") for each in called)
    return LabelledImages(paths, labels, class_names, (True,) * len(called), folder.resolve().name)


def read_imagenet(folder: Path | str) -> LabelledImages:
    """Reads ImageNet-1k's validation pictures, with open_clip's names of the classes.

    Args:
        folder: with 1000 folders called by WordNet's numbers (n01440764, …), as the usual
            preparation of ILSVRC2012_img_val.tar leaves them. Sorted, these are the classes' order.

    Raises:
        FileNotFoundError: there is no folder of pictures, or one without.
        ValueError: they are not exactly these 1000.
    """
    from open_clip import IMAGENET_CLASSNAMES

    paths, labels, called = _find_pictures(Path(folder))
    odd = [each for each in called if not _WORDNET_ID.fullmatch(each)]
    count = len(IMAGENET_CLASSNAMES)
    if odd or len(called) != count:
        raise ValueError(
            f"Expected exactly {count} folders called by WordNet's numbers (n01440764, …) in "
            f"{folder}, got {len(called)}{', among them ' * bool(odd)}{''.join(odd[:1])}; sort the "
            "validation pictures into all of them, and keep nothing else there."
        )
    names = tuple(IMAGENET_CLASSNAMES)
    return LabelledImages(paths, labels, names, (True,) * count, "ImageNet-1k val")


def read_cifar(
    folder: Path | str, classes: Literal[10, 100] = 10, download: bool = False
) -> LabelledImages:
    """Reads the 10,000 test pictures of CIFAR-10 or CIFAR-100.

    torchvision reads them, after checking their digests, out of the pickles that they are published
    as. On first use they are unpacked into PNGs, without loss, so that all pictures have paths.

    Args:
        folder: torchvision's `root`, which holds cifar-10-batches-py or cifar-100-python.
        classes: which of the two.
        download: whether to fetch what is not there (170 MB).

    Raises:
        FileNotFoundError: it is not there or not whole, and is not to be had (said when torchvision
            gives up, which has no time limit of its own).
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    folder, kind, name = Path(folder), {10: CIFAR10, 100: CIFAR100}[classes], f"CIFAR-{classes}"
    try:
        found = kind(folder, train=False)
    except RuntimeError:  # torchvision's for files that are missing or of other content
        try:
            if not download:
                raise OSError("and no download asked")
            warn_unless_answered(kind.url)
            found = kind(folder, train=False, download=True)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise FileNotFoundError(
                f"Expected {name} whole in {folder / kind.base_folder}, or a download, found "
                f"neither ({reason}); unpack {kind.filename} in {folder}, or pass download=True in "
                "Python with a network."
            ) from error
    unpacked = folder / f"{name.lower()}-test"
    if not unpacked.is_dir():
        _unpack([picture for picture, _ in found], unpacked)
    return LabelledImages(
        tuple(unpacked / f"{index:05d}.png" for index in range(len(found))),
        tuple(found.targets),
        tuple(each.replace("_", " ") for each in found.classes),
        (True,) * len(found.classes),
        f"{name} test",
    )


def _unpack(pictures: Sequence[Image.Image], folder: Path) -> None:
    """Writes a folder of pictures, there whole or not at all; another process may be first."""
    with TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
        place = Path(temporary) / folder.name
        place.mkdir()
        for index, picture in enumerate(tqdm(pictures, desc=f"unpacking {folder.name}", delay=2)):
            picture.save(place / f"{index:05d}.png")
        try:
            place.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


LABELLED_READERS: dict[str, Callable[[Path], LabelledImages]] = {
    "imagenet": read_imagenet,
    "cifar10": lambda folder: read_cifar(folder, 10),
    "cifar100": lambda folder: read_cifar(folder, 100),
}


def _find_pictures(folder: Path) -> tuple[tuple[Path, ...], tuple[int, ...], list[str]]:
    """Pictures and their classes' indices, and what the classes' folders are called, sorted."""
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(folder)
    except OSError as error:
        raise FileNotFoundError(
            f"Expected a folder of pictures for each class in {folder}, but reading it failed "
            f"({error}); name the folder that holds these, and take empty ones out of it."
        ) from error
    paths, labels = zip(*found.samples, strict=True)
    return tuple(Path(path) for path in paths), labels, found.classes


def _read_names(file: Path) -> dict[str, str]:
    if file.suffix.lower() == ".json":
        read = load_json(file)
        if not isinstance(read, dict) or not all(isinstance(each, str) for each in read.values()):
            raise ValueError(f"Expected a JSON object, name by folder, in {file}.")
        return {folder: name.strip() for folder, name in read.items()}
    pairs = (line.strip().partition(" ") for _, line in read_lines(file))
    return {folder: name.strip() for folder, _, name in pairs}
