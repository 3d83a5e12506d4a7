"""Things of scenes, one picture beside one caption, padding, and the shortcut probe."""

import itertools
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dclip_kit.config import PROFILES, RegionSettings, RegionTeacherSettings, TeacherSettings
from dclip_kit.data import open_picture
from dclip_kit.data.pocket.compositions import KINDS, load_compositions
from dclip_kit.data.pocket.scenes import Scene, SceneObject
from dclip_kit.evaluation import inspection as module
from dclip_kit.evaluation.inspection import (
    CaptionedRegions,
    SceneObjects,
    attend,
    compare_masking,
    list_objects,
    match_regions,
    name_objects,
    probe_teacher,
    read_caption,
    region_probe,
    reweight_regions,
    score_teachers,
    shortcut_probe,
)
from dclip_kit.features.store import FrozenFeatures
from dclip_kit.metrics import composition_scores
from dclip_kit.models.encode import encode_images, encode_texts, encode_tokens
from dclip_kit.models.regions import Regions, crop_regions, region_weights
from dclip_kit.models.teacher import MetaTeacher, RegionTeacher, TeacherOutput
from dclip_kit.training import TeacherRun, apply_teacher, embed_pictures

CAPTION = "a red ball by the sea"


@pytest.fixture
def regions(pictures) -> Regions:
    boxes = torch.tensor([[2.0, 3, 20, 25], [5, 1, 29, 11], [20, 10, 39, 29]])
    return Regions(boxes, torch.tensor([0.9, 0.25, 0.6]), ("a", "b", "c"), pictures[0].size)


@pytest.fixture
def captioned(clip, pictures, regions) -> CaptionedRegions:
    return read_caption(clip, pictures[0], regions, CAPTION)


@pytest.fixture
def by_hand() -> CaptionedRegions:
    """Two regions of areas 1/4 and 1/2, confidences 1/2 and 1, similarities 1 and 1/4."""
    boxes = torch.tensor([[0.0, 0, 50, 50], [0, 0, 100, 50]])
    return CaptionedRegions(
        Regions(boxes, torch.tensor([0.5, 1.0]), ("a", "b"), (100, 100)),
        "it",
        ("it",),
        torch.eye(2, 4),
        torch.eye(1, 4),
        torch.tensor([1.0, 0.25]),
        torch.tensor([0.5, 0.5]),
    )


# What weights are made of


def test_it_reads_what_the_encoders_and_the_weights_say(clip, pictures, regions, captioned) -> None:
    crops = crop_regions(pictures[0], regions, RegionSettings().margin)
    features = encode_images(clip, crops)
    tokens = encode_tokens(clip, [CAPTION])
    assert torch.allclose(captioned.region_features, features, atol=1e-6)
    assert torch.equal(captioned.token_features, tokens.features[tokens.mask])
    assert len(captioned.tokens) == len(captioned.token_features)
    assert "".join(captioned.tokens) == CAPTION.replace(" ", "")
    cosine = features @ captioned.token_features.T
    assert torch.allclose(captioned.similarity, cosine.max(1).values.clamp(min=0), atol=1e-6)
    expected = region_weights(
        features[None],
        tokens.features,
        regions.area[None],
        regions.confidence[None],
        torch.ones(1, 3, dtype=torch.bool),
        tokens.mask,
    )
    assert torch.allclose(captioned.weight, expected[0], atol=1e-6)


def test_crops_are_cut_as_the_settings_say(clip, pictures, regions, captioned) -> None:
    settings = RegionSettings(margin=0.0, square=False)
    other = read_caption(clip, pictures[0], regions, CAPTION, settings)
    expected = encode_images(clip, crop_regions(pictures[0], regions, 0.0, square=False))
    assert torch.allclose(other.region_features, expected, atol=1e-6)
    assert not torch.allclose(other.region_features, captioned.region_features, atol=1e-3)


