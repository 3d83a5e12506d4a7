"""What an image tower computes in: half precision, and who chooses it."""

from dataclasses import replace

import pytest
import torch

from dclip_kit.models.clip import load_clip
from dclip_kit.models.encode import encode_images
from dclip_kit.models.precision import choose_precision


@pytest.fixture(scope="module")
def pocket():
    return load_clip("pocket")


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
