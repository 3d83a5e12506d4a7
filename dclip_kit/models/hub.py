"""What is asked of a CLIP's files before they are loaded: to be had, and to run no Python."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from dclip_kit.runtime.machine import warn_unless_answered

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)  # as it asks for them
# Of a folder's it takes the first of these, pickles among them; if there are none, a .safetensors.
PREFERRED_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)


def require_folder(folder: Path) -> None:
    """Checks that a folder holds a CLIP, and that open_clip will read its safetensors.

    Raises:
        FileNotFoundError: it lacks the configuration, or weights as safetensors.
        ValueError: open_clip would read a pickle that lies beside them.
    """
    names = {each.name for each in folder.glob("*") if each.is_file()}
    safe = sorted(each for each in names if each.endswith(".safetensors"))
    if CONFIG_FILE not in names or not safe:
        raise FileNotFoundError(
            f"Expected {CONFIG_FILE} and a .safetensors file of weights in {folder}; "
            "export_clip writes such a folder."
        )
    first = next((each for each in PREFERRED_FILES if each in names), safe[0])
    if first not in safe:
        raise ValueError(
            f"Expected no pickle in {folder} that open_clip prefers to {safe[0]}, got {first}; "
            f"take {first} away, or rename {safe[0]} to {WEIGHTS_FILES[0]}."
        )


def require_weights(name: str, pretrained: str | None) -> None:
    """Checks that an architecture's weights are on disk or can be downloaded, and fit it.

    What a file's weights were trained with, no file says: for OpenAI's, name a -quickgelu.

    Args:
        name: an architecture of open_clip.
        pretrained: a tag of open_clip, or a file.

    Raises:
        ValueError: no such tag or file, or the weights were trained with the other activation.
        FileNotFoundError: not on disk, and the hub gives no answer.
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
    what, otherwise = f"the weights {pretrained!r} of {name}", "give a file as `pretrained`"
    repository, _, file = weights.get("hf_hub", "").rpartition("/")
    if repository:
        files = (f"{Path(file).stem}.safetensors", file) if file else WEIGHTS_FILES
        _require_one(what, repository, *files, otherwise=otherwise)
    elif not (Path.home() / ".cache/clip" / Path(weights.get("url", "-")).name).is_file():
        if constants.HF_HUB_OFFLINE:
            raise _not_to_be_had(what, "HF_HUB_OFFLINE is set", otherwise)
        warn_unless_answered(weights.get("url", ""))


def require_repository(reference: str) -> None:
    """Checks that a CLIP in a repository is on disk or can be downloaded.

    Args:
        reference: "hf-hub:organisation/name".

    Raises:
        ValueError: that names no repository.
        FileNotFoundError: not on disk, and the hub gives no answer.
    """
    repository = reference.removeprefix("hf-hub:")
    try:
        for files in ((CONFIG_FILE,), WEIGHTS_FILES):
            what, otherwise = f"the CLIP {reference}", "give a folder that holds it"
            _require_one(what, repository, *files, otherwise=otherwise)
    except HFValidationError as error:
        raise ValueError(
            f"Expected hf-hub:organisation/name, got {reference!r} ({error})."
        ) from error


def require_text_files(name: str, model_config: dict, in_folder: bool) -> None:
    """Checks that what a text side keeps in repositories of its own is on disk or can be had.

    Args:
        name: what to call the CLIP.
        model_config: open_clip's architecture.
        in_folder: whether the CLIP is a folder, where open_clip looks for its tokenizer.

    Raises:
        ValueError: open_clip would guess a tokenizer from the name, which no export can hold.
        FileNotFoundError: not on disk, and the hub gives no answer.
    """
    text = model_config.get("text_cfg", {})
    tower, tokenizer = text.get("hf_model_name"), text.get("hf_tokenizer_name")
    if tower and not Path(tower).is_dir():  # transformers takes folders too
        _require_one(f"the text tower {tower} of {name}", tower, "config.json")
    if in_folder:
        return
    if tokenizer:
        what = f"the tokenizer {tokenizer} of {name}"
        _require_one(what, tokenizer, "tokenizer_config.json", "tokenizer.json")
    if not tokenizer and "siglip" in name.lower() and not name.startswith("hf-hub:"):
        raise ValueError(
            f"Expected an hf_tokenizer_name in the text_cfg of {name}, since open_clip gives a "
            "name with 'siglip' a tokenizer that exports cannot hold; add one or rename it."
        )


def require_no_code(name: str, config: dict) -> None:
    """Checks that a configuration does not ask transformers to run Python that lies beside it.

    transformers runs what stands in `auto_map` if it is told `trust_remote_code`; where it is told
    nothing, it asks on the terminal.

    Args:
        name: what to call it.
        config: open_clip's architecture, or what transformers reads as config.json.

    Raises:
        ValueError: it does, at whatever depth.
    """
    for key, value in _entries(config):
        if key == "auto_map" or (key == "trust_remote_code" and value):
            raise code_refused(name, f"{key} in its configuration")


def code_refused(name: str, found: str) -> ValueError:
    """The error for what would run Python of its own."""
    return ValueError(
        f"Expected {name} to load without trust_remote_code, since Python that comes with a model "
        f"is never run, got {found}; take a model that transformers loads by itself."
    )


def _entries(config: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(config, dict):
        yield from config.items()
        config = list(config.values())
    if isinstance(config, list):
        for each in config:
            yield from _entries(each)


def _require_one(what: str, repository: str, *files: str, otherwise: str = "") -> None:
    """Checks that one of a repository's files is on disk, or that the hub answers.

    Asked as huggingface_hub asks, with its time limit, but once: a download would ask six times and
    print a page.
    """
    if any(isinstance(try_to_load_from_cache(repository, each), str) for each in files):
        return
    url = hf_hub_url(repository, files[0])
    try:
        get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except HfHubHTTPError:
        pass  # an answer, if not a kind one: the download says what it means
    except Exception as error:  # of the library's HTTP client, which changes with its versions
        raise _not_to_be_had(what, str(error), otherwise) from error


def _not_to_be_had(what: str, reason: str, otherwise: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"Expected {what} on disk or a network to download from, found neither "
        f"({' '.join(reason.split())}); go online once{', or ' * bool(otherwise)}{otherwise}."
    )
