"""Serves widgets as one page: a single process and set of models, and each visitor's own state.

A widget's page asks a `model` for traits and sends it messages. In a notebook its kernel answers;
here, `host.js` does, over one socket for each visitor.

A message is a frame of bytes: the length of its header as 4 bytes, the header as JSON, and binary
buffers, whose sizes the header names.
"""

import asyncio
import json
import secrets
import socket
import struct
import threading
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import anyio.to_thread
import traitlets
import uvicorn
from comm.base_comm import BaseComm
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from dclip_kit.runtime.printing import printable, say
from dclip_kit.widgets.access import Access
from dclip_kit.widgets.page import MOST_BYTES, PictureWidget, read_page

MOST_VISITORS = 64
_HEADER_BYTES = 1 << 20  # most of a message, beside a picture
_PAUSE = 0.1  # seconds between two looks at how far the page is

Tell = Callable[[str, float | None], None]  # takes the progress in words, and its share if known


@dataclass(frozen=True)
class Tab:
    """One widget of the page.

    Attributes:
        title: on the tab.
        lines: above the widget.
        page: the name of its script and styles, for `read_page`.
        make: makes a visitor's own widget, over what all of them share.
    """

    title: str
    lines: Sequence[str]
    page: str
    make: Callable[[], PictureWidget]


class SharedPage:
    """Tabs that a thread builds once, for all visitors; those that are ready can be used.

    Attributes:
        tabs: that are ready.
        state: what pages show of it; another object after each change.
    """

    def __init__(self, title: str, build: Callable[[Tell], Iterator[Tab]]) -> None:
        """Nothing is built before `start`.

        Args:
            title: of the page.
            build: yields tabs, and tells how far it is.
        """
        self.tabs: list[Tab] = []
        self._build = build
        self.state: dict[str, Any] = {
            "title": title,
            "tabs": [],
            "message": "",
            "share": None,
            "failed": False,
        }

    def start(self) -> None:
        """Starts to build; the process does not wait for it in the end."""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        def tell(message: str, share: float | None = None) -> None:
            self._change(message=message, share=share)

        try:
            for tab in self._build(tell):
                self.tabs.append(tab)
                self._change(tabs=[[each.title, [*each.lines], each.page] for each in self.tabs])
            self._change(message="", share=None)
        except Exception as error:  # of any kind, since a thread's error reaches nobody else
            self._change(message=f"Failed: {error}", share=None, failed=True)
            say(printable(f"Failed: {error}"))

    def _change(self, **state: Any) -> None:
        self.state = self.state | state


class _SocketComm(BaseComm):
    """What a widget sends to its page; ipywidgets asks for this class."""

    def __init__(self, post: Callable[[dict[str, Any], Sequence[Any]], None], comm_id: str) -> None:
        self._post = post
        super().__init__(target_name="jupyter.widget", comm_id=comm_id, primary=False)

    def publish_msg(
        self,
        msg_type: str,
        data: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
        buffers: list[Any] | None = None,
        **keys: Any,
    ) -> None:
        """Sends a widget's state, or a message of its own."""
        # A page knows what it has set itself.
        if msg_type == "comm_msg" and data and data.get("method") != "echo_update":
            self._post(data, buffers or ())

    def close(self, *_: Any, **__: Any) -> None:
        """Does nothing: what no kernel has registered ends with its socket."""


class Visitor:
    """A visitor's widgets, each made when its tab is first opened."""

    def __init__(self, tabs: Sequence[Tab], post: Callable[[bytes], None]) -> None:
        """Makes no widget yet.

        Args:
            tabs: of the shared page; further ones may come.
            post: sends a message to the visitor; called from any thread.
        """
        self._tabs, self._post, self.widgets = tabs, post, dict[int, PictureWidget]()

    def receive(self, frame: bytes) -> None:
        """Handles a message of the visitor's page.

        Raises:
            ValueError: it is not one that the page sends.
        """
        header, buffers = unpack(frame)
        number, kind, content = header.get("tab"), header.get("kind"), header.get("content")
        if type(number) is not int or not 0 <= number < len(self._tabs):
            raise ValueError(f"Expected the number of a tab, got {number!r}.")
        if kind == "open":
            self._open(number)
            return
        widget = self.widgets.get(number)
        if widget is None or not isinstance(content, dict):
            raise ValueError("Expected a tab that is open, and a message to it.")
        if kind == "set":
            self._set(widget, content)
        elif kind == "send":
            widget.comm.handle_msg(
                {"content": {"data": {"method": "custom", "content": content}}, "buffers": buffers}
            )

    def close(self) -> None:
        """Frees the widgets."""
        for widget in self.widgets.values():
            widget.layout.close()
            widget.close()
        self.widgets = {}

    def _open(self, number: int) -> None:
        def post(data: Mapping[str, Any], buffers: Sequence[Any]) -> None:
            self._post(pack({"tab": number, **data}, buffers))

        if number in self.widgets:
            return
        try:
            widget = self._tabs[number].make()
        except Exception as error:  # of any kind: other tabs go on
            post({"failed": f"Failed: {error}"}, ())
            say(printable(f"{self._tabs[number].title}: {error}"))
            return
        unused, widget.comm = widget.comm, _SocketComm(post, widget.comm.comm_id)
        unused.close()
        self.widgets[number] = widget
        sent = set(widget.keys) - {"_esm", "_css", "layout"}  # files, and another widget
        widget.send_state(sent)

    @staticmethod
    def _set(widget: PictureWidget, state: Mapping[str, Any]) -> None:
        """Sets traits that a page may set; answers others with the value that they have."""
        own = {name for name in widget.keys if not name.startswith("_")}
        own -= {"layout", "tooltip", "tabbable"}  # ipywidgets' own, one of them another widget
        names = state.keys() & own
        try:
            widget.set_state({name: state[name] for name in names})
        except traitlets.TraitError:
            widget.send_state(names)
        except Exception as error:  # of any kind: one query that fails does not end the page
            widget.send_state(names)
            widget.message = f"That has failed: {error}"


