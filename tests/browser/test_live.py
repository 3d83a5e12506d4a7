"""A training in JupyterLab that is stopped and goes on while the page stays its reader's."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from dclip_kit.runtime.files import load_tensors
from tests.browser.lab import wait_until

PREPARE = """
from functools import partial
from pathlib import Path

import dclip_kit as kit
from dclip_kit.config import StudentSettings
from dclip_kit.data.pocket import world
from dclip_kit.widgets import LiveRun

settings = kit.get_profile("pocket")
clip = kit.load_clip("pocket")
data = world.load_captioned("test").select(range(24))
detector = kit.load_detector("pocket")
features = kit.extract_features(clip, detector, data, settings.regions)
student = StudentSettings(distillation_weight=0.0, batch_size=8, epochs=40)
captioned = kit.EncodedPictures(data, features, data.paths)
given = clip, captioned, kit.choose_terms(student, captioned), student
name = "<img src=x onerror=alert(1)>"
"""
START = """
live = LiveRun({name: partial(kit.distill, *given, checkpoint=Path("live.safetensors"))})
live.start()
"""
MEANWHILE = 'print("other cells", "run meanwhile")'
WAIT = """
losses = [row["loss"] for row in (await live.wait())[name].history]
print(f"{len(losses)} epochs, loss fell: {losses[-1] < losses[0]}")
"""


@pytest.fixture(scope="module")
def page(open_notebook):
    page = open_notebook("live.ipynb", PREPARE, START, MEANWHILE, WAIT)
    expect(page.get_by_role("button", name="Stop")).to_be_visible(timeout=120_000)
    return page


def points(page) -> int:
    """Epochs that the figure shows."""
    return page.locator(".js-plotly-plot .scatterlayer .point").count()


def test_a_training_is_stopped_and_goes_on(page, shots, lab) -> None:
    checkpoint = Path(lab[1], "live.safetensors")
    stop, resume = (page.get_by_role("button", name=name) for name in ("Stop", "Resume"))
    expect(page.get_by_text("other cells run meanwhile")).to_be_visible()
    expect(page.get_by_text(re.compile(r"onerror=alert\(1\)>: \d+ steps, loss"))).to_be_visible()
    expect(resume).to_be_disabled()
    wait_until(lambda: points(page) >= 2, 60)
    stop.click()
    expect(page.get_by_text(re.compile(r"^Stopped\. <img"))).to_be_visible()
    expect(stop).to_be_disabled()
    expect(page.get_by_text("press Resume, then run this cell again")).to_be_visible()
    assert "progress" in load_tensors(checkpoint)
    shown = points(page)
    assert shown < 40
    shots("live-stopped")
    resume.click()
    expect(resume).to_be_disabled()
    wait_until(lambda: points(page) > shown, 60)
    expect(page.get_by_text("Finished.", exact=True)).to_be_visible(timeout=120_000)
    wait_until(lambda: points(page) == 40)
    page.get_by_text("losses = [row").last.click()
    page.keyboard.press("Shift+Enter")
    expect(page.get_by_text("40 epochs, loss fell: True")).to_be_visible()
    expect(stop).to_be_disabled()
    assert page.locator("img[onerror], img[src=x]").count() == 0
    shots("live-finished")


def test_a_reload_keeps_the_figure_and_the_buttons(page, shots) -> None:
    with page.expect_response(lambda answer: answer.request.method == "PUT"):  # it is on disk
        page.keyboard.press("ControlOrMeta+s")
    page.reload()
    expect(page.get_by_role("button", name="Resume")).to_be_disabled()
    expect(page.get_by_text("Finished.", exact=True)).to_be_visible()
    page.get_by_role("button", name="Resume").scroll_into_view_if_needed()
    expect(page.locator("img.plot-img")).to_be_visible()  # a still one, until it is touched
    shots("live-reloaded")
