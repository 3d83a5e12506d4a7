"""The pocket YOLO under ultralytics' own `val`: what it is given, and what it is told."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from assets.make import validate_detector as validate_detector
from assets.make.validate_detector import validate, write_yolo_dataset
from dclip_kit.data.pocket import world as data
from dclip_kit.data.pocket.sprites import load_categories, load_nouns
from dclip_kit.runtime.files import asset_path

yaml = pytest.importorskip("yaml")
SIZE = 24


@pytest.fixture(autouse=True)
def _few_pictures(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DCLIP_CACHE", "cache")  # relative: links must not depend on the folder
    monkeypatch.setattr(data, "SCENE_SPLITS", {"train": 1, "val": 1, "test": SIZE})


def test_ultralytics_is_given_the_scenes_boxes_and_labels(tmp_path) -> None:
    described = yaml.safe_load(write_yolo_dataset("test", tmp_path / "yolo").read_text())
    assert described["names"] == dict(enumerate(load_categories()))
    images = Path(described["path"], described["val"])
    assert len(list(images.iterdir())) == SIZE
    for index in range(SIZE):
        scene = data.make_scene("test", index)[0]
        with Image.open(images / f"{index:06d}.jpg") as picture:
            assert picture.size == (256, 256)
        lines = (tmp_path / "yolo/labels/test" / f"{index:06d}.txt").read_text().splitlines()
        for line, thing in zip(lines, scene.objects, strict=True):
            label, *box = map(float, line.split())
            middle, size = np.array(box[:2]) * 256, np.array(box[2:]) * 256
            corners = [*(middle - size / 2), *(middle + size / 2)]
            np.testing.assert_allclose(corners, thing.xyxy, atol=1e-6)
            assert load_categories()[int(label)] == load_nouns()[thing.noun].category


def test_the_pocket_yolo_finds_nearly_all_and_the_command_keeps_the_figures(
    tmp_path, monkeypatch, capsys
) -> None:
    pytest.importorskip("ultralytics")
    folder = asset_path("pocket_yolo")
    monkeypatch.setattr(validate_detector, "asset_path", lambda *parts: tmp_path.joinpath(*parts))
    (tmp_path / "pocket_yolo").mkdir()
    for path in folder.iterdir():
        if path.name != "validation.json":
            (tmp_path / "pocket_yolo" / path.name).symlink_to(path)
    validate_detector.main()
    found = json.loads((tmp_path / "pocket_yolo/validation.json").read_text())
    assert capsys.readouterr().out.endswith(json.dumps(found, indent=1) + "\n")
    assert found["split"] == "test"
    assert found["map50"] > 0.9 and found["map50"] > found["map50_95"] > 0.5
    shown = {
        load_nouns()[thing.noun].category
        for index in range(SIZE)
        for thing in data.make_scene("test", index)[0].objects
    }
    assert set(found["map50_by_category"]) == shown
    assert torch.is_grad_enabled()


def test_a_detector_that_is_told_other_labels_scores_near_nothing(monkeypatch) -> None:
    """So that the figure above is one that can fall."""
    pytest.importorskip("ultralytics")
    names = load_categories()
    monkeypatch.setattr(validate_detector, "load_categories", lambda: (*names[1:], names[0]))
    assert validate()["map50"] < 0.2
