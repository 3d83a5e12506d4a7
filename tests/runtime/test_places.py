"""The embedded default is found in the package first, then in the repository."""

from pathlib import Path

import pytest

from dclip_kit.runtime import places as assets
from dclip_kit.runtime.places import asset_path


def test_the_package_goes_before_the_repository(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(assets, "_PACKAGE", tmp_path / "dclip_kit")
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
    with pytest.raises(FileNotFoundError, match=r"'nothing/here' was expected at .*make pocket"):
        asset_path("nothing", "here")