def test_a_caption_without_tokens_and_another_picture_are_refused(clip, pictures, regions) -> None:
    with pytest.raises(ValueError, match="empty"):
        read_caption(clip, pictures[0], regions, " ")
    with pytest.raises(ValueError, match="crop before resizing"):
        read_caption(clip, pictures[1], regions, CAPTION)


@pytest.mark.parametrize(
    ("powers", "expected"),
    [
        ({}, [0.5, 0.5]),  # 1/4 · 1/2 · 1 = 1/8, and 1/2 · 1 · 1/4 = 1/8
        ({"area": 0.0}, [2 / 3, 1 / 3]),
        ({"confidence": 0.0}, [2 / 3, 1 / 3]),
        ({"similarity": 0.0}, [0.2, 0.8]),
        ({"area": 0.0, "confidence": 0.0}, [0.8, 0.2]),
        ({"area": 0.0, "confidence": 0.0, "similarity": 0.5}, [2 / 3, 1 / 3]),
        ({"area": 0.0, "confidence": 0.0, "similarity": 2.0}, [16 / 17, 1 / 17]),
        ({"area": 0.0, "confidence": 0.0, "similarity": 0.0}, [0.5, 0.5]),
    ],
)
def test_powers_weigh_the_factors(by_hand, powers, expected) -> None:
    weights = reweight_regions(by_hand, **powers)
    assert weights.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("power", [-0.5, float("nan"), float("inf")])
def test_powers_that_are_none_are_refused(by_hand, power) -> None:
    with pytest.raises(ValueError, match=rf"powers of 0 or more, got .*confidence {power} and"):
        reweight_regions(by_hand, confidence=power)


def test_powers_of_one_give_dclips_weights(captioned) -> None:
    assert torch.allclose(reweight_regions(captioned), captioned.weight, atol=1e-6)


def test_a_factor_of_zero_counts_unless_it_is_left_out(by_hand) -> None:
    by_hand.similarity[0] = 0.0
    assert reweight_regions(by_hand).tolist() == [0, 1]
    assert reweight_regions(by_hand, similarity=0.0).tolist() == pytest.approx([0.2, 0.8])


# Where the teacher looks


def test_attention_is_that_of_the_teacher_in_a_batch(captioned) -> None:
    teacher = MetaTeacher(32, 4).train()
    output = attend(teacher, captioned)
    assert not teacher.training
    with torch.no_grad():
        expected = teacher(
            F.pad(captioned.region_features, (0, 0, 0, 2))[None],
            torch.tensor([[True] * 3 + [False] * 2]),
            captioned.token_features[None],
            torch.ones(1, len(captioned.tokens), dtype=torch.bool),
            F.pad(captioned.weight, (0, 2))[None],
        )
    assert torch.allclose(output.embedding, expected.embedding, atol=1e-6)
    assert output.region_to_token.shape == (1, 3, len(captioned.tokens))
    assert torch.allclose(output.region_to_token, expected.region_to_token[:, :3], atol=1e-6)
    assert torch.allclose(output.token_to_region.sum(2), torch.ones(1, len(captioned.tokens)))


def test_other_weights_are_used_and_equal_ones_change_nothing(captioned) -> None:
    teacher = MetaTeacher(32, 4)
    own = attend(teacher, captioned).embedding
    equal = attend(teacher, captioned, torch.full((3,), 1 / 3)).embedding
    with torch.no_grad():
        ones = torch.ones(1, 3, dtype=torch.bool)
        token_mask = torch.ones(1, len(captioned.tokens), dtype=torch.bool)
        plain = teacher(
            captioned.region_features[None], ones, captioned.token_features[None], token_mask
        ).embedding
    assert torch.allclose(equal, plain, atol=1e-6)
    assert not torch.allclose(own, equal, atol=1e-4)


# What padding does


