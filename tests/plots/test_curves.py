"""Curves hold the histories, candidates and studies they were given."""

import pytest

from dclip_kit import plots
from dclip_kit.evaluation.arms import Arm, Candidate
from dclip_kit.plots.style import ARM_COLORS
from tests.plots.test_style import HOSTILE, assert_harmless, shown


def history(start: float, **more: float) -> list[dict[str, float]]:
    return [{"epoch": n, "loss": start / n, "seconds": 1.0, **more} for n in (1, 2, 3)]


class TestHistory:
    def test_a_line_for_each_arm_and_figure(self) -> None:
        more = {"val_recall_at_1": 0.2, "val_zero_shot": 0.6}
        figure = plots.plot_history({"dclip": history(3.0, **more), "teacher": history(6.0)})
        values = [(list(line.x), list(line.y), line.xaxis) for line in figure.data]
        assert values == [
            ([1, 2, 3], [3.0, 1.5, 1.0], "x"),
            ([1, 2, 3], [6.0, 3.0, 2.0], "x"),
            ([1, 2, 3], [0.2] * 3, "x2"),
            ([1, 2, 3], [0.6] * 3, "x3"),
        ]
        colors = [line.line.color for line in figure.data]
        assert colors[0] == colors[2] == colors[3] == ARM_COLORS["dclip"] != colors[1]

    def test_asked_panels_are_drawn_in_their_order(self) -> None:
        rows = history(3.0, contrastive=2.0, distillation=0.4)
        figure = plots.plot_history({"dclip": rows}, ["distillation", "contrastive"])
        assert [list(line.y) for line in figure.data] == [[0.4] * 3, [2.0] * 3]
        titles = [note.text for note in figure.layout.annotations]
        assert titles == ["distillation term", "contrastive term"]

    @pytest.mark.parametrize("panels", [[], ["distillation"], ["epoch"], ["loss", "loss_on_val"]])
    def test_panels_that_no_history_has_are_named(self, panels) -> None:
        with pytest.raises(ValueError, match="Expected panels out of loss, contrastive"):
            plots.plot_history({"dclip": history(3.0)}, panels)

    @pytest.mark.parametrize("histories", [{}, {"dclip": []}, {"dclip": [{"epoch": 1.0}]}])
    def test_nothing_to_draw_is_an_error(self, histories) -> None:
        with pytest.raises(ValueError, match="that the histories have, got loss, val_recall"):
            plots.plot_history(histories)

    def test_each_arm_is_named_once(self) -> None:
        more = {"val_recall_at_1": 0.2}
        figure = plots.plot_history({"dclip": history(3.0, **more), "teacher": history(6.0)})
        assert figure.layout.showlegend
        assert [line.name for line in figure.data if line.showlegend] == ["dclip", "teacher"]

    def test_names_are_plain_text(self) -> None:
        assert_harmless(plots.plot_history({HOSTILE: history(3.0)}))


