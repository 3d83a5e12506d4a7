"""Measuring on features made by hand, and in galleries against slow loops."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dclip_kit.config import CONTROL
from dclip_kit.data import CaptionedImages, LabelledImages
from dclip_kit.data.pocket import world as pocket
from dclip_kit.data.pocket.compositions import KINDS, load_compositions
from dclip_kit.evaluation import evaluate
from dclip_kit.evaluation.arms import Arm
from dclip_kit.evaluation.compare import measure_fresh
from dclip_kit.evaluation.evaluate import (
    TEMPLATE_SETS,
    WAYS,
    References,
    RetrievalSet,
    ZeroShotSet,
    encode_classes,
    encode_galleries,
    evaluate_compositions,
    evaluate_retrieval,
    evaluate_zero_shot,
    measure_galleries,
    measure_hubness,
    nearest_classes,
    prepare_galleries,
    prepare_references,
    prepare_retrieval,
    prepare_zero_shot,
    rescored_metrics,
    score_compositions,
    try_rescoring,
)
from dclip_kit.metrics import retrieval_metrics, skewness
from dclip_kit.models.encode import encode_images, encode_texts, read_pixels
from dclip_kit.models.weights import clone_clip
from dclip_kit.search.rescoring import METHODS, NNN, Rescoring, list_settings, rescore
from tests.data.test_leaks import scene

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


def test_a_name_alone_is_no_list_of_classes(clip) -> None:
    with pytest.raises(TypeError, match=r"sequence of texts, got one; give \['cat'\]"):
        encode_classes(clip, "cat")


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


def test_classes_of_one_name_are_one(clip, captioned) -> None:
    """As ImageNet has two of sunglasses: of two equal classes none could be the first."""
    names, owned = ("ball", "dog", "ball", "boat"), (True, False, False, True)
    labelled = LabelledImages(captioned.paths[:4], (0, 1, 2, 3), names, owned, "drawn")
    found = prepare_zero_shot(clip, labelled)
    assert found.labels.tolist() == [0, 1, 0, 2] and found.class_names == ("ball", "dog", "boat")
    assert found.in_domain.tolist() == [True, False, True] and len(found.class_features) == 3


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


# Compositions


@pytest.fixture
def drawn(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path))


def test_compositions_are_told_apart_by_cosines(clip, drawn) -> None:
    found = evaluate_compositions(score_compositions(clip, 12))
    assert tuple(found) == KINDS
    for kind, scores in found.items():
        items, right = load_compositions(kind, 12), {"text": 0, "image": 0, "group": 0}
        image, text = encode_images(clip, items.paths), encode_texts(clip, items.texts)
        for i in range(0, 24, 2):
            near = [[float(image[i + a] @ text[i + b]) for b in (0, 1)] for a in (0, 1)]
            by_text = near[0][0] > near[0][1] and near[1][1] > near[1][0]
            by_image = near[0][0] > near[1][0] and near[1][1] > near[0][1]
            right["text"] += by_text
            right["image"] += by_image
            right["group"] += by_text and by_image
        for name, count in right.items():
            assert scores[name].estimate == pytest.approx(count / 12)
            assert 0 <= scores[name].low <= scores[name].estimate <= scores[name].high <= 1


@pytest.mark.parametrize("blind", ["encode_images", "encode_texts"])
def test_captions_or_pictures_alone_decide_nothing(blind, clip, drawn, monkeypatch) -> None:
    """The same caption is then preferred for both pictures: never both right, or a tie."""
    same = F.normalize(torch.ones(16, 32), dim=1)
    monkeypatch.setattr(evaluate, blind, lambda *_, **__: same)
    for scores in evaluate_compositions(score_compositions(clip, 8)).values():
        assert [each.estimate for each in scores.values()] == [0, 0, 0]


# Galleries


@pytest.fixture
def many(tmp_path) -> CaptionedImages:
    """Twelve pictures with one, two or no caption; no two of either are alike."""
    paths = tuple(tmp_path / f"{seed}.png" for seed in range(12))
    for seed, path in enumerate(paths):
        scene(seed).save(path)
    captions = tuple(
        tuple(f"{'a red ball' * place} no {seed}" for place in range((seed + 1) % 3))
        for seed in range(12)
    )
    return CaptionedImages(paths, captions, "test", "scenes")


@pytest.mark.parametrize(("size", "lengths"), [(12, [12]), (5, [5, 5, 2]), (99, [12]), (6, [6, 6])])
def test_galleries_are_of_one_size_but_for_the_last(size, lengths, clip, many) -> None:
    galleries = prepare_galleries(clip, many, size)
    assert [len(each.pictures) for each in galleries] == lengths
    assert [text for each in galleries for text in each.texts] == many.texts
    assert sum(len(each.text_features) for each in galleries) == len(many.texts)


def rank_slowly(scores: torch.Tensor, right: list[int]) -> int:
    """The place of the best of the right answers, all scores sorted; nothing ties here."""
    order = sorted(range(len(scores)), key=lambda i: -float(scores[i]))
    return 1 + min(order.index(each) for each in right)


def find_slowly(clip, dataset, size, references=None, how=NNN) -> dict[str, list[tuple[int, int]]]:
    """Each query's picture and rank, by direction; rescored where there are references."""
    found = {way: [] for way in WAYS}
    for first in range(0, len(dataset), size):
        part = dataset.select(range(first, min(first + size, len(dataset))))
        image, text = encode_images(clip, part.paths), encode_texts(clip, part.texts)
        forth, back = text @ image.T, image @ text.T
        if references:
            forth = rescore(forth, references.captions @ image.T, **vars(how))
            back = rescore(back, references.pictures @ text.T, **vars(how))
        owner = part.image_of_text.tolist()
        for row, own in zip(forth, owner, strict=True):
            found["text_to_image"].append((first + own, rank_slowly(row, [own])))
        for own, row in enumerate(back):
            if right := [i for i, each in enumerate(owner) if each == own]:
                found["image_to_text"].append((first + own, rank_slowly(row, right)))
    return found


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("size", [12, 5])
def test_each_gallery_is_searched_alone(size, method, clip, tuned, many) -> None:
    """And rescored ranks are those of the scores that `rescore` gives."""
    references, how = None, NNN
    if method:
        vectors = (F.normalize(torch.randn(count, 32), dim=1) for count in (200, 150))
        references, how = References(*vectors), Rescoring(method, k=20, temperature=0.3)
    found = measure_galleries(
        encode_galleries(tuned, prepare_galleries(clip, many, size)), references, how
    )
    expected = find_slowly(tuned, many, size, references, how)
    for way in WAYS:
        image, rank = torch.tensor(expected[way]).T
        assert found[way].image.tolist() == image.tolist()
        assert found[way].hits.tolist() == (rank <= 1).tolist()
        for k in (1, 5, 10):
            share = (rank <= k).double().mean().item()
            assert found[way].figures[f"recall_at_{k}"] == pytest.approx(share), (way, k)


