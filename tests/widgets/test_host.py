"""Widgets on a page of their own, each visitor's with its own state."""

import gc
import json
import struct
import threading
import weakref

import pytest
import traitlets
from ipywidgets.widgets.widget import _instances
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from dclip_kit.widgets import host
from dclip_kit.widgets.host import SharedPage, Tab, Visitor, make_application, pack, unpack
from dclip_kit.widgets.page import PictureWidget, read_page


class Counter(PictureWidget):
    """Counts letters, and gives them as bytes."""

    _esm, _css = read_page("gallery")
    words = traitlets.Unicode("").tag(sync=True)
    level = traitlets.Int(0, max=3).tag(sync=True)
    _bytes = traitlets.Bytes().tag(sync=True)

    def __init__(self) -> None:
        self._paths = [None] * 4
        super().__init__(_told={"names": ["a", "b"]})
        self.observe(self._count, ["words"])
        self.on_msg(self._answer)

    def _count(self, _: object) -> None:
        if self.words == "break":
            raise RuntimeError("broken")
        with self.hold_sync():
            self.message, self._bytes = f"{len(self.words)} letters", self.words.encode()

    def _answer(self, _: object, content: dict, buffers: list[bytes]) -> None:
        self.send({"said": content["say"]}, [bytes(each)[::-1] for each in buffers])


TAB = Tab("Count", ["letters"], "gallery", Counter)


def build_page(tabs=(TAB,)) -> SharedPage:
    """A page whose tabs are ready."""
    page = SharedPage("Title", lambda tell: iter(tabs))
    page._run()
    return page


@pytest.fixture
def sent():
    return []


@pytest.fixture
def visitor(sent):
    visitor = Visitor([TAB], lambda frame: sent.append(unpack(frame)))
    yield visitor
    visitor.close()


def ask(visitor, kind: str, content=None, buffers=()) -> None:
    visitor.receive(pack({"tab": 0, "kind": kind, "content": content}, buffers))


# Messages


def test_a_message_is_read_as_it_was_written() -> None:
    buffers = [b"", b"123", bytes(300)]
    header, read = unpack(
        pack({"tab": 1, "text": "Grüße \u2028"}, [*buffers[:2], memoryview(buffers[2])])
    )
    assert header["tab"] == 1 and header["text"] == "Grüße \u2028" and read == buffers


def test_a_message_by_hand() -> None:
    head = b'{"sizes":[2,1]}'
    assert unpack(struct.pack(">I", len(head)) + head + b"abc")[1] == [b"ab", b"c"]


HEAD = json.dumps({"tab": 0, "sizes": [3]}).encode()


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\0\0\0",
        struct.pack(">I", 2**32 - 1) + b"{}",
        struct.pack(">I", 2) + b"{}",
        struct.pack(">I", 2) + b"[]",
        struct.pack(">I", 4) + b"null",
        struct.pack(">I", 3) + b"\xff\xfe\xfd",
        struct.pack(">I", len(HEAD)) + HEAD + b"ab",
        struct.pack(">I", len(HEAD)) + HEAD + b"abcd",
        pack({"tab": 0})[:-2] + b"-1]}",
        struct.pack(">I", 14) + b'{"sizes":[-1]}',
        struct.pack(">I", 15) + b'{"sizes":["1"]}',
        struct.pack(">I", 200_000) + b"[" * 200_000,
    ],
)
def test_other_bytes_are_refused(frame) -> None:
    with pytest.raises(ValueError):
        unpack(frame)


# A visitor's widgets


def test_a_widget_is_made_when_its_tab_is_opened(visitor, sent) -> None:
    assert not visitor.widgets
    ask(visitor, "open")
    ((header, _),) = sent
    assert header["tab"] == 0 and header["method"] == "update"
    assert header["state"]["words"] == "" and header["state"]["_told"] == {"names": ["a", "b"]}
    assert not {"_esm", "_css", "layout"} & header["state"].keys()
    widget = visitor.widgets[0]
    ask(visitor, "open")
    assert visitor.widgets[0] is widget and len(sent) == 1


