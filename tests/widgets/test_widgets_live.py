"""Live curves: one display, replaced after each epoch, that ends as the whole history."""

import plotly.io
import pytest

from dclip_kit.widgets import LiveHistory, live

PLOTLY = "application/vnd.plotly.v1+json"


@pytest.fixture
def shown(monkeypatch) -> list[tuple[str, object]]:
    """What the page was told: ("display", "clear" or "update", bundle)."""
    told: list[tuple[str, object]] = []
    monkeypatch.setattr(plotly.io.renderers, "default", "plotly_mimetype")

    class Handle:
        def update(self, bundle, raw: bool) -> None:
            assert raw
            told.append(("update" if PLOTLY in bundle else "clear", bundle))

    def display(bundle, raw: bool, display_id: bool) -> Handle:
        assert raw and display_id is True
        told.append(("display", bundle))
        return Handle()

    monkeypatch.setattr(live, "display", display)
    return told


def rows(count: int, loss: float) -> list[dict[str, float]]:
    return [{"epoch": n, "loss": loss / n, "val_recall_at_1": 0.1 * n} for n in range(1, count + 1)]


def lines(bundle) -> list[list[float]]:
    return [list(trace["y"]) for trace in bundle[PLOTLY]["data"]]


def test_one_figure_grows_by_epoch_and_by_arm(shown, clip) -> None:
    curves = LiveHistory(["loss"])
    first, second = curves.follow("contrastive"), curves.follow("dclip")
    first(clip, rows(1, 2.0))
    first(clip, rows(2, 2.0))
    second(clip, rows(1, 3.0))
    assert [kind for kind, _ in shown] == ["display", *["clear", "update"] * 2]
    assert [lines(figure) for kind, figure in shown if kind != "clear"] == [
        [[2.0]],
        [[2.0, 1.0]],
        [[2.0, 1.0], [3.0]],
    ]


def test_what_was_shown_does_not_change_with_the_running_history(shown, clip) -> None:
    curves, history = LiveHistory(), rows(1, 2.0)
    curves.follow("dclip")(clip, history)
    history += rows(2, 2.0)[1:]
    assert len(curves.histories["dclip"]) == 1
    assert lines(shown[0][1])[0] == [2.0]
