"""Figures of regions, weightings and attention: the numbers they hold are those given."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from dclip_kit import plots
from dclip_kit.evaluation.inspection import CaptionedRegions, MaskingEffect
from dclip_kit.models.regions import Regions, draw_boxes
from dclip_kit.models.teacher import TeacherOutput
from dclip_kit.plots import detection
from tests.plots.test_style import HOSTILE, assert_harmless, decode, look_alike, shown, texts


@pytest.fixture
def regions(pictures) -> list[Regions]:
    """Two boxes in the first picture, one in the second, none found in the third."""
    two = torch.tensor([[2.0, 3, 20, 25], [5, 1, 29, 11]])
    return [
        Regions(two, torch.tensor([0.9, 0.25]), ("dog", "cat"), pictures[0].size),
        Regions(two[:1], torch.tensor([0.5]), (HOSTILE,), pictures[1].size),
        Regions.whole_image(pictures[2].size),
    ]


class TestRegions:
    def test_each_picture_has_its_boxes_labels_and_caption(self, pictures, regions) -> None:
        figure = plots.plot_regions(pictures[:3], regions, ["a", "b", "c"], columns=3)
        labels = [["dog 0.90", "cat 0.25"], [f"{HOSTILE} 0.50"], ["whole image 1.00"]]
        assert len(figure.data) == 3
        for image, picture, found, label in zip(
            figure.data, pictures, regions, labels, strict=False
        ):
            expected = draw_boxes(picture, found, label, side=300, font_size=14)
            assert look_alike(decode(image.source), expected)
        assert [axis.title.text for axis in figure.select_xaxes()] == ["a", "b", "c"]

    def test_captions_are_plain_text(self, pictures, regions) -> None:
        figure = plots.plot_regions(pictures[:3], regions, [HOSTILE, "%{x} $y$", "c"], columns=2)
        assert_harmless(figure)
        assert {"%{x} $y$", "c"} <= set(shown(figure))

    def test_a_page_of_pictures_is_small(self) -> None:
        noise = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8)
        pictures = [Image.fromarray(each.numpy()) for each in noise]
        found = [Regions.whole_image((32, 32))] * 8
        assert len(plots.plot_regions(pictures, found, ["a"] * 8).to_json()) < 200_000

    def test_bad_input_is_named(self, pictures, regions) -> None:
        with pytest.raises(ValueError, match="argument 2 is longer"):
            plots.plot_regions(pictures[:2], regions)
        with pytest.raises(ValueError, match="argument 3 is shorter"):
            plots.plot_regions(pictures[:3], regions, ["a"])
        with pytest.raises(ValueError, match=r"regions' \(40, 30\) pixels, got \(32, 32\)"):
            plots.plot_regions([pictures[2]], regions[:1])


class TestStudentView:
    def test_it_shows_the_preprocessed_pixels(self, pictures, regions, clip) -> None:
        figure = plots.plot_student_view(pictures[0], regions[0], clip, margin=0.0)
        boxes, seen, crops = [decode(image.source) for image in figure.data]
        assert boxes.size == (300, 225) and seen.size == (300, 300)
        side = crops.width // 2
        crop = crops.crop((10, 10, side - 10, side - 10))
        first = pictures[0].crop((2, 3, 20, 25))
        for image, original in ((seen, pictures[0]), (crop, first)):
            small = image.resize((32, 32), Image.Resampling.BOX)
            pixels = clip.to_pixels(original).permute(1, 2, 0).numpy()
            difference = (
                torch.tensor(list(small.tobytes())).float() - torch.tensor(pixels).flatten().float()
            )
            assert difference.abs().mean() < 12
        assert "The picture: 40 × 30pixels" in shown(figure)
        assert {"1 dog", "2 cat"} <= set(shown(figure))

    def test_crops_left_out_are_counted(self, pictures, regions, clip, monkeypatch) -> None:
        monkeypatch.setattr(detection, "_MOST_CROPS", 1)
        figure = plots.plot_student_view(pictures[0], regions[0], clip)
        assert len(figure.layout.annotations) == 1
        assert any("(1 of 2 shown)" in text for text in shown(figure))

    def test_labels_are_plain_text(self, pictures, regions, clip) -> None:
        marked = replace(regions[1], label=("<b>y</b>",))
        figure = plots.plot_student_view(pictures[1], marked, clip)
        assert "1 &lt;b&gt;y&lt;/b&gt;" in texts(figure)

    def test_bad_input_is_named(self, pictures, regions, clip) -> None:
        with pytest.raises(ValueError, match=r"\(40, 30\) pixels, got one of \(30, 40\)"):
            plots.plot_student_view(pictures[1], regions[0], clip)


class TestPatches:
    def test_a_patch_is_the_brighter_the_more_it_gets(self, pictures, regions, clip) -> None:
        shares = torch.zeros(4, 4)
        shares[1, 2], shares[3, 0] = 0.75, 0.25
        figure = plots.plot_patches(pictures[0], regions[0], shares, clip)
        boxes, lit = [decode(image.source) for image in figure.data]
        assert boxes.size == (300, 225) and lit.size == (300, 300)
        seen = torch.tensor(list(lit.resize((4, 4), Image.Resampling.BOX).tobytes())).view(4, 4, 3)
        pixels = clip.to_pixels(pictures[0]).float().unfold(1, 8, 8).unfold(2, 8, 8)
        mean = pixels.mean((3, 4)).permute(1, 2, 0)
        expected = mean * (0.25 + 0.75 * shares / shares.max())[..., None]
        assert (seen - expected).abs().max() < 10
        assert "the brightest with 75%" in " ".join(shown(figure)).replace("<br>", " ")

    def test_another_pictures_regions_are_refused(self, pictures, regions, clip) -> None:
        with pytest.raises(ValueError, match=r"\(40, 30\) pixels, got \(30, 40\)"):
            plots.plot_patches(pictures[1], regions[0], torch.ones(4, 4) / 16, clip)


def square(*sides: float, confidence: float = 0.95) -> Regions:
    """One box a side, in the corner of a picture of 100 pixels a side."""
    boxes = torch.tensor([[0.0, 0, side, side] for side in sides])
    labels = ("thing",) * len(sides)
    return Regions(boxes, torch.full((len(sides),), confidence), labels, (100, 100))


class TestAveragePrecision:
    def test_bars_fall_below_their_mean(self) -> None:
        validation = {"map50": 0.7, "map50_by_category": {"toy": 0.6, "animal": 0.8, HOSTILE: 0.7}}
        figure = plots.plot_average_precision(validation)
        (bars,) = figure.data
        assert list(bars.x) == [0.7, 0.8, 0.7, 0.6]
        assert list(bars.text) == ["70.0", "80.0", "70.0", "60.0"]
        assert figure.layout.yaxis.autorange == "reversed"  # the first on top
        assert (bars.y[0], bars.y[1], bars.y[3]) == ("mean of all", "animal", "toy")
        assert bars.marker.color[0] != bars.marker.color[1]
        assert_harmless(figure)


@pytest.fixture
def captioned(pictures) -> CaptionedRegions:
    """Two regions of the first picture beside a caption of three tokens."""
    boxes = torch.tensor([[2.0, 3, 20, 25], [5, 1, 29, 11]])
    return CaptionedRegions(
        Regions(boxes, torch.tensor([0.9, 0.25]), ("dog", HOSTILE), pictures[0].size),
        HOSTILE,
        ("a", HOSTILE, "dog"),
        torch.eye(2, 4),
        torch.eye(3, 4),
        torch.tensor([0.5, 1.0]),
        torch.tensor([0.25, 0.75]),
    )


@pytest.fixture
def output() -> TeacherOutput:
    regions = torch.tensor([[[0.125, 0.25, 0.625], [0.5, 0.25, 0.25]]])
    tokens = torch.tensor([[[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]]])
    return TeacherOutput(torch.eye(1, 4), regions, tokens, torch.tensor([[0.5, 0.5]]))


class TestRegionWeights:
    def plot(self, pictures, captioned, weight=(0.125, 0.875)):
        return plots.plot_region_weights(pictures[0], captioned, torch.tensor(weight))

    def test_bars_are_the_numbers_by_falling_weight(self, pictures, captioned) -> None:
        figure = self.plot(pictures, captioned)
        bars = [list(trace.x) for trace in figure.data if trace.type == "bar"]
        area = captioned.regions.area.tolist()
        expected = [area[::-1], [0.25, 0.9], [1.0, 0.5], [0.875, 0.125]]
        assert torch.allclose(torch.tensor(bars), torch.tensor(expected))
        assert figure.data[1].y[1] == "2 dog" and figure.data[1].y[0].startswith("1 ")
        assert [note.text for note in figure.layout.annotations] == [
            *("area", "confidence", "similarity", "weight")
        ]
        assert "weight = area × confidence × similarity" in figure.layout.title.text
        own = plots.plot_region_weights(pictures[0], captioned)
        assert list(own.data[-1].x) == [0.75, 0.25]

    def test_boxes_are_numbered_by_weight_and_darker_the_more_they_weigh(
        self, pictures, captioned
    ) -> None:
        figure = self.plot(pictures, captioned)
        colors = figure.data[-1].marker.color
        shades = [sum(map(int, color[4:-1].split(","))) for color in colors]
        assert shades[0] < shades[1]
        expected = draw_boxes(
            pictures[0], captioned.regions, ["2", "1"], colors[::-1], 300, font_size=18
        )
        assert look_alike(decode(figure.data[0].source), expected)

    def test_uniform_and_zero_weights_are_drawn(self, pictures, captioned) -> None:
        for value in (0.5, 0.0):
            self.plot(pictures, captioned, [value, value])

    def test_the_caption_is_plain_text(self, pictures, captioned) -> None:
        assert_harmless(self.plot(pictures, captioned))

    def test_a_picture_of_another_size_is_named(self, pictures, captioned) -> None:
        with pytest.raises(ValueError, match=r"\(40, 30\) pixels, got \(30, 40\)"):
            self.plot(pictures[1:], captioned)


class TestAttention:
    def test_rows_are_regions_by_weight_and_columns_tokens_in_both_panels(
        self, pictures, captioned, output
    ) -> None:
        figure = plots.plot_attention(pictures[0], captioned, output)
        seen, told = (trace for trace in figure.data if trace.type == "heatmap")
        assert [list(row) for row in seen.z] == [[0.5, 0.25, 0.25], [0.125, 0.25, 0.625]]
        assert [list(row) for row in told.z] == [[0, 0.5, 0.75], [1, 0.5, 0.25]]
        assert [list(row) for row in told.text] == [["0", "50", "75"], ["100", "50", "25"]]
        assert seen.y[1].startswith("2 dog")
        expected = draw_boxes(pictures[0], captioned.regions, ["2", "1"], side=400, font_size=18)
        assert look_alike(decode(figure.data[0].source), expected)
        assert "tokens → regions: each column sums to 100 %" in shown(figure)
        assert_harmless(figure)

    def test_thin_attention_stays_pale(self, pictures, captioned, output) -> None:
        thin = replace(output, region_to_token=torch.full((1, 2, 3), 1 / 3))
        figure = plots.plot_attention(pictures[0], captioned, thin)
        seen, told = (trace for trace in figure.data if trace.type == "heatmap")
        assert (seen.zmin, seen.zmax) == (0, 0.5) and (told.zmin, told.zmax) == (0, 1)

    def test_bad_input_is_named(self, pictures, captioned, output) -> None:
        more = {"region_to_token": torch.ones(1, 2, 4), "token_to_region": torch.ones(1, 4, 2)}
        with pytest.raises(ValueError, match=r"\(1, 2, 3\), got \(1, 2, 4\); attend to these"):
            plots.plot_attention(pictures[0], captioned, replace(output, **more))
        with pytest.raises(ValueError, match=r"\(40, 30\) pixels, got \(30, 40\)"):
            plots.plot_attention(pictures[1], captioned, output)


class TestMasking:
    def test_each_pair_is_two_points(self) -> None:
        effect = MaskingEffect(
            torch.tensor([0.0, 0.5]),
            torch.tensor([1.0, 1.0]),
            torch.tensor([1.0, -0.25]),
            torch.tensor([0.0, 0.5]),
        )
        figure = plots.plot_masking(effect)
        points = [(list(trace.x), list(trace.y)) for trace in figure.data]
        assert points == [([0, 0.5], [1, 1]), ([0, 0.5], [1, -0.25])]
        names = [trace.name for trace in figure.data]
        assert names == ["padding masked", "padding attended to"] and figure.layout.showlegend
