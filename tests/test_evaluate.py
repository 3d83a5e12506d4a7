"""Measuring on features made by hand: zero-shot shares, the shortcut probe, the choice of alpha."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from dclip_kit import evaluate
from dclip_kit.config import SelectionRule
from dclip_kit.datasets import LabelledImages
from dclip_kit.embedding import encode_images, encode_texts, read_pixels
from dclip_kit.evaluate import (
    RetrievalSet,
    ZeroShotSet,
    encode_classes,
    evaluate_retrieval,
    evaluate_zero_shot,
    nearest_classes,
    prepare_retrieval,
    prepare_zero_shot,
    select_alpha,
)
from dclip_kit.metrics import retrieval_metrics

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


# The choice of alpha


@pytest.mark.parametrize(
    ("recall", "top1", "least", "chosen"),
    [
        ((0.1, 0.2, 0.3, 0.4), (0.8, 0.8, 0.8, 0.8), 0.95, 1.0),  # the best of those that remember
        ((0.1, 0.2, 0.3, 0.4), (0.8, 0.8, 0.77, 0.5), 0.95, 0.6),
        ((0.1, 0.5, 0.3, 0.4), (0.8, 0.7, 0.8, 0.8), 0.95, 1.0),  # not the first that remembers
        ((0.1, 0.2, 0.3, 0.4), (0.8, 0.7, 0.7, 0.7), 0.95, 0.0),  # none does: untouched
        ((0.5, 0.2, 0.3, 0.4), (0.8, 0.8, 0.8, 0.8), 0.95, 0.0),  # all are worse than untouched
        ((0.1, 0.3, 0.3, 0.3), (0.8, 0.8, 0.8, 0.8), 0.95, 0.3),  # the nearest of equals
        ((0.1, 0.2, 0.3, 0.4), (0.8, 0.8, 0.9, 0.9), 1.05, 1.0),
        ((0.1, 0.2, 0.3, 0.4), (0.8, 0.8, 0.8, 0.8), 1.05, 0.0),
    ],
)
def test_alpha_is_chosen_by_the_rule(recall, top1, least, chosen, clip, monkeypatch) -> None:
    alphas = (0.0, 0.3, 0.6, 1.0)
    before, after = clip, evaluate.interpolate(clip, clip, 0.5)
    before.model.logit_scale.data.fill_(0)
    after.model.logit_scale.data.fill_(1)  # so that this weight is the alpha of what is measured

    def measured(values):
        return lambda bundle, *_, **__: values[
            alphas.index(round(bundle.model.logit_scale.item(), 3))
        ]

    retrieval = [SimpleNamespace(text_to_image=SimpleNamespace(recall_at={1: r})) for r in recall]
    zero_shot = [SimpleNamespace(top1=share) for share in top1]
    monkeypatch.setattr(evaluate, "evaluate_retrieval", measured(retrieval))
    monkeypatch.setattr(evaluate, "evaluate_zero_shot", measured(zero_shot))
    rule = SelectionRule(alphas[1:], least)
    data = RetrievalSet([], torch.zeros(1, 1), torch.zeros(1).long())
    classes = ZeroShotSet([], torch.zeros(1).long(), torch.zeros(1, 1), torch.ones(1).bool())
    selection = select_alpha(before, after, data, classes, rule)
    assert selection.alpha == chosen
    assert selection.student.model.logit_scale.item() == pytest.approx(chosen)
    assert [(c.alpha, c.recall_at_1) for c in selection.candidates] == list(
        zip(alphas, recall, strict=True)
    )
    kept = [c.retention for c in selection.candidates]
    assert kept == pytest.approx([share / 0.8 for share in top1])


def test_a_clip_that_knows_no_class_has_nothing_to_retain(clip, captioned) -> None:
    texts = encode_texts(clip, captioned.texts)
    data = RetrievalSet(captioned.paths, texts, captioned.image_of_text)
    farthest = (encode_images(clip, captioned.paths) @ texts.T).argmin(1)
    classes = ZeroShotSet(captioned.paths, farthest, texts, torch.ones(len(texts)).bool())
    with pytest.raises(ValueError, match="knows some of val's classes"):
        select_alpha(clip, clip, data, classes, SelectionRule())
