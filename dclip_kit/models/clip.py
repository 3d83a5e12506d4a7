"""CLIP through open_clip: loading, saving, and what it computes in (precision and device).

Axes: image, embed.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import open_clip
import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose

from dclip_kit.runtime.files import asset_path, fingerprint, save_tensors, write_atomically

CONFIG_FILE = "open_clip_config.json"
MERGES_FILE = "merges.txt.gz"  # a shortened vocabulary travels with its model
# As open_clip asks a repository for them.
WEIGHTS_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True, eq=False)
class ClipBundle:
    """A CLIP with all that belongs to it.

    Attributes:
        model: open_clip's module (`encode_image`, `encode_text`, `visual`).
        preprocess: open_clip's evaluation transform, picture to normalised tensor.
        tokenizer: texts to token ids.
        name: what it was loaded as.
        model_config: open_clip's architecture, for `save_clip`.
        merges: the tokenizer's vocabulary file; None where it is open_clip's own.
        precision: what pictures are encoded in, "no" for float32 or "bf16"; features are float32.
    """

    model: Any  # open_clip's classes share no type that has these
    preprocess: Compose
    tokenizer: Callable[..., Tensor]
    name: str
    model_config: dict
    merges: Path | None = None
    precision: str = "no"

    @property
    def embed_dim(self) -> int:
        """Width of the joint space."""
        return self.model_config["embed_dim"]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @cached_property
    def side(self) -> int:
        """The longer side in pixels of the pictures that the model takes."""
        return max(self.to_pixels(Image.new("RGB", (1, 1))).shape[1:])

    @property
    def digest(self) -> str:
        """Of the weights; computed once, and anew only where they have been changed since."""
        weights = list(self.model.state_dict().values())
        state = [(each.data_ptr(), each._version) for each in weights]
        if self.__dict__.get("_digested", (None,))[0] != state:
            self.__dict__["_digested"] = state, fingerprint(*weights)
        return self.__dict__["_digested"][1]

    def to_pixels(self, picture: Image.Image) -> UInt8[Tensor, "3 height width"]:
        """The preprocessed picture as bytes: a quarter of the memory, and exact."""
        *steps, _, _ = self.preprocess.transforms  # but for those to floats, and to normal ones
        for step in steps:
            picture = step(picture)
        # Threads that read pictures call this, and each of torch's functions would start threads
        # of its own in each of them.
        return torch.from_numpy(np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1)))

    def normalize(
        self, pixels: Shaped[Tensor, "image 3 height width"]
    ) -> Float[Tensor, "image 3 height width"]:
        """What the model takes, from pixels; on the model's device.

        Args:
            pixels: `to_pixels`' bytes, or floats from 0 to 1.

        Raises:
            ValueError: they are of another type, or floats outside 0 to 1: normalised already, say.
        """
        last, unit = self.preprocess.transforms[-1], self.to_unit(pixels)
        mean, std = (
            send(torch.tensor(each)[:, None, None], self.device) for each in (last.mean, last.std)
        )
        # As torchvision's, which would wait for the device to see that no deviation is zero. In
        # place: on CPUs, getting memory for another tensor takes longer than filling it.
        return unit.sub_(mean).div_(std)

    def to_unit(
        self, pixels: Shaped[Tensor, "image 3 height width"]
    ) -> Float[Tensor, "image 3 height width"]:
        """Pixels as floats from 0 to 1, in memory of their own; otherwise as `normalize`."""
        given = send(pixels, self.device).contiguous(memory_format=torch.channels_last)  # quick
        if given.dtype == torch.uint8:
            return given.float().div_(255)
        low, high = given.min().item(), given.max().item()
        if not given.is_floating_point() or not 0 <= low <= high <= 1:
            raise ValueError(
                "Expected pixels as bytes or as floats from 0 to 1, got "
                f"{str(given.dtype).removeprefix('torch.')} from {low:g} to {high:g}; give "
                "pictures, or their pixels as they are before CLIP normalises them."
            )
        return given.to(torch.float32, copy=True)


def load_clip(
    name_or_path: str | Path = "pocket",
    pretrained: str | None = None,
    device: str | torch.device = "cpu",
) -> ClipBundle:
    """Loads a CLIP for evaluation, in fp32; it computes what plain open_clip computes.

    Python that comes with a tokenizer or a text tower is never run.

    Args:
        name_or_path: "pocket"; a folder with open_clip_config.json and weights, as it is or as
            "local-dir:folder"; a repository, "hf-hub:organisation/name"; or an architecture of
            open_clip ("ViT-B-32-quickgelu"), those added by `open_clip.add_model_config` included.
        pretrained: for an architecture only: a tag of open_clip ("openai"), a file of weights, or
            "untrained" for random ones.
        device: where to put it.

    Raises:
        FileNotFoundError: the folder lacks config or weights, or has a pickle that open_clip would
            read instead.
        ValueError: there is no such device; the name or tag is unknown; or files are damaged, of
            another architecture, made for another activation (QuickGELU), neither on disk nor to be
            downloaded, or need a package that is not installed.
    """
    require_device(device)
    name = str(name_or_path)
    folder = find_folder(name)
    if pretrained is not None and (folder or name.startswith("hf-hub:")):
        raise ValueError(
            f"Expected no `pretrained` for {name}, which has weights of its own, got "
            f"{pretrained!r}; leave it out."
        )
    if folder:
        _require_clip_in(folder)
    elif not name.startswith("hf-hub:"):
        _require_architecture(name)
        if pretrained != "untrained":
            require_weights(name, pretrained)
    merges = folder / MERGES_FILE if folder and (folder / MERGES_FILE).exists() else None
    reference = f"local-dir:{folder}" if folder else name
    try:
        if name.startswith("hf-hub:"):
            _require_one(name.removeprefix("hf-hub:"), CONFIG_FILE)
        elif hub := open_clip.get_pretrained_cfg(name, pretrained or "").get("hf_hub"):
            repository, _, file = hub.rpartition("/")
            _require_one(
                repository, *((f"{Path(file).stem}.safetensors", file) if file else WEIGHTS_FILES)
            )
        model_config = open_clip.get_model_config(reference)
        tokenizer = _load_tokenizer(reference, model_config["text_cfg"], merges)
        model, _, preprocess = open_clip.create_model_and_transforms(
            reference,
            pretrained=None if pretrained == "untrained" else pretrained,
            device=device,
            pretrained_text=False,  # "untrained" holds for a text tower of transformers too
            require_pretrained=pretrained != "untrained",  # else missing weights are only logged
        )
    except Exception as error:  # open_clip, torch, timm and transformers raise many types
        reason = " ".join(str(error).split())[:400]
        raise ValueError(
            f"Expected the files of {name} and its weights ({pretrained or 'its own'}) on disk or "
            f"on the network, whole and of one kind, but they do not load ({reason}); fetch them "
            "again, or name others."
        ) from error
    size = model_config["text_cfg"].get("vocab_size", open_clip.CLIPTextCfg.vocab_size)
    read = getattr(tokenizer, "vocab_size", size)  # transformers' know their own
    # A table of embeddings may have rows to spare, but not beside a vocabulary made for it.
    if read > size or (merges and read != size):
        raise ValueError(
            f"Expected a vocabulary of {size} tokens for {name}, got {read}; load a folder with "
            f"the model's own {MERGES_FILE} in it."
        )
    return ClipBundle(model.eval(), preprocess, tokenizer, name, model_config, merges)


def find_folder(name: str) -> Path | None:
    """The folder of a CLIP that `load_clip` is given by this name; None where it is in none."""
    if name == "pocket":
        return asset_path("pocket_clip")
    if name.startswith("local-dir:") or Path(name).is_dir():
        return Path(name.removeprefix("local-dir:"))
    return None


def tag_for(name: str, pretrained: str | None) -> str | None:
    """The tag, if this is an architecture: other CLIPs have weights of their own.

    So one tag can be given for several models, and stay a profile's when its CLIP is changed.
    """
    return pretrained if name in open_clip.list_models() else None


def _require_clip_in(folder: Path) -> None:
    """Raises FileNotFoundError where open_clip would find no CLIP in a folder, or a pickle."""
    first = Path(open_clip.factory._find_checkpoint_in_dir(folder) or "none")
    if (folder / CONFIG_FILE).is_file() and first.suffix == ".safetensors":
        return
    if inner := sorted(str(each.parent) for each in folder.glob(f"*/{CONFIG_FILE}")):
        raise FileNotFoundError(
            f"Expected a model, got a folder of several; name one of them: {', '.join(inner)}."
        )
    raise FileNotFoundError(
        f"Expected {CONFIG_FILE} and a .safetensors file of weights in {folder}, of whose files "
        f"open_clip would take {first.name} for weights; save_clip writes such a folder."
    )


def _require_architecture(name: str) -> None:
    """Raises ValueError where open_clip has no architecture of this name."""
    if Path(f"{name.removesuffix('.safetensors')}.safetensors").is_file():
        raise ValueError(
            f"Expected the folder of a model, got {name}, the weights of a tower alone, as earlier "
            "versions wrote them; train it again with distill and another --out."
        )
    if name not in open_clip.list_models():
        raise ValueError(
            f"Expected 'pocket', a folder or an architecture of open_clip, got {name!r}; open_"
            "clip.list_models() lists them, and a repository is 'hf-hub:organisation/name'."
        )


def _load_tokenizer(
    reference: str, text: Mapping[str, Any], merges: Path | None
) -> Callable[..., Tensor]:
    """The tokenizer of open_clip's model, whose own Python is never run."""
    options: dict[str, Any] = {"bpe_path": str(merges)} if merges else {}
    # Else transformers would run a model's own Python where its files say so, or ask on the
    # terminal.
    if text.get("hf_tokenizer_name"):
        options["trust_remote_code"] = False
    if text.get("hf_model_name"):
        from transformers import AutoConfig

        AutoConfig.from_pretrained(text["hf_model_name"], trust_remote_code=False)
    return open_clip.get_tokenizer(reference, **options)


