"""Packages of an extra are imported, or the line that brings them is said."""

import sys

import pytest

from dclip_kit.runtime.packages import require_packages


def test_what_is_there_is_imported(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    require_packages("scale", "colorsys", "json.tool")
    assert {"colorsys", "json.tool"} <= set(sys.modules)


def test_what_is_missing_or_does_not_load_is_one_sentence(monkeypatch, tmp_path) -> None:
    (tmp_path / "broken_package.py").write_text("import a_package_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    for missing, reason in (
        ("nobodys_package", "No module named 'nobodys_package'"),
        ("broken_package", "No module named 'a_package_that_nobody_has'"),
    ):
        with pytest.raises(ImportError) as raised:
            require_packages("scale", "json", missing, instead=", or do without")
        assert str(raised.value) == (
            f"Expected json and {missing}, but {missing} does not load ({reason}); run "
            "pip install 'dclip-kit[scale]', or do without."
        )
