"""Detecting: where boxes are, what decides nothing, what is refused, and ultralytics contained."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from assets.make.train_detector import save_detector
from dclip_kit.models import detector as detectors
from dclip_kit.models import encode
from dclip_kit.models.detector import (
    Detections,
    Detector,
    contained_ultralytics,
    find_photographs,
    load_detector,
    locate_weights,
    read_weights,
)

NAMES = ("animal", "vehicle", "fruit")
SIZE = 64


def tiny_model(width: float = 0.125) -> Any:
    """An untrained YOLOv8 of our own width whose boxes and scores depend on the picture."""
    with contained_ultralytics():
        from ultralytics.nn.tasks import DetectionModel, yaml_model_load

        architecture = yaml_model_load("yolov8n.yaml")
        architecture |= {"nc": len(NAMES), "scale": "t", "scales": {"z": [1, 1, 64]}}
        architecture["scales"]["t"] = [0.33, width, 256]
        torch.manual_seed(1)
        model = DetectionModel(architecture, verbose=False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean of what passes
    with torch.no_grad():
        model.train()(torch.rand(16, 3, SIZE, SIZE))
        for branch in model.model[-1].cv3:
            branch[-1].bias.fill_(-2.0)
            branch[-1].weight.mul_(60.0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.03
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("detector")
    save_detector(tiny_model(), path, NAMES, SIZE)
    return path


@pytest.fixture(scope="module")
def detector(folder) -> Detector:
    return load_detector(folder)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Blocks of random colours, so that a resized picture stays much the same."""
    generator = torch.Generator().manual_seed(seed)
    shape = (height // 8 + 1, width // 8 + 1, 3)
    blocks = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return Image.fromarray(blocks.numpy()).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    sizes = [(64, 64), (64, 40), (30, 90), (200, 150), (7, 5), (64, 64), (300, 31)]
    return [noise(*size, seed) for seed, size in enumerate(sizes)]


def assert_same(one: Detections, other: Detections) -> None:
    assert len(one.regions) == len(other.regions)
    for a, b in zip(one.regions, other.regions, strict=True):
        assert (a.label, a.image_size) == (b.label, b.image_size)
        torch.testing.assert_close(a.xyxy, b.xyxy, atol=1e-2, rtol=1e-4)
        torch.testing.assert_close(a.confidence, b.confidence, atol=1e-4, rtol=1e-4)


# Loading


def test_a_folder_is_loaded_with_its_own_names_and_size(detector, folder) -> None:
    assert (detector.names, detector.image_size) == (NAMES, SIZE)
    assert (detector.confidence, detector.max_regions) == (0.25, 10)
    assert detector.source == folder


def test_pocket_is_the_embedded_one(folder, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(detectors, "asset_path", lambda *parts: asked.append(parts) or folder)
    assert load_detector().source == folder
    assert asked == [("pocket_yolo",)]


def test_a_checkpoint_of_ultralytics_detects_as_the_folder_does(tmp_path, pictures) -> None:
    with contained_ultralytics():
        from ultralytics import YOLO

        yolo = YOLO("yolov8n.yaml")
    yolo.model = tiny_model().half().float()  # ultralytics rounds biases and normalisation too
    yolo.model.names = dict(enumerate(NAMES))
    yolo.ckpt = {"train_args": {"imgsz": SIZE}}
    yolo.save(tmp_path / "mine.pt")
    save_detector(yolo, tmp_path / "folder", NAMES, SIZE)
    from_pt, from_folder = (load_detector(tmp_path / name) for name in ("mine.pt", "folder"))
    assert (from_pt.names, from_pt.image_size) == (NAMES, SIZE)
    found = from_pt.detect(pictures, progress=False)
    assert_same(found, from_folder.detect(pictures, progress=False))
    assert found.without_detections < len(pictures)


def test_an_untouched_architecture_of_ultralytics_loads_by_path(tmp_path) -> None:
    with contained_ultralytics():
        from ultralytics import YOLO

        YOLO("yolov8n.yaml").save(tmp_path / "mine.pt")
    loaded = load_detector(tmp_path / "mine.pt", image_size=64)
    assert len(loaded.names) == 80
    found = loaded.detect([noise(50, 40)], progress=False)
    assert found.without_detections == 1  # an untrained one is sure of nothing


def test_a_missing_name_offline_is_refused_quickly() -> None:
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"yolov8x.pt.*YOLO_OFFLINE forbids"):
        load_detector("yolov8x.pt")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"confidence": -0.1},
        {"confidence": 1.5},
        {"confidence": float("nan")},
        {"max_regions": 0},
        {"image_size": 100},
        {"image_size": -32},
        {"image_size": 0},
    ],
)
def test_arguments_out_of_range_are_refused(folder, wrong) -> None:
    with pytest.raises(ValueError, match=r"Expected a confidence from 0 to 1.* multiple of 32"):
        load_detector(folder, **wrong)


