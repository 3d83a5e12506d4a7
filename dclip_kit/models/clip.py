"""CLIP through open_clip: loading, saving, precision and device.

Axes: image, embed.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
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
from torchvision.transforms.functional import center_crop

from dclip_kit.runtime.files import (
    asset_path,
    fingerprint,
    replacing_files,
    save_tensors,
    write_atomically,
)

CONFIG_FILE = "open_clip_config.json"
MERGES_FILE = "merges.txt.gz"  # a shortened vocabulary travels with its model
# In the order in which open_clip looks for them in a repository.
WEIGHTS_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
POCKET = {"pocket": "pocket_clip", "pocket_vit": "pocket_vit"}  # CLIPs in assets
_LONGEST = 100  # times the shorter side, of a picture that is resized by it


@dataclass(frozen=True, eq=False)
class ClipBundle:
    """A CLIP model with its preprocessing and tokenizer.

    Attributes:
        model: open_clip's module (`encode_image`, `encode_text`, `visual`).
        preprocess: open_clip's evaluation transform, picture to normalised tensor.
        tokenizer: texts to token ids.
        name: the name or path it was loaded by.
        model_config: open_clip's architecture, for `save_clip`.
        merges: the tokenizer's vocabulary file; None for open_clip's own.
        precision: of encoding pictures, "no" for float32 or "bf16"; features are float32.
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
        """The device that the model is on."""
        return next(self.model.parameters()).device

    @cached_property
    def side(self) -> int:
        """The longer side in pixels of the pictures that the model takes."""
        return max(self.to_pixels(Image.new("RGB", (1, 1))).shape[1:])

    @property
    def digest(self) -> str:
        """Fingerprint of the weights; recomputed only after they have changed."""
        weights = list(self.model.state_dict().values())
        state = [(tensor.data_ptr(), tensor._version) for tensor in weights]
        if self.__dict__.get("_digested", (None,))[0] != state:
            self.__dict__["_digested"] = state, fingerprint(*weights)
        return self.__dict__["_digested"][1]

    def to_pixels(self, picture: Image.Image) -> UInt8[Tensor, "3 height width"]:
        """The preprocessed picture as bytes: a quarter of the memory, and exact."""
        *steps, _, _ = self.preprocess.transforms  # without conversion to floats and normalisation
        short, long = sorted(picture.size)
        # Resized by its shorter side, a sliver would fill the memory; only its middle is kept.
        if isinstance(getattr(steps[0], "size", None), int) and long > _LONGEST * short:
            picture = center_crop(picture, [min(x, _LONGEST * short) for x in picture.size[::-1]])
        for step in steps:
            picture = step(picture)
        # Called in the threads that read pictures: in each of them, torch's own functions would
        # start further threads.
        return torch.from_numpy(np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1)))

    def normalize(
        self, pixels: Shaped[Tensor, "image 3 height width"]
    ) -> Float[Tensor, "image 3 height width"]:
        """Turns pixels into the model's input, on the model's device.

        Args:
            pixels: of `to_pixels`.

        Raises:
            ValueError: they are not bytes.
        """
        last, unit = self.preprocess.transforms[-1], self.to_unit(pixels)
        mean, std = (
            send(torch.tensor(values)[:, None, None], self.device)
            for values in (last.mean, last.std)
        )
        # The same as torchvision's, which would wait for the device to check that no deviation is
        # zero. In place: on CPUs, allocating another tensor takes longer than filling it.
        return unit.sub_(mean).div_(std)

    def to_unit(
        self, pixels: Shaped[Tensor, "image 3 height width"]
    ) -> Float[Tensor, "image 3 height width"]:
        """The pixels as floats from 0 to 1; arguments and errors as in `normalize`."""
        if pixels.dtype != torch.uint8:
            raise ValueError(
                f"Expected pixels as bytes, got {str(pixels.dtype).removeprefix('torch.')}; give "
                "pictures, or what to_pixels makes of them, which CLIP has yet to normalise."
            )
        pixels = send(pixels, self.device).contiguous(memory_format=torch.channels_last)  # faster
        return pixels.float().div_(255)


