"""Things of scenes: listed, matched to regions, and named, on cases worked by hand."""

import pytest
import torch
from PIL import Image

from dclip_kit.config import RegionSettings
from dclip_kit.data.pocket.scenes import Scene, SceneObject
from dclip_kit.evaluation import objects as module
from dclip_kit.evaluation.objects import SceneObjects, list_objects, match_regions, name_objects
from dclip_kit.models.regions import Regions


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


def test_crops_are_cut_as_the_settings_say(clip, paths, colours, monkeypatch) -> None:
    sizes: list[tuple[int, int]] = []

    def encode(clip, pictures):
        sizes.extend(opened(picture).size for picture in pictures)
        return torch.eye(4)[:1].expand(len(pictures), 4)

    monkeypatch.setattr(module, "encode_images", encode)
    things, regions = (
        objects((0, RED, "small", (50, 50, 70, 90))),
        [found((50.0, 50.0, 70.0, 90.0))],
    )
    for settings in (None, RegionSettings(margin=0.5, square=False)):
        name_objects(clip, paths[:1], things, regions, colours, settings)
    assert sizes == [(256, 256), (48, 48), (256, 256), (40, 80)]


def test_paths_and_regions_belong_together(clip, paths, colours) -> None:
    things = objects((0, RED, "small", CORNER))
    with pytest.raises(ValueError, match="each of 3 pictures, got 1"):
        name_objects(clip, paths, things, [found((0.0, 0.0, 64.0, 64.0))], colours)
