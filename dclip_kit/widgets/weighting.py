"""Sliders that weigh the regions anew while they move."""

import ipywidgets as widgets
import plotly.graph_objects as go
from IPython.display import display
from PIL import Image

from dclip_kit.inspection import CaptionedRegions, reweight_regions
from dclip_kit.plots.weights import plot_region_weights

_FACTORS = ("area", "confidence", "similarity")


class WeightSliders(widgets.VBox):
    """A slider for the power of each factor of the region weights, above the figure they make.

    1 for all gives DCLIP's weights, 0 leaves a factor out. The figure is drawn anew whenever a
    slider moves; arrow keys move the one in focus.
    """

    def __init__(self, picture: Image.Image, captioned: CaptionedRegions) -> None:
        """Shows a picture's regions for a caption.

        Args:
            picture: with the regions.
            captioned: from `read_caption`.
        """
        self.sliders = {
            factor: widgets.FloatSlider(
                value=1.0,
                min=0.0,
                max=3.0,
                step=0.25,
                description=factor,
                readout_format=".2f",
            )
            for factor in _FACTORS
        }

        def draw(**powers: float) -> None:
            display(self.draw(picture, captioned, **powers))

        figure = widgets.interactive_output(draw, self.sliders)
        super().__init__([widgets.HBox(list(self.sliders.values())), figure])

    @staticmethod
    def draw(picture: Image.Image, captioned: CaptionedRegions, **powers: float) -> go.Figure:
        """The figure for these powers of area, confidence and similarity."""
        regions = captioned.regions
        raised = [f"{name}^{power:g}" for name, power in powers.items() if power > 0]
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

    def __repr__(self) -> str:
        """What a page without a kernel shows in the sliders' place."""
        return "Sliders for area, confidence and similarity: run the notebook to move them."
