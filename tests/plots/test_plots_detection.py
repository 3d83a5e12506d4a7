"""Figures of what detectors find and CLIP names: the numbers they hold are those given."""

import pytest
import torch
from test_plots import HOSTILE, assert_harmless, shown

from dclip_kit import plots
from dclip_kit.evaluation.objects import NamedObjects, SceneObjects
from dclip_kit.metrics import paired_bootstrap
from dclip_kit.models.regions import Regions


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
        counts, areas, confidences = bars(plots.plot_region_statistics(regions))
        assert counts == [0.25, 0.5, 0, 0.25]
        assert areas == pytest.approx([0.4, 0, 0.2, 0, 0, 0.4])  # the whole picture is no region
        assert confidences == pytest.approx([0, 0, 0, 0, 0, 0.2, 0, 0, 0, 0.8])

    def test_nothing_found_anywhere_is_drawn(self) -> None:
        figure = plots.plot_region_statistics([Regions.whole_image((9, 9))] * 2)
        assert bars(figure) == [[1.0], [0.0] * 6, [0.0] * 10]

    def test_each_panel_says_of_what_its_bars_are_shares(self) -> None:
        figure = plots.plot_region_statistics([square(10)])
        assert shown(figure) == ["share of pictures", "share of regions", "share of regions"]
        assert len(figure.to_json()) < 10_000

    def test_no_picture_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one picture"):
            plots.plot_region_statistics([])


class TestAveragePrecision:
    def test_bars_fall_below_their_mean(self) -> None:
        validation = {"map50": 0.7, "map50_by_category": {"toy": 0.6, "animal": 0.8, HOSTILE: 0.7}}
        figure = plots.plot_average_precision(validation)
        assert list(figure.data[0].x) == [0.7, 0.8, 0.7, 0.6]
        names = figure.layout.yaxis.ticktext
        assert (names[0], names[1], names[3]) == ("<b>mean of all</b>", "animal", "toy")
        assert_harmless(figure)

    @pytest.mark.parametrize(
        "validation", [{}, {"map50": 0.7}, {"map50": 0.7, "map50_by_category": {}}]
    )
    def test_a_validation_of_something_else_is_refused(self, validation) -> None:
        with pytest.raises(ValueError, match="map50 and map50_by_category"):
            plots.plot_average_precision(validation)


@pytest.fixture
def objects() -> SceneObjects:
    """Twelve things, of two sizes, in five pictures."""
    size = ("large", "small") * 6
    return SceneObjects(torch.arange(12) % 5, torch.zeros(12).long(), size, torch.ones(12, 4))


@pytest.fixture
def named() -> NamedObjects:
    number = torch.arange(12)
    return NamedObjects(number != 1, number % 4 == 0, number % 3 > 0)


class TestNaming:
    def test_points_are_shares_of_things_of_a_size(self, named, objects) -> None:
        found, crop, picture = plots.plot_naming(named, objects).data
        # Small things are the odd ones and come first: 1, 3, 5, 7, 9, 11.
        assert list(found.y) == pytest.approx([5 / 6, 1])
        assert list(crop.y) == pytest.approx([4 / 6, 4 / 6])
        assert list(picture.y) == pytest.approx([0, 3 / 6])
        small = objects.of_size("small")
        hits = named.by_crop[small].float()
        interval = paired_bootstrap(0 * hits, hits, objects.image[small])
        assert crop.y[0] + crop.error_y.array[0] == pytest.approx(interval.high)
        assert crop.y[0] - crop.error_y.arrayminus[0] == pytest.approx(interval.low)

    def test_sizes_that_occur_are_named_with_their_number(self, named, objects) -> None:
        figure = plots.plot_naming(named, objects)
        assert list(figure.layout.xaxis.ticktext) == [
            "small<br>40–54 px<br>6 things",
            "large<br>108–136 px<br>6 things",
        ]
        assert {"named from its crop", "named from the picture"} <= set(shown(figure))

    def test_answers_about_other_things_are_refused(self, objects) -> None:
        other = NamedObjects(*[torch.ones(3).bool()] * 3)
        with pytest.raises(ValueError, match="got 3 and 12"):
            plots.plot_naming(other, objects)
