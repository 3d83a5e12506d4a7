"""Processes whole notebooks: `python -m assets.make.notebook_files COMMAND FILE`."""

import argparse
import base64
import io
import json
import os
import re
from pathlib import Path
from typing import Any

from PIL import Image

from dclip_kit.evaluation.compare import format_report
from dclip_kit.runtime.files import write_atomically

# Plotly's own format for JupyterLab, and a PNG (drawn by kaleido's Chromium) for code hosts.
STORED_FIGURES = "plotly_mimetype+png"
# Useless without a running kernel: readers would see an error instead of the widget's text.
LIVE_WIDGET = "application/vnd.jupyter.widget-view+json"
LARGE = 1_000_000  # characters
BINDER = "https://mybinder.org"
# If an environment variable's name begins like this, tqdm.auto draws text bars, which a stored
# notebook keeps, instead of widgets, which would be stored as bars that never reach their end.
TEXT_BARS = {"SPYDER_TEXT_BARS": "1"}


def refresh(path: Path) -> None:
    """Executes a notebook in its own folder and replaces it by the result.

    Timings and progress bars, which differ at every run, are dropped; of widgets, only their text
    is kept. If a cell fails, the notebook stays unchanged.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=None,
        coalesce_streams=True,
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute(env={**os.environ, "PLOTLY_RENDERER": STORED_FIGURES, **TEXT_BARS})
    drop_widgets(notebook)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if (
            cell.cell_type == "code"
        ):  # drops progress bars, and logs of the browser that draws figures
            cell.outputs = [item for item in cell.outputs if item.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = shrink_png(output["data"]["image/png"])
    write_atomically(path, nbformat.writes(notebook) + "\n")


def drop_widgets(notebook: Any) -> None:
    """Removes widgets and their state from a notebook; their plain text stays."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "text/plain" in output.get("data", {}):
                output["data"].pop(LIVE_WIDGET, None)


def make_static(path: Path) -> None:
    """Replaces a notebook that was run elsewhere by a version for readers without a kernel."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    drop_widgets(notebook)
    drop_repeats(notebook)
    write_atomically(path, nbformat.writes(notebook) + "\n")


def drop_repeats(notebook: Any) -> None:
    """Keeps only the first of equal large outputs in HTML: plotly's script, 5 MB each time."""
    seen: set[str] = set()
    for cell in notebook.cells:
        outputs = []
        for output in cell.get("outputs", []):
            html = output.get("data", {}).get("text/html", "")
            if len(html) < LARGE or html not in seen:
                outputs.append(output)
            seen.add(html)
        if cell.cell_type == "code":
            cell.outputs = outputs


def put_badge(path: Path, repository: str) -> None:
    """Adds or renews Binder's badge below the title of a notebook or a Markdown page.

    A notebook's badge opens that notebook, and a page's the quickstart.

    Args:
        path: of a notebook in the repository's `notebooks/`, or of a page in its root.
        repository: "owner/name" on GitHub.

    Raises:
        ValueError: the repository has another form, or the text does not begin with a title.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"Expected a repository on GitHub as owner/name, got {repository!r}.")
    import nbformat

    notebook = nbformat.read(path, as_version=4) if path.suffix == ".ipynb" else None
    page = notebook.cells[0].source if notebook else path.read_text(encoding="utf-8")
    title, _, rest = page.partition("\n\n")
    if not title.startswith("# "):
        raise ValueError(f"Expected a title at the top of {path}, got {title[:40]!r}.")
    if rest.startswith("[![Binder]("):
        rest = rest.partition("\n\n")[2]
    target = f"lab/tree/notebooks/{path.name if notebook else '00_quickstart.ipynb'}"
    address = f"{BINDER}/v2/gh/{repository}/HEAD?urlpath={target}"
    page = f"{title}\n\n[![Binder]({BINDER}/badge_logo.svg)]({address})\n\n{rest}"
    if notebook:
        notebook.cells[0].source = page
        page = nbformat.writes(notebook) + "\n"
    write_atomically(path, page)


def shrink_png(encoded: str) -> str:
    """Redraws a PNG (base64) in 256 colours: much smaller, and hardly distinguishable.

    With half as many, lines of two colours of a figure with many arms became one.
    """
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    small = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(small, format="PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode("ascii")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m assets.make.notebook_files", description=__doc__
    )
    parser.add_argument("command", choices=["refresh", "static", "badge", "table"])
    parser.add_argument("file", nargs="+", type=Path, help="notebooks, pages, or report.json files")
    parser.add_argument("--repository", default="", help="owner/name on GitHub, of a badge")
    arguments = parser.parse_args()
    for path in arguments.file:
        if arguments.command == "refresh":
            print(path, flush=True)
            refresh(path)
        elif arguments.command == "static":
            make_static(path)
        elif arguments.command == "badge":
            put_badge(path, arguments.repository)
        else:
            print(format_report(json.loads(path.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
