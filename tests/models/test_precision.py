"""What an image tower computes in: norms in convolutions, half precision, and who chooses it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dclip_kit.models.clip import load_clip
from dclip_kit.models.encode import encode_images
from dclip_kit.models.precision import choose_precision, fold_norms, folded_norms, keep_statistics
from dclip_kit.models.weights import clone_clip


@pytest.fixture(scope="module")
def pocket():
    return load_clip("pocket")


def test_a_resnets_norms_in_its_convolutions_have_the_same_gradients() -> None:
    tower = clone_clip(load_clip("pocket")).model.visual.double()
    keep_statistics(tower.train())
    names = list(tower.state_dict())
    pictures, called = torch.randn(3, 3, 64, 64).double(), []
    tower.layer4[0].bn2.register_forward_hook(lambda _, given, made: called.append((given, made)))

    def run() -> list[torch.Tensor]:
        tower.zero_grad()
        features = tower(pictures)
        features.square().sum().backward()
        return [features.detach(), *(p.grad.clone() for p in tower.parameters())]

    expected = run()
    with folded_norms(tower):
        found = run()
        assert list(tower.state_dict()) == names
    assert len(found) == len(expected) > 60
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    (before, after), (folded_before, folded_after) = called
    assert not torch.equal(before[0], after)  # a norm
    assert folded_before[0] is folded_after  # nothing left to do
    assert all(torch.equal(one, other) for one, other in zip(run(), expected, strict=True))


@torch.no_grad()
def test_a_resnet_for_features_alone_has_its_norms_in_its_convolutions(pocket) -> None:
    bundle = replace(pocket, model=clone_clip(pocket).model.double())
    tower, pictures = bundle.model.visual, torch.randn(3, 3, 64, 64).double()
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    expected = tower(pictures)
    folded = fold_norms(tower)
    torch.testing.assert_close(folded(pictures), expected, rtol=1e-9, atol=1e-9)
    norms = [sum(type(m) is nn.BatchNorm2d for m in each.modules()) for each in (tower, folded)]
    assert norms[0] > 20 and norms[1] == 0
    assert list(tower.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())
    assert torch.equal(tower(pictures), expected)


def test_towers_whose_norms_are_no_constants_stay_as_they_are(clip, pocket) -> None:
    assert fold_norms(clip.model.visual) is clip.model.visual  # a ViT
    tower = clone_clip(pocket).model.visual.train()  # statistics of the batch
    assert fold_norms(tower) is tower


@pytest.mark.parametrize("name", ["tiny", "pocket"])
def test_half_precision_is_for_pictures_and_gives_whole_features(name, clip, pocket) -> None:
    bundle = {"tiny": clip, "pocket": pocket}[name]
    side = bundle.model_config["vision_cfg"]["image_size"]
    pixels = torch.randint(256, (9, 3, side, side), dtype=torch.uint8)
    full, half = (encode_images(replace(bundle, precision=p), pixels) for p in ("no", "bf16"))
    assert torch.equal(encode_images(bundle, pixels), full)  # the default
    assert half.dtype == torch.float32
    assert torch.allclose(half.norm(dim=1), torch.ones(9), atol=1e-6)
    apart = 1 - (full * half).sum(1)
    assert 0 < apart.max() < 1e-3


def test_a_precision_that_nothing_computes_in_is_refused(clip, pictures) -> None:
    with pytest.raises(ValueError, match="no or bf16 to compute in, got 'fp16'"):
        encode_images(replace(clip, precision="fp16"), pictures)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="auto, no, bf16, got 'fp16'"):
        choose_precision("fp16")


def test_the_launchers_precision_holds_where_the_settings_leave_it_open(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert choose_precision("auto") == "bf16"
    assert choose_precision("no") == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert choose_precision("bf16") == "bf16"
    with pytest.raises(ValueError, match="no or bf16, got 'fp16'; launch it"):
        choose_precision("auto")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert choose_precision("auto") == "no"
