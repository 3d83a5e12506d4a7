"""A stored study as a table; `assets/make/study.py` runs studies and stores them."""

from collections.abc import Mapping
from typing import Any, Literal

from dclip_kit.config import CONTROL
from dclip_kit.evaluation.compare import format_compositions, format_table
from dclip_kit.evaluation.evaluate import WAYS
from dclip_kit.metrics import Interval

RETENTION = 0.955  # of zero-shot accuracy, at which studies compare arms


def format_study(result: Mapping[str, Any], at: Literal["at_95_5", "chosen"] = "at_95_5") -> str:
    """A study's table: Recall@1 in percent, and what each arm gains over two.

    If arms were measured on compositions, a second table shows how many they tell apart.

    Args:
        result: the content of a study's JSON.
        at: which mix of old and new weights is compared: the one that keeps 95.5 % of zero-shot
            accuracy, or the one that val chose.
    """
    arms = result["arms"]
    rivals = [name for name in ("clip", CONTROL) if name in arms]
    gain_columns = [f"over {name}, %" for name in rivals]
    rows = [
        ["arm", "seeds", "val", "t→i R@1", *gain_columns, "i→t R@1", *gain_columns, "kept at α"]
    ]
    for name, arm in arms.items():
        cells = [name, str(len(arm["runs"])), f"{100 * arm['val']:.1f}"]
        for way in WAYS:
            retrieval = arm[at][way]
            cells.append(f"{100 * retrieval['recall_at_1']:.1f}")
            cells += [_say_gain(retrieval["vs"].get(rival)) for rival in rivals]
        cells.append(f"{100 * arm['chosen']['retention']['estimate']:.1f}")
        rows.append(cells)
    compositions = {
        name: {
            kind: {
                score: Interval(interval["estimate"], *interval["ci95"])
                for score, interval in scores.items()
            }
            for kind, scores in arm["compositions"].items()
        }
        for name, arm in arms.items()
        if "compositions" in arm
    }
    return "\n\n".join(
        [format_table(rows), *([format_compositions(compositions)] if compositions else [])]
    )


def _say_gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return "–"
    low, high = gain["ci95"]
    # Non-breaking spaces keep an interval on one line.
    return f"{100 * gain['relative']:+.1f}\xa0[{100 * low:.1f},\xa0{100 * high:.1f}]"
