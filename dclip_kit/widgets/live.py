"""Figures that change in place: curves grow while a cell runs, weights follow their sliders."""

from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import plotly.graph_objects as go
from IPython.display import DisplayHandle, display
from PIL import Image

from dclip_kit.evaluation.inspection import CaptionedRegions, reweight_regions
from dclip_kit.models.clip import ClipBundle
from dclip_kit.plots import plot_history, plot_region_weights
from dclip_kit.training import History


class LiveFigure:
    """A place on the page for one plain figure, which another can replace.

    Stored in the notebook it is the final picture, and needs no kernel to be seen.
    """

    def __init__(self) -> None:
        """Nothing is shown before the first figure."""
        self._handle: DisplayHandle | None = None

    def show(self, figure: go.Figure) -> None:
        """Displays a figure, in the place of the one before."""
        # As a bundle: a plotly figure displays itself, and would be a new one every time.
        bundle = figure._repr_mimebundle_()
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            # JupyterLab's renderer of plotly keeps a figure until another kind replaces it.
            self._handle.update({"text/plain": "…"}, raw=True)
            self._handle.update(bundle, raw=True)


class LiveHistory:
    """One figure with a line for each followed training, drawn anew after every epoch."""

    def __init__(
        self, panels: Sequence[str] = ("loss", "val_recall_at_1", "val_zero_shot")
    ) -> None:
        """Nothing is shown before the first epoch.

        Args:
            panels: as `plots.plot_history`'s.
        """
        self.panels = tuple(panels)
        self.histories: dict[str, History] = {}
        self._figure = LiveFigure()

    def follow(self, name: str) -> Callable[[ClipBundle, History], None]:
        """What `train_arm` and `distill` take as `on_epoch`; `name` is the line's."""

        def redraw(student: ClipBundle, history: History) -> None:
            self.histories[name] = list(history)
            self._figure.show(plot_history(self.histories, self.panels))

        return redraw


def show_weight_sliders(
    picture: Image.Image, captioned: CaptionedRegions
) -> dict[str, ipywidgets.FloatSlider]:
    """Displays a slider for the power of each factor of the region weights, and what they make.

    A power of 1 is DCLIP's, 0 leaves the factor out. The figure below the sliders is an output like
    any other, so it is stored with the notebook, and stays where the sliders do not.

    Args:
        picture: with the regions.
        captioned: from `read_caption`.

    Returns:
        The sliders by factor: area, confidence and similarity.
    """
    sliders = {
        factor: ipywidgets.FloatSlider(1.0, min=0.0, max=3.0, step=0.25, description=factor)
        for factor in ("area", "confidence", "similarity")
    }
    figure = LiveFigure()

    def redraw(_: object = None) -> None:
        powers = {factor: slider.value for factor, slider in sliders.items()}
        figure.show(draw_reweighted(picture, captioned, powers))

    for slider in sliders.values():
        slider.observe(redraw, "value")
    said = "Sliders for area, confidence and similarity: run the notebook to move them."
    bundle = ipywidgets.VBox([*sliders.values()])._repr_mimebundle_()
    display(bundle | {"text/plain": said}, raw=True)
    redraw()
    return sliders


def draw_reweighted(
    picture: Image.Image, captioned: CaptionedRegions, powers: Mapping[str, float]
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
