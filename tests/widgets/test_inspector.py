"""The inspector, worked from Python as its page would, against the batched ways."""

import base64
import io
import json
from dataclasses import replace

import pytest
import torch
import traitlets
from PIL import Image

from dclip_kit.config import RegionSettings, RegionTeacherSettings
from dclip_kit.data import open_picture
from dclip_kit.evaluation.inspection import attend, read_caption
from dclip_kit.features.extract import extract_features
from dclip_kit.models.encode import encode_images
from dclip_kit.models.regions import crop_regions
from dclip_kit.models.teacher import MetaTeacher, RegionTeacher
from dclip_kit.training import apply_teacher, choose_lenders, embed_pictures
from dclip_kit.widgets import RegionInspector
from dclip_kit.widgets import inspector as inspector_module

SETTINGS = RegionSettings()


@pytest.fixture
def data(captioned):
    return captioned.select([i for i, each in enumerate(captioned.captions) if each])


@pytest.fixture
def features(clip, detector, data):
    return extract_features(clip, detector, data, SETTINGS)


@pytest.fixture
def teachers(clip):
    return MetaTeacher(clip.embed_dim, heads=4).eval(), RegionTeacher(
        clip.embed_dim, width=24, heads=3, layers=1
    ).eval()


@pytest.fixture
def make(clip, data, features, detector, teachers):
    return lambda **changes: RegionInspector(
        clip, data, features, detector.names, *teachers, **changes
    )


def rank_slowly(features, texts, image: int, vector) -> int:
    """Among the first captions of all pictures, one of which is exchanged."""
    own = float(vector @ features.text[texts[image]])
    return 1 + sum(
        float(vector @ features.text[text]) > own for i, text in enumerate(texts) if i != image
    )


def looks_of(teacher, clip, picture, found) -> torch.Tensor:
    """How much the region teacher's last layer looks at each region, from the picture itself."""
    crops = crop_regions(picture, found, SETTINGS.margin, SETTINGS.square)
    features = encode_images(clip, [picture, *crops], progress=False)
    shares = found.xyxy / torch.tensor(picture.size).repeat(2)
    boxes = torch.cat([shares, found.confidence[:, None]], dim=1)
    mask = torch.ones(1, len(found), dtype=torch.bool)
    _, weights = teacher.eval()(features[:1], features[None, 1:], mask, boxes[None])
    received = weights[0, :, 1:].sum(0)  # item 0 is the whole picture
    return received / received.sum()


@torch.no_grad()
def test_it_says_what_the_notebooks_functions_say(
    make, clip, data, features, detector, teachers
) -> None:
    teacher, region_teacher = teachers
    inspector = make(picture=2)
    seen = 0
    for image in range(len(data)):
        inspector.picture = image
        assert inspector.caption == 0
        picture = open_picture(data.paths[image])
        found = detector.detect([picture], progress=False).regions[0]
        for number, caption in enumerate(data.captions[image]):
            inspector.caption = number
            expected = read_caption(clip, picture, found, caption, SETTINGS)
            output = attend(teacher, expected)
            looks = looks_of(region_teacher, clip, picture, found)
            columns = inspector.seen["columns"]
            for name, values in (
                ("area", found.area),
                ("confidence", found.confidence),
                ("similarity", expected.similarity),
                ("weight", expected.weight),
                ("teacher", output.region_pooling[0]),
                ("region teacher", looks),
            ):
                assert columns[name] == pytest.approx(values.tolist(), abs=2e-3), name
            for name in ("region_to_token", "token_to_region"):
                got = torch.tensor(inspector.seen[name])
                assert torch.allclose(got, getattr(output, name)[0], atol=2e-3)
            assert inspector.seen["tokens"] == [*expected.tokens]
            assert inspector.seen["captions"][number] == caption
            assert inspector.seen["labels"] == [*found.label]
            seen += 1
    assert seen == len(data.texts) > len(data)


@torch.no_grad()
def test_ranks_are_those_of_both_teachers(make, data, features, teachers) -> None:
    teacher, region_teacher = teachers
    inspector = make()
    lenders = choose_lenders(len(data))
    first = [int((features.image_of_text == i).nonzero()[0, 0]) for i in range(len(data))]
    free = {
        kind: embed_pictures(region_teacher, features, RegionTeacherSettings(regions=kind))
        for kind in ("own", "none")
    }
    for image, text in enumerate(first):
        inspector.picture = image
        for kind in ("own", "another", "blank"):
            inspector.regions = kind
            ranks = inspector.seen["ranks"]
            assert ranks["CLIP"] == rank_slowly(features, first, image, features.image[image])
            if kind != "blank":
                source = torch.tensor([image]) if kind == "own" else lenders[image][None]
                pair = apply_teacher(teacher, features, torch.tensor([text]), SETTINGS, source)
                expected = rank_slowly(features, first, image, pair.embedding[0])
                assert ranks["the paper's teacher"] == expected
            if kind != "another":
                vector = free["own" if kind == "own" else "none"][image]
                assert ranks["the region teacher"] == rank_slowly(features, first, image, vector)
    assert inspector.message.startswith(f"Rank of the caption among {len(data)}: CLIP ")