def load_clip(
    name_or_path: str | Path = "pocket",
    pretrained: str | None = None,
    device: str | torch.device = "cpu",
) -> ClipBundle:
    """Loads a CLIP for evaluation, in fp32; it computes what plain open_clip computes.

    Python code that comes with a tokenizer or a text tower is never run.

    Args:
        name_or_path: "pocket", or "pocket_vit" with a vision transformer; a folder with
            open_clip_config.json and weights, as it is or as "local-dir:folder"; a
            repository, "hf-hub:organisation/name"; or an architecture of open_clip
            ("ViT-B-32-quickgelu"), those added by `open_clip.add_model_config` included.
        pretrained: for an architecture only: a tag of open_clip ("openai"), a file of weights, or
            "untrained" for random ones.
        device: where to put it.

    Raises:
        FileNotFoundError: the folder lacks config or weights, or has a pickle that open_clip would
            read instead.
        ValueError: there is no such device; the name or tag is unknown; or files are damaged,
            belong to another architecture, were made for another activation (QuickGELU), can be
            neither found nor downloaded, or need a package that is not installed.
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
        elif hub_path := open_clip.get_pretrained_cfg(name, pretrained or "").get("hf_hub"):
            repository, _, file = hub_path.rpartition("/")
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
    vocab_size = model_config["text_cfg"].get("vocab_size", open_clip.CLIPTextCfg.vocab_size)
    token_count = getattr(
        tokenizer, "vocab_size", vocab_size
    )  # tokenizers of transformers know their own
    # An embedding table may have spare rows, but not with a vocabulary made for it.
    if token_count > vocab_size or (merges and token_count != vocab_size):
        raise ValueError(
            f"Expected a vocabulary of {vocab_size} tokens for {name}, got {token_count}; load a "
            f"folder with the model's own {MERGES_FILE} in it."
        )
    return ClipBundle(model.eval(), preprocess, tokenizer, name, model_config, merges)


def find_folder(name: str) -> Path | None:
    """The folder that `load_clip` reads for this name; None if the name is not a folder's."""
    if name in POCKET:
        return asset_path(POCKET[name])
    if name.startswith("local-dir:") or Path(name).is_dir():
        return Path(name.removeprefix("local-dir:"))
    return None


def tag_for(name: str, pretrained: str | None) -> str | None:
    """The tag if the name is an architecture; other CLIPs have weights of their own.

    So one tag can be given for several models, and a profile can keep it when its CLIP changes.
    """
    return pretrained if name in open_clip.list_models() else None


def _require_clip_in(folder: Path) -> None:
    """Raises FileNotFoundError if open_clip would find no CLIP in a folder, or read a pickle."""
    weights_file = Path(open_clip.factory._find_checkpoint_in_dir(folder) or "none")
    if (folder / CONFIG_FILE).is_file() and weights_file.suffix == ".safetensors":
        return
    if models := sorted(str(path.parent) for path in folder.glob(f"*/{CONFIG_FILE}")):
        raise FileNotFoundError(
            f"Expected a model, got a folder of several; name one of them: {', '.join(models)}."
        )
    raise FileNotFoundError(
        f"Expected {CONFIG_FILE} and a .safetensors file of weights in {folder}, where "
        f"open_clip would take {weights_file.name} for weights; save_clip writes such a folder."
    )


def _require_architecture(name: str) -> None:
    """Raises ValueError if open_clip has no architecture of this name."""
    if name not in open_clip.list_models():
        raise ValueError(
            f"Expected {', '.join(map(repr, POCKET))}, a folder or an architecture of open_clip, "
            f"got {name!r}; open_clip.list_models() lists them, and a repository is "
            "'hf-hub:organisation/name'."
        )


def _load_tokenizer(
    reference: str, text: Mapping[str, Any], merges: Path | None
) -> Callable[..., Tensor]:
    """The tokenizer of open_clip's model; Python code that comes with it is never run."""
    options: dict[str, Any] = {"bpe_path": str(merges)} if merges else {}
    # Otherwise transformers would run Python code from the model's files, or ask on the terminal.
    if text.get("hf_tokenizer_name"):
        options["trust_remote_code"] = False
    if text.get("hf_model_name"):
        from transformers import AutoConfig

        AutoConfig.from_pretrained(text["hf_model_name"], trust_remote_code=False)
    return open_clip.get_tokenizer(reference, **options)


