"""Making features: each in its place, whatever the batches; and whatever kills the work."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tqdm.auto import tqdm

from dclip_kit.config import PROFILES, RegionSettings
from dclip_kit.data import open_picture
from dclip_kit.features import extract as extraction
from dclip_kit.features import store as stores
from dclip_kit.features.extract import (
    RegionCrops,
    choose_detector,
    encode_pictures,
    extract_features,
    load_or_extract_features,
)
from dclip_kit.features.store import WHOLE_PICTURE, FrozenFeatures
from dclip_kit.models import encode
from dclip_kit.models.boxes import read_boxes
from dclip_kit.models.encode import encode_images, encode_texts, encode_tokens, read_pixels
from dclip_kit.models.regions import crop_regions

BOXES = {0: 1, 1: 0, 2: 2, 3: 1, 4: 0, 5: 0}  # what the fake detector finds in each picture


@pytest.mark.parametrize("whole_image", [False, True])
def test_features_are_those_of_each_picture_region_and_caption(
    whole_image, clip, detector, captioned, pictures
) -> None:
    settings = RegionSettings(margin=0.2, whole_image=whole_image)
    features = extract_features(clip, detector, captioned, settings, batch_size=4)
    assert len(features) == 6
    assert features.without_detections == 3
    assert torch.allclose(features.image, encode_images(clip, pictures), atol=1e-6)
    assert torch.equal(features.text, encode_texts(clip, captioned.texts))
    assert features.image_of_text.tolist() == [0, 0, 1, 3, 3, 4, 5, 5]

    found = detector.detect(pictures).regions
    for number, (picture, regions) in enumerate(zip(pictures, found, strict=True)):
        chosen = torch.tensor([number])
        crops, area = crop_regions(picture, regions, 0.2), regions.area.tolist()
        confidence, xyxy = regions.confidence.tolist(), regions.xyxy.tolist()
        label = [0 if BOXES[number] else WHOLE_PICTURE] * len(xyxy)
        assert len(crops) == max(1, BOXES[number])
        if whole_image and BOXES[number]:  # never twice
            crops, area, confidence = [*crops, picture], [*area, 1.0], [*confidence, 1.0]
            xyxy, label = [*xyxy, [0, 0, *picture.size]], [*label, WHOLE_PICTURE]
        own, mask = features.regions_of(chosen)
        assert mask.tolist() == [[True] * len(crops)]
        assert torch.allclose(own[0], encode_images(clip, crops), atol=1e-6)
        start = int(features.region_count[:number].sum())
        rows = slice(start, start + len(crops))
        assert features.area[rows].tolist() == pytest.approx(area)
        assert features.confidence[rows].tolist() == pytest.approx(confidence)
        assert features.xyxy[rows].tolist() == xyxy
        assert features.label[rows].tolist() == label

    tokens = encode_tokens(clip, captioned.texts)
    own, own_mask = features.tokens_of(torch.arange(8))
    assert torch.equal(own_mask.sum(1), tokens.mask.sum(1))
    for number, mask in enumerate(tokens.mask):
        ours = own[number][own_mask[number]]
        assert ours.dtype == torch.float32
        assert torch.allclose(ours, tokens.features[number][mask], atol=1e-3)  # halves


def test_features_do_not_depend_on_batches(clip, detector, captioned) -> None:
    one, all_ = (
        extract_features(clip, detector, captioned, RegionSettings(), batch_size=size)
        for size in (1, 64)
    )
    for field in fields(FrozenFeatures):
        a, b = getattr(one, field.name), getattr(all_, field.name)
        assert a.dtype == b.dtype and torch.allclose(a.float(), b.float(), atol=1e-5), field.name


def test_an_unreadable_picture_is_named(clip, detector, captioned, tmp_path) -> None:
    bad = tmp_path / "cut.png"
    bad.write_bytes(captioned.paths[3].read_bytes()[:-60])
    paths = (*captioned.paths[:5], bad)
    with pytest.raises(ValueError, match=r"cut\.png"):
        extract_features(clip, detector, replace(captioned, paths=paths), RegionSettings())


# Their regions as pictures


@pytest.mark.parametrize("whole_image", [False, True])
@pytest.mark.parametrize("square", [False, True])
def test_crops_are_what_the_features_were_encoded_from(
    square, whole_image, clip, detector, captioned
) -> None:
    settings = RegionSettings(square=square, whole_image=whole_image)
    features = extract_features(clip, detector, captioned, settings)
    crops = RegionCrops(captioned.paths, features, settings)
    assert len(crops) == len(features.region) > len(captioned)
    torch.testing.assert_close(encode_images(clip, crops), features.region)
    whole = features.label == WHOLE_PICTURE
    assert whole.any() and not whole.all()
    owners = torch.arange(len(features)).repeat_interleave(features.region_count)
    for index in whole.nonzero().flatten().tolist():
        picture = open_picture(captioned.paths[int(owners[index])])
        assert crops[index].tobytes() == picture.tobytes()


def test_a_part_of_them_is_cut_like_all(clip, detector, captioned) -> None:
    features = extract_features(clip, detector, captioned, RegionSettings())
    crops = RegionCrops(captioned.paths, features, RegionSettings())
    every = read_pixels(clip, crops)
    assert torch.equal(read_pixels(clip, [crops[3], crops[1]]), every[[3, 1]])
    assert torch.equal(clip.to_pixels(crops[-1]), every[-1])
    with pytest.raises(IndexError):
        crops[len(crops)]


@pytest.mark.parametrize("published", [{"undetected_as_zeros": True}, {"normalized_crops": False}])
def test_features_that_clip_would_not_give_are_refused(published, captioned, make_features) -> None:
    settings = replace(RegionSettings(), **published)
    with pytest.raises(ValueError, match="normalized_crops=True and undetected_as_zeros=False"):
        RegionCrops(captioned.paths, make_features(len(captioned)), settings)


# In little memory


@pytest.mark.parametrize("whole_image", [False, True])
@pytest.mark.parametrize("most", [1, 2000, 5000])
def test_opened_pictures_are_few_whatever_the_batch(
    most, whole_image, clip, detector, captioned, monkeypatch
) -> None:
    """Of at most so many pixels together; one that has more is opened alone."""
    settings = RegionSettings(whole_image=whole_image)
    many = captioned.select([*range(6)] * 2)
    expected = extract_features(clip, detector, many, settings)
    monkeypatch.setattr(encode, "MOST_PIXELS", most)
    held: list[int] = []
    peak = 0

    def watched(path: Path) -> Image.Image:
        nonlocal peak
        picture = open_picture(path)
        held.append(picture.width * picture.height)
        weakref.finalize(picture, held.remove, held[-1])
        peak = max(peak, sum(held))
        return picture

    monkeypatch.setattr(extraction, "open_picture", watched)
    found = extract_features(clip, detector, many, settings)
    assert peak <= max(most, 90 * 31, 64 * 50), f"{peak} pixels at a time"
    for field in fields(FrozenFeatures):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        assert a.dtype == b.dtype and torch.allclose(a.float(), b.float(), atol=1e-5), field.name


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_big_photographs_take_little_memory(data, tmp_path) -> None:
    """Eight of 24 million pixels, of 96 MB each when they are open, with a real detector."""
    scene = Image.linear_gradient("L").resize((6000, 4000)).convert("RGB")
    for number, path in enumerate(data.train.paths[:6]):  # things that the detector finds
        thing = open_picture(path).resize((1500, 1500))
        scene.paste(thing, (300 + 1900 * (number % 3), 300 + 1900 * (number // 3)))
    for number in range(8):
        scene.save(tmp_path / f"{number}.jpg", quality=70)
        (tmp_path / f"{number}.txt").write_text("a scene")
    code = """
