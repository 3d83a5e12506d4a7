"""Measuring on features made by hand: retrieval and zero-shot shares."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dclip_kit.data import LabelledImages
from dclip_kit.evaluation import evaluate
from dclip_kit.evaluation.evaluate import (
    TEMPLATE_SETS,
    RetrievalSet,
    ZeroShotSet,
    encode_classes,
    evaluate_retrieval,
    evaluate_zero_shot,
    nearest_classes,
    prepare_retrieval,
    prepare_zero_shot,
)
from dclip_kit.metrics import retrieval_metrics
from dclip_kit.models.encode import encode_images, encode_texts, read_pixels
from dclip_kit.models.weights import clone_clip

# Zero-shot and retrieval


@pytest.mark.parametrize(
    ("labels", "shown", "top1", "domain", "other"),
    [
        ([0, 1, 2, 2], [True, True, False], 0.75, 1.0, 0.5),
        ([0, 0, 2, 1], [True, False, False], 0.5, 0.5, 0.5),
        ([0, 1, 2, 0], [True, True, True], 1.0, 1.0, None),
        ([1, 2, 0, 1], [False, False, False], 0.0, None, 0.0),
    ],
)
def test_zero_shot_counts_all_and_each_domain(
    labels, shown, top1, domain, other, clip, pixels, monkeypatch
) -> None:
    looks_like = torch.tensor([0, 1, 2, 0])  # the class that each picture is nearest to
    classes = torch.eye(3, 8) + 0.1
    monkeypatch.setattr(evaluate, "encode_images", lambda *_, **__: torch.eye(3, 8)[looks_like])
    data = ZeroShotSet(pixels[:4], torch.tensor(labels), classes, torch.tensor(shown))
    result = evaluate_zero_shot(clip, data)
    assert result.correct.tolist() == [x == y for x, y in zip(labels, [0, 1, 2, 0], strict=True)]
    assert (result.top1, result.top1_domain, result.top1_other) == (top1, domain, other)


@pytest.mark.parametrize(
    ("places", "classes", "top1", "top5"),
    [
        ([1, 5, 6, 2], 7, 0.25, 0.75),
        ([1, 5, 6, 2], 6, 0.25, 0.75),
        ([1, 5, 2, 2], 5, 0.25, None),  # with five classes every picture would be right
    ],
)
def test_top5_counts_the_five_nearest(
    places, classes, top1, top5, clip, pixels, monkeypatch
) -> None:
    # Nearest come the classes from 1 on; the own class, 0, comes where its place says.
    nearness = torch.linspace(0.9, 0.3, classes)
    rows = [[*range(1, place), 0, *range(place, classes)] for place in places]
    images = torch.stack([nearness[torch.tensor(row).argsort()] for row in rows])
    monkeypatch.setattr(evaluate, "encode_images", lambda *_, **__: images)
    data = ZeroShotSet(
        pixels[:4], torch.zeros(4).long(), torch.eye(classes), torch.ones(classes).bool()
    )
    result = evaluate_zero_shot(clip, data)
    assert (result.top1, result.top5) == (top1, top5)


def test_every_second_picture_keeps_its_own_label(clip, pixels) -> None:
    data = ZeroShotSet(pixels[:5], torch.arange(5), torch.eye(5, 32), torch.ones(5).bool())
    half = data.every(2)
    assert half.labels.tolist() == [0, 2, 4] and torch.equal(half.pictures, pixels[[0, 2, 4]])
    expected = evaluate_zero_shot(clip, data).correct[::2]
    assert torch.equal(evaluate_zero_shot(clip, half).correct, expected)


def test_a_class_is_the_mean_of_its_prompts(clip) -> None:
    got = encode_classes(clip, ["ball", "dog"], ("a {}", "{}!", "the {} at sea"))
    for row, name in zip(got, ["ball", "dog"], strict=True):
        each = encode_texts(clip, [f"a {name}", f"{name}!", f"the {name} at sea"])
        assert torch.allclose(row, F.normalize(each.mean(0), dim=0), atol=1e-6)
    assert not torch.allclose(got[0], got[1], atol=1e-2)


def test_templates_may_be_functions_as_open_clips_are(clip) -> None:
    texts, functions = ("a {}", "{}!"), (lambda name: f"a {name}", lambda name: f"{name}!")
    names = ["ball", "dog", "boat"]
    expected = encode_classes(clip, names, texts)
    assert torch.equal(encode_classes(clip, names, functions), expected)


def test_many_prompts_are_the_same_as_few(clip, monkeypatch) -> None:
    expected = encode_classes(clip, ["ball", "dog", "boat"])
    monkeypatch.setattr(evaluate, "_PROMPTS_AT_ONCE", 4)
    assert torch.allclose(encode_classes(clip, ["ball", "dog", "boat"]), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "count", "first"),
    [
        ("pocket", 5, "a photo of tench"),
        ("paper", 1, "a photo of a tench."),
        ("imagenet", 80, "a bad photo of a tench."),
    ],
)
def test_each_set_of_templates_says_what_it_is_called_for(
    kind, count, first, clip, captioned, monkeypatch
) -> None:
    asked = []
    labelled = LabelledImages(captioned.paths[:1], (0,), ("tench",), (True,), "drawn")
    monkeypatch.setattr(
        evaluate, "encode_texts", lambda _, texts: asked.extend(texts) or torch.ones(len(texts), 3)
    )
    prepared = prepare_zero_shot(clip, labelled, False, TEMPLATE_SETS[kind])
    assert (len(asked), asked[0]) == (count, first) and prepared.class_features.shape == (1, 3)


def test_data_is_read_and_encoded_once(clip, captioned) -> None:
    retrieval = prepare_retrieval(clip, captioned)
    assert torch.equal(retrieval.pictures, read_pixels(clip, captioned.paths))
    assert torch.equal(retrieval.text_features, encode_texts(clip, captioned.texts))
    assert torch.equal(retrieval.image_of_text, captioned.image_of_text)
    labelled = LabelledImages(
        captioned.paths, (1, 0, 1, 0, 0, 1), ("ball", "dog"), (True, False), "drawn"
    )
    zero_shot = prepare_zero_shot(clip, labelled)
    assert torch.equal(zero_shot.pictures, retrieval.pictures)
    assert zero_shot.labels.tolist() == [1, 0, 1, 0, 0, 1]
    assert torch.equal(zero_shot.class_features, encode_classes(clip, ["ball", "dog"]))
    assert zero_shot.in_domain.tolist() == [True, False]


@pytest.mark.parametrize(("top_k", "expected"), [(1, 1), (2, 2), (9, 3)])
def test_the_nearest_classes_come_by_name(top_k, expected) -> None:
    images = F.normalize(torch.tensor([[3.0, 1, 2], [0, 1, -1]]), dim=1)
    got = nearest_classes(images, torch.eye(3), ["a dog", "a ball", "a boat"], top_k)
    names = [["a dog", "a boat", "a ball"], ["a ball", "a dog", "a boat"]]
    assert got == [row[:expected] for row in names]


def test_a_class_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="each of 3 classes, got 2"):
        nearest_classes(torch.eye(3), torch.eye(3), ["a dog", "a ball"])


def test_evaluation_embeds_with_the_clip_it_is_given(clip, captioned) -> None:
    texts = encode_texts(clip, captioned.texts)
    data = RetrievalSet(captioned.paths, texts, captioned.image_of_text)
    with torch.no_grad():
        clip.model.visual.proj += 0.3 * torch.randn_like(clip.model.visual.proj)
    features = encode_images(clip, captioned.paths)
    found = evaluate_retrieval(clip, data).as_dict()
    assert found == retrieval_metrics(features, texts, captioned.image_of_text).as_dict()
    nearest = (features @ texts.T).argmax(1)  # each caption for a class
    zero_shot = ZeroShotSet(
        read_pixels(clip, captioned.paths), nearest, texts, torch.ones(len(texts)).bool()
    )
    assert evaluate_zero_shot(clip, zero_shot).top1 == 1
    other = replace(zero_shot, labels=(nearest + 1) % len(texts))
    assert evaluate_zero_shot(clip, other).top1 == 0


@torch.no_grad()
def test_a_trained_text_tower_encodes_its_own_texts(clip, captioned) -> None:
    names = ("a dog", "a ball", "a boat")
    labelled = LabelledImages(captioned.paths[:3], (0, 1, 2), names, (True,) * 3, "three")
    retrieval, zero_shot = prepare_retrieval(clip, captioned), prepare_zero_shot(clip, labelled)
    other = clone_clip(clip)
    other.model.visual.proj.mul_(2)
    assert retrieval.features_for(other) is retrieval.text_features  # its texts are the same
    assert zero_shot.features_for(other) is zero_shot.class_features
    other.model.text_projection.add_(torch.randn_like(other.model.text_projection))
    own = encode_texts(other, captioned.texts)
    assert torch.equal(retrieval.features_for(other), own)
    assert not torch.allclose(retrieval.text_features, own, atol=1e-3)
    assert torch.equal(zero_shot.every(2).features_for(other), encode_classes(other, names))
    images = encode_images(other, captioned.paths)
    expected = retrieval_metrics(images, own, captioned.image_of_text).as_dict()
    assert evaluate_retrieval(other, retrieval).as_dict() == expected
