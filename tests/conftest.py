"""What every test runs under: no network, checked shapes, fixed seeds, few threads."""

import os
import random
import sys
import tempfile

# Libraries read these when they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["YOLO_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

# Ultralytics writes settings at import; a test must not change those of the person who runs it.
_SETTINGS = tempfile.TemporaryDirectory(prefix="ultralytics-")
os.environ["YOLO_CONFIG_DIR"] = _SETTINGS.name

if "dclip_kit" in sys.modules:
    raise RuntimeError(
        "Expected to switch on the shape checks before dclip_kit is imported, but a pytest plugin "
        "imported it already; run pytest without that plugin."
    )
install_import_hook("dclip_kit", "beartype.beartype")

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