# What is found


def by_hand(detector: Detector, picture: Image.Image) -> tuple[list[float], float, str]:
    """The surest box of a picture that fits the model's square without resizing."""
    left, top = (SIZE - picture.width) // 2, (SIZE - picture.height) // 2
    square = Image.new("RGB", (SIZE, SIZE), (114, 114, 114))
    square.paste(picture, (left, top))
    pixels = torch.tensor(np.asarray(square))[None]
    with torch.no_grad():
        (output,) = detector.predictor.model.model(pixels.permute(0, 3, 1, 2) / 255)[0]
    x, y, width, height = output[:4, output[4:].amax(0).argmax()].tolist()
    box = [x - width / 2 - left, y - height / 2 - top, x + width / 2 - left, y + height / 2 - top]
    limits = [picture.width, picture.height] * 2
    confidence, number = output[4:, output[4:].amax(0).argmax()].max(0)
    clipped = [min(max(value, 0), limit) for value, limit in zip(box, limits, strict=True)]
    return clipped, confidence.item(), NAMES[number]


@pytest.mark.parametrize("size", [(64, 64), (64, 40), (24, 64)])
def test_the_surest_box_is_where_the_model_says(detector, size) -> None:
    picture = noise(*size, seed=3)
    (regions,) = detector.detect([picture], progress=False).regions
    box, confidence, label = by_hand(detector, picture)
    assert not regions.is_whole_image
    assert regions.xyxy[0].tolist() == pytest.approx(box, abs=1e-2)
    assert regions.confidence[0].item() == pytest.approx(confidence, abs=1e-4)
    assert regions.label[0] == label
    assert regions.image_size == size


@pytest.mark.parametrize("factor", [2, 4])
def test_boxes_are_in_the_pixels_of_the_picture_itself(detector, factor) -> None:
    """A picture enlarged without smoothing is the same one to the model, its boxes larger."""
    small = noise(64, 40, seed=2)
    large = small.resize((64 * factor, 40 * factor), Image.Resampling.NEAREST)
    found = detector.detect([small, large], progress=False)
    assert len(found.regions[0]) == len(found.regions[1]) > 1
    expected = found.regions[0].xyxy * factor
    torch.testing.assert_close(found.regions[1].xyxy, expected, atol=0.02 * factor, rtol=1e-3)


def test_more_regions_than_ultralytics_own_limit_are_found(folder) -> None:
    detector = load_detector(folder, confidence=1e-6, max_regions=1000, image_size=640)
    found = detector.detect([noise(640, 640, seed=1)], progress=False)
    assert len(found.regions[0]) > 300


def test_regions_are_sorted_limited_and_sure_enough(folder, pictures) -> None:
    every = load_detector(folder, confidence=0.05, max_regions=100).detect(pictures, progress=False)
    few = load_detector(folder, confidence=0.05, max_regions=3).detect(pictures, progress=False)
    sure = load_detector(folder, confidence=0.6, max_regions=100).detect(pictures, progress=False)
    assert max(len(regions) for regions in every.regions) > 10
    for all_of_it, first, best in zip(every.regions, few.regions, sure.regions, strict=True):
        confidence = all_of_it.confidence
        assert torch.equal(confidence, confidence.sort(descending=True).values)
        assert torch.equal(first.xyxy, all_of_it.xyxy[:3])
        assert first.label == all_of_it.label[:3]
        if not best.is_whole_image:
            assert (best.confidence > 0.6).all()
            assert len(best) == (confidence > 0.6).sum()


def test_pictures_without_detections_are_the_whole_image_and_counted(folder, pictures) -> None:
    found = load_detector(folder, confidence=1.0).detect(pictures, progress=False)
    assert found.without_detections == len(pictures)
    assert [regions.xyxy.tolist() for regions in found.regions] == [
        [[0, 0, *picture.size]] for picture in pictures
    ]


