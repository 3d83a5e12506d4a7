"""How long a person waits for the gallery, in JupyterLab and a real browser.

`python tests/benchmarks/widgets.py [FILE.json]` opens a gallery over 1,000 and one over 100,000
pictures (the same ones again and again, their features perturbed a little), types queries, and
times each from Enter to twelve results a row from both models, in the page's own clock.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from dclip_kit.runtime.files import write_atomically

sys.path.append(str(Path(__file__).parents[2]))
from tests.browser.lab import find_chromium, serve_lab, write_notebook

THINGS = ("dog", "cat", "bus", "fish")
QUERIES = [f"a {size} {thing}" for size in ("small", "large") for thing in THINGS]
PREPARE = """
import torch
import dclip_kit as kit
from dclip_kit.data import CaptionedImages
from dclip_kit.data.pocket import world
from dclip_kit.evaluation.arms import load_arm
from dclip_kit.runtime.files import asset_path
from dclip_kit.widgets import QueryGallery

count = {count}
clip = kit.load_clip("pocket")
taught = load_arm(asset_path("pocket_arms", "region_taught")).clip
data = world.load_captioned("test")
own = {{0.0: clip, 1.0: taught}}
features = {{share: kit.encode_images(model, data.paths) for share, model in own.items()}}
times = -(-count // len(data))
data = data.select([*range(len(data))] * times)
features = {{
    share: torch.nn.functional.normalize(
        each.repeat(times, 1) + 0.02 * torch.randn(times * len(each), each.shape[1]), dim=1
    )
    for share, each in features.items()
}}
gallery = QueryGallery(clip, data, features, examples=["a dog"])
gallery.top_k = 12
gallery
"""
# From Enter until the new status is there and all thumbnails are drawn.
ASK = """async (query) => {
    const root = document.querySelector(".dclip-gallery");
    const box = root.querySelector("input[type=search]");
    const drawn = new Promise((done) => {
        const rows = root.querySelector(".rows");
        new MutationObserver((_, watching) => {
            if (rows.querySelectorAll(".hit").length === 24) {
                watching.disconnect();
                requestAnimationFrame(() => done());
            }
        }).observe(rows, {childList: true, subtree: true});
    });
    box.focus();
    box.value = query;
    const began = performance.now();
    box.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true}));
    await drawn;
    const milliseconds = performance.now() - began;
    const sources = new Set([...root.querySelectorAll(".hit img")].map((image) => image.src));
    let bytes = 0;
    for (const source of sources) bytes += (await (await fetch(source)).blob()).size;
    return [milliseconds, bytes];
}"""


def measure(page: Page) -> dict[str, Any]:
    """The median query's milliseconds, and the greatest query's KB."""
    page.evaluate(ASK, "anything")  # warms up
    found = [page.evaluate(ASK, query) for query in QUERIES]
    milliseconds = sorted(each[0] for each in found)
    return {
        "milliseconds": milliseconds[len(found) // 2],
        "slowest": milliseconds[-1],
        "kb": max(each[1] for each in found) / 1000,
    }


def main() -> None:
    """Measures both sizes."""
    found = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        serve_lab(Path(folder)) as address,
        sync_playwright() as playwright,
    ):
        chromium = {"executable_path": find_chromium(), "args": ["--no-sandbox"]}
        browser = playwright.chromium.launch(**chromium)
        for count in (1_000, 100_000):
            name = f"gallery-{count}.ipynb"
            write_notebook(Path(folder, name), PREPARE.format(count=count))
            page = browser.new_page(viewport={"width": 1440, "height": 1200})
            page.set_default_timeout(300_000)
            page.goto(f"{address}/lab/tree/{name}?reset")
            page.wait_for_selector(r"text=/ipykernel\) \| Idle/")
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            page.wait_for_selector(".dclip-gallery .hit")
            found[f"{count:,} pictures"] = measure(page)
            print(f"{count:,} pictures: {found[f'{count:,} pictures']}")
            page.close()
        browser.close()
    ratios = {
        f"milliseconds from Enter, {name}": each["milliseconds"] for name, each in found.items()
    }
    ratios["KB a query"] = max(each["kb"] for each in found.values())
    if len(sys.argv) > 1:
        report = {"results": found, "ratios": ratios}
        write_atomically(Path(sys.argv[1]), json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
