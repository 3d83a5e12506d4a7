"""The app in Voilà: somebody who writes no Python searches a folder of theirs."""

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from lab import ROOT, find_port, wait_until
from playwright.sync_api import expect

from dclip_kit.config import get_profile
from dclip_kit.data.pocket import world
from dclip_kit.runtime.files import asset_path, write_record

PICTURES = 520  # three batches


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of pictures without captions, one of them with a name that would be HTML."""
    folder = tmp_path_factory.mktemp("photos")
    for path in world.load_captioned("test").paths[:PICTURES]:
        shutil.copy(path, folder)
    (folder / "00011.jpg").rename(folder / "<img src=x onerror=alert(1)>.jpg")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def address(photos, tmp_path_factory):
    """Where `python -m dclip_kit app photos --model runs/mine/region_taught` serves."""
    run = tmp_path_factory.mktemp("runs")
    write_record(get_profile("pocket").as_dict(), run / "settings.json")
    for ending in ("json", "safetensors"):
        shutil.copy(asset_path("pocket_arms", f"region_taught.{ending}"), run)
    port = find_port()
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "DCLIP_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    command = [
        *(sys.executable, "-m", "dclip_kit", "app", str(photos), "--no-browser"),
        *("--model", str(run / "region_taught"), "--port", str(port)),
    ]
    with (run / "voila.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=run)
        try:
            end = time.monotonic() + 120
            while "is running at" not in (run / "voila.log").read_text():
                assert server.poll() is None and time.monotonic() < end, (
                    run / "voila.log"
                ).read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture(scope="module")
def page(browser, address):
    page, errors = browser.new_page(viewport={"width": 1440, "height": 900}), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address, timeout=180_000)
    yield page
    page.close()
    # Voilà itself looks for widgets that a notebook was saved with, and is astonished to find none.
    assert set(errors) <= {"Cannot read properties of null (reading 'widgets')"}


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


def test_the_folder_is_never_given_out(address, photos, page) -> None:
    asked = [
        "voila/files/00000.jpg",
        "files/00000.jpg",
        f"voila/files{photos}/00000.jpg",
        "voila/files/app.ipynb",
        "voila/files/../../00000.jpg",
        f"voila/files/..%2f..%2f..{photos}/00000.jpg",
        "api/contents",
    ]
    for place in asked:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}/{place}", timeout=10)
        assert refused.value.code in (403, 404), place
    assert page.locator("img[onerror], img[src=x]").count() == 0
