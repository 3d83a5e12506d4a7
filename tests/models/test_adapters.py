"""Adapters: where they are, what they compute, and what is left of them once they are merged."""

import re
import sys

import open_clip
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from dclip_kit.models.adapters import attach_adapters, choose_layers, merge_adapters
from dclip_kit.models.clip import ClipBundle, load_clip, save_clip
from dclip_kit.models.encode import encode_images, encode_texts
from dclip_kit.models.weights import clone_clip, interpolate
from tests.models.test_towers import build

LAYERS = [
    [f"transformer.resblocks.{block}.{name}" for name in ("attn", "mlp.c_fc", "mlp.c_proj")]
    for block in (0, 1)
]
MATRICES = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


@pytest.fixture
def adapted(clip) -> ClipBundle:
    """A copy with adapters of rank 3 that have learnt something."""
    copied = clone_clip(clip)
    attach_adapters(copied, "all", 3)
    for parameter in trained(copied).values():
        torch.nn.init.normal_(parameter, std=0.1)
    return copied


def trained(bundle: ClipBundle) -> dict[str, Tensor]:
    named = bundle.model.visual.named_parameters()
    return {name: value for name, value in named if value.requires_grad}


def products(bundle: ClipBundle) -> dict[str, Tensor]:
    """B A by the name of the weight that it belongs to, from the names that peft gives them."""
    factors, found = trained(bundle), {}
    for name in factors:
        if ".lora_A." in name:
            product = factors[name.replace("lora_A", "lora_B")] @ factors[name]
            layer = re.sub(r"^model\.|\.base_layer|\.lora_A.*", "", name)
            found[f"{layer}.in_proj_weight" if layer.endswith("attn") else f"{layer}.weight"] = (
                product
            )
    return found


def by_hand(clip: ClipBundle, deltas: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = dict(clip.model.visual.state_dict())
    return weights | {name: weights[name] + delta for name, delta in deltas.items()}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("all", LAYERS[0] + LAYERS[1]),
        ("attention", [LAYERS[0][0], LAYERS[1][0]]),
        ("last_blocks(1)", LAYERS[1]),
    ],
)
def test_what_trains_gets_adapters_and_trains_no_longer_itself(policy, expected, clip) -> None:
    assert choose_layers(clip, policy) == expected
    attach_adapters(clip, policy, 3)
    sizes = {"attn": 3 * (32 + 96 + 32 + 32), "c_fc": 3 * (32 + 128), "c_proj": 3 * (128 + 32)}
    count = sum(sizes[name.rpartition(".")[2]] for name in expected)
    assert sum(value.numel() for value in trained(clip).values()) == count
    assert all(".lora_" in name for name in trained(clip))


def test_features_are_the_same_at_first(clip, pixels) -> None:
    before = encode_images(clip, pixels)
    attach_adapters(clip, "all", 3)
    assert torch.equal(encode_images(clip, pixels), before)


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_an_adapter_is_added_once_to_each_matrix(mode, clip, adapted, pixels) -> None:
    """Features and gradients are those of W + B A, in attention's output projection as well."""
    deltas = products(adapted)
    assert [name.partition("resblocks.0.")[2] for name in sorted(deltas)[:4]] == sorted(MATRICES)
    assert len(deltas) == 8
    adapted.model.train(mode)
    clip.model.train(mode)
    pixels = clip.normalize(pixels)
    found = adapted.model.encode_image(pixels)
    expected = functional_call(clip.model.visual, by_hand(clip, deltas), (pixels,))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    factors = list(trained(adapted).values())
    ours, theirs = (torch.autograd.grad(x.square().sum(), factors) for x in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_passes_leave_the_frozen_weights_as_they_are(clip, adapted, pixels) -> None:
    """To the last bit, however many there are."""
    before = dict(clip.model.visual.state_dict())
    for _ in range(3):
        adapted.model.encode_image(adapted.normalize(pixels)).sum().backward()
    weights = adapted.model.visual.state_dict()
    frozen = {name: value for name, value in weights.items() if ".lora_" not in name}
    assert len(frozen) == len(before)
    for name, value in frozen.items():
        assert torch.equal(value, before[re.sub(r"^model\.|\.base_layer", "", name)]), name


def test_merged_it_is_a_clip_of_the_same_parameters(clip, adapted, pixels, tmp_path) -> None:
    """In the same order, on which digests depend; what it was merged from can go on training."""
    own = {name: value.clone() for name, value in adapted.model.state_dict().items()}
    merged = merge_adapters(adapted)
    weights, before = merged.model.state_dict(), clip.model.state_dict()
    assert list(weights) == list(before)
    tower = {f"visual.{name}": v for name, v in by_hand(clip, products(adapted)).items()}
    assert all(torch.equal(weights[name], value) for name, value in (before | tower).items())
    assert all(torch.equal(v, own[name]) for name, v in adapted.model.state_dict().items())
    features = encode_images(merged, pixels)
    torch.testing.assert_close(encode_images(adapted, pixels), features, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(features, encode_images(clip, pixels), atol=1e-2)
    assert merge_adapters(merged) is merged

    save_clip(merged, tmp_path)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(v, weights[name]) for name, v in model.state_dict().items())
    loaded = load_clip(tmp_path)
    assert loaded.digest == merged.digest
    assert torch.equal(encode_texts(loaded, ["a ball"]), encode_texts(clip, ["a ball"]))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_a_mix_scales_the_adapters(alpha, clip, adapted) -> None:
    mixed = interpolate(clip, merge_adapters(adapted), alpha).model.visual.state_dict()
    scaled = {name: alpha * delta for name, delta in products(adapted).items()}
    expected = by_hand(clip, scaled)
    assert mixed.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(mixed[name], value, atol=1e-6, rtol=0)


def test_blocks_that_are_computed_again_for_the_gradients_are_computed_alike(
    clip, adapted, pixels
) -> None:
    pixels = adapted.normalize(pixels)
    gradients = []
    for checkpointing in (False, True):
        adapted.model.visual.set_grad_checkpointing(checkpointing)
        loss = adapted.model.encode_image(pixels).square().sum()
        gradients.append(torch.autograd.grad(loss, list(trained(adapted).values())))
    assert adapted.model.visual.transformer.grad_checkpointing
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("name", ["small-resnet", "small-convnext", "small-timm", "small-map"])
def test_other_image_towers_are_refused(name, tmp_path) -> None:
    clip = build(name, tmp_path)
    with pytest.raises(ValueError, match=f"vision transformer .*, got {name} with another image"):
        attach_adapters(clip, "all", 3)
    assert all(value.requires_grad for value in clip.model.parameters())


def test_a_transformer_of_other_blocks_is_refused(make_clip_folder) -> None:
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    clip = load_clip(make_clip_folder(vision_cfg=vision | {"qk_norm": True}))
    with pytest.raises(ValueError, match="with another image tower; set"):
        choose_layers(clip, "all")


@pytest.mark.parametrize("policy", ["norms", "projection"])
def test_a_policy_without_their_layers_is_refused(policy, clip) -> None:
    with pytest.raises(ValueError, match=f"to adapt, got '{policy}'; take all, attention or"):
        attach_adapters(clip, policy, 3)


def test_without_peft_the_line_that_brings_it_is_named(clip, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"run pip install 'dclip-kit\[lora\]'\."):
        choose_layers(clip, "all")
