"""Hands a CLIP over to transformers, whose users have neither open_clip nor this kit.

The weights are the same numbers by other names. Whether the other model computes the same is not
taken on trust: it is asked, and refused otherwise.
"""

import json
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn
from torch.nn import functional as F

from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.hand_over import (
    HANDED_OVER,
    build_tokenizer,
    describe_preprocessing,
    name_tokenizer,
    read_measured,
    read_preprocessing,
    write_preprocessing,
)
from dclip_kit.runtime.files import replacing_files, write_atomically, write_record
from dclip_kit.runtime.packages import require_packages
from dclip_kit.runtime.printing import as_code

_CARD = """---
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags: [{tags}]
---
# {name}

A {kind} that finds pictures by texts and texts by pictures, {handed_over}.
transformers loads it:

```python
from transformers import {kind}Model, {kind}Processor

model, processor = (kind.from_pretrained("FOLDER") for kind in ({kind}Model, {kind}Processor))
```

sentence-transformers (5.4 or later, with transformers 5) as well:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("FOLDER")
vectors = model.encode(["a red bicycle"], normalize_embeddings=True)
```
{padding}
Vectors have to be normalised before they are compared. {pixels}{bias}

## Measured

{measured}
"""
_PADDING = {
    "CLIP": "",
    "Siglip": """
With transformers, texts have to be padded to their full length, as they were when the model learned
(sentence-transformers does it by itself):

```python
given = processor(
    text=["a red bicycle"], padding="max_length", truncation=True, return_tensors="pt"
)
vectors = model.get_text_features(**given).pooler_output
```
""",
}
_PIXELS = {
    "squash": 'With `backend="pil"` its processor prepares pictures to the same bytes as open_clip '
    "does; the default differs by a step of brightness.",
    "shortest": "Its processor may crop a picture one pixel aside from where open_clip crops it.",
}
_BIAS = " CLIPModel's `logits_per_image` lack the bias of {:.6g} that the model was trained with."
_OF_SIGLIP = "modules.json", "sentence_bert_config.json"  # sentence-transformers' files
TOLERANCE = 1e-5  # between the vectors of the two models, which have length 1
# By the name of a parameter or module of open_clip, or of timm in it: that in transformers.
_NAMES = {
    "logit_bias": "logit_bias",
    "logit_scale": "logit_scale",
    "ln_final": "text_model.final_layer_norm",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding": "text_model.embeddings.token_embedding",
    "text_projection.bias": "text_model.head.bias",
    "text_projection.weight": "text_model.head.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.trunk.attn_pool.latent": "vision_model.head.probe",
    "visual.trunk.attn_pool.mlp.fc1": "vision_model.head.mlp.fc1",
    "visual.trunk.attn_pool.mlp.fc2": "vision_model.head.mlp.fc2",
    "visual.trunk.attn_pool.norm": "vision_model.head.layernorm",
    "visual.trunk.attn_pool.proj": "vision_model.head.attention.out_proj",
    "visual.trunk.norm": "vision_model.post_layernorm",
    "visual.trunk.patch_embed.proj": "vision_model.embeddings.patch_embedding",
    "visual.trunk.pos_embed": "vision_model.embeddings.position_embedding.weight",
}
_BLOCK = {  # the same within a block
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_TRANSPOSED = {
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}


def write_transformers(bundle: ClipBundle, folder: Path | str) -> None:
    """Writes a folder that transformers opens as CLIPModel or SiglipModel.

    sentence-transformers opens it, too. The folder has config.json, model.safetensors, the
    tokenizer's files, a model card and, since transformers writes only the first and
    transformers.js reads only the second, both processor_config.json and preprocessor_config.json.

    Args:
        bundle: open_clip's plain vision transformer with its own text tower, or a SigLIP.
        folder: to write to; files of the same names are replaced.

    Raises:
        ValueError: the towers are others, which transformers has no such model of, or pictures or
            texts are prepared in a way that it has not.
        ImportError: transformers is not installed.
    """
    model = build_transformers(bundle)
    import transformers

    kind = type(model).__name__.removesuffix("Model")
    pictures = describe_preprocessing(bundle)
    processor = getattr(transformers, f"{kind}Processor")(
        image_processor=transformers.CLIPImageProcessorPil(**pictures),
        tokenizer=build_tokenizer(bundle),
    )
    bias = getattr(bundle.model, "logit_bias", None)
    card = _CARD.format(
        name=as_code(Path(bundle.name).name),
        handed_over=HANDED_OVER,
        tags=f"{kind.lower()}, image-text-retrieval, sentence-transformers",
        kind=kind,
        padding=_PADDING[kind],
        pixels=_PIXELS[read_preprocessing(bundle)["resize_mode"]],
        bias="" if bias is None or kind == "Siglip" else _BIAS.format(bias.item()),
        measured=read_measured(bundle),
    )
    with replacing_files(Path(folder)) as temporary:
        model.save_pretrained(temporary)
        for file in temporary.glob("*.safetensors"):
            file.chmod(0o644)  # safetensors makes files that only their owner may read
        processor.save_pretrained(temporary)
        name_tokenizer(temporary)
        write_preprocessing(pictures, temporary)
        if kind == "Siglip":
            _write_padding(temporary)
        write_atomically(temporary / "README.md", card)
    for name in () if kind == "Siglip" else _OF_SIGLIP:  # an earlier model's would be read
        (Path(folder) / name).unlink(missing_ok=True)


def _write_padding(folder: Path) -> None:
    """Has sentence-transformers pad texts to their full length, of which a SigLIP reads the end."""
    features = {
        kind: {"method": f"get_{kind}_features", "method_output_name": "pooler_output"}
        for kind in ("text", "image")
    }
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    (folder / _OF_SIGLIP[0]).write_text(json.dumps([module], indent=2))
    settings = {
        "transformer_task": "feature-extraction",
        "modality_config": features,
        "module_output_name": "sentence_embedding",
        "processing_kwargs": {"text": {"padding": "max_length"}},
    }
    write_record(settings, folder / _OF_SIGLIP[1])


def build_transformers(bundle: ClipBundle) -> Any:
    """The same CLIP as a model of transformers, in evaluation mode.

    Raises:
        ValueError: transformers has no such model.
        ImportError: transformers is not installed.
    """
    require_packages("transformers", "transformers")
    from transformers import CLIPModel, SiglipModel

    try:
        if bundle.model_config["vision_cfg"].get("timm_pool") == "map":
            model: Any = SiglipModel(_describe_siglip(bundle)).eval()
        else:
            model = CLIPModel(_describe_clip(bundle)).eval()
        theirs, renamed = model.state_dict(), _rename(bundle.model.state_dict())
        if isinstance(model, CLIPModel):  # which adds no bias to its scores
            renamed.pop("logit_bias", None)
        # A SigLIP's scale and positions have one axis more or fewer there.
        model.load_state_dict({x: value.reshape(theirs[x].shape) for x, value in renamed.items()})
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _refuse(bundle, " ".join(str(error).split())) from error
    difference = _compare(bundle, model)
    if not difference <= TOLERANCE:
        raise _refuse(bundle, f"its vectors would differ by {difference:.1g}")
    return model


def _refuse(bundle: ClipBundle, reason: str) -> ValueError:
    return ValueError(
        "Expected open_clip's plain vision transformer with its own text tower, or a SigLIP, which "
        f"transformers has too, got {bundle.name} ({reason}); hand it over as ONNX."
    )


def _describe_clip(bundle: ClipBundle) -> Any:
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
            **_describe_text(text),
            "projection_dim": bundle.embed_dim,
            "hidden_act": act,
            # A text's vector is the one at its end; with 2, transformers would look for the largest
            # number instead.
            "bos_token_id": text.vocab_size - 2,
            "eos_token_id": text.vocab_size - 1,
            "pad_token_id": text.vocab_size - 1,
        },
    )


