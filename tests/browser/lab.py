"""A real JupyterLab, and a real Chromium that looks at it."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).parents[2]


def find_chromium() -> str | None:
    """The distribution's Chromium, or what BROWSER_PATH names."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, names)), None)


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def serve_lab(folder: Path) -> Iterator[str]:
    """JupyterLab over a folder; yields its address."""
    port = find_port()
    settings = folder / ".settings"
    overrides = settings / "@jupyterlab" / "apputils-extension"
    overrides.mkdir(parents=True)
    (overrides / "notification.jupyterlab-settings").write_text(
        json.dumps({"fetchNews": "false", "checkForUpdates": False})
    )
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTER_CONFIG_DIR": str(folder / ".config"),
        "IPYTHONDIR": str(folder / ".ipython"),
        "HF_HUB_OFFLINE": "1",
    }
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
                *(f"--port={port}", "--port-retries=0", "--ip=127.0.0.1"),
                *("--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"),
                "--LabApp.news_url=None",
            ],
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(240):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{address}/api", timeout=1).close()
                    break
                if server.poll() is not None:
                    break
                time.sleep(0.5)
            else:
                raise TimeoutError((folder / "lab.log").read_text())
            yield address
        finally:
            server.terminate()
            server.wait(20)


def write_notebook(path: Path, *cells: str) -> None:
    """A notebook of code cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, path)


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Waits for what becomes true in the page's own time."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@contextlib.contextmanager
def dark_theme(page: Any, widget: Any) -> Iterator[None]:
    """JupyterLab's dark theme, which the widget's ink has to follow, there and back."""

    def ink() -> int:
        color = widget.evaluate("root => getComputedStyle(root).color")
        return sum(map(int, re.findall(r"\d+", color)[:3]))

    def choose(theme: str) -> None:
        page.get_by_role("menuitem", name="Settings", exact=True).click()
        page.locator(".lm-Menu-item", has_text="Theme").first.hover()
        page.locator(".lm-Menu-item", has_text=theme).first.click()

    def uncovered() -> bool:  # JupyterLab covers the page while it changes its theme
        return page.locator("#jupyterlab-splash").count() == 0

    light = ink()
    choose("JupyterLab Dark")
    wait_until(lambda: ink() > light + 200 and uncovered())
    yield
    choose("JupyterLab Light")
    wait_until(lambda: ink() == light and uncovered())
