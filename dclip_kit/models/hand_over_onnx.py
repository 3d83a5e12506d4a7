"""Hands a CLIP over as ONNX: what onnxruntime computes, and transformers.js in a browser or Node.

Any image and text tower of open_clip: the graph is traced, not translated by name. Whether
onnxruntime computes the same from it is asked before anything is written.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from dclip_kit.data import CaptionedImages
from dclip_kit.data.pocket.scenes import render_scene
from dclip_kit.data.pocket.world import make_scene
from dclip_kit.metrics import RetrievalMetrics, retrieval_metrics
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import read_batches, token_batches
from dclip_kit.models.hand_over import (
    HANDED_OVER,
    TEXTS,
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

LEAST_COSINE = 0.9999  # between a vector of PyTorch's and of onnxruntime's
# By tower, as transformers.js names its file, input and output.
TOWERS = {
    "vision_model": ("pixel_values", "image_embeds"),
    "text_model": ("input_ids", "text_embeds"),
}
# Only by this method does transformers.js smooth a picture that it makes smaller in Node, as Pillow
# does by all of them; in browsers it knows one. The pocket's vectors of pictures then have a cosine
# of 0.9999 with open_clip's; by bicubic interpolation, it would be 0.996.
_LANCZOS = 1
SUFFIXES = {"fp32": "", "int8": "_quantized"}  # of transformers.js' files; it calls the second q8
_APART = ".onnx_data"  # the end of its name for a file of weights that are too large for a .onnx

_CARD = """---
library_name: transformers.js
pipeline_tag: image-feature-extraction
tags: [clip, image-text-retrieval, onnx]
---
# {name}

A CLIP that finds pictures by texts and texts by pictures, {handed_over} as ONNX.
transformers.js (4 or later) loads it, in Node and in browsers:

```js
import * as transformers from "@huggingface/transformers";

const tokenizer = await transformers.AutoTokenizer.from_pretrained("FOLDER");
const textModel = await transformers.CLIPTextModelWithProjection.from_pretrained("FOLDER");
const words = tokenizer(["a red bicycle"], {{ padding: true, truncation: true }});
const {{ text_embeds }} = await textModel(words);

const processor = await transformers.AutoProcessor.from_pretrained("FOLDER");
const visionModel = await transformers.CLIPVisionModelWithProjection.from_pretrained("FOLDER");
const picture = await transformers.load_image("picture.jpg");
const {{ image_embeds }} = await visionModel(await processor(picture));
```

In Python, onnxruntime runs both files of `onnx/` on any number of pictures or texts. Texts may be
padded or not. Vectors have to be normalised before they are compared; the model's own scale of
their cosines is {scale:.6g}{bias}.

transformers.js resizes pictures by other means than open_clip, so that vectors differ a little.
`preprocessor_config.json` names Lanczos' method, by which they differ least in Node; the model has
learned with {resampling} interpolation, which others should use.
{quantized}
## Measured

