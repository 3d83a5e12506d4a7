"""Whether a server answers: one that does, kindly or not, and ones that do not."""

import socket
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from dclip_kit.runtime.network import warn_unless_answered


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.mark.parametrize("status", [200, 404, 500])
def test_any_answer_counts(status) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with warnings.catch_warnings(action="error"):
                warn_unless_answered(f"http://127.0.0.1:{server.server_port}/weights")
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("answer", [None, b"nonsense\r\n\r\n", b""], ids=["silent", "odd", "gone"])
def test_what_is_no_answer_is_warned_of_and_costs_no_more_than_the_limit(answer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                if answer is None:
                    time.sleep(1.5)
                else:
                    connection.recv(1000)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        began = time.monotonic()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.warns(UserWarning, match=rf"answer from {url} within 0\.5 s, got none \("):
            warn_unless_answered(url, seconds=0.5)
        assert time.monotonic() - began < 1.2
        thread.join()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense", "", "http://"])
def test_where_no_server_is_nothing_answers(url) -> None:
    with pytest.warns(UserWarning, match="got none") as caught:
        warn_unless_answered(url, seconds=2.0)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