def _require_one(repository: str, *files: str) -> None:
    """Raises if none of these is on disk and the hub is silent; a download would try six times."""
    if not any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        with suppress(HfHubHTTPError):  # an answer, which the download will report
            url = hf_hub_url(repository, files[0])
            get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)


def require_weights(name: str, pretrained: str | None) -> None:
    """Checks that an architecture has these weights, and that they fit its activation.

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
    fitting_name = name.removesuffix("-quickgelu") + "-quickgelu" * trained_quick
    quick = open_clip.get_model_config(name).get("quick_gelu", False)
    # Some towers use QuickGELU under a plain name and have no -quickgelu twin; there the tag only
    # fails to mention it.
    if weights and trained_quick != quick and fitting_name != name:
        raise ValueError(
            f"Expected an architecture with the activation that {pretrained!r} was trained with, "
            f"got {name}; take {fitting_name}."
        )


def save_clip(bundle: ClipBundle, folder: Path | str) -> None:
    """Writes a folder that plain open_clip loads as `local-dir:folder`, without this kit.

    Weights are kept exactly, in half precision where that loses nothing. A tokenizer of
    transformers (SigLIP's, or a multilingual CLIP's) is saved in the folder, where open_clip looks
    for it. A shortened vocabulary is saved as merges.txt.gz; tell open_clip where it is:
    `open_clip.get_tokenizer("local-dir:folder", bpe_path="folder/merges.txt.gz")`.
    """
    folder = Path(folder)
    if bundle.merges:
        write_atomically(folder / MERGES_FILE, bundle.merges.read_bytes())
    else:
        (folder / MERGES_FILE).unlink(missing_ok=True)  # an earlier model's would be read instead
    if hasattr(bundle.tokenizer, "save_pretrained"):
        with replacing_files(folder) as temporary:
            bundle.tokenizer.save_pretrained(temporary)
    config = {
        "model_cfg": bundle.model_config,
        "preprocess_cfg": open_clip.model.get_model_preprocess_cfg(bundle.model.visual),
    }
    write_atomically(folder / CONFIG_FILE, json.dumps(config, indent=1) + "\n")
    weights = {name: _shorten(tensor) for name, tensor in bundle.model.state_dict().items()}
    save_tensors(weights, folder / WEIGHTS_FILES[0])


def _shorten(values: Tensor) -> Tensor:
    """The values in half precision if it represents them all exactly, else as they are."""
    half = values.half() if values.dtype == torch.float32 else values
    return half if torch.equal(half.to(values.dtype), values) else values


# Precision and device


def choose_precision(asked: str, device: torch.device | str) -> str:
    """Turns "auto" into bf16 if `accelerate launch` asks for it or the hardware has it, else fp32.

    Args:
        asked: `StudentSettings.mixed_precision`.
        device: to train on.

    Raises:
        ValueError: accelerate was launched with a precision other than no or bf16.
    """
    if asked != "auto":
        return asked
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", "bf16"):
        raise ValueError(
            f"Expected accelerate's mixed precision to be no or bf16, got {launched!r}; launch it "
            "with --mixed_precision bf16, or set the student's mixed_precision to no."
        )
    if "cuda" in str(device):
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = torch.cpu._is_avx512_bf16_supported()
    return "bf16" if has_bf16 or launched == "bf16" else "no"


def choose_device(name: str) -> str:
    """The device by its name; "auto" is this process's GPU if there is one, else the CPU.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        if on_cpu or not torch.cuda.is_available():
            return "cpu"
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    require_device(name)
    return name


def require_device(device: str | torch.device) -> None:
    """Checks that this machine has a device that can compute.

    Raises:
        ValueError: it has no such device.
    """
    try:
        torch.empty(1, device=device).cpu()  # which fails on "meta"
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(
            f"Expected a device of this machine, such as cpu or cuda:0, got {str(device)!r} "
            f"({reason}); name one."
        ) from error


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copies values to a device, without waiting for the copy to finish.

    A copy to a GPU waits for all its earlier work, unless it is from pinned memory.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The precision for one forward pass.

    Accelerate's setting would last: the first training's precision would hold for every later one
    in the process, and it wraps the tower, so that validation would run in bf16 too.

    Raises:
        ValueError: the precision is neither "no" nor "bf16".
    """
    if precision not in ("no", "bf16"):
        raise ValueError(
            f"Expected a precision of no or bf16 to compute in, got {precision!r}; give either."
        )
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