def test_a_region_teacher_sees_what_it_was_trained_with(make, monkeypatch) -> None:
    applied, seen = inspector_module.apply_region_teacher, []

    def apply(teacher, features, images, settings):
        seen.append(settings)
        return applied(teacher, features, images, settings)

    monkeypatch.setattr(inspector_module, "apply_region_teacher", apply)
    trained = RegionTeacherSettings(boxes=False)
    inspector = make(region_settings=trained)
    inspector.regions = "another"
    inspector.regions = "blank"
    kinds = [trained, *(replace(trained, regions=kind) for kind in ("another", "none"))]
    assert seen == kinds


def test_powers_weigh_live_and_reach_the_teacher(make) -> None:
    inspector = make()
    before, image = inspector.seen, inspector._shown
    inspector.area = 0.0
    inspector.confidence = 0.0
    inspector.similarity = 0.0
    weights = inspector.seen["columns"]["weight"]
    assert weights == pytest.approx([1 / len(weights)] * len(weights), abs=1e-3)
    assert inspector._shown == image
    inspector.area = inspector.confidence = inspector.similarity = 1.0
    assert inspector.seen == before
    with pytest.raises(traitlets.TraitError):
        inspector.area = 4.0


def test_the_picture_is_the_one_whose_regions_are_shown(make, data) -> None:
    inspector = make(picture=1)

    def shown() -> Image.Image:
        return Image.open(io.BytesIO(inspector._shown))

    own = inspector._shown
    inspector.regions = "another"
    lender = open_picture(data.paths[int(choose_lenders(len(data))[1])])
    assert shown().size == lender.size and inspector._shown != own
    inspector.regions = "blank"
    assert shown().getcolors() == [(shown().width * shown().height, shown().getpixel((0, 0)))]
    assert inspector.seen["labels"] == ["whole image"]
    inspector.regions = "own"
    assert inspector._shown == own


def test_a_picture_alone_has_no_other_to_lend_it_regions(clip, detector, data, teachers) -> None:
    one = data.select([0])
    features = extract_features(clip, detector, one, SETTINGS)
    inspector = RegionInspector(clip, one, features, detector.names, *teachers)
    inspector.regions = "blank"
    with pytest.raises(traitlets.TraitError, match="regions out of own, blank, got 'another'"):
        inspector.regions = "another"


def test_a_caption_that_the_next_picture_lacks_becomes_its_first(make, data) -> None:
    most = max(range(len(data)), key=lambda i: len(data.captions[i]))
    least = min(range(len(data)), key=lambda i: len(data.captions[i]))
    last = len(data.captions[most]) - 1
    assert last >= len(data.captions[least])
    inspector = make(picture=most, caption=last)
    inspector.picture = least
    assert inspector.caption == 0 and inspector._shown == make(picture=least)._shown
    opened = make(picture=least, caption=last)
    assert opened.caption == 0 and opened._shown == inspector._shown


def test_a_page_without_a_kernel_has_a_picture_and_a_sentence(make) -> None:
    data, _ = make()._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data and "text/html" not in data
    assert data["text/plain"].startswith("RegionInspector: “a red ball” beside picture 0. Rank of")
    assert Image.open(io.BytesIO(base64.b64decode(data["image/jpeg"]))).width <= 320
    assert len(json.dumps(data)) < 200_000


def test_a_page_without_a_kernel_shows_whose_regions_were_seen(make, data) -> None:
    inspector = make(picture=1)
    inspector.regions = "blank"
    still, text = inspector._draw_still()
    assert "beside picture 1, with a blank picture's region. Rank of" in text
    picture = Image.open(io.BytesIO(still)).convert("RGB")
    assert picture.resize((8, 8)).getpixel((4, 4)) == pytest.approx((128, 128, 128), abs=4)
    inspector.regions = "another"
    assert "with another's regions" in inspector._draw_still()[1]


def test_bad_input_is_named(clip, data, features, detector, teachers, make) -> None:
    with pytest.raises(ValueError, match=r"of 2 pictures and \d+ captions, got \d+ and"):
        RegionInspector(clip, data.select([0, 1]), features, detector.names, *teachers)
    inspector = make()
    for picture in (99, -1):
        with pytest.raises(traitlets.TraitError):
            inspector.picture = picture
    with pytest.raises(traitlets.TraitError):
        inspector.regions = "none"
