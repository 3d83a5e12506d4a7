"""The frozen front and what goes on behind it make what the whole tower makes, to the bit."""

import open_clip
import pytest
import torch
from torch import nn

from dclip_kit.embedding import encode_images
from dclip_kit.encoders import load_clip
from dclip_kit.front import find_front, find_shared_front
from dclip_kit.student import clone_clip, freeze

# Tower, policy, and how many blocks stand before the first that trains; None: there is no front.
CASES = [
    ("pocket", "last_blocks(2)", 6),
    ("pocket", "last_blocks(3)", 5),
    ("pocket", "attention", 8),  # its only attention pools
    ("pocket", "projection", 8),
    ("pocket", "last_blocks(8)", 0),  # all blocks, but not the stem
    ("pocket", "all", None),
    ("tiny", "last_blocks(1)", 1),
    ("tiny", "projection", 2),
    ("tiny", "last_blocks(2)", None),  # before its blocks, a ViT has only one cheap product
    ("tiny", "attention", None),
]


@pytest.fixture(scope="module")
def pocket():
    return load_clip("pocket")


@pytest.fixture
def pick(request, clip, pocket):
    return {"pocket": pocket, "tiny": clip}


def draw_pixels(bundle, count: int = 5) -> torch.Tensor:
    side = bundle.model_config["vision_cfg"]["image_size"]
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8)


@pytest.mark.parametrize(("name", "policy", "blocks"), CASES)
def test_a_front_ends_before_the_first_block_that_trains(pick, name, policy, blocks) -> None:
    bundle = pick[name]
    front = find_front(bundle, policy)
    if blocks is None:
        assert front is None
        return
    assert front.blocks == blocks
    pixels = draw_pixels(bundle)
    hidden = front.activations(pixels)
    rest = front.rest(bundle)
    assert torch.equal(encode_images(rest, hidden), encode_images(bundle, pixels))
    assert torch.equal(encode_images(front.whole(rest), pixels), encode_images(bundle, pixels))
    torch.testing.assert_close(front.activations(pixels, batch_size=2), hidden)
    half = front.activations(pixels, torch.float16)
    assert half.dtype == torch.float16 and torch.equal(half, hidden.half())
    assert front.size_of(5) == hidden.nbytes and front.size_of(5, torch.float16) == half.nbytes


@pytest.mark.parametrize("name", ["ViT-B-32", "coca_ViT-B-32", "RN50"])
def test_real_architectures_go_on_where_their_front_ended(name) -> None:
    bundle = load_clip(name, "untrained")
    pixels = draw_pixels(bundle, 2)
    front = find_front(bundle, "last_blocks(2)")
    hidden = front.activations(pixels)
    assert torch.equal(encode_images(front.rest(bundle), hidden), encode_images(bundle, pixels))


def test_tokens_may_come_before_pictures_within_a_tower(clip) -> None:
    turned = clone_clip(clip)
    turned.model.visual.transformer.batch_first = False
    for block in turned.model.visual.transformer.resblocks:
        block.attn.batch_first = False
    pixels = draw_pixels(clip)
    front = find_front(turned, "last_blocks(1)")
    hidden = front.activations(pixels)
    expected = encode_images(clip, pixels)
    torch.testing.assert_close(encode_images(turned, pixels), expected)
    torch.testing.assert_close(encode_images(front.rest(turned), hidden), expected)


def test_what_goes_on_trains_by_the_policy_and_leaves_the_original_alone(clip) -> None:
    front = find_front(clip, "last_blocks(1)")
    pixels = draw_pixels(clip)
    before = encode_images(clip, pixels)
    student = clone_clip(front.rest(clip))
    freeze(student, "last_blocks(1)")
    found = student.model.encode_image(student.normalize(front.activations(pixels)))
    found.sum().backward()
    trains = [p for p in student.model.visual.parameters() if p.requires_grad]
    assert trains and all(p.grad.abs().sum() > 0 for p in trains)
    with torch.no_grad():
        for parameter in trains:
            parameter += 1
    assert not torch.allclose(encode_images(front.whole(student), pixels), before)
    assert torch.equal(encode_images(clip, pixels), before)


def test_shared_blocks_are_those_before_the_first_difference(clip) -> None:
    others = [clone_clip(clip) for _ in range(2)]
    with torch.no_grad():
        others[1].model.visual.transformer.resblocks[1].ln_2.bias += 1
    assert find_shared_front([clip, *others]).blocks == 1
    assert find_shared_front([clip, others[0]]).blocks == 2  # nothing differs
    with torch.no_grad():
        others[0].model.visual.positional_embedding += 1
    assert find_shared_front([clip, *others]) is None


def test_buffers_differ_too(pocket) -> None:
    other = clone_clip(pocket)
    other.model.visual.layer3[1].bn2.running_mean += 1
    assert find_shared_front([pocket, other]).blocks == 5


def test_towers_of_other_kinds_have_no_front(clip, monkeypatch) -> None:
    dropping = clone_clip(clip)
    dropping.model.visual.patch_dropout = open_clip.transformer.PatchDropout(0.5)
    assert find_front(dropping, "last_blocks(1)") is None
    wrapped = clone_clip(clip)

    class Other(type(clip.model.visual)):
        """Computes who knows what."""

    wrapped.model.visual.__class__ = Other
    assert find_front(wrapped, "last_blocks(1)") is None
    smaller = clone_clip(clip)
    del smaller.model.visual.proj
    smaller.model.visual.head = nn.Linear(32, 32)
    assert find_shared_front([clip, smaller]) is None


def test_no_picture_has_no_activations(clip) -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        find_front(clip, "last_blocks(1)").activations([])


def test_activations_too_large_for_their_type_are_refused(clip) -> None:
    large = clone_clip(clip)
    with torch.no_grad():
        large.model.visual.transformer.resblocks[0].mlp.c_proj.bias += 1e5
    front = find_front(large, "last_blocks(1)")
    pixels = draw_pixels(clip)
    assert front.activations(pixels).isfinite().all()
    with pytest.raises(ValueError, match=r"got NaN or infinity in torch\.float16"):
        front.activations(pixels, torch.float16)
