"""What models have seen: told by no path, kept beside them, and left out of what they are asked."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dclip_kit.config import PROFILES
from dclip_kit.data import read_labelled
from dclip_kit.data.leaks import OWN
from dclip_kit.data.pocket import world as pocket
from dclip_kit.evaluation import seen as module
from dclip_kit.evaluation.profile_data import ProfileData, load_data, load_uncaptioned
from dclip_kit.evaluation.seen import (
    SEEN,
    TRAINING,
    SeenPictures,
    add_trained,
    describe_seen,
    leave_out_labelled,
    leave_out_seen,
    leave_out_trained,
    leave_out_trained_labelled,
    load_seen,
)
from dclip_kit.runtime.files import write_record
from tests.data.test_leaks import dataset, scene
from tests.data.test_splits import write_own
from tests.evaluation.test_profile_data import write_classes


@pytest.fixture
def own(tmp_path):
    """Eight pictures: to train on, to choose on, and two that nobody has seen."""
    for seed in range(8):
        scene(seed).save(tmp_path / f"{seed}.png")
    return dataset(tmp_path, [f"{seed}.png" for seed in range(8)])


@pytest.fixture
def seen(own, tmp_path):
    classes = write_classes(tmp_path / "classes")
    labelled = sorted(classes.rglob("*.png"))[::2]
    return describe_seen(own.select(range(4)), own.select(range(4, 6)), labelled, True)


def names(dataset) -> list[str]:
    return [path.name for path in dataset.paths]


@pytest.mark.parametrize("kept", [False, True])
def test_pictures_that_were_trained_on_are_left_out_and_named(kept, own, seen, tmp_path) -> None:
    if kept:
        seen.save(tmp_path / "run")
        seen = load_seen(tmp_path / "run")
    found = leave_out_trained(own, {"mine": seen})
    assert names(found.dataset) == ["4.png", "5.png", "6.png", "7.png"]
    assert [leak.picture.name for leak in found.trained["mine"]] == [f"{i}.png" for i in range(4)]
    assert found.chosen == {"mine": 2}
    said = found.describe("own")
    assert said.startswith("Left out of own: 4 pictures that mine has trained on (the first, ")
    assert said.endswith("mine was chosen on 2 pictures of own.")


def test_they_are_known_in_another_place_and_another_format(own, seen, tmp_path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.png").write_bytes(own.paths[0].read_bytes())
    scene(1).save(other / "b.jpg", quality=60)
    scene(20).save(other / "c.png")
    scene(21).save(other / "d.png")
    given = dataset(other, ["a.png", "b.jpg", "c.png", "d.png"])
    found = leave_out_trained(given, {"mine": seen})
    assert names(found.dataset) == ["c.png", "d.png"]
    # Where nobody looks at what pictures show, their bytes tell all the same.
    by_name = describe_seen(own.select(range(4)), own.select(range(4, 6)), [], by_content=False)
    assert names(leave_out_trained(given, {"mine": by_name}).dataset) == ["b.jpg", "c.png", "d.png"]


def test_all_models_are_measured_on_what_none_has_trained_on(own, seen) -> None:
    other = describe_seen(own.select([3, 6]), own.select([7]), [], True)
    found = leave_out_trained(own, {"one": seen, "two": other})
    assert names(found.dataset) == ["4.png", "5.png", "7.png"]
    assert [len(found.trained[name]) for name in ("one", "two")] == [4, 2]
    assert found.chosen == {"one": 2, "two": 1}


def test_nothing_left_is_refused(own, seen) -> None:
    says = r"of 4 in .* 0 are left; mine has trained on .*0\.png.* the seed and the split"
    with pytest.raises(ValueError, match=says):
        leave_out_trained(own.select(range(4)), {"mine": seen})
    with pytest.raises(ValueError, match=r"of 3 in .* 1 are left"):
        leave_out_trained(own.select([0, 1, 7]), {"mine": seen})


def test_labelled_pictures_that_were_chosen_on_are_left_out(seen, tmp_path) -> None:
    classes = read_labelled(tmp_path / "classes")
    rest = leave_out_labelled(classes, seen.labelled)
    assert len(classes) == 18 and len(rest) == 9 and len(rest.labels) == 9
    assert not {p.read_bytes() for p in rest.paths} & {
        p.read_bytes() for p in sorted(classes.paths)[::2]
    }
    assert leave_out_labelled(classes, frozenset()) is classes
    with pytest.raises(ValueError, match="all 9 of classes"):
        leave_out_labelled(replace(rest, source="classes"), leave_digests(rest.paths))


def test_a_model_that_begins_from_others_has_seen_what_they_have(own) -> None:
    """Such as an arm that is fine-tuned further, on other data, and a teacher that was there."""
    first = describe_seen(own.select(range(2)), own.select([3]), [], by_content=False)
    taught = describe_seen(own.select([2]), own.select([3]), [], by_content=True)
    alone = describe_seen(own.select([4]), own.select([5]), [], by_content=False)
    assert alone.complete and names(leave_out_trained(own, {"mine": alone}).dataset) == [
        f"{number}.png" for number in (0, 1, 2, 3, 5, 6, 7)
    ]
    seen = describe_seen(own.select([4]), own.select([5]), [], False, [first, taught])
    found = leave_out_trained(own, {"mine": seen})
    assert seen.complete and names(found.dataset) == ["3.png", "5.png", "6.png", "7.png"]
    assert found.chosen == {"mine": 1}  # of 3.png: on that another was chosen
    unknown = replace(first, complete=False)
    assert not describe_seen(own.select([4]), own.select([5]), [], False, [unknown]).complete


def test_val_and_test_are_left_what_a_model_before_has_not_trained_on(
    own, tmp_path, capsys
) -> None:
    named = read_labelled(write_classes(tmp_path / "classes"))
    data = ProfileData(own, own, own.select([0, 6, 7]), None, named, named, None, None)
    before = describe_seen(own.select(range(4)), own.select([4]), [], by_content=False)
    left = leave_out_seen(data, before, "runs/x/dclip")
    assert left.train is data.train and names(left.test) == ["6.png", "7.png"]
    assert names(left.val) == ["4.png", "5.png", "6.png", "7.png"]
    said = capsys.readouterr().out
    assert "Left out of val: 4 pictures that runs/x/dclip has trained on" in said
    assert "Left out of test: 1 pictures that runs/x/dclip has trained on" in said
    assert "not all known" not in said
    leave_out_seen(data, replace(before, complete=False), "runs/x/dclip")
    assert "What runs/x/dclip has trained on is not all known" in capsys.readouterr().out


def test_naming_is_not_measured_on_what_was_trained_on(own, tmp_path, capsys) -> None:
    """A class folder may hold the very pictures that have captions elsewhere."""
    classes = read_labelled(write_classes(tmp_path / "classes"))
    train = replace(own.select(range(4)), paths=(*own.paths[:3], classes.paths[0]))
    chosen = classes.select([0, 1, 2])  # the first of them is trained on
    seen = describe_seen(train, own.select([4]), chosen.paths, by_content=False)
    data = ProfileData(train, own, own, None, chosen, classes, None, None)
    found = leave_out_trained_labelled(data, seen)
    assert found.zero_shot_val.paths == classes.paths[1:3]
    assert found.zero_shot.paths == classes.paths[3:]
    assert capsys.readouterr().out.startswith("4 labelled pictures are trained or chosen on")
    assert leave_out_labelled(classes, seen.files).paths == classes.paths[3:]
    alone = describe_seen(own, own, [], by_content=False)
    assert leave_out_trained_labelled(data, alone).zero_shot.paths == classes.paths
    assert capsys.readouterr().out == ""


def leave_digests(paths) -> frozenset[str]:
    from dclip_kit.data.pictures import scan_pictures

    return frozenset(scan.digest for scan in scan_pictures(paths, decode=False))


def test_another_picture_in_the_same_place_is_another(own, seen, tmp_path) -> None:
    seen.save(tmp_path / "run")
    scene(50).save(own.paths[0])
    found = leave_out_trained(own, {"mine": load_seen(tmp_path / "run")})
    assert "0.png" in names(found.dataset) and "1.png" not in names(found.dataset)
    own, place = replace(own, image_ids=(OWN,) * len(own)), tmp_path / "named"
    describe_seen(own.select(range(4)), own.select(range(4, 6)), [], True).save(place)
    scene(51).save(own.paths[0])
    found = leave_out_trained(own, {"mine": load_seen(place)})
    assert "0.png" in names(found.dataset) and "1.png" not in names(found.dataset)


# The record in a model's folder


@pytest.mark.parametrize("by_content", [True, False])
def test_the_record_has_no_path_and_no_plain_name_in_it(by_content, tmp_path) -> None:
    folder = write_own(tmp_path / "confidential", range(6))
    data = dataset(folder, [f"{seed}.png" for seed in range(6)])
    data = data.select(range(5))
    paths = tuple(path.rename(path.with_stem(f"secret-{path.stem}")) for path in data.paths)
    ids = ("coco:391895", "http://private.example/cat.jpg", "flickr:1000092795", OWN, "")
    data = replace(data, paths=paths, image_ids=ids)
    labelled = sorted(write_classes(tmp_path / "confidential-classes").rglob("*.png"))
    seen = describe_seen(data.select(range(3)), data.select([3, 4]), labelled, by_content)
    more = tmp_path / "confidential-more"
    more.mkdir()
    for seed in (30, 31):
        scene(seed).save(more / f"secret-{seed}.jpg")
    seen = add_trained(seen, dataset(more, ["secret-30.jpg", "secret-31.jpg"]), by_content)
    seen.save(tmp_path / "model")
    written = (tmp_path / "model" / SEEN).read_bytes()
    plain = (b"secret", b"confidential", b"391895", b"1000092795", b"private", b"http", b"caption")
    for said in (str(tmp_path).encode(), *plain, b"/", b".png", b".jpg", b"red_ball"):
        assert said not in written, said
    # And yet it tells what was seen.
    again = load_seen(tmp_path / "model")
    assert again.complete and again.labelled == seen.labelled and len(again.labelled) == 18
    for one, other in ((again.trained, seen.trained), (again.chosen, seen.chosen)):
        assert one.as_dict() == other.as_dict() and {*one.names.values()} == {None}
        assert (one.phash is None) is not by_content
    moved = replace(data, paths=tuple(tmp_path / path.name for path in paths))  # none is there
    by_name = leave_out_trained(moved, {"mine": again}).trained["mine"]
    assert [leak.by for leak in by_name] == ["coco 391895", f"url {ids[1]}", "flickr 1000092795"]


def test_a_record_is_read_wherever_the_folder_is_copied(own, seen, tmp_path) -> None:
    model = tmp_path / "runs" / "dclip"
    write_record({}, model / TRAINING)
    seen.save(model)
    copy = shutil.copytree(model, tmp_path / "elsewhere" / "renamed")
    shutil.rmtree(model)
    assert load_seen(model) is None
    for reference in (copy, str(copy), f"local-dir:{copy}"):
        found = load_seen(reference)
        assert found.complete and found.labelled == seen.labelled
        left = leave_out_trained(own, {"mine": found})
        assert names(left.dataset) == ["4.png", "5.png", "6.png", "7.png"]
    # As it is published: that there is something to know is known, and no more.
    (copy / SEEN).unlink()
    published = load_seen(copy)
    assert not published.complete and not published.trained.names and not published.files
    assert leave_out_trained(own, {"mine": published}).dataset == own


def test_of_a_clip_that_the_kit_did_not_train_nothing_is_known(clip_folder, tmp_path) -> None:
    others = ("pocket", "ViT-B-32", "hf-hub:a/b", "local-dir:nowhere", tmp_path / "nothing")
    for reference in (clip_folder, str(clip_folder), *others):
        assert load_seen(reference) is None


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", '{"trained": 3}', '{"trained": {"names": []}}'),
        '{"trained": {"names": {}, "phash": null}}',  # as an earlier version's, with paths
        '{"trained": {"names": [3], "phash": null}}',
        '{"trained": {"names": [], "phash": ["%s"]}}' % ("f" * 40),
        '{"trained": {"names": [], "phash": null}, "chosen": {"names": [], "phash": null}}',
    ],
)
def test_a_damaged_record_is_named(content, tmp_path) -> None:
    (tmp_path / SEEN).write_text(content)
    with pytest.raises(ValueError, match=r"seen\.json .* damaged"):
        load_seen(tmp_path)


# Scenes of the pocket, and pictures without captions


def describe_pocket(uncaptioned: int = 0) -> SeenPictures:
    """What a training on the pocket's scenes sees, and on so many uncaptioned ones."""
    train, val = pocket.load_captioned("train"), pocket.load_captioned("val")
    seen = describe_seen(train, val, (), by_content=True)
    if uncaptioned:
        seen = add_trained(seen, pocket.load_captioned("uncaptioned", uncaptioned), True)
    return seen


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path))
    monkeypatch.setattr(pocket, "SCENE_SPLITS", {"train": 3, "val": 2, "test": 2})
    monkeypatch.setattr(module, "scan_pictures", lambda paths, **_: [] if not paths else 1 / 0)


