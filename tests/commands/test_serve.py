"""The app's door: what is served, to whom, and what is refused before anything is."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from dclip_kit.commands import serve


@pytest.fixture
def served(monkeypatch) -> list[tuple[list[str], dict[str, str], list[str]]]:
    """Each server's options, what the page is told, and what is in the folder that it can see."""
    from voila.app import Voila

    found = []

    def launch(options) -> None:
        seen = [each.name for each in Path(options[0]).parent.iterdir()]
        found.append((options, json.loads(os.environ["DCLIP_APP"]), seen))

    monkeypatch.setattr(Voila, "launch_instance", launch)
    monkeypatch.setattr(serve.os, "environ", dict(os.environ))
    return found


def test_the_server_is_for_this_machine_and_sees_nothing_but_the_page(
    run, served, tmp_path, monkeypatch
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    monkeypatch.chdir(tmp_path)
    given = ["--model", "runs/mine/region_taught", "--port", "8123", "--no-browser"]
    assert run("app", ".", *given, "--device", "cpu")[0] == 0
    ((options, told, seen),) = served
    assert seen == ["app.ipynb"]
    assert {"--port=8123", "--Voila.ip=127.0.0.1", "--no-browser"} <= {*options}
    assert "--VoilaConfiguration.file_allowlist=[]" in options
    model = str(tmp_path / "runs/mine/region_taught")
    assert told == {"folder": str(tmp_path), "model": model, "device": "cpu"}
    assert not Path(options[0]).exists()  # tidied away


def test_without_a_folder_it_is_the_pockets(run, served) -> None:
    assert run("app")[0] == 0
    ((options, told, _),) = served
    assert "--no-browser" not in options and told["folder"] == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "runs/mine/dclip"], "Expected a folder to search with runs/mine/dclip"),
        (["nowhere"], "Expected pictures ("),
    ],
)
def test_what_cannot_be_served_is_refused(
    arguments, says, run, served, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("app", *arguments)
    assert code == 2 and says in err and not served


def test_a_missing_voila_names_the_line_that_brings_it(run, served, monkeypatch) -> None:
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None)
    code, _, err = run("app")
    assert code == 2 and "pip install 'dclip-kit[app]'" in err and not served
