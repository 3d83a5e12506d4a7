"""Screenshots of the app's three pages for README: `python -m assets.make.screenshots FOLDER`."""

import argparse
import base64
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from assets.make.notebook_files import shrink_png
from dclip_kit.runtime.files import write_atomically

PORT = 8867
ADDRESS = re.compile(r"http\S+token=\S+")  # as the app prints it
TABS = {"gallery": "Search", "playground": "Name", "inspector": "Regions"}


def take(folder: Path) -> None:
    """Serves the pocket's app, opens each of its pages and writes gallery.png, ….

    Raises:
        ValueError: there is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        raise ValueError("Expected a Chromium, got none; install one or set BROWSER_PATH.")
    command = [sys.executable, "-m", "dclip_kit", "app", "--no-browser", f"--port={PORT}"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        address = next(found[0] for line in server.stdout if (found := ADDRESS.search(line)))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1100, "height": 900})
            page.goto(address)
            page.get_by_role("tab", name="Regions").wait_for(timeout=600_000)
            page.get_by_label("what fine-tuning did to them").select_option("won")
            page.get_by_label("next caption").click()
            page.get_by_role("tab", name="Name").click()
            page.get_by_role("button", name="→").first.click()  # the class most forgotten
            for name, tab in TABS.items():
                page.get_by_role("tab", name=tab).click()
                widget = page.locator(f".dclip-{name}")
                widget.wait_for()
                page.wait_for_timeout(2_000)  # pictures and lines
                screenshot = base64.b64encode(page.screenshot(full_page=True)).decode("ascii")
                write_atomically(folder / f"{name}.png", base64.b64decode(shrink_png(screenshot)))
            browser.close()
    finally:
        server.terminate()
        server.wait(30)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m assets.make.screenshots", description=__doc__)
    parser.add_argument("folder", type=Path)
    take(parser.parse_args().folder)


if __name__ == "__main__":
    main()
