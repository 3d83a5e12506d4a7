"""Figures of weightings, attention and padding: the numbers they hold are those given."""

from dataclasses import replace

import pytest
import torch
from test_panels import decode, look_alike
from test_style import HOSTILE, assert_harmless, shown

from dclip_kit import plots
from dclip_kit.evaluation.inspection import CaptionedRegions, MaskingEffect
from dclip_kit.models.regions import Regions, draw_boxes
from dclip_kit.models.teacher import TeacherOutput


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
    def plot(self, pictures, captioned, caption="a cat", **changes):
        quantities = {
            "area": torch.tensor([0.3, 0.2]),
            "confidence": torch.tensor([0.9, 0.25]),
            "similarity": torch.tensor([0.0, 0.5]),
            "weight": torch.tensor([0.125, 0.875]),
        }
        return plots.plot_region_weights(
            pictures[0], captioned.regions, **quantities | changes, caption=caption
        )

    def test_bars_are_the_numbers_by_falling_weight(self, pictures, captioned) -> None:
        figure = self.plot(pictures, captioned)
        bars = [list(trace.x) for trace in figure.data if trace.type == "bar"]
        expected = [[0.2, 0.3], [0.25, 0.9], [0.5, 0.0], [0.875, 0.125]]
        assert torch.allclose(torch.tensor(bars), torch.tensor(expected))
        assert figure.data[1].y[1] == "2 dog" and figure.data[1].y[0].startswith("1 ")
        assert [note.text for note in figure.layout.annotations] == [
            *("area", "confidence", "similarity", "weight")
        ]
        assert "weight = area × confidence × similarity" in figure.layout.title.text

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
            self.plot(pictures, captioned, weight=torch.full((2,), value))

    def test_the_caption_is_plain_text(self, pictures, captioned) -> None:
        assert_harmless(self.plot(pictures, captioned, HOSTILE))

    def test_bad_input_is_named(self, pictures, captioned) -> None:
        with pytest.raises(ValueError, match="each of 2 regions, got 3 for weight"):
            self.plot(pictures, captioned, weight=torch.ones(3))
        with pytest.raises(ValueError, match=r"finite.*similarity"):
            self.plot(pictures, captioned, similarity=torch.tensor([0.1, float("nan")]))


class TestWeightings:
    def test_columns_share_an_order_and_a_scale(self, captioned) -> None:
        other = torch.tensor([0.9, 0.1])
        figure = plots.plot_weightings(captioned.regions, {"own": captioned.weight, "b": other})
        columns = [list(trace.x) for trace in figure.data if trace.type == "bar"]
        assert torch.allclose(torch.tensor(columns), torch.tensor([[0.75, 0.25], [0.1, 0.9]]))
        assert [trace.y[1] for trace in figure.data] == ["2 dog"] * 2
        assert [axis.showticklabels for axis in figure.select_yaxes()] == [True, False]
        assert len({axis.range for axis in figure.select_xaxes()}) == 1

    def test_names_are_plain_text_and_may_be_alike(self, captioned) -> None:
        names = {HOSTILE: captioned.weight, HOSTILE + " ": captioned.weight}
        figure = plots.plot_weightings(captioned.regions, names)
        assert_harmless(figure)
        assert sum(trace.type == "bar" for trace in figure.data) == 2

    def test_bad_input_is_named(self, captioned) -> None:
        with pytest.raises(ValueError, match="at least one weighting"):
            plots.plot_weightings(captioned.regions, {})
        with pytest.raises(ValueError, match="each of 2 regions, got 3 for mine"):
            plots.plot_weightings(captioned.regions, {"mine": torch.ones(3)})


class TestAttention:
    def test_rows_are_regions_and_columns_tokens_in_both_panels(
        self, pictures, captioned, output
    ) -> None:
        figure = plots.plot_attention(pictures[0], captioned, output)
        seen, told = (trace for trace in figure.data if trace.type == "heatmap")
        assert [list(row) for row in seen.z] == [[0.125, 0.25, 0.625], [0.5, 0.25, 0.25]]
        assert [list(row) for row in told.z] == [[1, 0.5, 0.25], [0, 0.5, 0.75]]
        assert [list(row) for row in told.text] == [["100", "50", "25"], ["0", "50", "75"]]
        expected = draw_boxes(pictures[0], captioned.regions, ["1", "2"], side=400, font_size=18)
        assert look_alike(decode(figure.data[0].source), expected)
        assert "tokens → regions: each column sums to 100 %" in shown(figure)
        assert_harmless(figure)

    def test_thin_attention_stays_pale(self, pictures, captioned, output) -> None:
        thin = replace(output, region_to_token=torch.full((1, 2, 3), 1 / 3))
        figure = plots.plot_attention(pictures[0], captioned, thin)
        seen, told = (trace for trace in figure.data if trace.type == "heatmap")
        assert (seen.zmin, seen.zmax) == (0, 0.5) and (told.zmin, told.zmax) == (0, 1)

    def test_bad_input_is_named(self, pictures, captioned, output) -> None:
        free = replace(output, region_to_token=None, token_to_region=None)
        with pytest.raises(ValueError, match="caption-free"):
            plots.plot_attention(pictures[0], captioned, free)
        more = {"region_to_token": torch.ones(1, 2, 4), "token_to_region": torch.ones(1, 4, 2)}
        other = replace(output, **more)
        with pytest.raises(ValueError, match=r"\(1, 2, 3\), got \(1, 2, 4\)"):
            plots.plot_attention(pictures[0], captioned, other)
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