def test_reference_queries_come_from_the_training_data(clip, many) -> None:
    train = replace(many, split="train")
    found = prepare_references(clip, train)
    torch.testing.assert_close(found.captions, encode_texts(clip, many.texts))
    torch.testing.assert_close(found.pictures, encode_images(clip, many.paths))
    for split in ("val", "test", "further_test", "uncaptioned"):
        with pytest.raises(ValueError, match=f"of the training data, got those of '{split}'"):
            prepare_references(clip, replace(many, split=split))


@pytest.mark.parametrize("method", METHODS)
def test_settings_are_tried_on_val_in_each_direction(method, tuned, many) -> None:
    image, text = encode_images(tuned, many.paths), encode_texts(tuned, many.texts)
    references = References(*(F.normalize(torch.randn(n, 32), dim=1) for n in (200, 150)))
    found = try_rescoring(method, image, text, many.image_of_text, references)
    assert tuple(found) == tuple(WAYS)
    for way, recalls in found.items():
        assert {*recalls} == {*list_settings(method)}
        assert [*recalls.values()] == sorted(recalls.values(), reverse=True)
        for how, recall in recalls.items():
            slow = find_slowly(tuned, many, 12, references, how)[way]
            assert recall == pytest.approx(sum(rank <= 1 for _, rank in slow) / len(slow))


def test_methods_that_rank_alike_find_the_same() -> None:
    """Though beside reference queries like none of these, every candidate is nearly certain."""
    image = F.normalize(torch.randn(80, 32), dim=1)
    text = F.normalize(image + 0.15 * torch.randn(80, 32), dim=1)
    references = References(*(F.normalize(torch.randn(3, 32) - 9, dim=1) for _ in range(2)))
    found = {
        method: rescored_metrics(
            image, text, torch.arange(80), references, Rescoring(method, temperature=0.01)
        )
        for method in ("inverted_softmax", "bsap")
    }
    assert found["bsap"].as_dict() == found["inverted_softmax"].as_dict()
    assert found["bsap"].text_to_image.hits(1).double().mean() > 0.5


def test_each_direction_may_be_rescored_by_its_own_settings(tuned, many) -> None:
    features = encode_images(tuned, many.paths), encode_texts(tuned, many.texts)
    references = References(*(F.normalize(torch.randn(n, 32), dim=1) for n in (200, 150)))
    one, other = Rescoring(k=20, alpha=1.0), Rescoring("dual_softmax")
    given = (*features, many.image_of_text, references)
    both = rescored_metrics(*given, one, other)
    assert both.text_to_image.as_dict() == rescored_metrics(*given, one).text_to_image.as_dict()
    assert both.image_to_text.as_dict() == rescored_metrics(*given, other).image_to_text.as_dict()