def test_pocket_scenes_are_known_by_their_numbers(scenes) -> None:
    seen = {"arm": describe_pocket()}
    val, test = pocket.load_captioned("val"), pocket.load_captioned("test")
    assert leave_out_trained(test, seen).dataset == test
    assert leave_out_trained(val, seen).chosen == {"arm": 2}
    with pytest.raises(ValueError, match="of 3 in pocket train 0 are left"):
        leave_out_trained(pocket.load_captioned("train"), seen)
    assert Path(pocket.load_captioned("train").paths[0]).is_file()


@pytest.mark.parametrize("count", [0, 3])
def test_uncaptioned_scenes_are_trained_on_too(count, scenes, tmp_path) -> None:
    describe_pocket(count).save(tmp_path / "run")
    describe_pocket().save(tmp_path / "plain")
    seen, plain = load_seen(tmp_path / "run"), load_seen(tmp_path / "plain")
    assert len(seen.trained.names) == len(plain.trained.names) + count
    assert seen.chosen.names == plain.chosen.names
    further = pocket.load_captioned("uncaptioned", 5)
    left = leave_out_trained(further, {"arm": seen}).dataset
    assert left.paths == further.paths[count:]
    for stream in ("further_val", "further_test"):
        scenes = pocket.load_captioned(stream, 3)
        assert leave_out_trained(scenes, {"arm": seen}).dataset == scenes


