"""Files: whole or not at all, refused when damaged; where the embedded assets are found."""

import copy
import json
import math
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from dclip_kit.runtime import files
from dclip_kit.runtime.files import (
    asset_path,
    fingerprint,
    load_tensors,
    load_weights,
    read_record,
    replacing_files,
    save_tensors,
    write_atomically,
    write_record,
)

ROOT = Path(__file__).parents[2]


def damage(path, how: str) -> None:
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-1], "garbage": b"\x80" * 99, "empty": b""}[how])


# Records


def test_a_record_is_read_as_it_was_written(tmp_path) -> None:
    path = tmp_path / "deep" / "record.json"
    write_record({"α": [1, None]}, path)
    assert read_record(path, dict) == json.loads(path.read_text()) == {"α": [1, None]}
    with pytest.raises(FileNotFoundError, match=r"Expected a record at .*none\.json"):
        read_record(tmp_path / "none.json", dict)


def test_a_record_is_standard_json(tmp_path) -> None:
    write_record({"low": math.nan, "of": [1.5, (math.inf, "nan")]}, tmp_path / "record.json")
    text = (tmp_path / "record.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert found == {"low": None, "of": [1.5, [None, "nan"]]}


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"seconds": "x"}', '{"seconds": null}'])
def test_a_damaged_record_is_named(content, tmp_path) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"Expected .*record\.json") as caught:
        read_record(path, lambda record: float(record["seconds"]))
    assert "\n" not in str(caught.value)


def test_a_record_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch) -> None:
    write_record({}, tmp_path / "record.json")

    def refuse(path, **_) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ValueError, match=r"read .*record\.json, but .*Permission denied.*; permit"):
        read_record(tmp_path / "record.json", dict)


# Tensors


def test_tensors_come_back_as_they_were(tmp_path) -> None:
    shared = torch.randn(4, 6)
    tensors = {
        "whole": shared,
        "same storage": shared,
        "turned": shared.T,
        "half": shared.half(),
        "number": torch.tensor(3),
        "flag": torch.tensor([True, False]),
        "gradient": nn.Parameter(shared),
    }
    save_tensors(tensors, tmp_path / "new folder" / "a.safetensors")
    back = load_tensors(tmp_path / "new folder" / "a.safetensors")
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        assert back[name].dtype == value.dtype and torch.equal(back[name], value), name


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    old = {"x": torch.ones(2)}
    save_tensors(old, tmp_path / "a.safetensors")
    write_atomically(tmp_path / "a.json", "old")

    def stop(tensors, path) -> None:
        path.write_bytes(b"half a fi")
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        save_tensors({"x": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "a.json", "new, but\udc80 broken")
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "a.json"}
    assert torch.equal(load_tensors(tmp_path / "a.safetensors")["x"], old["x"])
    assert (tmp_path / "a.json").read_text() == "old"


def test_a_reader_meets_the_old_file_or_the_new_one(tmp_path) -> None:
    """Files are renamed into place, so whoever has opened the old one goes on reading it."""
    text, tensors = tmp_path / "a.json", tmp_path / "a.safetensors"
    write_atomically(text, "old")
    save_tensors({"x": torch.ones(2)}, tensors)
    mapped = load_tensors(tensors)["x"]
    with text.open(encoding="utf-8") as reader:
        write_atomically(text, "new")
        save_tensors({"x": torch.zeros(2)}, tensors)
        assert reader.read() == "old" and text.read_text(encoding="utf-8") == "new"
    with tensors.open("rb") as reader:
        first = reader.read()
        reader.seek(0)
        save_tensors({"x": torch.full((2,), 5.0)}, tensors)
        assert reader.read() == first != tensors.read_bytes()
    assert mapped.tolist() == [1, 1] and load_tensors(tensors)["x"].tolist() == [5, 5]


