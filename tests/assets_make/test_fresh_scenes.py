"""Scenes beyond the test's: drawn alike, searched gallery by gallery."""

import json

import pytest
import torch

from assets.make import fresh_scenes as fresh_scenes
from assets.make.fresh_scenes import draw_gallery, main, measure_fresh
from dclip_kit.data.pocket import world as data
from dclip_kit.models.clip import load_clip
from dclip_kit.models.encode import encode_images, encode_texts
from dclip_kit.models.reading import read_pixels
from dclip_kit.models.weights import clone_clip


@pytest.fixture(scope="module")
def models():
    pocket = load_clip("pocket")
    other = clone_clip(pocket)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.model.visual.attnpool.parameters():
            parameter += 0.4 * torch.randn(parameter.shape, generator=draw)
    return {"pocket": pocket, "other": other}


def test_fresh_scenes_go_on_where_the_tests_end(models, tmp_path) -> None:
    clip, size = models["pocket"], data.SCENE_SPLITS["test"]
    own = draw_gallery(clip, -size, 3)  # the split's own first scenes
    paths = [tmp_path / f"{index}.jpg" for index in range(3)]
    made = [data._make_picture("test", index, path) for index, path in enumerate(paths)]
    assert torch.equal(own.pictures, read_pixels(clip, paths))
    assert own.texts == [text for _, captions in made for text in captions]
    assert own.image_of_text.tolist() == [i for i, (_, texts) in enumerate(made) for _ in texts]
    after = [draw_gallery(clip, *given) for given in ((0, 4), (2, 2))]
    assert after[0].texts[: len(data.make_scene("test", size)[1])] == list(
        data.make_scene("test", size)[1]
    )
    assert torch.equal(after[0].pictures[2:], after[1].pictures)
    assert len({picture.numpy().tobytes() for picture in [*own.pictures, *after[0].pictures]}) == 7


def test_a_gallerys_captions_and_pictures_search_for_each_other_alone(models) -> None:
    found = measure_fresh(models, galleries=3, size=8)
    assert (found["galleries"], found["pictures"]) == (3, 24)
    hits = {name: ([], []) for name in models}
    for number in range(3):
        gallery = draw_gallery(models["pocket"], 8 * number, 8)
        texts = encode_texts(models["pocket"], gallery.texts)
        for name, clip in models.items():
            scores = texts @ encode_images(clip, gallery.pictures).T
            for row, owner in zip(scores, gallery.image_of_text.tolist(), strict=True):
                hits[name][0].append(row.argmax().item() == owner)
            for image, column in enumerate(scores.T):
                hits[name][1].append(gallery.image_of_text[column.argmax()].item() == image)
    for place, way in enumerate(("text_to_image", "image_to_text")):
        means = {name: sum(own[place]) / len(own[place]) for name, own in hits.items()}
        assert 0 < means["other"] < 1 and 0 < means["pocket"] < 1
        assert found[way]["queries"] == len(hits["pocket"][place])
        assert found[way]["recall_at_1"] == pytest.approx(means)
        assert list(found[way]["gains"]) == ["other over pocket"]
        gain = found[way]["gains"]["other over pocket"]
        assert gain["absolute"] == pytest.approx(means["other"] - means["pocket"])
        assert gain["relative"] == pytest.approx(means["other"] / means["pocket"] - 1)
        assert gain["ci95"][0] <= gain["absolute"] <= gain["ci95"][1]
    assert hits["pocket"][0] != hits["other"][0] and hits["pocket"][1] != hits["other"][1]


def test_nothing_to_measure_is_said() -> None:
    with pytest.raises(ValueError, match="at least one model to measure, got none"):
        measure_fresh({})
    for given in ((), ("fresh.json",)):
        with pytest.raises(SystemExit, match="a file to write and models"):
            main(*given)


def test_the_command_prints_and_keeps_what_was_measured(
    models, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(fresh_scenes, "load_model", models.__getitem__)
    measured = measure_fresh(models, galleries=1, size=5)
    monkeypatch.setattr(fresh_scenes, "measure_fresh", lambda given: measured)
    file = tmp_path / "new" / "fresh.json"
    main(str(file), "pocket", "other")
    assert json.loads(file.read_text()) == measured
    shown = capsys.readouterr().out
    gain = measured["image_to_text"]["gains"]["other over pocket"]["relative"]
    assert f"other over pocket: {gain:+.1%} [" in shown
    assert f"text to image, {measured['text_to_image']['queries']} queries" in shown
