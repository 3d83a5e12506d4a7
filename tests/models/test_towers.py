"""One contract for every family of image tower: features, freezing, a step, mixing, saving."""

import json
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from dclip_kit.config import StudentSettings
from dclip_kit.features.store import FrozenFeatures
from dclip_kit.models.clip import ClipBundle, load_clip, save_clip
from dclip_kit.models.encode import encode_images, encode_texts, encode_tokens
from dclip_kit.models.weights import choose_parameters, freeze, interpolate
from tests.training.fine_tuning import fine_tune

TEXTS = ["a red ball", "two dogs on a very long road"]
TEXT = {"context_length": 16, "width": 32, "heads": 2, "layers": 2}
SMALL = {
    "small-vit": {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16}
        | {"patch_size": 8},
        "text_cfg": TEXT,
    },
    "small-timm": {
        "embed_dim": 32,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "", "image_size": 160},
        "text_cfg": TEXT,
    },
    # A sigmoid's bias, a pooling that attends and has no projection after it, and a text tower
    # that sees all tokens and projects with a bias.
    "small-map": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"}
        | {"image_size": 160},
        "text_cfg": TEXT | {"no_causal_mask": True, "proj_bias": True},
    },
    "small-convnext": {
        "embed_dim": 32,
        "vision_cfg": {"timm_model_name": "test_convnext", "timm_pool": "avg", "image_size": 64},
        "text_cfg": TEXT,
    },
    "small-resnet": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
        "text_cfg": TEXT,
    },
}
REAL = ("ViT-B-32-quickgelu", "ViT-B-16-quickgelu")

# By family and policy, one parameter that trains and one that does not.
VIT = {
    "projection": ("proj", "ln_post.weight"),
    "attention": ("transformer.resblocks.0.attn.in_proj_weight", "conv1.weight"),
    "last_blocks(1)": ("transformer.resblocks.{}.mlp.c_fc.weight", "conv1.weight"),
}
SAMPLES = {
    "small-vit": VIT,
    **dict.fromkeys(REAL, VIT),
    "small-timm": {
        "projection": ("head.proj.weight", "trunk.norm.weight"),
        "attention": ("trunk.blocks.0.attn.qkv.weight", "trunk.patch_embed.proj.weight"),
        "last_blocks(1)": ("trunk.blocks.{}.mlp.fc1.weight", "trunk.patch_embed.proj.weight"),
    },
    "small-map": {
        "projection": ("trunk.attn_pool.proj.weight", "trunk.attn_pool.latent"),
        "attention": ("trunk.attn_pool.latent", "trunk.patch_embed.proj.weight"),
        "last_blocks(1)": ("trunk.blocks.{}.mlp.fc1.weight", "trunk.patch_embed.proj.weight"),
    },
    "small-convnext": {
        "projection": ("head.proj.weight", "trunk.stem.0.weight"),
        "attention": ("head.proj.weight", "trunk.stem.0.weight"),  # it has none
        "last_blocks(1)": ("trunk.stages.3.blocks.{}.mlp.fc1.weight", "trunk.stem.0.weight"),
    },
    "small-resnet": {
        "projection": ("attnpool.c_proj.weight", "attnpool.q_proj.weight"),
        "attention": ("attnpool.q_proj.weight", "layer4.0.conv3.weight"),
        "last_blocks(1)": ("layer4.{}.conv3.weight", "layer3.0.conv3.weight"),
    },
}
BLOCKS = {"small-vit": 2, "small-timm": 6, "small-map": 6, "small-convnext": 2, "small-resnet": 1}


def build(name: str, folder: Path) -> ClipBundle:
    """A CLIP with random weights, by an architecture of open_clip's or one added to them."""
    (folder / f"{name}.json").write_text(json.dumps(SMALL[name]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [])
        patch.setattr(open_clip.factory, "_MODEL_CONFIGS", {})
        open_clip.add_model_config(folder)
        torch.manual_seed(0)
        return load_clip(name, "untrained")


def draw_pixels(clip: ClipBundle) -> torch.Tensor:
    """Two pictures of noise, of the size that the tower takes."""
    side = torch.tensor(clip.model.visual.image_size).max()
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)


