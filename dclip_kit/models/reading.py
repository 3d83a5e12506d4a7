"""Reading pictures as a CLIP takes them: by threads, and ahead of what computes with them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from typing import TypeVar

import torch
from jaxtyping import Shaped, UInt8
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from dclip_kit.data.pictures import count_pixels, open_picture
from dclip_kit.models.clip import ClipBundle
from dclip_kit.runtime.machine import count_workers
from dclip_kit.runtime.processes import is_main_process

# Files, pictures, or their pixels: bytes, or floats from 0 to 1.
Pictures = Sequence[Path] | Sequence[Image.Image] | Shaped[Tensor, "image 3 height width"]

Item = TypeVar("Item")
Read = TypeVar("Read")

_PIXELS_EACH = 16_000_000  # opened at a time for each thread that reads, of 4 bytes each in Pillow
_MOST_PIXELS = 64_000_000
_BIG_PICTURE = Lock()


def most_pixels() -> int:
    """How many pixels of opened pictures are held at a time; a picture of more is held alone."""
    return min(_PIXELS_EACH * count_workers(), _MOST_PIXELS)


def split_by_pixels(pictures: Sequence[Image.Image | Path | str], size: int) -> Iterator[list[int]]:
    """Groups of pictures that follow each other, by index, each to be opened together.

    Args:
        pictures: opened already, or their files.
        size: of a group at most; it has fewer pictures where they have more than `most_pixels`.
    """
    group: list[int] = []
    held = 0
    for index, picture in enumerate(pictures):
        if isinstance(picture, Image.Image):
            pixels = picture.width * picture.height
        else:
            pixels = count_pixels(picture)
        if len(group) == size or (group and held + pixels > most_pixels()):
            yield group
            group, held = [], 0
        group.append(index)
        held += pixels
    if group:
        yield group


def hold_picture(pixels: int) -> AbstractContextManager:
    """For as long as a thread has a picture open: of big ones, one is open at a time.

    Big is more than a thread's share of `most_pixels`.
    """
    return _BIG_PICTURE if pixels > most_pixels() / count_workers() else nullcontext()


def read_picture(bundle: ClipBundle, path: Path) -> UInt8[Tensor, "3 height width"]:
    """A whole picture as CLIP takes it, in bytes; big JPEGs are decoded reduced.

    Raises:
        ValueError: as `open_picture`.
    """
    with hold_picture(count_pixels(path, bundle.side)):
        return bundle.to_pixels(open_picture(path, bundle.side))


def read_ahead(
    read: Callable[[Item], Read],
    batches: Iterable[Sequence[Item]],
    busy: torch.device,
) -> Iterator[list[Read]]:
    """Reads batches by threads, each while whoever takes them is busy with the one before.

    Args:
        read: what becomes of an item; called in threads.
        batches: of items. At most two of them, read, are in memory at a time.
        busy: the device that whoever takes them keeps busy. If it is the CPU, a batch is read when
            it is asked for: two that want the same processors only hold each other up.

    Yields:
        Each batch's items in their order, read.

    Raises:
        Whatever `read` does, once the batch is reached.
    """
    ahead = 0 if busy.type == "cpu" else 1
    pool = ThreadPoolExecutor(count_workers())
    begun: deque[list[Future[Read]]] = deque()
    try:
        for batch in batches:
            begun.append([pool.submit(read, item) for item in batch])
            if len(begun) > ahead:
                yield [each.result() for each in begun.popleft()]
        for last in begun:
            yield [each.result() for each in last]
    finally:
        pool.shutdown(cancel_futures=True)


def read_batches(
    bundle: ClipBundle,
    pictures: Pictures,
    batches: Iterable[Tensor],
    busy: torch.device | None = None,
) -> Iterator[Tensor]:
    """Batches of pictures, by index, as bytes; `busy` as in `read_ahead`, else the CLIP's device.

    Raises:
        ValueError: a picture cannot be read, named.
    """
    if isinstance(pictures, Tensor):
        yield from (pictures[images] for images in batches)
        return

    def read(index: int) -> Tensor:
        picture = pictures[index]
        if isinstance(picture, Image.Image):
            return bundle.to_pixels(picture)
        return read_picture(bundle, picture)

    indices = (images.tolist() for images in batches)
    yield from map(torch.stack, read_ahead(read, indices, busy or bundle.device))


def read_pixels(
    bundle: ClipBundle, pictures: Pictures, progress: bool = True
) -> Shaped[Tensor, "image 3 height width"]:
    """Reads and preprocesses pictures once, as bytes; tensors are left as they are.

    Raises:
        ValueError: a picture cannot be read, named; or there is none.
    """
    if isinstance(pictures, Tensor):
        return pictures
    if len(pictures) == 0:
        raise ValueError("Expected at least one picture, got none.")
    one = bundle.to_pixels(Image.new("RGB", (1, 1)))
    # Filled bit by bit: parts that are put together would take the memory twice.
    pixels = torch.empty(
        (len(pictures), *one.shape), dtype=one.dtype, memory_format=torch.channels_last
    )
    batches = torch.arange(len(pictures)).split(64)
    silent = not (progress and is_main_process())
    bar = tqdm(batches, desc="reading pictures", delay=2, disable=silent)
    for images, read in zip(bar, read_batches(bundle, pictures, batches), strict=True):
        pixels[images] = read
    return pixels