def _require_one(repository: str, *files: str) -> None:
    """Raises if none of these is on disk and the hub is silent: a download would ask six times."""
    if not any(isinstance(try_to_load_from_cache(repository, each), str) for each in files):
        with suppress(HfHubHTTPError):  # an answer: the download will say what it means
            url = hf_hub_url(repository, files[0])
            get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)


def require_weights(name: str, pretrained: str | None) -> None:
    """Checks that there are such weights for an architecture, and that they fit its activation.

    No file says which activation its weights were trained with: for a file of OpenAI's, name a
    -quickgelu architecture.

    Args:
        name: an architecture of open_clip.
        pretrained: a tag of open_clip, or a file.

    Raises:
        ValueError: no such tag or file, or the weights were trained with the other activation.
    """
    weights = open_clip.get_pretrained_cfg(name, pretrained or "")
    if not weights and not Path(pretrained or "").is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(
            f"Expected weights for {name}: one of its tags ({tags}), a file that exists or "
            f"'untrained', got {pretrained!r}."
        )
    trained_quick = weights.get("quick_gelu", False)
    fitting = name.removesuffix("-quickgelu") + "-quickgelu" * trained_quick
    quick = open_clip.get_model_config(name).get("quick_gelu", False)
    # Some towers are quick under a plain name and have no twin: there, the tag only does not say.
    if weights and trained_quick != quick and fitting != name:
        raise ValueError(
            f"Expected an architecture with the activation that {pretrained!r} was trained with, "
            f"got {name}; take {fitting}."
        )


