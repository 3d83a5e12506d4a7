"""The gallery in JupyterLab, by mouse and by keyboard, as a person uses it."""

import re

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.lab import dark_theme, wait_until

HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
PREPARE = """
import dclip_kit as kit
from dclip_kit.data.pocket import world
from dclip_kit.data.pocket.facets import query_facets, things_in
from dclip_kit.evaluation.arms import load_arm
from dclip_kit.runtime.files import asset_path
from dclip_kit.widgets import QueryGallery

clip = kit.load_clip("pocket")
taught = load_arm(asset_path("pocket_arms", "region_taught")).clip
data = world.load_captioned("test").select(range(40))
scenes = world.load_scenes("test")[:40]
features = {
    share: kit.encode_images(kit.interpolate(clip, taught, share), data.paths, progress=False)
    for share in (0.0, 0.5, 1.0)
}
texts = kit.encode_texts(clip, data.texts)
"""
SHOW = f"""
gallery = QueryGallery(
    clip,
    data,
    features,
    fine_tuned=taught,
    detector=kit.load_detector("pocket"),
    things=things_in(scenes),
    text_features=texts,
    facets=query_facets(data.texts, data.image_of_text, scenes),
    references=texts,
    examples=[data.texts[0], {HOSTILE!r}],
    names=("clip", {HOSTILE!r}),
)
gallery
"""
ECHO = """
import ipywidgets
said = ipywidgets.Label()
gallery.observe(lambda change: setattr(said, "value", f"heard {change['new']}"), "query")
said
"""


@pytest.fixture(scope="module")
def page(open_notebook):
    page = open_notebook("gallery.ipynb", PREPARE, SHOW, ECHO)
    page.wait_for_selector(".dclip-gallery .hit", timeout=120_000)
    page.locator(".dclip-gallery").scroll_into_view_if_needed()
    return page


@pytest.fixture
def gallery(page, shots, request):
    """With the first caption asked, and everything as it was in the beginning."""
    gallery = page.locator(".dclip-gallery")
    gallery.get_by_label("way from before to after").fill("2")
    gallery.get_by_label("show").fill("4")
    search(gallery, "anything")
    search(gallery, "a picture of a head of broccoli on a wooden table")
    yield gallery
    shots(request.node.name)


def search(gallery, words: str) -> None:
    box = gallery.get_by_label("words to search for")
    box.fill(words)
    box.press("Enter")
    expect(gallery.page.get_by_text(f"heard {words}", exact=True)).to_be_visible()


def row(gallery, name: str):
    hits = gallery.get_by_role("list", name=re.compile(f"^{name}"))
    return hits.get_by_role("button", name=re.compile("^rank"))


def status(gallery):
    return gallery.get_by_role("status")


def pictures(gallery, name: str) -> list[str]:
    return [hit.get_attribute("data-picture") for hit in row(gallery, name).all()]


def test_enter_searches_with_two_models_and_marks_the_right_answer(gallery) -> None:
    for name in ("before", "after"):
        expect(row(gallery, name)).to_have_count(5)
        first = row(gallery, name).first
        expect(first).to_have_accessible_name(
            re.compile(r"^rank 1, picture \d+, score 0\.\d\d, [a-z0-9 ]+, ✓ the answer$")
        )
        expect(first).to_contain_text("1 · 0.")
    expect(status(gallery)).to_have_text(
        re.compile(r"The right picture: rank 1 before, rank 1 after, of 40")
    )
    assert status(gallery).get_attribute("aria-live") == "polite"
    search(gallery, "something to eat")
    expect(status(gallery)).to_contain_text("judge for yourself")
    expect(gallery.locator(".hit.right")).to_have_count(0)


def test_thumbnails_are_loaded(gallery) -> None:
    wait_until(
        lambda: all(
            image.evaluate("image => image.complete && image.naturalWidth > 100")
            for image in gallery.locator(".hit img").all()
        )
    )
    assert gallery.locator(".hit img").count() == 10


def test_lines_join_the_places_of_a_picture(gallery) -> None:
    both = set(pictures(gallery, "before")) & set(pictures(gallery, "after"))
    assert both
    wait_until(lambda: gallery.locator(".lines line").count() == len(both))
    joined = {line.get_attribute("data-picture") for line in gallery.locator(".lines line").all()}
    assert joined == both
    expect(gallery.locator(".lines line.right")).to_have_count(1)


def test_a_click_searches_with_that_picture(gallery) -> None:
    picture = pictures(gallery, "before")[1]
    row(gallery, "before").nth(1).click()
    expect(status(gallery)).to_contain_text("share a thing with this one")
    expect(gallery.get_by_alt_text("the picture that is asked with")).to_be_visible()
    expect(gallery.get_by_label("words to search for")).to_have_value("")
    assert picture not in pictures(gallery, "before")