# What decides nothing


def test_big_pictures_are_detected_few_at_a_time(detector, pictures, monkeypatch) -> None:
    """Of so many pixels together; one that has more goes alone. What is found stays the same."""
    expected = detector.detect(pictures, progress=False)
    sizes, detect = [], Detector._detect_batch

    def watched(self, given):
        sizes.append([each.shape[0] * each.shape[1] for each in given])
        return detect(self, given)

    monkeypatch.setattr(Detector, "_detect_batch", watched)
    most = max(picture.width * picture.height for picture in pictures) + 1
    monkeypatch.setattr(encode, "MOST_PIXELS", most)
    found = detector.detect(pictures, progress=False)
    assert len(sizes) > 1 and all(sum(each) <= most for each in sizes)
    assert_same(found, expected)
    monkeypatch.setattr(encode, "MOST_PIXELS", 1)
    sizes.clear()
    detector.detect(pictures, progress=False)
    assert [len(each) for each in sizes if each] == [1] * len(pictures)


def test_no_picture_is_kept_after_it_was_detected(detector, pictures) -> None:
    detector.detect(pictures[:1], progress=False)
    kept = vars(detector.predictor)
    assert [kept[name] for name in ("dataset", "batch", "results")] == [None] * 3


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_batches_decide_nothing(detector, pictures, batch_size) -> None:
    assert_same(
        detector.detect(pictures, batch_size=batch_size, progress=False),
        detector.detect(pictures, progress=False),
    )


def test_equal_shapes_are_letterboxed_like_unequal_ones(detector) -> None:
    """Ultralytics' default letterboxes a batch of one shape to a rectangle of its own."""
    wide = [noise(90, 30, seed) for seed in range(3)]
    alone = detector.detect(wide, progress=False)
    mixed = detector.detect([*wide, noise(30, 90)], progress=False)
    assert_same(alone, Detections(mixed.regions[:3], 0))


def test_detecting_is_repeatable(folder, detector, pictures) -> None:
    first = detector.detect(pictures, progress=False)
    for again in (detector, load_detector(folder)):
        for a, b in zip(first.regions, again.detect(pictures, progress=False).regions, strict=True):
            assert torch.equal(a.xyxy, b.xyxy)
            assert torch.equal(a.confidence, b.confidence)


def test_paths_and_pictures_are_the_same(detector, pictures, tmp_path) -> None:
    for index, picture in enumerate(pictures):
        picture.save(tmp_path / f"{index}.png")
    paths = [tmp_path / f"{index}.png" for index in range(len(pictures))]
    expected = detector.detect(pictures, progress=False)
    assert_same(detector.detect(paths, progress=False), expected)
    assert_same(detector.detect([str(path) for path in paths], progress=False), expected)


def test_the_mode_of_a_picture_decides_nothing(detector) -> None:
    grey = noise(64, 64).convert("L")
    found = detector.detect([grey, grey.convert("RGB"), grey.convert("RGBA")], progress=False)
    for other in found.regions[1:]:
        torch.testing.assert_close(other.xyxy, found.regions[0].xyxy)


def test_regions_can_be_trained_on(detector, pictures) -> None:
    for regions in detector.detect(pictures, progress=False).regions:
        assert not (regions.xyxy.is_inference() or regions.confidence.is_inference())


