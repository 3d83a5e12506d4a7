"""A store's folder: which shards are missing, what is refused, and shards put together.

Features of any choice of pictures, and back from disk as they were. And what features are made
from: each thing that decides them changes its own entry, no other.
"""

import json
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from dclip_kit.config import RegionSettings
from dclip_kit.features import store as stores
from dclip_kit.features.store import (
    FrozenFeatures,
    describe_source,
    differing_entries,
    fill_store,
    join_files,
    open_store,
)
from dclip_kit.models.clip import load_clip
from dclip_kit.models.regions import pad_rows
from dclip_kit.runtime.files import raw_bytes, save_tensors

SOURCE = {"clip": {"weights": "abc"}, "regions": {"margin": 0.1}, "count": 11}


def cut(features: FrozenFeatures, images: range) -> FrozenFeatures:
    """The features of some pictures, by masks: slow and plain."""
    own_region = torch.tensor(
        [i in images for i, count in enumerate(features.region_count) for _ in range(count)]
    )
    own_text = torch.tensor([int(i) in images for i in features.image_of_text])
    own_token = own_text.repeat_interleave(features.token_count)
    masks = dict.fromkeys(("text", "token_count", "image_of_text"), own_text)
    masks |= dict.fromkeys(("region", "xyxy", "area", "confidence", "label"), own_region)
    masks |= {"token": own_token}
    chosen = torch.tensor(images)
    return FrozenFeatures(
        **{
            field.name: getattr(features, field.name)[masks.get(field.name, chosen)]
            for field in fields(FrozenFeatures)
        }
    )


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(stores, "SHARD", 4)
    return tmp_path / "store"


class Stopped(Exception):
    """What ends the work in these tests."""


def fill(store: Path, features: FrozenFeatures, asked: list[range], most: int = 99):
    """Fills a store from features, as far as so many shards; notes which shards it is asked for."""

    def make(parts):
        asked.extend(parts)
        for number, part in enumerate(parts):
            if number == most:
                raise Stopped
            yield cut(features, part)

    return fill_store(store, SOURCE, 11, make)


def begin(store: Path, features: FrozenFeatures) -> None:
    with pytest.raises(Stopped):
        fill(store, features, [], most=0)


def test_a_store_is_filled_shard_by_shard(store, features) -> None:
    asked: list[range] = []
    assert open_store(store, SOURCE) is None and not store.exists()
    with pytest.raises(Stopped):
        fill(store, features, asked, most=1)
    assert asked == [range(0, 4), range(4, 8), range(8, 11)] and open_store(store, SOURCE) is None
    asked.clear()
    with pytest.raises(Stopped):
        fill(store, features, asked, most=1)
    assert asked == [range(4, 8), range(8, 11)] and open_store(store, SOURCE) is None
    (store / "shard-000000000-000000004.safetensors").unlink()  # it comes last now
    for found in (fill(store, features, []), open_store(store, SOURCE)):
        for field in fields(FrozenFeatures):  # captions in the order of their pictures now
            own = [getattr(cut(features, range(i, min(i + 4, 11))), field.name) for i in (0, 4, 8)]
            assert torch.equal(getattr(found, field.name), torch.cat(own)), field.name
    assert json.loads((store / "source.json").read_text()) == SOURCE


def test_a_shard_that_another_process_wrote_elsewhere_is_named(
    store, features, monkeypatch
) -> None:
    monkeypatch.setattr(stores, "own_turns", lambda things: things[1:])
    with pytest.raises(FileNotFoundError, match=r"file at .*shard-000000000-000000004"):
        fill(store, features, [])


def test_what_a_killed_process_left_is_removed_and_nothing_else(store, features) -> None:
    begin(store, features)
    features.save(store / "features.safetensors")
    mine = {"shard.txt", "mine.tmp", "contents.json", "features.safetensors", "source.json"}
    left = {
        "shard-000000000-000000004.safetensors",
        ".shard-000000004-000000008.safetensors.1f.tmp",
    }
    for name in (
        *left,
        ".features.safetensors.0a.tmp",
        ".source.json.0b.tmp",
        ".tmp1IQoWf",
        *sorted(mine)[:1],
    ):
        (store / name).touch()
    for name in mine - {"features.safetensors", "source.json"}:
        (store / name).touch()
    assert open_store(store, SOURCE) is not None
    assert {path.name for path in store.iterdir()} == mine


