"""`export`, as a shell calls it."""

import re

import pytest

from dclip_kit.models.hand_over import HANDED_OVER


def test_a_model_is_handed_over(make_vit_folder, run, tmp_path) -> None:
    from transformers import CLIPModel

    code, out, err = run(
        "export", make_vit_folder(), "--to", "transformers", "--out", tmp_path / "out"
    )
    assert code == 0, err
    assert f"Written to {tmp_path / 'out'}" in out and "seen.json stays behind" in out
    assert CLIPModel.from_pretrained(tmp_path / "out").config.projection_dim == 24


@pytest.mark.slow
def test_8_bit_weights_are_measured(run, make_vit_folder, tmp_path, monkeypatch) -> None:
    from dclip_kit.data.pocket import world

    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(world, "SCENE_SPLITS", {"train": 3, "val": 12, "test": 3})
    asked = (make_vit_folder(), "--to", "onnx", "--int8", "--out", tmp_path / "out")
    code, out, err = run("export", *asked)
    assert code == 0, err
    cosine = re.search(r"vectors have a cosine of at least (\S+) with PyTorch's", out)
    assert cosine and 0.9999 <= float(cosine[1]) <= 1.000001
    assert "8-bit weights on 12 pictures: pocket val" in out
    assert "text → image Recall@1: " in out and out.count(" ms a picture") == 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("pocket",), "got pocket (it has another image tower); hand it over as ONNX"),
        (("nowhere/at/all",), "nowhere/at/all"),
        (("pocket", "--int8"), "Expected --int8 with --to onnx, got --to transformers"),
        (("pocket", "--profile", "base"), "no --profile and no --recipe for export"),
    ],
)
def test_what_cannot_be_handed_over_is_refused(given, says, run, tmp_path) -> None:
    code, _, err = run("export", *given, "--out", tmp_path / "out")
    assert code == 2 and says in err
    assert not (tmp_path / "out").exists()


def test_a_models_own_folder_is_not_written_to(make_vit_folder, run) -> None:
    folder = make_vit_folder()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for to in ("transformers", "onnx"):
        code, _, err = run("export", folder, "--to", to, "--out", folder)
        assert code == 2 and "Expected an --out of its own" in err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before and before


def test_others_files_are_not_replaced(make_vit_folder, run, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("mine")
    code, _, err = run("export", make_vit_folder(), "--out", out)
    assert code == 2 and "empty or that this command began" in err
    assert [path.read_text() for path in out.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("to", "file"), [("transformers", "onnx/vision_model.onnx"), ("onnx", "model.safetensors")]
)
def test_the_other_librarys_files_are_not_mixed_with(
    to, file, make_vit_folder, run, tmp_path
) -> None:
    """Both have a config.json, which says different things."""
    for name in (file, "config.json", "preprocessor_config.json"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("{}")
    (tmp_path / "out" / "README.md").write_text(HANDED_OVER)
    code, _, err = run("export", make_vit_folder(), "--to", to, "--out", tmp_path / "out")
    assert code == 2 and "of an earlier export, beside another config.json" in err


def test_a_downloaded_models_folder_is_not_written_to(make_vit_folder, run, tmp_path) -> None:
    names = ("README.md", "config.json", "model.safetensors", "preprocessor_config.json")
    for name in names:
        (tmp_path / name).write_text("somebody's")
    code, _, err = run("export", make_vit_folder(), "--out", tmp_path)
    assert code == 2 and "empty or that this command began" in err
    assert all((tmp_path / name).read_text() == "somebody's" for name in names)


def test_an_export_may_be_written_again(make_vit_folder, run, tmp_path) -> None:
    folder = make_vit_folder()
    for _ in range(2):
        code, _, err = run("export", folder, "--out", tmp_path / "out")
        assert code == 0, err


def test_a_teachers_folder_is_not_written_to(make_vit_folder, run, tmp_path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("a teacher's")
    code, _, err = run("export", make_vit_folder(), "--out", tmp_path)
    assert code == 2 and "empty or that this command began" in err


def test_pictures_to_measure_on_are_read_first(make_vit_folder, run, tmp_path) -> None:
    asked = (
        make_vit_folder(),
        "--to",
        "onnx",
        "--out",
        tmp_path / "out",
        "--data",
        tmp_path / "no",
    )
    code, _, err = run("export", *asked)
    assert code == 2 and "Expected --data with --int8" in err
    code, _, err = run("export", *asked, "--int8")
    assert code == 2 and str(tmp_path / "no") in err
    assert not (tmp_path / "out").exists()
