"""CLIP through open_clip: loading, and features of pictures, captions and caption tokens.

Axes: image, text, token, region, embed. All features returned here are L2-normalised.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import open_clip
import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from jaxtyping import Float, Shaped, UInt8
from open_clip.factory import _find_checkpoint_in_dir
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose

from dclip_kit.models.precision import send
from dclip_kit.runtime.files import asset_path, save_tensors, write_atomically

CONFIG_FILE = "open_clip_config.json"
# As open_clip asks a repository for them.
WEIGHTS_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# transformers runs what stands in `auto_map` if `trust_remote_code` is true; where that is not
# said, it asks on the terminal.
_ASKS_FOR_CODE = re.compile(r'"auto_map":|"trust_remote_code": (?!false|null)')
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
        low, high = (given.min().item(), given.max().item()) if given.numel() else (0, 0)
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

    Args:
        name_or_path: "pocket"; a folder with open_clip_config.json and weights, as it is or as
            "local-dir:folder"; a repository, "hf-hub:organisation/name"; or an architecture of
            open_clip ("ViT-B-32-quickgelu"), those added by `open_clip.add_model_config` included.
        pretrained: for an architecture only: a tag of open_clip ("openai"), a file of weights, or
            "untrained" for random ones.
        device: where to put it.

    Raises:
        FileNotFoundError: the folder lacks config or weights, or files are neither on disk nor to
            be downloaded (said once the hub has not answered within HF_HUB_ETAG_TIMEOUT, 10 s).
        ValueError: the name or tag is unknown, the file damaged, of another architecture, or made
            for another activation (QuickGELU); or its tokenizer or text tower comes with Python of
            its own, which is never run.
        ImportError: its tokenizer or text tower is transformers', which is not installed.
    """
    name = str(name_or_path)
    folder = _find_folder(name)
    if pretrained is not None and (folder or name.startswith("hf-hub:")):
        raise ValueError(
            f"Expected no `pretrained` for {name}, which has weights of its own, got "
            f"{pretrained!r}; leave it out."
        )
    if folder:
        require_folder(folder)
    elif name.startswith("hf-hub:"):
        for files in ((CONFIG_FILE,), WEIGHTS_FILES):
            require_one(f"the CLIP {name}", name.removeprefix("hf-hub:"), *files)
    elif name not in open_clip.list_models():
        raise ValueError(
            f"Expected 'pocket', a folder or an architecture of open_clip, got {name!r}; "
            "open_clip.list_models() lists them, and a repository is 'hf-hub:organisation/name'."
        )
    elif pretrained != "untrained":
        require_weights(name, pretrained)

    reference = f"local-dir:{folder}" if folder else name
    with _explained(name, pretrained):
        model_config = open_clip.get_model_config(reference)
        text = dict(model_config["text_cfg"])
    require_no_code(name, model_config)
    require_text_files(name, text, in_folder=folder is not None)
    if tower := text.get("hf_model_name"):
        with _explained(name, pretrained):
            from transformers import PretrainedConfig

            tower_config, _ = PretrainedConfig.get_config_dict(tower)
        require_no_code(f"{tower}, the text tower of {name},", tower_config)
    options: dict[str, Any] = {}
    merges = folder / MERGES_FILE if folder and (folder / MERGES_FILE).exists() else None
    if merges:
        options["bpe_path"] = str(merges)
    if text.get("hf_tokenizer_name"):
        options["trust_remote_code"] = False  # else transformers asks on the terminal
    with _explained(name, pretrained):
        tokenizer = open_clip.get_tokenizer(reference, **options)
        model, _, preprocess = open_clip.create_model_and_transforms(
            reference,
            pretrained=None if pretrained == "untrained" else pretrained,
            device=device,
            pretrained_text=False,  # "untrained" holds for a text tower of transformers too
            require_pretrained=pretrained != "untrained",  # else missing weights are only logged
        )
    size = text.get("vocab_size", open_clip.CLIPTextCfg.vocab_size)
    read = getattr(tokenizer, "vocab_size", size)  # transformers' know their own
    # A table of embeddings may have rows to spare, but not beside a vocabulary made for it.
    if read > size or (merges and read != size):
        raise ValueError(
            f"Expected a vocabulary of {size} tokens for {name}, got {read}; load a folder with "
            f"the model's own {MERGES_FILE} in it."
        )
    return ClipBundle(model.eval(), preprocess, tokenizer, name, model_config, merges)


def _find_folder(name: str) -> Path | None:
    if name == "pocket":
        return asset_path("pocket_clip")
    if name.startswith("local-dir:"):
        return Path(name.removeprefix("local-dir:"))
    return Path(name) if Path(name).is_dir() else None


@contextmanager
def _explained(name: str, pretrained: str | None) -> Iterator[None]:
    """Says in one sentence what open_clip, torch, timm and safetensors raise as many types."""
    source = f"the files of {name}" + f" and the weights {pretrained}" * (pretrained is not None)
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"Expected a package that {source} need, but it is not there ({error}); "
            "pip install transformers."
        ) from error
    except Exception as error:
        if "trust_remote_code" in str(error):  # a tokenizer's Python, which transformers refused
            require_no_code(name, {"trust_remote_code": True})
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"Expected {source} to be whole and to belong together, but they do not load "
            f"({reason}); fetch them again, or name others."
        ) from error


