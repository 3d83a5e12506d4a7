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
def folder(pictures, tmp_path, monkeypatch):
    """Pictures of somebody whose cache is empty."""
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path / "cache"))
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


def test_a_folder_is_searched_by_the_arm_and_by_its_own_clip(folder, run, clip) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    told = []
    (tab,) = app.open_folder(lambda *state: told.append(state), folder, str(run / "region_taught"))
    assert (tab.title, tab.page) == ("Search", "gallery")
    assert list(tab.lines) == [
        f"6 pictures of {folder}.",
        "Left out, since they cannot be read: 1.",
    ]
    assert told == [
        ("Loading the models …", None),
        # The broken one counts as new until it is opened.
        ("the untouched CLIP: 0 of 7 new pictures", 0.0),
        ("region_taught: 0 of 7 new pictures", 0.0),
    ]
    gallery = tab.make()
    gallery.query = "a red ball"
    files = {hit["file"] for hit in gallery.results["before"]}
    assert files < {"0.png", "1.png", "2.png", "3.png", "deep/4.png", "deep/5.png"}
    arm = load_arm(run / "region_taught").clip
    for share, model in ((0.0, clip), (1.0, arm)):
        expected = encode_images(model, gallery._dataset.paths)
        torch.testing.assert_close(gallery._features[share], expected)


def test_visitors_share_the_vectors_but_not_the_query(folder, run) -> None:
    (tab,) = app.open_folder(lambda *_: None, folder, str(run / "region_taught"))
    one, two = tab.make(), tab.make()
    one.query = "a red ball"
    assert two.query == "" and not two.results["before"]
    for share in (0.0, 1.0):
        assert one._features[share].data_ptr() == two._features[share].data_ptr()


def test_a_folder_without_pictures_is_said(run, tmp_path) -> None:
    (tmp_path / "<b>empty").mkdir()
    with pytest.raises(ValueError, match="Expected pictures"):
        list(app.open_folder(lambda *_: None, tmp_path / "<b>empty", str(run / "region_taught")))


def test_gain_and_cost_are_those_of_the_run(run) -> None:
    """By hand: the chosen one against the share 0."""
    folder = run / "region_taught"

    def describe() -> str:
        return app.describe_cost(app.load_pair(str(folder))[1])

    assert describe() == ""  # this one had no validation data
    record = json.loads((folder / "training.json").read_text())
    candidates = [(0.0, 0.2, 1.0), (0.5, 0.3, 0.95), (1.0, 0.4, 0.5)]
    record["candidates"] = [
        dict(zip(("alpha", "recall_at_1", "retention"), each, strict=True)) for each in candidates
    ]
    for alpha, gain, kept in ((0.5, "50% more", "95%"), (1.0, "100% more", "50%")):
        record["alpha"] = alpha
        (folder / "training.json").write_text(json.dumps(record))
        said = describe()
        assert f"ranks {gain} right pictures first" in said and f"keeps {kept} of" in said
    record["candidates"][2]["recall_at_1"] = 0.1
    (folder / "training.json").write_text(json.dumps(record))
    assert "ranks 50% fewer" in describe()
    record["candidates"][0]["recall_at_1"] = 0.0
    (folder / "training.json").write_text(json.dumps(record))
    assert "ranks 10% of the right pictures first, where CLIP ranks none, and keeps" in describe()


def test_what_was_made_once_is_remembered(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path))
    made = []

    def make(value: float) -> torch.Tensor:
        made.append(value)
        return torch.full((2, 3), value)

    for key, value, expected in (("a", 1.0, 1.0), ("a", 2.0, 1.0), ("b", 3.0, 3.0)):
        assert (app._remember([key], lambda value=value: make(value)) == expected).all()
    assert made == [1.0, 3.0]
    (damaged,) = [path for path in (tmp_path / "app").iterdir() if path.stat().st_mtime][:1]
    damaged.write_bytes(b"cut")
    app._remember(["a"], lambda: make(4.0)), app._remember(["b"], lambda: make(4.0))
    assert made == [1.0, 3.0, 4.0]


def same(one, other) -> bool:
    return one.digest == other.digest


def test_an_arm_brings_the_clip_that_it_comes_from(run, clip) -> None:
    before, after = app.load_pair(str(run / "region_taught"))
    assert same(before, clip) and same(after.clip, load_arm(run / "region_taught").clip)
    before, after = app.load_pair("pocket")
    assert same(before, load_clip("pocket")) and not same(before, after.clip)
    assert same(after.clip, load_arm(asset_path("pocket_arms", "region_taught")).clip)


def test_a_clip_that_has_moved_is_told_with_before(run, base, clip, tmp_path) -> None:
    arm, moved = str(run / "region_taught"), tmp_path / "moved"
    base.rename(moved)
    with pytest.raises(ValueError, match=f"a folder or an architecture .*{base}'"):
        app.load_pair(arm)
    before, after = app.load_pair(arm, before=str(moved))
    assert same(before, clip) and same(after.clip, load_clip(arm))
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
    assert same(before, clip) and same(after.clip, load_clip(plain))
    assert app.describe_cost(after) == ""


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