@pytest.mark.parametrize("finished", [True, False])
def test_a_store_of_something_else_is_refused(finished, store, features) -> None:
    begin(store, features)
    if finished:
        features.save(store / "features.safetensors")
    other = SOURCE | {"clip": {"weights": "xyz"}, "regions": {"margin": 0.2}}
    says = r"differ: clip\.weights \('abc', now 'xyz'\), regions\.margin \(0\.1, now 0\.2\); give"
    with pytest.raises(ValueError, match=says):
        open_store(store, other)
    assert json.loads((store / "source.json").read_text()) == SOURCE
    assert (open_store(store, {"count": 11}) is not None) == finished  # what is asked agrees


@pytest.mark.parametrize("name", ["features.safetensors", "shard-000000000-000000004.safetensors"])
def test_features_of_nobody_knows_what_are_refused(name, store, features) -> None:
    features.save(store / name)
    with pytest.raises(ValueError, match=r"source\.json beside the features .* found none"):
        open_store(store, SOURCE)


def test_files_are_put_together_as_torch_would(tmp_path) -> None:
    """Widths and empty tensors of all kinds, where an odd number of bytes is out of step."""
    parts = [
        {
            "byte": torch.arange(rows, dtype=torch.uint8),
            "half": torch.randn(rows, 3).half(),
            "long": torch.arange(rows),
            "plain": torch.randn(rows, 2, 5),
            "flag": torch.arange(rows) % 2 == 0,
            "empty": torch.empty(0, 4),
        }
        for rows in (3, 0, 1, 5)
    ]
    for number, part in enumerate(parts):
        save_tensors(part, tmp_path / str(number))
    join_files([tmp_path / str(number) for number in range(4)], tmp_path / "joined")
    joined = load_file(tmp_path / "joined")
    assert joined.keys() == parts[0].keys()
    for name, value in joined.items():
        expected = torch.cat([part[name] for part in parts])
        assert value.dtype == expected.dtype and torch.equal(value, expected), name
        assert value.data_ptr() % value.element_size() == 0
    (tmp_path / "1").write_bytes((tmp_path / "1").read_bytes()[:-1] + b"")
    (tmp_path / "3").write_bytes((tmp_path / "3").read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut short"):
        join_files([tmp_path / "0", tmp_path / "3"], tmp_path / "joined")
    assert torch.equal(load_file(tmp_path / "joined")["long"], joined["long"])


# What features are made from


@pytest.fixture
def given(clip, captioned, detector, tmp_path) -> dict:
    """All that features are made from; pictures and weights in folders of the test's own."""
    paths = [Path(shutil.copy2(path, tmp_path / path.name)) for path in captioned.paths]
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "a").write_bytes(b"1")
    (weights / "b").write_bytes(b"2")
    return {
        "bundle": clip,
        "dataset": replace(captioned, paths=tuple(paths)),
        "settings": RegionSettings(),
        "detector": replace(detector, source=weights),
    }


def project(given) -> None:
    with torch.no_grad():
        given["bundle"].model.text_projection[0, 0] += 1e-3


def write_into(name: str, content: bytes):
    return lambda given: (given["detector"].source / name).write_bytes(content)


def touch(given) -> None:
    path = given["dataset"].paths[3]
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


def grow(given) -> None:
    path, stat = given["dataset"].paths[0], given["dataset"].paths[0].stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def replace_in_place(given) -> None:
    """Other bytes of the same size and time, as `cp -p` may leave them."""
    path = given["dataset"].paths[0]
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap_pictures(given) -> None:
    one, other, *rest = given["dataset"].paths
    shutil.copy2(other, one)  # of one state, so that their places are all that changes
    given["dataset"] = replace(given["dataset"], paths=(one, other, *rest))
    given["before"] = describe_source(**{k: v for k, v in given.items() if k != "before"})
    given["dataset"] = replace(given["dataset"], paths=(other, one, *rest))


def caption(*captions):
    def change(given) -> None:
        given["dataset"] = replace(given["dataset"], captions=captions)

    return change


def setting(part: str, **changes):
    def change(given) -> None:
        given[part] = replace(given[part], **changes)

    return change