def export_clip(bundle: ClipBundle, folder: Path | str) -> None:
    """Writes what plain open_clip loads as `local-dir:folder`, without this kit; fp32.

    A tokenizer of transformers (SigLIP's, or a multilingual CLIP's) is saved in the folder, where
    open_clip looks for it. A shortened vocabulary goes with it, as merges.txt.gz; open_clip must be
    told of it: `open_clip.get_tokenizer("local-dir:folder", bpe_path="folder/merges.txt.gz")`.
    """
    folder = Path(folder)
    save_tensors(bundle.model.state_dict(), folder / WEIGHTS_FILES[0])
    if bundle.merges:
        write_atomically(folder / MERGES_FILE, bundle.merges.read_bytes())
    else:
        (folder / MERGES_FILE).unlink(missing_ok=True)  # an earlier export's would be misread
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


# What is asked of files before they are loaded


def require_folder(folder: Path) -> None:
    """Checks that a folder holds a CLIP, and that open_clip will read its safetensors.

    Raises:
        FileNotFoundError: it lacks the configuration, or weights as safetensors.
        ValueError: open_clip would read a pickle that lies beside them.
    """
    safe = sorted(each for each in folder.glob("*.safetensors") if each.is_file())
    if not (folder / CONFIG_FILE).is_file() or not safe:
        raise FileNotFoundError(
            f"Expected {CONFIG_FILE} and a .safetensors file of weights in {folder}; "
            "export_clip writes such a folder."
        )
    first = Path(_find_checkpoint_in_dir(folder) or safe[0])
    if first not in safe:
        raise ValueError(
            f"Expected no pickle in {folder} that open_clip prefers to {safe[0].name}, got "
            f"{first.name}; move it away, or rename {safe[0].name} to {WEIGHTS_FILES[0]}."
        )


def require_weights(name: str, pretrained: str | None) -> None:
    """Checks that an architecture's weights are on disk or can be downloaded, and fit it.

    No file says which activation its weights were trained with: for a file of OpenAI's, name a
    -quickgelu architecture.

    Args:
        name: an architecture of open_clip.
        pretrained: a tag of open_clip, or a file.

    Raises:
        ValueError: no such tag or file, or the weights were trained with the other activation.
        FileNotFoundError: as `require_one`.
    """
    weights = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    if not weights:
        if pretrained and Path(pretrained).is_file():
            return
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(
            f"Expected weights for {name}: one of its tags ({tags}), a file that exists or "
            f"'untrained', got {pretrained!r}."
        )
    trained_quick = weights.get("quick_gelu", False)
    fitting = name.removesuffix("-quickgelu") + "-quickgelu" * trained_quick
    quick = open_clip.get_model_config(name).get("quick_gelu", False)
    # Some towers are quick under a plain name and have no twin: there, the tag only does not say.
    if trained_quick != quick and fitting != name:
        raise ValueError(
            f"Expected an architecture with the activation that {pretrained!r} was trained with, "
            f"got {name}; take {fitting}."
        )
    repository, _, file = weights["hf_hub"].rpartition("/")
    files = (f"{Path(file).stem}.safetensors", file) if file else WEIGHTS_FILES
    require_one(f"the weights {pretrained!r} of {name}", repository, *files)


def require_text_files(name: str, text: dict, in_folder: bool) -> None:
    """Checks that what a text side keeps in repositories of its own is on disk or can be had.

    Args:
        name: what to call the CLIP.
        text: open_clip's `text_cfg`.
        in_folder: whether the CLIP is a folder, where open_clip looks for its tokenizer.

    Raises:
        FileNotFoundError: as `require_one`.
    """
    tower, tokenizer = text.get("hf_model_name"), text.get("hf_tokenizer_name")
    if tower and not Path(tower).is_dir():  # transformers takes folders too
        require_one(f"the text tower {tower} of {name}", tower, "config.json")
    if tokenizer and not in_folder:
        what = f"the tokenizer {tokenizer} of {name}"
        require_one(what, tokenizer, "tokenizer_config.json", "tokenizer.json")


def require_no_code(name: str, config: dict) -> None:
    """Checks that a configuration does not ask transformers to run Python that lies beside it.

    Args:
        name: what to call it.
        config: open_clip's architecture, or what transformers reads as config.json.

    Raises:
        ValueError: it does, at whatever depth.
    """
    if _ASKS_FOR_CODE.search(json.dumps(config)):
        raise ValueError(
            f"Expected {name} to load without trust_remote_code, since Python that comes with a "
            "model is never run, got a configuration that asks for it; take a model that "
            "transformers loads by itself."
        )


def require_one(what: str, repository: str, *files: str) -> None:
    """Checks that one of a repository's files is on disk, or that the hub answers.

    The hub is asked as huggingface_hub asks it, with its time limit, but once: a download would ask
    six times and print a page.

    Raises:
        ValueError: that names no repository.
        FileNotFoundError: none is on disk, and the hub gives no answer.
    """
    try:
        if any(isinstance(try_to_load_from_cache(repository, each), str) for each in files):
            return
        url = hf_hub_url(repository, files[0])
        get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except HFValidationError as error:
        raise ValueError(
            f"Expected {what} in a repository named organisation/name, got {repository!r} "
            f"({error}); give its name on the hub."
        ) from error
    except HfHubHTTPError:
        pass  # the hub answers; the download will say what the answer means
    except Exception as error:  # of the library's HTTP client, which changes with its versions
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"Expected {what} on disk or a network to download from, found neither ({reason}); "
            "go online once, or name files that are on disk."
        ) from error
