"""What trains: names written by hand, for the tiny ViT and for towers of other families."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dclip_kit.models.weights import (
    AFTER_BLOCKS,
    clone_clip,
    freeze,
    interpolate,
    round_changed,
    same_text_tower,
)

BLOCK = (
    *("ln_1.weight", "ln_1.bias", "attn.in_proj_weight", "attn.in_proj_bias"),
    *("attn.out_proj.weight", "attn.out_proj.bias", "ln_2.weight", "ln_2.bias"),
    *("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
)
BLOCKS = [[f"transformer.resblocks.{i}.{name}" for name in BLOCK] for i in (0, 1)]
BEFORE = ["class_embedding", "positional_embedding", "conv1.weight", "ln_pre.weight", "ln_pre.bias"]
AFTER = ["ln_post.weight", "ln_post.bias", "proj"]

VIT = {
    "projection": ["proj"],
    "attention": ["proj"] + [name for block in BLOCKS for name in block if ".attn." in name],
    "norms": [name for name in BEFORE + BLOCKS[0] + BLOCKS[1] + AFTER if "ln_" in name],
    "last_blocks(1)": BLOCKS[1] + AFTER,
    "last_blocks(2)": BLOCKS[0] + BLOCKS[1] + AFTER,
    "all": BEFORE + BLOCKS[0] + BLOCKS[1] + AFTER,
}


@pytest.mark.parametrize("policy", VIT)
def test_a_policy_trains_exactly_what_it_says(policy, clip) -> None:
    trainable = freeze(clip, policy)
    assert sorted(trainable) == sorted(VIT[policy])
    training = {n for n, p in clip.model.named_parameters() if p.requires_grad}
    assert training == {f"visual.{name}" for name in VIT[policy]}  # no text tower, no logit scale


def test_a_policy_replaces_the_one_before(clip) -> None:
    freeze(clip, "all")
    freeze(clip, "projection")
    assert [n for n, p in clip.model.named_parameters() if p.requires_grad] == ["visual.proj"]


def tower_of(names: list[str]) -> nn.Module:
    """A model whose image tower has parameters of these names."""
    model = nn.Module()
    model.visual = nn.Module()
    for name in names:
        place, (*parts, last) = model.visual, name.split(".")
        for part in parts:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        place.register_parameter(last, nn.Parameter(torch.zeros(1)))
    return model


FAMILIES = {
    "timm ViT": {  # which policies, beside "all", take a parameter
        "trunk.pos_embed": (),
        "trunk.blocks.0.attn.qkv.weight": ("attention",),
        "trunk.blocks.0.mlp.fc1.weight": (),
        "trunk.blocks.11.attn.proj.weight": ("attention", "last_blocks(1)"),
        "trunk.blocks.11.mlp.fc1.weight": ("last_blocks(1)",),
        "trunk.norm.weight": ("last_blocks(1)",),
        "trunk.attn_pool.latent": ("attention", "last_blocks(1)"),
        "head.proj.weight": ("projection", "attention", "last_blocks(1)"),
    },
    "SigLIP": {  # whose pooling ends in the joint space
        "trunk.blocks.11.attn.qkv.weight": ("attention", "last_blocks(1)"),
        "trunk.blocks.11.mlp.fc1.weight": ("last_blocks(1)",),
        "trunk.attn_pool.latent": ("attention", "last_blocks(1)"),
        "trunk.attn_pool.kv.weight": ("attention", "last_blocks(1)"),
        "trunk.attn_pool.proj.weight": ("projection", "attention", "last_blocks(1)"),
        "trunk.attn_pool.mlp.fc2.weight": ("projection", "attention", "last_blocks(1)"),
    },
    "Perception Encoder": {  # whose pooling is followed by timm's classifier
        "trunk.blocks.11.mlp.fc1.weight": ("last_blocks(1)",),
        "trunk.attn_pool.proj.weight": ("attention", "last_blocks(1)"),
        "trunk.attn_pool.mlp.fc2.weight": ("attention", "last_blocks(1)"),
        "trunk.head.weight": ("projection", "attention", "last_blocks(1)"),
    },
    "MobileCLIP": {
        "trunk.stages.3.blocks.2.mlp.fc1.conv.weight": (),
        "trunk.stages.3.blocks.3.token_mixer.qkv.weight": ("attention", "last_blocks(1)"),
        "trunk.stages.3.blocks.3.token_mixer.mixer.weight": ("last_blocks(1)",),
        "trunk.final_conv.se.fc1.weight": ("last_blocks(1)",),
        "trunk.head.fc.weight": ("projection", "attention", "last_blocks(1)"),
    },
    "ConvNeXt": {  # its blocks are counted anew in each stage
        "trunk.stages.2.blocks.26.mlp.fc1.weight": (),
        "trunk.stages.3.blocks.0.mlp.fc1.weight": (),
        "trunk.stages.3.blocks.1.mlp.fc1.weight": ("last_blocks(1)",),
        "trunk.head.norm.weight": ("last_blocks(1)",),
        "head.proj.weight": ("projection", "attention", "last_blocks(1)"),
    },
    "ResNet": {  # CLIP's own
        "layer3.5.conv3.weight": (),
        "layer4.0.downsample.0.weight": (),
        "layer4.1.conv3.weight": ("last_blocks(1)",),
        "attnpool.q_proj.weight": ("attention", "last_blocks(1)"),
        "attnpool.c_proj.weight": ("projection", "attention", "last_blocks(1)"),
    },
    "timm ResNet": {
        "trunk.layer4.0.conv1.weight": (),
        "trunk.layer4.1.conv1.weight": ("last_blocks(1)",),
        "head.proj.weight": ("projection", "attention", "last_blocks(1)"),
    },
}


@pytest.mark.parametrize("policy", ["projection", "attention", "last_blocks(1)", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_name_the_same_things_otherwise(family, policy, clip) -> None:
    names = FAMILIES[family]
    student = replace(clip, model=tower_of(list(names)))
    expected = {name for name, by in names.items() if policy in (*by, "all")}
    assert set(freeze(student, policy)) == expected


def test_what_pools_or_projects_follows_the_blocks() -> None:
    """By the policies' table: what trains with the last block without being in one."""
    names = {name: by for family in FAMILIES.values() for name, by in family.items()}
    blocks = ("layer", "trunk.layer", "trunk.blocks", "trunk.stages")
    expected = {
        name for name, by in names.items() if "last_blocks(1)" in by and not name.startswith(blocks)
    }
    assert {name for name in names if AFTER_BLOCKS.match(name)} == expected and len(expected) > 5
    assert [name for name in VIT["all"] if AFTER_BLOCKS.match(name)] == AFTER


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("everything", r"projection, attention, norms, last_blocks\(n\), all, got 'everything'"),
        ("last_blocks", "projection, attention"),
        ("last_blocks(0)", "projection, attention"),
        ("last_blocks(3)", "at most 2 blocks"),
    ],
)
def test_an_unknown_policy_lists_the_known_ones(policy, says, clip) -> None:
    with pytest.raises(ValueError, match=says):
        freeze(clip, policy)


