"""The app's door: what is served, to whom, and what is refused before anything is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dclip_kit.commands import serve


@pytest.fixture
def served(monkeypatch) -> list[tuple[list[str], dict[str, str], list[str]]]:
    """Each server's command and environment, and what was in the folder that it could see."""
    found = []

    def run(command, env, check):
        page = Path(command[3])
        found.append((command, env, [each.name for each in page.parent.iterdir()]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(serve.subprocess, "run", run)
    return found


def test_the_server_is_for_this_machine_and_sees_nothing_but_the_page(
    run, served, tmp_path
) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    os.chdir(tmp_path)
    options = ["--model", "runs/mine/region_taught", "--port", "8123", "--no-browser"]
    assert run("app", ".", *options, "--device", "cpu")[0] == 0
    ((command, environment, seen),) = served
    assert command[:3] == [sys.executable, "-m", "voila"] and seen == ["app.ipynb"]
    assert {"--port=8123", "--Voila.ip=127.0.0.1", "--no-browser"} <= {*command}
    assert "--VoilaConfiguration.file_allowlist=[]" in command
    assert json.loads(environment["DCLIP_APP"]) == {
        "folder": str(tmp_path),
        "model": str(tmp_path / "runs/mine/region_taught"),
        "device": "cpu",
    }
    assert not Path(command[3]).exists()  # tidied away


def test_without_a_folder_it_is_the_pockets(run, served) -> None:
    assert run("app")[0] == 0
    ((command, environment, _),) = served
    assert "--no-browser" not in command
    assert json.loads(environment["DCLIP_APP"])["folder"] == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "runs/mine/dclip"], "Expected a folder to search with runs/mine/dclip"),
        (["nowhere"], "Expected pictures ("),
    ],
)
def test_what_cannot_be_served_is_refused(arguments, says, run, served, tmp_path) -> None:
    os.chdir(tmp_path)
    code, _, err = run("app", *arguments)
    assert code == 2 and says in err and not served


def test_a_missing_voila_names_the_line_that_brings_it(run, served, monkeypatch) -> None:
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None)
    code, _, err = run("app")
    assert code == 2 and "pip install 'dclip-kit[app]'" in err and not served


def test_stopping_the_server_is_no_failure(run, monkeypatch) -> None:
    def interrupted(*given, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(serve.subprocess, "run", interrupted)
    assert run("app") == (0, "", "")