@pytest.fixture
def profile(tmp_path):
    """Of data of one's own, with a folder of uncaptioned pictures."""
    own = write_own(tmp_path / "own", range(20), split=True)
    more = tmp_path / "more"
    more.mkdir()
    for seed in (30, 31):
        scene(seed).save(more / f"{seed}.jpg")
    given = {"zero_shot": str(write_classes(tmp_path / "classes")), "uncaptioned": str(more)}
    return replace(PROFILES["pocket"], data=str(own), **given)


@pytest.mark.parametrize("of", ["pocket", "own"])
def test_other_uncaptioned_pictures_are_known_by_what_they_show(
    of, data, profile, tmp_path
) -> None:
    data = data if of == "pocket" else load_data(profile)
    labelled = data.zero_shot_val.paths if of == "own" else ()
    plain = describe_seen(data.train, data.val, labelled, by_content=True)
    seen = add_trained(plain, load_uncaptioned(profile, data), by_content=True)
    assert plain.trained.names.keys() < seen.trained.names.keys()
    assert seen.chosen.names == plain.chosen.names and seen.labelled == plain.labelled
    scene(31).save(tmp_path / "again.png")
    scene(32).save(tmp_path / "new.png")
    scene(33).save(tmp_path / "newer.png")
    measured = dataset(tmp_path, ["again.png", "new.png", "newer.png"])
    left = leave_out_trained(measured, {"run": seen}).dataset
    assert names(left) == ["new.png", "newer.png"]
    assert len(leave_out_trained(measured, {"run": plain}).dataset) == 3


