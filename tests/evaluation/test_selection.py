"""The choice of alpha: the best on val of those that remember."""

from types import SimpleNamespace

import pytest
import torch

from dclip_kit.config import SelectionRule
from dclip_kit.evaluation import selection
from dclip_kit.evaluation.evaluate import RetrievalSet, ZeroShotSet
from dclip_kit.evaluation.selection import select_alpha
from dclip_kit.models.encode import encode_images, encode_texts


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
    before, after = clip, selection.interpolate(clip, clip, 0.5)
    before.model.logit_scale.data.fill_(0)
    after.model.logit_scale.data.fill_(1)  # so that this weight is the alpha of what is measured

    def measured(values):
        return lambda bundle, *_, **__: values[
            alphas.index(round(bundle.model.logit_scale.item(), 3))
        ]

    retrieval = [SimpleNamespace(text_to_image=SimpleNamespace(recall_at={1: r})) for r in recall]
    zero_shot = [SimpleNamespace(top1=share) for share in top1]
    monkeypatch.setattr(selection, "evaluate_retrieval", measured(retrieval))
    monkeypatch.setattr(selection, "evaluate_zero_shot", measured(zero_shot))
    rule = SelectionRule(alphas[1:], least)
    data = RetrievalSet([], torch.zeros(1, 1), torch.zeros(1).long())
    classes = ZeroShotSet([], torch.zeros(1).long(), torch.zeros(1, 1), torch.ones(1).bool())
    found = select_alpha(before, after, data, classes, rule)
    assert found.alpha == chosen
    assert found.student.model.logit_scale.item() == pytest.approx(chosen)
    assert [(c.alpha, c.recall_at_1) for c in found.candidates] == list(
        zip(alphas, recall, strict=True)
    )
    kept = [c.retention for c in found.candidates]
    assert kept == pytest.approx([share / 0.8 for share in top1])


def test_val_is_encoded_as_asked_and_the_chosen_clip_is_whole(clip, captioned, monkeypatch) -> None:
    seen = []

    def watch(name):
        evaluate = getattr(selection, name)

        def watched(bundle, *given, **more):
            seen.append(bundle.precision)
            return evaluate(bundle, *given, **more)

        monkeypatch.setattr(selection, name, watched)

    watch("evaluate_retrieval")
    watch("evaluate_zero_shot")
    texts = encode_texts(clip, captioned.texts)
    data = RetrievalSet(captioned.paths, texts, captioned.image_of_text)
    labels = (encode_images(clip, captioned.paths) @ texts.T).argmax(1)
    classes = ZeroShotSet(captioned.paths, labels, texts, torch.ones(len(texts)).bool())
    found = select_alpha(clip, clip, data, classes, SelectionRule((0.5, 1.0)), "bf16")
    assert seen == ["bf16"] * 6
    assert found.student.precision == clip.precision == "no"


def test_a_clip_that_knows_no_class_has_nothing_to_retain(clip, captioned) -> None:
    texts = encode_texts(clip, captioned.texts)
    data = RetrievalSet(captioned.paths, texts, captioned.image_of_text)
    farthest = (encode_images(clip, captioned.paths) @ texts.T).argmin(1)
    classes = ZeroShotSet(captioned.paths, farthest, texts, torch.ones(len(texts)).bool())
    with pytest.raises(ValueError, match="knows some of val's classes"):
        select_alpha(clip, clip, data, classes, SelectionRule())
