"""A frozen text-to-image denoiser of diffusers, from which SDS-CLIP (arXiv 2307.09233) learns.

Axes: picture; channel, height, width of the latents: a picture's pixels, or a VAE's latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from dclip_kit.losses import sds_loss
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import encode_tokens
from dclip_kit.runtime.files import asset_path
from dclip_kit.runtime.packages import require_packages


@dataclass(frozen=True)
class Condition:
    """Captions as a denoiser's condition.

    Attributes:
        features: of shape (picture, token, width).
        mask: of shape (picture, token), True at tokens to attend to; None for all.
    """

    features: Float[Tensor, "picture token width"]
    mask: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Denoiser:
    """Predicts the noise in a noisy picture, given its caption.

    Attributes:
        name: the name or path it was loaded by.
        unet: diffusers' `UNet2DConditionModel`, frozen.
        scheduler: diffusers' noise schedule.
        describe: turns captions into a `Condition`.
        vae: encodes pictures as latents; None if pixels, from -1 to 1, are denoised.
    """

    name: str
    unet: Any
    scheduler: Any
    describe: Callable[[Sequence[str]], Condition]
    vae: Any = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents."""
        side = self.unet.config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        return self.unet.config.in_channels, height, width

    @property
    def kept(self) -> Float[Tensor, "timestep"]:
        """How much of the picture's variance is left at each timestep (the field's ᾱ)."""
        return self.scheduler.alphas_cumprod

    @torch.no_grad()
    def encode(
        self, pictures: Float[Tensor, "picture 3 _height _width"]
    ) -> Float[Tensor, "picture channel height width"]:
        """Turns pictures of any size, from 0 to 1, into latents to denoise."""
        scale = 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)
        size = [scale * length for length in self.shape[1:]]
        pictures = pictures.to(self.unet.device) * 2 - 1
        small = F.interpolate(pictures, size, mode="bilinear", antialias=True)
        if self.vae is None:
            return small
        return self.vae.encode(small).latent_dist.mean * self.vae.config.scaling_factor

    def predict_noise(
        self,
        noisy: Float[Tensor, "picture channel height width"],
        timesteps: Int[Tensor, "picture"],
        condition: Condition,
    ) -> Float[Tensor, "picture channel height width"]:
        """The noise in noisy latents; gradients reach the latents, never the denoiser."""
        mask = condition.mask
        prediction = self.unet(
            noisy, timesteps, condition.features, encoder_attention_mask=mask, return_dict=False
        )[0].float()
        if self.scheduler.config.prediction_type == "epsilon":
            return prediction
        kept = self.kept.to(noisy)[timesteps].view(-1, 1, 1, 1)  # a velocity: noise minus picture
        return kept.sqrt() * prediction + (1 - kept).sqrt() * noisy


@torch.no_grad()
def caption_losses(
    denoiser: Denoiser,
    latents: Float[Tensor, "picture channel height width"],
    captions: Sequence[str],
    draws: int = 8,
    seed: int = 0,
    batch_size: int = 64,
) -> Float[Tensor, "picture"]:
    """A denoiser's error in predicting the noise added to each picture, given its caption.

    Of two captions of a picture, the one with the smaller loss fits better: one seed gives both the
    same noise and timesteps.

    Args:
        denoiser: predicts the noise.
        latents: the pictures' (`Denoiser.encode`).
        captions: one for each picture.
        draws: of noise and timestep for each picture, to average over.
        seed: of the draws.
        batch_size: pictures at a time.

    Raises:
        ValueError: the numbers of captions and pictures differ.

    Source: diffusion classifiers (arXiv 2303.16203).
    """
    if len(latents) != len(captions):
        raise ValueError(
            f"Expected a caption for each of {len(latents)} pictures, got {len(captions)}; give "
            "as many."
        )
    kept, losses = denoiser.kept.to(latents), torch.zeros(len(captions))
    generator = torch.Generator().manual_seed(seed)
    timesteps = torch.randint(len(kept), (draws, len(captions)), generator=generator)
    timesteps = timesteps.to(latents.device)
    noise = torch.randn((draws, *latents.shape), generator=generator).to(latents)
    for batch in tqdm(torch.arange(len(captions)).split(batch_size), "captions", disable=None):
        condition = denoiser.describe([captions[index] for index in batch])
        for timestep, batch_noise in zip(timesteps[:, batch], noise[:, batch], strict=True):
            predict = partial(denoiser.predict_noise, timesteps=timestep, condition=condition)
            loss = sds_loss(latents[batch], batch_noise, kept[timestep], predict)
            losses[batch] += loss.cpu() / draws
    return losses


class DenoiserHead(nn.Linear):
    """A linear map from a CLIP's image features into a denoiser's input space (h_w)."""

    def __init__(self, embed_dim: int, shape: tuple[int, int, int]) -> None:
        super().__init__(embed_dim, prod(shape))
        self.shape = shape

    def forward(
        self, features: Float[Tensor, "picture embed"]
    ) -> Float[Tensor, "picture channel height width"]:
        """The latents that the denoiser gets for pictures with these features."""
        # Normalised, as CLIP compares them, but scaled to the magnitude that a layer expects.
        scaled = F.normalize(features, dim=-1) * features.shape[-1] ** 0.5
        return super().forward(scaled).unflatten(1, self.shape)


