"""The playground, worked from Python as its page would, against slow loops."""

import base64
import io
import json
from dataclasses import replace

import pytest
import torch
import traitlets
from PIL import Image

from dclip_kit.data import LabelledImages, open_picture
from dclip_kit.evaluation.evaluate import encode_classes
from dclip_kit.models.encode import encode_images
from dclip_kit.models.weights import clone_clip, interpolate
from dclip_kit.widgets import ZeroShotPlayground
from dclip_kit.widgets import page as page_module
from dclip_kit.widgets import playground as playground_module

HOSTILE = '<img src=x onerror="alert(1)">'
TEMPLATES = ("a {}",)
NAMES = ("ball", "boat", "box")
SHARES = (0.0, 0.5, 1.0)
RECALLS = {0.0: 0.2, 0.5: 0.3, 1.0: 0.25}


@pytest.fixture
def labelled(captioned, clip) -> LabelledImages:
    """Six pictures, of which the untouched CLIP names every second one rightly."""
    texts = encode_classes(clip, NAMES, TEMPLATES)
    named = (encode_images(clip, captioned.paths) @ texts.T).argmax(1).tolist()
    labels = tuple((label + i % 2) % 3 for i, label in enumerate(named))
    return LabelledImages(captioned.paths, labels, NAMES, (True, True, False), "six")


@pytest.fixture
def fine_tuned(clip):
    other = clone_clip(clip)
    with torch.no_grad():
        noise = torch.Generator().manual_seed(1)
        proj = other.model.visual.proj
        proj += 0.3 * torch.randn(proj.shape, generator=noise)
    return other


@pytest.fixture
def features(clip, fine_tuned, labelled):
    mixes = {share: interpolate(clip, fine_tuned, share) for share in SHARES}
    return {share: encode_images(mix, labelled.paths) for share, mix in mixes.items()}


@pytest.fixture
def make(clip, fine_tuned, labelled, features):
    def build(**changes) -> ZeroShotPlayground:
        settings = {"recalls": RECALLS, "templates": TEMPLATES} | changes
        return ZeroShotPlayground(clip, fine_tuned, labelled, features, **settings)

    return build


def test_classes_of_one_name_are_one(clip, fine_tuned, labelled, features) -> None:
    """As ImageNet's two missiles: the second would never be named."""
    twins = replace(labelled, class_names=("ball", "boat", "ball"))
    found = ZeroShotPlayground(
        clip, fine_tuned, twins, features, recalls=RECALLS, templates=TEMPLATES
    )
    one = replace(
        labelled,
        class_names=("ball", "boat"),
        labels=tuple(label % 2 for label in labelled.labels),
        in_domain=(True, True),
    )
    merged = ZeroShotPlayground(
        clip, fine_tuned, one, features, recalls=RECALLS, templates=TEMPLATES
    )
    assert found._told["curve"] == merged._told["curve"] and found.changes == merged.changes
    assert found.classes == ["ball", "boat"] and found.message == merged.message


def name_slowly(clip, vector, classes) -> list[tuple[str, float]]:
    texts = encode_classes(clip, classes, TEMPLATES)
    scores = [float(clip.model.logit_scale.detach().exp() * (text @ vector)) for text in texts]
    whole = sum(torch.tensor(scores).exp().tolist())
    shares = [float(torch.tensor(score).exp()) / whole for score in scores]
    return sorted(zip(classes, shares, strict=True), key=lambda pair: -pair[1])


def test_both_models_name_a_picture_out_of_typed_classes(make, clip, features, labelled) -> None:
    playground = make(classes=["dog", "red ball"])
    playground.classes = [" a  cat", "red ball", " ", "boat", "a cat"]
    assert playground.classes == ["a cat", "red ball", "boat"]
    for picture in (0, 4):
        playground.picture = picture
        for share in (1.0, 0.5):
            playground.share = share
            for row, own in (("before", 0.0), ("after", share)):
                expected = name_slowly(clip, features[own][picture], playground.classes)
                found = playground.answers[row]
                assert [name for name, _ in found] == [name for name, _ in expected]
                assert [each for _, each in found] == pytest.approx(
                    [each for _, each in expected], abs=2e-4
                )
    label = labelled.class_names[labelled.labels[4]]
    assert playground.message.endswith(f"It is labelled {label}.")


def test_classes_are_encoded_only_when_they_change(make, monkeypatch) -> None:
    encoded = []

    def encode(clip, names, templates):
        encoded.append([*names])
        return encode_classes(clip, names, templates)

    monkeypatch.setattr(playground_module, "encode_classes", encode)
    playground = make()
    playground.picture, playground.share = 3, 0.5
    assert encoded == []  # the labelled classes are known
    with playground.hold_trait_notifications():  # as a page sets several traits at once
        playground.picture, playground.classes = 2, ["a cat", "boat"]
    playground.picture = 1
    assert encoded == [["a cat", "boat"]]
    assert {name for name, _ in playground.answers["after"]} == {"a cat", "boat"}


