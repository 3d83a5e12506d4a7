"""Pre-training the pocket CLIP: its batches, its schedule, its files, and exact continuation."""

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from assets.make import pretrain_clip as pretrain_clip
from assets.make.pretrain_clip import (
    ARCHITECTURE,
    FOLDERS,
    RECIPES,
    TOWERS,
    Hints,
    Recipe,
    encode_short,
    learning_rate,
    make_batch,
    save_clip,
    write_merges,
)
from assets.make.weak_pairs import weak_pair
from dclip_kit.data.pocket.sprites import load_nouns
from dclip_kit.data.pocket.world import make_scene
from dclip_kit.models.clip import load_clip
from dclip_kit.runtime.files import asset_path, load_tensors

SIDE = ARCHITECTURE["vision_cfg"]["image_size"]


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, list[str]]:
    return make_batch(3, Recipe())


def test_a_batch_shows_and_names_every_noun_once_in_order(batch) -> None:
    images, texts = batch
    assert images.shape == (len(load_nouns()), 3, SIDE, SIDE) and images.dtype == torch.float32
    for noun, text in zip(load_nouns(), texts, strict=True):
        assert noun.noun in text or noun.plural in text


def test_pixels_are_normalised_as_clips_are(batch) -> None:
    mean, std = (
        [*map(float, m)] for m in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    recipe = Recipe()
    for noun in (0, 77):
        rng = np.random.default_rng([recipe.seed, 3, noun])
        picture, text = weak_pair(
            noun, SIDE, rng, recipe.single_share, recipe.span, recipe.line_art
        )
        expected = (np.asarray(picture) / 255 - mean) / std
        np.testing.assert_allclose(batch[0][noun].permute(1, 2, 0), expected, atol=1e-5)
        assert batch[1][noun] == text


def test_step_and_seed_decide_a_batch(batch) -> None:
    again, other = make_batch(3, Recipe()), make_batch(4, Recipe())
    assert torch.equal(again[0], batch[0]) and again[1] == batch[1]
    assert not torch.equal(other[0], batch[0]) and other[1] != batch[1]
    assert make_batch(3, Recipe(seed=8))[1] != batch[1]


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.0002), (4, 0.001), (9, 0.002), (10, 0.002), (20, 0.00170710678), (30, 0.001)],
)
def test_the_rate_warms_up_and_falls_as_a_cosine(step, rate) -> None:
    recipe = Recipe(steps=50, learning_rate=0.002, warmup_steps=10)
    assert learning_rate(step, recipe) == pytest.approx(rate, abs=1e-9)


def test_leaving_out_common_padding_changes_no_text_feature(batch) -> None:
    torch.manual_seed(0)
    model = open_clip.CLIP(**ARCHITECTURE).eval()
    for texts in (batch[1], ["a dog"], ["a dog " * 40]):  # the last fills the context
        ids = open_clip.SimpleTokenizer(
            str(asset_path("pocket_clip", "merges.txt.gz")), context_length=40
        )(texts)
        with torch.no_grad():
            torch.testing.assert_close(encode_short(model, ids), model.encode_text(ids))


# Files


def test_the_merges_are_the_beginning_of_clips_own(tmp_path) -> None:
    write_merges(tmp_path / "new" / "merges.txt.gz")
    written = (tmp_path / "new" / "merges.txt.gz").read_bytes()
    assert written == asset_path("pocket_clip", "merges.txt.gz").read_bytes()
    lines = gzip.decompress(written).decode().split("\n")
    own = gzip.decompress(Path(open_clip.tokenizer.default_bpe()).read_bytes()).decode().split("\n")
    assert lines == own[:8001]


