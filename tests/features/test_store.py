"""A store's folder: which shards are missing, what is refused, and shards put together."""

import json
from dataclasses import fields

import pytest
import torch
from safetensors.torch import load_file

from dclip_kit.features import store as stores
from dclip_kit.features.frozen import FrozenFeatures
from dclip_kit.features.store import FeatureStore, join_files
from dclip_kit.runtime.files import save_tensors

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
def store(tmp_path, monkeypatch) -> FeatureStore:
    monkeypatch.setattr(stores, "SHARD", 4)
    return FeatureStore(tmp_path / "store", 11)


def test_a_store_is_filled_shard_by_shard_in_any_order(store, features) -> None:
    assert store.open(SOURCE) is None and not store.folder.exists()
    store.begin(SOURCE)
    assert store.missing() == [range(0, 4), range(4, 8), range(8, 11)]
    store.write(range(8, 11), cut(features, range(8, 11)))
    assert store.missing() == [range(0, 4), range(4, 8)] and store.open(SOURCE) is None
    with pytest.raises(ValueError, match=r"2 shards are missing; put it where all processes"):
        store.finish()
    for shard in (range(4, 8), range(0, 4)):
        store.write(shard, cut(features, shard))
    assert store.missing() == [] and store.open(SOURCE) is None
    store.finish()
    found = store.open(SOURCE)
    for field in fields(FrozenFeatures):  # captions in the order of their pictures now
        parts = [getattr(cut(features, range(i, min(i + 4, 11))), field.name) for i in (0, 4, 8)]
        assert torch.equal(getattr(found, field.name), torch.cat(parts)), field.name
    assert json.loads((store.folder / "source.json").read_text()) == SOURCE


def test_what_a_killed_process_left_is_removed_and_nothing_else(store, features) -> None:
    store.begin(SOURCE)
    features.save(store.folder / "features.safetensors")
    mine = {"shard.txt", "mine.tmp", "contents.json", "features.safetensors", "source.json"}
    left = {"shard-000000000-000000004.safetensors", "shard-000000004-000000008.safetensors.1f.tmp"}
    for name in (
        *left,
        "features.safetensors.0a.tmp",
        "source.json.0b.tmp",
        ".tmp1IQoWf",
        *sorted(mine)[:1],
    ):
        (store.folder / name).touch()
    for name in mine - {"features.safetensors", "source.json"}:
        (store.folder / name).touch()
    assert store.open(SOURCE) is not None
    assert {path.name for path in store.folder.iterdir()} == mine


@pytest.mark.parametrize("finished", [True, False])
def test_a_store_of_something_else_is_refused(finished, store, features) -> None:
    store.begin(SOURCE)
    if finished:
        features.save(store.folder / "features.safetensors")
    other = SOURCE | {"clip": {"weights": "xyz"}, "regions": {"margin": 0.2}}
    says = r"differ: clip\.weights \('abc', now 'xyz'\), regions\.margin \(0\.1, now 0\.2\); give"
    with pytest.raises(ValueError, match=says):
        store.open(other)
    store.begin(other)
    assert json.loads((store.folder / "source.json").read_text()) == SOURCE
    assert (store.open({"count": 11}) is not None) == finished  # what is asked agrees


@pytest.mark.parametrize("name", ["features.safetensors", "shard-000000000-000000004.safetensors"])
def test_features_of_nobody_knows_what_are_refused(name, store, features) -> None:
    features.save(store.folder / name)
    with pytest.raises(ValueError, match=r"source\.json beside the features .* found none"):
        store.open(SOURCE)


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