{measured}
"""
_QUANTIZED = """
The files that end in `_quantized` have 8-bit weights, and a quarter of the size;
`{ dtype: "q8" }` loads them. Measure what they lose, and whether they are faster: a ResNet is not.
"""


class _Vision(nn.Module):
    """The image tower alone."""

    def __init__(self, bundle: ClipBundle) -> None:
        super().__init__()
        self.model = bundle.model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model.encode_image(pixel_values, normalize=False)


class _Text(nn.Module):
    """The text tower alone, which takes texts of any length, padded or not.

    What is given becomes what open_clip's tokenizer gives: some towers read the padding, too, which
    transformers' tokenizer for CLIP makes of other tokens; and transformers.js cuts off the end of
    texts that are too long.
    """

    def __init__(self, bundle: ClipBundle, end: int | None) -> None:
        super().__init__()
        empty, long = bundle.tokenizer(["", TEXTS[-1]])
        self.model, self.length, self.padding = bundle.model, len(empty), int(empty[-1])
        self.end = int(long[-1]) if long[-1] == end else None

    def forward(self, input_ids: Tensor) -> Tensor:
        ids = F.pad(input_ids, (0, self.length), value=self.padding)[:, : self.length]
        if self.end is not None:
            is_end = (ids == self.end).long()
            has_end = is_end.sum(1, keepdim=True) > 0
            ids = torch.where(is_end.cumsum(1) > is_end, self.padding, ids)
            ids = torch.cat([ids[:, :-1], torch.where(has_end, ids[:, -1:], self.end)], 1)
        return self.model.encode_text(ids, normalize=False)


def write_onnx(bundle: ClipBundle, folder: Path | str, int8: bool = False) -> float:
    """Writes a folder that transformers.js opens, with a file for each tower.

    The towers take any number of pictures (`pixel_values`) or texts (`input_ids`, of any length)
    and give vectors that are not normalised (`image_embeds`, `text_embeds`).

    Args:
        bundle: any CLIP of open_clip.
        folder: to write to, of its own; files of the same names are replaced.
        int8: whether to write the towers with 8-bit weights as well. What these lose is not
            checked; `measure_onnx` says it.

    Returns:
        The least cosine between a vector of PyTorch's and onnxruntime's, of pictures of the pocket
        and of some texts.

    Raises:
        ValueError: pictures or texts are prepared in a way that transformers.js has not, a tower
            cannot be traced, or onnxruntime does not compute the same.
        ImportError: onnx, onnxscript, onnxruntime or transformers is not installed.
    """
    quantize = _require_packages()
    pictures, words = describe_preprocessing(bundle), build_tokenizer(bundle)
    towers = {"vision_model": _Vision(bundle), "text_model": _Text(bundle, words.eos_token_id)}
    samples = {
        "vision_model": torch.zeros(2, 3, bundle.side, bundle.side),
        "text_model": bundle.tokenizer(["a", "b"])[:, :5],
    }
    folder = Path(folder)
    with replacing_files(folder) as temporary, _quietly():
        (temporary / "onnx").mkdir()
        for name, tower in towers.items():
            # A module is born in train mode, in which a ResNet's statistics would change.
            _trace(tower.eval(), name, samples[name].to(bundle.device), temporary / "onnx")
        cosine = _compare(bundle, words, temporary)
        if not cosine >= LEAST_COSINE:
            raise ValueError(
                f"Expected onnxruntime to compute what {bundle.name} does, but the cosine of their "
                f"vectors is only {cosine:.6f}; use the model in PyTorch."
            )
        for name in towers:
            if int8:
                source = temporary / "onnx" / f"{name}.onnx"
                quantize(source, source.with_stem(name + SUFFIXES["int8"]))
        words.save_pretrained(temporary)
        name_tokenizer(temporary)
        write_preprocessing(pictures | {"resample": _LANCZOS}, temporary)
        written = {file.name for file in (temporary / "onnx").iterdir()}
        write_record(_describe(bundle, words, written), temporary / "config.json")
        write_atomically(temporary / "README.md", _describe_on_card(bundle, int8))
    optional = {f"{name}{end}" for name in towers for end in (f"{SUFFIXES['int8']}.onnx", _APART)}
    for name in optional - written:  # an earlier model's would be read
        (folder / "onnx" / name).unlink(missing_ok=True)
    return cosine


def _require_packages() -> Any:
    """onnxruntime's function that makes weights 8-bit, once all packages are there."""
    require_packages("onnx", "onnx", "onnxscript", "onnxruntime.quantization", "transformers")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    def quantize(source: Path, target: Path) -> None:
        # Signed weights are more exact, but onnxruntime has no convolution with them.
        quantize_dynamic(source, target, weight_type=QuantType.QUInt8)

    return quantize


