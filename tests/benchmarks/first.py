"""What stands between a person and the first answer, beside importing torch and open_clip.

`python tests/benchmarks/first.py [FILE.json]` searches a folder of 1,000 pictures from a shell,
when its index is known; and runs notebook 00 in a new kernel up to its first picture, when nothing
of the kit is cached. Each is the fastest of its rounds, in turns with the import.
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

import nbformat
from nbclient import NotebookClient

from dclip_kit.data.pocket.world import load_captioned
from dclip_kit.runtime.files import write_atomically

ROUNDS = 3
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
    rounds = [{name: seconds(each) for name, each in work.items()} for _ in range(ROUNDS)]
    fastest = {name: min(times[name] for times in rounds) for name in work}
    ratios = {
        "search / import": fastest["search"] / fastest["import"],
        "first picture / import": fastest["first picture of 00"] / fastest["import"],
    }
    report = {"seconds": fastest, "ratios": ratios}
    print(json.dumps(report, indent=1))
    if sys.argv[1:]:
        write_atomically(Path(sys.argv[1]), json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
