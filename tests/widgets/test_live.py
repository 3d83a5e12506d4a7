"""Figures that change in place: one display, replaced whenever there is something new."""

import plotly.io
import pytest
import torch

from dclip_kit.evaluation.inspection import CaptionedRegions
from dclip_kit.models.regions import Regions
from dclip_kit.widgets import LiveHistory, live, show_weight_sliders
from dclip_kit.widgets.live import draw_reweighted

PLOTLY = "application/vnd.plotly.v1+json"


@pytest.fixture
def shown(monkeypatch) -> list[tuple[str, object]]:
    """What the page was told: ("display", "clear" or "update", bundle)."""
    told: list[tuple[str, object]] = []
    monkeypatch.setattr(plotly.io.renderers, "default", "plotly_mimetype")

    class Handle:
        def update(self, bundle, raw: bool) -> None:
            assert raw
            told.append(("update" if PLOTLY in bundle else "clear", bundle))

    def display(bundle, raw: bool, display_id: bool = False) -> Handle:
        assert raw and display_id is (PLOTLY in bundle)
        told.append(("display", bundle))
        return Handle()

    monkeypatch.setattr(live, "display", display)
    return told


def rows(count: int, loss: float) -> list[dict[str, float]]:
    return [{"epoch": n, "loss": loss / n, "val_recall_at_1": 0.1 * n} for n in range(1, count + 1)]


def lines(bundle) -> list[list[float]]:
    return [list(trace["y"]) for trace in bundle[PLOTLY]["data"]]


def test_one_figure_grows_by_epoch_and_by_arm(shown, clip) -> None:
    curves = LiveHistory(["loss"])
    first, second = curves.follow("contrastive"), curves.follow("dclip")
    first(clip, rows(1, 2.0))
    first(clip, rows(2, 2.0))
    second(clip, rows(1, 3.0))
    assert [kind for kind, _ in shown] == ["display", *["clear", "update"] * 2]
    assert [lines(figure) for kind, figure in shown if kind != "clear"] == [
        [[2.0]],
        [[2.0, 1.0]],
        [[2.0, 1.0], [3.0]],
    ]


def test_what_was_shown_does_not_change_with_the_running_history(shown, clip) -> None:
    curves, history = LiveHistory(), rows(1, 2.0)
    curves.follow("dclip")(clip, history)
    history += rows(2, 2.0)[1:]
    assert len(curves.histories["dclip"]) == 1
    assert lines(shown[0][1])[0] == [2.0]


@pytest.fixture
def captioned(pictures) -> CaptionedRegions:
    """Two regions of the same area and confidence, with similarities of 0.25 and 0.5."""
    boxes = torch.tensor([[0.0, 0, 20, 15], [20, 15, 40, 30]])
    return CaptionedRegions(
        Regions(boxes, torch.tensor([0.5, 0.5]), ("dog", "cat"), pictures[0].size),
        "a cat",
        ("a", "cat"),
        torch.eye(2, 4),
        torch.eye(2, 4),
        torch.tensor([0.25, 0.5]),
        torch.tensor([1 / 3, 2 / 3]),
    )


def weights(bundle) -> list[float]:
    """The last column of bars, by falling weight."""
    return [trace for trace in bundle[PLOTLY]["data"] if trace["type"] == "bar"][-1]["x"]


def test_a_moved_slider_draws_the_figure_anew(pictures, captioned, shown) -> None:
    sliders = show_weight_sliders(pictures[0], captioned)
    (_, controls), (_, figure) = shown
    assert controls["text/plain"].startswith("Sliders")  # for a page without a kernel
    assert "application/vnd.jupyter.widget-view+json" in controls
    assert weights(figure) == pytest.approx([2 / 3, 1 / 3])
    sliders["similarity"].value = 2.0
    sliders["area"].value = 0.0
    assert [kind for kind, _ in shown[2:]] == ["clear", "update"] * 2
    assert weights(shown[-1][1]) == pytest.approx([0.8, 0.2])
    assert all(slider.min == 0 for slider in sliders.values())


@pytest.mark.parametrize(
    ("powers", "formula"),
    [
        ((1.0, 1.0, 1.0), "area × confidence × similarity,"),
        ((0.0, 2.0, 0.25), "confidence^2 × similarity^0.25,"),
        ((0.0, 0.0, 0.0), "weight = 1,"),
    ],
)
def test_the_figure_says_what_its_weights_are(pictures, captioned, powers, formula) -> None:
    factors = dict(zip(("area", "confidence", "similarity"), powers, strict=True))
    text = draw_reweighted(pictures[0], captioned, factors).layout.title.text
    assert formula in text and text.startswith("weight = ")
