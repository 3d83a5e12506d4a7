"""Hands a CLIP over to transformers, whose users have neither open_clip nor this kit.

The weights are the same numbers by other names. Whether the other model computes the same is not
taken on trust: it is asked, and refused otherwise.
"""

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor
from torch.nn import functional as F

from dclip_kit.models.clip import ClipBundle, find_folder
from dclip_kit.runtime.printing import as_code

_CARD = """---
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags: [clip, image-text-retrieval, sentence-transformers]
---
# {name}

A CLIP that finds pictures by texts and texts by pictures, handed over from open_clip's folder by
dclip_kit. transformers loads it:

```python
from transformers import CLIPModel, CLIPProcessor

model, processor = (kind.from_pretrained("FOLDER") for kind in (CLIPModel, CLIPProcessor))
```

and sentence-transformers (5.4 or later) as well:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("FOLDER")
vectors = model.encode(["a red bicycle"], normalize_embeddings=True)
```

Vectors have to be normalised before they are compared. {pixels}

## Measured

{measured}
"""
_PIXELS = {
    "squash": 'With `backend="pil"` its processor prepares pictures to the same bytes as open_clip '
    "does; the default differs by a step of brightness.",
    "shortest": "Its processor may crop a picture one pixel aside from where open_clip crops it.",
}
TOLERANCE = 1e-5  # between the vectors of the two models, which have length 1
_RESAMPLING = {"bicubic": 3, "bilinear": 2}  # PIL's numbers, which preprocessor_config.json has
# By the end of a name in open_clip's blocks: its name in those of transformers.
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_CLIP = {
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}


