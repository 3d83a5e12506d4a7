"""Trains the pocket denoiser: `python -m assets.make.train_denoiser`.

A small UNet of diffusers that draws pocket scenes of 32 pixels from the pocket CLIP's caption
tokens; it learns from scenes drawn with their own seeds. After an interruption, the same command
continues. At the end it measures how well the UNet denoises, and draws a sheet of samples.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms.functional import resize, to_pil_image
from torchvision.utils import make_grid
from tqdm.auto import tqdm

from dclip_kit.data.pocket.captions import write_captions
from dclip_kit.data.pocket.scenes import Scene, render_scene, sample_scene, sample_single
from dclip_kit.data.pocket.sprites import KNOWN_STYLES, load_nouns
from dclip_kit.evaluation.evaluate import encode_classes
from dclip_kit.losses import sds_loss
from dclip_kit.models.clip import ClipBundle, load_clip
from dclip_kit.models.denoiser import (
    Denoiser,
    build_denoiser,
    caption_losses,
    describe_by_tokens,
)
from dclip_kit.models.encode import encode_images
from dclip_kit.runtime.files import asset_path, write_atomically, write_record
from dclip_kit.training.checkpoint import load_training_state, save_training_state

SIDE = 32
SPAN = (0.4, 0.95)  # a single thing's longer side, as a share of the picture's
MINUTES = 10.0  # between two saved states


@dataclass(frozen=True)
class Recipe:
    """How the pocket denoiser is trained."""

    seed: int = 13
    scenes: int = 40_000  # drawn once
    single_share: float = 0.5  # of scenes with a single thing, mostly larger than in others
    steps: int = 9_000
    batch_size: int = 64
    learning_rate: float = 8e-4
    warmup_steps: int = 300
    weight_decay: float = 0.01
    ema_decay: float = 0.999  # of the averaged weights, which are saved
    silent_share: float = 0.1  # of captions to leave out, for classifier-free guidance
    channels: tuple[int, ...] = (16, 32, 64, 128)


@dataclass(frozen=True, eq=False)
class Scenes:
    """Drawn scenes.

    Attributes:
        scenes: what they show.
        pictures: bytes, of shape (scene, 3, SIDE, SIDE).
        captions: of each.
    """

    scenes: Sequence[Scene]
    pictures: Tensor
    captions: Sequence[tuple[str, ...]]


def draw_scene(
    number: int, seed: int, single_share: float = 0.0
) -> tuple[Scene, np.ndarray, tuple[str, ...]]:
    """A scene, its small picture [height width channel], and its captions."""
    rng = np.random.default_rng([seed, number])
    domain = [i for i, noun in enumerate(load_nouns()) if noun.domain]
    if single_share and rng.random() < single_share:
        scene = sample_single(rng, int(rng.choice(domain)), KNOWN_STYLES, SPAN)
    else:
        scene = sample_scene(rng, domain, KNOWN_STYLES)
    small = np.asarray(resize(render_scene(scene), [SIDE, SIDE]))
    return scene, small, write_captions(scene, rng)


def draw_scenes(count: int, seed: int, single_share: float = 0.0) -> Scenes:
    """Draws `count` scenes with their own seeds; a share of them has a single, large thing."""
    with ProcessPoolExecutor() as pool:
        draw = partial(draw_scene, seed=seed, single_share=single_share)
        drawn = pool.map(draw, range(count), chunksize=100)
        scenes, pictures, captions = zip(*tqdm(drawn, "scenes", count), strict=True)
    return Scenes(scenes, torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), captions)


def build_unet(recipe: Recipe) -> Any:
    """The untrained UNet; it has no attention at full and half size, where it would cost most.

    Every block also gets an embedding of the whole caption with the timestep: by attention alone,
    places hardly followed captions after 3,600 steps.
    """
    plain = len(recipe.channels) - 2  # levels without attention
    unet: Any = UNet2DConditionModel(
        sample_size=SIDE,
        layers_per_block=1,
        block_out_channels=recipe.channels,
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",) * plain,
        in_channels=3,
        out_channels=3,
        cross_attention_dim=256,
        encoder_hid_dim=256,
        encoder_hid_dim_type="text_proj",  # a linear layer, for `whiten`
        attention_head_dim=4,  # the number of heads: diffusers calls it so
        norm_num_groups=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
    )
    return unet.to(memory_format=torch.channels_last)


@torch.no_grad()
def whiten(unet: Any, tokens: Float[Tensor, "token width"]) -> None:
    """Whitens the caption tokens for an untrained UNet, so that all their directions count alike.

    Tokens vary mostly in half a dozen directions, but much of what tells nouns apart is in others,
    with less than a hundredth of the variance, which a randomly initialised layer hardly uses.
    """
    values, vectors = torch.linalg.eigh(tokens.double().T @ tokens.double() / len(tokens))
    loudness = (values + 1e-6 * values.sum()).rsqrt()
    whitening = (vectors * loudness @ vectors.T).to(tokens)
    unet.encoder_hid_proj.weight.copy_(whitening)
    unet.encoder_hid_proj.bias.zero_()
    pool = unet.add_embedding.pool  # it reads the tokens before that layer
    for layer in (pool.q_proj, pool.k_proj, pool.v_proj):
        layer.weight.copy_(layer.weight @ whitening)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def draw_batch(step: int, scenes: Scenes, recipe: Recipe) -> tuple[Tensor, list[str], Tensor]:
    """Pictures from -1 to 1, a caption of each (a tenth of them empty), and timesteps."""
    rng = np.random.default_rng([recipe.seed, 1, step])
    chosen = rng.integers(len(scenes.captions), size=recipe.batch_size)
    captions = [
        "" if rng.random() < recipe.silent_share else str(rng.choice(scenes.captions[scene]))
        for scene in chosen
    ]
    timesteps = torch.from_numpy(rng.integers(1000, size=recipe.batch_size))
    return scenes.pictures[chosen].float() / 127.5 - 1, captions, timesteps


def train(recipe: Recipe, clip: ClipBundle, folder: Path) -> Denoiser:
    """Trains, or continues; saves its state every ten minutes."""
    torch.manual_seed(recipe.seed)
    unet = build_unet(recipe)
    describe, width = describe_by_tokens(clip)
    scenes = draw_scenes(recipe.scenes, recipe.seed, recipe.single_share)
    caption_tokens = describe([captions[0] for captions in scenes.captions[:4000]])
    whiten(unet, caption_tokens.features[caption_tokens.mask])
    average = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
    modules = torch.nn.ModuleDict({"unet": unet, "average": average})  # so that both are resumed
    optimizer = torch.optim.AdamW(unet.parameters(), weight_decay=recipe.weight_decay, fused=True)
    state = folder / "state.safetensors"
    recipe_text = repr(recipe)
    progress: dict[str, Any] = {"recipe": recipe_text, "step": 0, "seconds": 0.0, "loss": []}
    if state.exists():
        progress = load_training_state(state, modules, optimizer)
        if progress.get("recipe") != recipe_text:
            raise SystemExit(f"Expected {state} to be of {recipe_text}; delete it to train again.")
        print(f"Continuing at step {progress['step']} of {recipe.steps}.")
    # Predicts velocities, whose error also counts what is visible in much noise: when noise was
    # predicted, nothing was learned from captions in 1,400 steps.
    scheduler = DDPMScheduler(
        1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    )
    learning = build_denoiser("", unet, scheduler, describe, width, clip=clip)
    unet.requires_grad_(True).train()
    losses: list[float] = []
    began = time.monotonic() - progress["seconds"]
    saved = time.monotonic()
    bar = tqdm(range(progress["step"], recipe.steps), "denoiser", mininterval=10)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        pictures, captions, timesteps = draw_batch(step, scenes, recipe)
        noise = torch.randn(
            pictures.shape, generator=torch.Generator().manual_seed(1_000_003 * recipe.seed + step)
        )
        condition = learning.describe(captions)
        # On CPUs the fused attention's backward pass took a quarter of the step. (Compiled, the
        # UNet got no gradient through its upsampling: torch 2.13 in bfloat16.)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            loss = sds_loss(
                pictures.contiguous(memory_format=torch.channels_last),
                noise,
                learning.kept[timesteps],
                partial(learning.predict_noise, timesteps=timesteps, condition=condition),
            )
            loss = (loss / learning.kept[timesteps]).mean()  # from noise's to velocities'
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(unet)
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            progress["loss"].append([step + 1, round(sum(losses) / len(losses), 4)])
            losses.clear()
        if time.monotonic() - saved >= 60 * MINUTES or step + 1 == recipe.steps:
            saved = time.monotonic()
            progress |= {"step": step + 1, "seconds": saved - began}
            save_training_state(state, modules, optimizer, progress)
    averaged = average.module.eval().requires_grad_(False)
    log = {
        "recipe": asdict(recipe),
        "seconds": round(progress["seconds"]),
        "threads": torch.get_num_threads(),
        "loss": progress["loss"],
    }
    write_record(log, folder / "training.json")
    return build_denoiser("pocket", averaged, scheduler, describe, width, clip=clip)


# Measuring the denoiser


def prefers_own_caption(denoiser: Denoiser, scenes: Scenes) -> float:
    """Share of scenes whose noise is predicted better with their caption than the next one's."""
    captions = [scene_captions[0] for scene_captions in scenes.captions]
    latents = scenes.pictures.float() / 127.5 - 1
    own_losses = caption_losses(denoiser, latents, captions)
    other_losses = caption_losses(denoiser, latents, captions[1:] + captions[:1])
    return float((own_losses < other_losses).double().mean())