def test_every_text_fits_the_vocabulary_and_the_context(batch) -> None:
    context = ARCHITECTURE["text_cfg"]["context_length"]
    tokenizer = open_clip.SimpleTokenizer(
        str(asset_path("pocket_clip", "merges.txt.gz")), context_length=context
    )
    assert tokenizer.vocab_size == ARCHITECTURE["text_cfg"]["vocab_size"]
    ids = tokenizer(batch[1])
    assert ids.shape == (len(batch[1]), context)
    assert (ids[:, -1] == 0).all()  # nothing was cut off
    captions = [text for index in range(1000) for text in make_scene("test", index)[1]]
    assert max(len(tokenizer.encode(text)) + 2 for text in captions) <= context


def test_plain_open_clip_loads_what_is_saved(tmp_path) -> None:
    model = open_clip.CLIP(**ARCHITECTURE)
    save_clip(model, tmp_path, ARCHITECTURE)
    loaded, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name
    assert tuple(preprocess.transforms[-1].mean) == open_clip.OPENAI_DATASET_MEAN
    assert (tmp_path / "open_clip_model.safetensors").stat().st_size < 21e6


# The command


@pytest.fixture
def train(tmp_path, monkeypatch, batch):
    """Runs the command in a folder for some steps: a smaller CLIP, seven pairs a batch."""
    small = {"layers": 1, "width": 64, "heads": 1}
    resnet, vit = (TOWERS[tower] | {"layers": 1, "width": 64} for tower in ("resnet", "vit"))
    towers = {
        "resnet": resnet | {"layers": [1, 1, 1, 1], "width": 16},
        "vit": vit | {"layers": 3},
    }
    monkeypatch.setattr(pretrain_clip, "TOWERS", towers)
    monkeypatch.setattr(
        pretrain_clip, "make_batch", lambda step, recipe: (batch[0][step::20], batch[1][step::20])
    )

    def run(name: str, steps: int, tower: str = "resnet") -> Path:
        text = ARCHITECTURE["text_cfg"] | (small if tower == "resnet" else {})
        monkeypatch.setattr(pretrain_clip, "ARCHITECTURE", ARCHITECTURE | {"text_cfg": text})
        recipe = replace(RECIPES[tower], steps=steps)
        monkeypatch.setitem(pretrain_clip.RECIPES, tower, recipe)
        monkeypatch.setattr(
            pretrain_clip, "asset_path", lambda _: tmp_path / name / "assets" / "sprites"
        )
        command = ["pretrain_clip", "--threads", "1", "--tower", tower]
        command += ["--runs", str(tmp_path / name / "runs")]
        monkeypatch.setattr(sys, "argv", command)
        pretrain_clip.main()
        return tmp_path / name / "assets" / FOLDERS[tower]

    return run


@pytest.mark.parametrize("tower", TOWERS)
def test_an_interrupted_training_continues_exactly(tower, train, capsys) -> None:
    # Within the warm-up, the rate does not depend on the end.
    straight = train("straight", 3, tower)
    train("broken", 2, tower)
    assert "Continuing" not in capsys.readouterr().out
    broken = train("broken", 3, tower)
    assert "Continuing at step 2 of 3." in capsys.readouterr().out
    name = "open_clip_model.safetensors"
    one, other = load_tensors(straight / name), load_tensors(broken / name)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    log = json.loads((broken / "pretraining.json").read_text())
    assert [step for step, _ in log["loss"]] == [2, 3]
    assert log["recipe"]["steps"] == 3 and log["recipe"]["seed"] == 7 and log["threads"] == 1


def test_another_recipes_training_is_not_continued(train, monkeypatch) -> None:
    folder = train("broken", 2)
    before = (folder / "pretraining.json").read_text()
    monkeypatch.setitem(pretrain_clip.RECIPES, "resnet", replace(RECIPES["resnet"], seed=8))
    with pytest.raises(SystemExit, match="got another recipe's; delete it to train again"):
        train("broken", 3)
    monkeypatch.setitem(pretrain_clip.RECIPES, "resnet", replace(RECIPES["resnet"], seed=7))
    with pytest.raises(SystemExit, match="got another recipe's"):
        train("broken", 1)  # it has had more steps
    assert (folder / "pretraining.json").read_text() == before


