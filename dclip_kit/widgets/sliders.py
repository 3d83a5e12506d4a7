"""Sliders that weigh the regions anew while they move."""

from collections.abc import Callable

import ipywidgets as widgets
import plotly.graph_objects as go
from IPython.display import display
from PIL import Image

from dclip_kit.evaluation.inspection import CaptionedRegions, reweight_regions
from dclip_kit.plots.weighting import plot_region_weights

_FACTORS = ("area", "confidence", "similarity")


class WeightSliders(widgets.VBox):
    """A slider for the power of each factor of the region weights; 1 is DCLIP's, 0 leaves it out.

    Attributes:
        sliders: by the factor's name.
    """

    def __init__(self, on_change: Callable[[dict[str, float]], None]) -> None:
        """Makes the sliders.

        Args:
            on_change: is called with all powers whenever one moves.
        """
        self.sliders = {
            factor: widgets.FloatSlider(
                value=1.0, min=0.0, max=3.0, step=0.25, description=factor, readout_format=".2f"
            )
            for factor in _FACTORS
        }
        for slider in self.sliders.values():
            slider.observe(lambda _: on_change(self.powers), "value")
        super().__init__(list(self.sliders.values()))

    @property
    def powers(self) -> dict[str, float]:
        """What the sliders say, by the factor's name."""
        return {factor: slider.value for factor, slider in self.sliders.items()}

    def __repr__(self) -> str:
        """What a page without a kernel shows in the sliders' place."""
        return "Sliders for area, confidence and similarity: run the notebook to move them."


def show_weight_sliders(picture: Image.Image, captioned: CaptionedRegions) -> WeightSliders:
    """Displays sliders, and below them the figure that they make, drawn anew as they move.

    The figure is an output like any other, so it is stored with the notebook, and stays where the
    sliders do not.

    Args:
        picture: with the regions.
        captioned: from `read_caption`.
    """

    def drawn(powers: dict[str, float]) -> dict:
        return draw_reweighted(picture, captioned, powers)._repr_mimebundle_()

    def redraw(powers: dict[str, float]) -> None:
        # JupyterLab's renderer of plotly keeps its first figure, until another kind replaces it.
        handle.update({"text/plain": "…"}, raw=True)
        handle.update(drawn(powers), raw=True)

    sliders = WeightSliders(redraw)
    display(sliders)
    handle = display(drawn(sliders.powers), raw=True, display_id=True)
    return sliders


def draw_reweighted(
    picture: Image.Image, captioned: CaptionedRegions, powers: dict[str, float]
) -> go.Figure:
    """`plot_region_weights` for other powers of area, confidence and similarity.

    Args:
        picture: with the regions.
        captioned: from `read_caption`.
        powers: by the factor's name; see `reweight_regions`.
    """
    regions = captioned.regions
    raised = [f"{factor}^{power:g}" for factor, power in powers.items() if power > 0]
    return plot_region_weights(
        picture,
        regions,
        regions.area,
        regions.confidence,
        captioned.similarity,
        reweight_regions(captioned, **powers),
        captioned.caption,
        formula=" × ".join(term.removesuffix("^1") for term in raised) or "1",
    )