@pytest.mark.parametrize(
    "error", [SafetensorError("No space left on device (os error 28)"), OSError(28, "No space")]
)
def test_a_full_disk_is_said_and_leaves_the_old_file(error, tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors({"x": torch.ones(2)}, path)

    def fill(_, temporary) -> None:
        temporary.write_bytes(b"half a fi")
        raise error

    monkeypatch.setattr(files, "save_file", fill)
    with pytest.raises(OSError, match=rf"^Expected to write {path}, .*No space.*; make room or"):
        save_tensors({"x": torch.zeros(2)}, path)
    assert list(tmp_path.iterdir()) == [path] and load_tensors(path)["x"].sum() == 2


def test_what_cannot_be_written_is_named_where_nothing_was_begun(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Expected to write .*a\.json, but it cannot be written"):
        write_atomically(tmp_path / "file" / "a.json", "")


@pytest.mark.parametrize("how", ["cut", "garbage", "empty"])
def test_a_damaged_file_is_named(how, tmp_path) -> None:
    save_tensors({"x": torch.ones(9)}, tmp_path / "a.safetensors")
    damage(tmp_path / "a.safetensors", how)
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged or cut short"):
        load_tensors(tmp_path / "a.safetensors")


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        load_tensors(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("bias"), "1 missing, 0 unknown, 0 of another shape; first: bias"),
        (lambda t: t.update(extra=t["bias"]), "0 missing, 1 unknown.*first: extra"),
        (lambda t: t.update(bias=torch.ones(1)), "1 of another shape; first: bias"),
    ],
)
def test_weights_of_another_architecture_are_refused_untouched(change, says) -> None:
    layer = nn.Linear(2, 3)
    before = copy.deepcopy(layer.state_dict())
    tensors = {name: value + 1 for name, value in before.items()}
    change(tensors)
    with pytest.raises(ValueError, match=says):
        load_weights(layer, tensors, "the file")
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_weights_keep_the_dtype_of_the_module() -> None:
    layer = nn.Linear(2, 3)
    load_weights(layer, {n: v.detach().half() for n, v in layer.state_dict().items()}, "halves")
    assert layer.weight.dtype == torch.float32
    assert torch.equal(layer.weight, layer.weight.half().float())


def test_a_fingerprint_tells_contents_apart() -> None:
    base = torch.arange(6.0)
    others = [
        base.clone().index_fill_(0, torch.tensor(3), 3.0000002),
        base.reshape(2, 3),
        base.double(),
        base.flip(0),
    ]
    digests = [fingerprint(x) for x in (base, *others)]
    digests += [fingerprint(base, base), fingerprint(base[:3], base[3:])]
    assert len(set(digests)) == len(digests)
    assert fingerprint(torch.stack([base, base], 1)[:, 0]) == digests[0]  # strides do not matter


# The embedded assets


def test_the_package_goes_before_the_repository(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(files, "_PACKAGE", tmp_path / "dclip_kit")
    file = tmp_path / "assets" / "pocket" / "config.json"
    file.parent.mkdir(parents=True)
    file.write_text("repository")
    assert asset_path("pocket", "config.json") == file
    packaged = tmp_path / "dclip_kit" / "_assets" / "pocket" / "config.json"
    packaged.parent.mkdir(parents=True)
    packaged.write_text("package")
    assert asset_path("pocket", "config.json") == packaged
    assert asset_path("pocket") == packaged.parent


def test_a_missing_asset_is_one_clear_sentence() -> None:
    says = r"Expected the embedded 'nothing/here' at .* take it from the repository .*make pocket"
    with pytest.raises(FileNotFoundError, match=says):
        asset_path("nothing", "here")


def test_a_wheel_has_the_arm_that_is_shown_and_both_teachers(tmp_path: Path, monkeypatch) -> None:
    """Laid out by pyproject.toml; the arms that it is compared with are in the repository alone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    brought = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    for source, place in brought.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).symlink_to(ROOT / source)
        assert any((tmp_path / place).iterdir())
    monkeypatch.setattr(files, "_PACKAGE", tmp_path / "dclip_kit")
    arms = {each.name for each in asset_path("pocket_arms").iterdir()}
    assert arms == {"region_taught", "region_teacher", "teacher"}
    for name in ("contrastive_rehearsal", "dclip"):
        with pytest.raises(FileNotFoundError, match=f"'pocket_arms/{name}' .*from the repository"):
            asset_path("pocket_arms", name)


@pytest.mark.parametrize("there", [False, True])
def test_files_are_replaced_within_their_folder_which_may_be_a_disk(there, tmp_path) -> None:
    folder = tmp_path / "a" / "out"
    if there:
        folder.mkdir(parents=True)
        (folder / "mine").write_text("mine")
    with pytest.raises(KeyError), replacing_files(folder) as temporary:
        assert temporary.parent == folder and temporary.name.startswith(".")
        (temporary / "half").write_text("")
        raise KeyError
    assert folder.exists() == there
    with replacing_files(folder) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "new").write_text("new")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert names == {"deep", "deep/new"} | ({"mine"} if there else set())
