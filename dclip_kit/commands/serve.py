"""The widgets as a page without code, on this machine alone."""

import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

from tyro.conf import Positional

from dclip_kit.commands.terminal import choose_device


def app(
    folder: Positional[str] = "",
    *,
    model: str = "pocket",
    port: int = 8866,
    browser: bool = True,
    device: str = "auto",
) -> None:
    """Opens a page that searches a folder's pictures, before and after fine-tuning; no code needed.

    The page is served to this machine alone, at 127.0.0.1. It gives out pictures that were made
    smaller, and never the folder. Vectors of pictures are kept, as search keeps them.

    Args:
        folder: of pictures, which need no captions; folders in it count too. Left out, the pocket's
            pictures, with all that can be seen of them.
        model: an arm that distill wrote (runs/x/region_taught), searched with beside the CLIP that
            it comes from; "pocket" is the arm that comes with the kit.
        port: where to serve.
        browser: whether to open a browser, too.
        device: auto, cpu, cuda:0, …
    """
    if importlib.util.find_spec("voila") is None:
        raise ImportError(
            "Expected Voilà, which serves the page, got none; run pip install 'dclip-kit[app]'."
        )
    from dclip_kit.search.folder_index import find_pictures
    from dclip_kit.widgets.app import NOTEBOOK, SETTINGS

    if folder:
        find_pictures(Path(folder))  # an empty folder is told before anything is served
    elif model != "pocket":
        raise ValueError(f"Expected a folder to search with {model}, got none; name one.")
    asked = {
        "folder": folder and str(Path(folder).absolute()),
        "model": model if model == "pocket" else str(Path(model).absolute()),
        "device": choose_device(device),
    }
    os.environ |= {SETTINGS: json.dumps(asked), "TQDM_DISABLE": "1"}  # which the kernel inherits
    from voila.app import Voila

    with tempfile.TemporaryDirectory() as root:  # all that the server can see
        shutil.copy(NOTEBOOK, root)
        options = [
            *(str(Path(root, NOTEBOOK.name)), f"--port={port}", "--Voila.ip=127.0.0.1"),
            *("--Voila.port_retries=0", "--VoilaConfiguration.file_allowlist=[]"),
            *("--show_tracebacks=False", *([] if browser else ["--no-browser"])),
        ]
        Voila.launch_instance(options)  # until Ctrl-C
