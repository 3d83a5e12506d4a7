"""Figures of what was measured: the numbers they hold are those given."""

import pytest
import torch

from dclip_kit import plots
from dclip_kit.config import CONTROL
from dclip_kit.evaluation.arms import Arm, ArmResult
from dclip_kit.evaluation.evaluate import ZeroShot
from dclip_kit.evaluation.inspection import NamedObjects, SceneObjects, ShortcutProbe
from dclip_kit.metrics import Gain, Interval, paired_bootstrap, retrieval_metrics, skewness
from dclip_kit.plots.style import ARM_COLORS
from tests.plots.test_style import HOSTILE, assert_harmless, shown


@pytest.fixture
def results(clip) -> dict[str, ArmResult]:
    """Three arms' results on seven random pictures with two captions each."""
    image_of_text = torch.arange(7).repeat_interleave(2)
    captions = torch.randn(14, 8)
    nothing = ZeroShot(torch.tensor([True]), 1.0, 1.0, None)
    return {
        name: ArmResult(
            Arm(clip),
            retrieval_metrics(torch.randn(7, 8), captions, image_of_text, (1, 5)),
            nothing,
            nothing,
        )
        for name in ("clip", CONTROL, HOSTILE)
    }


class TestRecall:
    def test_bars_are_recalls_with_intervals_over_images(self, results) -> None:
        figure = plots.plot_recall(results)
        for column, way in enumerate(("text_to_image", "image_to_text")):
            for bars, result in zip(
                figure.data[3 * column : 3 * column + 3], results.values(), strict=True
            ):
                found = getattr(result.retrieval, way)
                assert list(bars.x) == [found.recall_at[1], found.recall_at[5]]
                assert list(bars.y) == ["Recall@1", "Recall@5"]
                hits = found.hits(1).float()
                interval = paired_bootstrap(0 * hits, hits, found.image_of_query)
                assert bars.x[0] + bars.error_x.array[0] == pytest.approx(interval.high)
                assert bars.x[0] - bars.error_x.arrayminus[0] == pytest.approx(interval.low)
        assert [bars.showlegend for bars in figure.data] == [True] * 3 + [False] * 3

    def test_numbers_are_written_on_the_bars(self, results) -> None:
        for bars in plots.plot_recall(results).data:
            assert [float(text) for text in bars.text] == [round(100 * x, 1) for x in bars.x]

    @pytest.mark.parametrize(("ceiling", "side"), [(0.3, "left"), (0.93, "right")])
    def test_the_ceiling_is_drawn_across_recall_at_1(self, results, ceiling, side) -> None:
        (line,) = plots.plot_recall(results, ceiling).layout.shapes
        assert line.x0 == line.x1 == ceiling and line.line.dash == "dash"
        assert (line.xref, line.y0, line.y1) == ("x", -0.5, 0.5)  # the first group of bars
        assert line.label.text == f"ceiling of Recall@1: {100 * ceiling:.1f} %"
        assert line.label.xanchor == side

    def test_names_are_plain_text(self, results) -> None:
        assert_harmless(plots.plot_recall(results))


class TestProbe:
    def test_bars_are_the_probes(self) -> None:
        probes = {HOSTILE: ShortcutProbe(1.0, 0.9, 0.8), "blind": ShortcutProbe(0.5, 0.0, 0.1)}
        figure = plots.plot_probe(probes)
        assert [list(bars.x) for bars in figure.data] == [[1.0, 0.5], [0.9, 0.0], [0.8, 0.1]]
        assert list(figure.data[1].text) == ["90.0", "0.0"]
        assert [bars.y[1] for bars in figure.data] == ["blind"] * 3
        assert figure.data[0].name == "its own regions"
        assert_harmless(figure)

    def test_a_probe_of_nothing_but_zeros_is_drawn(self) -> None:
        plots.plot_probe({"teacher": ShortcutProbe(0.0, 0.0, 0.0)})


def gain(name: str, change: float, spread: float = 0.01, queries: int = 100) -> Gain:
    return Gain(
        name, queries, 0.2, 0.2 + change, Interval(change, change - spread, change + spread)
    )


GAINS = {
    "size": {
        CONTROL: [gain("small", 0.02), gain("large", 0.005, queries=40)],
        "dclip": [gain("small", -0.03), gain("large", 0.04, queries=40)],
    },
    "count": {CONTROL: [gain("one", 0.0)], "dclip": [gain("one", 0.01)]},
}


