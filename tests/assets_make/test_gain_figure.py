"""README's figure shows what the committed study says."""

import json

from assets.make.gain_figure import SHOWN, draw_gains
from dclip_kit.runtime.files import asset_path


def test_the_shown_arms_are_drawn_as_the_study_has_them() -> None:
    path = asset_path("studies", "pocket_table.json")
    arms = json.loads(path.read_text(encoding="utf-8"))["arms"]
    drawn = {trace.name: trace for trace in draw_gains(path).data if trace.mode == "markers"}
    assert drawn.keys() == set(SHOWN) < arms.keys()
    for name, trace in drawn.items():
        assert trace.y == (arms[name]["at_95_5"]["text_to_image"]["vs"]["clip"]["relative"],)
