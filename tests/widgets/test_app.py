"""The page without code: a folder's gallery, and the pocket's three widgets."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from dclip_kit.config import get_profile
from dclip_kit.evaluation.arms import Arm, describe_origin, load_arm, save_arm
from dclip_kit.evaluation.seen import describe_seen
from dclip_kit.models.clip import load_clip, save_clip
from dclip_kit.models.encode import encode_images
from dclip_kit.models.weights import clone_clip
from dclip_kit.runtime.files import asset_path
from dclip_kit.widgets import app


@pytest.fixture
def folder(pictures, tmp_path):
    place = tmp_path / "photos"
    (place / "deep").mkdir(parents=True)
    for number, picture in enumerate(pictures):
        picture.save(place / ("deep" if number > 3 else "") / f"{number}.png")
    return place


@pytest.fixture
def base(clip_folder, tmp_path):
    """The folder of the untouched CLIP, which may move and change."""
    return shutil.copytree(clip_folder, tmp_path / "base")


@pytest.fixture
def run(clip, base, captioned, tmp_path):
    """What `distill` leaves: arms, whose training.json says which CLIP they come from."""
    place = tmp_path / "runs/mine"
    origin = describe_origin(replace(get_profile("pocket"), clip=str(base)), clip)
    seen = describe_seen(captioned, captioned, (), by_content=False)
    for name, towers in (("region_taught", "visual."), ("official_code", "")):
        tuned = clone_clip(clip)
        with torch.no_grad():
            for parameter, values in tuned.model.named_parameters():
                if parameter.startswith(towers):
                    values.add_(0.1 * torch.randn_like(values))
        save_arm(Arm(tuned, 1.0), place / name, origin, seen)
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
    arm = load_arm(run / "region_taught").clip
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


def same(one, other) -> bool:
    return one.digest == other.digest


def test_an_arm_brings_the_clip_that_it_comes_from(run, clip) -> None:
    before, after = app.load_pair(str(run / "region_taught"))
    assert same(before, clip) and same(after, load_arm(run / "region_taught").clip)
    before, after = app.load_pair("pocket")
    assert same(before, load_clip("pocket")) and not same(before, after)
    assert same(after, load_arm(asset_path("pocket_arms", "region_taught")).clip)


def test_a_clip_that_has_moved_is_told_with_before(run, base, clip, tmp_path) -> None:
    arm, moved = str(run / "region_taught"), tmp_path / "moved"
    base.rename(moved)
    with pytest.raises(ValueError, match=f"a folder or an architecture .*{base}'"):
        app.load_pair(arm)
    before, after = app.load_pair(arm, before=str(moved))
    assert same(before, clip) and same(after, load_clip(arm))
    with pytest.raises(ValueError, match=r"got pocket of .*--before"):
        app.load_pair(arm, before="pocket")


def test_a_clip_that_has_changed_is_refused(run, base, clip) -> None:
    digest, changed = clip.digest, clone_clip(clip)
    with torch.no_grad():
        changed.model.visual.proj[0, 0] += 1
    save_clip(changed, base)
    says = f"the digest {digest}, got {base} of {changed.digest}; .*--before"
    for instead in ("", str(base)):
        with pytest.raises(ValueError, match=says):
            app.load_pair(str(run / "region_taught"), before=instead)


def test_a_model_without_a_record_needs_before(run, base, clip) -> None:
    """As one that another tool has fine-tuned."""
    plain = run / "region_taught"
    (plain / "training.json").unlink()
    for model in (plain, base):
        with pytest.raises(ValueError, match=r"Expected an arm that distill wrote.*with --before"):
            app.load_pair(str(model))
    before, after = app.load_pair(str(plain), before=str(base))
    assert same(before, clip) and same(after, load_clip(plain))


def test_what_one_vector_of_a_query_cannot_serve_is_refused(run, make_clip_folder) -> None:
    with pytest.raises(ValueError, match=r"whose text tower is another or was trained too.*search"):
        app.load_pair(str(run / "official_code"))
    (run / "region_taught/training.json").unlink()
    other = make_clip_folder(quick_gelu=True)  # which makes other features of the same weights
    for before in (other, "pocket"):
        with pytest.raises(ValueError, match="whose text tower is another"):
            app.load_pair(str(run / "region_taught"), before=str(before))


def test_a_run_of_several_models_is_asked_for_one(run) -> None:
    with pytest.raises(FileNotFoundError, match=f"name one of them: .*{run}/region_taught"):
        app.load_pair(str(run), before="pocket")


def test_the_environment_says_what_is_shown(monkeypatch) -> None:
    shown = []
    monkeypatch.setattr(app, "display", shown.append)
    monkeypatch.setattr(app, "open_folder", lambda *given: given)
    monkeypatch.setattr(app, "show_tabs", lambda build: build)
    app.show_app()
    asked = {"folder": "/photos", "model": "runs/mine/dclip", "device": "cpu", "before": "base"}
    monkeypatch.setenv(app.SETTINGS, json.dumps(asked))
    app.show_app()
    assert shown == [app.build_pocket, (app.Path("/photos"), "runs/mine/dclip", "cpu", "base")]
