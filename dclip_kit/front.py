"""The frozen front of an image tower: computed once a picture, instead of once an epoch and arm."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import PatchDropout, VisionTransformer
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from dclip_kit.distributed import gather_rows, is_main_process, own_share
from dclip_kit.encoders import ClipBundle
from dclip_kit.precision import fold_norms
from dclip_kit.reading import Pictures, join_batches, read_batches
from dclip_kit.student import choose_parameters, follows_blocks


@dataclass(frozen=True, eq=False)
class FrozenFront:
    """All of an image tower before the first block that differs between some CLIPs.

    Attributes:
        clip: one of them.
        blocks: how many the front has; a ResNet's may be its stem alone, with none.
    """

    clip: ClipBundle
    blocks: int

    @torch.no_grad()
    def activations(
        self,
        pictures: Pictures,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 64,
        progress: bool = True,
    ) -> Float[Tensor, "image ..."]:
        """What the front makes of pictures, to be given to `rest` in the place of their pixels.

        Each of several processes, all of which must call it, computes its share, and all get all.

        Raises:
            ValueError: as `read_pixels`, or an activation is not finite.
        """
        if len(pictures) == 0:
            raise ValueError("Expected at least one picture, got none.")
        visual: Any = fold_norms(self.clip.model.visual)
        embed = visual.stem if isinstance(visual, ModifiedResNet) else visual._embeds
        own = own_share(len(pictures))
        batches = own.split(batch_size)
        bar = tqdm(
            read_batches(self.clip, pictures, batches, busy=self.clip.device),
            desc="frozen blocks",
            total=len(batches),
            delay=2,
            disable=not (progress and is_main_process()),
        )

        def make(pixels: Tensor) -> Tensor:
            hidden = embed(self.clip.normalize(pixels))
            made = _pass_blocks(visual, slice(self.blocks), hidden).to(dtype).cpu()
            if not made.isfinite().all():
                raise ValueError(
                    f"Expected finite activations, got NaN or infinity in {dtype}; the model's "
                    "weights are damaged, or a policy that trains all blocks is needed."
                )
            return made

        return gather_rows(join_batches(map(make, bar), len(own)))[: len(pictures)]

    def size_of(self, count: int, dtype: torch.dtype = torch.float32) -> int:
        """The bytes that activations of so many pictures take."""
        blank = [Image.new("RGB", (1, 1))]
        return count * self.activations(blank, dtype, progress=False).nbytes

    def rest(self, bundle: ClipBundle) -> ClipBundle:
        """A CLIP whose image tower takes the front's activations; it shares all weights."""
        visual = copy.copy(bundle.model.visual)
        visual.front_blocks = self.blocks
        visual.forward = MethodType(_go_on, visual)
        return bundle.with_tower(visual)

    def whole(self, rest: ClipBundle) -> ClipBundle:
        """The CLIP that `rest` was made of, or that came of its training; it shares all weights."""
        visual = copy.copy(rest.model.visual)
        del visual.forward, visual.front_blocks
        return rest.with_tower(visual)


def find_front(bundle: ClipBundle, policy: str) -> FrozenFront | None:
    """What a freeze policy leaves as it is before the first block that trains; None if nothing.

    Raises:
        ValueError: as `freeze`.
    """
    return _front_before(bundle, choose_parameters(bundle, policy))


def find_shared_front(bundles: Sequence[ClipBundle]) -> FrozenFront | None:
    """What the image towers of some CLIPs have in common before the first difference; or None."""
    first, *others = [bundle.model.visual.state_dict() for bundle in bundles]
    if any(other.keys() != first.keys() for other in others):
        return None
    differing = [
        name
        for name, value in first.items()
        if not all(torch.equal(value, other[name]) for other in others)
    ]
    return _front_before(bundles[0], differing)


def _front_before(bundle: ClipBundle, names: Iterable[str]) -> FrozenFront | None:
    """The front before the first of some parameters, where it is one and always the same."""
    visual = bundle.model.visual
    if type(visual) not in (ModifiedResNet, VisionTransformer):
        return None
    if isinstance(getattr(visual, "patch_dropout", None), PatchDropout):  # another each time
        return None
    blocks = _list_blocks(visual)
    place = {module: number for number, block in enumerate(blocks) for module in block.modules()}
    owners = dict(visual.named_modules())
    count = len(blocks)
    for name in names:
        owner = owners[name.rpartition(".")[0]]
        if not follows_blocks(name):
            count = min(count, place.get(owner, -1))  # what is in no block stands before them
    least = 0 if isinstance(visual, ModifiedResNet) else 1  # a ViT's stem costs next to nothing
    return FrozenFront(bundle, count) if count >= least else None


def _list_blocks(visual: Any) -> list[nn.Module]:
    if isinstance(visual, ModifiedResNet):
        return [*visual.layer1, *visual.layer2, *visual.layer3, *visual.layer4]
    return list(visual.transformer.resblocks)


def _pass_blocks(visual: Any, blocks: slice, hidden: Tensor) -> Tensor:
    tokens_first = isinstance(visual, VisionTransformer) and not visual.transformer.batch_first
    hidden = hidden.transpose(0, 1) if tokens_first else hidden
    for block in _list_blocks(visual)[blocks]:
        hidden = block(hidden)
    return hidden.transpose(0, 1) if tokens_first else hidden


def _go_on(visual: Any, hidden: Tensor) -> Any:
    """The forward pass of open_clip's towers behind the front."""
    hidden = _pass_blocks(visual, slice(visual.front_blocks, None), hidden)
    if isinstance(visual, ModifiedResNet):
        return visual.attnpool(hidden)
    pooled, tokens = visual._pool(hidden)
    if visual.proj is not None:
        pooled = pooled @ visual.proj
    return (pooled, tokens) if visual.output_tokens else pooled