def name_pictures(clip: ClipBundle, pictures: Tensor, scenes: Sequence[Scene]) -> float:
    """Share of pictures whose nearest noun, by CLIP, is that of a thing that they should show."""
    classes = encode_classes(clip, [noun.noun for noun in load_nouns()])
    large = resize(pictures, [clip.side] * 2).clamp(0, 1).mul(255).round().byte()
    nearest = (encode_images(clip, large) @ classes.T).argmax(1).tolist()
    scene_nouns = [{thing.noun for thing in scene.objects} for scene in scenes]
    correct = [name in nouns for name, nouns in zip(nearest, scene_nouns, strict=True)]
    return sum(correct) / len(correct)


@torch.no_grad()
def draw_samples(
    denoiser: Denoiser,
    captions: Sequence[str],
    steps: int = 30,
    guidance: float = 3.0,
    seed: int = 0,
) -> Float[Tensor, "picture 3 height width"]:
    """Draws a picture for each caption (DDIM, with classifier-free guidance), from 0 to 1.

    Args:
        denoiser: of pixels.
        captions: what to draw.
        steps: of denoising.
        guidance: how far each step is moved away from an empty caption's; 1: not at all.
        seed: of the noise.
    """
    scheduler = DDIMScheduler.from_config(denoiser.scheduler.config)
    scheduler.set_timesteps(steps)
    conditional, unconditional = (
        denoiser.describe(texts) for texts in (captions, [""] * len(captions))
    )
    latents = torch.randn(
        (len(captions), *denoiser.shape), generator=torch.Generator().manual_seed(seed)
    )
    for step in scheduler.timesteps:
        with_caption, without_caption = (
            denoiser.unet(
                latents, step, condition.features, encoder_attention_mask=condition.mask
            ).sample
            for condition in (conditional, unconditional)
        )
        latents = scheduler.step(
            without_caption + guidance * (with_caption - without_caption), step, latents
        ).prev_sample
    return (latents.float() / 2 + 0.5).clamp(0, 1)


