"""A CLIP handed over as ONNX, compared in what its users have: onnxruntime, and transformers.js."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F

from dclip_kit.data.pocket.scenes import render_scene
from dclip_kit.data.pocket.world import make_scene
from dclip_kit.metrics import retrieval_metrics
from dclip_kit.models import hand_over_onnx
from dclip_kit.models.clip import ClipBundle, load_clip
from dclip_kit.models.encode import encode_images, encode_texts
from dclip_kit.models.hand_over import TEXTS, build_tokenizer
from dclip_kit.models.hand_over_onnx import measure_onnx, write_onnx
from tests.models.conftest import write_t5_tokenizer

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

SCENES = [render_scene(make_scene("test", index)[0]) for index in range(5)]
# Imports neither PyTorch, open_clip nor the kit; prepares texts by the folder's own tokenizer.
ALONE = """
import sys
sys.modules.update(dict.fromkeys(["torch", "open_clip", "dclip_kit", "transformers"]))
import json, pathlib
import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer
folder, given, found = map(pathlib.Path, sys.argv[1:])
words = Tokenizer.from_file(str(folder / "tokenizer.json"))
config = json.loads((folder / "tokenizer_config.json").read_text())
words.enable_truncation(config["model_max_length"])
words.enable_padding(pad_id=words.token_to_id(config["pad_token"]), pad_token=config["pad_token"])
vision, text = (InferenceSession(folder / "onnx" / f"{x}_model.onnx") for x in ("vision", "text"))
def read(texts):
    ids = np.array([each.ids for each in words.encode_batch(texts)])
    return text.run(["text_embeds"], {"input_ids": ids})[0]
