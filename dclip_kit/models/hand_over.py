"""What is handed over with a CLIP, whatever library it goes to: its words, pictures and card.

The library's users have neither open_clip nor this kit, so all of it is written in files that
transformers and transformers.js read.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
from PIL import Image

from dclip_kit.models.clip import ClipBundle, find_folder
from dclip_kit.runtime.files import write_record

# Different lengths, letters and marks, and one text that is too long.
TEXTS = (
    "a photo of a dog",
    "",
    "Two  red_cats, beside a tree's trunk!",
    "naïve café: 10 of 345 (ÜBER)",
    "a word and " * 90,
)
HANDED_OVER = "handed over from open_clip's folder by dclip_kit"  # on the card of each
_RESAMPLING = {"bicubic": 3, "bilinear": 2}  # PIL's numbers, which preprocessor_config.json has


# Words


def build_tokenizer(bundle: ClipBundle) -> Any:
    """The CLIP's tokenizer as transformers', whose files transformers.js reads, too.

    open_clip cleans texts before its tokenizer sees them; here the tokenizer does it. Only damaged
    Unicode and HTML's escapes, which open_clip repairs as well, are taken as they are.

    Raises:
        ValueError: transformers' would read some text as other tokens.
        ImportError: transformers is not installed.
    """
    from transformers import CLIPTokenizer

    tokenizer: Any = bundle.tokenizer
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
        words: Any = CLIPTokenizer(
            vocab={names.get(token, token): number for token, number in tokenizer.encoder.items()},
            merges=sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__),
            model_max_length=tokenizer.context_length,
        )
    else:
        words = _clean_first(bundle)
    own = tokenizer(list(TEXTS))
    padding = own[TEXTS.index(""), -1]
    for text, expected in zip(TEXTS, own, strict=True):
        ids = words(text, truncation=True)["input_ids"]
        if ids != expected[: len(ids)].tolist() or (expected[len(ids) :] != padding).any():
            raise ValueError(
                f"Expected a tokenizer that transformers has too, got that of {bundle.name}, which "
                f"reads {text[:40]!r} as other tokens; hand over a model with another."
            )
    return words


def _clean_first(bundle: ClipBundle) -> Any:
    """A tokenizer of transformers that also does what open_clip does before it calls it."""
    from tokenizers import Regex, Tokenizer, normalizers
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = bundle.tokenizer
    theirs = tokenizer.tokenizer
    backend = Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    spaces = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    lower = normalizers.Lowercase()
    marks = [
        normalizers.Replace("_", " "),
        normalizers.Replace(Regex(r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^`{|}~]"""), ""),
    ]
    options = bundle.model_config["text_cfg"].get("tokenizer_kwargs", {})
    steps = {
        "canonicalize": [*marks, lower, *spaces],
        "lower": [*spaces, lower],
        "whitespace": spaces,
    }[options.get("clean", "whitespace")]
    last = [backend.normalizer] if backend.normalizer else []
    backend.normalizer = normalizers.Sequence([*steps, *last])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.context_length,
        model_input_names=["input_ids"],  # open_clip's models get no mask, and SigLIP reads padding
        padding_side="right",
        **theirs.special_tokens_map,
    )


def name_tokenizer(folder: Path) -> None:
    """Names a saved tokenizer's class as transformers 4 knows it, too; its name in 5 is new."""
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    if settings["tokenizer_class"] == "TokenizersBackend":
        write_record(settings | {"tokenizer_class": "PreTrainedTokenizerFast"}, file)


# Pictures


def describe_preprocessing(bundle: ClipBundle) -> dict[str, Any]:
    """How pictures are prepared, as a preprocessor_config.json of transformers says it.

    A picture that is squashed gets the same pixels there; one whose shorter side is fitted may be
    cropped one pixel aside, since the two libraries round half a pixel differently.

    Raises:
        ValueError: transformers prepares no picture in this way.
    """
    given = asdict(open_clip.transform.PreprocessCfg(**read_preprocessing(bundle)))
    _, height, width = bundle.to_pixels(Image.new("RGB", (1, 1))).shape
    mode, resampling = given["resize_mode"], _RESAMPLING.get(given["interpolation"])
    if mode not in ("shortest", "squash") or resampling is None or height != width:
        raise ValueError(
            "Expected pictures that are squashed into a square, or cropped to one, by bicubic or "
            f"bilinear interpolation, got {bundle.name}, which resizes them to {height} × {width} "
            f"by {mode}, {given['interpolation']}; hand over a model that transformers' processor "
            "can prepare pictures for."
        )
    return {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": height}
        if mode == "shortest"
        else {"height": height, "width": width},
        "resample": resampling,
        "do_center_crop": mode == "shortest",
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(given["mean"]),
        "image_std": list(given["std"]),
    }


def read_preprocessing(bundle: ClipBundle) -> dict[str, Any]:
    """How open_clip prepares pictures, as its configuration says it."""
    return dict(open_clip.model.get_model_preprocess_cfg(bundle.model.visual))


def write_preprocessing(pictures: dict[str, Any], folder: Path) -> None:
    """Writes preprocessor_config.json, with the one class that both libraries know."""
    kind = {"image_processor_type": "CLIPImageProcessor"}
    write_record(pictures | kind, folder / "preprocessor_config.json")


# The card


def read_measured(bundle: ClipBundle) -> str:
    """What the card of an arm says was measured."""
    folder = find_folder(bundle.name)
    card = folder / "README.md" if folder else None
    text = card.read_text(encoding="utf-8") if card and card.is_file() else ""
    return text.partition("## Measured\n")[2].strip() or "Not measured."
