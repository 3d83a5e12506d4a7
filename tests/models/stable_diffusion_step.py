"""What test_denoiser.py runs: one step of SDS through Stable Diffusion 1.5, as JSON.

Its UNet, VAE and text encoder have that pipeline's sizes and no weights.
"""

import json

import open_clip
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from dclip_kit.losses import sds_loss
from dclip_kit.models.clip import load_clip
from dclip_kit.models.denoiser import Condition, DenoiserHead, build_denoiser
from dclip_kit.runtime.machine import peak_memory_mb

torch.manual_seed(0)
clip = load_clip("pocket")
unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
unet.enable_gradient_checkpointing()  # as load_denoiser does
vae = AutoencoderKL(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    latent_channels=4,
    sample_size=512,
)
encoder = CLIPTextModel(
    CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                   num_attention_heads=12, projection_dim=768)
).requires_grad_(False).eval()  # fmt: skip
scheduler = DDPMScheduler(1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def describe(captions):
    """By CLIP's own tokenizer, which is open_clip's."""
    return Condition(encoder(open_clip.tokenize(list(captions)))[0])


denoiser = build_denoiser("sd", unet, scheduler, describe, 768, vae=vae, clip=clip)
head = DenoiserHead(clip.embed_dim, denoiser.shape)
mapped = head(clip.model.visual(torch.randn(1, 3, 64, 64)))
timesteps, condition = torch.tensor([400]), denoiser.describe(["a cat left of a dog"])
loss = sds_loss(
    mapped,
    torch.randn_like(mapped),
    denoiser.kept[timesteps],
    lambda noisy: denoiser.predict_noise(noisy, timesteps, condition),
).mean()
loss.backward()
modules = (unet, vae, encoder)
print(
    json.dumps(
        {
            "parameters": sum(p.numel() for module in modules for p in module.parameters()),
            "loss": loss.item(),
            "gradient": float(clip.model.visual.conv1.weight.grad.norm()),
            "peak_gb": peak_memory_mb() / 1000,
        }
    )
)
