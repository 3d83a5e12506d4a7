"""Work that goes on while the page stays its reader's."""

import asyncio
import threading
from collections.abc import Callable

import ipywidgets


class Stopped(Exception):
    """Ends work between two of its steps; whoever raises it keeps what is done."""


class Background:
    """Work in a thread of its own: how far it is, a button that stops it, one that goes on.

    Attributes:
        box: what to show.
        message: how far it is, in words.
        finished: whether all of it is done.
    """

    def __init__(self, work: Callable[["Background"], None]) -> None:
        """Nothing runs before `start`.

        Args:
            work: calls `tell` between its steps, and goes on from there if it is called again.
        """
        self._work, self.finished = work, False
        self._thread: threading.Thread | None = None
        self._asked_to_stop = threading.Event()
        self._error: Exception | None = None
        self._stop = ipywidgets.Button(description="Stop", icon="stop")
        self._resume = ipywidgets.Button(description="Resume", icon="play", disabled=True)
        self._bar = ipywidgets.FloatProgress(max=1.0, layout={"display": "none"})
        self.message = ipywidgets.Label()
        self._stop.on_click(lambda _: self.stop())
        self._resume.on_click(lambda _: self.start())
        self.box = ipywidgets.HBox([self._stop, self._resume, self._bar, self.message])

    def start(self) -> None:
        """Begins, or goes on; nothing happens where it is running."""
        if self._thread is None or not self._thread.is_alive():
            self._asked_to_stop.clear()
            self._error = None
            self._stop.disabled, self._resume.disabled = False, True
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Asks the work to stop after this step."""
        self._asked_to_stop.set()

    def tell(self, said: str, share: float | None = None) -> None:
        """What the work says between two of its steps.

        Args:
            said: how far it is, in words.
            share: of it that is done, for a bar.

        Raises:
            Stopped: somebody has asked for it.
        """
        self.message.value = said
        self._bar.value = share or 0.0
        self._bar.layout.display = "none" if share is None else None
        if self._asked_to_stop.is_set():
            raise Stopped

    @property
    def stopping(self) -> bool:
        """Whether somebody has asked the work to stop."""
        return self._asked_to_stop.is_set()

    async def wait(self) -> bool:
        """Waits until the work has ended; interrupting it stops the work, too.

        A cell that awaits lets the page's buttons be heard, which one that blocks does not.

        Returns:
            Whether it is finished: it was begun, and not stopped.

        Raises:
            Exception: whatever the work raised.
        """
        try:
            while self._thread and self._thread.is_alive():
                await asyncio.sleep(0.05)  # seconds
        except (KeyboardInterrupt, asyncio.CancelledError):
            self.stop()
            raise
        if self._error:
            raise self._error
        return self.finished

    def _run(self) -> None:
        try:
            self._work(self)
            self.finished, said = True, "Finished."
        except Stopped:
            said = f"Stopped. {self.message.value}"
        except Exception as error:
            self._error, said = error, f"Failed: {error}"
        self.message.value = said
        self._bar.layout.display = "none"
        self._stop.disabled, self._resume.disabled = True, self.finished
