"""The app in Voilà: somebody who writes no Python searches a folder of theirs."""

import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from playwright.sync_api import expect

from dclip_kit.data.pocket import world
from dclip_kit.runtime.files import asset_path
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
        process: the server; its children are the kernels.
    """

    address: str
    opened: Path
    process: psutil.Process

    @property
    def token(self) -> str:
        return urlsplit(self.address).query.removeprefix("token=")

    @property
    def kernels(self) -> int:
        return len(self.process.children())

    def ask(self, path: str, **headers: str) -> int:
        """The status of the answer; redirections are not followed."""
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=60)
        connection.request("GET", path, headers=headers)
        with connection.getresponse() as answer:
            answer.read()
            return answer.status


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
        "JUPYTER_TOKEN": "another server's",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "DCLIP_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    command = [
        *(sys.executable, "-m", "dclip_kit", "app", str(photos)),
        *("--model", str(run / "region_taught"), "--port", str(find_port())),
    ]
    with (run / "voila.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=run)
        try:
            end = time.monotonic() + 120
            while not (
                printed := re.search(
                    r"is running at:\s+(http\S+)\n", said := (run / "voila.log").read_text()
                )
            ):
                assert server.poll() is None and time.monotonic() < end, said
                time.sleep(0.2)
            yield Served(printed[1], run / "opened", psutil.Process(server.pid))
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture(scope="module")
def page(browser, served):
    page, errors = browser.new_page(viewport={"width": 1440, "height": 900}), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(served.address, timeout=180_000)
    yield page
    page.close()
    # Voilà itself looks for widgets that a notebook was saved with, and is astonished to find none.
    assert set(errors) <= {"Cannot read properties of null (reading 'widgets')"}


def kernel_of(page) -> str:
    """Where the server answers for the page's kernel."""
    settings = json.loads(page.locator("#jupyter-config-data").text_content())
    return f"/api/kernels/{settings['kernelId']}"


def row(page, name: str):
    return page.get_by_role("list", name=re.compile(f"^{name}")).get_by_role("button", name="rank")


def test_embedding_shows_how_far_it_is_and_is_cancelled(page, shots) -> None:
    progress = page.get_by_text(re.compile(rf"^the untouched CLIP: \d+ of {PICTURES + 1} new"))
    expect(progress).to_be_visible(timeout=120_000)
    expect(
        page.locator(".widget-hprogress .progress, .widget-inline-hbox .progress").first
    ).to_be_visible()
    shots("app-embedding")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text(re.compile("^Stopped. the untouched CLIP: "))).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    expect(page.locator(".dclip-gallery")).to_be_visible(timeout=180_000)
    expect(page.get_by_text("Left out, since they cannot be read: 1.")).to_be_visible()
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)


def test_both_models_answer(page, photos, shots) -> None:
    expect(page.get_by_text(f"{PICTURES} pictures of {photos}")).to_be_visible()
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
    kernel, before = kernel_of(page), served.kernels
    channels = f"{kernel}/channels?session_id=1"
    for path in ("/", "/?token=", "/?token=1234", "/?token=another%20server's", "/voila/render/"):
        assert served.ask(path) == 302, path  # to where a token may be given
    assert served.ask(kernel) == 403
    for headers in ({}, {"Origin": served.address.partition("/?")[0]}):
        assert served.ask(channels, **WEBSOCKET, **headers) == 403
    assert served.kernels == before
    known = {"Authorization": f"token {served.token}"}
    assert served.ask(kernel, **known) == 200
    assert served.ask(channels, **WEBSOCKET, **known) == 101


def test_other_sites_are_not_let_in_by_the_persons_browser(served, page) -> None:
    """Neither by a name that leads to this machine, nor from a page of their own."""
    kernel, before = kernel_of(page), served.kernels
    channels = f"{kernel}/channels?session_id=1"
    (cookie,) = page.context.cookies()
    assert cookie["sameSite"] == "Strict" and cookie["httpOnly"]
    known = {"Cookie": f"{cookie['name']}={cookie['value']}"}
    assert served.ask(kernel, **known) == 200
    assert served.ask(channels, **WEBSOCKET, **known) == 101
    for path in ("/", urlsplit(served.address)._replace(scheme="", netloc="").geturl(), kernel):
        assert served.ask(path, Host="evil.example", **known) == 403, path
    assert served.ask(kernel, Origin="http://evil.example", **known) == 404
    for foreign in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        assert served.ask(channels, **WEBSOCKET, **foreign, **known) == 403
    assert served.kernels == before


def test_the_browser_that_is_opened_is_let_in_and_its_kernel_ends_with_the_tab(
    served, browser, page
) -> None:
    before = served.kernels
    tab = browser.new_page()
    tab.goto(served.opened.read_text().strip())
    tab.wait_for_url(served.address, timeout=180_000)
    expect(tab.locator(".dclip-gallery")).to_be_visible(timeout=180_000)
    assert served.kernels == before + 1
    tab.goto("about:blank")
    wait_until(lambda: served.kernels == before)
    tab.close()


def test_the_folder_is_never_given_out(served, photos, page) -> None:
    base = served.address.partition("/?")[0]
    asked = [
        "voila/files/000000.jpg",
        "files/000000.jpg",
        f"voila/files{photos}/000000.jpg",
        "voila/files/app.ipynb",
        "voila/files/../../000000.jpg",
        f"voila/files/..%2f..%2f..{photos}/000000.jpg",
        "api/contents",
    ]
    for place in asked:
        request = urllib.request.Request(f"{base}/{place}")
        request.add_header("Authorization", f"token {served.token}")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        assert refused.value.code in (403, 404), place
    assert page.locator("img[onerror], img[src=x]").count() == 0
