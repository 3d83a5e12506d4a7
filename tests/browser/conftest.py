"""One JupyterLab and one Chromium for all tests here."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.browser.lab import find_chromium, serve_lab, write_notebook

CHROMIUM = find_chromium()
expect.set_options(timeout=15_000)  # milliseconds: busy machines draw late
# What JupyterLab itself says on a server without extensions or a network.
QUIET = ("favicon", "ERR_INTERNET_DISCONNECTED", "ERR_NAME_NOT_RESOLVED", "preload")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not CHROMIUM and not os.environ.get("CI"):
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="there is no Chromium here; install one"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """The address of a JupyterLab, and the folder that it shows."""
    folder = tmp_path_factory.mktemp("lab")
    with serve_lab(folder) as address:
        yield address, folder


@pytest.fixture(scope="module")
def open_notebook(browser, lab) -> Iterator[object]:
    """Opens a notebook of some cells in JupyterLab, runs all of them, and gives its page.

    The page fails its tests in the end if anything in it raised an error.
    """
    (address, folder), pages, errors = lab, [], []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and not any(quiet in message.text for quiet in QUIET):
            errors.append(message.text)

    def run(name: str, *cells: str, width: int = 1440, height: int = 900) -> Page:
        write_notebook(folder / name, *cells)
        page = browser.new_page(viewport={"width": width, "height": height})
        pages.append(page)
        page.on("console", note)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_default_timeout(120_000)
        page.goto(f"{address}/lab/tree/{name}?reset")
        page.wait_for_selector(r"text=/ipykernel\) \| Idle/")
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.set_default_timeout(20_000)
        return page

    yield run
    for page in pages:
        page.close()
    assert not errors


@pytest.fixture(scope="module")
def shots(page, tmp_path_factory) -> Callable[[str], object]:
    """Leaves a picture of the page behind by this name, in $SCREENSHOTS if it is set."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("shots"))
    return lambda name: page.screenshot(path=folder / f"{name}.png")