def preprocess(given) -> None:
    given["bundle"].model.visual.preprocess_cfg = {
        **open_clip.model.get_model_preprocess_cfg(given["bundle"].model.visual),
        "interpolation": "bicubic",
    }
    visual = given["bundle"].model.visual
    assert open_clip.model.get_model_preprocess_cfg(visual)["interpolation"] == "bicubic"


OF_CAPTIONED = (
    ("a red ball", "the ball"),
    ("two dogs on a very long road to a far town by the sea with sand",),
    (),
    ("boats", "three boats at sea!?"),
    ("a box",),
    ("it", "an apple"),
)


def test_a_name_in_another_encoding_is_one_of_many(given) -> None:
    before = describe_source(**given)
    path = given["dataset"].paths[2]
    odd = Path(os.fsdecode(os.fsencode(path.parent) + b"/caf\xe9.png"))
    path.rename(odd)
    given["dataset"] = replace(
        given["dataset"], paths=tuple(odd if x == path else x for x in given["dataset"].paths)
    )
    assert differing_entries(before, describe_source(**given)).keys() == {"pictures.paths"}


def test_a_picture_that_is_gone_is_named(given) -> None:
    given["dataset"].paths[2].unlink()
    with pytest.raises(FileNotFoundError, match=given["dataset"].paths[2].name):
        describe_source(**given)


@pytest.mark.parametrize(
    ("change", "entries"),
    [
        (project, {"clip.weights"}),
        (preprocess, {"clip.preprocessing.interpolation"}),
        (lambda given: given["bundle"].model.double(), {"dtype", "clip.weights"}),
        (setting("bundle", precision="bf16"), {"dtype"}),
        (write_into("a", b"3"), {"detector.weights"}),
        (write_into("c", b""), {"detector.weights"}),
        (setting("detector", confidence=0.3), {"detector.confidence"}),
        (setting("detector", max_regions=3), {"detector.max_regions"}),
        (setting("detector", image_size=96), {"detector.image_size"}),
        (setting("settings", margin=0.2), {"regions.margin"}),
        (setting("settings", square=False), {"regions.square"}),
        (setting("settings", whole_image=True), {"regions.whole_image"}),
        (setting("settings", normalized_crops=False), {"regions.normalized_crops"}),
        (setting("settings", undetected_as_zeros=True), {"regions.undetected_as_zeros"}),
        (setting("settings", weighted=False), set()),  # weighs features, and makes none
        (touch, set()),
        (grow, {"pictures.bytes"}),
        (replace_in_place, {"pictures.bytes"}),
        (swap_pictures, {"pictures.paths"}),
        (caption(("a red ball",), *OF_CAPTIONED[1:]), {"captions"}),
        (caption(("a red ball", "the", "ball"), *OF_CAPTIONED[1:]), {"captions"}),
        (caption(*OF_CAPTIONED[:2], OF_CAPTIONED[3], (), *OF_CAPTIONED[4:]), {"captions"}),
        (
            lambda given: given.update(dataset=given["dataset"].select(range(5))),
            {"pictures.count", "pictures.paths", "pictures.bytes", "captions"},
        ),
        (setting("dataset", split="other", source="elsewhere"), set()),
    ],
)
def test_what_decides_features_changes_its_own_entry(change, entries, given) -> None:
    given["before"] = describe_source(**given)
    change(given)
    before = json.loads(json.dumps(given.pop("before")))
    differing = differing_entries(before, describe_source(**given))
    assert differing.keys() == entries


def test_the_architecture_and_the_vocabulary_count(given, make_clip_folder) -> None:
    folder = make_clip_folder()
    before = describe_source(**given)
    given["bundle"] = load_clip(folder)
    assert differing_entries(before, describe_source(**given)) == {}
    quick = replace(
        given["bundle"], model_config=given["bundle"].model_config | {"quick_gelu": True}
    )
    names = differing_entries(before, describe_source(**given | {"bundle": quick})).keys()
    assert names == {"clip.architecture.quick_gelu"}
    other = folder / "other.gz"
    other.write_bytes(b"other")
    worded = replace(given["bundle"], merges=other)
    names = differing_entries(before, describe_source(**given | {"bundle": worded})).keys()
    assert names == {"clip.vocabulary"}