class TestTradeoff:
    PATH = tuple(Candidate(a, 0.2 + a / 10, 1 - a / 5) for a in (0.0, 0.5, 1.0))

    def test_paths_rule_and_choice_are_those_given(self, clip) -> None:
        arms = {"clip": Arm(clip), "dclip": Arm(clip, 0.5, self.PATH[::-1])}
        figure = plots.plot_tradeoff(arms, 0.88)
        path, start = figure.data
        assert list(path.x) == [1.0, 0.9, 0.8] and list(path.y) == [0.2, 0.25, 0.2 + 0.1]
        assert path.line.color == ARM_COLORS["dclip"] and path.name == "dclip, α = 0.5"
        assert list(path.hovertext) == ["α = 0", "α = 0.5", "α = 1"]
        small, ring, _ = path.marker.size
        assert ring > small and ["open" in symbol for symbol in path.marker.symbol] == [0, 1, 0]
        (line,) = figure.layout.shapes
        assert line.x0 == line.x1 == 0.88
        assert (start.text, start.x, start.y) == ("clip", (1.0,), (0.2,))
        assert start.marker.color == ARM_COLORS["clip"] and not start.showlegend
        title = figure.layout.xaxis.title.text
        assert "on val" in title and "at least 88.0%" in title
        assert figure.layout.yaxis.title.text.endswith("on val")

    def test_arms_that_stayed_at_clip_are_drawn(self, clip) -> None:
        same = (Candidate(0.0, 0.2, 1.0),)
        arms = {"a": Arm(clip, 0.0, same), "b": Arm(clip, 0.0, same)}
        *paths, _ = plots.plot_tradeoff(arms, 1.0).data
        assert [path.name for path in paths] == ["a, α = 0", "b, α = 0"]

    def test_a_path_that_does_not_begin_at_clip_does_not_say_so(self, clip) -> None:
        figure = plots.plot_tradeoff({"x": Arm(clip, 0.5, self.PATH[1:])}, 0.9)
        assert "clip" not in shown(figure)

    def test_names_are_plain_text(self, clip) -> None:
        assert_harmless(plots.plot_tradeoff({HOSTILE: Arm(clip, 0.5, self.PATH)}, 0.9))

    def test_bad_input_is_named(self, clip) -> None:
        with pytest.raises(ValueError, match="an arm with candidates, got none"):
            plots.plot_tradeoff({"clip": Arm(clip)}, 0.9)


def arm(recall: float, retention: float, gain: tuple[float, float, float] | None) -> dict:
    """An arm whose frontier has two points, and whose gain over clip is known."""
    vs = {} if gain is None else {"clip": {"relative": gain[0], "ci95": list(gain[1:])}}
    ways = ("text_to_image", "image_to_text")
    ends = ((0.0, 0.2, 1.0), (1.0, recall, retention))
    return {
        "runs": [{"seed": 0, **dict.fromkeys(ways, recall)}],
        "frontier": [
            {"alpha": alpha, **dict.fromkeys(ways, found), "retention": kept}
            for alpha, found, kept in ends
        ],
        "at_95_5": {way: {"recall_at_1": recall, "vs": vs} for way in ways},
    }


STUDY = {
    "arms": {
        "clip": arm(0.2, 1.0, None),
        "region_taught": arm(0.3, 0.9, (0.4, 0.3, 0.5)),
        "<b>odd</b>": arm(0.2, 0.97, (0.0, -0.1, 0.1)),
    }
}


def test_paths_run_from_no_gain_to_the_arms_own_weights() -> None:
    figure = plots.plot_frontiers(STUDY)
    lines = {trace.name: trace for trace in figure.data if trace.mode == "lines"}
    assert list(lines) == ["region_taught", "&lt;b&gt;odd&lt;/b&gt;"]  # clip has nothing to gain
    path = lines["region_taught"]
    assert path.x == (1.0, 0.9) and path.y == pytest.approx((0.0, 0.5))
    points = {trace.name: trace for trace in figure.data if trace.mode == "markers"}
    assert list(points) == list(lines)
    point = points["region_taught"]
    assert point.x == pytest.approx((0.955,), abs=0.002) and point.y == (0.4,)
    assert point.error_y.array == pytest.approx((0.1,))
    assert point.error_y.arrayminus == pytest.approx((0.1,))
    assert points["&lt;b&gt;odd&lt;/b&gt;"].x == (0.97,)  # it never falls so low
    assert len({trace.line.color for trace in lines.values()}) == 2


def test_an_arm_of_one_point_has_no_line_and_stands_in_the_legend() -> None:
    alone = STUDY["arms"]["<b>odd</b>"] | {"frontier": STUDY["arms"]["clip"]["frontier"][:1]}
    figure = plots.plot_frontiers({"arms": STUDY["arms"] | {"clip_nnn": alone}})
    (point,) = (trace for trace in figure.data if trace.name == "clip_nnn")
    assert (point.mode, point.marker.symbol, point.showlegend) == ("markers", "diamond", True)
    assert point is figure.data[-1] and point.x == (1.0,)