@pytest.mark.parametrize("weighted", [True, False])
def test_masked_company_changes_nothing_and_unmasked_does(features, weighted) -> None:
    teacher = MetaTeacher(32, 4)
    settings = RegionSettings(weighted=weighted)
    texts = torch.arange(len(features.text))
    effect = compare_masking(teacher, features, texts, settings)
    assert torch.allclose(effect.masked, torch.ones(len(texts)), atol=1e-5)
    assert teacher.masked  # a copy took padding for real
    regions = features.region_count[features.image_of_text[texts]]
    room = int(regions.max() + features.token_count[texts].max())
    padding = 1 - (regions + features.token_count[texts]) / room
    assert torch.allclose(effect.padding, padding)
    full, padded = padding == 0, padding > 0.3
    assert full.any() and padded.any()
    assert torch.allclose(effect.unmasked[full], torch.ones(int(full.sum())), atol=1e-5)
    assert effect.unmasked[padded].max() < 0.9999
    assert torch.allclose(effect.attention_on_padding[regions == regions.max()], torch.tensor(0.0))
    assert (effect.attention_on_padding[regions < regions.max()] > 0).all()


def test_unmasked_is_what_the_padded_zeros_make_of_it(features) -> None:
    teacher, settings = MetaTeacher(32, 4), RegionSettings(weighted=False)
    texts = torch.arange(5)
    effect = compare_masking(teacher, features, texts, settings)
    region, _ = features.regions_of(features.image_of_text[texts])
    token, _ = features.tokens_of(texts)
    with torch.no_grad():
        everything = (torch.ones(x.shape[:2], dtype=torch.bool) for x in (region, token))
        mask, token_mask = everything
        together = teacher(region, mask, token, token_mask).embedding
        alone = [apply_teacher(teacher, features, text[None], settings).embedding for text in texts]
    assert torch.allclose(effect.unmasked, (together * torch.cat(alone)).sum(1), atol=1e-5)


# The things in scenes


def thing(noun: int, size: str, *box: int) -> SceneObject:
    return SceneObject(noun, size, box, "noto", 0, False)


def found(*boxes: tuple[float, ...], confidence: float = 0.9) -> Regions:
    labels = tuple("thing" for _ in boxes)
    return Regions(torch.tensor(boxes), torch.full((len(boxes),), confidence), labels, (256, 256))


def objects(*placed: tuple[int, int, str, tuple[int, ...]]) -> SceneObjects:
    image, label, size, boxes = zip(*placed, strict=True)
    return SceneObjects(
        torch.tensor(image), torch.tensor(label), tuple(size), torch.tensor(boxes).float()
    )


# Listed


def test_things_are_listed_scene_by_scene() -> None:
    scenes = [
        Scene("beach", 1, (thing(5, "small", 0, 0, 40, 50), thing(2, "large", 60, 0, 180, 90))),
        Scene("night", 2, ()),
        Scene("night", 3, (thing(5, "small", 10, 20, 50, 60),)),
    ]
    listed = list_objects(scenes)
    assert len(listed) == 3
    assert listed.image.tolist() == [0, 0, 2]
    assert listed.label.tolist() == [5, 2, 5]
    assert listed.xyxy.tolist() == [[0, 0, 40, 50], [60, 0, 180, 90], [10, 20, 50, 60]]
    assert listed.of_size("small").tolist() == [True, False, True]
    assert listed.of_size("medium").tolist() == [False] * 3


# Matched


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([(0, 0, 10, 10)], [0, -1]),
        ([(0, 0, 10, 20)], [0, -1]),  # an overlap of just a half is enough
        ([(0, 0, 10, 21)], [-1, -1]),
        ([(100, 100, 110, 110), (0, 0, 10, 10)], [1, 0]),
        ([(0, 0, 10, 12), (0, 0, 10, 11)], [1, -1]),  # the better of two
        ([(50, 50, 60, 60)], [-1, -1]),
    ],
)
def test_a_thing_is_found_by_the_region_that_overlaps_it_most(boxes, expected) -> None:
    things = objects((0, 1, "small", (0, 0, 10, 10)), (0, 2, "small", (100, 100, 110, 110)))
    assert match_regions(things, [found(*map(lambda b: tuple(map(float, b)), boxes))]).tolist() == (
        expected
    )