def test_without_the_detector_its_weights_and_thresholds_are_those_of_the_settings(
    given, detector
) -> None:
    given["detector"] = detector
    kept = describe_source(**given)
    settings = replace(given["settings"], confidence=0.25, max_regions=10)
    unloaded = describe_source(given["bundle"], given["dataset"], settings)
    assert differing_entries(kept, unloaded) == {}
    assert differing_entries(unloaded, kept) == {"detector.image_size": "None, now 64"}
    stricter = describe_source(given["bundle"], given["dataset"], replace(settings, confidence=0.5))
    assert differing_entries(kept, stricter) == {"detector.confidence": "0.25, now 0.5"}


def test_entries_are_named_by_their_path_in_the_record() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "d": None, "gone": 0}
    new = {"a": {"b": 1, "c": (1, 3)}, "d": None, "new": "x"}
    assert differing_entries(old, new) == {"a.c": "[1, 2], now [1, 3]", "new": "None, now 'x'"}


# Frozen features


def test_any_choice_comes_in_its_order_and_padded(features) -> None:
    chosen = torch.tensor([5, 3, 5, 4])  # of 2, 4, 2 and 1 regions
    ends = features.region_count.cumsum(0)
    region, mask = features.regions_of(chosen)
    for name, got in (
        ("region", region),
        ("area", pad_rows(features.area, features.region_count, chosen)[0]),
        ("confidence", features.boxes_of(chosen)[..., 4]),
    ):
        assert got.shape[:2] == (4, 4)
        for row, picture in enumerate(chosen.tolist()):
            end, count = int(ends[picture]), int(features.region_count[picture])
            own = getattr(features, name)[end - count : end]
            assert torch.equal(got[row, :count], own) and (got[row, count:] == 0).all(), name
    assert mask.sum(1).tolist() == [2, 4, 2, 1]
    token, mask = features.tokens_of(torch.tensor([2, 0]))
    assert mask.sum(1).tolist() == [3, 1]
    assert torch.equal(token[1, 0].half(), features.token[0])


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_first_caption_of_each_captioned_picture(shuffled, features) -> None:
    if shuffled:
        order = torch.randperm(len(features.image_of_text), generator=torch.manual_seed(0))
        features = replace(features, image_of_text=features.image_of_text[order])
    first = features.first_texts()
    owners = features.image_of_text[first].tolist()
    assert owners == sorted(set(features.image_of_text.tolist()))  # picture 0 has none
    for text, owner in zip(first.tolist(), owners, strict=True):
        assert text == features.image_of_text.tolist().index(owner)


def test_features_come_back_from_disk_as_they_were(features, tmp_path) -> None:
    path = tmp_path / "features.safetensors"
    features.save(path)
    back = FrozenFeatures.load(path)
    for field in fields(FrozenFeatures):
        was, now = getattr(features, field.name), getattr(back, field.name)
        assert was.dtype == now.dtype and torch.equal(was, now), field.name


def mapped_file(address: int) -> str:
    """The file whose mapping into this process's memory holds an address, if any does."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, _, *name = line.split(maxsplit=5)
        start, end = (int(each, 16) for each in span.split("-"))
        if start <= address < end:
            return "".join(name)
    raise AssertionError("Expected an address of this process.")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells mappings on Linux alone")
def test_features_on_disk_are_mapped_and_not_copied(features, tmp_path) -> None:
    path = tmp_path / "features.safetensors"
    features.save(path)
    back = FrozenFeatures.load(tmp_path)  # as the folder of a store
    for field in fields(FrozenFeatures):
        value = getattr(back, field.name)
        assert mapped_file(value.data_ptr()) == str(path)
        assert mapped_file(getattr(features, field.name).data_ptr()) != str(path)
    # Neither does a digest copy them, which is what the trainings begin with.
    assert np.frombuffer(raw_bytes(back.region), np.uint8).ctypes.data == back.region.data_ptr()


def test_pictures_without_detections_are_counted(features) -> None:
    """Of 1, 2, 3, 4, 1, … regions; that of the third picture is the whole of it beside others."""
    label = features.label.clone()
    label[[0, 5]] = -1  # the first picture's only one, and the third's last
    assert features.without_detections == 0
    assert replace(features, label=label).without_detections == 1


@pytest.mark.parametrize("content", ["cut", "other"])
def test_a_file_of_something_else_is_named(content, features, tmp_path) -> None:
    path = tmp_path / "features.safetensors"
    features.save(path)
    if content == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        save_tensors({"image": features.image}, path)
    with pytest.raises(ValueError, match=r"features\.safetensors"):
        FrozenFeatures.load(path)