def write_transformers(bundle: ClipBundle, folder: Path | str) -> None:
    """Writes a folder that `transformers.CLIPModel.from_pretrained` and sentence-transformers open.

    It has config.json, model.safetensors, the tokenizer's files, a model card and, since
    transformers writes only the first and transformers.js reads only the second, both
    processor_config.json and preprocessor_config.json.

    Args:
        bundle: open_clip's plain vision transformer with its own text tower.
        folder: to write to; files of the same names are replaced.

    Raises:
        ValueError: the towers are others, which transformers has no such model of.
        ModuleNotFoundError: transformers is not installed.
    """
    from transformers import CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer

    model = build_transformers(bundle)
    tokenizer: Any = bundle.tokenizer
    if not isinstance(tokenizer, open_clip.SimpleTokenizer):
        raise _refuse(bundle, "it has another tokenizer")
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    words = CLIPTokenizer(
        vocab={names.get(token, token): number for token, number in tokenizer.encoder.items()},
        merges=sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__),
        model_max_length=tokenizer.context_length,
    )
    pictures = CLIPImageProcessorPil(**describe_preprocessing(bundle))
    card = _CARD.format(
        name=as_code(Path(bundle.name).name),
        pixels=_PIXELS[_preprocessing(bundle)["resize_mode"]],
        measured=_read_measured(find_folder(bundle.name)),
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as temporary:
        model.save_pretrained(temporary)
        CLIPProcessor(image_processor=pictures, tokenizer=words).save_pretrained(temporary)
        text = json.dumps(pictures.to_dict(), indent=1) + "\n"
        (Path(temporary) / "preprocessor_config.json").write_text(text, encoding="utf-8")
        (Path(temporary) / "README.md").write_text(card, encoding="utf-8")
        for file in Path(temporary).iterdir():
            file.replace(folder / file.name)


def _read_measured(folder: Path | None) -> str:
    """What the card of an arm says was measured."""
    card = folder / "README.md" if folder else None
    text = card.read_text(encoding="utf-8") if card and card.is_file() else ""
    return text.partition("## Measured\n")[2].strip() or "Not measured."


def build_transformers(bundle: ClipBundle) -> Any:
    """The same CLIP as a model of transformers, in evaluation mode.

    Raises:
        ValueError: as `write_transformers`.
        ModuleNotFoundError: transformers is not installed.
    """
    from transformers import CLIPModel

    try:
        model = CLIPModel(_describe(bundle)).eval()
        model.load_state_dict(_rename(bundle.model.state_dict()))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _refuse(bundle, " ".join(str(error).split())) from error
    difference = _compare(bundle, model)
    if not difference <= TOLERANCE:
        raise _refuse(bundle, f"its vectors would differ by {difference:.1g}")
    return model


def _refuse(bundle: ClipBundle, reason: str) -> ValueError:
    return ValueError(
        "Expected open_clip's plain vision transformer with its own text tower, which transformers "
        f"has too, got {bundle.name} ({reason}); hand it over as ONNX."
    )


def _describe(bundle: ClipBundle) -> Any:
    """The configuration of transformers; what a tower's sizes do not say is in `_compare`."""
    from transformers import CLIPConfig

    config = bundle.model_config
    vision, text = CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"])
    if vision.timm_model_name or not isinstance(vision.layers, int):
        raise ValueError("it has another image tower")
    act = "quick_gelu" if config.get("quick_gelu") else "gelu"  # transformers' default is the first
    return CLIPConfig(
        projection_dim=bundle.embed_dim,
        vision_config={
            "hidden_size": vision.width,
            "intermediate_size": int(vision.width * vision.mlp_ratio),
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.width // vision.head_width,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "projection_dim": bundle.embed_dim,
            "hidden_act": act,
        },
        text_config={
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "intermediate_size": int(text.width * text.mlp_ratio),
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.context_length,
            "projection_dim": bundle.embed_dim,
            "hidden_act": act,
            # A text's vector is the one at its end; with 2, transformers would look for the largest
            # number instead.
            "bos_token_id": text.vocab_size - 2,
            "eos_token_id": text.vocab_size - 1,
            "pad_token_id": text.vocab_size - 1,
        },
    )


def _rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's weights by transformers' names; raises KeyError for a name without one."""
    renamed = {}
    for name, value in weights.items():
        name = name.removeprefix("text.")
        if name in _TRANSPOSED:
            renamed[_TRANSPOSED[name]] = value.T.contiguous()
        elif name in _CLIP:
            renamed[_CLIP[name]] = value
        else:
            tower, _, rest = name.partition("transformer.resblocks.")
            number, _, part = rest.partition(".")
            side = {"": "text_model", "visual.": "vision_model"}[tower]
            layer, (part, kind) = f"{side}.encoder.layers.{number}", part.rsplit(".", 1)
            if part == "attn" and kind.startswith("in_proj_"):
                for letter, third in zip("qkv", value.chunk(3), strict=True):
                    renamed[f"{layer}.self_attn.{letter}_proj.{kind[8:]}"] = third.contiguous()
            else:
                renamed[f"{layer}.{_BLOCK[part]}.{kind}"] = value
    return renamed


@torch.no_grad()
def _compare(bundle: ClipBundle, model: Any) -> float:
    """The largest difference between the vectors of some noise and some texts."""
    device, generator = bundle.device, torch.Generator().manual_seed(0)
    model = model.to(device)
    side = bundle.model.visual.image_size
    pixels = torch.randn(2, 3, *side, generator=generator).to(device)
    ids = bundle.tokenizer(["a photo of a dog", "two cats, and a red ball on a mat", ""]).to(device)
    pairs = [
        (bundle.model.encode_image(pixels), model.get_image_features(pixels)),
        (bundle.model.encode_text(ids), model.get_text_features(ids)),
    ]
    return max(
        float((F.normalize(ours, dim=-1) - F.normalize(_vector(theirs), dim=-1)).abs().max())
        for ours, theirs in pairs
    )


def _vector(output: Any) -> Tensor:
    """transformers 5 returns the vectors in an object."""
    return output if isinstance(output, Tensor) else output.pooler_output


def describe_preprocessing(bundle: ClipBundle) -> dict[str, Any]:
    """How pictures are prepared, as a preprocessor_config.json of transformers says it.

    A picture that is squashed gets the same pixels there; one whose shorter side is fitted may be
    cropped one pixel aside, since the two libraries round half a pixel differently.

    Raises:
        ValueError: transformers prepares no picture in this way.
    """
    given = asdict(open_clip.transform.PreprocessCfg(**_preprocessing(bundle)))
    height, width = bundle.model.visual.image_size
    mode, resampling = given["resize_mode"], _RESAMPLING.get(given["interpolation"])
    if mode not in ("shortest", "squash") or resampling is None or height != width:
        raise _refuse(bundle, f"its pictures are resized by {mode}, {given['interpolation']}")
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


def _preprocessing(bundle: ClipBundle) -> dict[str, Any]:
    return dict(open_clip.model.get_model_preprocess_cfg(bundle.model.visual))
