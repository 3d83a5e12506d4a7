"""Reading pictures as a CLIP takes them: by threads, and ahead of what computes with them."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Condition
from typing import Any, TypeVar

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


def most_pixels() -> int:
    """How many pixels of opened pictures are held at a time; a picture of more is held alone."""
    return min(_PIXELS_EACH * count_workers(), _MOST_PIXELS)


def split_by_pixels(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Groups of files that follow each other, each to be opened together."""
    group: list[Path] = []
    held = 0
    for path in paths:
        pixels = count_pixels(path)
        if group and held + pixels > most_pixels():
            yield group
            group, held = [], 0
        group.append(path)
        held += pixels
    if group:
        yield group


class _Held:
    """The pixels that all threads of this process hold, who wait where they would be too many."""

    def __init__(self) -> None:
        self._pixels, self._changed = 0, Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """For as long as a picture is open."""
        most = max(most_pixels(), pixels)
        with self._changed:
            self._changed.wait_for(lambda: self._pixels + pixels <= most)
            self._pixels += pixels
        try:
            yield
        finally:
            with self._changed:
                self._pixels -= pixels
                self._changed.notify_all()


_HELD = _Held()


def read_picture(bundle: ClipBundle, path: Path) -> UInt8[Tensor, "3 height width"]:
    """A whole picture as CLIP takes it, in bytes; big JPEGs are decoded reduced.

    Raises:
        ValueError: as `open_picture`.
    """
    with _HELD.hold(count_pixels(path, bundle.side)):
        return bundle.to_pixels(open_picture(path, bundle.side))


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

    crops: Any = pictures if hasattr(pictures, "cut") else None  # `RegionCrops`, which stand above

    def read(group: list[tuple[int, int]]) -> list[tuple[int, Tensor]]:
        """What is in a batch of one picture, by its place there."""
        places, indices = zip(*group, strict=True)
        if crops:
            with _HELD.hold(count_pixels(crops.path_of(indices[0]))):
                return [*zip(places, map(bundle.to_pixels, crops.cut(indices)), strict=True)]
        picture = pictures[indices[0]]
        seen = isinstance(picture, Image.Image)
        return [(*places, bundle.to_pixels(picture) if seen else read_picture(bundle, picture))]

    path_of = crops.path_of if crops else None
    grouped = (_by_picture(images.tolist(), path_of) for images in batches)
    for groups in read_ahead(read, grouped, workers, busy):
        found = dict(each for group in groups for each in group)
        yield torch.stack([found[place] for place in range(len(found))])


def _by_picture(
    indices: list[int], path_of: Callable[[int], Path] | None
) -> list[list[tuple[int, int]]]:
    """Places in a batch and what stands there; what is cut out of one picture together."""
    groups: dict[Path | int, list[tuple[int, int]]] = defaultdict(list)
    for place, index in enumerate(indices):
        groups[path_of(index) if path_of else place].append((place, index))
    return list(groups.values())
