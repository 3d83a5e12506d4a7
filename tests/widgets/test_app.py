"""The page without code: a folder's gallery, and the pocket's three widgets."""

import json
from dataclasses import replace

import pytest
import torch

from dclip_kit.config import get_profile
from dclip_kit.evaluation.experiment import Arm, load_arm, save_arm
from dclip_kit.models.encode import encode_images
from dclip_kit.models.weights import clone_clip
from dclip_kit.runtime.files import asset_path, write_record
from dclip_kit.widgets import app


@pytest.fixture
def folder(pictures, tmp_path):
    place = tmp_path / "photos"
    (place / "deep").mkdir(parents=True)
    for number, picture in enumerate(pictures):
        picture.save(place / ("deep" if number > 3 else "") / f"{number}.png")
    return place


@pytest.fixture
def run(clip, clip_folder, tmp_path):
    """What `distill` leaves: an arm beside the settings that say which CLIP it comes from."""
    place = tmp_path / "runs/mine"
    place.mkdir(parents=True)
    settings = replace(get_profile("pocket"), clip=str(clip_folder))
    write_record(settings.as_dict(), place / "settings.json")
    tuned = clone_clip(clip)
    with torch.no_grad():
        for parameter in tuned.model.visual.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for name, trained_text in (("region_taught", False), ("official_code", True)):
        save_arm(Arm(name, tuned, 1.0, trained_text=trained_text), place)
    return place


def wait(background) -> str:
    """What the page says once its thread has ended."""
    background._thread.join(60)
    assert not background._thread.is_alive()
    return background.message.value


@pytest.fixture
def works(monkeypatch):
    """What goes on behind the boxes that the functions return."""
    made = []

    class Watched(app.Background):
        def __init__(self, work) -> None:
            made.append(self)
            super().__init__(work)

    monkeypatch.setattr(app, "Background", Watched)
    return made


def test_a_folder_is_searched_by_the_arm_and_by_its_own_clip(
    folder, run, clip, works, tmp_path
) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    box = app.open_folder(folder, str(run / "region_taught"), cache=tmp_path / "cache")
    assert wait(works[0]) == "Finished."
    buttons, tabs = box.children
    assert buttons.layout.display == "none" and tabs.layout.display is None
    assert tabs.titles == ("Search",)
    said, note, gallery = tabs.children[0].children
    assert said.value == f"6 pictures of {folder}"
    assert note.value == "Left out, since they cannot be read: 1."
    gallery.query = "a red ball"
    files = {hit["file"] for hit in gallery.results["before"]}
    assert files < {"0.png", "1.png", "2.png", "3.png", "deep/4.png", "deep/5.png"}
    arm = load_arm("region_taught", clip, run).clip
    for share, model in ((0.0, clip), (1.0, arm)):
        expected = encode_images(model, gallery._dataset.paths)
        torch.testing.assert_close(gallery._features[share], expected)


def test_embedding_that_is_stopped_goes_on(folder, run, works, tmp_path, monkeypatch) -> None:
    told = []

    def tell(self, said, share=None) -> None:
        told.append(said)
        if len(told) == 3:  # the arm's pictures, after loading and the CLIP's
            self.stop()
        original(self, said, share)

    original = app.Background.tell
    monkeypatch.setattr(app.Background, "tell", tell)
    box = app.open_folder(folder, str(run / "region_taught"), cache=tmp_path / "cache")
    assert wait(works[0]) == "Stopped. region_taught: 0 of 6 new pictures"
    buttons, tabs = box.children
    assert buttons.layout.display is None and tabs.layout.display == "none"
    works[0]._resume.click()
    assert wait(works[0]) == "Finished."
    assert told[3:] == ["Loading the models …", "region_taught: 0 of 6 new pictures"]
    assert buttons.layout.display == "none" and tabs.titles == ("Search",)


def test_tabs_of_a_start_that_was_stopped_do_not_come_twice(works) -> None:
    def build(background):
        yield "First", ["said"], app.ipywidgets.Label()
        if len(starts) == 0:
            starts.append(1)
            background.stop()
        background.tell("on")
        yield "Second", ["said"], app.ipywidgets.Label()

    starts: list[int] = []
    _, tabs = app.show_tabs(build).children
    assert wait(works[0]) == "Stopped. on" and tabs.titles == ("First",)
    works[0]._resume.click()
    assert wait(works[0]) == "Finished."
    assert tabs.titles == ("First", "Second") and len(tabs.children) == 2


def test_a_folder_without_pictures_is_said(run, works, tmp_path) -> None:
    (tmp_path / "<b>empty").mkdir()
    app.open_folder(tmp_path / "<b>empty", str(run / "region_taught"))
    assert wait(works[0]).startswith("Failed: Expected pictures (.avif")


def test_what_is_no_arm_is_refused(run, clip_folder) -> None:
    with pytest.raises(ValueError, match=r"Expected an arm that distill wrote.*or take search"):
        app.load_pair(str(clip_folder))
    with pytest.raises(ValueError, match="whose text tower was trained too"):
        app.load_pair(str(run / "official_code"))
    before, after = app.load_pair("pocket")
    arm = load_arm("region_taught", before, asset_path("pocket_arms")).clip
    assert torch.equal(after.model.visual.conv1.weight, arm.model.visual.conv1.weight)


def test_the_environment_says_what_is_shown(monkeypatch) -> None:
    shown = []
    monkeypatch.setattr(app, "display", shown.append)
    monkeypatch.setattr(app, "open_folder", lambda *given: given)
    monkeypatch.setattr(app, "show_tabs", lambda build: build)
    app.show_app()
    asked = {"folder": "/photos", "model": "runs/mine/dclip", "device": "cpu"}
    monkeypatch.setenv(app.SETTINGS, json.dumps(asked))
    app.show_app()
    assert shown == [app.build_pocket, (app.Path("/photos"), "runs/mine/dclip", "cpu")]
