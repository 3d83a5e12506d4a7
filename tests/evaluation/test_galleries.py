"""Galleries: captions and pictures search for each other in each alone, against slow loops."""

import pytest
import torch
from test_leaks import scene
from torch.nn import functional as F

from dclip_kit.config import CONTROL
from dclip_kit.data import CaptionedImages
from dclip_kit.data.pocket import world as pocket
from dclip_kit.evaluation.arms import Arm
from dclip_kit.evaluation.galleries import (
    WAYS,
    measure_fresh,
    measure_galleries,
    prepare_galleries,
)
from dclip_kit.models.encode import encode_images, encode_texts
from dclip_kit.models.weights import clone_clip
from dclip_kit.search.index import rescore


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


@pytest.fixture
def tuned(clip):
    other = clone_clip(clip)
    with torch.no_grad():
        for parameter in other.model.visual.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return other


@pytest.mark.parametrize(("size", "lengths"), [(12, [12]), (5, [5, 5, 2]), (99, [12]), (6, [6, 6])])
def test_galleries_are_of_one_size_but_for_the_last(size, lengths, clip, many) -> None:
    galleries = prepare_galleries(clip, many, size)
    assert [len(each.pictures) for each in galleries] == lengths
    assert [text for each in galleries for text in each.texts] == many.texts
    assert sum(len(each.text_features) for each in galleries) == len(many.texts)


def test_a_gallery_has_a_picture_at_least(clip, many) -> None:
    with pytest.raises(ValueError, match="a gallery of 1 picture or more, got 0"):
        prepare_galleries(clip, many, 0)


def rank_slowly(scores: torch.Tensor, right: list[int]) -> int:
    """The place of the best of the right answers, all scores sorted; nothing ties here."""
    order = sorted(range(len(scores)), key=lambda i: -float(scores[i]))
    return 1 + min(order.index(each) for each in right)


def find_slowly(clip, dataset, size, references=None) -> dict[str, list[tuple[int, int]]]:
    """Each query's picture and rank, by direction; NNN's scores where there are references."""
    found = {way: [] for way in WAYS}
    for first in range(0, len(dataset), size):
        part = dataset.select(range(first, min(first + size, len(dataset))))
        image, text = encode_images(clip, part.paths), encode_texts(clip, part.texts)
        forth, back = text @ image.T, image @ text.T
        if references:
            captions, pictures = references
            forth = rescore(forth, captions @ image.T)
            back = rescore(back, pictures @ text.T)
        owner = part.image_of_text.tolist()
        for row, own in zip(forth, owner, strict=True):
            found["text_to_image"].append((first + own, rank_slowly(row, [own])))
        for own, row in enumerate(back):
            if right := [i for i, each in enumerate(owner) if each == own]:
                found["image_to_text"].append((first + own, rank_slowly(row, right)))
    return found


@pytest.mark.parametrize("nnn", [False, True])
@pytest.mark.parametrize("size", [12, 5])
def test_each_gallery_is_searched_alone(size, nnn, clip, tuned, many) -> None:
    """And NNN ranks by the scores that `rescore` gives."""
    references = None
    if nnn:
        references = tuple(F.normalize(torch.randn(count, 32), dim=1) for count in (200, 150))
    found = measure_galleries(tuned, prepare_galleries(clip, many, size), references)
    expected = find_slowly(tuned, many, size, references)
    for way in WAYS:
        image, rank = torch.tensor(expected[way]).T
        assert found[way].image.tolist() == image.tolist()
        assert found[way].hits.tolist() == (rank <= 1).tolist()
        for k in (1, 5, 10):
            share = (rank <= k).double().mean().item()
            assert found[way].figures[f"recall_at_{k}"] == pytest.approx(share), (way, k)


def test_rescoring_changes_who_is_found(clip, many) -> None:
    galleries = prepare_galleries(clip, many, 12)
    image = encode_images(clip, many.paths)
    plain = measure_galleries(clip, galleries)
    fair = measure_galleries(clip, galleries, (image.repeat(2, 1), galleries[0].text_features))
    assert any(not torch.equal(plain[way].hits, fair[way].hits) for way in WAYS)


def test_a_caption_finds_its_picture_where_it_is_its_picture(clip, many) -> None:
    """With one caption a picture the mean average precision is that of the one right answer."""
    one = many.select([i for i, own in enumerate(many.captions) if len(own) == 1])
    found = measure_galleries(clip, prepare_galleries(clip, one, 4))
    ranks = [rank for _, rank in find_slowly(clip, one, 4)["text_to_image"]]
    mean = sum(1 / rank for rank in ranks) / 4
    assert len(one) == 4 and set(ranks) != {1}
    assert found["text_to_image"].figures["mean_average_precision"] == pytest.approx(mean)


def test_a_text_tower_that_was_trained_reads_the_captions_anew(clip, many) -> None:
    galleries, other = prepare_galleries(clip, many, 12), clone_clip(clip)
    other.model.token_embedding.weight.data.normal_()
    expected = find_slowly(other, many, 12)["text_to_image"]
    found = measure_galleries(other, galleries)["text_to_image"].hits.tolist()
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
        {name: Arm(name, bundle) for name, bundle in arms.items()}, "region_taught", 10, 4
    )
    assert (found["pictures"], found["gallery"]) == (10, 4)
    scenes = pocket.load_further("further_test", 10)
    recalls = {}
    for name, bundle in arms.items():
        ranks = [rank for _, rank in find_slowly(bundle, scenes, 4)["text_to_image"]]
        recalls[name] = sum(rank <= 1 for rank in ranks) / 50
    assert found["recall_at_1"] == pytest.approx(recalls)
    for key, rival in (("gain", "clip"), ("gain_over_control", CONTROL)):
        gain = found[key]["text_to_image_recall_at_1"]
        assert gain["absolute"] == pytest.approx(recalls["region_taught"] - recalls[rival])
        assert gain["ci95"][0] <= gain["absolute"] <= gain["ci95"][1]