values = np.load(given)
texts = values["texts"].tolist()
np.savez(
    found,
    image=vision.run(["image_embeds"], {"pixel_values": values["pixels"]})[0],
    single=vision.run(["image_embeds"], {"pixel_values": values["pixels"][:1]})[0],
    text=read(texts),
    shorter=read(texts[:-1]),
    each=np.concatenate([read([x]) for x in texts]),
)
"""


@pytest.fixture
def make_clip(make_vit_folder, make_siglip_folder):
    """A CLIP by the name of its kind."""

    def make(kind: str) -> ClipBundle:
        if kind == "reads padding":  # as CoCa does
            return load_clip(make_vit_folder(custom_text=True, text_cfg={"embed_cls": True}))
        folders = {"vit": make_vit_folder, "large": make_vit_folder, "siglip": make_siglip_folder}
        return load_clip(folders[kind]() if kind in folders else kind)

    return make


_HANDED: dict[str, tuple[ClipBundle, Path]] = {}  # by kind


@pytest.fixture
def handed_over(make_clip, tmp_path_factory, monkeypatch):
    """A CLIP of a kind and the folder it was handed over to, for all tests that only read them."""

    def hand_over(kind: str) -> tuple[ClipBundle, Path]:
        if kind not in _HANDED:
            clip, folder = make_clip(kind), tmp_path_factory.mktemp("handed")
            before = clip.digest
            if kind == "large":  # torch splits what has more than 1.5 GB, or is told to
                export, apart = torch.onnx.export, {"external_data": True}
                monkeypatch.setattr(torch.onnx, "export", lambda *x, **y: export(*x, **y | apart))
            assert write_onnx(clip, folder, int8=kind in ("pocket", "large")) >= 0.9999
            assert clip.digest == before and not clip.model.training
            _HANDED[kind] = clip, folder
        return _HANDED[kind]

    return hand_over


@pytest.fixture
def traced_before(handed_over, monkeypatch):
    """A CLIP of a kind, whose towers are not traced again."""

    def take(kind: str) -> ClipBundle:
        clip, folder = handed_over(kind)
        monkeypatch.setattr(
            hand_over_onnx,
            "_trace",
            lambda tower, name, sample, out: shutil.copy(folder / "onnx" / f"{name}.onnx", out),
        )
        return clip

    return take


def encode_with_pytorch(clip: ClipBundle) -> torch.Tensor:
    """As `encode_texts`, which refuses empty texts."""
    with torch.no_grad():
        return clip.model.encode_text(clip.tokenizer(list(TEXTS)))


def find_cosine(found: object, expected: torch.Tensor) -> float:
    """The least of all rows."""
    found = torch.from_numpy(np.asarray(found))
    assert found.shape == expected.shape
    return float(F.cosine_similarity(found, expected).min())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pocket", "vit", "large", "siglip", "reads padding"])
def test_whoever_has_onnxruntime_alone_computes_the_same(kind, handed_over, tmp_path) -> None:
    clip, folder = handed_over(kind)
    pixels = torch.stack([clip.preprocess(picture) for picture in SCENES])
    files = [folder, tmp_path / "given.npz", tmp_path / "found.npz"]
    np.savez(files[1], pixels=pixels, texts=TEXTS)
    subprocess.run([sys.executable, "-c", ALONE, *files], check=True, cwd=tmp_path)
    found, image, text = np.load(files[2]), encode_images(clip, SCENES), encode_with_pytorch(clip)
    assert find_cosine(found["image"], image) >= 0.9999
    assert find_cosine(found["single"], image[:1]) >= 0.9999
    assert find_cosine(found["text"], text) >= 0.9999
    assert find_cosine(found["shorter"], text[:-1]) >= 0.9999
    assert find_cosine(found["each"], text) >= 0.9999


ARCHITECTURES = ["ViT-B-32", "RN50", "convnext_base", "coca_ViT-B-32", "ViT-B-16-SigLIP"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_towers_of_all_kinds_compute_the_same(name, tmp_path) -> None:
    """At their real widths, without weights; more blocks of a tower are only traced again."""
    if name.endswith("SigLIP"):  # whose tokenizer would be downloaded
        model, _, preprocess = open_clip.create_model_and_transforms(name)
        write_t5_tokenizer(tmp_path / "words")
        words = open_clip.tokenizer.HFTokenizer(str(tmp_path / "words"), 64, "canonicalize")
        config = open_clip.get_model_config(name)
        clip = ClipBundle(model.eval(), preprocess, words, name, config)
    else:
        clip = load_clip(name, "untrained")
    stacks = [x for name, x in clip.model.named_modules() if re.search(r"(blocks|layer\d)$", name)]
    assert len(stacks) >= 2
    for stack in stacks:
        del stack[2:]
    for module in clip.model.modules():  # else a ResNet's statistics would be 0 and 1
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    write_onnx(clip, tmp_path / "out")
    pixels = torch.stack([clip.preprocess(picture) for picture in SCENES[:3]])
    ids = clip.tokenizer(list(TEXTS))
    file = tmp_path / "out" / "onnx" / "vision_model.onnx"
    image = onnxruntime.InferenceSession(file).run(None, {"pixel_values": pixels.numpy()})[0]
    file = file.with_name("text_model.onnx")
    text = onnxruntime.InferenceSession(file).run(None, {"input_ids": ids.numpy()})[0]
    assert find_cosine(image, encode_images(clip, SCENES[:3])) >= 0.9999
    assert find_cosine(text, encode_with_pytorch(clip)) >= 0.9999


@pytest.mark.slow
def test_weights_that_are_too_large_for_a_file_of_onnx_stand_beside_it(
    handed_over, captioned
) -> None:
    clip, folder = handed_over("large")
    names = {file.name for file in (folder / "onnx").iterdir()}
    towers = ("vision_model", "text_model")
    ends = (".onnx", ".onnx_data", "_quantized.onnx")
    assert names == {f"{name}{end}" for name in towers for end in ends}
    given = json.loads((folder / "config.json").read_text())["transformers.js_config"]
    assert given["use_external_data_format"] == {f"{name}.onnx": True for name in towers}
    sizes = [x.stat().st_size for x in (folder / "onnx").iterdir() if "quantized" not in x.name]
    measured = measure_onnx(clip, folder, captioned)
    assert measured["fp32"].megabytes == pytest.approx(sum(sizes) / 1e6)
    assert measured["int8"].megabytes < measured["fp32"].megabytes


@pytest.mark.slow
def test_a_tower_that_cannot_be_traced_is_refused_in_a_sentence(
    make_clip, monkeypatch, tmp_path
) -> None:
    def branch(self: torch.nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values if float(pixel_values.sum()) > 0 else -pixel_values

    monkeypatch.setattr(hand_over_onnx._Vision, "forward", branch)
    with pytest.raises(ValueError, match=r"^Expected a vision_model that torch can trace, got .+"):
        write_onnx(make_clip("vit"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_files_say_what_transformers_js_needs(traced_before, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("stays")
    (tmp_path / "out" / "onnx").mkdir()
    for name in ("text_model_quantized.onnx", "text_model.onnx_data"):
        (tmp_path / "out" / "onnx" / name).write_text("an earlier model's")
    bundle = traced_before("siglip")
    write_onnx(bundle, tmp_path / "out")
    names = {str(x.relative_to(tmp_path / "out")) for x in (tmp_path / "out").rglob("*.*")}
    assert names == {
        *("onnx/vision_model.onnx", "onnx/text_model.onnx", "config.json", "README.md"),
        *("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "mine.txt"),
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "clip" and config["projection_dim"] == 32
    words, text = build_tokenizer(bundle), config["text_config"]
    assert text["eos_token_id"] == words.eos_token_id < text["vocab_size"]
    pictures = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert pictures["image_processor_type"] == "CLIPImageProcessor"
    assert pictures["size"] == {"height": 48, "width": 48} and pictures["image_mean"] == [0.5] * 3
    card = (tmp_path / "out" / "README.md").read_text()
    assert "to which it adds" in card and "_quantized" not in card


@pytest.mark.slow
def test_a_hand_over_that_fails_leaves_the_earlier_one(
    traced_before, monkeypatch, tmp_path
) -> None:
    (tmp_path / "out" / "onnx").mkdir(parents=True)
    earlier = tmp_path / "out" / "onnx" / "text_model_quantized.onnx"
    earlier.write_text("an earlier model's")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hand_over_onnx, "write_preprocessing", fail)
    with pytest.raises(OSError, match="No space"):
        write_onnx(traced_before("vit"), tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [earlier]


@pytest.mark.slow
def test_8_bit_weights_are_measured_beside_the_others(handed_over, captioned) -> None:
    clip, folder = handed_over("pocket")
    assert "_quantized" in (folder / "README.md").read_text()
    measured = measure_onnx(clip, folder, captioned)
    vectors = encode_images(clip, captioned.paths), encode_texts(clip, captioned.texts)
    expected = retrieval_metrics(*vectors, captioned.image_of_text).as_dict()
    assert measured["fp32"].retrieval.as_dict() == expected
    assert measured["int8"].megabytes < 0.3 * measured["fp32"].megabytes
    assert measured["int8"].milliseconds > 0
    run = hand_over_onnx._open(folder, "vision_model", "int8")
    pixels = torch.stack([clip.preprocess(picture) for picture in SCENES])
    assert (
        0.99 < find_cosine(run(pixels), encode_images(clip, SCENES)) < 0.999999
    )  # coarser, yet alike


@pytest.mark.slow
def test_nothing_is_written_where_onnxruntime_computes_otherwise(
    make_clip, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(
        hand_over_onnx._Vision, "forward", lambda self, x: torch.ones(len(x), 24) + x.mean()
    )
    with pytest.raises(ValueError, match=r"the cosine of their vectors is only -?0\.\d+; use"):
        write_onnx(make_clip("vit"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["onnxruntime.quantization", "onnxscript", "transformers"])
def test_a_missing_package_is_named(package, clip, monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"\(.*{package}.*\); run pip install 'dclip-kit\[onnx"):
        write_onnx(clip, tmp_path / "out")
    assert not (tmp_path / "out").exists()


NODE = """
import fs from "fs";
import * as transformers from "@huggingface/transformers";
transformers.env.allowRemoteModels = false;
const [folder, given, found] = process.argv.slice(2);
const { texts, pictures, pixels, dims } = JSON.parse(fs.readFileSync(given));
const tokenizer = await transformers.AutoTokenizer.from_pretrained(folder);
const textModel = await transformers.CLIPTextModelWithProjection.from_pretrained(folder);
const words = tokenizer(texts, { padding: true, truncation: true });
const { text_embeds } = await textModel(words);
const processor = await transformers.AutoProcessor.from_pretrained(folder);
const visionModel = await transformers.CLIPVisionModelWithProjection.from_pretrained(folder);
const opened = await Promise.all(pictures.map((path) => transformers.load_image(path)));
const { image_embeds } = await visionModel(await processor(opened));
const pixel_values = new transformers.Tensor("float32", Float32Array.from(pixels), dims);
const same = await visionModel({ pixel_values });
fs.writeFileSync(found, JSON.stringify({
  ids: words.input_ids.tolist().map((row) => row.map(Number)),
  text: text_embeds.tolist(), image: image_embeds.tolist(), same: same.image_embeds.tolist(),
}));
"""


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory) -> Path:
    """A folder with transformers.js and the script above."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        pytest.skip("Node or npm is not installed: transformers.js was not checked.")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    (folder / "try.mjs").write_text(NODE)
    packages = ["--ignore-scripts", "--no-audit", "--no-fund", "@huggingface/transformers@4"]
    done = subprocess.run([npm, "install", *packages], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:]
        pytest.skip(
            f"npm installs no transformers.js ({reason}): what it computes was not checked."
        )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pocket", "large", "siglip"])