@pytest.fixture(scope="module", params=[*SMALL, *REAL])
def tower(request, tmp_path_factory) -> ClipBundle:
    """One of each family; not to be changed."""
    if request.param in REAL:
        return load_clip(request.param, "untrained")
    return build(request.param, tmp_path_factory.mktemp("architectures"))


@pytest.fixture
def pixels(tower) -> torch.Tensor:
    return draw_pixels(tower)


def test_features_are_of_unit_length_and_differ(tower, pixels) -> None:
    assert tower.embed_dim == tower.model_config["embed_dim"]
    for features in (encode_images(tower, pixels), encode_texts(tower, TEXTS)):
        assert features.shape[1] == tower.embed_dim
        assert torch.allclose(features.norm(dim=1), torch.ones(len(features)))
        assert not torch.allclose(features[0], features[1], atol=1e-4)


def test_token_features_are_in_the_joint_space(tower) -> None:
    tokens = encode_tokens(tower, TEXTS)
    assert tokens.features.shape == (2, 7, tower.embed_dim)
    assert tokens.mask.sum(1).tolist() == [3, 7]
    assert torch.allclose(tokens.features.norm(dim=2), tokens.mask.float())
    # The end token's hidden state is what the text tower itself pools and projects.
    text = tower.model.text if hasattr(tower.model, "text") else tower.model
    ids = tower.tokenizer(TEXTS)
    with torch.no_grad():
        hidden = tower.model.forward_intermediates(
            text=ids, text_indices=1, normalize_intermediates=True, intermediates_only=True
        )["text_intermediates"][-1]
        weights = text.text_projection
        projected = weights(hidden) if isinstance(weights, torch.nn.Module) else hidden @ weights
    ends = F.normalize(projected, dim=-1)[range(2), ids.argmax(1)]
    assert torch.allclose(ends, encode_texts(tower, TEXTS), atol=1e-6)
    assert torch.allclose(
        F.normalize(projected, dim=-1)[0, 1:4], tokens.features[0][tokens.mask[0]], atol=1e-6
    )


@pytest.mark.parametrize("policy", ["projection", "attention", "last_blocks(1)", "all"])
def test_a_policy_trains_a_part_of_the_image_tower(policy, tower) -> None:
    try:
        trainable = freeze(tower, policy)
        names = {name for name, _ in tower.model.visual.named_parameters()}
        training = {name for name, p in tower.model.named_parameters() if p.requires_grad}
    finally:
        tower.model.requires_grad_(True)
    assert training == {f"visual.{name}" for name in trainable}  # no text tower, no scale
    if policy == "all":
        assert set(trainable) == names
        return
    assert 0 < len(trainable) < len(names)
    trains, rests = SAMPLES[tower.name][policy]
    last = BLOCKS.get(tower.name, 12) - 1
    assert trains.format(last) in trainable
    assert rests in names and rests not in trainable
    if policy == "last_blocks(1)" and last:
        assert trains.format(last - 1) in names - set(trainable)


@pytest.fixture
def features(tower) -> FrozenFeatures:
    """What one step needs: two pictures with a caption each."""
    unit = F.normalize(torch.randn(2, tower.embed_dim), dim=1)
    one = torch.ones(2, dtype=torch.int64)
    return FrozenFeatures(
        image=unit,
        size=torch.full((2, 2), 9),
        region=unit,
        region_count=one,
        xyxy=torch.ones(2, 4),
        area=torch.ones(2),
        confidence=torch.ones(2),
        label=one,
        text=unit.flip(1),
        token=unit.half(),
        token_count=one,
        image_of_text=torch.arange(2),
    )


