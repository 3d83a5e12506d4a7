"""Whether files can be had, asked before a library retries for a minute and prints a page."""

from pathlib import Path

import open_clip
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from dclip_kit.network import is_reachable

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)  # as it asks for them


def require_weights(name: str, pretrained: str | None) -> None:
    """Checks that an architecture's weights are on disk or can be downloaded, and fit it.

    What a file's weights were trained with, no file says: for OpenAI's, name a -quickgelu.

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
        candidates = (f"{Path(file).stem}.safetensors", file) if file else WEIGHTS_FILES
        on_disk = _is_cached(repository, *candidates)
    else:
        on_disk = (Path.home() / ".cache/clip" / Path(weights.get("url", "-")).name).is_file()
    if not on_disk:
        server = constants.ENDPOINT if repository else weights.get("url", "")
        _require_network(
            f"the weights {pretrained!r} of {name}", "give a file as `pretrained`", server
        )


def require_repository(reference: str) -> None:
    """Checks that a CLIP in a repository is on disk or can be downloaded.

    Args:
        reference: "hf-hub:organisation/name".

    Raises:
        ValueError: that names no repository.
        FileNotFoundError: not on disk, and there is no network; after at most 3 s.
    """
    repository = reference.removeprefix("hf-hub:")
    try:
        on_disk = _is_cached(repository, CONFIG_FILE) and _is_cached(repository, *WEIGHTS_FILES)
    except HFValidationError as error:
        raise ValueError(
            f"Expected hf-hub:organisation/name, got {reference!r} ({error})."
        ) from error
    if not on_disk:
        _require_network(f"the CLIP {reference}", "give a folder that holds it")


def require_text_files(name: str, model_config: dict, in_folder: bool) -> None:
    """Checks that what a text side keeps in repositories of its own is on disk or can be had.

    Args:
        name: what to call the CLIP.
        model_config: open_clip's architecture.
        in_folder: whether the CLIP is a folder, where open_clip looks for its tokenizer.

    Raises:
        ValueError: open_clip would guess a tokenizer from the name, which no export can hold.
        FileNotFoundError: not on disk, and there is no network; after at most 3 s.
    """
    text = model_config.get("text_cfg", {})
    tower, tokenizer = text.get("hf_model_name"), text.get("hf_tokenizer_name")
    if tower and not _is_cached(tower, "config.json"):
        _require_network(f"the text tower {tower} of {name}")
    if in_folder:
        return
    if tokenizer and not _is_cached(tokenizer, "tokenizer_config.json", "tokenizer.json"):
        _require_network(f"the tokenizer {tokenizer} of {name}")
    if not tokenizer and "siglip" in name.lower() and not name.startswith("hf-hub:"):
        raise ValueError(
            f"Expected an hf_tokenizer_name in the text_cfg of {name}, since open_clip gives a "
            "name with 'siglip' a tokenizer that exports cannot hold; add one or rename it."
        )


def _is_cached(repository: str, *files: str) -> bool:
    return any(isinstance(try_to_load_from_cache(repository, each), str) for each in files)


def _require_network(what: str, otherwise: str = "", server: str | None = None) -> None:
    if constants.HF_HUB_OFFLINE or not is_reachable(server or constants.ENDPOINT):
        raise FileNotFoundError(
            f"Expected {what} on disk or a network to download from, found neither; go online once"
            f"{', or ' * bool(otherwise)}{otherwise}."
        )