import sys
from dclip_kit.config import RegionSettings
from dclip_kit.data import read_captioned
from dclip_kit.features.extract import extract_features
from dclip_kit.models.clip import load_clip
from dclip_kit.models.detector import load_detector
from dclip_kit.runtime.machine import peak_memory_mb
clip, detector = load_clip(), load_detector()
data = read_captioned(sys.argv[1]).dataset
before = peak_memory_mb()
features = extract_features(clip, detector, data, RegionSettings())
print(before, peak_memory_mb(), len(features.region), features.without_detections)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, peak, regions, undetected = map(float, done.stdout.split())
    assert regions > 8 and undetected == 0
    assert peak - before < 600


# Into a store


def read_folder(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def work(clip, detector, captioned, tmp_path, monkeypatch) -> Callable[[Path], FrozenFeatures]:
    """Fills a store of twelve shards, and writes into a log, beside it, when it begins one."""
    monkeypatch.setattr(stores, "SHARD", 2)
    many = captioned.select([*range(6)] * 4)  # one shard has a single caption, none has none
    detect = detector.detect

    def fill(folder: Path) -> FrozenFeatures:
        def logging(*given, **options):
            with folder.with_suffix(".log").open("a") as log:
                log.write("begun\n")
            return detect(*given, **options)

        object.__setattr__(detector, "detect", logging)
        return extract_features(clip, detector, many, RegionSettings(), 2, folder)

    return fill


def begun(folder: Path) -> int:
    return len(folder.with_suffix(".log").read_text().splitlines())


def test_a_store_holds_what_memory_would_and_is_made_once(
    work, clip, detector, captioned, tmp_path
) -> None:
    made = work(tmp_path / "one")
    assert read_folder(tmp_path / "one").keys() == {"features.safetensors", "source.json"}
    assert begun(tmp_path / "one") == 12
    many = captioned.select([*range(6)] * 4)
    kept = extract_features(clip, detector, many, RegionSettings(), 2)
    opened, loaded = work(tmp_path / "one"), FrozenFeatures.load(tmp_path / "one")
    assert begun(tmp_path / "one") == 12 + 12  # the latter in memory
    for field in fields(FrozenFeatures):
        value = getattr(made, field.name)
        for other in (opened, loaded):
            assert torch.equal(getattr(other, field.name), value), field.name
        # In memory, captions come in other batches.
        assert getattr(kept, field.name).dtype == value.dtype
        assert torch.allclose(getattr(kept, field.name), value, atol=1e-3), field.name  # halves


def test_a_store_with_crops_is_not_one_without(clip, detector, captioned, tmp_path) -> None:
    crops = replace(detector, crops=True)
    extract_features(clip, crops, captioned, RegionSettings(), folder=tmp_path / "crops")
    extract_features(clip, detector, captioned, RegionSettings(), folder=tmp_path / "none")
    for other, name in ((detector, "crops"), (crops, "none")):
        with pytest.raises(ValueError, match=r"detector\.crops"):
            extract_features(clip, other, captioned, RegionSettings(), folder=tmp_path / name)


def test_pictures_without_captions_may_fill_a_shard(
    clip, detector, captioned, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(stores, "SHARD", 1)
    made = extract_features(clip, detector, captioned, RegionSettings(), folder=tmp_path)
    assert made.image_of_text.tolist() == captioned.image_of_text.tolist()


@pytest.mark.parametrize("kept", [False, True])
def test_pictures_may_have_no_caption_at_all(
    kept, clip, detector, captioned, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(stores, "SHARD", 4)
    none = replace(captioned, captions=((),) * 6)
    place = {"folder": tmp_path / "features"} if kept else {}
    made = extract_features(clip, detector, none, RegionSettings(), **place)
    whole = extract_features(clip, detector, captioned, RegionSettings())
    for name in ("image", "region", "region_count", "xyxy", "confidence", "label"):
        torch.testing.assert_close(getattr(made, name), getattr(whole, name))
    assert made.text.shape == made.token.shape == (0, 32)
    assert len(made.token_count) == len(made.image_of_text) == 0


def test_features_of_something_else_are_refused_and_stay(
    work, clip, detector, captioned, tmp_path
) -> None:
    work(tmp_path / "one")
    before = read_folder(tmp_path / "one")
    settings = RegionSettings(margin=0.5, square=False)
    with pytest.raises(ValueError, match=r"regions\.margin \(0\.1, now 0\.5\), regions\.square"):
        many = captioned.select([*range(6)] * 4)
        extract_features(clip, detector, many, settings, folder=tmp_path / "one")
    assert read_folder(tmp_path / "one") == before


needs_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="starting afresh takes seconds"
)


@needs_fork
def test_of_two_runs_at_once_one_makes_it_and_the_other_waits(work, tmp_path, capfd) -> None:
    context = multiprocessing.get_context("fork")
    runs = [context.Process(target=work, args=(tmp_path / "one",)) for _ in range(2)]
    runs[0].start()
    while not (tmp_path / "one.log").exists():  # until the first has begun a shard
        time.sleep(0.001)
    runs[1].start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0]
    assert begun(tmp_path / "one") == 12
    assert "waiting for it" in capfd.readouterr().out


# Killed


def live(work: Callable[[Path], object], folder: Path, seconds: float = 60) -> bool:
    """Works in a process of its own, which is killed after so many; whether it came to its end."""

    def alone() -> None:
        # Forked processes share the lock of tqdm's bars, and one that dies with it keeps it.
        tqdm.set_lock(threading.RLock())
        work(folder)

    process = multiprocessing.get_context("fork").Process(target=alone)
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


@pytest.fixture
def undisturbed(work, tmp_path) -> tuple[dict[str, bytes], float]:
    """A store that was made in one life, and how long that took."""
    began = time.monotonic()
    assert live(work, tmp_path / "undisturbed")
    return read_folder(tmp_path / "undisturbed"), time.monotonic() - began


@needs_fork
def test_killed_at_random_moments_it_loses_a_shard_at_most(work, undisturbed, tmp_path) -> None:
    expected, seconds = undisturbed
    chance, killed = random.Random(), 0
    for number in range(4):
        folder, lives = tmp_path / str(number), 1
        # Ever longer lives: the machine may be slower now than it was.
        while not live(work, folder, chance.uniform(0, seconds) * 1.1 ** (lives - 1)):
            lives += 1
        killed += lives - 1
        assert read_folder(folder) == expected
        assert begun(folder) <= 12 + lives - 1, f"{begun(folder)} shards begun in {lives} lives"
    assert killed >= 1


@needs_fork
def test_killed_between_any_two_steps_on_disk_it_ends_with_the_same_files(
    work, undisturbed, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(stores, "SHARD", 12)  # two shards: fewer steps
    assert live(work, tmp_path / "whole")
    expected, steps = read_folder(tmp_path / "whole"), 0

    def dying(folder: Path) -> None:
        """Dies before its so-manieth step on disk."""
        left = steps

        def counted(function: Callable) -> Callable:
            def step(path: Path, *given, **options):
                nonlocal left
                left -= path.exists()  # else it changes nothing
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(path, *given, **options)

            return step

        for name in ("replace", "unlink"):
            setattr(Path, name, counted(getattr(Path, name)))  # of this process alone
        work(folder)

    while not live(dying, tmp_path / str(steps)):
        assert live(work, tmp_path / str(steps))
        assert read_folder(tmp_path / str(steps)) == expected, f"killed before step {steps}"
        steps += 1
    assert steps == 6  # a record, two shards and a file are renamed, and two shards removed


# A folder of several stores


POCKET = PROFILES["pocket"].regions


def test_features_are_extracted_once_for_what_they_are_made_from(
    clip, data, detector, tmp_path, monkeypatch, capsys
) -> None:
    loaded = [detector]
    monkeypatch.setattr(extraction, "load_detector", lambda *_, **__: loaded.pop())
    few = data.val.select(range(3))
    first = load_or_extract_features(clip, few, POCKET, tmp_path)
    assert capsys.readouterr().out == ""
    again = load_or_extract_features(clip, few, POCKET, tmp_path)
    (kept,) = tmp_path.iterdir()
    assert capsys.readouterr().out == f"Loaded the features in {kept}.\n"
    assert kept.name.startswith("features-val-")
    assert torch.equal(first.region, again.region) and torch.equal(first.token, again.token)
    changed = [
        (replace(POCKET, margin=0.3), few),
        (POCKET, data.val.select(range(2))),
        (POCKET, replace(few, split="x")),
    ]
    for number, (settings, pictures) in enumerate(changed, start=2):
        loaded.append(detector)
        load_or_extract_features(clip, pictures, settings, tmp_path)
        assert not loaded and len(list(tmp_path.iterdir())) == number
    assert capsys.readouterr().out == ""


def test_without_a_folder_features_are_in_memory_only(
    clip, data, fake_detector, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = data.val.select(range(3))
    kept = load_or_extract_features(clip, few, POCKET, tmp_path / "kept")
    for _ in range(2):
        features = load_or_extract_features(clip, few, POCKET, None)
        torch.testing.assert_close(features.region, kept.region)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_the_detector_is_that_of_the_settings_and_where_clip_is(
    clip, detector, monkeypatch
) -> None:
    asked = []

    def load(*given, **more):
        asked.append((given, more))
        return detector

    monkeypatch.setattr(extraction, "load_detector", load)
    settings = RegionSettings(detector="mine.pt", confidence=0.4, max_regions=3)
    assert choose_detector(settings, clip) is detector
    expected = {"confidence": 0.4, "max_regions": 3, "device": torch.device("cpu")}
    assert asked == [(("mine.pt",), expected)]


def test_encoded_pictures_are_read_if_they_are_few(
    clip, data, fake_detector, tmp_path, monkeypatch
) -> None:
    few = data.val.select(range(3))
    found = encode_pictures(clip, few, POCKET, tmp_path)
    assert found.dataset is few and torch.equal(found.pictures, read_pixels(clip, few.paths))
    features = load_or_extract_features(clip, few, POCKET, tmp_path)
    assert torch.equal(found.features.region, features.region)
    monkeypatch.setattr(encode, "KEPT_BYTES", 3 * 32 * 32 * 3 - 1)
    assert encode_pictures(clip, few, POCKET, tmp_path).pictures == few.paths


def test_a_text_tower_without_tokens_has_captions_alone(
    clip, detector, captioned, monkeypatch
) -> None:
    """Such as SigLIP's, whose last token stands for the whole."""
    monkeypatch.setattr(clip.model, "text_pool_type", "last")
    made = extract_features(clip, detector, captioned, RegionSettings())
    torch.testing.assert_close(made.text, encode_texts(clip, captioned.texts))
    assert made.token.shape == (0, clip.embed_dim) and not made.token_count.any()


def test_boxes_of_other_pictures_are_refused_before_hours_of_training(
    clip, detector, captioned, tmp_path
) -> None:
    entries = [{"path": "elsewhere.png", "width": 9, "height": 9, "regions": []}]
    (tmp_path / "boxes.json").write_text(json.dumps({"detector": "x", "pictures": entries}))
    stored = replace(detector, boxes=read_boxes(tmp_path / "boxes.json"))
    for split, refused in (("train", True), ("uncaptioned", True), ("test", False)):
        data = replace(captioned, split=split)
        if refused:
            with pytest.raises(ValueError, match=r"found none of 6, such as"):
                extract_features(clip, stored, data, RegionSettings())
        else:
            made = extract_features(clip, stored, data, RegionSettings())
            assert len(made) == 6
