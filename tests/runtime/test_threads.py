"""How many threads PyTorch computes with: what a container may use, in files as Linux has them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dclip_kit.runtime import threads
from dclip_kit.runtime.threads import allowed_cores, choose_threads, count_workers

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "100000 0\n"}, None),
        ({"cpu.max": ""}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n"}, None),
        ({}, None),
    ],
)
def test_allowed_cores(tmp_path, files, cores):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert allowed_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("quota", "given", "threads"),
    [(250, {}, "2"), (50, {}, "1"), (900, {}, None), (250, {"OMP_NUM_THREADS": "3"}, "3")],
)
def test_no_more_threads_than_cores_to_use(tmp_path, monkeypatch, quota, given, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    (tmp_path / "cpu.max").write_text(f"{quota} 100\n")
    choose_threads(given, tmp_path)
    assert given == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"} | (
        {} if threads is None else {"OMP_NUM_THREADS": threads}
    )


GIVEN = [
    ({}, ["PASSIVE", "10000"]),
    ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", "None"]),
    ({"GOMP_SPINCOUNT": "7"}, ["None", "7"]),
]


def run(*arguments: str, **given: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in NAMES} | given
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("before", ["pass", "import open_clip"])  # which sets some of its own
def test_importing_the_kit_changes_no_variable(before) -> None:
    program = f"""import os
{before}
before = dict(os.environ)
import dclip_kit
if {before!r} != "pass":
    for name in dclip_kit.__all__:
        getattr(dclip_kit, name)
print(before == dict(os.environ))"""
    done = run("-c", program)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


@pytest.mark.parametrize(("given", "expected"), GIVEN)
def test_the_command_line_decides_before_torch_is_loaded_unless_the_user_has(
    given, expected, tmp_path
):
    (tmp_path / "torch.py").write_text(
        f"import os\nprint(*(os.environ.get(name) for name in {NAMES}))\nos._exit(7)"
    )
    arguments = ("-m", "dclip_kit", "export", "pocket", "--out", str(tmp_path / "out"))
    done = run("-u", *arguments, **given, PYTHONPATH=str(tmp_path))
    assert (done.stdout.split(), done.returncode) == (expected, 7), done.stderr


@pytest.mark.parametrize(("given", "expected"), GIVEN)
def test_a_shell_is_told_what_to_set(given, expected):
    done = run("-m", "dclip_kit.runtime.threads", **given, OMP_NUM_THREADS="3")
    names = [*NAMES, "OMP_NUM_THREADS"]
    told = dict(word.split("=") for word in done.stdout.split())
    assert [told.get(name, "None") for name in names] == [*expected, "3"], done.stderr


def test_make_tells_what_it_starts() -> None:
    """Of each command that computes: what it would run."""
    for target in ("test", "demo", "lab", "notebooks", "bench", "pocket"):
        command = ["make", "--dry-run", "--old-file=.venv/.ready", target]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        started = re.findall(
            r"^.*\.venv/bin/(?:papermill|jupyter lab|python -m (?:pytest|assets\.make"
            r"\.(?:notebook_files refresh|(?!notebook_files|build)))|python tests).*$",
            done.stdout,
            re.M,
        )
        assert started, target
        prefix = "env $(.venv/bin/python -m dclip_kit.runtime.threads) "
        assert all(line.strip().startswith(prefix) for line in started), started


def test_processes_on_one_machine_share_its_processors(monkeypatch) -> None:
    monkeypatch.setattr(threads, "allowed_cores", lambda: None)
    for processors, processes, expected in (
        (None, 1, 2),
        (1, 1, 2),
        (8, 1, 8),
        (8, 2, 4),
        (96, 2, 16),
    ):
        monkeypatch.setattr("os.cpu_count", lambda count=processors: count)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert count_workers() == expected
    monkeypatch.setattr(threads, "allowed_cores", lambda: 6.5)  # in a container
    assert count_workers() == 3
