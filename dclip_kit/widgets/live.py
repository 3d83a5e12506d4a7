"""Figures that change in place: curves grow while a cell runs, weights follow their sliders."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets
import plotly.graph_objects as go
from IPython.display import DisplayHandle, display
from PIL import Image

from dclip_kit import plots
from dclip_kit.evaluation.inspection import CaptionedRegions, reweight_regions
from dclip_kit.plots.style import new_figure
from dclip_kit.training import History
from dclip_kit.widgets.background import Background


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


class LiveRun:
    """Trainings in a thread of their own: curves that grow, a button that stops, one that goes on.

    Other cells can run meanwhile. A training that is stopped has left a checkpoint of all its steps
    so far; one that goes on makes the steps that it would have made.

    Attributes:
        histories: a row of figures an epoch, by training.
        results: what each finished training returned.
    """

    def __init__(
        self,
        trainings: Mapping[str, Callable[..., Any]],
        panels: Sequence[str] = ("loss", "val_recall_at_1", "val_retention"),
    ) -> None:
        """Nothing runs before `start`.

        Args:
            trainings: by name, one after another; each is called with `on_epoch` and `on_step`, as
                `train_arm` and `distill` take them, and goes on from its checkpoint if it is called
                again.
            panels: as `plots.plot_history`'s.
        """
        self.panels = tuple(panels)
        self.histories: dict[str, History] = {}
        self.results: dict[str, Any] = {}
        self._trainings, self._figure = dict(trainings), LiveFigure()
        self._background = Background(self._train)
        self._shown = False

    def start(self) -> None:
        """Trains what is not finished yet; the first time it shows itself, too."""
        if not self._shown:
            self._shown = True
            said = "Buttons that stop the training and go on with it: run the notebook to use them."
            bundle = self._background.box._repr_mimebundle_()
            display(bundle | {"text/plain": said}, raw=True)
            self._figure.show(new_figure(230, ["no epoch is done yet"]))
        self._background.start()

    def stop(self) -> None:
        """Asks the training to stop after this step, and to keep it."""
        self._background.stop()

    async def wait(self) -> dict[str, Any]:
        """Waits until all trainings are finished, while the buttons stay alive: `await run.wait()`.

        Returns:
            What each of them returned, by name.

        Raises:
            RuntimeError: it was stopped, or has not been started.
            Exception: whatever a training raised.
        """
        if not await self._background.wait():
            raise RuntimeError(
                f"Expected all of {', '.join(self._trainings)} to be finished, got "
                f"{', '.join(self.results) or 'none'}; press Resume, then run this cell again."
            )
        self._draw()  # by this cell, so that the figure is stored as it is now
        return self.results

    def _train(self, background: Background) -> None:
        for name, train in self._trainings.items():
            if name in self.results:
                continue
            said = 0.0  # when

            def follow(_: object, history: History, name: str = name) -> None:
                self.histories[name] = list(history)
                self._draw()

            def count(step: int, loss: float, name: str = name) -> None:
                nonlocal said
                # A page need not know every step.
                if background.stopping or time.monotonic() > said + 0.5:  # seconds
                    said = time.monotonic()
                    background.tell(f"{name}: {step + 1:,} steps, loss {loss:.3f}")

            self.results[name] = train(on_epoch=follow, on_step=count)

    def _draw(self) -> None:
        if self.histories:
            self._figure.show(plots.plot_history(self.histories, self.panels))


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
    raised = [f"{factor}^{power:g}" for factor, power in powers.items() if power > 0]
    return plots.plot_region_weights(
        picture,
        captioned,
        reweight_regions(captioned, **powers),
        formula=" × ".join(term.removesuffix("^1") for term in raised) or "1",
    )
