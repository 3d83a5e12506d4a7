"""A CLIP handed over to transformers, compared in what its users have."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dclip_kit.models.clip import load_clip
from dclip_kit.models.encode import encode_images, encode_texts
from dclip_kit.models.hand_over_transformers import build_transformers, write_transformers

TEXTS = ("a dog", "two red cats beside a tree's trunk", "A  Dog!", "", "ten 10s", "naïve café")


@pytest.fixture
def pictures() -> list[Image.Image]:
    torch.manual_seed(2)
    sizes = [(90, 60), (48, 48), (33, 100)]
    return [
        Image.fromarray((torch.rand(*size[::-1], 3) * 255).byte().numpy())
        .resize((40, 30))
        .resize(size)
        for size in sizes
    ]


@pytest.mark.parametrize("changes", [{}, {"quick_gelu": True}, {"custom_text": True}])
def test_transformers_computes_the_same(changes, make_vit_folder, pictures, tmp_path) -> None:
    """From files alone, with its own processor and its own tokenizer."""
    from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer

    clip = load_clip(make_vit_folder(**changes))
    write_transformers(clip, tmp_path / "out")
    model = CLIPModel.from_pretrained(tmp_path / "out").eval()
    processor = CLIPProcessor.from_pretrained(tmp_path / "out", backend="pil")
    given = processor(text=list(TEXTS), images=pictures, return_tensors="pt", padding=True)
    expected = torch.stack([clip.preprocess(picture) for picture in pictures])
    torch.testing.assert_close(given["pixel_values"], expected, atol=1e-6, rtol=0)
    with torch.no_grad():
        image = model.get_image_features(given["pixel_values"]).pooler_output
        text = model.get_text_features(given["input_ids"], given["attention_mask"]).pooler_output
        outputs = model(**given)
        own_text = F.normalize(clip.model.encode_text(clip.tokenizer(list(TEXTS))), dim=-1)
    ours = encode_images(clip, pictures), own_text
    torch.testing.assert_close(F.normalize(image, dim=-1), ours[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(F.normalize(text, dim=-1), ours[1], atol=1e-5, rtol=0)
    scale = clip.model.logit_scale.exp()
    torch.testing.assert_close(
        outputs.logits_per_image, scale * ours[0] @ ours[1].T, atol=1e-3, rtol=0
    )
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "out")
    for text in (*TEXTS, "word " * 60):
        ids = tokenizer(text, truncation=True)["input_ids"]
        own = clip.tokenizer([text])[0]
        assert ids == own[: len(ids)].tolist() and not own[len(ids) :].any()


def test_a_shorter_side_is_fitted_at_most_a_pixel_aside(make_vit_folder, tmp_path) -> None:
    from transformers import CLIPProcessor

    clip = load_clip(make_vit_folder(mode="shortest"))
    write_transformers(clip, tmp_path / "out")
    processor = CLIPProcessor.from_pretrained(tmp_path / "out", backend="pil")
    ramp = np.tile(np.arange(97, dtype=np.uint8)[None, :, None], (48, 1, 3))
    picture = Image.fromarray(np.ascontiguousarray(ramp))  # each column one step brighter
    theirs = processor(images=picture, return_tensors="pt")["pixel_values"][0]
    step = 1 / 255 / 0.2
    assert (theirs - clip.preprocess(picture)).abs().max() <= 1.5 * step
    assert "one pixel aside" in (tmp_path / "out" / "README.md").read_text()


def test_a_bias_of_scores_is_left_out_and_said(make_vit_folder, pictures, tmp_path) -> None:
    """A ViT that was trained by open_clip's sigmoid loss; its vectors are the same."""
    from transformers import CLIPModel

    clip = load_clip(make_vit_folder(init_logit_bias=-10.0))
    write_transformers(clip, tmp_path / "out")
    model = CLIPModel.from_pretrained(tmp_path / "out").eval()
    pixels = torch.stack([clip.preprocess(picture) for picture in pictures])
    with torch.no_grad():
        image = F.normalize(model.get_image_features(pixels).pooler_output, dim=-1)
    torch.testing.assert_close(image, encode_images(clip, pictures), atol=1e-5, rtol=0)
    assert "lack the bias of -10" in (tmp_path / "out" / "README.md").read_text()


