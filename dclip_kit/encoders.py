"""CLIP through open_clip: loading, and features of pictures, captions and caption tokens.

Axes: image, text, token, region, embed. All features returned here are L2-normalised.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose

from dclip_kit.assets import asset_path
from dclip_kit.checkpoint import save_tensors, write_atomically
from dclip_kit.hub import require_weights

MERGES_FILE = "merges.txt.gz"  # a shortened vocabulary travels with its model


@dataclass(frozen=True, eq=False)
class ClipBundle:
    """A CLIP with all that belongs to it.

    Attributes:
        model: open_clip's module (`encode_image`, `encode_text`, `visual`).
        preprocess: open_clip's evaluation transform, picture to normalised tensor.
        tokenizer: texts to token ids.
        name: what it was loaded as.
        model_config: open_clip's architecture, for export.
        merges: the tokenizer's vocabulary file; None where it is open_clip's own.
    """

    model: Any  # open_clip's classes share no type that has these
    preprocess: Compose
    tokenizer: Callable[..., Tensor]
    name: str
    model_config: dict
    merges: Path | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def to_pixels(self, picture: Image.Image) -> UInt8[Tensor, "3 height width"]:
        """The preprocessed picture as bytes: a quarter of the memory, and exact."""
        tensor: Any = picture
        for step in self.preprocess.transforms[:-1]:
            tensor = step(tensor)
        return (tensor * 255).round().to(torch.uint8)

    def normalize(
        self, pixels: UInt8[Tensor, "image 3 height width"]
    ) -> Float[Tensor, "image 3 height width"]:
        """What the model takes, from `to_pixels`' bytes; on the model's device."""
        return self.preprocess.transforms[-1](pixels.to(self.device).float() / 255)


def load_clip(
    name_or_path: str | Path = "pocket",
    pretrained: str | None = None,
    device: str | torch.device = "cpu",
) -> ClipBundle:
    """Loads a CLIP for evaluation, in fp32.

    Args:
        name_or_path: "pocket"; a folder with open_clip_config.json and weights; or an architecture
            of open_clip ("ViT-B-32-quickgelu").
        pretrained: for an architecture: a tag of open_clip ("openai"), a file of weights, or
            "untrained" for random ones.
        device: where to put it.

    Raises:
        FileNotFoundError: the folder lacks config or weights, or weights are neither on disk nor
            to be downloaded (said within 5 s).
        ValueError: the name or tag is unknown, the file damaged, of another architecture, or made
            for another activation (QuickGELU).
    """
    if name_or_path == "pocket" or Path(name_or_path).is_dir():
        folder = asset_path("pocket_clip") if name_or_path == "pocket" else Path(name_or_path)
        return _load_folder(folder, str(name_or_path), device)
    name = str(name_or_path)
    if name not in open_clip.list_models():
        raise ValueError(
            f"Expected 'pocket', a folder or an architecture of open_clip, got {name!r}; "
            "open_clip.list_models() lists them."
        )
    untrained = pretrained == "untrained"
    if not untrained:
        require_weights(name, pretrained)
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            name, pretrained=None if untrained else pretrained, device=device
        )
    except Exception as error:  # open_clip, torch and safetensors raise many types
        raise ValueError(
            f"Expected weights for {name}, but {pretrained} do not fit or cannot be "
            f"read ({str(error)[:200]}); check that they belong together."
        ) from error
    return ClipBundle(
        _ready(model),
        preprocess,
        open_clip.get_tokenizer(name),
        name,
        open_clip.get_model_config(name),
    )


def _load_folder(folder: Path, name: str, device: str | torch.device) -> ClipBundle:
    config = folder / "open_clip_config.json"
    if not config.is_file() or not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"Expected open_clip_config.json and a .safetensors file of weights in {folder}; "
            "export_clip writes such a folder."
        )
    reference = f"local-dir:{folder}"
    file = folder / MERGES_FILE
    merges = file if file.exists() else None
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(reference, device=device)
        vocabulary = {"bpe_path": str(file)} if merges else {}
        tokenizer = open_clip.get_tokenizer(reference, **vocabulary)
    except Exception as error:  # open_clip and safetensors raise many types on damaged files
        raise ValueError(
            f"Expected a CLIP in {folder}, but its files are damaged or do not fit "
            f"({str(error)[:200]}); export or fetch it again."
        ) from error
    model_config = json.loads(config.read_text(encoding="utf-8"))["model_cfg"]
    size = model_config["text_cfg"].get("vocab_size", open_clip.CLIPTextCfg.vocab_size)
    if isinstance(tokenizer, open_clip.SimpleTokenizer) and tokenizer.vocab_size != size:
        raise ValueError(
            f"Expected a vocabulary of {size} tokens in {folder}, got {tokenizer.vocab_size}; put "
            f"the model's own {MERGES_FILE} beside its weights."
        )
    return ClipBundle(_ready(model), preprocess, tokenizer, name, model_config, merges)


def _ready(model: Any) -> Any:
    """For evaluation; with channels last, since a ResNet's convolutions are faster so."""
    model.visual.to(memory_format=torch.channels_last)
    return model.eval()


def export_clip(bundle: ClipBundle, folder: Path | str) -> None:
    """Writes what plain open_clip loads as `local-dir:folder`, without this kit; fp32.

    A shortened vocabulary goes with it, as merges.txt.gz; open_clip must be told of it:
    `open_clip.get_tokenizer("local-dir:folder", bpe_path="folder/merges.txt.gz")`.
    """
    folder = Path(folder)
    save_tensors(bundle.model.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = open_clip.model.get_model_preprocess_cfg(bundle.model.visual)
    config = {"model_cfg": bundle.model_config, "preprocess_cfg": preprocess}
    if bundle.merges:
        (folder / MERGES_FILE).write_bytes(bundle.merges.read_bytes())
    else:
        (folder / MERGES_FILE).unlink(missing_ok=True)  # an earlier export's would be misread
    write_atomically(folder / "open_clip_config.json", json.dumps(config, indent=1) + "\n")