def test_scenes_of_the_pocket_beside_data_of_ones_own_are_known_too(
    profile, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path / "cache"))
    profile = replace(profile, uncaptioned="pocket:3")
    data = load_data(profile)
    seen = describe_seen(data.train, data.val, data.zero_shot_val.paths, by_content=True)
    seen = add_trained(seen, load_uncaptioned(profile, data), by_content=True)
    assert sum(name.startswith("pocket ") for name in seen.trained.names) == 3
    further = pocket.load_captioned("uncaptioned", 5)
    left = leave_out_trained(further, {"run": seen}).dataset
    assert left.paths == further.paths[3:]


def test_a_number_in_a_name_is_no_picture_of_a_public_data_set(own, tmp_path) -> None:
    """Where contents are compared, a file of one's own called 25.jpg is not COCO's 25."""
    trained = replace(own.select(range(4)), image_ids=tuple(f"coco:{n}" for n in range(20, 24)))
    seen = describe_seen(trained, own.select(range(4, 6)), [], True)
    mine = tmp_path / "mine"
    mine.mkdir()
    for number in range(20, 24):
        scene(50 + number).save(mine / f"{number}.jpg")
    given = dataset(mine, [f"{number}.jpg" for number in range(20, 24)])
    assert len(leave_out_trained(given, {"mine": seen}).dataset) == 4
    by_name = describe_seen(trained, own.select(range(4, 6)), [], False)
    with pytest.raises(ValueError, match="known by coco 20"):
        leave_out_trained(given, {"mine": by_name})
