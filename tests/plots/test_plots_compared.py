"""Figures of comparisons: gains, scores, hubs, rows of pictures."""

from itertools import pairwise

import pytest
import torch
from test_plots import HOSTILE, assert_harmless, shown

from dclip_kit import plots
from dclip_kit.evaluation.arms import Arm, Candidate
from dclip_kit.metrics import Gain, Interval, skewness
from dclip_kit.plots.panels import data_uri
from dclip_kit.plots.style import ARM_COLORS
from dclip_kit.search.hits import search_images


def gain(name: str, change: float, spread: float = 0.01, queries: int = 100) -> Gain:
    return Gain(
        name, queries, 0.2, 0.2 + change, Interval(change, change - spread, change + spread)
    )


GAINS = {
    "size": {
        "contrastive": [gain("small", 0.02), gain("large", 0.005, queries=40)],
        "dclip": [gain("small", -0.03), gain("large", 0.04, queries=40)],
    },
    "count": {"contrastive": [gain("one", 0.0)], "dclip": [gain("one", 0.01)]},
}


class TestGains:
    def test_points_and_bars_are_gains_in_hundredths(self) -> None:
        contrastive, dclip = plots.plot_gains(GAINS).data[-2:]
        assert list(contrastive.x) == pytest.approx([2, 0.5, 0])
        assert list(dclip.x) == pytest.approx([-3, 4, 1])
        assert list(dclip.error_x.array) == pytest.approx([1, 1, 1])
        assert list(dclip.error_x.arrayminus) == pytest.approx([1, 1, 1])
        assert dclip.error_x.color == ARM_COLORS["dclip"]

    def test_what_is_not_known_to_differ_is_hollow(self) -> None:
        contrastive, dclip = plots.plot_gains(GAINS).data[-2:]
        color = ARM_COLORS["contrastive"]
        assert list(contrastive.marker.color) == [color, "white", "white"]
        assert list(dclip.marker.color) == [ARM_COLORS["dclip"]] * 2 + ["white"]

    def test_rows_stand_apart_and_beside_their_names(self) -> None:
        figure = plots.plot_gains(GAINS)
        contrastive, dclip = figure.data[-2:]
        places = sorted([*contrastive.y, *dclip.y])
        assert min(b - a for a, b in pairwise(places)) >= 15
        (axis,) = [axis for axis in figure.select_yaxes() if axis.ticktext]
        assert list(axis.ticktext) == ["small (100)", "large (40)", "one"]
        middles = [(a + b) / 2 for a, b in zip(contrastive.y, dclip.y, strict=True)]
        assert list(axis.tickvals) == pytest.approx(middles)
        assert {"size", "count", "● contrastive", "● dclip"} == set(shown(figure))

    def test_zero_is_marked_and_in_view_wherever_the_gains_lie(self) -> None:
        far = {"a": {"dclip": [gain("x", 0.2)]}}
        figure = plots.plot_gains(far)
        (line,) = figure.layout.shapes
        low, high = figure.layout.xaxis.range
        assert line.x0 == line.x1 == 0 and low < 0 < 21 < high

    def test_an_arm_may_be_missing_under_a_heading(self) -> None:
        some = {"size": GAINS["size"], "count": {"dclip": GAINS["count"]["dclip"]}}
        contrastive, dclip = plots.plot_gains(some).data[-2:]
        assert (len(contrastive.x), len(dclip.x)) == (2, 3)

    def test_names_are_plain_text(self) -> None:
        assert_harmless(plots.plot_gains({HOSTILE: {HOSTILE: [gain(HOSTILE, 0.1)]}}))

    def test_bad_input_is_named(self) -> None:
        for nothing in ({}, {"a": {"dclip": []}}):
            with pytest.raises(ValueError, match="at least one gain"):
                plots.plot_gains(nothing)
        with pytest.raises(ValueError, match=r"same groups .*under 'size'.*\['small'\]"):
            plots.plot_gains({"size": GAINS["size"] | {"dclip": [gain("small", 0.1)]}})


class TestScores:
    SCORES = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.0]])
    OWNER = torch.tensor([0, 0, 1])

    def plot(self, **changes):
        settings = {"pictures": ["a", "b"], "captions": ["c", "d", HOSTILE]} | changes
        return plots.plot_scores(self.SCORES, self.OWNER, **settings)

    def test_every_score_stands_in_its_cell_and_pairs_are_framed(self) -> None:
        figure = self.plot()
        cells = {(note.x, note.y): note.text for note in figure.layout.annotations}
        assert cells[0, 0] == "<b>0.60</b>" and cells[1, 1] == "0.50" and len(cells) == 6
        framed = {
            (round((s.x0 + s.x1) / 2), round((s.y0 + s.y1) / 2))
            for s in figure.layout.shapes
            if s.line.width
        }
        assert framed == {(0, 0), (1, 0), (2, 1)}

    def test_a_higher_score_is_darker(self) -> None:
        shades = [shape.fillcolor for shape in self.plot().layout.shapes]
        red = [int(shade.removeprefix("rgb(").split(",")[0]) for shade in shades]
        order = self.SCORES.flatten().argsort(descending=True).tolist()
        assert [red[i] for i in order] == sorted(red) and len(set(red)) == 6

    def test_names_are_plain_text(self) -> None:
        assert_harmless(self.plot())

    def test_bad_input_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"of 1 pictures .*got a table of \(2, 3\)"):
            self.plot(pictures=["a"])
        with pytest.raises(ValueError, match="from 0 to 1"):
            plots.plot_scores(self.SCORES * 2, self.OWNER, ["a", "b"], ["c", "d", "e"])


