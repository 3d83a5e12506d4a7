"""Sliders: what they say goes into the figure, which is stored without them."""

import pytest
import torch

from dclip_kit.evaluation.inspection import CaptionedRegions
from dclip_kit.models.regions import Regions
from dclip_kit.widgets import WeightSliders, show_weight_sliders
from dclip_kit.widgets import sliders as weighting
from dclip_kit.widgets.sliders import draw_reweighted

widgets = pytest.importorskip("ipywidgets")
PLOTLY = "application/vnd.plotly.v1+json"


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


@pytest.fixture
def displayed(monkeypatch) -> list:
    """What is displayed, in order; an update counts as one more."""
    seen = []

    class Handle:
        def update(self, thing, **how):
            seen.append((thing, how))

    def display(thing, **how):
        seen.append((thing, how))
        return Handle() if how.get("display_id") else None

    monkeypatch.setattr(weighting, "display", display)
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")
    monkeypatch.setattr(weighting.go.Figure, "_repr_mimebundle_", lambda self: {PLOTLY: self})
    return seen


def weights(figure) -> list[float]:
    """The last column of bars, by falling weight."""
    return list([trace for trace in figure.data if trace.type == "bar"][-1].x)


def test_a_moved_slider_draws_the_figure_anew(pictures, captioned, displayed) -> None:
    sliders = show_weight_sliders(pictures[0], captioned)
    (first, how), (figure, figure_how) = displayed
    assert first is sliders and not how
    assert figure_how == {"raw": True, "display_id": True}
    assert weights(figure[PLOTLY]) == pytest.approx([2 / 3, 1 / 3])
    sliders.sliders["similarity"].value = 2.0
    sliders.sliders["area"].value = 0.0
    assert len(displayed) == 2 + 2 * 2 and displayed[-1][1] == {"raw": True}
    assert PLOTLY not in displayed[-2][0]  # else JupyterLab keeps the figure that it has
    assert weights(displayed[-1][0][PLOTLY]) == pytest.approx([0.8, 0.2])
    assert sliders.powers == {"area": 0, "confidence": 1, "similarity": 2}


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
    figure = draw_reweighted(pictures[0], captioned, factors)
    notes = [note.text.replace("<br>", " ") for note in figure.layout.annotations]
    assert any(formula in note and note.startswith("weight = ") for note in notes)


def test_without_a_kernel_a_line_of_text_stands_for_them() -> None:
    sliders = WeightSliders(lambda powers: None)
    bundle = sliders._repr_mimebundle_()
    assert bundle["text/plain"].startswith("Sliders") and "run the notebook" in bundle["text/plain"]
    assert [slider.value for slider in sliders.sliders.values()] == [1, 1, 1]
    assert all(slider.min == 0 for slider in sliders.sliders.values())