@pytest.mark.slow
def test_a_step_mixing_and_saving(tower, pixels, features, tmp_path) -> None:
    before = {name: value.clone() for name, value in tower.model.state_dict().items()}
    settings = StudentSettings(
        train="last_blocks(1)", learning_rate=1e-3, batch_size=2, epochs=1, mixed_precision="no"
    )
    run = fine_tune(tower, pixels, features, settings, features.text)
    after = run.student.model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    trainable = choose_parameters(tower, settings.train)
    assert changed and changed <= {f"visual.{name}" for name in trainable}
    assert len(changed) > 0.8 * len(trainable)
    assert all(torch.equal(v, before[name]) for name, v in tower.model.state_dict().items())

    mixed = interpolate(tower, run.student, 0.5)
    probe = sorted(changed)[0]
    halfway = torch.lerp(before[probe], after[probe], 0.5)
    assert torch.equal(mixed.model.state_dict()[probe], halfway)

    save_clip(mixed, tmp_path)
    again = load_clip(tmp_path)
    (tmp_path / "open_clip_model.safetensors").unlink()  # 600 MB of the real ones
    assert again.model_config.get("quick_gelu", False) == tower.model_config.get(
        "quick_gelu", False
    )
    assert torch.equal(encode_images(again, pixels), encode_images(mixed, pixels))
    assert torch.equal(encode_texts(again, TEXTS), encode_texts(mixed, TEXTS))


# What somebody without this kit does.
PLAIN = """
import sys
sys.modules["dclip_kit"] = None
import open_clip, torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
place, *names = sys.argv[1:]
found = {}
for name in names:
    reference = f"local-dir:{place}/{name}"
    model, _, preprocess = open_clip.create_model_and_transforms(reference)
    ids = open_clip.get_tokenizer(reference)(TEXTS)
    pixels = load_file(f"{place}/{name}.safetensors")["pixels"]
    with torch.no_grad():
        images = preprocess.transforms[-1](pixels.float() / 255)
        found[f"{name} image"] = model.eval().encode_image(images, normalize=True)
        found[f"{name} text"] = model.encode_text(ids, normalize=True)
save_file(found, f"{place}/found.safetensors")
"""


def test_plain_open_clip_computes_the_same_to_the_last_bit(tmp_path) -> None:
    expected = {}
    for name in SMALL:
        clip = build(name, tmp_path)
        save_clip(clip, tmp_path / name)
        pixels = draw_pixels(clip)
        save_file({"pixels": pixels}, tmp_path / f"{name}.safetensors")
        with torch.no_grad():
            images = clip.normalize(pixels).contiguous()  # laid out in memory as everybody's
            expected[f"{name} image"] = clip.model.encode_image(images, normalize=True)
        assert torch.allclose(encode_images(clip, pixels), expected[f"{name} image"], atol=1e-6)
        with torch.no_grad():  # all of the context; read no further than they go, texts follow
            whole = clip.model.encode_text(clip.tokenizer(TEXTS), normalize=True)
        assert torch.allclose(encode_texts(clip, TEXTS), whole, atol=1e-6)
        expected[f"{name} text"] = whole
    command = [sys.executable, "-c", f"TEXTS = {TEXTS!r}\n{PLAIN}", str(tmp_path), *SMALL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "found.safetensors")
    assert found.keys() == expected.keys()
    for name, features in expected.items():
        assert torch.equal(found[name], features), name


@pytest.mark.slow
def test_the_largest_of_the_papers_towers_runs_forward() -> None:
    """428 million parameters with random weights, 1.7 GB."""
    large = load_clip("ViT-L-14-quickgelu", "untrained")
    features = encode_images(large, torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8))
    assert features.shape == (1, 768) and features.norm().item() == pytest.approx(1, abs=1e-5)
    assert encode_tokens(large, TEXTS).features.shape == (2, 7, 768)
