"""Regions: what they refuse and mend, their crops, weights against a slow loop, and drawn boxes."""

import math

import pytest
import torch
from jaxtyping import TypeCheckError
from PIL import Image, ImageColor
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dclip_kit.models.regions import (
    BOX_COLORS,
    Regions,
    crop_regions,
    draw_boxes,
    label_colors,
    pad_rows,
    region_similarity,
    region_weights,
    scale_products,
)

# Where the shape check is on, it refuses some of these before our own sentence does.
REFUSED = (ValueError, TypeCheckError)


def make_regions(*boxes: list[float], size: tuple[int, int] = (100, 50)) -> Regions:
    count = len(boxes)
    return Regions(torch.tensor(boxes), torch.full((count,), 0.5), ("thing",) * count, size)


# Construction


def test_regions_know_their_length_and_share_of_the_picture() -> None:
    regions = make_regions(
        [0.0, 0.0, 50.0, 25.0], [0.0, 0.0, 100.0, 50.0], [99.5, 49.5, 100.0, 50.0]
    )
    assert len(regions) == 3
    assert regions.area.tolist() == pytest.approx([0.25, 1.0, 0.25 / 5000])
    assert not regions.is_whole_image


@pytest.mark.parametrize("size", [(1, 1), (100, 50), (12345, 6789)])
def test_the_whole_image_is_one_region(size) -> None:
    regions = Regions.whole_image(size)
    assert regions.xyxy.tolist() == [[0, 0, *size]]
    assert regions.confidence.tolist() == regions.area.tolist() == [1]
    assert (regions.label, regions.is_whole_image) == (("whole image",), True)


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ([0.0, 0.0, math.nan, 5.0], "finite"),
        ([0.0, 0.0, math.inf, 5.0], "finite"),
        ([9.0, 0.0, 5.0, 5.0], "ordered"),
        ([9.0, 9.0, 5.0, 5.0], "ordered"),  # twice the wrong way round is a positive area
        ([5.0, 0.0, 5.0, 5.0], "area"),
        ([0.0, 0.0, 1e-30, 1e-30], "area"),
        ([-1.0, 0.0, 5.0, 5.0], "inside 100x50"),
        ([0.0, 0.0, 5.0, 50.5], "inside 100x50"),
    ],
)
def test_bad_boxes_are_refused_by_name(box, says) -> None:
    with pytest.raises(
        ValueError, match=f"Expected boxes .*{says}.* as region 1; Regions.from_boxes"
    ):
        make_regions([0.0, 0.0, 1.0, 1.0], box)


@pytest.mark.parametrize("confidence", [-0.1, 1.1, math.nan])
def test_confidences_are_shares(confidence) -> None:
    with pytest.raises(ValueError, match="Expected confidences from 0 to 1"):
        Regions(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([confidence]), ("a",), (2, 2))


def test_what_does_not_fit_together_is_refused() -> None:
    box, one = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1)
    with pytest.raises(ValueError, match=r"a label for each, got shape \(1, 4\), 1 and 2"):
        Regions(box, one, ("a", "b"), (2, 2))
    with pytest.raises(ValueError, match="at least one region"):
        Regions(box[:0], one[:0], (), (2, 2))
    with pytest.raises(REFUSED):
        Regions(box[:, :3], one, ("a",), (2, 2))
    with pytest.raises(ValueError, match=r"shape \(region, 4\), .* got shape \(1, 3\)"):
        Regions.from_boxes.__wrapped__(Regions, box[:, :3], one, ["a"], (2, 2))
    with pytest.raises(ValueError, match="inside 0x2 pixels"):
        Regions(box, one, ("a",), (0, 2))