COUNTS = {"clip": torch.tensor([1.0, 9, 0, 2]), HOSTILE: torch.tensor([3.0, 3, 3.5, 2.5])}


class TestOccurrences:
    def test_lines_fall_from_the_greatest_hub(self) -> None:
        figure = plots.plot_occurrences(COUNTS, 3)
        first, second = figure.data
        assert (list(first.x), list(first.y)) == ([1, 2, 3, 4], [9, 2, 1, 0])
        assert list(second.y) == [3.5, 3, 3, 2.5]
        (line,) = figure.layout.shapes
        assert line.y0 == line.y1 == 3
        text = f"clip, skewness {skewness(COUNTS['clip']):.2f}"
        assert text in shown(figure) and "mean 3" in shown(figure)

    def test_a_thousand_pictures_take_few_points(self) -> None:
        (line,) = plots.plot_occurrences({"clip": torch.arange(1000.0)}).data
        assert len(line.x) <= 60 and (line.x[0], line.x[-1]) == (1, 1000)
        assert list(line.y) == [1000.0 - place for place in line.x]

    def test_names_are_plain_text(self) -> None:
        assert_harmless(plots.plot_occurrences(COUNTS))

    def test_counts_of_different_things_are_an_error(self) -> None:
        for other in (torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 9, 0, 3])):
            with pytest.raises(ValueError, match="same queries and pictures"):
                plots.plot_occurrences(COUNTS | {"x": other})
        with pytest.raises(ValueError, match="got 0 different"):
            plots.plot_occurrences({})


class TestPictureRows:
    def test_rows_show_what_they_name(self, pictures) -> None:
        rows = [
            plots.PictureRow("clip", [2, 0], frozenset([0]), ["a note"], ["12 ×"]),
            plots.PictureRow("dclip", [1]),
        ]
        figure = plots.plot_picture_rows([("one", rows), ("two", rows[:1])], pictures)
        sources = [image.source for image in figure.layout.images]
        assert sources == [data_uri(pictures[i], 128) for i in (2, 0, 1, 2, 0)]
        assert len(figure.layout.shapes) == 4  # two rings, each with a white rim
        ring, image = figure.layout.shapes[1], figure.layout.images[1]
        assert (ring.xref, ring.yref) == (image.xref, image.yref)
        assert ring.x0 <= image.x <= image.x + image.sizex <= ring.x1
        assert shown(figure).count("12 ×") == 2
        assert {"one", "two", "clipa note", "dclip"} <= set(shown(figure))

    def test_names_and_notes_have_room_on_the_left(self, pictures) -> None:
        row = plots.PictureRow("clip", [0], notes=["a note of some length"])
        figure = plots.plot_picture_rows([("one", [row])], pictures)
        assert figure.layout.margin.l >= 7 * len("a note of some length")

    def test_all_text_is_plain(self, pictures) -> None:
        row = plots.PictureRow(HOSTILE, [0], notes=[HOSTILE], tags=[HOSTILE])
        assert_harmless(plots.plot_picture_rows([(HOSTILE, [row])], pictures))

    @pytest.mark.parametrize("images", [[], [6], [-1]])
    def test_a_row_of_nothing_or_of_unknown_pictures_is_an_error(self, pictures, images) -> None:
        with pytest.raises(ValueError, match="pictures from 0 to 5"):
            plots.plot_picture_rows([("a", [plots.PictureRow("clip", images)])], pictures)
        with pytest.raises(ValueError, match="got 0 rows"):
            plots.plot_picture_rows([], pictures)


THINGS = [frozenset(names) for names in (("dog",), ("cup",), ("cup", "dog"), (), (), ("dog",))]


class TestPictureSearch:
    def test_each_model_searches_with_its_own_vector(self, pictures) -> None:
        features = {"clip": torch.randn(6, 4), "dclip": torch.randn(6, 4)}
        figure = plots.plot_picture_search(0, pictures, features, THINGS, 3)
        sources = [image.source for image in figure.layout.images]
        expected, rings = [0], 0
        for each in features.values():
            found = search_images(each[0], each, 3, [0]).images
            expected += found
            right = len({2, 5} & set(found))
            rings += right
            assert f"{right} of 3" in " ".join(shown(figure))
        assert sources == [data_uri(pictures[i], 128) for i in expected]
        assert len(figure.layout.shapes) == 2 * rings
        assert "asked with this picture: dog" in shown(figure)
        assert shown(figure).count("dog") == rings

    def test_where_nothing_is_known_nothing_is_ringed(self, pictures) -> None:
        figure = plots.plot_picture_search(1, pictures, {"clip": torch.randn(6, 4)}, top_k=2)
        assert not figure.layout.shapes and len(figure.layout.images) == 3

    def test_bad_input_is_named(self, pictures) -> None:
        features = {"clip": torch.randn(6, 4)}
        with pytest.raises(ValueError, match=r"got \[5, 6\] and 0"):
            plots.plot_picture_search(0, pictures, features, THINGS[:5])
        with pytest.raises(ValueError, match=r"got \[6\] and 6"):
            plots.plot_picture_search(6, pictures, features)


def test_the_tradeoff_says_which_data_it_is_of(clip) -> None:
    path = (Candidate(0.0, 0.2, 1.0), Candidate(0.5, 0.3, 0.9))
    figure = plots.plot_tradeoff({"dclip": Arm("dclip", clip, 0.5, path)}, 0.9, split="test")
    notes = {note.text: note for note in figure.layout.annotations}
    assert notes["keep at least 90.0%"].xanchor == "left"  # at the left edge, its text stays inside
    assert len([text for text in notes if "α = 0.5" in text]) == 1
    assert figure.layout.xaxis.title.text.endswith("on test")
    assert figure.layout.yaxis.title.text.endswith("on test")