def test_transformers_js_computes_the_same(
    kind, handed_over, node_folder, tmp_path, record_property
) -> None:
    """Its own pictures differ a little, since it resizes them by other means."""
    clip, folder = handed_over(kind)
    pictures = [tmp_path / f"{index}.png" for index in range(len(SCENES))]
    for scene, path in zip(SCENES, pictures, strict=True):
        scene.save(path)
    pixels = torch.stack([clip.preprocess(picture) for picture in SCENES])
    given = {"texts": TEXTS, "pictures": [str(path) for path in pictures]}
    given |= {"pixels": pixels.flatten().tolist(), "dims": list(pixels.shape)}
    (tmp_path / "given.json").write_text(json.dumps(given))
    files = [folder, tmp_path / "given.json", tmp_path / "found.json"]
    subprocess.run(["node", "try.mjs", *files], check=True, cwd=node_folder)
    found, image = json.loads(files[2].read_text()), encode_images(clip, SCENES)
    own, text = clip.tokenizer(list(TEXTS)), encode_with_pytorch(clip)
    counts = (own != own[TEXTS.index(""), -1]).sum(1).clamp(max=own.shape[1] - 1)
    assert len(found["ids"]) == len(TEXTS) and counts[-1] == own.shape[1] - 1  # it is cut off
    for ids, row, count in zip(found["ids"], own.tolist(), counts.tolist(), strict=True):
        assert ids[:count] == row[:count]
    assert find_cosine(found["text"], text) >= 0.9999
    assert find_cosine(found["same"], image) >= 0.9999
    cosine = find_cosine(found["image"], image)
    record_property("cosine_of_pictures", cosine)
    print(f"{kind}: the least cosine of a picture's vector in transformers.js is {cosine:.5f}")
    assert cosine >= 0.99
