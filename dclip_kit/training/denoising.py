"""The term of SDS-CLIP (arXiv 2307.09233): a frozen denoiser, given the caption, is the teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dclip_kit.losses import sds_loss
from dclip_kit.models.clip import autocast, send
from dclip_kit.models.denoiser import Denoiser, DenoiserHead
from dclip_kit.runtime.files import fingerprint
from dclip_kit.runtime.processes import gather_batch, own_share
from dclip_kit.training.terms import Batch, Term


@dataclass(frozen=True, eq=False)
class DenoiserTerm(Term):
    """A linear map should turn the picture's features into latents that are easy to denoise.

    Attributes:
        denoiser: frozen; it runs on its own device, perhaps not the student's.
        texts: all captions; the denoiser is given each picture's first one in the batch.
        seed: of noise and timesteps.
        timesteps: two shares of the denoiser's timesteps, to draw between.
        precision: of the denoiser's computation.
    """

    name = "sds"
    denoiser: Denoiser
    texts: Sequence[str]
    seed: int
    timesteps: tuple[float, float]
    precision: str

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        denoiser, rows, mapped = self.denoiser, batch.rows, batch.heads[self.name]
        share, device, steps = own_share(len(rows)), denoiser.unet.device, len(denoiser.kept)
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + batch.number)
        first = min(round(self.timesteps[0] * steps), steps - 1)  # at least one timestep
        end = max(round(self.timesteps[1] * steps), first + 1)
        timesteps = torch.randint(first, end, (len(rows),), generator=generator)[share]
        noise = torch.randn((len(rows), *denoiser.shape), generator=generator)[share]
        condition = denoiser.describe([self.texts[index] for index in rows[share, 0].tolist()])
        predict = partial(
            denoiser.predict_noise, timesteps=send(timesteps, device), condition=condition
        )
        with autocast(device, self.precision):
            losses = sds_loss(
                mapped.float().to(device), send(noise, device), denoiser.kept[timesteps], predict
            ).to(mapped.device)
        return gather_batch(losses[:, None], losses[:, None], len(rows), len(rows))[0].mean()

    def build_head(self, embed_dim: int) -> nn.Module:
        """The linear map into the denoiser's input space."""
        return DenoiserHead(embed_dim, self.denoiser.shape)

    def describe(self) -> Any:
        """The denoiser."""
        weights: Tensor = next(self.denoiser.unet.parameters())
        return [self.denoiser.name, fingerprint(self.denoiser.kept, weights)]