def test_a_widget_that_cannot_be_made_says_why_and_can_be_tried_again(sent) -> None:
    reasons = ["Expected a picture, got none."]

    def make() -> Counter:
        if reasons:
            raise ValueError(reasons.pop())
        return Counter()

    tabs = [Tab("Odd", [], "gallery", make), TAB]
    visitor = Visitor(tabs, lambda frame: sent.append(unpack(frame)))
    for tab in (0, 1, 0):
        visitor.receive(pack({"tab": tab, "kind": "open"}))
    failed, other, again = (header for header, _ in sent)
    assert (failed["tab"], failed["failed"]) == (0, "Failed: Expected a picture, got none.")
    assert (other["tab"], other["method"]) == (1, "update")
    assert (again["tab"], again["method"]) == (0, "update")
    visitor.close()


def test_traits_go_both_ways_with_their_bytes(visitor, sent) -> None:
    ask(visitor, "open")
    sent.clear()
    ask(visitor, "set", {"words": "dog"})
    states = [(header["state"], header["buffer_paths"], buffers) for header, buffers in sent]
    assert ({"message": "3 letters"}, [["_bytes"]], [b"dog"]) in states
    assert visitor.widgets[0].words == "dog"


def test_messages_go_both_ways_with_their_bytes(visitor, sent) -> None:
    ask(visitor, "open")
    sent.clear()
    ask(visitor, "send", {"say": "hello"}, [b"abc"])
    ((header, buffers),) = sent
    assert header["method"] == "custom" and header["content"] == {"said": "hello"}
    assert buffers == [b"cba"]


def test_a_value_that_is_refused_is_answered_with_the_true_one(visitor, sent) -> None:
    ask(visitor, "open")
    sent.clear()
    ask(visitor, "set", {"level": 9})
    assert [header["state"] for header, _ in sent] == [{"level": 0}]
    ask(visitor, "set", {"picture": 7, "level": 2})
    assert visitor.widgets[0].picture == 0


def test_a_page_sets_only_what_belongs_to_it(visitor, sent) -> None:
    """Not the widget's code, what Python told it, or another visitor's widgets."""
    other = Counter()
    ask(visitor, "open")
    widget, before = visitor.widgets[0], visitor.widgets[0].get_state()
    foreign = f"IPY_MODEL_{other.model_id}"
    names = [name for name in widget.keys if name.startswith("_")] + [
        "layout",
        "tooltip",
        "tabbable",
    ]
    ask(visitor, "set", dict.fromkeys([*names, "comm", "close", "_paths"], foreign))
    assert len(names) > 5 and widget.get_state() == before
    other.layout.close()
    other.close()


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"tab": 0, "kind": "set", "content": {"words": "x"}},  # not open yet
        {"tab": 1, "kind": "open"},
        {"tab": -1, "kind": "open"},
        {"tab": True, "kind": "open"},
        {"tab": "0", "kind": "open"},
        {"tab": [0], "kind": "open"},
    ],
)
def test_what_no_page_sends_is_refused(header, visitor) -> None:
    with pytest.raises(ValueError):
        visitor.receive(pack(header))
    assert not visitor.widgets


def test_a_visitor_who_goes_leaves_nothing(sent) -> None:
    known, visitor = len(_instances), Visitor([TAB], sent.append)
    ask(visitor, "open")
    freed = weakref.ref(visitor.widgets[0])
    visitor.close()
    gc.collect()
    assert freed() is None and len(_instances) == known


# The page


@pytest.fixture
def client():
    with TestClient(make_application(build_page())) as client:  # all sockets in one loop
        yield client


def hear(socket, wanted):
    """The next message of a kind."""
    while True:
        header, buffers = unpack(socket.receive_bytes())
        if wanted in header:
            return header, buffers


def test_the_page_and_its_files(client) -> None:
    page = client.get("/")
    assert "host.js" in page.text and "<script>" not in page.text and "style=" not in page.text
    for name in ("host", "gallery"):
        for ending, kind in (("js", "text/javascript"), ("css", "text/css")):
            reply = client.get(f"/{name}.{ending}")
            assert reply.status_code == 200 and reply.headers["content-type"].startswith(kind)
    assert client.get("/gallery.js").text == read_page("gallery")[0]


