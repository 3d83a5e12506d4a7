"""Training curves that grow in place while a notebook's cell runs."""

from collections.abc import Callable, Sequence

from IPython.display import DisplayHandle, display

from dclip_kit.models.clip import ClipBundle
from dclip_kit.plots import plot_history
from dclip_kit.training import History


class LiveHistory:
    """One figure with a line for each followed training, drawn anew after every epoch.

    A plain figure that replaces the one before: stored in the notebook it is the final picture, and
    needs no kernel to be seen.
    """

    def __init__(
        self, panels: Sequence[str] = ("loss", "val_recall_at_1", "val_zero_shot")
    ) -> None:
        """Nothing is shown before the first epoch.

        Args:
            panels: as `plots.plot_history`'s.
        """
        self.panels = tuple(panels)
        self.histories: dict[str, History] = {}
        self._handle: DisplayHandle | None = None

    def follow(self, name: str) -> Callable[[ClipBundle, History], None]:
        """What `train_arm` and `distill` take as `on_epoch`; `name` is the line's."""

        def redraw(student: ClipBundle, history: History) -> None:
            self.histories[name] = list(history)
            # As a bundle: a plotly figure displays itself, and would be a new one every time.
            bundle = plot_history(self.histories, self.panels)._repr_mimebundle_()
            if self._handle is None:
                self._handle = display(bundle, raw=True, display_id=True)
            else:
                # JupyterLab's renderer of plotly keeps a figure until another kind replaces it.
                self._handle.update({"text/plain": "…"}, raw=True)
                self._handle.update(bundle, raw=True)

        return redraw