def test_a_region_finds_one_thing_and_the_best_pairs_go_first() -> None:
    # Region 0 overlaps both things enough and the second one better; region 1 only the second.
    things = objects((0, 1, "small", (0, 0, 10, 14)), (0, 2, "small", (0, 4, 10, 16)))
    regions = found((0.0, 3.0, 10.0, 16.0), (0.0, 6.0, 10.0, 17.0))
    assert match_regions(things, [regions]).tolist() == [-1, 0]
    assert match_regions(things, [regions], 0.3).tolist() == [1, 0]


def test_pictures_do_not_borrow_regions() -> None:
    box = (0, 0, 10, 10)
    things = objects((0, 1, "small", box), (2, 1, "small", box))
    far, here = found((50.0, 50.0, 60.0, 60.0)), found((0.0, 0.0, 10.0, 10.0))
    assert match_regions(things, [far, here, here]).tolist() == [-1, 0]


# Named


@pytest.fixture
def paths(tmp_path):
    """Three pictures whose left half is red and right half green, with a blue corner."""
    made = []
    for index in range(3):
        picture = Image.new("RGB", (256, 256), (250, 0, 0))
        picture.paste((0, 250, 0), (128, 0, 256, 256))
        picture.paste((0, 0, 250), (0, 0, 64, 64))
        made.append(tmp_path / f"{index}.png")
        picture.save(made[-1])
    return made


def opened(picture) -> Image.Image:
    return picture if isinstance(picture, Image.Image) else Image.open(picture)


@pytest.fixture
def colours(monkeypatch):
    """A CLIP that sees the colour that covers most; classes are red, green, blue and gray."""

    def encode(clip, pictures):
        features = []
        for picture in map(opened, pictures):
            counts = picture.convert("RGB").getcolors(256 * 256)
            color = max(counts)[1]
            share = max(counts)[0] / (picture.width * picture.height)
            hot = torch.tensor([channel / 250 for channel in color] + [0.0])
            features.append(hot + (1 - share) * torch.tensor([0.02, 0.01, 0.0, 0.005]))
        return torch.nn.functional.normalize(torch.stack(features), dim=1)

    monkeypatch.setattr(module, "encode_images", encode)
    return torch.eye(4)


RED, GREEN, BLUE, GRAY = range(4)
LEFT, RIGHT, CORNER = (0, 64, 128, 256), (128, 0, 256, 256), (0, 0, 64, 64)


def test_things_are_named_from_pictures_and_from_their_own_crops(clip, paths, colours) -> None:
    things = objects(
        (0, GREEN, "large", RIGHT),
        (0, BLUE, "small", CORNER),
        (1, BLUE, "small", CORNER),  # not found
        (2, RED, "large", LEFT),
        (2, BLUE, "small", CORNER),
    )
    regions = [
        found(tuple(map(float, CORNER)), tuple(map(float, RIGHT))),
        found((200.0, 200.0, 250.0, 250.0)),
        found(tuple(map(float, CORNER)), tuple(map(float, LEFT))),
    ]
    settings = RegionSettings(margin=0.0, square=False)
    named = name_objects(clip, paths, things, regions, colours, settings)
    assert named.found.tolist() == [True, True, False, True, True]
    assert named.by_crop.tolist() == [True, True, False, True, True]
    # Most of each picture is green, so of the first picture's things the green one is named; the
    # blue corner is not: red, which the picture is not said to show, is nearer.
    assert named.by_picture.tolist() == [True, False, False, False, False]


def test_nouns_of_the_things_beside_do_not_compete(clip, paths, colours) -> None:
    red_and_green = objects((0, RED, "large", LEFT), (0, GREEN, "large", RIGHT))
    regions = [found(tuple(map(float, LEFT)), tuple(map(float, RIGHT)))]
    named = name_objects(clip, paths[:1], red_and_green, regions, colours)
    assert named.by_picture.tolist() == [True, True]  # green is nearest, red next
    alone = objects((0, RED, "large", LEFT))
    named = name_objects(clip, paths[:1], alone, regions, colours)
    assert named.by_picture.tolist() == [False]


