"""Work in a thread that stops and goes on; figures in one display, replaced by what is new."""

import asyncio
import threading

import plotly.io
import pytest

from dclip_kit.widgets import LiveRun, live

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

    def display(bundle, raw: bool, display_id: bool = False) -> Handle:
        assert raw and display_id is (PLOTLY in bundle)
        told.append(("display", bundle))
        return Handle()

    monkeypatch.setattr(live, "display", display)
    return told


def rows(count: int, loss: float) -> list[dict[str, float]]:
    return [{"epoch": n, "loss": loss / n} for n in range(1, count + 1)]


def lines(bundle) -> list[list[float]]:
    return [list(trace["y"]) for trace in bundle[PLOTLY]["data"]]


def train(name: str, epochs: int, results: dict[str, list[int]]):
    """A training of two steps an epoch, which goes on where it was stopped."""
    done, history = results.setdefault(name, []), []

    def run(on_epoch, on_step):
        while len(done) < 2 * epochs:
            done.append(len(done))
            if len(done) % 2 == 0:
                history[:] = rows(len(done) // 2, 2.0)
                on_epoch(None, history)
            on_step(done[-1], 1.0)
        return f"{name} is trained"

    return run


def figures(shown) -> list[list[list[float]]]:
    return [lines(bundle) for kind, bundle in shown if kind == "update"]


def test_one_figure_grows_by_epoch_and_by_training(shown) -> None:
    steps: dict[str, list[int]] = {}
    live_run = LiveRun({name: train(name, 2, steps) for name in ("first", "second")})
    live_run.start()
    assert asyncio.run(live_run.wait()) == {
        "first": "first is trained",
        "second": "second is trained",
    }
    assert [kind for kind, _ in shown[:2]] == ["display"] * 2  # buttons, a figure without lines
    assert "application/vnd.jupyter.widget-view+json" in shown[0][1]
    assert shown[0][1]["text/plain"].startswith("Buttons")  # for a page without a kernel
    assert lines(shown[1][1]) == []
    grown = [[[2.0]], [[2.0, 1.0]], [[2.0, 1.0], [2.0]], [[2.0, 1.0]] * 2]
    assert figures(shown) == [*grown, grown[-1]]  # the last once more, by the cell that waits


def test_it_does_not_hold_up_other_cells(shown) -> None:
    goes_on, seen = threading.Event(), []

    def run(on_epoch, on_step):
        goes_on.wait(10)
        return seen.append("trained")

    live_run = LiveRun({"slow": run})
    live_run.start()
    live_run.start()  # is no second one
    seen.append("next cell")
    assert not live_run._stop.disabled and live_run._resume.disabled
    goes_on.set()
    asyncio.run(live_run.wait())
    assert seen == ["next cell", "trained"] and live_run._message.value == "Finished."
    assert live_run._stop.disabled and live_run._resume.disabled


def test_being_asked_to_stop_after_the_last_step_is_finished(shown) -> None:
    live_run = LiveRun({"first": lambda on_epoch, on_step: live_run.stop()})
    live_run.start()
    assert asyncio.run(live_run.wait()) == {"first": None}


def test_a_stopped_training_goes_on_where_it_was(shown) -> None:
    steps: dict[str, list[int]] = {}
    stopped: list[int] = []

    def stop(on_epoch, on_step):
        def step(number, loss):
            if number == 2 and not stopped:
                stopped.append(number)
                live_run._stop.click()
            on_step(number, loss)

        return train("first", 2, steps)(on_epoch, step)

    live_run = LiveRun({"first": stop, "second": train("second", 1, steps)})
    live_run.start()
    with pytest.raises(RuntimeError, match="press Resume, then run this cell again"):
        asyncio.run(live_run.wait())
    assert steps == {"first": [0, 1, 2], "second": []}
    assert live_run._stop.disabled and not live_run._resume.disabled
    assert live_run._message.value == "Stopped. first: 3 steps, loss 1.000"
    live_run._resume.click()
    assert asyncio.run(live_run.wait()).keys() == {"first", "second"}
    assert steps == {"first": [0, 1, 2, 3], "second": [0, 1]}
    assert live_run._stop.disabled and live_run._resume.disabled


def test_an_error_is_raised_where_somebody_waits(shown) -> None:
    def fail(on_epoch, on_step):
        raise ValueError("<b>no</b> picture")

    live_run = LiveRun({"failing": fail})
    with pytest.raises(RuntimeError, match="got none"):
        asyncio.run(live_run.wait())
    live_run.start()
    with pytest.raises(ValueError, match="<b>no</b> picture"):
        asyncio.run(live_run.wait())
    assert live_run._message.value == "Failed: <b>no</b> picture"
    assert not live_run._resume.disabled


def test_what_was_shown_does_not_change_with_the_running_history(shown) -> None:
    live_run = LiveRun({"first": train("first", 2, {})})
    live_run.start()
    asyncio.run(live_run.wait())
    assert figures(shown)[0] == [[2.0]]


def test_curves_begin_with_the_untouched_model(shown) -> None:
    def train(on_epoch, on_step) -> str:
        on_epoch(None, [{"epoch": 1, "loss": 2.0, "val_recall_at_1": 0.3}])
        return "trained"

    run = LiveRun({"arm": train}, untouched={"val_recall_at_1": 0.2})
    run.start()
    assert asyncio.run(run.wait()) == {"arm": "trained"}
    assert [row["epoch"] for row in run.histories["arm"]] == [0, 1]
    assert [row["val_recall_at_1"] for row in run.histories["arm"]] == [0.2, 0.3]
