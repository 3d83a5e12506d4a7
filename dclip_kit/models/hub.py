"""What is asked of a CLIP's files before they are loaded: they exist, and they run no Python."""

import json
import re
from pathlib import Path

import open_clip
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from open_clip.factory import _find_checkpoint_in_dir

CONFIG_FILE = "open_clip_config.json"
# As open_clip asks a repository for them.
WEIGHTS_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# transformers runs what stands in `auto_map` if `trust_remote_code` is true; where that is not
# said, it asks on the terminal.
_ASKS_FOR_CODE = re.compile(r'"auto_map":|"trust_remote_code": (?!false|null)')


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


def require_repository(reference: str) -> None:
    """Checks that a CLIP in a repository is on disk or can be downloaded.

    Args:
        reference: "hf-hub:organisation/name".

    Raises:
        ValueError, FileNotFoundError: as `require_one`.
    """
    for files in ((CONFIG_FILE,), WEIGHTS_FILES):
        require_one(f"the CLIP {reference}", reference.removeprefix("hf-hub:"), *files)


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