def test_two_of_a_kind_compete_as_one(clip, paths, colours) -> None:
    twins = objects((0, GREEN, "large", RIGHT), (0, GREEN, "small", CORNER))
    named = name_objects(clip, paths[:1], twins, [found(tuple(map(float, RIGHT)))], colours)
    assert named.by_picture.tolist() == [True, True]
    assert named.by_crop.tolist() == [True, False]


def test_a_tie_names_nothing(clip, paths, colours, monkeypatch) -> None:
    monkeypatch.setattr(
        module, "encode_images", lambda clip, pictures: torch.ones(len(pictures), 4) / 2
    )
    things = objects((0, GREEN, "large", RIGHT))
    regions = [found(tuple(map(float, RIGHT)))]
    named = name_objects(clip, paths[:1], things, regions, colours)
    assert not named.by_picture.any() and not named.by_crop.any() and named.found.all()


def test_crops_of_things_are_cut_as_the_settings_say(clip, paths, colours, monkeypatch) -> None:
    sizes: list[tuple[int, int]] = []

    def encode(clip, pictures):
        sizes.extend(opened(picture).size for picture in pictures)
        return torch.eye(4)[:1].expand(len(pictures), 4)

    monkeypatch.setattr(module, "encode_images", encode)
    things, regions = (
        objects((0, RED, "small", (50, 50, 70, 90))),
        [found((50.0, 50.0, 70.0, 90.0))],
    )
    name_objects(clip, paths[:1], things, regions, colours)
    settings = RegionSettings(margin=0.5, square=False)
    name_objects(clip, paths[:1], things, regions, colours, settings)
    assert sizes == [(256, 256), (48, 48), (256, 256), (40, 80)]


def test_paths_and_regions_belong_together(clip, paths, colours) -> None:
    things = objects((0, RED, "small", CORNER))
    with pytest.raises(ValueError, match="each of 3 pictures, got 1"):
        name_objects(clip, paths, things, [found((0.0, 0.0, 64.0, 64.0))], colours)


# The shortcut probe


class Looks(MetaTeacher):
    """Embeds the mean of the regions, and no word."""

    def forward(
        self,
        region_features,
        region_mask,
        token_features,
        token_mask,
        weights=None,
        check_values=True,
    ):
        share = region_mask / region_mask.sum(1, keepdim=True)
        return self.answer((share[..., None] * region_features).sum(1), share)

    def answer(self, embedding, share):
        looked = share[..., None]  # of one word
        return TeacherOutput(F.normalize(embedding, dim=-1), looked, looked.mT, share)


class Reads(Looks):
    """Embeds the mean of the caption's tokens, and nothing that is to be seen."""

    def forward(
        self,
        region_features,
        region_mask,
        token_features,
        token_mask,
        weights=None,
        check_values=True,
    ):
        share = region_mask / region_mask.sum(1, keepdim=True)
        return self.answer(token_features.sum(1), share)


@pytest.fixture
def plain() -> FrozenFeatures:
    """Six pictures, five with captions; regions and tokens are each picture's own direction."""
    owners = torch.tensor([4, 0, 1, 4, 2, 5])  # picture 3 has none
    return FrozenFeatures(
        image=torch.eye(6, 32),
        size=torch.full((6, 2), 9),
        region=torch.eye(6, 32).repeat_interleave(2, 0),
        region_count=torch.full((6,), 2),
        xyxy=torch.tensor([0.0, 0.0, 5.0, 5.0]).expand(12, 4),
        area=torch.full((12,), 0.5),
        confidence=torch.ones(12),
        label=torch.zeros(12, dtype=torch.long),
        text=torch.eye(6, 32)[owners],
        token=torch.eye(6, 32)[owners].half(),
        token_count=torch.ones(6, dtype=torch.long),
        image_of_text=owners,
    )


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_the_probe_tells_a_teacher_that_looks_from_one_that_reads(
    weighted, seed, clip, plain
) -> None:
    regions = RegionSettings(weighted=weighted)
    looks = shortcut_probe(Looks(32).train(), clip, plain, regions, seed)
    assert (looks.own, looks.shuffled) == (1, 0)  # so nobody kept its own regions
    assert looks.blank <= 1 / 5
    reads = shortcut_probe(Reads(32), clip, plain, regions, seed)
    assert (reads.own, reads.shuffled, reads.blank) == (1, 1, 1)


