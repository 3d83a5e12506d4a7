"""Denoisers: built small, saved as a pipeline and loaded, and Stable Diffusion 1.5's own shape."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from dclip_kit.models.denoiser import (
    DenoiserHead,
    build_denoiser,
    caption_losses,
    describe_by_tokens,
    load_denoiser,
)
from dclip_kit.models.encode import encode_tokens

STEP = Path(__file__).with_name("stable_diffusion_step.py")


def make_unet(width=32, channels=3, side=8, out_channels=None, **options):
    """A UNet of two levels, the lower of which looks at captions."""
    torch.manual_seed(4)
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=out_channels or channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=2,
        norm_num_groups=4,
        **options,
    )


def make_denoiser(clip, **schedule):
    """It draws pictures of 8 pixels from a CLIP's caption tokens."""
    scheduler = DDPMScheduler(20, **schedule)
    return build_denoiser("tiny", make_unet(), scheduler, *describe_by_tokens(clip), clip=clip)


@pytest.fixture
def denoiser(clip):
    return make_denoiser(clip)


def test_captions_condition_by_their_tokens(clip, denoiser) -> None:
    found = denoiser.describe(["a red ball", "", "boats"])
    tokens = encode_tokens(clip, ["a red ball", "a", "boats"])
    longest = tokens.mask.shape[1]
    assert found.mask.shape[1] == clip.model.context_length
    assert not found.mask[:, longest:].any()
    assert torch.equal(found.mask[:, :longest], tokens.mask) and found.mask[1].sum() == 1
    lengths = found.features.norm(dim=2)
    assert lengths[1].max() == 0  # an empty caption is one token of zeros
    assert torch.allclose(lengths[[0, 2]], found.mask[[0, 2]] * 32**0.5, atol=1e-5)
    said = found.features[[0, 2], :longest]
    assert torch.allclose(said / 32**0.5, tokens.features[[0, 2]], atol=1e-6)


@pytest.mark.parametrize(
    "pooling", [{}, {"addition_embed_type": "text", "addition_embed_type_num_heads": 2}]
)
def test_padding_of_captions_changes_no_prediction(clip, pooling) -> None:
    unet, described = make_unet(**pooling), describe_by_tokens(clip)
    denoiser = build_denoiser("tiny", unet, DDPMScheduler(20), *described, clip=clip)
    noisy, timesteps = torch.randn(2, 3, 8, 8), torch.tensor([3, 17])
    alone = denoiser.predict_noise(noisy[:1], timesteps[:1], denoiser.describe(["boats"]))
    both = denoiser.predict_noise(noisy, timesteps, denoiser.describe(["boats", "a red ball"]))
    assert torch.allclose(both[:1], alone, atol=1e-5)
    other = denoiser.predict_noise(noisy[:1], timesteps[:1], denoiser.describe(["a red ball"]))
    assert not torch.allclose(other, alone, atol=1e-5)


def test_a_denoiser_that_predicts_velocity_says_the_noise(clip) -> None:
    """For the velocity of which picture and noise are the parts."""
    denoiser = make_denoiser(clip, prediction_type="v_prediction")
    picture, noise = torch.randn(2, 4, 3, 8, 8)
    timesteps = torch.tensor([0, 5, 12, 19])
    noisy = denoiser.scheduler.add_noise(picture, noise, timesteps)
    velocity = denoiser.scheduler.get_velocity(picture, noise, timesteps)
    denoiser.unet.forward = lambda *given, **more: (velocity,)
    found = denoiser.predict_noise(noisy, timesteps, denoiser.describe(["a"] * 4))
    assert torch.allclose(found, noise, atol=1e-5)


def test_a_denoiser_is_frozen_and_gradients_pass_through_it(clip, denoiser) -> None:
    noisy = torch.randn(1, 3, 8, 8, requires_grad=True)
    denoiser.predict_noise(noisy, torch.tensor([4]), denoiser.describe(["a"])).sum().backward()
    assert noisy.grad.abs().min() > 0
    assert all(not p.requires_grad and p.grad is None for p in denoiser.unet.parameters())
    assert not denoiser.unet.training
    assert all(p.grad is None for p in clip.model.parameters())