def test_raw_boxes_are_clipped_dropped_and_counted() -> None:
    raw = torch.tensor(
        [
            [10.0, 10.0, 20.0, 20.0],  # good
            [-5.0, -5.0, 10.0, 60.0],  # hangs over: clipped
            [120.0, 10.0, 130.0, 20.0],  # beside the picture
            [-9.0, -9.0, 0.0, 0.0],  # touches its corner
            [10.0, 10.0, 10.0, 20.0],  # no area
            [20.0, 20.0, 10.0, 10.0],  # reversed
            [math.nan, 0.0, 5.0, 5.0],
            [0.0, 0.0, math.inf, 5.0],  # clipping would make it look good
            [0.0, 0.0, 5.0, 5.0],  # good, but for its confidence
            [90.0, 40.0, 100.0, 50.0],  # good, at the border
        ]
    )
    confidence = torch.tensor([0.9, 0.8, *[0.7] * 6, math.nan, 0.1])
    regions = Regions.from_boxes(raw, confidence, list("abcdefghij"), (100, 50))
    assert regions.dropped == 7
    assert regions.label == ("a", "b", "j")
    assert regions.confidence.tolist() == pytest.approx([0.9, 0.8, 0.1])
    assert regions.xyxy.tolist() == [[10, 10, 20, 20], [0, 0, 10, 50], [90, 40, 100, 50]]


@pytest.mark.parametrize("boxes", [[], [[5.0, 5.0, 5.0, 9.0]]])
def test_no_box_left_is_the_whole_image(boxes) -> None:
    count = len(boxes)
    regions = Regions.from_boxes(
        torch.tensor(boxes).reshape(-1, 4), torch.ones(count), ["a"] * count, (10, 10)
    )
    assert regions.is_whole_image
    assert regions.dropped == count


def test_raw_confidences_outside_0_to_1_are_no_confidences() -> None:
    with pytest.raises(ValueError, match="Expected confidences from 0 to 1"):
        Regions.from_boxes(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([7.0]), ["a"], (2, 2))


# Crops


def coordinates(width: int, height: int) -> Image.Image:
    """A picture whose red is the column and whose green is the row."""
    picture = Image.new("RGB", (width, height))
    picture.putdata([(x, y, 7) for y in range(height) for x in range(width)])
    return picture


def corners(crop: Image.Image) -> tuple[int, int, int, int]:
    right, bottom = crop.getpixel((crop.width - 1, crop.height - 1))[:2]
    return (*crop.getpixel((0, 0))[:2], right + 1, bottom + 1)


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        ([10.0, 20.0, 30.0, 40.0], 0.0, (10, 20, 30, 40)),
        ([10.2, 20.9, 29.1, 39.9], 0.0, (10, 20, 30, 40)),  # widened to whole pixels
        ([10.0, 20.0, 30.0, 40.0], 0.25, (5, 15, 35, 45)),
        ([0.0, 0.0, 100.0, 50.0], 0.5, (0, 0, 100, 50)),
        ([80.0, 0.0, 100.0, 10.0], 0.5, (70, 0, 100, 15)),  # as far as the picture reaches
        ([99.5, 49.5, 100.0, 50.0], 0.0, (99, 49, 100, 50)),  # half a pixel in the corner
        ([0.0, 0.0, 0.1, 50.0], 0.0, (0, 0, 1, 50)),
    ],
)
def test_crops_hold_the_pixels_of_their_box(box, margin, expected) -> None:
    (crop,) = crop_regions(coordinates(100, 50), make_regions(box), margin, square=False)
    assert corners(crop) == expected


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        ([10.0, 20.0, 30.0, 40.0], 0.0, (10, 20, 30, 40)),  # it is one
        ([10.0, 20.0, 50.0, 30.0], 0.0, (10, 5, 50, 45)),
        ([10.0, 5.0, 15.0, 25.0], 0.0, (3, 5, 23, 25)),  # an odd number of pixels: right of it
        ([10.0, 0.0, 50.0, 10.0], 0.0, (10, 0, 50, 40)),  # moved down, where the picture is
        ([10.0, 45.0, 30.0, 50.0], 0.5, (0, 10, 40, 50)),  # margin first, then moved up
        ([96.0, 0.0, 100.0, 40.0], 0.0, (60, 0, 100, 40)),
        ([10.0, 20.0, 90.0, 30.0], 0.0, (10, 0, 90, 50)),  # longer than the picture is high
        ([0.0, 0.0, 100.0, 50.0], 0.5, (0, 0, 100, 50)),
    ],
)
def test_square_crops_are_widened_inside_the_picture(box, margin, expected) -> None:
    (crop,) = crop_regions(coordinates(100, 50), make_regions(box), margin)
    assert corners(crop) == expected


