"""Labelled pictures for zero-shot classification: ImageNet, CIFAR, and any folder a class.

torchvision and open_clip are imported where they are called, as other readers do without them.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from tqdm.auto import tqdm

from dclip_kit.data.columns import SPLIT_OF
from dclip_kit.data.paths import is_picture, read_lines
from dclip_kit.data.pictures import LabelledImages
from dclip_kit.runtime.files import filling

_WORDNET_ID = re.compile(r"n\d{8}")


def read_labelled(reference: str | Path) -> LabelledImages:
    """Reads labelled pictures by one text, as a shell passes it.

    Args:
        reference: "imagenet:FOLDER", "cifar10:FOLDER", "cifar100:FOLDER", or a folder with a folder
            of pictures a class, as `read_class_folders` takes it.

    Raises:
        FileNotFoundError, ValueError: as the reader of that kind.
    """
    kind, _, folder = str(reference).partition(":")
    reader = LABELLED_READERS.get(kind) if folder else None
    return reader(Path(folder)) if reader else read_class_folders(Path(reference))


def read_class_folders(folder: Path, imagenet: bool = False) -> LabelledImages:
    """Reads a folder with a folder of pictures a class, as torchvision's `ImageFolder` does.

    Args:
        folder: classes are in the order of their folders' names. What they are called is said in
            lines of "folder name" in its classes.txt; without that, by the folders' names with
            spaces for underscores.
        imagenet: whether the folders are ImageNet-1k's 1000, called by WordNet's numbers
            (n01440764, …) as the usual preparation of ILSVRC2012_img_val.tar leaves them. Sorted,
            these are in the order of open_clip's names of the classes, which are taken.

    Raises:
        FileNotFoundError: there is no folder of pictures, or one without.
        ValueError: the folders are one, or splits, or not exactly ImageNet's; or a class has no
            name, or a number for it.
    """
    from torchvision.datasets import ImageFolder

    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected a folder of labelled pictures at {folder}, found none; check the path."
        )
    found = ImageFolder(folder, is_valid_file=is_picture)
    called, file = found.classes, folder / "classes.txt"
    if len(called) < 2 or {each.lower() for each in called} <= SPLIT_OF.keys():
        raise ValueError(
            f"Expected folders in {folder} that are called like their classes, at least two, got "
            f"{', '.join(called)}; name the folder that holds the classes' own."
        )
    numbers = sum(bool(_WORDNET_ID.fullmatch(each)) for each in called)
    names = {each: each.replace("_", " ") for each in called}
    if imagenet:
        from open_clip import IMAGENET_CLASSNAMES

        if not numbers == len(called) == len(IMAGENET_CLASSNAMES):
            raise ValueError(
                f"Expected exactly {len(IMAGENET_CLASSNAMES)} folders called by WordNet's numbers "
                f"(n01440764, …) in {folder}, got {numbers} such and {len(called) - numbers} "
                "others; sort the validation pictures into all of them, and keep nothing else "
                "there."
            )
        names = dict(zip(called, IMAGENET_CLASSNAMES, strict=True))
    elif file.is_file():
        pairs = (line.strip().partition(" ") for _, line in read_lines(file))
        names = {each: name.strip() for each, _, name in pairs}
    elif numbers == len(called) or all(each.isdecimal() for each in called):
        raise ValueError(
            f"Expected folders in {folder} that are called like their classes, got numbers "
            f"({called[0]}); say their names in classes.txt, or read all 1000 of ImageNet, if they "
            "are WordNet's, with imagenet:FOLDER."
        )
    if unnamed := [each for each in called if not names.get(each)]:
        raise ValueError(
            f"Expected a name for each of {len(called)} classes in {file}, got none for "
            f"{', '.join(unnamed[:3])}; add {len(unnamed)}."
        )
    return LabelledImages(
        tuple(Path(path) for path, _ in found.samples),
        tuple(found.targets),
        tuple(names[each] for each in called),
        (True,) * len(called),
        "ImageNet-1k val" if imagenet else folder.resolve().name,
    )


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
    "imagenet": partial(read_class_folders, imagenet=True),
    "cifar10": partial(read_cifar, classes=10),
    "cifar100": partial(read_cifar, classes=100),
}
