"""Whether a server answers, asked once and briefly before a library retries for a minute."""

import contextlib
import http.client
import threading
import urllib.error
import urllib.request


def is_reachable(url: str, seconds: float = 3.0) -> bool:
    """Whether a server answers at all within the time, whatever it answers."""
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            try:
                request = urllib.request.Request(url, method="HEAD")
                urllib.request.urlopen(request, timeout=seconds).close()
            except urllib.error.HTTPError:  # an answer, if not a kind one
                pass
            answered.set()

    # In a thread, because looking up a name has no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()
