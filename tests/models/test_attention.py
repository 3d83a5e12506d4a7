"""Where a vision transformer looks, against attention computed head by head."""

import pytest
import torch
from PIL import Image

from dclip_kit.models.attention import map_attention
from dclip_kit.models.clip import load_clip
from dclip_kit.models.encode import encode_images


@pytest.fixture
def picture() -> Image.Image:
    return Image.effect_noise((40, 30), 90).convert("RGB")


@torch.no_grad()
def slow_map(bundle, picture: Image.Image) -> torch.Tensor:
    """Attention of the class token in the last block, by its definition."""
    tower = bundle.model.visual
    patches = tower.conv1(bundle.preprocess(picture)[None]).flatten(2)[0].T
    tokens = torch.cat([tower.class_embedding[None], patches]) + tower.positional_embedding
    tokens = tower.ln_pre(tokens)
    *blocks, last = tower.transformer.resblocks
    for block in blocks:
        tokens = block(tokens[None])[0]
    layer = last.attn
    projected = last.ln_1(tokens) @ layer.in_proj_weight.T + layer.in_proj_bias
    width, heads = tokens.shape[1], layer.num_heads
    size = width // heads
    total = torch.zeros(len(patches))
    for head in range(heads):
        query = projected[0, head * size : (head + 1) * size]
        keys = projected[:, width + head * size : width + (head + 1) * size]
        total += (keys @ query / size**0.5).softmax(0)[1:]
    return (total / total.sum()).view(4, 4)


def test_it_is_the_class_tokens_attention_in_the_last_layer(clip, picture) -> None:
    found = map_attention(clip, picture)
    assert found.shape == (4, 4) and found.sum().item() == pytest.approx(1)
    assert found.std() > 1e-3  # else any patch could stand at any place
    torch.testing.assert_close(found, slow_map(clip, picture), rtol=1e-4, atol=1e-6)


def test_a_picture_that_was_taken_sideways_is_turned_first(clip, picture, tmp_path) -> None:
    sideways = Image.Exif()
    sideways[0x0112] = 6
    picture.save(tmp_path / "sideways.png", exif=sideways)
    turned = map_attention(clip, picture.transpose(Image.Transpose.ROTATE_270))
    torch.testing.assert_close(map_attention(clip, Image.open(tmp_path / "sideways.png")), turned)
    assert not torch.allclose(map_attention(clip, picture), turned, atol=1e-3)


def test_the_model_is_left_as_it_was(clip, picture) -> None:
    before = encode_images(clip, [picture])
    digest = clip.digest
    map_attention(clip, picture)
    attention = clip.model.visual.transformer.resblocks[-1].attn
    assert not attention._forward_hooks and not attention._forward_pre_hooks
    assert torch.equal(encode_images(clip, [picture]), before) and clip.digest == digest


def test_a_tower_without_a_class_token_is_refused(clip, make_clip_folder, picture) -> None:
    averaged = load_clip(
        make_clip_folder(vision_cfg=clip.model_config["vision_cfg"] | {"pool_type": "avg"})
    )
    for bundle in (load_clip("pocket"), averaged):
        with pytest.raises(ValueError, match=r"a class token, got .*; take pocket_vit"):
            map_attention(bundle, picture)
