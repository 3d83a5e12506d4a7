"""What Binder would build: the Dockerfile that repo2docker writes for binder/, without Docker."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
BINDER = ROOT / "binder"


@pytest.fixture(scope="module")
def dockerfile(tmp_path_factory) -> str:
    """The Dockerfile; repo2docker prints it, and builds nothing."""
    place = tmp_path_factory.mktemp("repository")
    (place / "binder").mkdir()
    for path in BINDER.iterdir():
        (place / "binder" / path.name).write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", str(place)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=place)
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr


def test_the_image_has_the_right_python(dockerfile) -> None:
    assert "conda environment for python=3.11" in dockerfile
    assert (BINDER / "runtime.txt").read_text().strip() == "python-3.11"


def test_torch_comes_before_the_kit_and_the_kit_before_a_visitor(dockerfile) -> None:
    steps = re.findall(r"^RUN (.+)$", dockerfile, re.MULTILINE)
    (torch,) = [
        i for i, step in enumerate(steps) if "pip install" in step and '-r "binder/' in step
    ]
    (kit,) = [i for i, step in enumerate(steps) if step == "./binder/postBuild"]
    assert torch < kit


def test_torch_is_a_pinned_build_for_cpus_that_the_kit_allows() -> None:
    lines = (BINDER / "requirements.txt").read_text().splitlines()
    pins = {r.name: r for r in map(Requirement, (x for x in lines if re.match("[a-z]", x)))}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    assert set(pins) == {"torch", "torchvision"}
    for name, pin in pins.items():
        version = str(pin.specifier).removeprefix("==")
        assert version.endswith("+cpu") and allowed[name].contains(version), pin


def test_the_last_step_installs_the_kit_and_draws_the_scenes() -> None:
    script = BINDER / "postBuild"
    assert os.access(script, os.X_OK)
    body = script.read_text()
    extras = re.search(r"install .*'\.\[(.+)\]'", body)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras and set(extras[1].split(",")) <= set(project["optional-dependencies"])
    assert "python -m dclip_kit.data.pocket.world" in body


def test_what_binder_starts_has_the_threads_that_its_container_may_use(dockerfile) -> None:
    assert re.search(r"^ENV R2D_ENTRYPOINT=?.*binder/start", dockerfile, re.M)
    script = BINDER / "start"
    assert os.access(script, os.X_OK)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {"PATH": path, "GOMP_SPINCOUNT": "7"}
    command = [script, sys.executable, "-c", "import os; print(os.environ['GOMP_SPINCOUNT'])"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("7\n", "")
    environment = {"PATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("10000\n", "")