def test_suppression_out_of_time_loses_no_box(detector, pictures, monkeypatch) -> None:
    """Ultralytics leaves the rest of a batch without boxes when the machine stalls."""
    import torchvision.ops

    expected = detector.detect(pictures, progress=False)
    suppress, calls = torchvision.ops.nms, []

    def stall(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 1:
            time.sleep(2.1 + 0.05 * len(pictures))
        return suppress(*arguments)

    monkeypatch.setattr(torchvision.ops, "nms", stall)
    found = detector.detect(pictures, progress=False)
    assert len(calls) > 1
    assert_same(found, expected)


# Bad input


@pytest.fixture
def bad_files(tmp_path) -> dict[str, Path]:
    whole = tmp_path / "whole.png"
    noise(64, 64).save(whole)
    files = {name: tmp_path / f"{name}.png" for name in ("missing", "text", "empty", "truncated")}
    files["text"].write_text("not a picture")
    files["empty"].touch()
    files["truncated"].write_bytes(whole.read_bytes()[:150])
    files["deep"] = tmp_path / "deep.png"
    Image.new("I;16", (8, 8), 3000).save(files["deep"])
    files["folder"] = tmp_path
    return files


@pytest.mark.parametrize("name", ["missing", "text", "empty", "truncated", "deep", "folder"])
def test_an_unreadable_picture_is_named(detector, bad_files, name) -> None:
    path = bad_files[name]
    if name == "deep":  # 16 bits: `open_picture` scales them, Pillow's own conversion clips them
        detector.detect([path], progress=False)
    else:
        with pytest.raises(ValueError, match=f"Expected a whole picture at {path}, but reading"):
            detector.detect([noise(8, 8), path], progress=False)
    if name == "deep":  # opened by somebody else, who has not looked inside
        with Image.open(path) as opened, pytest.raises(ValueError, match="got one of mode I;16"):
            detector.detect([opened], progress=False)


def test_a_path_is_read_as_a_person_sees_it(detector, tmp_path) -> None:
    upright, exif = noise(64, 40), Image.Exif()
    exif[0x0112] = 6  # a camera held upright: turn by a quarter to see it
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "turned.png", exif=exif)
    found = detector.detect([tmp_path / "turned.png"], progress=False)
    assert_same(found, detector.detect([upright], progress=False))
    with Image.open(tmp_path / "turned.png") as opened:
        assert_same(detector.detect([opened], progress=False), found)


def test_what_lies_under_transparent_parts_is_not_looked_at(detector, tmp_path) -> None:
    picture = noise(64, 40)
    picture.putalpha(Image.new("L", picture.size, 0))
    picture.save(tmp_path / "clear.png")
    found = detector.detect([tmp_path / "clear.png", picture], progress=False)
    white = detector.detect([Image.new("RGB", picture.size, "white")] * 2, progress=False)
    assert_same(found, white)


def test_unreadable_pictures_are_skipped_and_reported_on_request(detector, bad_files) -> None:
    good = [noise(64, 40, 1), noise(40, 64, 2)]
    images = [good[0], bad_files["text"], bad_files["missing"], good[1], bad_files["truncated"]]
    found = detector.detect(images, batch_size=2, progress=False, skip_unreadable=True)
    assert_same(found, detector.detect(good, progress=False))
    assert list(found.unreadable) == [1, 2, 4]
    assert "text.png" in found.unreadable[1]


def test_nothing_to_detect_finds_nothing(detector) -> None:
    assert detector.detect([]) == Detections((), 0)


def test_boxes_outside_the_picture_are_counted(detector, monkeypatch) -> None:
    """A thin picture's letterbox is mostly border; ultralytics clips boxes there to no area."""
    boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0, 0.9, 1.0], [0.0, 0.0, 0.0, 5.0, 0.8, 0.0]])
    with contained_ultralytics():
        from ultralytics.engine.results import Results

    def predict(batch: list) -> list:
        results = [Results(pixels, "", dict(enumerate(NAMES)), boxes=boxes) for pixels in batch]
        for result in results:
            result.speed["postprocess"] = 0.1
        return results

    fake = Detector(NAMES, SIZE, 0.25, 10, detector.source, predict)
    found = fake.detect([noise(8, 8)] * 3, progress=False)
    assert sum(regions.dropped for regions in found.regions) == 3
    assert [regions.label for regions in found.regions] == [("vehicle",)] * 3


def test_a_single_picture_is_no_sequence(detector, tmp_path) -> None:
    with pytest.raises(TypeError, match="sequence of pictures"):
        detector.detect(str(tmp_path))


def test_the_bar_shows_only_for_long_work(detector, pictures, capfd) -> None:
    detector.detect(pictures)
    assert capfd.readouterr() == ("", "")


# Photographs


def test_the_packaged_photographs_are_found() -> None:
    assert {"bus.jpg", "zidane.jpg"} <= {path.name for path in find_photographs()}
    assert all(Image.open(path).size > (256, 256) for path in find_photographs())