def test_blank_regions_are_one_gray_picture(clip, plain, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        Looks,
        "answer",
        lambda self, x, share: (
            seen.append(x) or TeacherOutput(x, share[..., None], share[:, None], share)
        ),
    )
    shortcut_probe(Looks(32), clip, plain, RegionSettings(weighted=False))
    gray = clip.normalize(torch.full((1, 3, 32, 32), 128, dtype=torch.uint8))
    with torch.no_grad():
        expected = F.normalize(clip.model.encode_image(gray), dim=-1).expand(5, -1)
    assert sum(torch.allclose(x, expected, atol=1e-6) for x in seen) == 1


def test_the_probe_needs_two_pictures(clip, plain) -> None:
    one = replace(plain, image_of_text=torch.full((6,), 2))
    with pytest.raises(ValueError, match="two captioned pictures, got 1"):
        shortcut_probe(Looks(32), clip, one, RegionSettings())


# The region teacher


class SeesRegions(RegionTeacher):
    """Embeds the mean of the regions, or nearly nothing where there are none."""

    def forward(self, image_features, region_features, region_mask, region_boxes):
        share = region_mask / region_mask.sum(1, keepdim=True).clamp(min=1)
        return self.answer((share[..., None] * region_features).sum(1))

    def answer(self, embedding):
        return F.normalize(embedding + 1e-3, dim=-1), torch.ones(len(embedding), 1, 1)


class SeesTheWhole(SeesRegions):
    """Embeds the whole picture alone."""

    def forward(self, image_features, region_features, region_mask, region_boxes):
        return self.answer(image_features)


@pytest.mark.parametrize("regions", ["own", "none"])
def test_the_probe_tells_a_teacher_of_regions_from_one_of_whole_pictures(regions, plain) -> None:
    """Whatever it was trained to see: the probe asks for all three."""
    settings = RegionTeacherSettings(regions=regions)
    found = region_probe(SeesRegions(32), plain, settings)
    assert (found.own, found.shuffled, found.blank) == (1, 0, 0)
    found = region_probe(SeesTheWhole(32), plain, settings)
    assert (found.own, found.shuffled, found.blank) == (1, 1, 1)


def test_what_else_a_region_teacher_does_not_see_it_does_not_see_in_the_probe(plain) -> None:
    found = region_probe(SeesTheWhole(32), plain, RegionTeacherSettings(whole_picture=False))
    assert (found.own, found.shuffled, found.blank) == (0, 0, 0)


def test_a_region_probe_finds_a_caption_of_its_own_among_all(features) -> None:
    teacher, settings = RegionTeacher(32, 24, 3), RegionTeacherSettings(width=24, heads=3)
    found = region_probe(teacher, features, settings)
    for name, regions in (("own", "own"), ("shuffled", "another"), ("blank", "none")):
        embedding = embed_pictures(teacher, features, replace(settings, regions=regions))
        hits = []
        for image in features.image_of_text.unique().tolist():
            best = max(range(len(features.text)), key=lambda i: embedding[image] @ features.text[i])
            hits.append(features.image_of_text[best] == image)
        assert getattr(found, name) == pytest.approx(sum(map(float, hits)) / len(hits))


@pytest.mark.parametrize("weighted", [True, False])
def test_each_kind_of_teacher_has_the_probe_that_fits_it(weighted, clip, features) -> None:
    regions = RegionSettings(weighted=weighted)
    settings = RegionTeacherSettings(width=24, heads=3, boxes=False)
    run = TeacherRun(RegionTeacher(32, 24, 3), settings, [])
    expected = region_probe(run.teacher, features, settings)
    assert probe_teacher(run, clip, features, regions) == expected
    run = TeacherRun(MetaTeacher(32, 4), TeacherSettings(heads=4), [])
    expected = shortcut_probe(run.teacher, clip, features, regions)
    assert probe_teacher(run, clip, features, regions) == expected