@pytest.mark.slow
def test_training_lowers_the_loss_and_keeps_the_scale_in_bounds(train, monkeypatch, batch) -> None:
    monkeypatch.setattr(
        pretrain_clip, "make_batch", lambda *_, **__: (batch[0][::20], batch[1][::20])
    )
    monkeypatch.setattr(pretrain_clip, "learning_rate", lambda *_: 2e-3)
    losses = [
        json.loads((train("run", steps) / "pretraining.json").read_text())["loss"][-1][1]
        for steps in (1, 20, 21)  # a save's loss is the mean since the one before
    ]
    assert losses[2] < 0.7 * losses[0], losses


@pytest.mark.slow
def test_a_vision_transformer_learns_beside_frozen_texts_what_the_resnet_says(
    train, monkeypatch, batch
) -> None:
    monkeypatch.setattr(
        pretrain_clip, "make_batch", lambda *_, **__: (batch[0][::20], batch[1][::20])
    )
    monkeypatch.setattr(pretrain_clip, "learning_rate", lambda *_: 2e-3)
    pocket = load_clip("pocket")
    target = encode_pixels(pocket, batch[0][::20])
    cosines = []
    for steps in (1, 15):
        vit = load_clip(train("run", steps, "vit"))
        cosines.append(float((encode_pixels(vit, batch[0][::20]) * target).sum(1).mean()))
        own = pocket.model.state_dict()
        texts = {k: v for k, v in vit.model.state_dict().items() if not k.startswith("visual.")}
        assert len(texts) > 30
        assert all(torch.equal(value, own[name].half().float()) for name, value in texts.items())
    assert cosines[1] > cosines[0] + 0.2, cosines


@torch.no_grad()
def test_hints_are_what_patches_miss_of_the_resnets_maps(batch) -> None:
    """Place by place, from the towers' layers called one after the other."""
    torch.manual_seed(0)
    tower = TOWERS["vit"] | {"layers": 3, "width": 64}
    model = open_clip.CLIP(**ARCHITECTURE | {"vision_cfg": tower}).eval()
    teacher, pixels = load_clip("pocket").model, batch[0][::20]
    hints = Hints(model, teacher)
    assert not {id(p) for p in hints.parameters()} & {
        id(p) for each in (model, teacher) for p in each.parameters()
    }
    model.encode_image(pixels)
    teacher.encode_image(pixels)
    error = float(hints())
    stages = teacher.visual
    first = stages.layer2(stages.layer1(stages.stem(pixels)))
    vit = model.visual
    patches = vit.conv1(pixels).flatten(2).mT
    token = vit.class_embedding.expand(len(pixels), 1, -1)
    tokens = vit.ln_pre(torch.cat([token, patches], 1) + vit.positional_embedding)
    after = [tokens := block(tokens) for block in vit.transformer.resblocks[:2]]
    expected = 0.0
    for translate, known, target in zip(
        hints.maps, after, (first, stages.layer3(first)), strict=True
    ):
        values = target.transpose(0, 1).flatten(1)  # by channel
        mean, deviation = (x[:, None, None] for x in (values.mean(1), values.std(1)))
        wanted = ((target - mean) / (deviation + 1e-4)).clamp(-4, 4)
        cells, errors = 8 // target.shape[-1], []  # patches along a place's side
        for picture, row, column in np.ndindex(len(pixels), *target.shape[2:]):
            corner = 1 + 8 * cells * row + cells * column
            places = [corner + 8 * i + j for i, j in np.ndindex(cells, cells)]
            found = translate(known[picture, places].mean(0))
            errors.append((found - wanted[picture, :, row, column]).square().mean())
        expected += float(torch.stack(errors).mean())
    assert error == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def encode_pixels(clip, pixels):
    return clip.model.encode_image(pixels, normalize=True)
