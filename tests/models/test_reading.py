"""Reading ahead: all items in order, a batch early, and errors where they belong."""

import threading
import time

import pytest
import torch
from PIL import Image

from dclip_kit.config import RegionSettings
from dclip_kit.data import open_picture
from dclip_kit.features.extract import RegionCrops, extract_features
from dclip_kit.models import reading
from dclip_kit.models.encode import encode_images
from dclip_kit.models.reading import (
    read_ahead,
    read_batches,
    read_pixels,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("busy", [CPU, GPU])
@pytest.mark.parametrize("sizes", [(), (1,), (3, 1, 4), (2, 0, 2)])
def test_all_items_come_in_their_batches_and_order(sizes, busy) -> None:
    batches = [[10 * number + item for item in range(size)] for number, size in enumerate(sizes)]
    read = list(read_ahead(lambda item: -item, batches, busy))
    assert read == [[-item for item in batch] for batch in batches]


def test_the_next_batch_is_read_meanwhile_and_none_after_it() -> None:
    read, second = [], threading.Event()

    def one(item: int) -> int:
        read.append(item)
        if item == 1:
            second.set()
        return item

    ahead = read_ahead(one, ([number] for number in range(9)), GPU)
    assert next(ahead) == [0]
    assert second.wait(timeout=60)  # though nobody has asked for it
    assert next(ahead) == [1]
    assert next(ahead) == [2]
    assert max(read) <= 3  # two batches in memory
    ahead.close()


def test_on_busy_processors_a_batch_is_read_when_it_is_asked_for() -> None:
    read: list[int] = []
    batches = ([number, -number] for number in range(4))
    ahead = read_ahead(lambda item: read.append(item) or item, batches, CPU)
    for number in range(4):
        assert next(ahead) == [number, -number]
        assert len(read) == 2 * number + 2
    assert next(ahead, None) is None


@pytest.mark.parametrize("busy", [CPU, GPU])
def test_an_error_comes_with_its_batch(busy) -> None:
    ahead = read_ahead(lambda item: 1 / item, [[2, 4], [1, 0], [8]], busy)
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


def test_pictures_are_laid_out_as_models_read_them_fast(clip, pictures) -> None:
    pixels = read_pixels(clip, pictures)
    assert len(pixels) == len(pictures)
    assert pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("most", [1, 5 * 2000, 100_000])
def test_of_big_pictures_threads_open_one_at_a_time(most, clip, captioned, monkeypatch) -> None:
    """Big is more than a thread's share of what may be open."""
    held, peak, together = [], 0, 0

    def watched(path, side) -> Image.Image:
        nonlocal peak, together
        picture = open_picture(path)
        held.append(picture.width * picture.height)
        peak, together = max(peak, sum(held)), max(together, sum(x > most / 5 for x in held))
        time.sleep(0.01)  # others begin meanwhile, if they may
        held.remove(picture.width * picture.height)
        return picture

    monkeypatch.setattr(reading, "count_workers", lambda: 5)
    monkeypatch.setattr(reading, "most_pixels", lambda: most)
    monkeypatch.setattr(reading, "open_picture", watched)
    paths = captioned.paths * 3
    found = read_pixels(clip, paths)
    assert torch.equal(found, torch.stack([clip.to_pixels(open_picture(path)) for path in paths]))
    assert together <= 1 and peak <= most + 64 * 50
    assert most < 100_000 or peak > 64 * 50  # small ones are opened together


def test_batches_of_regions_are_the_same_in_any_order(clip, detector, captioned) -> None:
    features = extract_features(clip, detector, captioned, RegionSettings(whole_image=True))
    regions = RegionCrops(captioned.paths, features, RegionSettings())
    expected = read_pixels(clip, list(regions))
    batches = [torch.tensor([5, 0, 1, 5]), torch.arange(len(regions))]
    for batch, read in zip(batches, read_batches(clip, regions, batches), strict=True):
        assert torch.equal(read, expected[batch])


def test_big_jpegs_are_read_reduced_and_small_ones_as_they_are(clip, tmp_path, monkeypatch) -> None:
    paths = [tmp_path / "big.jpg", tmp_path / "small.jpg"]
    for path, side in zip(paths, (2048, 200), strict=True):
        Image.effect_mandelbrot((side, side), (-2, -1.5, 1, 1.5), 100).convert("RGB").save(path)
    whole = torch.stack([clip.to_pixels(open_picture(path)) for path in paths])
    found = read_pixels(clip, paths)
    assert torch.equal(found[1], whole[1]) and not torch.equal(found[0], whole[0])
    assert (found[0].float() - whole[0].float()).abs().mean() < 3
    given = torch.stack([clip.preprocess(open_picture(path)) for path in paths])
    expected = clip.model.encode_image(given, normalize=True)
    assert (encode_images(clip, paths) * expected).sum(1).min() > 0.999


@pytest.mark.parametrize(("threads", "millions"), [(2, 32), (4, 64), (16, 64)])
def test_opened_pictures_are_bounded_whatever_the_processors(
    threads, millions, monkeypatch
) -> None:
    monkeypatch.setattr(reading, "count_workers", lambda: threads)
    assert reading.most_pixels() == millions * 1_000_000