def load_denoiser(name_or_path: str | Path, clip: ClipBundle) -> Denoiser:
    """Loads a denoiser of diffusers, frozen, onto the device of a CLIP.

    Args:
        name_or_path: "pocket", conditioned on the pocket CLIP's own caption tokens; or a pipeline,
            by its name on the hub or its folder, from which unet, scheduler, text_encoder,
            tokenizer and vae are read.
        clip: the untouched one.

    Raises:
        ImportError: diffusers is not installed.
        FileNotFoundError: the pocket's denoiser has not been made.
        ValueError: it does not load, conditions and UNet differ in width, the scheduler has no
            timesteps to draw from, or it needs more conditions than captions.
    """
    require_packages("sds", "diffusers")
    import diffusers

    name, unet_class = str(name_or_path), diffusers.UNet2DConditionModel
    if name == "pocket":
        folder = asset_path("pocket_denoiser")
        unet = unet_class.from_pretrained(folder).float()
        scheduler: Any = diffusers.DDPMScheduler.from_pretrained(folder)
        return build_denoiser(name, unet, scheduler, *describe_by_tokens(clip), clip=clip)
    try:
        from transformers import CLIPTextModel, CLIPTokenizer

        unet = unet_class.from_pretrained(name, subfolder="unet")
        unet.enable_gradient_checkpointing()  # otherwise each picture takes over a gigabyte
        # The pipeline's own class: read as DDPM's, any other scheduler would get DDPM's timesteps.
        config = diffusers.DDPMScheduler.load_config(name, subfolder="scheduler")
        scheduler_class = getattr(diffusers, config["_class_name"])
        scheduler = scheduler_class.from_pretrained(name, subfolder="scheduler")
        encoder: Any = CLIPTextModel.from_pretrained(name, subfolder="text_encoder")
        tokenizer = CLIPTokenizer.from_pretrained(name, subfolder="tokenizer")
        vae = diffusers.AutoencoderKL.from_pretrained(name, subfolder="vae")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"Expected a diffusers pipeline with a UNet, a scheduler, CLIP's text encoder and a VAE"
            f" in {name!r}, but it does not load ({' '.join(str(error).split())[:300]}); name "
            "another, or fetch its files."
        ) from error
    encoder = encoder.to(clip.device, torch.float32).requires_grad_(False).eval()

    @torch.no_grad()
    def describe(captions: Sequence[str]) -> Condition:
        ids = tokenizer(
            list(captions), padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        return Condition(encoder(ids.to(clip.device))[0])

    return build_denoiser(
        name, unet, scheduler, describe, encoder.config.hidden_size, vae=vae, clip=clip
    )


def build_denoiser(
    name: str,
    unet: Any,
    scheduler: Any,
    describe: Callable[[Sequence[str]], Condition],
    width: int,
    *,
    clip: ClipBundle,
    vae: Any = None,
) -> Denoiser:
    """Assembles a denoiser from its parts, frozen, on the device of a CLIP.

    Args:
        name, unet, scheduler, describe, vae: as in `Denoiser`.
        width: of the features that `describe` returns.
        clip: the untouched one.

    Raises:
        ValueError: as `load_denoiser`.
    """
    config, predicts = unet.config, scheduler.config.get("prediction_type")
    if config.cross_attention_dim != width:
        raise ValueError(
            f"Expected captions of width {config.cross_attention_dim} for the denoiser {name!r}, "
            f"got {width}; take the pocket's for the pocket CLIP alone, and of pipelines one with a"
            " single text encoder, such as Stable Diffusion 1.5."
        )
    if getattr(scheduler, "alphas_cumprod", None) is None or not len(scheduler.alphas_cumprod):
        raise ValueError(
            f"Expected a scheduler with timesteps for the denoiser {name!r}, got "
            f"{type(scheduler).__name__} without any; take a pipeline of DDPM's kind."
        )
    if (
        predicts not in ("epsilon", "v_prediction")
        or config.in_channels != config.out_channels
        or config.addition_embed_type not in (None, "text")  # which comes from the caption
    ):
        raise ValueError(
            f"Expected the denoiser {name!r} of {config.in_channels} channels, told text alone, "
            f"to predict epsilon or v_prediction, got {predicts} of {config.out_channels} channels,"
            f" told {config.addition_embed_type or 'text'}; take a text-to-image pipeline such as "
            "Stable Diffusion 1.5."
        )
    for module in (unet, vae):
        if module is not None:
            module.to(clip.device).requires_grad_(False).eval()
    return Denoiser(name, unet, scheduler, describe, vae)


def describe_by_tokens(clip: ClipBundle) -> tuple[Callable[[Sequence[str]], Condition], int]:
    """A CLIP's own caption tokens as conditions, and their width."""
    length = clip.model.context_length

    def describe(captions: Sequence[str]) -> Condition:
        # An empty caption is one token of zeros, as a tenth of the captions were in training.
        texts = [caption if caption.strip() else "a" for caption in captions]
        tokens = encode_tokens(clip, texts)
        has_text = torch.tensor([bool(caption.strip()) for caption in captions])
        features = tokens.features * clip.embed_dim**0.5 * has_text[:, None, None]
        # Padded to one length: a UNet that also pools tokens ignores the mask.
        padding = length - features.shape[1]
        features, mask = F.pad(features, (0, 0, 0, padding)), F.pad(tokens.mask, (0, padding))
        return Condition(features.to(clip.device), mask.to(clip.device))

    return describe, clip.embed_dim
