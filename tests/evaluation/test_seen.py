"""What a run has seen is known again, wherever it lies, and nobody is measured on it."""

from dataclasses import replace
from pathlib import Path

import pytest
from test_leaks import dataset, scene
from test_profile_data import write_classes

from dclip_kit.data import read_labelled
from dclip_kit.data.pocket import world as pocket
from dclip_kit.evaluation.seen import (
    PICTURES,
    describe_pocket,
    describe_seen,
    keep_seen,
    leave_out_chosen,
    leave_out_trained,
    load_seen,
)


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
        keep_seen(seen, tmp_path / "run")
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
    says = r"of 4 in .* 0 are left; mine has trained on .*0\.png.* or take the seed and the split"
    with pytest.raises(ValueError, match=says):
        leave_out_trained(own.select(range(4)), {"mine": seen})
    with pytest.raises(ValueError, match=r"of 3 in .* 1 are left"):
        leave_out_trained(own.select([0, 1, 7]), {"mine": seen})


def test_labelled_pictures_that_were_chosen_on_are_left_out(seen, tmp_path) -> None:
    classes = read_labelled(tmp_path / "classes")
    rest = leave_out_chosen(classes, seen.labelled)
    assert len(classes) == 18 and len(rest) == 9 and len(rest.labels) == 9
    assert not {p.read_bytes() for p in rest.paths} & {
        p.read_bytes() for p in sorted(classes.paths)[::2]
    }
    assert leave_out_chosen(classes, frozenset()) is classes
    with pytest.raises(ValueError, match="all 9 of classes are such"):
        leave_out_chosen(replace(rest, source="classes"), leave_digests(rest.paths))


def leave_digests(paths) -> frozenset[str]:
    from dclip_kit.data.scan import scan_pictures

    return frozenset(scan.digest for scan in scan_pictures(paths, decode=False))


def test_another_picture_in_the_same_place_is_another(own, seen, tmp_path) -> None:
    keep_seen(seen, tmp_path / "run")
    scene(50).save(own.paths[0])
    found = leave_out_trained(own, {"mine": load_seen(tmp_path / "run")})
    assert "0.png" in names(found.dataset) and "1.png" not in names(found.dataset)
    ids = tuple(path.as_uri() for path in own.paths)  # as data of one's own is known
    own, place = replace(own, image_ids=ids), tmp_path / "named"
    keep_seen(describe_seen(own.select(range(4)), own.select(range(4, 6)), [], True), place)
    scene(51).save(own.paths[0])
    found = leave_out_trained(own, {"mine": load_seen(place)})
    assert "0.png" in names(found.dataset) and "1.png" not in names(found.dataset)


def test_a_run_that_has_trained_goes_on_with_the_same_pictures_alone(own, seen, tmp_path) -> None:
    run = tmp_path / "run"
    assert load_seen(run) is None
    keep_seen(describe_seen(own.select([6]), own.select([7]), [], True), run)
    keep_seen(seen, run)  # nothing has been trained yet: what was seen is what is seen now
    assert names(leave_out_trained(own, {"mine": load_seen(run)}).dataset)[0] == "4.png"
    (run / "checkpoints").mkdir()
    (run / "checkpoints/teacher.safetensors").touch()
    before = (run / PICTURES).read_text()
    keep_seen(seen, run)
    for other in [
        describe_seen(own.select(range(5)), own.select([5]), [], True),
        replace(seen, chosen=seen.trained),
        replace(seen, labelled=frozenset()),
    ]:
        with pytest.raises(ValueError, match="have changed; name another --out"):
            keep_seen(other, run)
    assert (run / PICTURES).read_text() == before


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", '{"trained": 3}', '{"trained": {"names": []}}'),
        '{"trained": {"names": {}, "phash": {"a": "%s"}}}' % ("f" * 40),
    ],
)
def test_a_damaged_record_is_named(content, tmp_path) -> None:
    (tmp_path / PICTURES).write_text(content)
    with pytest.raises(ValueError, match=r"pictures\.json"):
        load_seen(tmp_path)


def test_pocket_scenes_are_known_by_their_numbers(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path))
    monkeypatch.setattr(pocket, "SCENE_SPLITS", {"train": 3, "val": 2, "test": 2})
    monkeypatch.setattr("dclip_kit.evaluation.seen.SCENE_SPLITS", {"train": 3, "val": 2, "test": 2})
    seen = {"arm": describe_pocket()}
    val, test = pocket.load_captioned("val"), pocket.load_captioned("test")
    assert leave_out_trained(test, seen).dataset == test
    assert leave_out_trained(val, seen).chosen == {"arm": 2}
    with pytest.raises(ValueError, match="of 3 in pocket scenes 0 are left"):
        leave_out_trained(pocket.load_captioned("train"), seen)
    assert Path(pocket.load_captioned("train").paths[0]).is_file()
