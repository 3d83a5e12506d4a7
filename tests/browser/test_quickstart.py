"""The quickstart as a newcomer meets it: nothing is drawn yet, and nobody likes to wait."""

import json
import time
from itertools import takewhile

import pytest
from playwright.sync_api import expect

from tests.browser.lab import ROOT


@pytest.fixture(scope="module")
def page(open_notebook, tmp_path_factory):
    """The cells before the one that draws the whole world, over an empty cache."""
    source = json.loads((ROOT / "notebooks/00_quickstart.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in source["cells"] if cell["cell_type"] == "code"]
    first = [*takewhile(lambda cell: "load_data" not in cell, cells)]
    assert 2 < len(first) < len(cells)
    cache = tmp_path_factory.mktemp("cache")
    empty = f"import os\nos.environ['DCLIP_CACHE'] = {str(cache)!r}"
    page = open_notebook("quickstart.ipynb", empty, *first)
    page.cache, page.began = cache, time.monotonic()
    return page


def test_the_first_pictures_need_no_others(page, shots) -> None:
    expect(page.locator(".js-plotly-plot image").first).to_be_visible(timeout=120_000)
    print(f"The first picture came {time.monotonic() - page.began:.0f} s after Run All.")
    expect(page.locator(".js-plotly-plot")).to_have_count(1)
    assert not [*page.cache.rglob("*.jpg")]
    shots("quickstart")