def pack(header: Mapping[str, Any], buffers: Sequence[Any] = ()) -> bytes:
    """A message as bytes."""
    sizes = [memoryview(each).nbytes for each in buffers]
    head = json.dumps({**header, "sizes": sizes}).encode()
    return b"".join([struct.pack(">I", len(head)), head, *buffers])


def unpack(frame: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """A message's header and buffers.

    Raises:
        ValueError: the bytes are not a message.
    """
    try:
        (length,) = struct.unpack_from(">I", frame)
        header = json.loads(frame[4 : 4 + length])
        sizes = header["sizes"]
        ends = [4 + length + sum(sizes[: i + 1]) for i in range(len(sizes))]
        if (
            length > _HEADER_BYTES
            or min(sizes, default=0) < 0
            or [4 + length, *ends][-1] != len(frame)
        ):
            raise ValueError("Expected other sizes.")
        return header, [frame[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    except (struct.error, KeyError, TypeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError("Expected a message of the page, got other bytes.") from error


def make_application(page: SharedPage) -> Starlette:
    """The page, its files and its socket, without a check of who asks."""
    visitors, turn = set[Visitor](), anyio.CapacityLimiter(1)  # one computes at a time

    async def converse(socket: WebSocket) -> None:
        await socket.accept()
        if len(visitors) >= MOST_VISITORS:
            await socket.close(1013, f"{MOST_VISITORS} pages are open; close one.")
            return
        loop, outbox = asyncio.get_running_loop(), asyncio.Queue[bytes]()

        def post(frame: bytes) -> None:
            loop.call_soon_threadsafe(outbox.put_nowait, frame)

        async def send_all() -> None:
            while True:
                await socket.send_bytes(await outbox.get())
                outbox.task_done()

        async def follow_page() -> None:
            state = None
            while True:
                if page.state is not state:
                    state = page.state
                    post(pack({"page": state}))
                await anyio.sleep(_PAUSE)

        visitor = Visitor(page.tabs, post)
        visitors.add(visitor)
        try:
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(send_all)
                    tasks.start_soon(follow_page)
                    while (message := await socket.receive())["type"] == "websocket.receive":
                        frame = message.get("bytes") or b""  # text is no message of the page
                        await anyio.to_thread.run_sync(visitor.receive, frame, limiter=turn)
                        await outbox.join()  # who does not read is not answered further
                    tasks.cancel_scope.cancel()
            finally:  # before the socket is closed, which may take long
                visitors.discard(visitor)
                visitor.close()
        except* ValueError:  # a message that the page would not have sent
            await socket.close(1003)
        except* WebSocketDisconnect:
            pass

    async def show(request: Request) -> Response:
        return HTMLResponse(_read("host.html"))

    async def give_file(request: Request) -> Response:
        name, ending = request.path_params["name"], request.path_params["ending"]
        kinds = {"js": "text/javascript", "css": "text/css"}
        if name == "host" and ending in kinds:
            return Response(_read(f"host.{ending}"), media_type=kinds[ending])
        if name in {tab.page for tab in page.tabs} and ending in kinds:
            return Response(read_page(name)[ending == "css"], media_type=kinds[ending])
        return PlainTextResponse("There is no such file.", 404)

    return Starlette(
        routes=[
            Route("/", show),
            Route("/{name:str}.{ending:str}", give_file),
            WebSocketRoute("/socket", converse),
        ]
    )


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def serve(page: SharedPage, port: int, browser: bool) -> None:
    """Serves the page to this machine until Ctrl-C, and only to those who have its address.

    Args:
        page: not started yet.
        port: where.
        browser: whether to open it in a browser, too.

    Raises:
        ValueError: the port is in use.
    """
    token = secrets.token_urlsafe()
    address = f"http://127.0.0.1:{port}/?token={token}"
    with socket.socket() as listening, TemporaryDirectory() as folder:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
        except OSError as error:
            raise ValueError(
                f"Expected a free port, got {port} ({error}); name another."
            ) from error
        listening.listen()
        page.start()
        say(f"The page is at {address} until Ctrl-C.")
        if browser:
            # The address goes through a file that only this account can read, since others can
            # see the arguments of programs.
            file = Path(folder, "open.html")
            file.write_text(f'<meta http-equiv="refresh" content="0; url={address}">')
            threading.Thread(target=webbrowser.open, args=(file.as_uri(),), daemon=True).start()
        config = uvicorn.Config(
            Access(make_application(page), port, token),
            log_level="critical",
            access_log=False,  # it would print the token
            server_header=False,
            timeout_graceful_shutdown=1,
            ws_max_size=MOST_BYTES + _HEADER_BYTES,
        )
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
