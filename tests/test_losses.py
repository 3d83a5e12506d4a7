import math
import re

import jaxtyping
import numpy as np
import pytest
import torch

from dclip_kit.losses import (
    anchored_kl_loss,
    contrastive_loss,
    cosine_distillation_loss,
    require_directions,
    sds_loss,
)


def features(pairs=6, width=8, seed=0, count=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(pairs, width, generator=generator) for _ in range(count)]


# Slow loops over plain Python numbers


def slow_cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def slow_cosines(a, b):
    return [[slow_cosine(x, y) for y in b.tolist()] for x in a.tolist()]


def transposed(rows):
    return [list(column) for column in zip(*rows, strict=True)]


def slow_contrastive(images, texts, temperature, same_pair):
    scores, left_out = slow_cosines(images, texts), same_pair.tolist()
    total = 0.0
    for rows, skip in ((scores, left_out), (transposed(scores), transposed(left_out))):
        for i, row in enumerate(rows):
            kept = [j for j in range(len(row)) if j == i or not skip[i][j]]
            denominator = sum(math.exp(row[j] / temperature) for j in kept)
            total -= math.log(math.exp(row[i] / temperature) / denominator)
    return total / (2 * len(scores))


@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_contrastive_against_a_slow_loop(temperature, seed):
    images, texts, _ = features(seed=seed)
    nothing = torch.zeros(6, 6, dtype=torch.bool)
    expected = slow_contrastive(images, texts, temperature, nothing)
    loss = contrastive_loss(images, texts, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert contrastive_loss(images, texts, temperature, nothing).item() == loss.item()


@pytest.mark.parametrize("seed", range(3))
def test_masked_contrastive_against_a_slow_loop(seed):
    images, texts, _ = features(seed=seed)
    image_id = torch.tensor([0, 1, 0, 2, 1, 0])
    same_pair = image_id[:, None] == image_id[None]
    same_pair[3, 5] = True  # text 5 fits image 3 as well, but not the other way round
    expected = slow_contrastive(images, texts, 0.2, same_pair)
    assert contrastive_loss(images, texts, 0.2, same_pair).item() == pytest.approx(expected, 1e-5)
    assert expected < slow_contrastive(images, texts, 0.2, torch.zeros_like(same_pair))
    off_diagonal = same_pair & ~torch.eye(6, dtype=torch.bool)
    without_diagonal = contrastive_loss(images, texts, 0.2, off_diagonal)
    assert without_diagonal.item() == pytest.approx(expected, 1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_cosine_distillation_against_a_slow_loop(seed):
    student, teacher, _ = features(seed=seed)
    cosines = [slow_cosine(a, b) for a, b in zip(student.tolist(), teacher.tolist(), strict=True)]
    expected = sum(1 - c for c in cosines) / len(cosines)
    assert cosine_distillation_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_sds_against_a_slow_loop():
    latents, noise = torch.randn(2, 3, 2, 4, 4)
    kept = torch.tensor([0.9, 0.5, 0.1])

    def predict_noise(noisy):
        return 0.3 * noisy + 0.1

    found = sds_loss(latents, noise, kept, predict_noise)
    for place, share in enumerate(kept.tolist()):
        missed = []
        rows = latents[place].flatten().tolist(), noise[place].flatten().tolist()
        for x, e in zip(*rows, strict=True):
            noisy = math.sqrt(share) * x + math.sqrt(1 - share) * e
            missed.append((0.3 * noisy + 0.1 - e) ** 2)
        assert found[place].item() == pytest.approx(sum(missed) / len(missed), rel=1e-5)
    assert sds_loss(latents, noise, kept, lambda noisy: noise).tolist() == [0, 0, 0]


def test_sds_wants_a_share_of_variance_for_each_image():
    latents = torch.randn(3, 2, 4, 4)
    with pytest.raises(ValueError, match=r"a share of variance for each of 3 images, got \(2,\)"):
        sds_loss(latents, latents, torch.tensor([0.5, 0.5]), lambda noisy: noisy)


def slow_softmax(row, temperature):
    exponentials = [math.exp(x / temperature) for x in row]
    return [x / sum(exponentials) for x in exponentials]


@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_anchored_kl_against_a_slow_loop(temperature, seed):
    student, teacher, anchors = features(seed=seed)
    anchors = torch.cat([anchors, anchors.flip(1)])  # more of them than images
    ranked = slow_cosines(student, anchors), slow_cosines(teacher, anchors)
    expected = 0.0
    for of_student, of_teacher in (ranked, tuple(map(transposed, ranked))):
        for own, right in zip(of_student, of_teacher, strict=True):
            both = slow_softmax(own, temperature), slow_softmax(right, temperature)
            divergence = sum(t * math.log(t / s) for s, t in zip(*both, strict=True))
            expected += divergence / (2 * len(of_student))
    loss = anchored_kl_loss(student, teacher, anchors, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_anchored_kl_pinned():
    """Two images, two anchors: one direction each by hand, at a temperature of 1."""
    anchors = torch.eye(2)
    teacher, student = torch.eye(2), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    right, half = 1 / (1 + math.e**-1), 0.5**0.5
    of_images = right * math.log(right / 0.5) + (1 - right) * math.log((1 - right) / 0.5)
    first = 1 / (1 + math.exp(-half))  # of the first anchor's images: cosines half and 0
    second = 1 / (1 + math.exp(half - 1))  # of the second's: half and 1
    of_anchors = sum(
        right * math.log(right / p) + (1 - right) * math.log((1 - right) / (1 - p))
        for p in (first, second)
    )
    loss = anchored_kl_loss(student, teacher, anchors, 1.0)
    assert loss.item() == pytest.approx((of_images / 2 + of_anchors / 2) / 2, rel=1e-5)
    assert anchored_kl_loss(teacher, teacher, anchors).item() == pytest.approx(0, abs=1e-6)


# Pinned numbers


def test_contrastive_pinned():
    images, texts = torch.eye(2), torch.eye(2)
    # Own text at cosine 1, the other at 0: log(1 + exp(-1 / temperature)).
    loss = contrastive_loss(images, texts, temperature=1.0)
    assert loss.item() == pytest.approx(0.3132617)
    assert contrastive_loss(images.double(), texts.double()).item() == pytest.approx(2.0611537e-9)
    # Swapped: log(1 + exp(20)).
    assert contrastive_loss(images, texts.flip(0)).item() == pytest.approx(20.0)
    # Everything alike: log of the number of pairs.
    assert contrastive_loss(torch.ones(5, 3), torch.ones(5, 3)).item() == pytest.approx(math.log(5))
    assert contrastive_loss(torch.ones(1, 3), -torch.ones(1, 3)).item() == 0


def test_contrastive_weighs_both_directions():
    images = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    texts = torch.eye(2)
    # Images over texts: rows (1, 0) and (0.6, 0.8); texts over images: (1, 0.6) and (0, 0.8).
    rows = math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(-0.2))
    columns = math.log(1 + math.exp(-0.4)) + math.log(1 + math.exp(-0.8))
    loss = contrastive_loss(images, texts, temperature=1.0)
    assert loss.item() == pytest.approx((rows + columns) / 4)
    assert contrastive_loss(texts, images, temperature=1.0).item() == pytest.approx(loss.item())


def test_repeated_pair_stops_pushing_itself_away_once_masked():
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # one image twice
    texts = images
    same_pair = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    assert contrastive_loss(images, texts).item() == pytest.approx(2 / 3 * math.log(2), abs=1e-6)
    assert contrastive_loss(images, texts, 0.05, same_pair).item() == pytest.approx(0, abs=1e-6)
    all_same = torch.ones(3, 3).bool()
    assert contrastive_loss(images, texts, 0.05, all_same).item() == 0


@pytest.mark.parametrize(
    ("student", "expected"), [([2.0, 0.0], 0.0), ([0.0, 3.0], 1.0), ([-1.0, 0.0], 2.0)]
)
def test_cosine_distillation_pinned(student, expected):
    loss = cosine_distillation_loss(torch.tensor([student]), torch.tensor([[1.0, 0.0]]))
    assert loss.item() == pytest.approx(expected)


# Scale, precision, order


LOSSES = {
    "contrastive": lambda s, x, t: contrastive_loss(s, x),
    "cosine": lambda s, x, t: cosine_distillation_loss(s, t),
    "anchored": lambda s, x, t: anchored_kl_loss(s, t, x),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_only_directions_and_pairs_matter(loss):
    student, texts, teacher = features()
    expected = loss(student, texts, teacher).item()
    assert loss(student * 9, texts / 5, teacher * 0.1).item() == pytest.approx(expected, rel=1e-4)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = loss(student[order], texts[order], teacher[order]).item()
    assert shuffled == pytest.approx(expected, rel=1e-4)
    unpaired = loss(student[order], texts, teacher).item()
    assert unpaired != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_autocast_does_not_coarsen(loss):
    student, texts, teacher = features(width=64)
    expected = loss(student, texts, teacher).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(student, texts, teacher).item() == pytest.approx(expected, rel=1e-5)
        assert (student @ texts.T).dtype == torch.bfloat16  # autocast was on


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_half_precision_features_are_widened(loss):
    half = [x.bfloat16() for x in features()]
    result = loss(*half)
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(loss(*[x.float() for x in half]).item(), rel=1e-6)
    assert loss(half[0], *[x.float() for x in half[1:]]).item() == pytest.approx(result.item())


# Gradients


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradients_reach_the_student_and_never_the_teacher_or_frozen_texts(loss):
    student, texts, teacher = features()
    student.requires_grad_()
    teacher.requires_grad_()
    loss(student, texts, teacher).backward()
    assert (student.grad.abs().sum(dim=1) > 0).all()
    assert student.grad.isfinite().all()
    assert teacher.grad is None
    assert texts.grad is None


def test_texts_get_a_gradient_only_where_they_ask_and_from_the_students_side():
    student, texts, teacher = features()
    texts.requires_grad_()
    (contrastive_loss(student, texts) + cosine_distillation_loss(student, teacher)).backward()
    assert (texts.grad.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradients_against_differences(loss):
    student, texts, teacher = (x.double() for x in features(pairs=3, width=4))
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, texts, teacher), (student,))


def test_masked_pairs_get_no_gradient():
    images, texts, _ = features(pairs=3)
    texts.requires_grad_()
    everything = torch.ones(3, 3).bool()
    everything[0, 1] = False
    contrastive_loss(images, texts, 0.5, everything).backward()
    assert texts.grad.isfinite().all()
    assert (texts.grad.abs().sum(dim=1) > 0).tolist() == [True, True, False]


# Bad input


def spoiled(x, row, value):
    x = x.clone()
    x[row, 1] = value
    return x


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_feature_that_is_not_finite_gives_nan(loss, value):
    student, texts, teacher = features()
    assert loss(spoiled(student, 4, value), texts, teacher).isnan()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_or_all_zeros_are_named(value):
    student, texts, _ = features()
    require_directions(student_features=student, text_features=texts)
    with pytest.raises(ValueError, match=r"row of text_features to be finite .* 1 of 6 .* row 4"):
        require_directions(student_features=student, text_features=spoiled(texts, 4, value))
    with pytest.raises(ValueError, match="not all zeros, got 6 of 6"):
        require_directions(text_features=texts * 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, x, t: contrastive_loss(s, x[:5]), r"text_features .*\(6, 8\) and \(5, 8\)"),
        (lambda s, x, t: contrastive_loss(s, x[:, :7]), r"text_features .*\(6, 8\) and \(6, 7\)"),
        (lambda s, x, t: contrastive_loss(s[:0], x[:0]), "Expected image_features .* not empty"),
        (lambda s, x, t: contrastive_loss(s, x, 0.0), "a temperature above 0, got 0.0"),
        (lambda s, x, t: contrastive_loss(s, x, -0.05), "above 0, got -0.05"),
        (lambda s, x, t: contrastive_loss(s, x, math.nan), "above 0, got nan"),
        (
            lambda s, x, t: contrastive_loss(s, x, 0.05, torch.zeros(6, 5).bool()),
            r"same_pair of \(6, 6\), got \(6, 5\)",
        ),
        (lambda s, x, t: cosine_distillation_loss(s, t[:, :4]), r"teacher_features .*\(6, 4\)"),
        (lambda s, x, t: cosine_distillation_loss(s, t[:2]), r"teacher_features .*\(2, 8\)"),
        (lambda s, x, t: anchored_kl_loss(s, t[:2], x), r"teacher_features .*\(2, 8\)"),
        (lambda s, x, t: anchored_kl_loss(s, t, x, 0.0), "a temperature above 0, got 0.0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*features())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, x, t: anchored_kl_loss(s, t, x[:, :5]), r"\[anchor 8\].*got \(6, 5\)"),
        (lambda s, x, t: anchored_kl_loss(s, t, x[:0]), r"\[anchor 8\].*got \(0, 8\)"),
        (lambda s, x, t: anchored_kl_loss(s, t, x[0]), r"\[anchor 8\].*got \(8,\)"),
        (
            lambda s, x, t: contrastive_loss(s, x, 0.05, np.eye(6)),
            r"boolean same_pair of \(6, 6\), got \(6, 6\) in torch\.float64",
        ),
        (
            lambda s, x, t: sds_loss(s[:, :, None, None], x[:1, :, None, None], s[:, 0], abs),
            r"noise of \(6, 8, 1, 1\).*got .*\(1, 8, 1, 1\)",
        ),
    ],
)
def test_what_has_no_loss_is_said_in_one_sentence(call, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as people's programs run
    with pytest.raises(ValueError, match=message) as error:
        call(*features())
    assert re.fullmatch(r"Expected .*, got .*; .*\.", str(error.value))


# Arrays of numpy


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_arrays_of_numpy_have_the_loss_of_tensors(loss):
    student, texts, teacher = features()
    expected = loss(student, texts, teacher)
    assert torch.equal(loss(*[x.numpy() for x in (student, texts, teacher)]), expected)
    student.requires_grad_()
    loss(student, texts.numpy(), teacher.numpy()).backward()
    found, student.grad = student.grad, None
    loss(student, texts, teacher).backward()
    assert torch.equal(found, student.grad)


def test_masks_and_noise_may_be_arrays_of_numpy():
    student, texts, _ = features()
    same_pair = torch.tensor([0, 1, 0, 2, 1, 0])[:, None] == torch.tensor([0, 1, 0, 2, 1, 0])
    expected = contrastive_loss(student, texts, 0.2, same_pair)
    assert torch.equal(contrastive_loss(student, texts, 0.2, same_pair.numpy()), expected)
    latents, noise = torch.randn(2, 3, 2, 4, 4)
    kept = torch.tensor([0.9, 0.5, 0.1])
    expected = sds_loss(latents, noise, kept, torch.sin)
    assert torch.equal(sds_loss(latents.numpy(), noise.numpy(), kept.numpy(), torch.sin), expected)


def test_rows_of_an_array_that_are_not_finite_are_named():
    require_directions(teacher_features=np.ones((6, 8)))
    with pytest.raises(ValueError, match=r"teacher_features .* 1 of 6 .* row 4"):
        require_directions(teacher_features=spoiled(torch.ones(6, 8), 4, math.nan).numpy())