def test_pictures_are_encoded_at_the_side_of_the_unet(denoiser) -> None:
    pictures = torch.rand(2, 3, 8, 8)
    assert torch.allclose(denoiser.encode(pictures), pictures * 2 - 1, atol=1e-6)
    halves = torch.arange(2.0).view(1, 1, 1, 2).expand(1, 3, 2, 2)  # black beside white
    large = halves.repeat_interleave(20, 2).repeat_interleave(20, 3)
    small = denoiser.encode(large)
    assert small.shape == (1, 3, 8, 8)
    expected = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2).expand(1, 3, 8, 2)
    assert torch.allclose(small[..., [0, 7]], expected, atol=1e-5)


def test_caption_losses_are_those_of_a_slow_loop(denoiser) -> None:
    latents, captions = torch.randn(3, 3, 8, 8), ["boats", "a red ball", ""]
    found = caption_losses(denoiser, latents, captions, draws=2, seed=6, batch_size=2)
    generator = torch.Generator().manual_seed(6)
    timesteps = torch.randint(20, (2, 3), generator=generator)
    noise = torch.randn((2, 3, 3, 8, 8), generator=generator)
    for place, caption in enumerate(captions):
        expected = 0.0
        for draw in (0, 1):
            step, drawn = timesteps[draw, place], noise[draw, place]
            noisy = denoiser.scheduler.add_noise(latents[place], drawn, step)
            condition = denoiser.describe([caption])
            told = denoiser.predict_noise(noisy[None], step[None], condition)[0]
            expected += float((told - drawn).square().mean()) / 2
        assert float(found[place]) == pytest.approx(expected, rel=1e-4)


def test_captions_of_one_picture_are_asked_beside_the_same_noise(denoiser) -> None:
    latents = torch.randn(2, 3, 8, 8)
    one, other = (
        caption_losses(denoiser, latents, captions, draws=1)
        for captions in (["boats", "boats"], ["boats", "a red ball"])
    )
    assert one[0] == pytest.approx(float(other[0]), rel=1e-5) and one[1] != other[1]


def test_a_caption_too_few_is_refused(denoiser) -> None:
    with pytest.raises(ValueError, match="a caption for each of 2 pictures, got 1"):
        caption_losses(denoiser, torch.randn(2, 3, 8, 8), ["boats"])


def test_a_head_is_a_linear_map_of_directions() -> None:
    head, features = DenoiserHead(32, (3, 8, 8)), 7 * torch.randn(2, 32)
    mapped = head(features)
    assert mapped.shape == (2, 3, 8, 8)
    direction = F.normalize(features, dim=1) * 32**0.5
    expected = direction @ head.weight.T + head.bias
    assert torch.allclose(mapped.flatten(1), expected, atol=1e-5)


# Loading


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """A latent denoiser's folder, as diffusers writes it; its vocabulary is of letters."""
    folder = tmp_path_factory.mktemp("pipeline")
    make_unet(width=16, channels=4, side=4).save_pretrained(folder / "unet")
    DDPMScheduler(20).save_pretrained(folder / "scheduler")
    AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(folder / "vae")  # fmt: skip
    letters = [*map(chr, range(33, 127))]
    words = [*letters, *(f"{each}</w>" for each in letters), "<|startoftext|>", "<|endoftext|>"]
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=9, bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    place = folder / "tokenizer"
    place.mkdir()
    (place / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    (place / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 9})
    )
    return folder


def test_a_pipeline_is_loaded_from_its_folder(clip, pipeline) -> None:
    denoiser = load_denoiser(pipeline, clip)
    assert denoiser.shape == (4, 4, 4) and len(denoiser.kept) == 20
    found = denoiser.describe(["sea", "", "a longer caption than fits"])
    assert found.features.shape == (3, 9, 16) and found.mask is None
    assert not torch.allclose(found.features[0], found.features[1], atol=1e-4)
    latents = denoiser.encode(torch.rand(2, 3, 20, 12))
    assert latents.shape == (2, 4, 4, 4)
    assert caption_losses(denoiser, latents, ["sea", "boats"], draws=1).min() > 0
    modules = (denoiser.unet, denoiser.vae)
    assert not any(p.requires_grad for module in modules for p in module.parameters())
    assert denoiser.unet.is_gradient_checkpointing