def test_variants_of_an_arm_have_its_colour_and_a_line_of_their_own() -> None:
    taught = STUDY["arms"]["region_taught"]
    variants = dict.fromkeys(["other", "region_taught_nnn", "region_taught_text"], taught)
    figure = plots.plot_frontiers({"arms": STUDY["arms"] | variants})
    lines = {trace.name: trace.line for trace in figure.data if trace.mode == "lines"}
    dashes = [lines[name].dash for name in ("region_taught", *variants)]
    assert dashes == ["solid", "solid", "dot", "dash"]
    colors = [lines[name].color for name in variants]
    assert colors[1] == colors[2] == ARM_COLORS["region_taught"] != colors[0]


def test_points_at_one_retention_stand_beside_each_other() -> None:
    same = STUDY["arms"]["region_taught"]
    figure = plots.plot_frontiers({"arms": {"clip": STUDY["arms"]["clip"], "a": same, "b": same}})
    first, second = (trace.x[0] for trace in figure.data if trace.mode == "markers")
    assert 0.95 < first < 0.955 < second < 0.96


def test_a_point_whose_interval_includes_zero_is_hollow() -> None:
    figure = plots.plot_versus(STUDY, "clip")
    assert [trace.name for trace in figure.data] == 2 * ["region_taught", "&lt;b&gt;odd&lt;/b&gt;"]
    known, unknown = figure.data[:2]
    assert known.marker.color == known.marker.line.color
    assert unknown.marker.color == "white"
    assert known.error_x.array == pytest.approx((0.1,))


def test_trainings_are_ticks_beside_the_gain_of_their_seed() -> None:
    def with_runs(name: str, recalls: dict[int, float]) -> dict:
        ways = ("text_to_image", "image_to_text")
        runs = [{"seed": seed, **dict.fromkeys(ways, found)} for seed, found in recalls.items()]
        return STUDY["arms"][name] | {"runs": runs}

    def ticks(rival: dict) -> list[tuple[float, ...]]:
        arms = {"clip": rival, "region_taught": with_runs("region_taught", {0: 0.3, 2: 0.2})}
        traces = plots.plot_versus({"arms": arms}, "clip").data
        return [trace.x for trace in traces if trace.name == "region_taught, each training"]

    alone = ticks(with_runs("clip", {0: 0.2}))  # its one training is beside all
    assert len(alone) == 2 and alone[0] == pytest.approx((0.5, 0.0))
    by_seed = ticks(with_runs("clip", {0: 0.2, 1: 0.1, 2: 0.25}))
    assert by_seed[0] == pytest.approx((0.5, -0.2))
    assert ticks(with_runs("clip", {0: 0.2, 1: 0.1})) == []  # a single one is the gain itself


def test_a_rival_that_the_study_has_not_is_named() -> None:
    with pytest.raises(ValueError, match=r"Expected an arm out of clip, .*, got 'dclip'"):
        plots.plot_versus(STUDY, "dclip")


def test_gains_stand_over_what_the_arms_were_given() -> None:
    amounts = {"taught": {"<b>odd</b>": 5, "region_taught": 25}, "<i>": {"region_taught": 100}}
    figure = plots.plot_growth(STUDY, amounts, "captions <%>")
    first, second = figure.data
    assert (first.name, second.name) == ("taught", "&lt;i&gt;")
    assert first.x == (5, 25) and first.y == (0.0, 0.4) and second.x == (100,)
    assert first.error_y.array == pytest.approx((0.1, 0.1))
    assert first.error_y.arrayminus == pytest.approx((0.1, 0.1))
    assert first.line.color != second.line.color
    assert figure.layout.xaxis.title.text == "captions &lt;%&gt;"