@pytest.mark.parametrize(
    "path",
    [
        "/host.py",
        "/host.html",
        "/gallery.py",
        "/inspector.js",  # no tab shows it
        "/../host.js.py",
        "/..%2fhost.py",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/elements.js",
        "/socket",
        "//etc/passwd",
    ],
)
def test_no_other_file_is_given(path, client) -> None:
    assert client.get(path).status_code in (404, 307)


def test_each_visitor_has_a_state(client) -> None:
    with client.websocket_connect("/socket") as one, client.websocket_connect("/socket") as two:
        for socket in (one, two):
            assert hear(socket, "page")[0]["page"]["tabs"] == [["Count", ["letters"], "gallery"]]
            socket.send_bytes(pack({"tab": 0, "kind": "open"}))
            hear(socket, "state")
        for socket, words in ((one, "dog"), (two, "horse")):
            socket.send_bytes(pack({"tab": 0, "kind": "set", "content": {"words": words}}))
        assert (hear(two, "state")[1], hear(one, "state")[1]) == ([b"horse"], [b"dog"])


def test_who_breaks_the_rules_is_shown_out_and_others_stay(client) -> None:
    with client.websocket_connect("/socket") as good:
        for frame in (b"nonsense", pack({"tab": 9}), "text"):
            with client.websocket_connect("/socket") as bad:
                hear(bad, "page")
                bad.send_text(frame) if isinstance(frame, str) else bad.send_bytes(frame)
                with pytest.raises(WebSocketDisconnect):
                    while True:
                        bad.receive_bytes()
        good.send_bytes(pack({"tab": 0, "kind": "open"}))
        assert hear(good, "state")[0]["state"]["words"] == ""


def test_a_widget_that_fails_does_not_end_the_page(client) -> None:
    with client.websocket_connect("/socket") as socket:
        socket.send_bytes(pack({"tab": 0, "kind": "open"}))
        hear(socket, "state")
        socket.send_bytes(pack({"tab": 0, "kind": "set", "content": {"words": "break"}}))
        socket.send_bytes(pack({"tab": 0, "kind": "set", "content": {"words": "cat"}}))
        while (message := hear(socket, "state"))[1] != [b"cat"]:
            assert message


def test_there_are_only_so_many_visitors(client, monkeypatch) -> None:
    monkeypatch.setattr(host, "MOST_VISITORS", 2)
    with client.websocket_connect("/socket") as one, client.websocket_connect("/socket"):
        hear(one, "page")
        with (
            client.websocket_connect("/socket") as third,
            pytest.raises(WebSocketDisconnect) as full,
        ):
            third.receive_bytes()
        assert full.value.code == 1013 and "close one" in full.value.reason
    with client.websocket_connect("/socket") as again:
        assert hear(again, "page")


def test_tabs_appear_as_they_are_built() -> None:
    go_on = [threading.Event(), threading.Event()]

    def build(tell):
        tell("first", 0.5)
        yield TAB
        go_on[0].wait(10)
        tell("second", None)
        yield Tab("Again", [], "gallery", Counter)
        go_on[1].wait(10)

    page = SharedPage("Title", build)
    with (
        TestClient(make_application(page)) as client,
        client.websocket_connect("/socket") as one,
        client.websocket_connect("/socket") as two,
    ):

        def follow(socket, count: int, message: str, share: float | None) -> None:
            """Hears of states, some of which may be passed over, until this one comes."""
            wanted = (count, message, share)
            while True:
                state = hear(socket, "page")[0]["page"]
                if (len(state["tabs"]), state["message"], state["share"]) == wanted:
                    return

        page.start()
        follow(one, 1, "first", 0.5)
        go_on[0].set()
        follow(one, 2, "second", None)
        two.close()  # which takes no news from others
        go_on[1].set()
        follow(one, 2, "", None)


def test_a_build_that_fails_says_why(capsys) -> None:
    def build(tell):
        yield TAB
        raise ValueError("Expected <b>more</b>, got less.")

    page = SharedPage("Title", build)
    page._run()
    assert page.state["failed"]
    assert page.state["message"] == "Failed: Expected <b>more</b>, got less."
    assert len(page.state["tabs"]) == 1  # what was ready can be used
