"""The command line as real processes: quick help, exit codes, streams that stay apart."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dclip_kit
from tests.data.test_splits import write_own

ROOT = Path(__file__).parent.parent.parent
NO_BARS = {"TQDM_DISABLE": "1"}  # a slow machine would draw them on stderr


def shell(*arguments: object, **more) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dclip_kit", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **more)


def test_help_needs_nothing_that_takes_long_to_import() -> None:
    program = (
        "import sys\nfrom dclip_kit.commands import main\n"
        "try: main(['distill', '--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'open_clip', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    began = time.monotonic()
    assert "inspect" in shell("--help", check=True).stdout
    assert time.monotonic() - began < 5  # 0.3 s where nothing else runs


def test_a_search_as_a_person_types_it(tmp_path, clip_folder) -> None:
    folder = write_own(tmp_path / "own", range(3))
    environment = {"DCLIP_CACHE": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin"}
    done = shell("search", folder, "a dog", "--model", clip_folder, "--json", env=environment)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 3 and "Embedded 3 pictures now" in done.stderr


def test_every_public_name_can_be_had() -> None:
    assert len(dclip_kit.__all__) > 20 and set(dclip_kit.__all__) <= set(dir(dclip_kit))
    for name in dclip_kit.__all__:
        value = getattr(dclip_kit, name)
        assert name.isupper() or value.__name__ == name  # constants have no name of their own
    with pytest.raises(AttributeError, match="no_such_name"):
        dclip_kit.no_such_name  # noqa: B018


@pytest.mark.slow
def test_a_reader_that_has_read_enough_is_no_error(tmp_path) -> None:
    write_own(tmp_path, range(2))
    command = f"{sys.executable} -m dclip_kit inspect {tmp_path} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, env=os.environ | NO_BARS
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("cp1252", marks=pytest.mark.slow)])
def test_what_an_encoding_lacks_is_escaped(encoding, tmp_path) -> None:
    """As where Windows redirects; a search is done by then, and its result would be lost."""
    write_own(tmp_path, range(1)).joinpath("0.png").rename(tmp_path / "漢.png")
    (tmp_path / "captions.csv").write_text("image,caption\n漢.png,a\nα.png,b\n", encoding="utf-8")
    environment = os.environ | NO_BARS | {"PYTHONIOENCODING": encoding}
    streams = {"env": environment, "encoding": encoding}
    done = shell("inspect", tmp_path, **streams)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 usable, 1 unusable" in done.stdout and "\\u03b1.png: Expected" in done.stdout
    for command in ([], ["search"], ["distill"]):
        done = shell(*command, "--help", **streams)
        assert (done.returncode, done.stderr) == (0, "") and "usage" in done.stdout


@pytest.mark.parametrize("arguments", [["inspect", "nowhere"], ["inspect"]], ids=" ".join)
def test_what_goes_wrong_is_told_on_stderr(arguments) -> None:
    done = shell(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr and "Traceback" not in done.stderr
