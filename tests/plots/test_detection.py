"""Figures of what detectors find and CLIP gets: they hold what was given."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from test_panels import decode, look_alike
from test_style import HOSTILE, assert_harmless, shown, texts

from dclip_kit import plots
from dclip_kit.models.regions import Regions, draw_boxes


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
        with pytest.raises(ValueError, match=r"as many regions and captions.*got 2, 3, None"):
            plots.plot_regions(pictures[:2], regions)
        with pytest.raises(ValueError, match="got 3, 3, 1"):
            plots.plot_regions(pictures[:3], regions, ["a"])
        with pytest.raises(ValueError, match="got 0, 0"):
            plots.plot_regions([], [])
        with pytest.raises(ValueError, match="columns"):
            plots.plot_regions(pictures[:3], regions, columns=0)
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

    def test_crops_left_out_are_counted(self, pictures, regions, clip) -> None:
        figure = plots.plot_student_view(pictures[0], regions[0], clip, max_crops=1)
        assert len(figure.layout.annotations) == 1
        assert any("(1 of 2 shown)" in text for text in shown(figure))

    def test_labels_are_plain_text(self, pictures, regions, clip) -> None:
        marked = replace(regions[1], label=("<b>y</b>",))
        figure = plots.plot_student_view(pictures[1], marked, clip)
        assert "1 &lt;b&gt;y&lt;/b&gt;" in texts(figure)

    def test_bad_input_is_named(self, pictures, regions, clip) -> None:
        with pytest.raises(ValueError, match=r"\(40, 30\) pixels, got \(30, 40\)"):
            plots.plot_student_view(pictures[1], regions[0], clip)
        with pytest.raises(ValueError, match="max_crops from 1, got 0"):
            plots.plot_student_view(pictures[0], regions[0], clip, max_crops=0)


def square(*sides: float, confidence: float = 0.95) -> Regions:
    """One box a side, in the corner of a picture of 100 pixels a side."""
    boxes = torch.tensor([[0.0, 0, side, side] for side in sides])
    labels = ("thing",) * len(sides)
    return Regions(boxes, torch.full((len(sides),), confidence), labels, (100, 100))


def bars(figure) -> list[list[float]]:
    return [list(trace.y) for trace in figure.data if trace.type == "bar"]


class TestRegionStatistics:
    def test_shares_of_pictures_and_of_regions(self) -> None:
        regions = [
            square(10, 10, 20),  # areas of 1, 1 and 4 %
            square(60, confidence=0.5),  # 36 %
            square(60, confidence=1.0),
            Regions.whole_image((100, 100)),
        ]
        figure = plots.plot_region_statistics(regions)
        counts, areas, confidences = bars(figure)
        assert counts == [0.25, 0.5, 0, 0.25]
        assert areas == pytest.approx([0.4, 0, 0.2, 0, 0, 0.4])  # the whole picture is no region
        assert confidences == pytest.approx([0, 0, 0, 0, 0, 0.2, 0, 0, 0, 0.8])
        assert [trace.x[-1] for trace in figure.data] == ["3", "100", "0.9"]

    def test_nothing_found_anywhere_is_drawn(self) -> None:
        figure = plots.plot_region_statistics([Regions.whole_image((9, 9))] * 2)
        assert bars(figure) == [[1.0], [0.0] * 6, [0.0] * 10]

    def test_each_panel_says_of_what_its_bars_are_shares(self) -> None:
        figure = plots.plot_region_statistics([square(10)])
        titles = [note.text for note in figure.layout.annotations]
        assert titles == ["share of pictures", "share of regions", "share of regions"]
        assert len(figure.to_json()) < 10_000

    def test_no_picture_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one picture"):
            plots.plot_region_statistics([])


class TestAveragePrecision:
    def test_bars_fall_below_their_mean(self) -> None:
        validation = {"map50": 0.7, "map50_by_category": {"toy": 0.6, "animal": 0.8, HOSTILE: 0.7}}
        figure = plots.plot_average_precision(validation)
        (bars,) = figure.data
        assert list(bars.x) == [0.7, 0.8, 0.7, 0.6]
        assert (bars.y[0], bars.y[1], bars.y[3]) == ("mean of all", "animal", "toy")
        assert bars.marker.color[0] != bars.marker.color[1]
        assert_harmless(figure)

    @pytest.mark.parametrize(
        "validation", [{}, {"map50": 0.7}, {"map50": 0.7, "map50_by_category": {}}]
    )
    def test_a_validation_of_something_else_is_refused(self, validation) -> None:
        with pytest.raises(ValueError, match="map50 and map50_by_category"):
            plots.plot_average_precision(validation)
