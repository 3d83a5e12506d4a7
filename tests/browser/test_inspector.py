"""The inspector in JupyterLab, by mouse and by keyboard."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.lab import dark_theme, wait_until

PREPARE = """
from dataclasses import replace

import dclip_kit as kit
from dclip_kit.data.pocket import world
from dclip_kit.features.extract import choose_detector
from dclip_kit.models.teacher import load_teacher
from dclip_kit.runtime.files import asset_path
from dclip_kit.widgets import RegionInspector

settings = kit.get_profile("pocket")
clip = kit.load_clip("pocket")
detector = choose_detector(settings.regions, clip)
data = world.load_captioned("test").select(range(30))
hostile = ("<img src=x onerror=alert(1)>", "<script>alert(2)</script> a dog")
data = replace(data, captions=(*data.captions[:29], hostile))
names = [f"<b>{name}" for name in detector.names]
features = kit.extract_features(clip, detector, data, settings.regions)
teachers = [
    load_teacher(asset_path("pocket_arms", name))[0] for name in ("teacher", "region_teacher")
]
"""
SHOW = """
inspector = RegionInspector(clip, data, features, names, *teachers, picture=7, caption=1)
inspector
"""


@pytest.fixture(scope="module")
def page(open_notebook):
    page = open_notebook("inspector.ipynb", PREPARE, SHOW)
    page.wait_for_selector(".dclip-inspector tbody tr", timeout=120_000)
    page.locator(".dclip-inspector").scroll_into_view_if_needed()
    return page


@pytest.fixture
def inspector(page, shots, request):
    inspector = page.locator(".dclip-inspector")
    yield inspector
    shots(request.node.name)
    inspector.get_by_label("its own", exact=True).check()


def weights(inspector) -> list[float]:
    return [float(cell.inner_text()) for cell in inspector.locator("td.weight").all()]


def ranks(inspector) -> list[int]:
    return [
        int(each)
        for each in re.findall(r" (\d+)[,.]", inspector.get_by_role("status").inner_text())
    ]


def test_boxes_bars_and_ranks_are_there(inspector) -> None:
    rows = inspector.locator("tbody tr")
    assert rows.count() == inspector.locator(".boxes rect").count() > 1
    expect(inspector.get_by_role("columnheader")).to_have_text(
        [
            "region",
            "area",
            "confidence",
            "similarity",
            "weight",
            "the paper's teacher pools",
            "the region teacher looks",
        ]
    )
    assert sum(weights(inspector)) == pytest.approx(1, abs=0.02)
    expect(inspector.get_by_role("status")).to_have_text(
        re.compile(
            r"^Rank of the caption among 30: CLIP \d+, the paper's teacher \d+, "
            r"the region teacher \d+\.$"
        )
    )
    wait_until(lambda: inspector.locator("img").evaluate("image => image.naturalWidth > 100"))


def test_another_caption_is_read(inspector) -> None:
    words = inspector.locator(".words").inner_text()
    caption = inspector.get_by_label("caption", exact=True)
    caption.select_option(index=3)
    expect(inspector.locator(".words")).not_to_have_text(words)
    chosen = caption.evaluate("select => select.options[select.selectedIndex].text")
    read = "".join(inspector.locator(".word").all_inner_texts())
    assert read == chosen.replace(" ", "")
    caption.select_option(index=1)


def test_a_word_lights_its_regions_and_a_region_its_words(page, inspector) -> None:
    word, row = inspector.locator(".word").nth(2), inspector.locator("tbody tr").first
    word.hover()
    looks = [
        float(box.get_attribute("data-looks")) for box in inspector.locator(".boxes rect").all()
    ]
    assert sum(looks) == pytest.approx(1, abs=0.03)
    row.hover()
    looks = [float(word.get_attribute("data-looks")) for word in inspector.locator(".word").all()]
    assert sum(looks) == pytest.approx(1, abs=0.06)
    inspector.get_by_role("status").hover()
    expect(inspector.locator("[data-looks]")).to_have_count(0)
    word.focus()  # the keyboard does the same
    expect(inspector.locator(".boxes rect[data-looks]")).not_to_have_count(0)
    page.keyboard.press("Tab")
    expect(inspector.locator(".word").nth(3)).to_be_focused()
    inspector.locator(".word").nth(3).blur()


def test_sliders_weigh_live(inspector) -> None:
    before = weights(inspector)
    for factor in ("area", "confidence", "similarity"):
        inspector.get_by_label(factor, exact=True).fill("0")
    count = len(before)
    wait_until(lambda: weights(inspector) == [pytest.approx(1 / count, abs=0.006)] * count)
    said = inspector.get_by_label("area", exact=True).get_attribute("aria-valuetext")
    assert said == "power 0"
    for factor in ("area", "confidence", "similarity"):
        inspector.get_by_label(factor, exact=True).fill("4")
    wait_until(lambda: weights(inspector) == before)


def test_regions_are_exchanged_in_one_click(inspector) -> None:
    own, image = ranks(inspector), inspector.locator("img").get_attribute("src")
    assert len(own) == 3
    inspector.get_by_label("another picture's", exact=True).check()
    wait_until(lambda: ranks(inspector) != own)
    assert ranks(inspector)[0] == own[0]  # CLIP's own vector of the picture stays
    expect(inspector.locator("img")).not_to_have_attribute("src", image)
    inspector.get_by_label("a blank one", exact=True).check()
    expect(inspector.locator("tbody th")).to_have_text(["1 whole image"])


def test_one_goes_from_picture_to_picture(page, inspector) -> None:
    number = inspector.get_by_label("picture", exact=True)
    words = inspector.locator(".words").inner_text()
    inspector.get_by_label("next picture").click()
    expect(number).to_have_value("8")
    expect(inspector.locator(".words")).not_to_have_text(words)
    number.fill("999")
    number.press("Enter")
    expect(number).to_have_value("29")
    number.fill("7")
    number.press("Enter")
    inspector.get_by_label("caption", exact=True).select_option(index=1)
    expect(inspector.locator(".words")).to_have_text(words)


def test_what_somebody_wrote_is_never_html(inspector) -> None:
    number = inspector.get_by_label("picture", exact=True)
    number.fill("29")
    number.press("Enter")
    expect(inspector.get_by_label("caption", exact=True).locator("option")).to_have_text(
        ["<img src=x onerror=alert(1)>", "<script>alert(2)</script> a dog"]
    )
    expect(inspector.locator(".words")).to_contain_text("<img")
    expect(inspector.locator("tbody th").first).to_contain_text("<b>")
    assert inspector.locator("script, b, [onerror]").count() == 0
    number.fill("7")
    number.press("Enter")
    inspector.get_by_label("caption", exact=True).select_option(index=1)
    expect(inspector.locator(".words")).not_to_contain_text("<img")


def test_it_fits_a_narrow_page(page, inspector) -> None:
    page.set_viewport_size({"width": 900, "height": 700})
    wait_until(lambda: inspector.evaluate("root => root.scrollWidth <= root.clientWidth + 1"))
    table = inspector.locator(".said")  # with its last column, below the picture if need be
    wait_until(lambda: table.evaluate("each => each.scrollWidth <= each.clientWidth + 1"))
    page.set_viewport_size({"width": 1440, "height": 900})


def test_it_follows_a_dark_theme(page, inspector, shots) -> None:
    with dark_theme(page, inspector):
        shots("inspector-dark")


def test_the_keyboard_alone_suffices(page, inspector) -> None:
    number = inspector.get_by_label("picture", exact=True)
    number.focus()
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        element = page.evaluate_handle("document.activeElement")
        said = "each => each.ariaLabel || each.labels?.[0]?.innerText || each.textContent"
        reached.append(element.evaluate(said).split(" power")[0].strip())
    asked = ["previous picture", "next picture", "caption", "its own"]
    assert reached[:4] == asked and {"area", "confidence", "similarity"} <= {*reached}
    own = ranks(inspector)
    inspector.get_by_label("its own", exact=True).focus()
    page.keyboard.press("ArrowRight")
    expect(inspector.get_by_label("another picture's", exact=True)).to_be_checked()
    wait_until(lambda: ranks(inspector) != own)
    inspector.get_by_label("area", exact=True).focus()
    page.keyboard.press("ArrowRight")
    said = "power 1.25"
    expect(inspector.get_by_label("area", exact=True)).to_have_attribute("aria-valuetext", said)
    page.keyboard.press("ArrowLeft")
