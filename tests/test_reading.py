"""Reading ahead: all items in order, a batch early, and errors where they belong."""

import threading

import pytest
import torch

from dclip_kit.reading import (
    choose_pictures,
    join_batches,
    read_ahead,
    read_batches,
    read_pixels,
)


@pytest.mark.parametrize("workers", [None, 1, 5])
@pytest.mark.parametrize("sizes", [(), (1,), (3, 1, 4), (2, 0, 2)])
def test_all_items_come_in_their_batches_and_order(sizes, workers) -> None:
    batches = [[10 * number + item for item in range(size)] for number, size in enumerate(sizes)]
    read = list(read_ahead(lambda item: -item, batches, workers))
    assert read == [[-item for item in batch] for batch in batches]


def test_the_next_batch_is_read_meanwhile_and_none_after_it() -> None:
    read, second = [], threading.Event()

    def one(item: int) -> int:
        read.append(item)
        if item == 1:
            second.set()
        return item

    ahead = read_ahead(one, ([number] for number in range(9)), workers=1)
    assert next(ahead) == [0]
    assert second.wait(timeout=60)  # though nobody has asked for it
    assert next(ahead) == [1]
    assert next(ahead) == [2]
    assert max(read) <= 3  # two batches in memory
    ahead.close()


def test_on_busy_processors_a_batch_is_read_when_it_is_asked_for() -> None:
    read: list[int] = []
    batches = ([number, -number] for number in range(4))
    ahead = read_ahead(lambda item: read.append(item) or item, batches, 1, torch.device("cpu"))
    for number in range(4):
        assert next(ahead) == [number, -number]
        assert len(read) == 2 * number + 2
    assert next(ahead, None) is None


@pytest.mark.parametrize("busy", [None, torch.device("cpu"), torch.device("cuda")])
def test_an_error_comes_with_its_batch(busy) -> None:
    ahead = read_ahead(lambda item: 1 / item, [[2, 4], [1, 0], [8]], busy=busy)
    assert next(ahead) == [0.5, 0.25]
    with pytest.raises(ZeroDivisionError):
        next(ahead)


def test_batches_are_the_same_of_paths_pictures_and_bytes(clip, pictures, captioned) -> None:
    pixels = torch.stack([clip.to_pixels(picture) for picture in pictures])
    batches = [torch.tensor(chosen) for chosen in ([4, 0], [5, 5, 1])]
    for given in (captioned.paths, pictures, pixels):
        read = list(read_batches(clip, given, batches))
        for chosen, batch in zip(batches, read, strict=True):
            assert torch.equal(batch, pixels[chosen])
        assert len(choose_pictures(given, batches[1])) == 3
    assert torch.equal(choose_pictures(pixels, batches[0]), pixels[[4, 0]])


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 5)])
@pytest.mark.parametrize("sizes", [(2,), (2, 1, 3)])
def test_joined_batches_are_the_rows_one_after_another(sizes, shape) -> None:
    batches = [torch.randn(size, *shape).half() for size in sizes]
    joined = join_batches(iter(batches), sum(sizes))
    assert joined.dtype == torch.float16 and torch.equal(joined, torch.cat(batches))
    with pytest.raises(ValueError, match="Expected 9 rows"):
        join_batches(batches, 9)


def test_joined_pictures_are_laid_out_as_they_were_read(clip, pictures) -> None:
    pixels = read_pixels(clip, pictures)
    assert len(pixels) == len(pictures)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
