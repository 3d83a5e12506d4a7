"""The app: somebody who writes no Python searches a folder of theirs."""

import http.client
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import uvicorn
from playwright.sync_api import expect

from dclip_kit.data.pocket import world
from dclip_kit.runtime.files import asset_path
from dclip_kit.widgets.host import SharedPage, Tab, make_application
from dclip_kit.widgets.page import MOST_BYTES
from tests.browser.lab import ROOT, find_port, wait_until

PICTURES = 520  # three batches
WEBSOCKET = {  # what asks for one; the answer is 101
    **{"Connection": "Upgrade", "Upgrade": "websocket"},
    **{"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13"},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of pictures without captions, one of them with a name that would be HTML."""
    folder = tmp_path_factory.mktemp("photos")
    for path in world.load_captioned("test").paths[:PICTURES]:
        shutil.copy(path, folder)
    (folder / "000011.jpg").rename(folder / "<img src=x onerror=alert(1)>.jpg")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@dataclass
class Served:
    """An app that serves.

    Attributes:
        address: as it is printed, with the token.
        opened: the file with what the person's browser was told to open.
        process: the server.
    """

    address: str
    opened: Path
    process: psutil.Process

    @property
    def home(self) -> str:
        return self.address.partition("/?")[0]

    @property
    def place(self) -> tuple[str, int]:
        return "127.0.0.1", urlsplit(self.address).port

    @property
    def megabytes(self) -> float:
        every = [self.process, *self.process.children(recursive=True)]
        return sum(each.memory_info().rss for each in every) / 2**20

    def ask(self, path: str, **headers: str) -> int:
        """The status of the answer; redirections are not followed."""
        connection = http.client.HTTPConnection(*self.place, timeout=60)
        connection.request("GET", path, headers=headers)
        with connection.getresponse() as answer:
            if answer.status != 101:
                answer.read()
            return answer.status

    def send(self, text: bytes) -> socket.socket:
        """A connection that has sent this and nothing more."""
        connection = socket.create_connection(self.place, 10)
        connection.sendall(text)
        return connection


@pytest.fixture(scope="module")
def served(photos, tmp_path_factory):
    """`python -m dclip_kit app photos --model runs/mine/region_taught`."""
    run = tmp_path_factory.mktemp("runs")
    shutil.copytree(asset_path("pocket_arms", "region_taught"), run / "region_taught")
    opener = run / "browser"
    opener.write_text(f'#!/bin/sh\necho "$1" > {run}/opened.new; mv {run}/opened.new {run}/opened')
    opener.chmod(0o755)
    environment = os.environ | {
        "BROWSER": str(opener),
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "DCLIP_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    command = [
        *(sys.executable, "-m", "dclip_kit", "app", str(photos)),
        *("--model", str(run / "region_taught"), "--port", str(find_port())),
    ]
    with (run / "app.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=run)
        try:
            log_file, end = run / "app.log", time.monotonic() + 120
            while not (printed := re.search(r"(http\S+token=\S+) ", log_file.read_text())):
                assert server.poll() is None and time.monotonic() < end, log_file.read_text()
                time.sleep(0.1)
            yield Served(printed[1], run / "opened", psutil.Process(server.pid))
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture(scope="module")
def page(browser, served):
    """The page, which asks nobody else and breaks none of its own rules."""
    page, errors, asked = browser.new_page(viewport={"width": 1440, "height": 900}), [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(served.address)
    yield page
    page.close()
    assert not errors and len(asked) > 5
    assert {urlsplit(url.removeprefix("blob:")).netloc for url in asked} <= {served.home[7:], ""}


def row(page, name: str):
    return page.get_by_role("list", name=re.compile(f"^{name}")).get_by_role("button", name="rank")


def cookie_of(page) -> dict[str, str]:
    (cookie,) = page.context.cookies()
    assert cookie["sameSite"] == "Strict" and cookie["httpOnly"]
    return {"Cookie": f"{cookie['name']}={cookie['value']}"}


def search(page, words: str) -> None:
    box = page.get_by_label("words to search for")
    box.fill(words)
    box.press("Enter")


def test_embedding_shows_how_far_it_is(page, served, shots) -> None:
    progress = page.get_by_text(re.compile(rf"^the untouched CLIP: \d+ of {PICTURES + 1} new"))
    expect(progress).to_be_visible(timeout=120_000)
    expect(page.get_by_role("progressbar")).to_be_visible()
    shots("app-embedding")
    page.reload()  # which changes nothing for the server
    expect(page.locator(".dclip-gallery")).to_be_visible(timeout=180_000)
    expect(page.get_by_text("Left out, since they cannot be read: 1.")).to_be_visible()
    expect(page.get_by_role("progressbar")).to_be_hidden()
    assert "token" not in page.url


def test_both_models_answer(page, photos, shots) -> None:
    expect(page.get_by_text(f"{PICTURES} pictures of {photos}.")).to_be_visible()
    box = page.get_by_label("words to search for")
    expect(page.get_by_role("status")).to_contain_text("Nothing to look for yet")
    box.fill("a dog by the sea")
    box.press("Enter")
    for name in ("before", "after"):
        expect(row(page, name)).to_have_count(5)
    wait_until(
        lambda: all(
            image.evaluate("image => image.complete && image.naturalWidth > 100")
            for image in page.locator(".hit img").all()
        )
    )
    shots("app-found")
    box.fill("")
    box.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("Nothing to look for yet")
    expect(page.locator(".hit")).to_have_count(0)


def test_a_hit_is_opened_and_closed(page, photos, shots) -> None:
    box = page.get_by_label("words to search for")
    box.fill("a bus")
    box.press("Enter")
    expect(row(page, "before")).to_have_count(5)
    row(page, "before").first.focus()
    expect(row(page, "before").first).to_be_focused()
    page.keyboard.press("o")
    dialog = page.get_by_role("dialog", name="a picture that was found")
    expect(dialog).to_be_visible()
    name = dialog.locator("p").inner_text()
    assert (photos / name).is_file()
    wait_until(lambda: dialog.locator("img").evaluate("image => image.naturalWidth >= 256"))
    shots("app-opened")
    page.keyboard.press("Escape")
    expect(dialog).not_to_be_visible()
    expect(row(page, "before").first).to_be_focused()
    row(page, "before").nth(1).hover()
    page.get_by_role("button", name="open picture").nth(1).click()
    expect(dialog).to_be_visible()
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).not_to_be_visible()


def test_hits_are_saved_as_a_table(page, photos) -> None:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    assert download.value.suggested_filename == "found.csv"
    lines = download.value.path().read_text(encoding="utf-8").splitlines()
    assert lines[0] == "query,row,rank,score,file" and len(lines) == 11
    assert all((photos / line.rpartition(",")[2]).is_file() for line in lines[1:])


def test_without_the_token_nothing_is_given_out(served, page) -> None:
    known = cookie_of(page)
    for path in ("/", "/?token=", "/?token=1234", "/host.js", "/gallery.js", "/socket", "/x"):
        assert served.ask(path) == 403, path
    for headers in ({}, {"Origin": served.home}):
        assert served.ask("/socket", **WEBSOCKET, **headers) == 403
    assert served.ask("/", **known) == 200
    assert served.ask("/socket", **WEBSOCKET, **known) == 403  # no Origin
    assert served.ask("/socket", **WEBSOCKET, **known, Origin=served.home) == 101


def test_other_sites_are_not_let_in_by_the_persons_browser(served, page) -> None:
    """Neither by a name that leads to this machine, nor from a page of their own."""
    known = cookie_of(page)
    for path in ("/", urlsplit(served.address)._replace(scheme="", netloc="").geturl()):
        assert served.ask(path, Host=f"evil.example:{served.place[1]}", **known) == 403, path
    evil = {"Origin": "http://evil.example"}
    assert served.ask("/", **known, **{"Sec-Fetch-Site": "cross-site"}) == 403
    assert served.ask("/socket", **WEBSOCKET, **evil, **known) == 403
    evil["Host"] = "evil.example"
    assert served.ask("/socket", **WEBSOCKET, **evil, **known) == 403


def test_the_browser_that_is_opened_is_let_in(served, browser) -> None:
    context = browser.new_context()  # another person's browser, as it were
    tab = context.new_page()
    tab.goto(served.opened.read_text().strip())
    expect(tab.locator(".dclip-gallery")).to_be_visible(timeout=60_000)
    tab.reload()
    expect(tab.locator(".dclip-gallery")).to_be_visible(timeout=60_000)
    context.close()


def test_the_folder_is_never_given_out(served, photos, page) -> None:
    known = cookie_of(page)
    asked = [
        *("/000000.jpg", "/files/000000.jpg", f"/files{photos}/000000.jpg", f"{photos}/000000.jpg"),
        *("/../../000000.jpg", f"/..%2f..%2f..{photos}/000000.jpg", "/host.py", "/api/contents"),
    ]
    for place in asked:
        assert served.ask(place, **known) in (403, 404), place
    assert page.locator("img[onerror], img[src=x]").count() == 0


def test_each_visitor_has_a_query_of_their_own(served, browser, page) -> None:
    search(page, "a bus")
    expect(row(page, "before")).to_have_count(5)
    context = browser.new_context()
    tabs = [context.new_page() for _ in range(9)]
    for number, tab in enumerate(tabs):
        tab.goto(served.address)
        expect(tab.locator(".dclip-gallery")).to_be_visible(timeout=60_000)
        assert tab.get_by_label("words to search for").input_value() == ""
        search(tab, ["a dog", "a cat", "a tree"][number % 3])
        expect(row(tab, "after")).to_have_count(5)
    assert page.get_by_label("words to search for").input_value() == "a bus"
    assert not served.process.children()
    context.close()


HOSTILE = [
    b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: {host}\r\nHost: evil.example\r\n\r\n",
    b"GET http://evil.example/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
    b"GET /../../../../etc/passwd HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n\r\n",
    b"GET /%00 HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 99999999999\r\n\r\nxx",
    b"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
    b"GET / HTTP/1.1\r\nHost: {host}\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: {host}\r\nX-Slow: ",  # and nothing more
    b"",  # connected, and silent
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"GET /socket HTTP/1.1\r\nHost: {host}\r\n{upgrade}Origin: http://evil.example\r\n"
    b"Cookie: {cookie}\r\n\r\n",
    b"GET /socket HTTP/1.1\r\nHost: {host}\r\n{upgrade}Origin: http://{host}\r\n\r\n",
    b"GET /socket HTTP/1.1\r\nHost: {host}\r\n{upgrade}Origin: http://{host}\r\n"
    b"Cookie: {cookie}\r\nSec-WebSocket-Protocol: v1.kernel.websocket.jupyter.org\r\n\r\n",
]
LET_IN = (
    b"GET /socket HTTP/1.1\r\nHost: {host}\r\n{upgrade}Origin: http://{host}\r\n"
    b"Cookie: {cookie}\r\n\r\n"
)
FRAMES = [  # longer than any, no message, and never finished
    b"\x82\xff" + struct.pack(">Q", 2**40) + b"maskxxxx",
    b"\x82\x84mask" + b"xxxx",
    b"\x82\xff" + struct.pack(">Q", MOST_BYTES) + b"maskxx",
]


def test_three_hundred_hostile_requests(served, page, browser) -> None:
    """They cost little, and whoever is let in is still answered."""
    search(page, "a dog")
    before = served.megabytes
    upgrade = "".join(f"{name}: {value}\r\n" for name, value in WEBSOCKET.items()).encode()
    words = {
        b"{host}": served.home.removeprefix("http://").encode(),
        b"{cookie}": cookie_of(page)["Cookie"].encode(),
        b"{upgrade}": upgrade,
    }
    held = []
    asked = [(each, b"") for each in HOSTILE] + [(LET_IN, each) for each in FRAMES]
    for text, frame in islice(cycle(asked), 300):
        for name, value in words.items():
            text = text.replace(name, value)
        try:
            held.append(served.send(text))
            if frame:
                assert held[-1].recv(1000).startswith(b"HTTP/1.1 101 ")
                held[-1].sendall(frame)
        except OSError:  # refused at once
            continue
    assert len(held) > 250
    for words_asked in ("a red bus", "a cat"):
        search(page, words_asked)
        expect(row(page, "after")).to_have_count(5)
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(served.address)
    expect(tab.locator(".dclip-gallery")).to_be_visible(timeout=60_000)
    context.close()
    assert served.process.is_running() and len(served.process.children()) <= 2
    assert served.megabytes < before + 100
    answers = []
    for connection in held:
        connection.settimeout(0.05)
        try:
            answers.append(connection.recv(20))
        except OSError:
            answers.append(b"")
        connection.close()
    statuses = {answer[9:12] for answer in answers if answer.startswith(b"HTTP/1.1 ")}
    assert b"200" not in statuses and b"403" in statuses, statuses


def test_who_loses_the_connection_is_told(served, browser, shots) -> None:
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(served.address)
    expect(tab.locator(".dclip-gallery")).to_be_visible(timeout=60_000)
    served.process.terminate()
    expect(tab.get_by_text("The connection has ended.")).to_be_visible()
    context.close()


def test_a_tab_that_fails_says_why_and_is_tried_again_when_clicked(browser) -> None:
    reasons = ["<b>no</b> memory", "no picture"]

    def fail():
        raise RuntimeError(reasons.pop(0))

    shared = SharedPage("Title", lambda tell: iter([Tab("Odd", [], "inspector", fail)] * 2))
    shared._run()
    port = find_port()
    config = uvicorn.Config(make_application(shared), port=port, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    tab = browser.new_page()
    tab.goto(f"http://127.0.0.1:{port}")
    alert = tab.get_by_role("alert")
    expect(alert).to_have_text("Failed: <b>no</b> memory")
    tab.get_by_role("tab").first.click()
    expect(alert).to_have_text("Failed: no picture")
    tab.close()
    server.should_exit = True
    thread.join(10)
