"""The playground in JupyterLab."""

import re

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.lab import dark_theme, wait_until

PREPARE = """
import dclip_kit as kit
from dclip_kit.data.pocket import world
from dclip_kit.evaluation import profile_data
from dclip_kit.evaluation.arms import load_arm
from dclip_kit.runtime.files import asset_path
from dclip_kit.widgets import ZeroShotPlayground

clip = kit.load_clip("pocket")
taught = load_arm(asset_path("pocket_arms", "region_taught")).clip
data = profile_data.load_data(kit.get_profile("pocket"))
labelled = data.zero_shot.take_per_class(2)
features = {
    share: kit.encode_images(kit.interpolate(clip, taught, share), labelled.paths, progress=False)
    for share in (0.0, 1.0)
}
"""
SHOW = """
playground = ZeroShotPlayground(
    clip, taught, labelled, features, {0.0: 0.16, 1.0: 0.2}, ["cat", "dog", "<b>teapot</b>"]
)
playground
"""


@pytest.fixture(scope="module")
def page(open_notebook):
    page = open_notebook("playground.ipynb", PREPARE, SHOW)
    page.wait_for_selector(".dclip-playground li", timeout=180_000)
    page.locator(".dclip-playground").scroll_into_view_if_needed()
    return page


@pytest.fixture
def playground(page, shots, request):
    yield page.locator(".dclip-playground")
    shots(request.node.name)


def answers(playground, row: str) -> list[str]:
    return playground.get_by_role("list", name=row).locator("li").all_inner_texts()


def test_typed_classes_are_chosen_among_by_both_models(playground) -> None:
    assert len(answers(playground, "before")) == len(answers(playground, "after")) == 3
    assert any(each.startswith("<b>teapot</b> ") for each in answers(playground, "after"))
    box = playground.get_by_label("class names")
    box.fill("whale, rocket")
    box.press("Enter")
    wait_until(lambda: len(answers(playground, "before")) == 2)
    shares = [int(each.split()[-2]) for each in answers(playground, "before")]
    assert sum(shares) in (99, 100, 101) and shares == sorted(shares, reverse=True)
    expect(playground.get_by_role("status")).to_have_text(
        re.compile(r"^Before: (whale|rocket)\. After: (whale|rocket)\. It is labelled .+\.$")
    )


def test_what_was_forgotten_can_be_looked_at(playground) -> None:
    forgotten = playground.locator(".changed p").first.get_by_role("button")
    expect(forgotten.nth(1)).to_have_text(re.compile(r"^.+ (100|50) % → (50|0) %$"))
    name = forgotten.nth(1).inner_text().rsplit(" ", 5)[0]
    image = playground.locator("img").get_attribute("src")
    forgotten.nth(1).click()
    expect(playground.locator("img")).not_to_have_attribute("src", image)
    expect(playground.get_by_role("status")).to_contain_text(f"It is labelled {name}.")
    expect(playground.locator(".changed p").last.get_by_role("button")).not_to_have_count(0)


def test_a_slider_shows_gain_and_memory_together(playground) -> None:
    curve = playground.locator(".curve")
    expect(curve).to_have_attribute("aria-label", re.compile(r"^gain 25 %, kept \d+ %$"))
    expect(curve.locator("circle")).to_have_count(2)
    playground.get_by_label("way from before to after").fill("0")
    expect(curve).to_have_attribute("aria-label", "gain 0 %, kept 100 %")
    expect(playground.locator(".changed p").first).to_have_text("most forgotten: none")
    playground.get_by_label("way from before to after").fill("1")
    expect(curve).to_have_attribute("aria-label", re.compile("^gain 25 %"))


def test_a_picture_of_ones_own_is_named(playground, tmp_path) -> None:
    file = tmp_path / "own.png"
    Image.new("RGB", (200, 100), "green").save(file)
    playground.locator("input[type=file]").set_input_files(file)
    expect(playground.get_by_role("status")).not_to_contain_text("labelled")


def test_it_fits_a_narrow_page(page, playground) -> None:
    page.set_viewport_size({"width": 900, "height": 700})
    wait_until(lambda: playground.evaluate("root => root.scrollWidth <= root.clientWidth + 1"))
    page.set_viewport_size({"width": 1440, "height": 900})


def test_it_follows_a_dark_theme(page, playground, shots) -> None:
    with dark_theme(page, playground):
        shots("playground-dark")


def test_the_keyboard_alone_suffices(page, playground) -> None:
    playground.get_by_label("class names").focus()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("an owl, <img src=x onerror=alert(1)>, a bee")
    page.keyboard.press("Enter")
    wait_until(lambda: len(answers(playground, "after")) == 3)
    assert any("<img src=x" in each for each in answers(playground, "after"))
    assert page.locator("img[onerror], img[src=x]").count() == 0
    slider = playground.get_by_label("way from before to after")
    for _ in range(8):
        page.keyboard.press("Tab")
        if slider.evaluate("each => each === document.activeElement"):
            break
    expect(slider).to_be_focused()
    page.keyboard.press("Home")
    expect(playground.locator(".curve")).to_have_attribute("aria-label", "gain 0 %, kept 100 %")
    page.keyboard.press("End")
