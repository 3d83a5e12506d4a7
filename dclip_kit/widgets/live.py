"""Work in a background thread that keeps the page responsive, and figures that update."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets
from IPython.display import display

from dclip_kit import plots
from dclip_kit.plots.style import new_figure
from dclip_kit.training import History


class Stopped(Exception):
    """Ends work between two steps; finished steps are kept."""


class LiveRun:
    """Trainings in a thread of their own, with live curves and buttons to stop and resume.

    Other cells can run meanwhile. A stopped training leaves a checkpoint of all its steps so far; a
    resumed one makes the steps that it would have made without the stop.

    Attributes:
        histories: by training, a row of figures for each epoch.
        results: what each finished training returned.
    """

    def __init__(
        self,
        trainings: Mapping[str, Callable[..., Any]],
        untouched: Mapping[str, float] | None = None,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            trainings: by name, run one after another; each is called with `on_epoch` and
                `on_step`, as `train_arm` and `distill` take them, and resumes from its checkpoint
                if it is called again.
            untouched: figures of the model that all start from, such as val_recall_at_1, for the
                curves' points at epoch 0.
        """
        self.histories: dict[str, History] = {}
        self.results: dict[str, Any] = {}
        self._trainings = dict(trainings)
        self._begin: History = [{"epoch": 0, **untouched}] if untouched else []
        self._thread: threading.Thread | None = None
        self._asked_to_stop = threading.Event()
        self._error: Exception | None = None
        self._stop = ipywidgets.Button(description="Stop", icon="stop")
        self._resume = ipywidgets.Button(description="Resume", icon="play", disabled=True)
        self._message = ipywidgets.Label()
        self._stop.on_click(lambda _: self.stop())
        self._resume.on_click(lambda _: self.start())
        self._figure: Any = None  # its display on the page

    def start(self) -> None:
        """Runs the trainings that are not finished; the first call also displays the buttons.

        Does nothing while they are running.
        """
        if self._figure is None:
            buttons = ipywidgets.HBox([self._stop, self._resume, self._message])
            text = "Buttons that stop the training and go on with it: run the notebook to use them."
            display(buttons._repr_mimebundle_() | {"text/plain": text}, raw=True)
            # A bundle, since a plotly figure would create a new display each time. The notebook
            # stores the final figure, which needs no kernel.
            figure = new_figure(230, ["no epoch is done yet"])
            self._figure = display(figure._repr_mimebundle_(), raw=True, display_id=True)
        if self._thread is None or not self._thread.is_alive():
            self._asked_to_stop.clear()
            self._error = None
            self._stop.disabled, self._resume.disabled = False, True
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Asks the training to stop after the current step."""
        self._asked_to_stop.set()

    async def wait(self) -> dict[str, Any]:
        """Waits until all trainings are finished, while the buttons stay alive: `await run.wait()`.

        The page's buttons work while a cell awaits, but not while it blocks. Interrupting the wait
        stops the training too.

        Returns:
            What each of them returned, by name.

        Raises:
            RuntimeError: the trainings were stopped, or have not been started.
            Exception: whatever a training raised.
        """
        try:
            while self._thread and self._thread.is_alive():
                await asyncio.sleep(0.05)  # seconds
        except (KeyboardInterrupt, asyncio.CancelledError):
            self.stop()
            raise
        if self._error:
            raise self._error
        if not self._is_finished():
            raise RuntimeError(
                f"Expected all of {', '.join(self._trainings)} to be finished, got "
                f"{', '.join(self.results) or 'none'}; press Resume, then run this cell again."
            )
        self._draw()  # from this cell, so that it stores the current figure
        return self.results

    def _is_finished(self) -> bool:
        return self.results.keys() == self._trainings.keys()

    def _run(self) -> None:
        try:
            self._train()
            message = "Finished."
        except Stopped:
            message = f"Stopped. {self._message.value}"
        except Exception as error:
            self._error, message = error, f"Failed: {error}"
        self._message.value = message
        self._stop.disabled, self._resume.disabled = True, self._is_finished()

    def _train(self) -> None:
        for name, train in self._trainings.items():
            if name in self.results:
                continue

            def follow(_: object, history: History, name: str = name) -> None:
                self.histories[name] = [*self._begin, *history]
                self._draw()

            def count(step: int, loss: float, name: str = name) -> None:
                self._message.value = f"{name}: {step + 1:,} steps, loss {loss:.3f}"
                if self._asked_to_stop.is_set():
                    raise Stopped

            self.results[name] = train(on_epoch=follow, on_step=count)

    def _draw(self) -> None:
        if self.histories and self._figure:
            panels = "loss", "val_recall_at_1", "val_retention"
            figure = plots.plot_history(self.histories, panels)
            # JupyterLab's plotly renderer keeps a figure until another kind of output replaces it.
            self._figure.update({"text/plain": "…"}, raw=True)
            self._figure.update(figure._repr_mimebundle_(), raw=True)