def test_a_pipeline_kept_in_half_precision_works_in_single(clip, pipeline, tmp_path) -> None:
    folder = shutil.copytree(pipeline, tmp_path / "half")
    for part, kind in (("unet", UNet2DConditionModel), ("text_encoder", CLIPTextModel)):
        kind.from_pretrained(folder / part).half().save_pretrained(folder / part)
    denoiser = load_denoiser(folder, clip)
    assert denoiser.describe(["sea"]).features.dtype == torch.float32
    assert caption_losses(denoiser, torch.rand(1, 4, 4, 4), ["sea"], draws=1).isfinite().all()


def test_a_pipeline_keeps_its_own_kind_of_scheduler(clip, pipeline, tmp_path) -> None:
    """Read as DDPM's, one without its timesteps would pass, with DDPM's defaults."""
    folder = shutil.copytree(pipeline, tmp_path / "flow")
    shutil.rmtree(folder / "scheduler")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    with pytest.raises(ValueError, match="got FlowMatchEulerDiscreteScheduler without any"):
        load_denoiser(folder, clip)
    PNDMScheduler(30, prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    found = load_denoiser(folder, clip)
    assert isinstance(found.scheduler, PNDMScheduler) and len(found.kept) == 30


def test_the_pockets_denoiser_is_for_the_pocket_clip(clip) -> None:
    with pytest.raises(ValueError, match=r"^Expected captions of width .* 'pocket', got 32; take"):
        load_denoiser("pocket", clip)


def test_what_is_no_pipeline_is_refused(clip, pipeline, tmp_path) -> None:
    with pytest.raises(ValueError, match="Expected a diffusers pipeline with a UNet"):
        load_denoiser(tmp_path, clip)
    with pytest.raises(ValueError, match="'nobody/nothing', but it does not load"):
        load_denoiser("nobody/nothing", clip)


def test_a_denoiser_of_another_width_is_refused(clip) -> None:
    described = describe_by_tokens(clip)
    with pytest.raises(ValueError, match=r"Expected captions of width 16 for .* 'tiny', got 32"):
        build_denoiser("tiny", make_unet(width=16), DDPMScheduler(20), *described, clip=clip)


def test_a_scheduler_without_timesteps_is_refused(clip) -> None:
    described, scheduler = describe_by_tokens(clip), FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="got FlowMatchEulerDiscreteScheduler without any"):
        build_denoiser("tiny", make_unet(), scheduler, *described, clip=clip)


def test_a_denoiser_that_predicts_something_else_is_refused(clip) -> None:
    described, scheduler = describe_by_tokens(clip), DDPMScheduler(20, prediction_type="sample")
    with pytest.raises(ValueError, match="to predict epsilon or v_prediction, got sample"):
        build_denoiser("tiny", make_unet(), scheduler, *described, clip=clip)


def test_a_denoiser_that_is_told_more_than_captions_is_refused(clip) -> None:
    described = describe_by_tokens(clip)
    inpainting = make_unet(channels=9, out_channels=4)
    with pytest.raises(ValueError, match=r"of 9 channels, .* got epsilon of 4 channels"):
        build_denoiser("tiny", inpainting, DDPMScheduler(20), *described, clip=clip)
    sized = make_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=56,
    )
    with pytest.raises(ValueError, match="told text_time"):
        build_denoiser("tiny", sized, DDPMScheduler(20), *described, clip=clip)


def test_without_diffusers_the_error_names_the_extra(clip, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'dclip-kit\[sds\]'"):
        load_denoiser("pocket", clip)


@pytest.mark.slow
def test_stable_diffusion_steps_in_six_gigabytes() -> None:
    """Classes and sizes of Stable Diffusion 1.5, without weights, in a process of its own."""
    done = subprocess.run([sys.executable, STEP], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["parameters"] == pytest.approx(1.07e9, rel=0.01)
    assert found["loss"] > 0 and found["gradient"] > 0
    assert found["peak_gb"] <= 6