def test_crops_come_in_order_and_keep_the_mode() -> None:
    regions = make_regions([0.0, 0.0, 10.0, 10.0], [40.0, 0.0, 60.0, 50.0])
    crops = crop_regions(coordinates(100, 50).convert("L"), regions, square=False)
    assert [(crop.size, crop.mode) for crop in crops] == [((10, 10), "L"), ((20, 50), "L")]


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_a_picture_that_is_stored_turned_is_cut_and_drawn_upright(turn, tmp_path) -> None:
    """As a detector sees it."""
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}
    back[8] = Image.Transpose.ROTATE_270
    upright, exif, path = coordinates(60, 60), Image.Exif(), tmp_path / "turned.png"
    exif[0x0112] = turn
    stored = upright.transpose(back[turn]) if turn in back else upright
    stored.save(path, exif=exif)
    regions = make_regions([10.0, 20.0, 30.0, 50.0], size=(60, 60))
    with Image.open(path) as opened:
        (crop,) = crop_regions(opened, regions, square=False)
        drawn = draw_boxes(opened, regions)
    assert corners(crop) == (10, 20, 30, 50)
    assert drawn.tobytes() == draw_boxes(upright, regions).tobytes()


def test_crops_of_another_picture_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(100, 50\) pixels, got one of \(50, 100\)"):
        crop_regions(coordinates(50, 100), Regions.whole_image((100, 50)))


# Weights


def weigh_slowly(regions: list, tokens: list, areas: list, confidences: list) -> list[list[float]]:
    """The weights of DCLIP, one image, region, token and coordinate at a time."""
    rows = []
    for own, caption, area, confidence in zip(regions, tokens, areas, confidences, strict=True):
        products = []
        for region, a, c in zip(own.tolist(), area.tolist(), confidence.tolist(), strict=True):
            best = 0.0
            for token in caption.tolist():
                dot = sum(x * y for x, y in zip(region, token, strict=True))
                norms = math.sqrt(sum(x * x for x in region) * sum(y * y for y in token))
                best = max(best, dot / norms)
            products.append(a * c * best)
        total = sum(products)
        rows.append([p / total if total else 1 / len(products) for p in products])
    return rows


def sample(seed: int, images: int = 6, embed: int = 3) -> tuple[list, list, list, list]:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 6, (images,), generator=generator).tolist()
    lengths = torch.randint(1, 4, (images,), generator=generator).tolist()
    return (
        [torch.randn(count, embed, generator=generator) for count in counts],
        [torch.randn(length, embed, generator=generator) for length in lengths],
        [torch.rand(count, generator=generator) * 0.99 + 0.01 for count in counts],
        [torch.rand(count, generator=generator) for count in counts],
    )


def weigh(regions: list, tokens: list, areas: list, confidences: list, extra: int = 0) -> Tensor:
    """Pads, with `extra` more columns of rubbish under the mask, and weighs."""

    def widen(values: Tensor, fill: float) -> Tensor:
        return torch.cat(
            [values, values.new_full((len(values), extra, *values.shape[2:]), fill)], 1
        )

    def pad(items: list) -> Tensor:
        return pad_sequence(items, batch_first=True)

    region_mask, token_mask = (
        widen(pad([torch.ones(len(item)) for item in items]), 0.0).bool()
        for items in (regions, tokens)
    )
    features = widen(pad(regions), math.nan).masked_fill(~region_mask[..., None], math.nan)
    token_features = widen(pad(tokens), 9.0).masked_fill(~token_mask[..., None], math.inf)
    area, confidence = widen(pad(areas), math.nan), widen(pad(confidences), -5.0)
    return region_weights(features, token_features, area, confidence, region_mask, token_mask)