def _describe_siglip(bundle: ClipBundle) -> Any:
    """As `_describe_clip`; what timm has built says the sizes, which open_clip only names."""
    from transformers import SiglipConfig

    text, trunk = CLIPTextCfg(**bundle.model_config["text_cfg"]), bundle.model.visual.trunk
    block = trunk.blocks[0]
    words: Any = bundle.tokenizer
    return SiglipConfig(
        vision_config={
            "hidden_size": trunk.embed_dim,
            "intermediate_size": block.mlp.fc1.out_features,
            "num_hidden_layers": len(trunk.blocks),
            "num_attention_heads": block.attn.num_heads,
            "image_size": bundle.side,
            "patch_size": trunk.patch_embed.patch_size[0],
            "hidden_act": _name_activation(block.mlp.act),
            "layer_norm_eps": trunk.norm.eps,
        },
        text_config={
            **_describe_text(text),
            "projection_size": bundle.embed_dim,
            "hidden_act": _name_activation(bundle.model.text.transformer.resblocks[0].mlp.gelu),
            "layer_norm_eps": bundle.model.text.ln_final.eps,
            "bos_token_id": None,
            "eos_token_id": words.tokenizer.eos_token_id,
            "pad_token_id": words.tokenizer.pad_token_id,
        },
    )


def _name_activation(module: nn.Module) -> str:
    """transformers' name of a function, which torch, open_clip and timm write in many ways."""
    from transformers.activations import ACT2FN

    values = torch.linspace(-4, 4, 33)
    for name in ("gelu", "gelu_pytorch_tanh", "quick_gelu"):
        if torch.allclose(module(values), ACT2FN[name](values), atol=1e-6):
            return name
    raise ValueError(f"its blocks compute {module}")


def _describe_text(text: CLIPTextCfg) -> dict[str, Any]:
    return {
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "intermediate_size": int(text.width * text.mlp_ratio),
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "max_position_embeddings": text.context_length,
    }


def _rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's weights by transformers' names; raises KeyError for a name without one."""
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        name = name.removeprefix("text.").replace("trunk.blocks.", "transformer.resblocks.")
        module, _, kind = name.rpartition(".")
        if name in _TRANSPOSED:
            renamed[_TRANSPOSED[name]] = value.T.contiguous()
        elif name in _NAMES:
            renamed[_NAMES[name]] = value
        elif module in _NAMES:
            renamed[f"{_NAMES[module]}.{kind}"] = value
        elif module in ("visual.trunk.attn_pool.q", "visual.trunk.attn_pool.kv"):  # in this order
            joined = f"vision_model.head.attention.in_proj_{kind}"
            renamed[joined] = torch.cat([renamed[joined], value]) if joined in renamed else value
        else:
            tower, _, rest = name.partition("transformer.resblocks.")
            number, _, part = rest.replace("attn.qkv.", "attn.in_proj_").partition(".")
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
    pixels = torch.randn(2, 3, bundle.side, bundle.side, generator=generator).to(device)
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
