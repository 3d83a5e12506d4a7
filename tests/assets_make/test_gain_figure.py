"""README's figure shows what the stored results say."""

import json

import pytest

from assets.make.gain_figure import draw_gains
from dclip_kit.runtime.files import asset_path


def test_each_arm_stands_where_its_gain_and_retention_are() -> None:
    arms = asset_path("pocket_arms")
    report = json.loads((arms / "report.json").read_text())
    gains = json.loads((arms / "fresh_scenes.json").read_text())["text_to_image"]["gains"]
    drawn = dict(zip(report["arms"], draw_gains(arms).data, strict=True))
    assert (drawn["clip"].x, drawn["clip"].y) == ((1.0,), (0,))
    for name in ("contrastive", "dclip"):
        gain = gains[f"assets/pocket_arms/{name} over pocket"]
        point, kept = drawn[name], report["arms"][name]["zero_shot"]
        assert (point.x[0], point.y[0]) == (kept["retention"], gain["relative"])
        ends = point.y[0] - point.error_y.arrayminus[0], point.y[0] + point.error_y.array[0]
        assert ends == pytest.approx(gain["relative_ci95"])
        ends = point.x[0] - point.error_x.arrayminus[0], point.x[0] + point.error_x.array[0]
        assert ends == pytest.approx(kept["retention_ci95"])
