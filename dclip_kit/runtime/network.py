"""Whether a server answers, asked briefly before a library waits for it in silence."""

import http.client
import urllib.error
import urllib.request
import warnings


def warn_unless_answered(url: str, seconds: float = 3.0) -> None:
    """Warns if a server gives no answer within the time; behind a slow proxy it still may.

    Looking up its name has no timeout, here as in what downloads afterwards.
    """
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=seconds).close()
    except urllib.error.HTTPError:  # an answer, if not a kind one
        pass
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())
        warnings.warn(
            f"Expected an answer from {url} within {seconds:g} s, got none ({reason}); trying the "
            "download all the same.",
            stacklevel=2,
        )
