"""What a map shows the denoiser: read off a checkpoint, and told apart from scenes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from assets.make.sds_map import SHOWN, describe, load_tower, write_map
from assets.make.study import Study, read_study
from dclip_kit.features.store import digest_record
from dclip_kit.models.clip import load_clip
from dclip_kit.models.denoiser import DenoiserHead, caption_losses, load_denoiser
from dclip_kit.runtime.files import save_tensors

STUDY = """
seeds = [4]
[arms]
clip = { recipe = "none" }
sds = { recipe = "sds", steps = 3 }
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    path = tmp_path / "s.toml"
    path.write_text(STUDY)
    return read_study(path)


@pytest.fixture
def tower(study, tmp_path) -> torch.nn.Sequential:
    """In a checkpoint; its map shows every picture alike."""
    pocket = load_clip("pocket")
    tower, head = pocket.model.visual, DenoiserHead(pocket.embed_dim, (3, 32, 32))
    torch.nn.init.zeros_(head.weight)
    arm = replace(study.arms[1], rescoring=None)
    place = tmp_path / "work/checkpoints" / f"student-{digest_record(arm.describe(4))}.safetensors"
    place.parent.mkdir(parents=True)
    state = {f"module.tower.{name}": value for name, value in tower.state_dict().items()}
    state |= {f"module.heads.sds.{name}": value for name, value in head.state_dict().items()}
    save_tensors({**state, "optimizer.0.step": torch.tensor(3)}, place)
    return torch.nn.Sequential(tower, head)


@pytest.mark.slow
def test_a_map_that_shows_all_alike_is_found_out(study, tower, tmp_path) -> None:
    write_map(study, tmp_path / "work", tmp_path, count=9)
    found = json.loads((tmp_path / "mapped.json").read_text())
    assert found["pictures"] == 9 and found["seeds"].keys() == {"4"}
    assert found["seeds"]["4"]["alike"] == 1.0 > found["scenes"]["alike"] > 0
    assert 0 < found["scenes"]["own"] < found["seeds"]["4"]["own"]
    with Image.open(tmp_path / "mapped.jpg") as sheet:
        assert sheet.size == (2 * (SHOWN * 34 + 2), 2 * (2 * 34 + 2))
        rows = [sheet.crop((0, y, sheet.width, y + 64)).resize((SHOWN, 1)) for y in (4, 72)]
    scenes, shown = (np.asarray(row).std(axis=(0, 1)).max() for row in rows)
    assert shown < 4 < scenes


def test_the_tower_is_the_checkpoints(study, tower, tmp_path) -> None:
    found = load_tower(study, 4, tmp_path / "work", load_clip("pocket"))
    ours = tower.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in found.state_dict().items())
    assert not found.training and not any(p.requires_grad for p in found.parameters())
    with pytest.raises(FileNotFoundError):
        load_tower(replace(study, seeds=(5,)), 5, tmp_path / "work", load_clip("pocket"))


def test_figures_are_those_of_a_slow_loop() -> None:
    denoiser = load_denoiser("pocket", load_clip("pocket"))
    shown, captions = torch.rand(3, 3, 32, 32), ["a dog", "a cup", "two kites"]
    found = describe(denoiser, shown, captions)
    own = caption_losses(denoiser, shown, captions)
    other = caption_losses(denoiser, shown, ["a cup", "two kites", "a dog"])
    assert found["own"] == pytest.approx(sum(own.tolist()) / 3, abs=1e-4)
    assert found["other"] == pytest.approx(sum(other.tolist()) / 3, abs=1e-4)
    better = sum(a < b for a, b in zip(own.tolist(), other.tolist(), strict=True))
    assert found["prefers_own_caption"] == round(better / 3, 3)
    numbers, common = shown.flatten().tolist(), (sum(shown) / 3).flatten().tolist()
    mean = sum(numbers) / len(numbers)
    within = sum((x - mean) ** 2 for x in common) / len(common)
    whole = sum((x - mean) ** 2 for x in numbers) / len(numbers)
    assert found["alike"] == pytest.approx(within / whole, abs=1e-3)
