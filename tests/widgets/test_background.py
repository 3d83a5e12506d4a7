"""Work in a thread: it says how far it is, stops between steps, and goes on."""

import asyncio
import threading

import pytest

from dclip_kit.widgets.background import Background


def counting(steps: list[int], until: int):
    def work(background: Background) -> None:
        while len(steps) < until:
            background.tell(f"{len(steps)} of {until}", len(steps) / until)
            steps.append(len(steps))

    return work


def test_it_says_how_far_it_is() -> None:
    goes_on, seen = threading.Event(), threading.Event()

    def work(background: Background) -> None:
        background.tell("half", 0.5)
        seen.set()
        goes_on.wait(10)
        background.tell("no number")
        assert background._bar.layout.display == "none"

    background = Background(work)
    assert not asyncio.run(background.wait())  # nothing has begun
    background.start()
    background.start()  # is no second one
    assert seen.wait(10)
    assert background.message.value == "half"
    assert background._bar.value == 0.5 and background._bar.layout.display is None
    assert not background._stop.disabled and background._resume.disabled
    goes_on.set()
    assert asyncio.run(background.wait()) and background.finished
    assert background.message.value == "Finished."
    assert background._stop.disabled and background._resume.disabled


def test_it_stops_between_two_steps_and_goes_on() -> None:
    steps: list[int] = []
    background = Background(counting(steps, 3))

    def stopping(within: Background) -> None:
        steps.append(0)
        within._stop.click()
        counting(steps, 3)(within)

    background._work = stopping
    background.start()
    assert not asyncio.run(background.wait())
    assert steps == [0] and background.message.value == "Stopped. 1 of 3"
    assert background._stop.disabled and not background._resume.disabled
    background._work = counting(steps, 3)
    background._resume.click()
    assert asyncio.run(background.wait())
    assert steps == [0, 1, 2]


def test_being_asked_too_late_is_finished() -> None:
    background = Background(lambda within: within.stop())
    background.start()
    assert asyncio.run(background.wait())


def test_an_error_is_said_and_raised_where_somebody_waits() -> None:
    def fail(background: Background) -> None:
        raise ValueError("Expected a picture, got <b>none</b>.")

    background = Background(fail)
    background.start()
    with pytest.raises(ValueError, match="Expected a picture"):
        asyncio.run(background.wait())
    assert background.message.value == "Failed: Expected a picture, got <b>none</b>."
    assert not background._resume.disabled