def test_files_say_what_others_need(make_vit_folder, tmp_path) -> None:
    folder = make_vit_folder()
    (folder / "README.md").write_text("# vit\n\n## Measured\n\n| R@1 | 12.5 |\n")
    (folder / "seen.json").write_text("{}")
    write_transformers(load_clip(folder), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("processor_config.json", "preprocessor_config.json", "README.md"),
    }
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["eos_token_id"] == 8513
    assert config["text_config"]["hidden_act"] == config["vision_config"]["hidden_act"] == "gelu"
    pictures = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert pictures["image_mean"] == [0.4, 0.5, 0.6] and not pictures["do_center_crop"]
    assert pictures["size"] == {"height": 48, "width": 48} and pictures["resample"] == 3
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "| R@1 | 12.5 |" in card


# As in half of SigLIP 2's models, whose activation timm writes as a module of its own.
TANH = {"trunk": "vit_so400m_patch16_siglip_256", "act_kwargs": {"approximate": "tanh"}}


@pytest.mark.parametrize("changes", [{}, TANH], ids=["exact", "tanh"])
def test_a_siglip_computes_the_same(changes, make_siglip_folder, pictures, tmp_path) -> None:
    """From files alone, with its own processor and its own tokenizer."""
    from transformers import AutoProcessor, SiglipModel

    clip = load_clip(make_siglip_folder(**changes))
    write_transformers(clip, tmp_path / "out")
    model = SiglipModel.from_pretrained(tmp_path / "out").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    given = processor(text=list(TEXTS), images=pictures, **options)
    expected = torch.stack([clip.preprocess(picture) for picture in pictures])
    torch.testing.assert_close(given["pixel_values"], expected, atol=1e-6, rtol=0)
    assert torch.equal(given["input_ids"], clip.tokenizer(list(TEXTS)))
    with torch.no_grad():
        outputs = model(**given)
        image, text = encode_images(clip, pictures), clip.model.encode_text(given["input_ids"])
        logits, _ = clip.model.get_logits(expected, given["input_ids"])
    torch.testing.assert_close(outputs.image_embeds, image, atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.text_embeds, F.normalize(text, dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.logits_per_image, logits, atol=1e-4, rtol=0)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "import SiglipModel, SiglipProcessor" in card and 'padding="max_length"' in card


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"no_causal_mask": False}, "would differ by"),
        ({"pool_type": "first"}, "would differ by"),
        ({"ls_init_value": 0.5}, "ls_1"),
    ],
)
def test_a_siglip_that_transformers_has_not_is_refused(
    changes, reason, make_siglip_folder, tmp_path
) -> None:
    clip = load_clip(make_siglip_folder(**changes))
    with pytest.raises(ValueError, match=rf"or a SigLIP.*{reason}.*as ONNX\.$"):
        write_transformers(clip, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vision_cfg": {"layers": [1, 1, 1, 1], "patch_size": None}}, "another image tower"),
        ({"vision_cfg": {"pool_type": "avg"}}, "would differ by"),
        ({"vision_cfg": {"ls_init_value": 0.5}}, "ls_1"),
        ({"vision_cfg": {"no_ln_pre": True}}, "pre_layrnorm"),
        ({"vision_cfg": {"attentional_pool": True}}, "attn_pool"),
        ({"custom_text": True, "text_cfg": {"proj_bias": True}}, "text_model.head"),
        ({"custom_text": True, "text_cfg": {"no_causal_mask": True}}, "would differ by"),
        ({"text_cfg": {"pool_type": "first"}}, "would differ by"),
    ],
)
def test_what_transformers_has_no_model_of_is_refused(
    changes, reason, make_vit_folder, tmp_path
) -> None:
    clip = load_clip(make_vit_folder(**changes))
    with pytest.raises(ValueError, match=rf"plain vision transformer.*{reason}.*as ONNX\.$"):
        write_transformers(clip, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_transformers_the_line_that_brings_it_is_named(
    make_vit_folder, monkeypatch, tmp_path
) -> None:
    clip = load_clip(make_vit_folder())
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"run pip install 'dclip-kit\[transformers\]'"):
        write_transformers(clip, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_pockets_resnet_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got pocket \(it has another image tower\)"):
        build_transformers(load_clip("pocket"))


def test_a_siglips_settings_do_not_stay_for_another_model(
    make_siglip_folder, make_vit_folder, tmp_path
) -> None:
    extra = {"modules.json", "sentence_bert_config.json"}
    write_transformers(load_clip(make_siglip_folder()), tmp_path / "out")
    assert extra < {path.name for path in (tmp_path / "out").iterdir()}
    write_transformers(load_clip(make_vit_folder()), tmp_path / "out")
    assert not extra & {path.name for path in (tmp_path / "out").iterdir()}


def test_a_tokenizer_is_called_by_a_name_that_older_versions_know(
    make_siglip_folder, tmp_path
) -> None:
    """Version 4 knows no TokenizersBackend."""
    write_transformers(load_clip(make_siglip_folder()), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


ALONE = """
import sys
sys.modules.update(dict.fromkeys(["open_clip", "dclip_kit", "timm"]))
import json, pathlib
import numpy as np
from PIL import Image
folder, picture, found = map(pathlib.Path, sys.argv[1:])
texts = ["a dog", "two red cats beside a tree's trunk"]
"""
SENTENCES = """
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(str(folder), device="cpu")
vectors = [model.encode(given, normalize_embeddings=True)
           for given in (texts, texts[:1], [Image.open(picture)])]
"""
PLAIN = """
import torch
from transformers import AutoModel, AutoProcessor
kind = json.loads((folder / "config.json").read_text())["model_type"]
assert (folder / "preprocessor_config.json").exists()
model = AutoModel.from_pretrained(folder).eval()
processor = AutoProcessor.from_pretrained(folder, backend="pil")
padding = "max_length" if kind == "siglip" else True
vectors = []
with torch.no_grad():
    for some in (texts, texts[:1]):
        given = processor(text=some, padding=padding, return_tensors="pt")
        vectors.append(model.get_text_features(**given).pooler_output)
    given = processor(images=Image.open(picture), return_tensors="pt")
    vectors.append(model.get_image_features(**given).pooler_output)
vectors = [torch.nn.functional.normalize(each, dim=-1) for each in vectors]
"""


@pytest.mark.slow
@pytest.mark.parametrize(  # a ViT's CLIPModel is compared so in notebook 09
    ("kind", "code"), [("siglip", PLAIN), ("vit", SENTENCES), ("siglip", SENTENCES)]
)
def test_whoever_has_neither_open_clip_nor_the_kit_computes_the_same(
    kind, code, make_vit_folder, make_siglip_folder, pictures, tmp_path
) -> None:
    """Of texts of several lengths, too, and of each alone."""
    clip = load_clip({"vit": make_vit_folder, "siglip": make_siglip_folder}[kind]())
    write_transformers(clip, tmp_path / "out")
    pictures[0].save(tmp_path / "picture.png")
    files = [tmp_path / name for name in ("out", "picture.png", "found.npz")]
    code = ALONE + code + "np.savez(found, *vectors)"
    subprocess.run([sys.executable, "-c", code, *files], check=True, cwd=tmp_path)
    texts, single, image = np.load(files[2]).values()
    expected = encode_texts(clip, ["a dog", "two red cats beside a tree's trunk"])
    np.testing.assert_allclose(texts, expected, atol=1e-5)
    np.testing.assert_allclose(single, expected[:1], atol=1e-5)
    # sentence-transformers' processor resizes by another library: a step of brightness.
    np.testing.assert_allclose(image, encode_images(clip, pictures[:1]), atol=5e-3)
