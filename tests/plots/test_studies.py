"""Figures of studies: each arm's path, and what it gains over a rival."""

import pytest

from dclip_kit.plots import plot_frontiers, plot_growth, plot_versus


def arm(recall: float, retention: float, gain: tuple[float, float, float] | None) -> dict:
    """An arm whose frontier has two points, and whose gain over clip is known."""
    vs = {} if gain is None else {"clip": {"relative": gain[0], "ci95": list(gain[1:])}}
    ways = ("text_to_image", "image_to_text")
    ends = ((0.0, 0.2, 1.0), (1.0, recall, retention))
    return {
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
    figure = plot_frontiers(STUDY)
    lines = {trace.name: trace for trace in figure.data if trace.mode == "lines"}
    assert list(lines) == ["clip", "region_taught", "&lt;b&gt;odd&lt;/b&gt;"]
    path = lines["region_taught"]
    assert path.x == (1.0, 0.9) and path.y == pytest.approx((0.0, 0.5))
    points = {trace.name: trace for trace in figure.data if trace.mode == "markers"}
    assert list(points) == list(lines)[1:]  # the untouched CLIP gains nothing over itself
    point = points["region_taught"]
    assert point.x == (0.955,) and point.y == (0.4,)
    assert point.error_y.array == pytest.approx((0.1,))
    assert point.error_y.arrayminus == pytest.approx((0.1,))
    assert points["&lt;b&gt;odd&lt;/b&gt;"].x == (0.97,)  # it never falls so low
    assert len({trace.line.color for trace in lines.values()}) == 3


def test_a_point_whose_interval_includes_zero_is_hollow() -> None:
    figure = plot_versus(STUDY, "clip")
    assert [trace.name for trace in figure.data] == 2 * ["region_taught", "&lt;b&gt;odd&lt;/b&gt;"]
    known, unknown = figure.data[:2]
    assert known.marker.color == known.marker.line.color
    assert unknown.marker.color == "white"
    assert known.error_x.array == pytest.approx((0.1,))


def test_some_arms_are_drawn_if_they_are_named() -> None:
    figure = plot_frontiers(STUDY, "image_to_text", ["region_taught"])
    assert {trace.name for trace in figure.data} == {"region_taught"}
    with pytest.raises(ValueError, match="clip, region_taught, <b>odd</b>, got 'best'"):
        plot_frontiers(STUDY, names=["best"])
    with pytest.raises(ValueError, match="got 'best'"):
        plot_versus(STUDY, "best")


def test_gains_grow_along_what_the_arms_of_a_line_were_given() -> None:
    amounts = {"taught": {"<b>odd</b>": 5, "region_taught": 25}, "<i>": {"region_taught": 100}}
    figure = plot_growth(STUDY, amounts, "captions <%>")
    first, second = figure.data
    assert (first.name, second.name) == ("taught", "&lt;i&gt;")
    assert first.x == (5, 25) and first.y == (0.0, 0.4) and second.x == (100,)
    assert first.error_y.array == pytest.approx((0.1, 0.1))
    assert first.error_y.arrayminus == pytest.approx((0.1, 0.1))
    assert first.line.color != second.line.color
    assert figure.layout.xaxis.title.text == "captions &lt;%&gt;"
    with pytest.raises(ValueError, match="got 'best'"):
        plot_growth(STUDY, {"taught": {"best": 1}}, "captions")