# Compositions


@pytest.fixture
def drawn(tmp_path, monkeypatch, fake_detector) -> None:
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("weighted", [True, False])
def test_teachers_are_asked_as_by_a_slow_loop(weighted, clip, detector, drawn) -> None:
    regions = replace(PROFILES["pocket"].regions, weighted=weighted, whole_image=True)
    seen_by = RegionTeacherSettings(width=24, heads=3)
    region_teacher, teacher = RegionTeacher(32, 24, 3).train(), MetaTeacher(32, 2).train()
    runs = {
        "region_teacher": TeacherRun(region_teacher, seen_by, []),
        "teacher": TeacherRun(teacher, TeacherSettings(heads=2), []),
    }
    found = score_teachers(runs, clip, regions, 3)
    assert [tuple(kinds) for kinds in found.values()] == [KINDS, KINDS]
    for kind in KINDS:
        items = load_compositions(kind, 3)
        for n, i, j in itertools.product(range(3), (0, 1), (0, 1)):
            picture, caption = open_picture(items.paths[2 * n + i]), items.texts[2 * n + j]
            (seen,) = detector.detect([picture]).regions
            seen = Regions(
                torch.cat([seen.xyxy, torch.tensor([[0.0, 0, 256, 256]])]),
                torch.cat([seen.confidence, torch.ones(1)]),
                ("thing", "whole image"),
                (256, 256),
            )
            beside = read_caption(clip, picture, seen, caption)
            text = encode_texts(clip, [caption])[0]
            own = attend(teacher, beside, None if weighted else torch.full((2,), 0.5)).embedding
            assert found["teacher"][kind][n, i, j] == pytest.approx(float(own @ text), abs=1e-3)
            boxes = torch.cat([seen.xyxy / 256, seen.confidence[:, None]], dim=1)
            with torch.no_grad():
                own, _ = region_teacher(
                    encode_images(clip, [picture]),
                    beside.region_features[None],
                    torch.ones(1, 2, dtype=torch.bool),
                    boxes[None],
                )
            cosine = float(own @ text)
            assert found["region_teacher"][kind][n, i, j] == pytest.approx(cosine, abs=1e-5)


@pytest.fixture
def two_items() -> FrozenFeatures:
    """Two items; each picture's region and its caption's token are that caption's vector."""
    own = torch.eye(4, 32)
    return FrozenFeatures(
        image=own,
        size=torch.full((4, 2), 9),
        region=own,
        region_count=torch.ones(4, dtype=torch.long),
        xyxy=torch.tensor([0.0, 0.0, 5.0, 5.0]).expand(4, 4),
        area=torch.full((4,), 0.5),
        confidence=torch.ones(4),
        label=torch.zeros(4, dtype=torch.long),
        text=own,
        token=own.half(),
        token_count=torch.ones(4, dtype=torch.long),
        image_of_text=torch.arange(4),
    )


def test_a_teacher_that_copies_the_caption_tells_nothing_apart(
    clip, two_items, drawn, monkeypatch
) -> None:
    monkeypatch.setattr(module, "extract_features", lambda *_: two_items)
    regions = RegionSettings(weighted=False)
    teachers = {"reads": Reads(32), "looks": Looks(32)}
    runs = {name: TeacherRun(each, TeacherSettings(), []) for name, each in teachers.items()}
    found = score_teachers(runs, clip, regions, 2)
    for kind in KINDS:
        assert torch.equal(found["reads"][kind], torch.ones(2, 2, 2))  # near whatever it is told
        assert torch.equal(found["looks"][kind], torch.eye(2).expand(2, 2, 2))
        assert not any(right.any() for right in composition_scores(found["reads"][kind]).values())
        assert all(right.all() for right in composition_scores(found["looks"][kind]).values())
