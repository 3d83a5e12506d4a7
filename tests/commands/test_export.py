"""`export`, as a shell calls it."""

import pytest


def test_a_model_is_handed_over(make_vit_folder, run, tmp_path) -> None:
    from transformers import CLIPModel

    code, out, err = run(
        "export", make_vit_folder(), "--to", "transformers", "--out", tmp_path / "out"
    )
    assert code == 0, err
    assert f"Written to {tmp_path / 'out'}" in out and "seen.json stays behind" in out
    assert CLIPModel.from_pretrained(tmp_path / "out").config.projection_dim == 24


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("pocket",), "got pocket (it has another image tower); hand it over as ONNX"),
        (("nowhere/at/all",), "nowhere/at/all"),
        (("pocket", "--profile", "base"), "no --profile and no --recipe for export"),
    ],
)
def test_what_cannot_be_handed_over_is_refused(given, says, run, tmp_path) -> None:
    code, _, err = run("export", *given, "--out", tmp_path / "out")
    assert code == 2 and says in err
    assert not (tmp_path / "out").exists()
