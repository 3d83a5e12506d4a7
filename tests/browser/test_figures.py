"""Whatever a caption, a file or an arm is called, a figure shows it and runs none of it."""

import pytest
import torch
from plotly.io import to_html

from dclip_kit import plots
from dclip_kit.evaluation.arms import Arm, ArmResult, Candidate
from dclip_kit.evaluation.evaluate import ZeroShot
from dclip_kit.evaluation.inspection import ShortcutProbe, read_caption
from dclip_kit.metrics import retrieval_metrics
from dclip_kit.models.regions import Regions
from tests.browser.lab import wait_until

# A script, a handler, a link, what a terminal would obey, and what turns writing around.
HOSTILE = (
    "<script>document.title='hacked'</script>"
    "<img src=x onerror=\"document.title='hacked'\">"
    "<a href=\"javascript:document.title='hacked'\">link</a>"
    "\x1b[31mred\x1b[0m \u202eright to left\u202c"
)
SHOWN = "<script>"  # of it, however few letters there is room for


@pytest.fixture
def figures(clip, captioned, pictures):
    """Every figure that shows what somebody else wrote, by the name of its function."""
    boxes = torch.tensor([[0.0, 0, 20, 15], [20, 15, 40, 30]])
    regions = Regions(boxes, torch.tensor([0.9, 0.4]), ("dog", HOSTILE), pictures[0].size)
    read = read_caption(clip, pictures[0], regions, HOSTILE)
    rows = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}]
    path = (Candidate(0.0, 0.1, 1.0), Candidate(1.0, 0.2, 0.9))
    owner = torch.arange(6).repeat_interleave(2)
    found = retrieval_metrics(torch.randn(6, 8), torch.randn(12, 8), owner, (1, 5))
    nothing = ZeroShot(torch.tensor([True]), 1.0, 1.0, None)
    result = ArmResult(Arm(clip), found, nothing, nothing)
    point = {"text_to_image": 0.2, "image_to_text": 0.2, "retention": 1.0}
    vs = {"clip": {"relative": 0.1, "ci95": [0.0, 0.2]}}
    at = {"recall_at_1": 0.2, "vs": vs}
    arm = {
        "runs": [{"seed": 0} | point, {"seed": 1} | point],
        "frontier": [{"alpha": 0.0} | point, {"alpha": 1.0} | point],
        "at_95_5": {"text_to_image": at, "image_to_text": at},
    }
    study = {"arms": {"clip": arm, HOSTILE: arm}}
    row = plots.PictureRow(HOSTILE, [0, 1], notes=[HOSTILE] * 2, tags=[HOSTILE] * 2)
    models, names = {HOSTILE: torch.eye(6)}, [frozenset([HOSTILE])] * 6
    return {
        "plot_history": plots.plot_history({HOSTILE: rows}, ["loss"]),
        "plot_tradeoff": plots.plot_tradeoff({HOSTILE: Arm(clip, 1.0, path)}, 0.9),
        "plot_regions": plots.plot_regions(pictures[:1], [regions], [HOSTILE]),
        "plot_average_precision": plots.plot_average_precision(
            {"map50": 0.7, "map50_by_category": {HOSTILE: 0.7}}
        ),
        "plot_region_weights": plots.plot_region_weights(pictures[0], read),
        "plot_search": plots.plot_search(
            [HOSTILE], torch.eye(6)[:1], pictures[:6], models, torch.tensor([0]), 3
        ),
        "plot_picture_search": plots.plot_picture_search(0, pictures[:6], models, names, 3),
        "plot_picture_rows": plots.plot_picture_rows([(HOSTILE, [row])], pictures[:6]),
        "plot_recall": plots.plot_recall({HOSTILE: result}),
        "plot_probe": plots.plot_probe({HOSTILE: ShortcutProbe(1.0, 0.9, 0.8)}),
        "plot_scores": plots.plot_scores(torch.rand(1, 1), torch.tensor([0]), [HOSTILE], [HOSTILE]),
        "plot_occurrences": plots.plot_occurrences({HOSTILE: torch.tensor([1.0, 9, 0])}),
        "plot_frontiers": plots.plot_frontiers(study),
        "plot_growth": plots.plot_growth(study, {HOSTILE: {HOSTILE: 1}}, HOSTILE),
        "plot_versus": plots.plot_versus(study, "clip"),
    }


# Their words are the kit's own, or are drawn by one of those above.
OWN_WORDS = {
    *("plot_attention", "plot_gains", "plot_masking", "plot_naming"),
    *("plot_patches", "plot_student_view"),
}


def test_every_figure_shows_the_text_and_runs_none_of_it(figures, browser, tmp_path) -> None:
    assert {name for name in plots.__all__ if name != "PictureRow"} == {*figures} | OWN_WORDS
    script = True  # plotly's own, once
    parts = []
    for name, figure in figures.items():
        drawn = to_html(figure, full_html=False, include_plotlyjs=script)
        parts.append(f"<section id={name}>{drawn}</section>")
        script = False
    path = tmp_path / "figures.html"
    path.write_text(f"<meta charset=utf-8><title>calm</title>{''.join(parts)}", encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    wait_until(lambda: page.locator("section .main-svg").count() >= len(figures))
    for name in figures:
        section = page.locator(f"#{name}")
        words = section.locator(".js-plotly-plot").evaluate("each => each.textContent")
        assert SHOWN in words, name
        for kind in (".main-svg a", "a[href^=javascript]", "img", "[onerror]", ".main-svg script"):
            assert section.locator(kind).count() == 0, (name, kind)
        for point in section.locator(".point, .nsewdrag").all()[:3]:
            point.hover(force=True)
        assert section.locator(".hoverlayer a, .hoverlayer img").count() == 0, name
    assert page.title() == "calm"
    page.close()
