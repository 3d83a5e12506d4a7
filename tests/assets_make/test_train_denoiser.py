"""The pocket denoiser's training, cut short: resumed exactly, measured, and loaded again."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import UNet2DConditionModel

from assets.make import train_denoiser as made
from dclip_kit.models.clip import load_clip
from dclip_kit.models.denoiser import load_denoiser
from dclip_kit.runtime.files import asset_path

TINY = made.Recipe(scenes=12, steps=4, batch_size=3, warmup_steps=1, channels=(8, 8, 8))


@pytest.fixture(scope="module")
def clip():
    return load_clip("pocket")


@pytest.fixture(scope="module")
def whole(clip, tmp_path_factory):
    """The folder of an uninterrupted run, and its denoiser."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, made.train(TINY, clip, folder)


def test_scenes_are_drawn_by_seed_and_number() -> None:
    scenes = made.draw_scenes(5, 13)
    assert scenes.pictures.shape == (5, 3, 32, 32) and scenes.pictures.dtype == torch.uint8
    again = made.draw_scene(3, 13)
    assert again[0] == scenes.scenes[3] and again[2] == scenes.captions[3]
    other = made.draw_scenes(5, 14)
    assert not {*scenes.captions} & {*other.captions}


def test_a_share_of_scenes_has_one_larger_thing() -> None:
    plain, mixed = made.draw_scenes(300, 13), made.draw_scenes(300, 13, 0.5)
    single = [scene for scene in mixed.scenes if len(scene.objects) == 1]
    assert 150 < len(single) < 230  # half of all, and of the others those that had one already

    def longer_side(scenes):
        sides = [max(b[2] - b[0], b[3] - b[1]) for s in scenes for b in [s.objects[0].xyxy]]
        return sum(sides) / len(sides)

    assert longer_side(single) > 1.5 * longer_side(plain.scenes)
    assert all(len(scene.objects) == 1 for scene in made.draw_scenes(20, 13, 1.0).scenes)


def test_an_untrained_unet_hears_every_direction_of_captions_equally(clip) -> None:
    """What it is told of a thing varies as much as what it is told of a caption's length."""
    unet = made.build_unet(TINY)
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -2, 256)
    turn, _ = torch.linalg.qr(torch.randn(256, 256, generator=generator))
    tokens = torch.randn(4000, 256, generator=generator) * scale @ turn
    before = unet.add_embedding.pool.v_proj.weight.clone()
    made.whiten(unet, tokens)
    with torch.no_grad():
        heard = unet.encoder_hid_proj(tokens)
        pooled = tokens @ unet.add_embedding.pool.v_proj.weight.T
    assert torch.allclose(heard.T @ heard / 4000, torch.eye(256), atol=0.05)
    assert torch.allclose(pooled, heard @ before.T, atol=0.05)
    assert not unet.encoder_hid_proj(torch.zeros(1, 256)).any()  # silence stays silence


def test_a_batch_is_of_scenes_with_a_caption_of_theirs_or_none() -> None:
    scenes = made.draw_scenes(6, 13)
    recipe = replace(TINY, batch_size=200)
    pictures, captions, timesteps = made.draw_batch(0, scenes, recipe)
    assert pictures.shape == (200, 3, 32, 32) and -1 <= pictures.min() < pictures.max() <= 1
    assert 0 <= timesteps.min() < 100 and 900 < timesteps.max() < 1000
    assert 5 <= captions.count("") <= 40  # a tenth
    known = scenes.pictures.float() / 127.5 - 1
    for picture, caption in zip(pictures, captions, strict=True):
        (place,) = (known == picture).flatten(1).all(1).nonzero()[:, 0].tolist()
        assert caption in ("", *scenes.captions[place])
    assert made.draw_batch(0, scenes, recipe)[1] == captions
    assert made.draw_batch(1, scenes, recipe)[1] != captions


def test_samples_are_pictures_by_caption_and_seed(whole) -> None:
    draw = partial(made.draw_samples, whole[1], steps=3)
    drawn = draw(["a red ball", "boats"])
    assert drawn.shape == (2, 3, 32, 32) and 0 <= drawn.min() < drawn.max() <= 1
    assert torch.equal(draw(["a red ball", "boats"]), drawn)
    assert not torch.allclose(draw(["a red ball", "boats"], seed=1), drawn)
    assert not torch.allclose(draw(["boats", "boats"])[0], drawn[0])