def test_without_ultralytics_there_are_no_photographs(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ultralytics.utils", None)
    with pytest.raises(ImportError, match=r"pip install 'dclip-kit\[detect\]'"):
        find_photographs()


# Reading weights


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """A detector's folder, to be damaged."""
    return shutil.copytree(folder, tmp_path / "copy")


def test_weights_cut_short_are_refused(copy) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged or cut short"):
        read_weights(copy)


def test_weights_of_another_architecture_are_refused(copy, tmp_path) -> None:
    save_detector(tiny_model(width=0.25), tmp_path / "wide", NAMES, SIZE)
    shutil.copy(tmp_path / "wide" / "model.safetensors", copy)
    with pytest.raises(ValueError, match="another architecture"):
        read_weights(copy)
    save_file({"weight": torch.ones(1)}, copy / "model.safetensors")
    with pytest.raises(ValueError, match="another architecture"):
        read_weights(copy)


@pytest.mark.parametrize("name", ["config.json", "model.yaml", "model.safetensors"])
def test_an_incomplete_folder_is_refused(copy, name) -> None:
    (copy / name).unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        read_weights(copy)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "{"),
        ("config.json", '{"names": ["animal"]}'),
        ("config.json", '{"names": ["animal"], "image_size": 64}'),  # the architecture has three
        ("model.yaml", "backbone: ["),
        ("model.yaml", "nc: 3\nbackbone: []\nhead: []"),
        ("model.yaml", "just words"),
    ],
)
def test_damaged_descriptions_are_refused(copy, name, text) -> None:
    (copy / name).write_text(text)
    with pytest.raises(ValueError, match=f"a detector's config.json, .*{copy} cannot be read"):
        read_weights(copy)


# Checkpoints of ultralytics


def test_a_checkpoint_of_ultralytics_is_read(tmp_path) -> None:
    with contained_ultralytics():
        from ultralytics import YOLO

        yolo = YOLO("yolov8n.yaml")
        yolo.save(tmp_path / "mine.pt")
    weights = read_weights(tmp_path / "mine.pt")
    assert len(weights.names) == 80
    assert load_detector(tmp_path / "mine.pt").image_size == 640
    for name, value in weights.model.state_dict().items():
        assert torch.equal(value, yolo.model.state_dict()[name].half().to(value.dtype)), name


def test_what_is_no_checkpoint_of_a_detector_is_refused(tmp_path) -> None:
    file = tmp_path / "some.pt"
    with contained_ultralytics():
        from ultralytics import YOLO

        YOLO("yolov8n-cls.yaml").save(file)
    with pytest.raises(ValueError, match="task 'classify'"):
        read_weights(file)
    whole = file.read_bytes()
    for content in (b"", b"not a pickle", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"some.pt cannot be read"):
            read_weights(file)
    torch.save({"weight": torch.ones(1)}, file)
    with pytest.raises(ValueError, match=r"some.pt cannot be read"):
        read_weights(file)
    with pytest.raises(ValueError, match=r"Expected a .pt .*other.onnx cannot be read"):
        read_weights(tmp_path / "other.onnx")


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_a_checkpoint_runs_no_code(tmp_path) -> None:
    """In a fresh process: ultralytics decides at its import how it reads."""
    torch.save({"model": Trap(tmp_path / "sprung")}, tmp_path / "trap.pt")
    read = f"read_weights(Path({str(tmp_path / 'trap.pt')!r}))"
    program = f"from dclip_kit.models.detector import *; {read}"
    done = fresh_python(program, tmp_path)
    assert "trap.pt cannot be read" in done.stderr
    assert not (tmp_path / "sprung").exists()


# Finding


def test_paths_are_found_and_the_home_is_understood(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.pt").touch()
    assert (
        locate_weights(tmp_path / "mine.pt") == locate_weights("~/mine.pt") == tmp_path / "mine.pt"
    )
    assert locate_weights(str(tmp_path)) == tmp_path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_names_are_looked_up_in_torchs_cache(cache) -> None:
    (cache / "yolov8x.pt").touch()
    assert locate_weights("yolov8x.pt") == cache / "yolov8x.pt"
    with pytest.raises(FileNotFoundError):
        locate_weights("elsewhere/yolov8x.pt")


def test_a_missing_name_is_one_sentence_at_once_where_downloads_are_switched_off(
    cache, monkeypatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked"))
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"'yolov8x.pt' .*YOLO_OFFLINE forbids") as caught:
        locate_weights("yolov8x.pt")
    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value)
    assert str(cache / "yolov8x.pt") in str(caught.value)