def test_a_picture_of_ones_own_is_uploaded_or_dropped(gallery, tmp_path) -> None:
    file = tmp_path / "<b>own.png"
    Image.new("RGB", (200, 100), "green").save(file)
    gallery.locator("input[type=file]").set_input_files(file)
    expect(status(gallery)).to_have_text("What is nearest to your picture.")
    expect(gallery.get_by_alt_text("the picture that is asked with")).to_be_visible()
    search(gallery, "a dog")
    gallery.evaluate(
        """async (root) => {
            const canvas = Object.assign(document.createElement("canvas"), {width: 90, height: 60});
            canvas.getContext("2d").fillRect(0, 0, 90, 60);
            const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
            const data = new DataTransfer();
            data.items.add(new File([blob], "black.png", {type: "image/png"}));
            root.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
        }"""
    )
    expect(status(gallery)).to_have_text("What is nearest to your picture.")
    search(gallery, "a cat")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    gallery.locator("input[type=file]").set_input_files(broken)
    expect(status(gallery)).to_contain_text("no picture that can be read")


def test_sliders_say_how_many_and_by_which_mixture(gallery) -> None:
    gallery.get_by_label("show").fill("7")
    expect(row(gallery, "after")).to_have_count(8)
    before = pictures(gallery, "before")
    gallery.get_by_label("way from before to after").fill("0")
    expect(gallery.get_by_role("heading", name=re.compile("^after.*, 0 %$"))).to_be_visible()
    wait_until(lambda: pictures(gallery, "after") == before)
    assert gallery.get_by_label("way from before to after").get_attribute("aria-valuetext") == "0 %"


def test_scores_are_rescored(gallery) -> None:
    plain = row(gallery, "before").first.inner_text()
    gallery.get_by_label("rescored").check()
    wait_until(lambda: row(gallery, "before").first.inner_text() != plain)
    gallery.get_by_label("rescored").uncheck()
    wait_until(lambda: row(gallery, "before").first.inner_text() == plain)


def test_boxes_are_drawn_under_the_mouse(gallery) -> None:
    hit = row(gallery, "before").first
    hit.hover()
    expect(hit.locator(".boxes rect").first).to_be_visible()
    title = hit.locator(".boxes rect title").first.text_content()
    assert re.fullmatch(r"[\w ,/-]+ [01]\.\d\d", title)
    gallery.get_by_role("status").hover()
    expect(hit.locator(".boxes rect").first).not_to_be_visible()


def test_what_was_won_is_stepped_through(gallery) -> None:
    outcome = gallery.get_by_label("what fine-tuning did to them")
    outcome.select_option("won")
    expect(status(gallery)).to_have_text(re.compile(r"rank ([2-9]|\d\d+) before, rank 1 after"))
    place = gallery.locator(".place")
    expect(place).to_have_text(re.compile(r"^1 of \d+$"))
    box = gallery.get_by_label("words to search for")
    words = box.input_value()
    gallery.get_by_label("next caption").click()
    expect(place).to_have_text(re.compile(r"^2 of"))
    expect(box).not_to_have_value(words)
    expect(status(gallery)).to_have_text(re.compile(r"rank ([2-9]|\d\d+) before, rank 1 after"))
    every = int(place.inner_text().split()[-1])
    kind = gallery.get_by_label("kind of caption")
    kind.select_option("objects in the picture: two")
    expect(place).not_to_have_text(re.compile(rf"of {every}$"))
    kind.select_option("any")
    outcome.select_option("any")


def test_the_keyboard_alone_suffices(page, gallery) -> None:
    box = gallery.get_by_label("words to search for")
    box.focus()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("a dog by the sea")
    page.keyboard.press("Enter")
    expect(page.get_by_text("heard a dog by the sea", exact=True)).to_be_visible()
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "document.activeElement.closest('.dclip-gallery') && (document.activeElement.ariaLabel"
            " || document.activeElement.textContent || document.activeElement.type)"
        )
        if focused:
            reached.append(focused)
        if focused and focused.startswith("rank 1"):
            break
    assert {"Search", "next caption", "show", "way from before to after"} <= {*reached}
    assert reached[-1].startswith("rank 1, picture")
    page.keyboard.press("ArrowRight")
    expect(row(gallery, "before").nth(1)).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(row(gallery, "after").nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(status(gallery)).to_contain_text("share a thing with this one")
    expect(gallery.locator(".hit:focus")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(box).to_be_focused()


def test_what_somebody_wrote_is_never_html(page, gallery) -> None:
    search(gallery, HOSTILE)
    expect(gallery.get_by_role("heading", name=re.compile("^after: <img src=x"))).to_be_visible()
    assert gallery.locator("script, .rows h4 img, [onerror]").count() == 0
    assert page.title() != "hacked"


def test_it_fits_a_narrow_page(page, gallery) -> None:
    page.set_viewport_size({"width": 900, "height": 700})
    gallery.scroll_into_view_if_needed()
    wait_until(lambda: gallery.evaluate("root => root.scrollWidth <= root.clientWidth + 1"))
    page.set_viewport_size({"width": 1440, "height": 900})


def test_it_follows_a_dark_theme(page, gallery, shots) -> None:
    with dark_theme(page, gallery):
        assert gallery.locator(".lines line.right").bounding_box()["height"] > 10
        shots("gallery-dark")
