"""The term of SDS-CLIP (arXiv 2307.09233): a frozen denoiser, told the caption, is the teacher."""

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
    """What a linear map makes of the picture's features is to be easy to denoise.

    Attributes:
        denoiser: frozen; it works where it is, which is perhaps not where the student trains.
        texts: all captions; the denoiser is told a picture's first of the batch.
        seed: of noise and timesteps.
        timesteps: the shares of the denoiser's that they are drawn between.
        precision: that the denoiser works in.
    """

    name = "sds"
    denoiser: Denoiser
    texts: Sequence[str]
    seed: int
    timesteps: tuple[float, float]
    precision: str

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        denoiser, rows, mapped = self.denoiser, batch.rows, batch.heads[self.name]
        own, device, steps = own_share(len(rows)), denoiser.unet.device, len(denoiser.kept)
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + batch.number)
        first = min(round(self.timesteps[0] * steps), steps - 1)  # of one timestep at least
        end = max(round(self.timesteps[1] * steps), first + 1)
        drawn = torch.randint(first, end, (len(rows),), generator=generator)[own]
        noise = torch.randn((len(rows), *denoiser.shape), generator=generator)[own]
        told = denoiser.describe([self.texts[index] for index in rows[own, 0].tolist()])
        predict = partial(denoiser.predict_noise, timesteps=send(drawn, device), condition=told)
        with autocast(device, self.precision):
            losses = sds_loss(
                mapped.float().to(device), send(noise, device), denoiser.kept[drawn], predict
            ).to(mapped.device)
        return gather_batch(losses[:, None], losses[:, None], len(rows), len(rows))[0].mean()

    def build_head(self, embed_dim: int) -> nn.Module:
        """The linear map into the denoiser's input space."""
        return DenoiserHead(embed_dim, self.denoiser.shape)

    def describe(self) -> Any:
        """The denoiser."""
        weights: Tensor = next(self.denoiser.unet.parameters())
        return [self.denoiser.name, fingerprint(self.denoiser.kept, weights)]