def test_rescoring_takes_a_hub_from_its_throne() -> None:
    """One picture, and one caption, lies near everything that is asked, references too."""
    middle = 2 * torch.eye(1, 32)
    image, text, pictures, captions = (torch.randn(n, 32) / 6 for n in (60, 60, 200, 200))
    image[3], text[5] = 0.1 * image[3], 0.1 * text[5]
    vectors = (F.normalize(each + middle, dim=1) for each in (image, text, pictures, captions))
    image, text, pictures, captions = vectors
    given = image, text, References(captions, pictures)
    for method in METHODS:
        found = measure_hubness(*given, Rescoring(method))
        for way, queries, candidates, asked in (
            ("text_to_image", text, image, captions),
            ("image_to_text", image, text, pictures),
        ):
            plain = queries @ candidates.T
            for name, scores in (
                ("before", plain),
                ("after", rescore(plain, asked @ candidates.T, method)),
            ):
                counts = scores.topk(10).indices.flatten().bincount(minlength=60)
                expected = skewness(counts.double())
                assert found[way][name] == pytest.approx(expected, abs=0.02), (way, name)
            if method in ("nnn", "inverted_softmax", "bsap"):  # which rank by score − bias
                assert found[way]["after"] < found[way]["before"]
    both = measure_hubness(*given, NNN, Rescoring(alpha=0.0))
    assert both["text_to_image"] == measure_hubness(*given, NNN)["text_to_image"]
    assert both["image_to_text"]["after"] == both["image_to_text"]["before"]
    few = measure_hubness(image[:4], text, References(captions, pictures), NNN)
    assert few["text_to_image"] == {"before": 0, "after": 0}  # all are among the first ten


def test_rescoring_changes_who_is_found(clip, many) -> None:
    galleries = prepare_galleries(clip, many, 12)
    image = encode_images(clip, many.paths)
    plain = measure_galleries(encode_galleries(clip, galleries))
    references = References(image.repeat(2, 1), galleries[0].text_features)
    fair = measure_galleries(encode_galleries(clip, galleries), references)
    assert any(not torch.equal(plain[way].hits, fair[way].hits) for way in WAYS)


def test_a_caption_finds_its_picture_where_it_is_its_picture(clip, many) -> None:
    """With one caption a picture the mean average precision is that of the one right answer."""
    one = many.select([i for i, own in enumerate(many.captions) if len(own) == 1])
    found = measure_galleries(encode_galleries(clip, prepare_galleries(clip, one, 4)))
    ranks = [rank for _, rank in find_slowly(clip, one, 4)["text_to_image"]]
    mean = sum(1 / rank for rank in ranks) / 4
    assert len(one) == 4 and set(ranks) != {1}
    assert found["text_to_image"].figures["mean_average_precision"] == pytest.approx(mean)


def test_a_text_tower_that_was_trained_reads_the_captions_anew(clip, many) -> None:
    galleries, other = prepare_galleries(clip, many, 12), clone_clip(clip)
    other.model.token_embedding.weight.data.normal_()
    expected = find_slowly(other, many, 12)["text_to_image"]
    found = measure_galleries(encode_galleries(other, galleries))["text_to_image"].hits.tolist()
    assert found == [rank <= 1 for _, rank in expected]
    assert found != [rank <= 1 for _, rank in find_slowly(clip, many, 12)["text_to_image"]]


def test_fresh_scenes_say_what_a_recipe_gains(clip, tuned, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path))
    other = clone_clip(clip)
    with torch.no_grad():
        for parameter in other.model.visual.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    arms = {"clip": clip, CONTROL: tuned, "region_taught": other}
    found = measure_fresh(
        {name: Arm(bundle) for name, bundle in arms.items()}, "region_taught", 10, 4
    )
    assert (found["pictures"], found["gallery"]) == (10, 4)
    scenes = pocket.load_captioned("further_test", 10)
    recalls = {}
    for name, bundle in arms.items():
        ranks = [rank for _, rank in find_slowly(bundle, scenes, 4)["text_to_image"]]
        recalls[name] = sum(rank <= 1 for rank in ranks) / 50
    assert found["recall_at_1"] == pytest.approx(recalls)
    for key, rival in (("gain", "clip"), ("gain_over_control", CONTROL)):
        gain = found[key]["text_to_image_recall_at_1"]
        assert gain["absolute"] == pytest.approx(recalls["region_taught"] - recalls[rival])
        assert gain["ci95"][0] <= gain["absolute"] <= gain["ci95"][1]