class TestGains:
    def test_points_and_bars_are_gains_in_hundredths(self) -> None:
        contrastive, dclip, _, one = plots.plot_gains(GAINS).data[:4]
        assert list(contrastive.x) == pytest.approx([2, 0.5])
        assert list(dclip.x) == pytest.approx([-3, 4])
        assert list(one.x) == [1] and one.offsetgroup == dclip.offsetgroup == "dclip"
        assert list(dclip.error_x.array) == pytest.approx([1, 1])
        assert list(dclip.error_x.arrayminus) == pytest.approx([1, 1])
        assert dclip.error_x.color == ARM_COLORS["dclip"]

    def test_what_is_not_known_to_differ_is_hollow(self) -> None:
        contrastive, dclip, *_ = plots.plot_gains(GAINS).data
        assert list(contrastive.marker.color) == [ARM_COLORS[CONTROL], "white"]
        assert list(dclip.marker.color) == [ARM_COLORS["dclip"]] * 2

    def test_rows_have_their_names_and_numbers_of_queries(self) -> None:
        figure = plots.plot_gains(GAINS)
        names = [list(trace.y) for trace in figure.data[:4]]
        assert names == [["small (100)", "large (40)"]] * 2 + [["one"]] * 2
        assert [note.text for note in figure.layout.annotations] == ["<b>size</b>", "<b>count</b>"]
        entries = [trace for trace in figure.data if trace.showlegend]
        assert [entry.name for entry in entries] == [CONTROL, "dclip"]
        colors = [ARM_COLORS[CONTROL], ARM_COLORS["dclip"]]
        assert [entry.marker.color for entry in entries] == colors  # never hollow

    def test_zero_is_marked_under_each_heading(self) -> None:
        lines = plots.plot_gains(GAINS).layout.shapes
        assert [(line.x0, line.x1, line.xref) for line in lines] == [(0, 0, "x"), (0, 0, "x2")]

    def test_an_arm_may_be_missing_under_a_heading(self) -> None:
        some = {"size": GAINS["size"], "count": {"dclip": GAINS["count"]["dclip"]}}
        names = [trace.name for trace in plots.plot_gains(some).data[:3]]
        assert names == [CONTROL, "dclip", "dclip"]

    def test_names_are_plain_text(self) -> None:
        assert_harmless(plots.plot_gains({HOSTILE: {HOSTILE: [gain(HOSTILE, 0.1)]}}))


class TestScores:
    SCORES = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.0]])
    OWNER = torch.tensor([0, 0, 1])

    def plot(self, **changes):
        settings = {"pictures": ["a", "b"], "captions": ["c", "d", HOSTILE]} | changes
        return plots.plot_scores(self.SCORES, self.OWNER, **settings)

    def test_every_score_stands_in_its_cell_and_pairs_are_framed(self) -> None:
        figure = self.plot()
        (cells,) = figure.data
        assert torch.allclose(torch.tensor(cells.z), self.SCORES)
        assert (cells.zmin, cells.zmax) == (0, pytest.approx(0.6))
        assert cells.texttemplate == "%{z:.2f}"
        framed = {
            (round((s.x0 + s.x1) / 2), round((s.y0 + s.y1) / 2)) for s in figure.layout.shapes
        }
        assert framed == {(0, 0), (1, 0), (2, 1)}
        assert list(figure.layout.yaxis.ticktext) == ["a", "b"]
        assert figure.layout.yaxis.autorange == "reversed"

    def test_scores_of_nothing_are_drawn(self) -> None:
        assert plots.plot_scores(0 * self.SCORES, self.OWNER, ["a", "b"], ["c", "d", "e"]).data

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
        assert first.name == f"clip, skewness {skewness(COUNTS['clip']):.2f}"
        assert "mean 3" in shown(figure)

    @pytest.mark.parametrize("count", [1000, 1_207_733])  # whose logarithm is no single's
    def test_many_pictures_take_few_points(self, count) -> None:
        (line,) = plots.plot_occurrences({"clip": torch.arange(count, dtype=torch.double)}).data
        assert len(line.x) <= 60 and (line.x[0], line.x[-1]) == (1, count)
        assert list(line.y) == [float(count - place) for place in line.x]

    def test_names_are_plain_text(self) -> None:
        assert_harmless(plots.plot_occurrences(COUNTS))

    def test_counts_of_different_things_are_an_error(self) -> None:
        for other in (torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 9, 0, 3])):
            with pytest.raises(ValueError, match="same queries and pictures"):
                plots.plot_occurrences(COUNTS | {"x": other})
        with pytest.raises(ValueError, match="got 0 different"):
            plots.plot_occurrences({})


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
        for line in plots.plot_naming(named, objects).data:
            assert list(line.x) == [
                "small<br>40–54 of 256 px<br>6 things",
                "large<br>108–136 of 256 px<br>6 things",
            ]
