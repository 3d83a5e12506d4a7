"""Labelled pictures for zero-shot classification: ImageNet, CIFAR, and any folder a class.

torchvision and open_clip are imported where they are called, as other readers do without them.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from tqdm.auto import tqdm

from dclip_kit.data.annotations import read_lines
from dclip_kit.data.folder import filling
from dclip_kit.data.images import LabelledImages

_WORDNET_ID = re.compile(r"n\d{8}")


def read_labelled(reference: str | Path) -> LabelledImages:
    """Reads labelled pictures by one text, as a shell passes it.

    Args:
        reference: "imagenet:FOLDER", "cifar10:FOLDER", "cifar100:FOLDER", or a folder with a folder
            of pictures a class, as `read_class_folders` takes it.

    Raises:
        FileNotFoundError, ValueError: as the reader of that kind.
    """
    reader, folder = _choose_reader(reference)
    return reader(folder)


def require_labelled(reference: str) -> None:
    """Checks that there is a folder for `read_labelled`, before anything is read.

    Raises:
        FileNotFoundError: there is none.
    """
    _, folder = _choose_reader(reference)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected a folder of labelled pictures at {folder}, found none; check the path."
        )


def _choose_reader(reference: str | Path) -> tuple[Callable[[Path], LabelledImages], Path]:
    kind, _, folder = str(reference).partition(":")
    if kind in LABELLED_READERS and folder:
        return LABELLED_READERS[kind], Path(folder)
    return read_class_folders, Path(reference)


def read_class_folders(folder: Path) -> LabelledImages:
    """Reads a folder with a folder of pictures a class, as torchvision's `ImageFolder` does.

    Args:
        folder: classes are in the order of their folders' names. What they are called is said in
            lines of "folder name" in its classes.txt; without that, by the folders' names with
            spaces for underscores.

    Raises:
        FileNotFoundError: there is no folder of pictures, or one without.
        ValueError: a class has no name, or a number for it.
    """
    paths, labels, called = _find_pictures(folder)
    file = folder / "classes.txt"
    names = {each: each.replace("_", " ") for each in called}
    if file.is_file():
        pairs = (line.strip().partition(" ") for _, line in read_lines(file))
        names = {each: name.strip() for each, _, name in pairs}
    elif all(_WORDNET_ID.fullmatch(each) for each in called):
        raise ValueError(
            f"Expected folders in {folder} that are called like their classes, got WordNet's "
            f"numbers ({called[0]}); say their names in classes.txt, or read all 1000 of ImageNet "
            "with imagenet:FOLDER."
        )
    if unnamed := [each for each in called if not names.get(each)]:
        raise ValueError(
            f"Expected a name for each of {len(called)} classes in {file}, got none for "
            f"{', '.join(unnamed[:3])}; add {len(unnamed)}."
        )
    class_names = tuple(names[each] for each in called)
    return LabelledImages(paths, labels, class_names, (True,) * len(called), folder.resolve().name)


def read_imagenet(folder: Path) -> LabelledImages:
    """Reads ImageNet-1k's validation pictures, with open_clip's names of the classes.

    Args:
        folder: with 1000 folders called by WordNet's numbers (n01440764, …), as the usual
            preparation of ILSVRC2012_img_val.tar leaves them. Sorted, these are the classes' order.

    Raises:
        FileNotFoundError: there is no folder of pictures, or one without.
        ValueError: they are not exactly these 1000.
    """
    from open_clip import IMAGENET_CLASSNAMES

    paths, labels, called = _find_pictures(folder)
    names = tuple(IMAGENET_CLASSNAMES)
    numbers = sum(bool(_WORDNET_ID.fullmatch(each)) for each in called)
    if not numbers == len(called) == len(names):
        raise ValueError(
            f"Expected exactly {len(names)} folders called by WordNet's numbers (n01440764, …) in "
            f"{folder}, got {numbers} such and {len(called) - numbers} others; sort the validation "
            "pictures into all of them, and keep nothing else there."
        )
    return LabelledImages(paths, labels, names, (True,) * len(names), "ImageNet-1k val")


def read_cifar(folder: Path, classes: Literal[10, 100] = 10) -> LabelledImages:
    """Reads the 10,000 test pictures of CIFAR-10 or CIFAR-100.

    torchvision reads them, after checking their digests, out of the pickles that they are published
    as. On first use they are unpacked into PNGs, without loss, so that all pictures have paths.

    Args:
        folder: torchvision's `root`, which holds cifar-10-batches-py or cifar-100-python.
        classes: which of the two.

    Raises:
        FileNotFoundError: it is not there, or not whole.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    kind, name = {10: CIFAR10, 100: CIFAR100}[classes], f"CIFAR-{classes}"
    try:
        found = kind(folder, train=False)
    except RuntimeError as error:  # torchvision's for files that are missing or of other content
        raise FileNotFoundError(
            f"Expected {name} whole in {folder / kind.base_folder}, found it missing or damaged; "
            f"download {kind.url} and unpack it in {folder}."
        ) from error
    unpacked = folder / f"{name.lower()}-test"
    if not unpacked.is_dir():
        with filling(unpacked) as place:
            for index, (picture, _) in enumerate(tqdm(found, f"unpacking {name}", delay=2)):
                picture.save(place / f"{index:05d}.png")
    return LabelledImages(
        tuple(unpacked / f"{index:05d}.png" for index in range(len(found))),
        tuple(found.targets),
        tuple(each.replace("_", " ") for each in found.classes),
        (True,) * len(found.classes),
        f"{name} test",
    )


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
    return tuple(Path(path) for path, _ in found.samples), tuple(found.targets), found.classes
