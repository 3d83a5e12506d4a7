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
    weights = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    if not weights:
        if pretrained and Path(pretrained).is_file():
            return
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(
            f"Expected weights for {name}: one of its tags ({tags}), a file that exists or "
            f"'untrained', got {pretrained!r}."
        )
    fitting = name.removesuffix("-quickgelu") + "-quickgelu" * weights.get("quick_gelu", False)
    quick = open_clip.get_model_config(name).get("quick_gelu", False)
    # Some towers are quick under a plain name and have no twin: there, the tag only does not say.
    if weights.get("quick_gelu", False) != quick and fitting != name:
        raise ValueError(
            f"Expected an architecture with the activation that {pretrained!r} was trained with, "
            f"got {name}; take {fitting}."
        )
    repository, _, file = weights.get("hf_hub", "").rpartition("/")
    if repository:
        # The two that open_clip asks for, in its order.
        safe = f"{Path(file).stem}.safetensors" if file else "open_clip_model.safetensors"
        candidates = (safe, file or "open_clip_pytorch_model.bin")
        if any(isinstance(try_to_load_from_cache(repository, each), str) for each in candidates):
            return
    elif (Path.home() / ".cache/clip" / Path(weights.get("url", "-")).name).is_file():
        return
    server = constants.ENDPOINT if repository else weights.get("url", "")
    if constants.HF_HUB_OFFLINE or not is_reachable(server):
        raise FileNotFoundError(
            f"Expected the weights {pretrained!r} of {name} on disk or a network to download them, "
            "found neither; go online once, or give a file as `pretrained`."
        )