def validate(
    denoiser: Denoiser, clip: ClipBundle, folder: Path, count: int = 512, steps: int = 30
) -> None:
    """Writes validation.json, and samples.png: twelve samples above their captions' scenes."""
    # Scenes with another seed than in training.
    scenes = draw_scenes(count, Recipe().seed + 1)
    captions = [scene_captions[0] for scene_captions in scenes.captions]
    parts = [captions[start : start + 64] for start in range(0, count, 64)]
    with torch.autocast("cpu", torch.bfloat16):
        batches = [
            draw_samples(denoiser, part, steps, seed=i)
            for i, part in enumerate(tqdm(parts, "samples"))
        ]
    samples = torch.cat(batches)
    scene_pictures = scenes.pictures.float() / 255
    figures: dict[str, float] = {
        "scenes": count,
        "prefers_own_caption": round(prefers_own_caption(denoiser, scenes), 3),
        "samples_named": round(name_pictures(clip, samples, scenes.scenes), 3),
        "scenes_named": round(name_pictures(clip, scene_pictures, scenes.scenes), 3),
    }
    print(json.dumps(figures, indent=1))
    write_record(figures, folder / "validation.json")
    sheet = make_grid(torch.cat([samples[:12], scene_pictures[:12]]), nrow=12, pad_value=1.0)
    enlarged = resize(to_pil_image(sheet), [sheet.shape[1] * 3], interpolation=0)
    enlarged.save(folder / "samples.png")
    write_atomically(folder / "samples.txt", "\n".join(captions[:12]) + "\n")


def main() -> None:
    """Trains, or continues, and writes assets/pocket_denoiser."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/denoiser"))
    arguments = parser.parse_args()
    clip = load_clip("pocket")
    denoiser = train(Recipe(), clip, arguments.runs)
    folder = asset_path("sprites").parent / "pocket_denoiser"
    denoiser.unet.half().save_pretrained(folder)
    denoiser.scheduler.save_pretrained(folder)
    denoiser.unet.float()
    (arguments.runs / "training.json").replace(folder / "training.json")
    validate(denoiser, clip, folder)


if __name__ == "__main__":
    main()