@pytest.mark.parametrize("seed", range(20))
def test_weights_are_those_of_a_slow_loop(seed) -> None:
    images = sample(seed)
    weights = weigh(*images)
    for row, expected in zip(weights, weigh_slowly(*images), strict=True):
        assert row[: len(expected)].tolist() == pytest.approx(expected, abs=1e-6)
        assert (row[len(expected) :] == 0).all()
        assert row.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("extra", [1, 7])
def test_padding_changes_no_weight(extra) -> None:
    images = sample(0)
    plain, padded = weigh(*images), weigh(*images, extra)
    torch.testing.assert_close(padded[:, : plain.shape[1]], plain)
    assert (padded[:, plain.shape[1] :] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_weights_follow_their_regions_and_ignore_the_order_of_tokens(seed) -> None:
    regions, tokens, areas, confidences = sample(seed)
    orders = [torch.randperm(len(own)) for own in regions]
    shuffled = weigh(
        [own[order] for own, order in zip(regions, orders, strict=True)],
        [caption[torch.randperm(len(caption))] for caption in tokens],
        [area[order] for area, order in zip(areas, orders, strict=True)],
        [values[order] for values, order in zip(confidences, orders, strict=True)],
    )
    plain = weigh(regions, tokens, areas, confidences)
    for row, order, original in zip(shuffled, orders, plain, strict=True):
        torch.testing.assert_close(row[: len(order)], original[order])


def test_weights_of_one_image_do_not_depend_on_the_others() -> None:
    images = sample(3)
    together = weigh(*images)
    for index in range(len(images[0])):
        alone = weigh(*[[part[index]] for part in images])
        torch.testing.assert_close(alone[0], together[index, : alone.shape[1]])


def test_weights_by_hand() -> None:
    """Cosines 1, 0.6 and -1 (counted as 0): products 0.5·0.8·1, 0.25·0.4·0.6 and 0."""
    features = torch.tensor([[[2.0, 0.0], [3.0, 4.0], [-1.0, 0.0]]])
    token, real = torch.tensor([[[5.0, 0.0]]]), torch.ones(1, 1, dtype=torch.bool)
    area, confidence = torch.tensor([[0.5, 0.25, 1.0]]), torch.tensor([[0.8, 0.4, 1.0]])
    assert region_similarity(features, token, real).tolist() == [pytest.approx([1, 0.6, 0])]
    weights = region_weights(features, token, area, confidence, real.expand(1, 3), real)
    assert weights.tolist() == [pytest.approx([0.4 / 0.46, 0.06 / 0.46, 0])]


def test_the_best_token_counts_and_negative_cosines_do_not() -> None:
    features = torch.tensor([[[1.0, 0.0], [1.0, -9.0]]])
    tokens = torch.tensor([[[-1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]])
    mask = torch.tensor([[True, True, False]])  # the best match of both is padding
    assert region_similarity(features, tokens, mask).tolist() == [pytest.approx([0.5**0.5, 0])]


@pytest.mark.parametrize("why", ["similarity", "confidence", "zero feature"])
def test_all_zero_products_weigh_the_same_and_keep_gradients_finite(why) -> None:
    features = torch.tensor([[[1.0, 0.0], [2.0, 1.0], [9.0, 9.0]]])
    features *= {"similarity": -1, "confidence": 1, "zero feature": 0}[why]
    features.requires_grad_()
    token, real = torch.tensor([[[1.0, 0.0]]]), torch.ones(1, 1, dtype=torch.bool)
    confidence = torch.full((1, 3), 0.0 if why == "confidence" else 0.7)
    mask = torch.tensor([[True, True, False]])
    weights = region_weights(features, token, torch.ones(1, 3), confidence, mask, real)
    assert weights.tolist() == [[0.5, 0.5, 0]]
    weights[0, 0].backward()
    assert features.grad.isfinite().all()


def test_half_precision_features_are_weighed_in_single() -> None:
    regions, tokens, areas, confidences = sample(1)
    rounded = [own.half() for own in regions], [caption.half() for caption in tokens]
    weights = weigh(*rounded, areas, confidences)
    assert weights.dtype == torch.float32
    expected = weigh(
        [own.float() for own in rounded[0]], [own.float() for own in rounded[1]], areas, confidences
    )
    torch.testing.assert_close(weights, expected)


def good_arguments() -> dict[str, Tensor]:
    return {
        "region_features": torch.ones(2, 3, 4),
        "token_features": torch.ones(2, 5, 4),
        "area": torch.ones(2, 3),
        "confidence": torch.ones(2, 3),
        "region_mask": torch.ones(2, 3, dtype=torch.bool),
        "token_mask": torch.ones(2, 5, dtype=torch.bool),
    }


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("region_mask", False, r"real region .* got none in \[1\]; give"),
        ("token_mask", False, r"real token .* got none in \[1\]; give"),
        ("region_features", math.nan, "finite"),
        ("token_features", math.inf, "finite"),
        ("area", -1.0, "at least 0"),
        ("area", math.nan, "finite"),
        ("confidence", -1.0, "at least 0"),
        ("confidence", math.inf, "finite"),
    ],
)
def test_bad_values_are_refused(name, value, says) -> None:
    arguments = good_arguments()
    arguments[name][1] = value
    with pytest.raises(ValueError, match=says):
        region_weights(**arguments)