def save_clip(bundle: ClipBundle, folder: Path | str) -> None:
    """Writes what plain open_clip loads as `local-dir:folder`, without this kit.

    Weights are kept bit for bit, in half precision where that says the same. A tokenizer of
    transformers (SigLIP's, or a multilingual CLIP's) is saved in the folder, where open_clip looks
    for it. A shortened vocabulary goes with it, as merges.txt.gz; open_clip must be told of it:
    `open_clip.get_tokenizer("local-dir:folder", bpe_path="folder/merges.txt.gz")`.
    """
    folder = Path(folder)
    if bundle.merges:
        write_atomically(folder / MERGES_FILE, bundle.merges.read_bytes())
    else:
        (folder / MERGES_FILE).unlink(missing_ok=True)  # an earlier model's would be misread
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(bundle.tokenizer, "save_pretrained"):
        with TemporaryDirectory(dir=folder) as temporary:
            bundle.tokenizer.save_pretrained(temporary)
            for file in Path(temporary).iterdir():
                file.replace(folder / file.name)
    config = {
        "model_cfg": bundle.model_config,
        "preprocess_cfg": open_clip.model.get_model_preprocess_cfg(bundle.model.visual),
    }
    write_atomically(folder / CONFIG_FILE, json.dumps(config, indent=1) + "\n")
    weights = {name: _shorten(each) for name, each in bundle.model.state_dict().items()}
    save_tensors(weights, folder / WEIGHTS_FILES[0])


def _shorten(values: Tensor) -> Tensor:
    """The same numbers in half precision, if it has them all."""
    short = values.half() if values.dtype == torch.float32 else values
    return short if torch.equal(short.to(values.dtype), values) else values


# What models compute in


def choose_precision(asked: str) -> str:
    """Turns "auto" into bf16 where `accelerate launch` or the hardware says so, else into fp32.

    Args:
        asked: `StudentSettings.mixed_precision`.

    Raises:
        ValueError: accelerate was launched with another precision than these.
    """
    if asked != "auto":
        return asked
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", "bf16"):
        raise ValueError(
            f"Expected accelerate's mixed precision to be no or bf16, got {launched!r}; launch it "
            "with --mixed_precision bf16, or set the student's mixed_precision to no."
        )
    if torch.cuda.is_available():
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu._is_avx512_bf16_supported()
    return "bf16" if able or launched == "bf16" else "no"


def require_device(device: str | torch.device) -> None:
    """Checks that this machine has a device that can compute.

    Raises:
        ValueError: it has none of this name.
    """
    try:
        torch.empty(1, device=device).cpu()  # as nothing on "meta" can be
    except (RuntimeError, AssertionError, ImportError) as error:
        why = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(
            f"Expected a device of this machine, such as cpu or cuda:0, got {str(device)!r} "
            f"({why}); name one."
        ) from error


def send(values: Tensor, device: torch.device) -> Tensor:
    """Values on a device, without waiting until they are there.

    Copies to a GPU wait for all that it has to do before, unless they are from pinned memory.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """For one forward pass.

    Accelerate's would last: the first training's precision would hold for every later one in the
    process, and wrap the tower, so that validation would run in bf16 too.

    Raises:
        ValueError: the precision is neither "no" nor "bf16".
    """
    if precision not in ("no", "bf16"):
        raise ValueError(
            f"Expected a precision of no or bf16 to compute in, got {precision!r}; give either."
        )
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