@contextmanager
def _quietly() -> Iterator[None]:
    """Hides what torch, onnxscript and onnxruntime say to those who build exporters."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _trace(tower: nn.Module, name: str, sample: Tensor, folder: Path) -> None:
    given, found = TOWERS[name]
    axes = range(2 if name == "text_model" else 1)  # of a text, the length as well
    try:
        torch.onnx.export(
            tower,
            (sample,),
            folder / f"{name}.onnx",
            input_names=[given],
            output_names=[found],
            dynamic_shapes=({axis: torch.export.Dim.DYNAMIC for axis in axes},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise ValueError(
            f"Expected a {name} that torch can trace, got one that it cannot ({reason}); use the "
            "model in PyTorch."
        ) from error
    apart = folder / f"{name}.onnx.data"
    if apart.exists():  # torch writes weights of more than 1.5 GB apart
        import onnx

        model = onnx.load(folder / f"{name}.onnx")
        apart.unlink()
        location = f"{name}{_APART}"
        onnx.save(model, folder / f"{name}.onnx", save_as_external_data=True, location=location)


def _describe(bundle: ClipBundle, words: Any, written: set[str]) -> dict[str, Any]:
    """What transformers.js reads of config.json, and what its users may want to know."""
    text = {
        "max_position_embeddings": words.model_max_length,
        "vocab_size": len(words),
        # Left out, transformers would take those of OpenAI's vocabulary.
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": bundle.embed_dim,
        "logit_scale_init_value": bundle.model.logit_scale.item(),
        "text_config": {"model_type": "clip_text_model", **text},
        "vision_config": {"model_type": "clip_vision_model", "image_size": bundle.side},
        "transformers.js_config": {
            "dtype": "fp32",  # in browsers it would look for 8-bit files otherwise
            "use_external_data_format": {
                f"{name}.onnx": f"{name}{_APART}" in written for name in TOWERS
            },
        },
    }


def _describe_on_card(bundle: ClipBundle, int8: bool) -> str:
    bias = getattr(bundle.model, "logit_bias", None)
    return _CARD.format(
        name=as_code(Path(bundle.name).name),
        handed_over=HANDED_OVER,
        resampling=read_preprocessing(bundle)["interpolation"],
        scale=bundle.model.logit_scale.exp().item(),
        bias="" if bias is None else f", to which it adds {bias.item():.6g}",
        quantized=_QUANTIZED if int8 else "",
        measured=read_measured(bundle),
    )


# What onnxruntime computes


def _open(folder: Path, name: str, precision: str = "fp32") -> Callable[[Tensor], Tensor]:
    """A tower as a function."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    file = folder / "onnx" / f"{name}{SUFFIXES[precision]}.onnx"
    session = InferenceSession(file, options, providers=["CPUExecutionProvider"])
    given, found = TOWERS[name]

    def run(values: Tensor) -> Tensor:
        return torch.from_numpy(session.run([found], {given: values.cpu().numpy()})[0])

    return run


@torch.no_grad()
def _compare(bundle: ClipBundle, words: Any, folder: Path) -> float:
    """The least cosine between both models' vectors, of other numbers of them than were traced."""
    scenes = [make_scene("val", index)[0] for index in range(3)]
    pixels = torch.stack([bundle.preprocess(render_scene(scene)) for scene in scenes])
    run_vision, run_text = (_open(folder, name) for name in TOWERS)
    encode_image, encode_text = bundle.model.encode_image, bundle.model.encode_text
    cosines = []
    for some in (pixels, pixels[:1]):
        ours = encode_image(some.to(bundle.device), normalize=True)
        cosines.append(F.cosine_similarity(run_vision(some), ours.cpu()))
    for texts in (TEXTS, TEXTS[:-1], TEXTS[:1]):  # padded to the full length, to another, and not
        given = words(list(texts), padding=True, truncation=True, return_tensors="pt")
        ours = encode_text(bundle.tokenizer(list(texts)).to(bundle.device), normalize=True)
        cosines.append(F.cosine_similarity(run_text(given["input_ids"]), ours.cpu()))
    return float(torch.cat(cosines).min())


@dataclass(frozen=True, eq=False)
class OnnxMeasured:
    """What the files of one precision find, weigh and take.

    Attributes:
        retrieval: both ways.
        megabytes: of both towers' files.
        milliseconds: to encode a picture, in batches of 32 with PyTorch's number of threads.
    """

    retrieval: RetrievalMetrics
    megabytes: float
    milliseconds: float


def measure_onnx(
    bundle: ClipBundle, folder: Path | str, captioned: CaptionedImages
) -> dict[str, OnnxMeasured]:
    """Measures the files that `write_onnx` wrote, by precision ("fp32", "int8").

    Args:
        bundle: the CLIP that was handed over, which prepares pictures and texts.
        folder: that it was handed over to, with 8-bit weights as well.
        captioned: pictures to measure on.

    Raises:
        ValueError: a picture cannot be read.
    """
    folder, measured = Path(folder), {}
    for precision, suffix in SUFFIXES.items():
        run_vision, run_text = (_open(folder, name, precision) for name in TOWERS)
        images, seconds = [], 0.0
        batches = torch.arange(len(captioned)).split(32)
        reading = read_batches(bundle, captioned.paths, batches)
        for pixels in tqdm(reading, precision, len(batches), delay=2):
            start = time.perf_counter()
            images.append(run_vision(bundle.normalize(pixels)))
            seconds += time.perf_counter() - start
        texts = torch.empty(len(captioned.texts), bundle.embed_dim)
        for indices, ids in token_batches(bundle, captioned.texts, 64):
            texts[indices] = run_text(ids)
        files = [x for name in TOWERS for x in (folder / "onnx").glob(f"{name}{suffix}.onnx*")]
        measured[precision] = OnnxMeasured(
            retrieval_metrics(torch.cat(images), texts, captioned.image_of_text),
            sum(file.stat().st_size for file in files) / 1e6,
            1000 * seconds / len(captioned),
        )
    return measured
