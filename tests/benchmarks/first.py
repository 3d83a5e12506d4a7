"""What stands between a person and the first answer, beside importing torch and open_clip.

`python tests/benchmarks/first.py [FILE.json]` searches a folder of 1,000 pictures from a shell,
when its index is known; runs notebook 00 in a new kernel up to its first picture, when nothing of
the kit is cached; and starts the app and asks its page's socket for a query, with an empty cache
and again. Each is the fastest of its rounds, in turns with the import.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

import nbformat
from nbclient import NotebookClient
from websockets.sync.client import connect
from websockets.typing import Origin

from dclip_kit.data.pocket.world import load_captioned
from dclip_kit.runtime.files import write_atomically
from dclip_kit.widgets.host import pack, unpack

ROUNDS = 3
PORT = 8868
PICTURES = {"image/png", "application/vnd.plotly.v1+json"}
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "00_quickstart.ipynb"


def seconds(work: Callable[[], Any]) -> float:
    """The time that something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def call(*arguments: str) -> None:
    """Runs Python in a process of its own."""
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def show_first_picture() -> None:
    """Runs the notebook's cells until one shows a picture, with an empty cache."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    with TemporaryDirectory() as cache:
        variables = {**os.environ, "DCLIP_CACHE": cache}
        with client.setup_kernel(env=variables):
            for index, cell in enumerate(notebook.cells):
                client.execute_cell(cell, index)
                outputs = cell.get("outputs", [])
                if any(PICTURES & output.get("data", {}).keys() for output in outputs):
                    return
    raise ValueError(f"Expected a picture in {NOTEBOOK}, found none.")


def ask_app(cache: str) -> list[float]:
    """Starts the pocket's app; the seconds until its first query is answered, and of two more."""
    began = time.perf_counter()
    command = [sys.executable, "-u", "-m", "dclip_kit", "app", "--no-browser", f"--port={PORT}"]
    variables = {**os.environ, "DCLIP_CACHE": cache}
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=variables
    )
    try:
        assert server.stdout
        line = next(line for line in server.stdout if "token=" in line)
        address = next(word for word in line.split() if "token=" in word)
        with urlopen(address) as reply:
            cookie = reply.headers["Set-Cookie"].partition(";")[0]
        home = f"127.0.0.1:{PORT}"
        headers = {"Cookie": cookie}
        with connect(
            f"ws://{home}/socket", origin=Origin(f"http://{home}"), additional_headers=headers
        ) as page:

            def hear(wanted: Callable[[dict[str, Any]], bool]) -> None:
                while not wanted(unpack(page.recv(decode=False))[0]):
                    pass

            hear(lambda header: bool(header["page"]["tabs"]))
            page.send(pack({"tab": 0, "kind": "open"}))
            times = []
            for words in ("a dog on the beach", "a red bus", "two cats"):
                asked = time.perf_counter()
                page.send(pack({"tab": 0, "kind": "set", "content": {"query": words}}))
                hear(lambda header: "results" in header.get("state", {}))
                times.append(time.perf_counter() - (asked if times else began))
            return times
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Measures, and writes what was found."""
    folder = str(load_captioned("test").paths[0].parent)
    search = ("-m", "dclip_kit", "search", folder, "a dog on the beach", "--model", "pocket")
    call(*search)  # makes the index
    work: dict[str, Callable[[], None]] = {
        "import": lambda: call("-c", "import torch, open_clip"),
        "search": lambda: call(*search),
        "first picture of 00": show_first_picture,
    }
    rounds = []
    for _ in range(ROUNDS):
        times = {name: seconds(each) for name, each in work.items()}
        with TemporaryDirectory() as cache:
            times["app, empty cache"], *_ = ask_app(cache)
            times["app"], *queries = ask_app(cache)
        rounds.append(times | {"query of the app": max(queries)})
    fastest = {name: min(times[name] for times in rounds) for name in rounds[0]}
    ratios = {
        "search / import": fastest["search"] / fastest["import"],
        "first picture / import": fastest["first picture of 00"] / fastest["import"],
        "app, empty cache / import": fastest["app, empty cache"] / fastest["import"],
        "app / import": fastest["app"] / fastest["import"],
        "milliseconds of a query of the app": 1000 * fastest["query of the app"],
    }
    report = {"seconds": fastest, "ratios": ratios}
    print(json.dumps(report, indent=1))
    if sys.argv[1:]:
        write_atomically(Path(sys.argv[1]), json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
