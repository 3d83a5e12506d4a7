"""Training the pocket YOLO: its batches' boxes, its schedule, its average, exact continuation."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from assets.make import train_detector as train_detector
from assets.make.train_detector import (
    Recipe,
    _WithAverage,
    build_model,
    learning_rate,
    make_batch,
    save_detector,
)
from dclip_kit.data.pocket.scenes import Scene, render_scene, sample_scene
from dclip_kit.data.pocket.sprites import KNOWN_STYLES, load_categories, load_nouns
from dclip_kit.models.detector import contained_ultralytics, read_weights
from dclip_kit.runtime.files import load_tensors

SMALL = Recipe(batch_size=5, image_size=64)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """The scenes of the first batch, sampled here."""
    return [
        sample_scene(np.random.default_rng([11, 0, i]), range(len(load_nouns())), KNOWN_STYLES)
        for i in range(5)
    ]


def test_a_batchs_boxes_and_labels_are_its_scenes(scenes) -> None:
    batch = make_batch(0, SMALL)
    things = [(owner, thing) for owner, scene in enumerate(scenes) for thing in scene.objects]
    assert batch["batch_idx"].tolist() == [owner for owner, _ in things]
    assert batch["cls"].shape == (len(things), 1) and batch["cls"].dtype == torch.float32
    names = [load_categories()[int(label)] for label in batch["cls"]]
    assert names == [load_nouns()[thing.noun].category for _, thing in things]
    x, y, width, height = batch["bboxes"].T * 256
    corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
    expected = torch.tensor([thing.xyxy for _, thing in things]).float()
    torch.testing.assert_close(corners, expected, atol=1e-3, rtol=0)


def test_a_batchs_pictures_are_its_scenes_at_the_detectors_size(scenes) -> None:
    pictures = make_batch(0, SMALL)["img"]
    assert pictures.shape == (5, 3, 64, 64)
    assert pictures.min() >= 0 and pictures.max() <= 1
    for picture, scene in zip(pictures, scenes, strict=True):
        expected = np.asarray(render_scene(scene).resize((64, 64), Image.Resampling.BILINEAR)) / 255
        assert np.abs(picture.permute(1, 2, 0).numpy() - expected).mean() < 0.05  # antialiasing


def test_step_and_seed_decide_a_batch() -> None:
    first = make_batch(0, SMALL)
    assert all(torch.equal(value, first[key]) for key, value in make_batch(0, SMALL).items())
    for other in (make_batch(1, SMALL), make_batch(0, Recipe(12, batch_size=5, image_size=64))):
        assert not torch.equal(other["img"], first["img"])


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.01),
        (9, 0.1 * (0.505 + 0.495 * 0.96029369)),  # warm, and cos(0.09 pi) down the cosine
        (50, 0.0505),
        (100, 0.001),
    ],
)
def test_the_rate_warms_up_and_falls_to_a_hundredth(step, rate) -> None:
    recipe = Recipe(steps=100, warmup_steps=10, learning_rate=0.1)
    assert learning_rate(step, recipe) == pytest.approx(rate, rel=1e-6)


def test_the_average_follows_the_weights_slowly_and_counts_at_once() -> None:
    def module(value: float, count: int) -> torch.nn.Module:
        made = torch.nn.BatchNorm1d(1)
        made.weight.data.fill_(value)
        made.num_batches_tracked.fill_(count)
        return made

    both = _WithAverage(module(1.0, 5), module(0.0, 0))
    both.update(200, 0.5)  # after 200 steps 1 - 1/e of the decay
    decay = 0.5 * (1 - np.exp(-1))
    assert both.average.weight.item() == pytest.approx(1 - decay)
    assert both.average.num_batches_tracked.item() == 5
    both.update(10**6, 0.5)
    assert both.average.weight.item() == pytest.approx(1 - decay * 0.5)
    assert both.model.weight.item() == 1.0


def test_the_model_is_a_yolov8n_for_our_categories() -> None:
    pytest.importorskip("ultralytics")
    model = build_model()
    assert model.yaml["nc"] == model.model[-1].nc == len(load_categories())
    assert 2.9e6 < sum(p.numel() for p in model.parameters()) < 3.3e6


# Saving


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("ultralytics")
    torch.manual_seed(1)
    return build_model()


@pytest.fixture
def folder(model, tmp_path: Path) -> Path:
    save_detector(model, tmp_path / "detector", load_categories(), 64)
    return tmp_path / "detector"


def test_a_saved_detector_is_read_back_in_half_precision(model, folder) -> None:
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "model.yaml",
    }
    yolo = read_weights(folder)
    assert yolo.names == dict(enumerate(load_categories())) and yolo.overrides["imgsz"] == 64
    own, read = model.state_dict(), yolo.model.state_dict()
    assert own.keys() == read.keys()
    for name, value in read.items():
        expected = own[name].half().float() if value.ndim > 1 else own[name]
        assert value.dtype == own[name].dtype and torch.equal(value, expected), name
    tensors = load_tensors(folder / "model.safetensors").values()
    half = sum(tensor.numel() for tensor in tensors if tensor.dtype == torch.float16)
    assert half > 0.95 * sum(tensor.numel() for tensor in tensors)


def test_saving_again_gives_the_same_bytes_and_leaves_other_files_alone(folder) -> None:
    (folder / "LICENSE").write_text("free")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    save_detector(read_weights(folder), folder, load_categories(), 64)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_plain_ultralytics_builds_the_saved_architecture(folder) -> None:
    architecture = yaml.safe_load((folder / "model.yaml").read_text())
    assert architecture["nc"] == len(load_categories()) and "yaml_file" not in architecture
    assert list(architecture["scales"]) == [architecture["scale"]]
    with contained_ultralytics():
        from ultralytics import YOLO

        yolo = YOLO(folder / "model.yaml")
    tensors = load_tensors(folder / "model.safetensors")
    assert {name: value.shape for name, value in yolo.model.state_dict().items()} == {
        name: value.shape for name, value in tensors.items()
    }


@pytest.mark.parametrize("fails", ["model.yaml", "model.safetensors"])
def test_saving_cut_off_half_way_is_noticed(model, folder, fails, monkeypatch) -> None:
    replace = Path.replace

    def cut(self: Path, target: Path) -> Path:
        if Path(target).name == fails:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        save_detector(model, folder, load_categories(), 64)
    with pytest.raises(ValueError, match=r"config\.json.* cannot be read"):
        read_weights(folder)


def test_what_is_no_trainable_detector_is_not_saved(model, tmp_path) -> None:
    names = load_categories()
    with pytest.raises(ValueError, match="not fused, got a Linear"):
        save_detector(torch.nn.Linear(1, 1), tmp_path, names, 64)
    with pytest.raises(ValueError, match="not fused"):
        save_detector(build_model().fuse(verbose=False), tmp_path, names, 64)
    for wrong in (names[1:], [names[1], *names[1:]]):
        with pytest.raises(ValueError, match=f"Expected {len(names)} different names"):
            save_detector(model, tmp_path, wrong, 64)
    for value in (float("nan"), 1e6):
        broken = build_model()
        next(broken.parameters()).data[0, 0, 0, 0] = value
        with pytest.raises(ValueError, match="Expected finite weights"):
            save_detector(broken, tmp_path, names, 64)
    assert list(tmp_path.iterdir()) == []


# The command


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Runs the command in a folder for some steps of two small pictures."""
    pytest.importorskip("ultralytics")
    monkeypatch.setattr(train_detector, "learning_rate", lambda *_: 1e-3)

    def run(name: str, steps: int) -> Path:
        recipe = Recipe(steps=steps, batch_size=2, image_size=64)
        monkeypatch.setattr(train_detector, "Recipe", lambda: recipe)
        monkeypatch.setattr(train_detector, "asset_path", lambda _: tmp_path / name / "sprites")
        command = ["train_detector", "--threads", "1", "--runs", str(tmp_path / name / "runs")]
        monkeypatch.setattr(sys, "argv", command)
        train_detector.main()
        return tmp_path / name / "pocket_yolo"

    return run


def test_an_interrupted_training_continues_exactly(train, capsys) -> None:
    straight = train("straight", 2)
    train("broken", 1)
    assert "Continuing" not in capsys.readouterr().out
    broken = train("broken", 2)
    assert "Continuing at step 1 of 2." in capsys.readouterr().out
    one, other = (load_tensors(folder / "model.safetensors") for folder in (straight, broken))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    config = json.loads((broken / "config.json").read_text())
    assert config == {"names": list(load_categories()), "image_size": 64}
    log = json.loads((broken / "training.json").read_text())
    assert [row[0] for row in log["loss (step, box, class, dfl)"]] == [1, 2]
    assert log["recipe"]["batch_size"] == 2 and log["threads"] == 1
