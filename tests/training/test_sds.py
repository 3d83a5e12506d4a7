"""SDS-CLIP's term of the student's loss: against a loop written by hand, and what it reaches."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dclip_kit.losses import contrastive_loss
from dclip_kit.models.clip import load_clip
from dclip_kit.models.denoiser import DenoiserHead
from dclip_kit.models.weights import choose_parameters, clone_clip
from dclip_kit.training import draw_captions
from tests.models.test_denoiser import make_denoiser
from tests.training.fine_tuning import fine_tune
from tests.training.test_training import STUDENT, decayed, texts_of, weights

SDS = replace(STUDENT, distillation_weight=0.0, sds_weight=0.5, train="norms")


def by_hand(clip, pixels, features, settings, texts, denoiser, seed):
    """Fine-tuning of the norms and the map, one picture after the other through the denoiser."""
    student = clone_clip(clip)
    student.model.requires_grad_(False)
    torch.manual_seed(seed)
    tower, head = student.model.visual, DenoiserHead(32, (3, 8, 8))
    norms = [layer for layer in tower.modules() if isinstance(layer, nn.LayerNorm)]
    training = [p.requires_grad_(True) for layer in norms for p in layer.parameters()]
    training += [head.weight, head.bias]
    optimizer = torch.optim.AdamW(decayed(training, settings.weight_decay), fused=True)
    losses, number = [], 0
    for epoch in range(3):
        order = draw_captions(features, seed, epoch)[:, 0]
        for own in (order[:2], order[2:4], order[4:]):
            image = tower(student.normalize(pixels[features.image_of_text[own]]))
            mapped = head(image)
            owner = features.image_of_text[own]
            loss = contrastive_loss(image, features.text[own], 0.05, owner[:, None] == owner)
            generator = torch.Generator().manual_seed(1_000_003 * (seed + 250_007) + number)
            steps = torch.randint(5, 15, (len(own),), generator=generator)
            noise = torch.randn((len(own), 3, 8, 8), generator=generator)
            for place, text in enumerate(own.tolist()):
                kept = float(denoiser.scheduler.alphas_cumprod[steps[place]])
                noisy = math.sqrt(kept) * mapped[place] + math.sqrt(1 - kept) * noise[place]
                found = denoiser.predict_noise(
                    noisy[None], steps[place : place + 1], denoiser.describe([texts[text]])
                )
                missed = (found[0] - noise[place]).square().mean()
                loss = loss + settings.sds_weight * missed / len(own)
            done = number / 9
            share = (done + 1e-3) / (0.1 + 1e-3)
            if done >= 0.1:
                share = (1 + math.cos(math.pi * (done - 0.1) / 0.9)) / 2
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(training, settings.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * share
            optimizer.step()
            losses.append(loss.item())
            number += 1
    return student, losses


@pytest.fixture
def denoiser(clip):
    return make_denoiser(clip)


def test_learning_from_a_denoiser_is_a_plain_loop(clip, pixels, features, denoiser) -> None:
    settings = replace(SDS, sds_from=0.25, sds_until=0.75)
    texts = texts_of(features)
    run = fine_tune(clip, pixels, features, settings, texts=texts, denoiser=denoiser, seed=6)
    expected, losses = by_hand(clip, pixels, features, settings, texts, denoiser, 6)
    assert torch.allclose(weights(run.student.model), weights(expected.model), atol=1e-5)
    means = torch.tensor(losses).reshape(3, 3).mean(1).tolist()
    assert [row["loss"] for row in run.history] == pytest.approx(means, rel=1e-4)
    assert all(row["sds"] > 0 for row in run.history)


def test_gradients_reach_the_map_and_the_norms_and_nothing_else(
    clip, pixels, features, denoiser, monkeypatch
) -> None:
    """With no contrastive term: what moves is moved by the denoiser alone."""
    before, heads = weights(denoiser.unet).clone(), []

    def make_head(*parts) -> DenoiserHead:
        head = DenoiserHead(*parts)
        heads.append((head, weights(head).clone()))
        return head

    monkeypatch.setattr("dclip_kit.training.denoising.DenoiserHead", make_head)
    settings = replace(SDS, contrastive_weight=0.0, weight_decay=0.0)
    run = fine_tune(clip, pixels, features, settings, texts=texts_of(features), denoiser=denoiser)
    [(head, at_first)] = heads
    assert ((weights(head) - at_first).abs() > 1e-6).float().mean() > 0.99
    untouched = clip.model.state_dict()
    moved = {
        name
        for name, value in run.student.model.state_dict().items()
        if not torch.equal(value, untouched[name])
    }
    names = {f"visual.{name}" for name in choose_parameters(clip, "norms")}
    assert moved == names and len(names) == 2 * 2 * 2 + 2 * 2
    assert all(".ln_" in name for name in names)
    assert torch.equal(weights(denoiser.unet), before)


def test_the_norms_of_a_resnet_are_its_batch_norms(make_clip_folder) -> None:
    from dclip_kit.models.weights import freeze

    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
    clip = load_clip(make_clip_folder(vision_cfg=vision))
    chosen = freeze(clip, "norms")
    layers = [x for x in clip.model.visual.modules() if isinstance(x, nn.BatchNorm2d)]
    assert len(chosen) == 2 * len(layers) > 20
    assert all(layer.weight.requires_grad and layer.bias.requires_grad for layer in layers)
    assert not clip.model.visual.conv1.weight.requires_grad


def test_it_goes_on_with_no_other_denoiser(clip, pixels, features, denoiser, tmp_path) -> None:
    given = {"texts": texts_of(features), "checkpoint": tmp_path / "state.safetensors"}
    fine_tune(clip, pixels, features, SDS, **given, denoiser=denoiser)
    with torch.no_grad():
        for weight in denoiser.unet.parameters():
            weight += 0.01
    with pytest.raises(ValueError, match=r"differ in terms\.sds;"):
        fine_tune(clip, pixels, features, SDS, **given, denoiser=denoiser)


def test_a_narrow_share_of_timesteps_is_one_timestep(clip, pixels, features, denoiser) -> None:
    for sides in ((0.5, 0.51), (0.99, 1.0)):
        settings = replace(SDS, epochs=1, sds_from=sides[0], sds_until=sides[1])
        run = fine_tune(
            clip, pixels, features, settings, texts=texts_of(features), denoiser=denoiser
        )
        assert math.isfinite(run.history[0]["sds"])


def test_a_map_learns_what_the_denoiser_knows(clip, pixels, features, denoiser) -> None:
    """Through the denoiser, the map finds pictures in which noise is easier to see."""
    settings = replace(SDS, epochs=40, learning_rate=1e-2, weight_decay=0.0)
    run = fine_tune(clip, pixels, features, settings, texts=texts_of(features), denoiser=denoiser)
    first, last = (sum(row["sds"] for row in part) for part in (run.history[:5], run.history[-5:]))
    assert last < 0.97 * first


def test_without_a_weight_no_denoiser_is_asked(clip, pixels, features, denoiser) -> None:
    settings = replace(SDS, sds_weight=0.0)
    plain = fine_tune(clip, pixels, features, settings)
    other = fine_tune(clip, pixels, features, settings, denoiser=denoiser)
    assert torch.equal(weights(plain.student.model), weights(other.student.model))
    assert "sds" not in other.history[0]


def test_a_weight_without_denoiser_or_texts_is_refused(clip, pixels, features, denoiser) -> None:
    with pytest.raises(ValueError, match="Expected a denoiser for an sds_weight above 0, got None"):
        fine_tune(clip, pixels, features, SDS, texts=texts_of(features))
    with pytest.raises(ValueError, match=r"10 captions of the features, .* and 0 captions; give"):
        fine_tune(clip, pixels, features, SDS, texts=(), denoiser=denoiser)


def test_features_that_are_mapped_are_of_unit_length(clip, denoiser) -> None:
    """The map sees directions, as CLIP compares them."""
    head = DenoiserHead(32, denoiser.shape)
    with torch.no_grad():
        head.weight.copy_(torch.eye(32).repeat(6, 1))
        head.bias.zero_()
    mapped = head(clip.model.visual(torch.randn(2, 3, 32, 32)))
    assert torch.allclose(mapped.flatten(1)[:, :32].norm(dim=1), torch.full((2,), 32**0.5))
    assert F.cosine_similarity(*mapped.flatten(1), dim=0) < 1