def test_two_wrongs_make_no_right() -> None:
    arguments = good_arguments() | {"area": -torch.ones(2, 3), "confidence": -torch.ones(2, 3)}
    with pytest.raises(ValueError, match="at least 0"):
        region_weights(**arguments)


def test_products_are_scaled_within_each_image() -> None:
    product = torch.tensor([[1.0, 3, 0], [0, 0, 0], [2, 0, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    assert scale_products(product, mask).tolist() == [[0.25, 0.75, 0], [0.5, 0.5, 0], [1, 0, 0]]


# Padding


def test_padding_keeps_the_items_and_marks_the_rest() -> None:
    values, count = torch.randn(11, 4), torch.tensor([2, 5, 1, 3])
    start = torch.tensor([0, 2, 7, 8])
    chosen = torch.tensor([3, 0, 3, 2])
    padded, mask = pad_rows(values, count, chosen)
    assert padded.shape == (4, 3, 4) and mask.sum(1).tolist() == [3, 2, 3, 1]
    for row, image in enumerate(chosen.tolist()):
        own = values[start[image] : start[image] + count[image]]
        assert torch.equal(padded[row, : len(own)], own) and mask[row, : len(own)].all()
    assert (padded[~mask] == 0).all()
    numbers, same = pad_rows(values[:, 0], count, chosen)
    assert torch.equal(numbers, padded[..., 0]) and torch.equal(same, mask)


def test_what_is_not_a_number_stays_where_it_is() -> None:
    values = torch.tensor([[torch.nan], [1.0], [2.0]])
    padded, mask = pad_rows(values, torch.tensor([1, 2]), torch.arange(2))
    assert padded.isnan().tolist() == [[[True], [False]], [[False], [False]]]
    assert mask.tolist() == [[True, False], [True, True]] and padded[0, 1] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_padding_keeps_the_type(dtype) -> None:
    values, count = torch.ones(3, 2, dtype=dtype), torch.tensor([1, 2])
    assert pad_rows(values, count, torch.arange(2))[0].dtype == dtype


# Drawing

WHITE = (255, 255, 255)


def boxed(*boxes: list[float], label: str = "a", size: int = 100) -> Regions:
    count = len(boxes)
    return Regions(torch.tensor(boxes), torch.ones(count), (label,) * count, (size, size))


def colored(picture: Image.Image, color: str) -> Image.Image:
    """Which pixels have exactly this colour."""
    sought = ImageColor.getrgb(color)
    mask = Image.new("1", picture.size)
    mask.putdata([pixel == sought for pixel in picture.get_flattened_data()])
    return mask


def test_boxes_are_drawn_where_they_are_on_a_copy() -> None:
    picture = Image.new("RGB", (100, 100), "white")
    drawn = draw_boxes(picture, boxed([20.0, 40, 60, 90]), ["a"], ["#ff0000"])
    assert picture.getcolors() == [(10000, WHITE)]
    left, top, right, bottom = colored(drawn, "#ff0000").getbbox()
    assert (left, right, bottom) == (20, 61, 91) and top < 40  # the label stands above
    assert drawn.getpixel((40, 70)) == drawn.getpixel((80, 95)) == WHITE


def test_a_copy_of_another_size_has_its_boxes_in_the_same_place() -> None:
    picture = Image.new("RGB", (100, 100), "white")
    drawn = draw_boxes(picture, boxed([20.0, 40, 60, 90]), colors=["#ff0000"], side=300)
    assert drawn.size == (300, 300)
    left, _, right, bottom = colored(drawn, "#ff0000").getbbox()
    assert (left, right, bottom) == (60, 181, 271)


def test_a_label_is_the_detectors_word_and_confidence() -> None:
    picture, found = Image.new("RGB", (100, 100), "white"), boxed([20.0, 40, 60, 90])
    assert draw_boxes(picture, found) == draw_boxes(picture, found, ["a 1.00"])
    assert draw_boxes(picture, found) != draw_boxes(picture, found, ["a 0.50"])


def test_a_grey_picture_gets_coloured_boxes() -> None:
    drawn = draw_boxes(Image.new("L", (100, 100)), boxed([20.0, 40, 60, 90]), colors=["#ff0000"])
    assert drawn.getpixel((20, 80)) == (255, 0, 0)


def test_labels_of_boxes_that_lie_alike_do_not_hide_each_other() -> None:
    picture = Image.new("RGB", (100, 100), "white")
    same = boxed([20.0, 40, 60, 80], [20.0, 40, 60, 80])
    drawn = draw_boxes(picture, same, ["aa", "bb"], ["#ff0000", "#0000ff"])
    for color in ("#ff0000", "#0000ff"):
        box = colored(drawn, color).getbbox()
        assert box is not None and box[3] - box[1] > 8  # a label's height at least


def test_a_label_longer_than_the_picture_begins_inside_it() -> None:
    picture = Image.new("RGB", (100, 100), "white")
    for top in (0.0, 95.0):
        drawn = draw_boxes(picture, boxed([90.0, top, 99, 99], label="long " * 40))
        assert drawn.getpixel((0, 2 if top == 0 else 90)) != WHITE


def test_a_label_has_one_colour_wherever_it_stands() -> None:
    colors = label_colors(["dog", "cat", "dog"])
    assert colors[0] == colors[2] != colors[1] and set(colors) <= set(BOX_COLORS)
    assert len(label_colors([str(number) for number in range(20)])) == 20


def test_regions_of_another_picture_are_refused() -> None:
    with pytest.raises(ValueError, match=r"regions' \(100, 100\) pixels, got \(10, 10\)"):
        draw_boxes(Image.new("RGB", (10, 10)), boxed([0.0, 0, 5, 5]))


def test_boxes_are_drawn_on_slivers() -> None:
    for size, expected in (((1, 700), (1, 300)), ((700, 1), (300, 1))):
        drawn = draw_boxes(Image.new("RGB", size), Regions.whole_image(size), side=300)
        assert drawn.size == expected
