"""Whether weights can be had, asked before a library retries for a minute and prints a page."""

from pathlib import Path

import open_clip
from huggingface_hub import constants, try_to_load_from_cache

from dclip_kit.network import is_reachable


def require_weights(name: str, pretrained: str | None) -> None:
    """Checks that an architecture's weights are on disk or can be downloaded, and fit it.

    Args:
        name: an architecture of open_clip.
        pretrained: a tag of open_clip, or a file.

    Raises:
        ValueError: no such tag or file, or the weights were trained with the other activation.
        FileNotFoundError: not on disk, and there is no network; after at most 3 s.
    """
    if pretrained and Path(pretrained).is_file():
        return
    weights = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    if not weights:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(
            f"Expected weights for {name}: one of its tags ({tags}), a file that exists or "
            f"'untrained', got {pretrained!r}."
        )
    if weights.get("quick_gelu", False) != open_clip.get_model_config(name).get(
        "quick_gelu", False
    ):
        raise ValueError(
            f"Expected an architecture with the activation that {pretrained!r} was trained with, "
            f"got {name}; take {name.removesuffix('-quickgelu')}"
            f"{'-quickgelu' if weights.get('quick_gelu') else ''}."
        )
    repository = weights.get("hf_hub", "").strip("/")
    if repository:
        candidates = (
            "open_clip_model.safetensors",
            "open_clip_pytorch_model.safetensors",
            "open_clip_pytorch_model.bin",
        )
        if any(isinstance(try_to_load_from_cache(repository, file), str) for file in candidates):
            return
    elif (Path.home() / ".cache/clip" / Path(weights.get("url", "-")).name).is_file():
        return
    server = constants.ENDPOINT if repository else weights.get("url", "")
    if constants.HF_HUB_OFFLINE or not is_reachable(server):
        raise FileNotFoundError(
            f"Expected the weights {pretrained!r} of {name} on disk or a network to download them, "
            "found neither; go online once, or give a file as `pretrained`."
        )
