"""A profile's data: the pocket's, one's own, and pictures without captions."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dclip_kit.config import PROFILES, RECIPES, Profile, apply_recipe, change_settings
from dclip_kit.data import curate, open_picture, read_captioned
from dclip_kit.data.pocket import world as pocket
from dclip_kit.data.pocket.sprites import load_nouns
from dclip_kit.evaluation import profile_data
from dclip_kit.evaluation.evaluate import TEMPLATE_SETS, encode_classes
from dclip_kit.evaluation.experiment import prepare_evaluation
from dclip_kit.evaluation.profile_data import (
    choose_measured,
    choose_templates,
    is_pocket,
    load_data,
    load_uncaptioned,
    locate_uncaptioned,
    pocket_count,
    preview,
    read_measured,
    read_zero_shot,
    require_data,
    resolve_paths,
)
from tests.data.test_leaks import scene
from tests.data.test_splits import write_own

# The pocket's


def test_a_profile_begins_with_all_six_sets_and_the_ceiling(data) -> None:
    assert (len(data.train), len(data.val), len(data.test)) == (11, 6, 8)
    assert (data.train.split, data.val.split, data.test.split) == ("train", "val", "test")
    for name in ("zero_shot_val", "zero_shot", "zero_shot_held_out"):
        found = getattr(data, name)
        assert len(found) == len(load_nouns()) and found.source == f"pocket {name}"
    assert data.ceiling == pocket.RECALL_CEILING


def test_a_preview_draws_no_more_than_it_shows(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path))
    shown = preview(PROFILES["pocket"], 3)
    assert [captions for _, captions in shown] == [
        pocket.make_scene("test", index)[1] for index in range(3)
    ]
    assert all(picture.size == (256, 256) for picture, _ in shown)
    assert not [*tmp_path.iterdir()]


# Data of one's own


def write_classes(folder: Path, count: int = 6) -> Path:
    """Labelled pictures, a folder a class."""
    for label, name in enumerate(("red_ball", "dog", "boat")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            scene(1000 + 100 * label + index).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture
def own(tmp_path) -> Profile:
    """A profile of pictures on disk."""
    data = write_own(tmp_path / "own", range(20), ("gone.png,a",), split=True)
    classes = write_classes(tmp_path / "classes")
    return replace(PROFILES["base"], data=str(data), zero_shot=str(classes))


def test_a_preview_of_ones_own_data_is_of_its_test_pictures(own) -> None:
    test = load_data(own).test
    shown = preview(own, 9)
    assert [captions for _, captions in shown] == [*test.captions]
    assert shown[0][0].tobytes() == open_picture(test.paths[0]).tobytes()


def test_a_profile_with_a_path_reads_it(own, capsys, clip) -> None:
    data = load_data(own)
    assert (len(data.train), len(data.val), len(data.test)) == (16, 2, 2)
    assert data.ceiling is None and data.zero_shot_held_out is None
    assert "1 unusable" in str(data.left_out)
    assert capsys.readouterr().out == f"{data.left_out}\n"
    assert (len(data.zero_shot_val), len(data.zero_shot)) == (9, 9)
    assert data.zero_shot.class_names == ("boat", "dog", "red ball")
    sets = prepare_evaluation(clip, data)
    assert sets.zero_shot_held_out is None and len(sets.zero_shot.pictures) == 9
    assert load_data(replace(own, seed=1)).test == data.test  # a column says so


def test_a_labelled_picture_that_cannot_be_read_is_left_out_of_its_half(own, capsys) -> None:
    before = load_data(own)
    path = before.zero_shot.paths[4]
    path.write_bytes(path.read_bytes()[:40])
    capsys.readouterr()
    after = load_data(own)
    assert "1 labelled pictures are left out, such as: " in capsys.readouterr().out
    assert after.zero_shot_val == before.zero_shot_val
    assert after.zero_shot.paths == before.zero_shot.paths[:4] + before.zero_shot.paths[5:]
    (all_of_them,) = read_zero_shot(own.zero_shot)  # to measure other models on
    assert len(all_of_them) == 17 and path not in all_of_them.paths


def test_other_data_to_measure_on_is_read_too(own, tmp_path) -> None:
    test = write_own(tmp_path / "test", range(30, 34))
    data = load_data(replace(own, test=str(test)))
    assert (len(data.train), len(data.val), len(data.test)) == (16, 2, 4)


def test_the_folder_of_pictures_is_that_of_the_data_alone(own, tmp_path) -> None:
    test = tmp_path / "test"
    test.mkdir()
    for seed in (30, 31):
        scene(seed).save(test / f"{seed}.png")
        (test / f"{seed}.txt").write_text("a text beside its picture")
    table = Path(own.data) / "captions.csv"
    table.rename(tmp_path / "captions.csv")
    apart = replace(own, data=str(tmp_path / "captions.csv"), images=own.data, test=str(test))
    require_data(apart)
    assert len(load_data(apart).test) == 2


def test_the_leak_guard_may_go_by_names_alone(own, tmp_path) -> None:
    test = write_own(tmp_path / "test", range(14, 16))
    profile = replace(own, test=str(test))
    assert len(load_data(profile).left_out.leaks) == 2
    for path in list(test.glob("*.png")):
        path.rename(path.with_name(f"x{path.name}"))
    rows = (test / "captions.csv").read_text().splitlines()
    (test / "captions.csv").write_text("\n".join([rows[0], *(f"x{row}" for row in rows[1:])]))
    assert len(load_data(profile).left_out.leaks) == 2
    by_name = replace(profile, leak_guard="names")
    assert not load_data(by_name).left_out.leaks
    for each in (profile, by_name):
        assert read_measured(each, "train").paths == load_data(each).train.paths
    assert read_measured(by_name, "train").paths != read_measured(profile, "train").paths


def test_classes_are_put_into_templates(own, clip) -> None:
    for zero_shot, asked, name in [
        ("pocket", "auto", "pocket"),
        ("cifar10:x", "auto", "imagenet"),
        ("classes", "paper", "paper"),
    ]:
        assert choose_templates(zero_shot, asked) is TEMPLATE_SETS[name]
    with pytest.raises(ValueError, match="bring their article, got paper's; give --templates pock"):
        choose_templates("pocket", "paper")
    assert load_data(own).templates is TEMPLATE_SETS["imagenet"]
    data = load_data(replace(own, templates="paper"))
    expected = encode_classes(clip, data.zero_shot.class_names, TEMPLATE_SETS["paper"])
    for each in (prepared := prepare_evaluation(clip, data)).zero_shot, prepared.zero_shot_val:
        torch.testing.assert_close(each.class_features, expected)


@pytest.mark.parametrize("missing", ["data", "zero_shot"])
def test_what_a_profile_lacks_is_asked_for(missing, own) -> None:
    with pytest.raises(ValueError, match=r"Expected data and zero_shot in the profile 'base'"):
        load_data(replace(own, **{missing: ""}))
    with pytest.raises(ValueError, match=r"manifest and Karpathy's dataset_coco\.json as test"):
        load_data(PROFILES["paper"])


def test_pictures_to_measure_on_are_those_of_the_profile(own) -> None:
    assert read_measured(own).paths == load_data(own).test.paths
    drawn = replace(own, data=str(write_own(Path(own.data).parent / "drawn", range(100, 160))))
    assert read_measured(replace(drawn, seed=1)).paths != read_measured(drawn).paths
    elsewhere = replace(own, test=drawn.data)
    assert read_measured(elsewhere).paths == load_data(elsewhere).test.paths
    assert len(read_measured(own, "all")) == 20
    scene(99).save(Path(own.data) / "silent.png")
    with (Path(own.data) / "captions.csv").open("a") as table:
        table.write("\nsilent.png,,test")
    assert len(read_measured(own, "all")) == 20  # without a caption, as in every split
    (labelled,) = read_zero_shot(own.zero_shot)
    assert len(labelled) == 18


def test_a_manifests_val_is_its_own(own, tmp_path) -> None:
    dataset = read_captioned(own.data).dataset
    curate({"own": dataset}, tmp_path / "mixture.json", [], mixture={"own": 20})
    mixed, test = (
        replace(own, data=str(tmp_path / "mixture.json")),
        write_own(tmp_path / "t", range(40, 43)),
    )
    val = load_data(replace(mixed, test=str(test))).val
    assert len(val) == 2 and read_measured(mixed, "val").paths == val.paths


def test_a_split_is_never_all_under_another_name(own) -> None:
    data = load_data(own)
    assert read_measured(own, "val").paths == data.val.paths
    assert read_measured(own, "train").paths == data.train.paths
    with pytest.raises(ValueError, match=r"of train, val, test or all .* got 'dev'"):
        read_measured(own, "dev")


def test_models_are_measured_on_what_their_runs_were_unless_asked_otherwise(own) -> None:
    run = replace(own, images="below", test="there", seed=3)
    assert choose_measured([], own) == own
    assert choose_measured([run], own, data=None, seed=None) == run
    assert choose_measured([run], own, seed=0, zero_shot="") == replace(run, seed=0, zero_shot="")
    # Other data lies elsewhere and has a test of its own.
    other = choose_measured([run], own, data="other")
    assert other == replace(run, data="other", images="", test="")
    assert choose_measured([run], own, data="other", images="x").images == "x"
    with pytest.raises(ValueError, match=r"runs had different ones \(.*\); give --zero-shot"):
        choose_measured([run, replace(run, zero_shot="pocket")], own)
    with pytest.raises(ValueError, match="got none; give --data"):
        choose_measured([], PROFILES["paper"])
    (Path(own.data) / "captions.csv").unlink()
    with pytest.raises(ValueError, match=r"have no captions; give --data"):
        choose_measured([replace(own, test="")], own)
    with pytest.raises(ValueError, match="got below alone; give --data"):
        choose_measured([], PROFILES["pocket"], images="below")  # whose pictures lie elsewhere


def test_whole_paths_hold_in_any_folder(own, tmp_path, monkeypatch) -> None:
    names = ("a", "pocket", "auto", "pocket_vit", "classes")
    for name in names:
        (tmp_path / "here" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    places = {"data": ".", "images": "a", "test": "../here/a", "zero_shot": "cifar10:classes"}
    others = {"uncaptioned": "a", "anchor_texts": "a", "clip": "local-dir:a", "pretrained": None}
    found = resolve_paths(replace(own, **places, **others))
    here = tmp_path / "here"
    assert (found.data, found.images, found.test) == (str(here), f"{here}/a", f"{here}/a")
    assert found.zero_shot == f"cifar10:{here}/classes" and found.pretrained is None
    assert found.uncaptioned == found.anchor_texts == found.clip == f"{here}/a"
    # Names are no paths, even where there are folders of these names.
    named = replace(PROFILES["base"], uncaptioned="auto", test="gone", clip="pocket_vit")
    assert resolve_paths(named) == named
    assert resolve_paths(replace(named, data="hf:a/b")).data == "hf:a/b"
    (here / "openai").mkdir()
    (here / "ViT-B-32-quickgelu").write_text("no folder")
    assert resolve_paths(PROFILES["base"]) == PROFILES["base"]
    # A link keeps its name: what it leads to may have no suffix, and nothing beside it.
    (here / "a" / "captions.csv").symlink_to(here / "classes" / "0a1b")
    (here / "classes" / "0a1b").write_text("image,caption\n")
    linked = resolve_paths(replace(own, data="a/captions.csv"))
    assert linked.data == f"{here}/a/captions.csv"


# Pictures without captions


@pytest.mark.parametrize(
    ("asked", "count"),
    [("pocket:1", 1), ("pocket:16000", 16000), ("pocket:999999", 999_999)],
)
def test_further_scenes_are_asked_for_by_their_number(asked, count) -> None:
    profile = replace(PROFILES["pocket"], uncaptioned=asked)
    assert locate_uncaptioned(profile) == asked
    assert is_pocket(asked) and pocket_count(asked) == count


@pytest.mark.parametrize("asked", ["", "a/b", "pockets", "my/pocket:3"])
def test_other_pictures_are_not_the_pockets(asked) -> None:
    assert locate_uncaptioned(replace(PROFILES["pocket"], uncaptioned=asked)) == asked
    assert not is_pocket(asked)


@pytest.mark.parametrize("asked", ["pocket", "pocket:", "pocket:0", "pocket:x", "pocket:1000000"])
def test_further_scenes_asked_for_in_other_words_are_refused(asked, own) -> None:
    for refuse in (locate_uncaptioned, require_data):
        with pytest.raises(ValueError, match=rf"pocket:COUNT .* got '{asked}'; say pocket:"):
            refuse(replace(own, uncaptioned=asked))


@pytest.mark.parametrize("asked", ["pocket:", "pocket:0", "pocket:x"])
@pytest.mark.parametrize("name", ["data", "zero_shot"])
def test_parts_of_the_pocket_asked_for_in_other_words_are_refused(asked, name) -> None:
    with pytest.raises(ValueError, match=rf"got '{asked}'; say pocket:4000"):
        require_data(replace(PROFILES["pocket"], **{name: asked}))


def test_a_part_of_the_pocket_has_the_same_test(data, monkeypatch) -> None:
    monkeypatch.setenv("DCLIP_CACHE", str(data.test.paths[0].parents[2]))
    monkeypatch.setattr(pocket, "SCENE_SPLITS", {"train": 11, "val": 6, "test": 8})
    part = load_data(replace(PROFILES["pocket"], data="pocket:2", zero_shot="pocket:1"))
    assert part.train == data.train.select(range(2))
    assert (part.val, part.test, part.ceiling) == (data.val, data.test, data.ceiling)
    assert part.zero_shot_val.labels == data.zero_shot_val.labels


def test_a_path_without_pictures_is_refused_before_any_data_is_read(own) -> None:
    with pytest.raises(ValueError, match=r"at nowhere, found nothing; check --uncaptioned"):
        require_data(replace(own, uncaptioned="nowhere"))
    require_data(replace(own, uncaptioned=own.data))


def test_further_scenes_are_the_pockets_default_alone(own, data, monkeypatch, capsys) -> None:
    asked = []
    monkeypatch.setattr(pocket, "load_captioned", lambda *given: asked.append(given))
    load_uncaptioned(PROFILES["pocket"], data)
    assert asked == [("uncaptioned", 16000)] and own.uncaptioned == "auto"
    for profile in (own, replace(PROFILES["pocket"], data=own.data)):
        assert locate_uncaptioned(profile) == ""
        assert load_uncaptioned(profile, data) is None
        assert capsys.readouterr().out.startswith("No uncaptioned pictures are given")
    assert len(asked) == 1


@pytest.mark.parametrize("given", [{"test": "mine"}, {"images": "mine"}])
def test_the_pockets_own_test_is_not_exchanged_in_silence(given) -> None:
    with pytest.raises(ValueError, match=r"Expected no test and no images .* got 'mine'; name"):
        require_data(replace(PROFILES["pocket"], **given))


def test_further_scenes_are_drawn_and_have_no_captions(data, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path))
    found = load_uncaptioned(replace(PROFILES["pocket"], uncaptioned="pocket:3"), data)
    assert found == pocket.load_captioned("uncaptioned", 3)
    assert len(found) == 3 and not found.texts and found.paths[0].is_file()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("recipe", RECIPES)
def test_only_students_of_a_teacher_that_reads_no_caption_are_given_more(
    recipe, own, data, capsys, monkeypatch
) -> None:
    """For the others, nobody reads them."""
    if not recipe.endswith("_taught"):
        monkeypatch.setattr(profile_data, "read_uncaptioned", None)
    profile = apply_recipe(replace(own, uncaptioned=own.data), recipe)
    found = load_uncaptioned(profile, data)
    assert (found is not None) == recipe.endswith("_taught")
    said = capsys.readouterr().out
    assert said.startswith(f"The recipe {recipe} learns nothing from") != recipe.endswith("_taught")
    assert "No uncaptioned pictures" not in said
    asked = change_settings(profile, {"student": {"uncaptioned_batch": 8}})
    assert (load_uncaptioned(asked, data) is not None) == recipe.endswith("_taught")
    capsys.readouterr()
    assert load_uncaptioned(replace(profile, uncaptioned=""), data) is None
    said = capsys.readouterr().out
    assert said.startswith("No uncaptioned pictures are given") == recipe.endswith("_taught")


def test_the_leak_guard_is_that_of_uncaptioned_pictures_too(own, tmp_path) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    for seed in (3, 17, 19, 50):  # of train, val and test, and of none
        scene(seed).save(folder / f"x{seed}.jpg", quality=60)
    profile, data = replace(own, uncaptioned=str(folder)), load_data(own)
    found = load_uncaptioned(profile, data)
    assert sorted(path.name for path in found.paths) == ["x3.jpg", "x50.jpg"]
    assert len(load_uncaptioned(replace(profile, leak_guard="names"), data)) == 4
