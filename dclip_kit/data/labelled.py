"""Labelled pictures for zero-shot classification: ImageNet, CIFAR, and any folders of classes.

torchvision and open_clip are imported inside functions, as other readers work without them.
"""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from tqdm.auto import tqdm

from dclip_kit.data.columns import SPLIT_OF
from dclip_kit.data.paths import is_hidden, is_picture, read_lines, walk_files
from dclip_kit.data.pictures import LabelledImages
from dclip_kit.runtime.files import filling

_WORDNET_ID = re.compile(r"n\d{8}")


def read_labelled(reference: str | Path) -> LabelledImages:
    """Reads labelled pictures by a reference, as the command line takes it.

    Args:
        reference: "imagenet:FOLDER", "cifar10:FOLDER", "cifar100:FOLDER", or a folder for
            `read_class_folders`.

    Raises:
        FileNotFoundError, ValueError: as the reader for the reference.
    """
    kind, _, folder = str(reference).partition(":")
    reader = LABELLED_READERS.get(kind) if folder else None
    return reader(Path(folder)) if reader else read_class_folders(Path(reference))


def read_class_folders(folder: Path, imagenet: bool = False) -> LabelledImages:
    """Reads a folder with one folder of pictures per class, as torchvision's ImageFolder does.

    Args:
        folder: its folders, sorted by name, are the classes. Lines of "folder name" in its
            classes.txt name them; without that, the folders' names do, with spaces for underscores.
        imagenet: whether the folders are the 1000 of ImageNet-1k, named by WordNet's numbers
            (n01440764, …) as the usual preparation of ILSVRC2012_img_val.tar leaves them. Sorted,
            they are in the order of open_clip's class names, which are used.

    Raises:
        FileNotFoundError: there is no such folder, or a class has no picture.
        ValueError: there is only one class, the folders are splits or not exactly ImageNet's, or a
            class has no name or only a number.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected a folder of labelled pictures at {folder}, found none; check the path."
        )

    file = folder / "classes.txt"
    folder_names = sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name)
    )
    if len(folder_names) < 2 or {name.lower() for name in folder_names} <= SPLIT_OF.keys():
        raise ValueError(
            f"Expected folders in {folder} that are named after their classes, at least two, got "
            f"{', '.join(folder_names) or 'none'}; name the folder that holds the classes' folders."
        )
    id_count = sum(bool(_WORDNET_ID.fullmatch(name)) for name in folder_names)
    names = {name: name.replace("_", " ") for name in folder_names}
    if imagenet:
        from open_clip import IMAGENET_CLASSNAMES

        if not id_count == len(folder_names) == len(IMAGENET_CLASSNAMES):
            raise ValueError(
                f"Expected exactly {len(IMAGENET_CLASSNAMES)} folders named by WordNet's numbers "
                f"(n01440764, …) in {folder}, got {id_count} such and "
                f"{len(folder_names) - id_count} others; sort the validation pictures into all of "
                "them, and keep nothing else there."
            )
        names = dict(zip(folder_names, IMAGENET_CLASSNAMES, strict=True))
    elif file.is_file():
        names = {}
        for _, line in read_lines(file):
            told = [name for name in folder_names if line.strip().startswith(f"{name} ")]
            if told:  # the longest, since names may have spaces in them
                folder_name = max(told, key=len)
                names[folder_name] = line.strip()[len(folder_name) :].strip()
    elif id_count == len(folder_names) or all(name.isdecimal() for name in folder_names):
        raise ValueError(
            f"Expected folders in {folder} that are named after their classes, got numbers "
            f"({folder_names[0]}); say their names in classes.txt, or, if they are all 1000 of "
            "ImageNet, read them with imagenet:FOLDER."
        )
    if unnamed := [name for name in folder_names if not names.get(name)]:
        raise ValueError(
            f"Expected a name for each of {len(folder_names)} classes in {file}, got none for "
            f"{', '.join(unnamed[:3])}; add {len(unnamed)}."
        )
    pictures = {  # in torchvision's order: folder by folder, a folder's own pictures first
        name: sorted(filter(is_picture, walk_files(folder / name)), key=os.path.split)
        for name in folder_names
    }
    if empty := [name for name in folder_names if not pictures[name]]:
        raise FileNotFoundError(
            f"Expected pictures of each class in {folder}, found none of {', '.join(empty[:3])}; "
            f"add some, or remove {len(empty)} folders."
        )
    return LabelledImages(
        tuple(folder / name / picture for name in folder_names for picture in pictures[name]),
        tuple(label for label, name in enumerate(folder_names) for _ in pictures[name]),
        tuple(names[name] for name in folder_names),
        (True,) * len(folder_names),
        "ImageNet-1k val" if imagenet else folder.resolve().name,
    )


def read_cifar(folder: Path, classes: Literal[10, 100] = 10) -> LabelledImages:
    """Reads the 10,000 test pictures of CIFAR-10 or CIFAR-100.

    torchvision reads them from the published pickles, after checking their digests. On first use
    they are unpacked into PNGs, without loss, so that all pictures have paths.

    Args:
        folder: torchvision's `root`, which holds cifar-10-batches-py or cifar-100-python.
        classes: which of the two.

    Raises:
        FileNotFoundError: it is missing or incomplete.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    cifar_class, name = {10: CIFAR10, 100: CIFAR100}[classes], f"CIFAR-{classes}"
    try:
        cifar = cifar_class(folder, train=False)
    except RuntimeError as error:  # torchvision raises it for missing or damaged files
        raise FileNotFoundError(
            f"Expected {name} whole in {folder / cifar_class.base_folder}, found it missing or "
            f"damaged; download {cifar_class.url} and unpack it in {folder}."
        ) from error
    unpacked = folder / f"{name.lower()}-test"
    if not unpacked.is_dir():
        with filling(unpacked) as temporary:
            for index, (picture, _) in enumerate(tqdm(cifar, f"unpacking {name}", delay=2)):
                picture.save(temporary / f"{index:05d}.png")
    return LabelledImages(
        tuple(unpacked / f"{index:05d}.png" for index in range(len(cifar))),
        tuple(cifar.targets),
        tuple(name.replace("_", " ") for name in cifar.classes),
        (True,) * len(cifar.classes),
        f"{name} test",
    )


LABELLED_READERS: dict[str, Callable[[Path], LabelledImages]] = {
    "imagenet": partial(read_class_folders, imagenet=True),
    "cifar10": partial(read_cifar, classes=10),
    "cifar100": partial(read_cifar, classes=100),
}
