"""Reading pictures as a CLIP takes them: by threads, and ahead of what computes with them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Int, Shaped
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from dclip_kit.datasets import open_picture
from dclip_kit.distributed import is_main_process
from dclip_kit.encoders import ClipBundle
from dclip_kit.threads import count_workers

# Files, pictures, or their pixels: bytes, or floats from 0 to 1.
Pictures = Sequence[Path] | Sequence[Image.Image] | Shaped[Tensor, "image 3 height width"]

Item = TypeVar("Item")
Read = TypeVar("Read")


def read_ahead(
    read: Callable[[Item], Read],
    batches: Iterable[Sequence[Item]],
    workers: int | None = None,
    busy: torch.device | None = None,
) -> Iterator[list[Read]]:
    """Reads batches, each while whoever takes them is busy with the one before.

    Args:
        read: what becomes of an item; called in threads.
        batches: of items. At most two of them, read, are in memory at a time.
        workers: threads; left out, `count_workers`.
        busy: the device that whoever takes them keeps busy. If it is the CPU, a batch is read when
            it is asked for: two that want the same processors only hold each other up.

    Yields:
        Each batch's items in their order, read.

    Raises:
        Whatever `read` does, once the batch is reached.
    """
    ahead = 0 if busy is not None and busy.type == "cpu" else 1
    pool = ThreadPoolExecutor(workers or count_workers())
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


def read_pixels(
    bundle: ClipBundle,
    pictures: Pictures,
    workers: int | None = None,
    progress: bool = True,
) -> Shaped[Tensor, "image 3 height width"]:
    """Reads and preprocesses pictures once, as bytes; tensors are left as they are.

    Raises:
        ValueError: a picture cannot be read, named; or there is none.
    """
    if isinstance(pictures, Tensor):
        return pictures
    if len(pictures) == 0:
        raise ValueError("Expected at least one picture, got none.")

    bar = tqdm(
        torch.arange(len(pictures)).split(64),
        delay=2,
        desc="reading pictures",
        disable=not (progress and is_main_process()),
    )
    return join_batches(read_batches(bundle, pictures, bar, workers), len(pictures))


def join_batches(batches: Iterable[Tensor], count: int) -> Tensor:
    """Puts batches one after another into memory for `count` rows; `torch.cat` takes it twice.

    Args:
        batches: of the same kind; of pictures, with their channels last, as CLIP's are read.
        count: of all their rows together.

    Raises:
        ValueError: they have another number of rows.
    """
    joined, end = torch.empty(0), 0
    for batch in batches:
        if end == 0:
            layout = torch.channels_last if batch.ndim == 4 else torch.contiguous_format
            joined = torch.empty((count, *batch.shape[1:]), dtype=batch.dtype, memory_format=layout)
        joined[end : end + len(batch)] = batch
        end += len(batch)
    if end != count:
        raise ValueError(f"Expected {count} rows in all batches, got {end}.")
    return joined


def read_batches(
    bundle: ClipBundle,
    pictures: Pictures,
    batches: Iterable[Tensor],
    workers: int | None = None,
    busy: torch.device | None = None,
) -> Iterator[Tensor]:
    """Batches of pictures, by index, as bytes; `workers` and `busy` as in `read_ahead`."""
    if isinstance(pictures, Tensor):
        yield from (pictures[images] for images in batches)
        return

    def one(index: int) -> Tensor:
        picture = pictures[index]
        return bundle.to_pixels(
            picture if isinstance(picture, Image.Image) else open_picture(picture)
        )

    listed = (images.tolist() for images in batches)
    for read in read_ahead(one, listed, workers, busy):
        yield torch.stack(read)


def choose_pictures(
    pictures: Pictures, chosen: Int[Tensor, "chosen"]
) -> Sequence[Path] | Sequence[Image.Image] | Shaped[Tensor, "chosen 3 height width"]:
    """Some of the pictures, in the order that is asked for."""
    if isinstance(pictures, Tensor):
        return pictures[chosen]
    return [pictures[index] for index in chosen.tolist()]  # type: ignore[return-value]