def test_a_policy_that_matches_nothing_is_refused(clip) -> None:
    with pytest.raises(ValueError, match="'projection' matches no parameter"):
        freeze(replace(clip, model=tower_of(["conv1.weight"])), "projection")


def test_a_clone_shares_no_weight_and_keeps_the_rest(clip) -> None:
    copy = clone_clip(clip)
    assert replace(copy, model=clip.model).__dict__ == clip.__dict__
    with torch.no_grad():
        copy.model.visual.proj += 1
    assert not torch.equal(copy.model.visual.proj, clip.model.visual.proj)


# Interpolation


@pytest.fixture
def other(clip):
    changed = clone_clip(clip)
    with torch.no_grad():
        for parameter in changed.model.visual.parameters():
            parameter += torch.randn_like(parameter)
    return changed


def weights(bundle) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in bundle.model.state_dict().values()])


@pytest.mark.parametrize(("alpha", "end"), [(0.0, 0), (1.0, 1)])
def test_the_ends_are_exact(alpha, end, clip, other) -> None:
    ends = clip, other
    assert torch.equal(weights(interpolate(clip, other, alpha)), weights(ends[end]))


def test_between_the_ends_weights_mix_and_the_ends_stay(clip, other) -> None:
    before, after = weights(clip), weights(other)
    mixed = interpolate(clip, other, 0.3)
    assert torch.allclose(weights(mixed), 0.7 * before + 0.3 * after, atol=1e-6)
    assert torch.equal(weights(clip), before) and torch.equal(weights(other), after)
    assert not torch.equal(before, after)
    same = clip.model.token_embedding.weight  # towers that did not train stay as they are
    assert torch.equal(mixed.model.token_embedding.weight, same)


def test_counters_are_not_mixed(clip, other) -> None:
    for number, bundle in enumerate((clip, other)):
        bundle.model.register_buffer("steps", torch.tensor(10 * number))
    found = [int(interpolate(clip, other, alpha).model.steps) for alpha in (0.0, 0.5, 1.0)]
    assert found == [0, 0, 10]


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_an_alpha_outside_is_refused(alpha, clip, other) -> None:
    with pytest.raises(ValueError, match="alpha from 0 to 1"):
        interpolate(clip, other, alpha)


def test_other_architectures_are_refused(clip) -> None:
    wider = replace(clip, model=tower_of(["proj"]))
    with pytest.raises(ValueError, match="one architecture"):
        interpolate(clip, wider, 0.5)


# Rounding, and what did not change


def test_what_changed_is_rounded_in_place_and_the_rest_stays(clip, other) -> None:
    changed = {name: value.clone() for name, value in other.model.state_dict().items()}
    with torch.no_grad():
        other.model.visual.ln_post.bias[3] = changed["visual.ln_post.bias"][3] = 70_000.0
    proj = other.model.visual.proj
    round_changed(clip, other)
    assert other.model.visual.proj is proj
    before = clip.model.state_dict()
    for name, value in other.model.state_dict().items():
        expected = changed[name].half().float() if name.startswith("visual.") else before[name]
        if name == "visual.ln_post.bias":  # one of whose numbers half precision has not
            expected[3] = 70_000.0
        assert torch.equal(value, expected), name
    # None of the tower's numbers were of half precision, nor are those that did not change.
    assert not torch.equal(before["ln_final.bias"], before["ln_final.bias"].half().float())
    assert not torch.equal(changed["visual.proj"], proj)


def test_counters_are_not_rounded(clip, other) -> None:
    for number, bundle in enumerate((clip, other)):
        bundle.model.register_buffer("steps", torch.tensor(2**20 * number + 1))
    round_changed(clip, other)
    assert int(other.model.steps) == 2**20 + 1


def test_text_towers_are_the_same_whatever_became_of_the_image_tower(clip, other) -> None:
    with torch.no_grad():
        other.model.logit_scale += 1  # which no feature depends on
        assert same_text_tower(clip, other)
        other.model.ln_final.bias[0] += 1
    assert not same_text_tower(clip, other)