def test_what_was_forgotten_and_learned_is_counted_by_class(make, clip, features, labelled) -> None:
    playground = make()
    texts = encode_classes(clip, NAMES, TEMPLATES)
    moved = 0
    for share in SHARES:
        playground.share = share
        right = {
            own: [
                max(range(3), key=lambda i, v=v: float(texts[i] @ v)) == label
                for v, label in zip(features[own], labelled.labels, strict=True)
            ]
            for own in (0.0, share)
        }
        expected = {}
        for label, name in enumerate(NAMES):
            own = [i for i, each in enumerate(labelled.labels) if each == label]
            old, new = (sum(right[each][i] for i in own) / len(own) for each in (0.0, share))
            if old != new:
                expected[name] = (old, new)
        found = {row["name"]: (row["before"], row["after"]) for row in playground.changes}
        assert found == expected
        falls = [row["after"] - row["before"] for row in playground.changes]
        assert falls == sorted(falls)
        for row in playground.changes:
            picture = row["picture"]
            assert labelled.class_names[labelled.labels[picture]] == row["name"]
            assert right[share][picture] == (row["after"] > row["before"])
            assert right[0.0][picture] != right[share][picture]
        moved += len(expected)
        point = next(each for each in playground._told["curve"] if each["share"] == share)
        assert point["gain"] == pytest.approx(RECALLS[share] / 0.2 - 1)
        assert point["retention"] == pytest.approx(sum(right[share]) / sum(right[0.0]))
    assert moved > 0


def test_of_nothing_found_or_named_no_share_is_said(clip, fine_tuned, labelled, features) -> None:
    recalls = {0.0: 0.0, 0.5: 0.1, 1.0: 0.3}
    texts = encode_classes(clip, NAMES, TEMPLATES)
    named = (features[0.0] @ texts.T).argmax(1).tolist()
    wrong = replace(labelled, labels=tuple((label + 1) % 3 for label in named))
    playground = ZeroShotPlayground(
        clip, fine_tuned, wrong, features, recalls=recalls, templates=TEMPLATES
    )
    told = playground._told
    assert [point["gain"] for point in told["curve"]] == [0.0, 0.1, 0.3]
    assert [point["retention"] for point in told["curve"]] == [1.0] * 3
    assert told["gain_unit"] == "points"


def test_a_picture_from_outside_is_named_too(make, clip, fine_tuned, tmp_path) -> None:
    playground = make()
    file = tmp_path / "own.png"
    Image.new("RGB", (90, 60), "teal").save(file)
    playground._handle_custom_msg({"kind": "picture"}, [memoryview(file.read_bytes())])
    assert playground.picture == -1 and "labelled" not in playground.message
    for row, share in (("before", 0.0), ("after", 1.0)):
        vector = encode_images(interpolate(clip, fine_tuned, share), [file])[0]
        expected = name_slowly(clip, vector, NAMES)
        assert [name for name, _ in playground.answers[row]] == [name for name, _ in expected]
    assert Image.open(io.BytesIO(playground._shown)).size == (224, 149)
    playground.picture = 2
    assert "It is labelled " in playground.message
    playground._handle_custom_msg({"kind": "picture"}, [memoryview(b"no picture")])
    assert "no picture that can be read" in playground.message


def test_a_given_picture_is_encoded_once_by_each_mixture(make, tmp_path, monkeypatch) -> None:
    mixed, encoded = [], []

    def mix(before, after, share):
        mixed.append(share)
        return interpolate(before, after, share)

    def encode(*given, **options):
        encoded.append(given)
        return encode_images(*given, **options)

    monkeypatch.setattr(page_module, "interpolate", mix)
    monkeypatch.setattr(page_module, "encode_images", encode)
    playground, answers = make(), []
    for number, color in enumerate(("teal", "red"), start=1):
        Image.new("RGB", (90, 60), color).save(tmp_path / "own.png")
        playground.ask_with(tmp_path / "own.png")
        for share in (0.5, 1.0, 0.0, 0.5, 1.0):
            playground.share = share
        assert mixed == [0.5] * number and len(encoded) == 3 * number
        answers.append(playground.answers)
    assert answers[0] != answers[1]


def test_without_a_picture_from_outside_the_first_is_named(make) -> None:
    playground = make()
    playground.picture = -1
    assert playground.picture == 0


def test_a_page_without_a_kernel_has_a_picture_and_a_sentence(make, labelled) -> None:
    playground = make(classes=[HOSTILE])
    data, _ = playground._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data and "text/html" not in data
    said = f"ZeroShotPlayground, picture 0. Before: {HOSTILE}. After: {HOSTILE}."
    assert data["text/plain"].startswith(said)
    shown = Image.open(io.BytesIO(base64.b64decode(data["image/jpeg"])))
    size = open_picture(labelled.paths[0]).size
    assert shown.width / shown.height == pytest.approx(size[0] / size[1], abs=0.02)
    assert len(json.dumps(data)) < 200_000


def test_bad_input_is_named(clip, fine_tuned, labelled, features, make) -> None:
    def build(features):
        return ZeroShotPlayground(clip, fine_tuned, labelled, features, RECALLS)

    with pytest.raises(ValueError, match=r"share 0 and another, got shares \[0\.5, 1\.0\]"):
        build({k: v for k, v in features.items() if k})
    with pytest.raises(ValueError, match=r"of 6 pictures.*sizes \[5, 6\]"):
        build(features | {1.0: features[1.0][:5]})
    playground = make()
    for name, value, says in (
        ("classes", [" "], "at least one class"),
        ("picture", 6, r"picture out of range\(-1, 6\), got 6"),
        ("share", 0.3, "share out of 0.0, 0.5, 1.0, got 0.3"),
    ):
        with pytest.raises(traitlets.TraitError, match=says):
            setattr(playground, name, value)