@pytest.mark.parametrize("name", ["yolov99x.pt", "pockets", "some/folder", "some/yolov8n.pt"])
def test_a_missing_path_is_not_looked_for_on_the_network(name, cache, monkeypatch) -> None:
    monkeypatch.delenv("YOLO_OFFLINE", raising=False)
    with contained_ultralytics():
        from ultralytics.utils import downloads
    monkeypatch.setattr(downloads, "attempt_download_asset", lambda *_: pytest.fail("asked"))
    with pytest.raises(FileNotFoundError, match=f"got '{name}' .it is not on disk"):
        locate_weights(name)


def test_published_names_are_downloaded_to_the_cache(cache, monkeypatch) -> None:
    with contained_ultralytics():
        from ultralytics.utils import downloads

    def download(file: Path) -> str:
        file.touch()
        return str(file)

    def fail(file: Path) -> str:
        raise ConnectionError("cut\noff")

    monkeypatch.setenv("YOLO_OFFLINE", "false")
    monkeypatch.setattr(downloads, "attempt_download_asset", fail)
    with pytest.raises(FileNotFoundError, match=r"download failed: cut off\)"):
        locate_weights("yolov8n.pt")
    monkeypatch.setattr(downloads, "attempt_download_asset", download)
    assert locate_weights("yolov8n.pt") == cache / "yolov8n.pt"


# Containment


def fresh_python(program: str, home: Path) -> subprocess.CompletedProcess:
    """Runs a program as somebody would who has never set a thing."""
    dropped = ("YOLO_", "ULTRALYTICS_", "OMP_", "XDG_", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    environment = kept | {"HOME": str(home), "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=home, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_process_and_the_home_stay_as_they_were(folder, tmp_path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    program = f"""
import json, os, random
import numpy as np, torch
from PIL import Image
torch.set_num_threads(3)
def state():
    numbers = [random.getstate()[1][:9], np.random.get_state()[1][:9].tolist()]
    formats = [np.get_printoptions()["linewidth"], torch.get_num_threads()]
    patched = [Image.open, torch.save, torch.load]
    return dict(os.environ), torch.get_rng_state().tolist(), numbers, formats, patched
before = state()
from dclip_kit.models.detector import load_detector
detector = load_detector({str(folder)!r})
detector.detect([Image.new("RGB", (40, 30))] * 3)
after = state()
from ultralytics.utils import SETTINGS, SETTINGS_FILE
from ultralytics.utils.events import events
print(json.dumps([before == after, SETTINGS["sync"], events.enabled, str(SETTINGS_FILE)]))
"""
    done = fresh_python(program, home)
    assert (done.returncode, done.stderr) == (0, "")
    same, sync, reports, settings = json.loads(done.stdout)  # nothing else was printed
    assert (same, sync, reports) == (True, False, False)
    assert list(home.iterdir()) == []
    assert not Path(settings).exists(), "the settings' folder outlived the process"


@pytest.mark.slow
def test_the_users_own_settings_folder_is_kept(tmp_path) -> None:
    program = f"""
import os
os.environ["YOLO_CONFIG_DIR"] = {str(tmp_path / "own")!r}
from dclip_kit.models.detector import *
with contained_ultralytics():
    from ultralytics.utils import SETTINGS_FILE
print(SETTINGS_FILE)
"""
    done = fresh_python(program, tmp_path)
    file = tmp_path / "own" / "Ultralytics" / "settings.json"
    assert done.stdout.strip() == str(file), done.stderr
    assert json.loads(file.read_text())["sync"] is True  # theirs to decide on; off in our process


def test_without_ultralytics_the_pip_line_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ultralytics.utils", None)
    with pytest.raises(ImportError, match=r"pip install 'dclip-kit\[detect\]'"):
        locate_weights("yolov8n.pt")


@pytest.mark.parametrize("name", ["no_such_boxes.json", "no_such_boxes.json+crops", "no/such.pt"])
def test_only_the_bare_name_of_a_pt_is_looked_for_elsewhere(name, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ultralytics.utils", None)
    with pytest.raises(FileNotFoundError, match=r"it is not on disk\); give a path that exists\.$"):
        locate_weights(name)


def test_the_current_gpu_stays_the_current_one(monkeypatch) -> None:
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    with contained_ultralytics():
        torch.cuda.set_device(1)
    assert chosen == [1, 2]


def test_usage_statistics_stay_off_when_somebody_else_imported_it(monkeypatch) -> None:
    with contained_ultralytics():
        from ultralytics.utils.events import events
    monkeypatch.setattr(events, "enabled", True)
    with contained_ultralytics():
        assert not events.enabled
    assert not events.enabled