def test_without_guidance_a_sample_does_not_look_at_the_empty_caption(whole) -> None:
    """One step of DDIM, written down."""
    _, denoiser = whole
    (drawn,) = made.draw_samples(denoiser, ["boats"], steps=1, guidance=1.0)
    noise = torch.randn((1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    found = denoiser.predict_noise(noise, torch.tensor([0]), denoiser.describe(["boats"]))
    kept = denoiser.kept[0]
    picture = ((noise - (1 - kept).sqrt() * found) / kept.sqrt()).clamp(-1, 1)
    assert torch.allclose(drawn, picture[0] / 2 + 0.5, atol=1e-5)


def test_an_interrupted_training_goes_on_exactly(clip, whole, tmp_path, monkeypatch) -> None:
    calls = []

    def stop(step, recipe):
        calls.append(step)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(step, recipe)

    plain = made.learning_rate
    monkeypatch.setattr(made, "MINUTES", 0.0)
    monkeypatch.setattr(made, "learning_rate", stop)
    with pytest.raises(KeyboardInterrupt):
        made.train(TINY, clip, tmp_path)
    torch.manual_seed(5)
    resumed = made.train(TINY, clip, tmp_path)
    assert calls == [0, 1, 2, 2, 3]
    for name, value in whole[1].unet.state_dict().items():
        assert torch.equal(resumed.unet.state_dict()[name], value), name
    with pytest.raises(SystemExit, match="delete it to train again"):
        made.train(replace(TINY, steps=9), clip, tmp_path)  # would be of two recipes


def test_the_averaged_weights_are_kept(clip, whole) -> None:
    folder, denoiser = whole
    log = json.loads((folder / "training.json").read_text())
    assert log["recipe"]["steps"] == 4 and log["seconds"] >= 0
    first = made.train(replace(TINY, steps=1, ema_decay=0.0), clip, folder.parent / "first")
    moved = (first.unet.conv_in.weight - denoiser.unet.conv_in.weight).abs().max()
    assert 0 < moved < 1e-4  # of weights that nobody averages: 2e-3
    assert not denoiser.unet.conv_in.weight.requires_grad


def test_a_denoiser_is_measured_and_its_samples_are_drawn(clip, whole, tmp_path) -> None:
    made.validate(whole[1], clip, tmp_path, count=14, steps=2)
    figures = json.loads((tmp_path / "validation.json").read_text())
    assert figures.keys() == {"scenes", "prefers_own_caption", "samples_named", "scenes_named"}
    assert all(0 <= value <= 1 for name, value in figures.items() if name != "scenes")
    captions = (tmp_path / "samples.txt").read_text().splitlines()
    assert captions == [each[0] for each in made.draw_scenes(12, 14).captions]
    assert (tmp_path / "samples.png").stat().st_size > 1000


def test_real_scenes_are_named_by_what_they_show(clip) -> None:
    """Of what they show, better than of what another shows."""
    scenes = made.draw_scenes(60, 14)
    pictures = scenes.pictures.float() / 255
    named = made.name_pictures(clip, pictures, scenes.scenes)
    others = made.name_pictures(clip, pictures, scenes.scenes[1:] + scenes.scenes[:1])
    assert named > 3 * others


@pytest.mark.slow
def test_the_pocket_denoiser_prefers_a_scenes_own_caption(clip) -> None:
    """As its record says, but for what 128 of 512 scenes can differ by."""
    kept = json.loads((asset_path("pocket_denoiser") / "validation.json").read_text())
    found = made.prefers_own_caption(load_denoiser("pocket", clip), made.draw_scenes(128, 14))
    assert kept["prefers_own_caption"] >= 0.7 and found >= 0.65


def test_what_is_kept_fits_ten_megabytes() -> None:
    unet = made.build_unet(made.Recipe())
    assert isinstance(unet, UNet2DConditionModel)
    assert 2 * sum(parameter.numel() for parameter in unet.parameters()) <= 10e6
