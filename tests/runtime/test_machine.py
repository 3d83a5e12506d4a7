"""Threads as a container allows them, and memory."""

import ctypes
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from dclip_kit.runtime import machine
from dclip_kit.runtime.machine import (
    MALLOC,
    allowed_cores,
    choose_threads,
    count_workers,
    keep_memory,
    peak_memory_mb,
    return_memory,
)

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("content", "cores"),
    [
        ("150000 100000\n", 1.5),
        ("max 100000\n", None),
        ("100000 0\n", None),
        ("", None),
        (None, None),
    ],
)
def test_allowed_cores(tmp_path, content, cores):
    file = tmp_path / "cpu.max"
    if content is not None:
        file.write_text(content)
    assert allowed_cores(file) == cores


@pytest.mark.parametrize(
    ("quota", "given", "threads"),
    [(250, {}, "2"), (50, {}, "1"), (900, {}, None), (250, {"OMP_NUM_THREADS": "3"}, "3")],
)
def test_no_more_threads_than_cores_to_use(tmp_path, monkeypatch, quota, given, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    file = tmp_path / "cpu.max"
    file.write_text(f"{quota} 100\n")
    choose_threads(given, file)
    assert given == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"} | (
        {} if threads is None else {"OMP_NUM_THREADS": threads}
    )


GIVEN = [
    ({}, ["PASSIVE", "10000"]),
    ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", "None"]),
    ({"GOMP_SPINCOUNT": "7"}, ["None", "7"]),
]


def run(*arguments: str, **given: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in {*NAMES, *MALLOC}} | given
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
    arguments = ("-m", "dclip_kit", "evaluate")
    done = run("-u", *arguments, **given, PYTHONPATH=str(tmp_path))
    assert (done.stdout.split(), done.returncode) == (expected, 7), done.stderr


@pytest.mark.parametrize(("given", "expected"), GIVEN)
def test_the_module_prints_variables_for_a_shell(given, expected):
    done = run("-m", "dclip_kit.runtime.machine", **given, OMP_NUM_THREADS="3")
    names = [*NAMES, "OMP_NUM_THREADS"]
    told = dict(word.split("=") for word in done.stdout.split())
    assert [told.get(name, "None") for name in names] == [*expected, "3"], done.stderr


def test_make_sets_the_threads_of_what_it_starts() -> None:
    """Of each command that computes: what it would run."""
    for target in ("test", "test-rest", "demo", "lab", "notebooks", "bench", "pocket"):
        command = ["make", "--dry-run", "--old-file=.venv/.ready", target]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        started = re.findall(
            r"^.*\.venv/bin/(?:papermill|jupyter lab|python -m (?:pytest|assets\.make"
            r"\.(?:notebook_files refresh|(?!notebook_files|build)))|python tests).*$",
            done.stdout,
            re.M,
        )
        assert started, target
        prefix = "env $(.venv/bin/python -m dclip_kit.runtime.machine) "
        assert all(line.strip().startswith(prefix) for line in started), started


def test_processes_on_one_machine_share_its_processors(monkeypatch) -> None:
    monkeypatch.setattr(machine, "allowed_cores", lambda: None)
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
    monkeypatch.setattr(machine, "allowed_cores", lambda: 6.5)  # in a container
    assert count_workers() == 3


# Memory


@pytest.mark.parametrize(
    ("told", "mb"), [({"rss": 5e6, "peak_wset": 123e6}, 123), ({"rss": 5e6}, 5)]
)
def test_peak_memory_comes_from_psutil_where_there_is_no_proc(told, mb, monkeypatch) -> None:
    """On Windows; macOS remembers no peak, and says what is held now."""
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(**told))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert peak_memory_mb() == mb


def test_some_sandboxes_remember_no_peak(tmp_path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t  100 kB\n")
    assert peak_memory_mb(tmp_path / "status") > 10


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_peak_memory_is_of_this_process_alone() -> None:
    held = bytearray(b"1") * 600_000_000  # by the parent: not the child's
    code = """
from dclip_kit.runtime.machine import peak_memory_mb
print(peak_memory_mb())
more = bytearray(b"1") * 300_000_000
print(peak_memory_mb())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(float, found.stdout.split())
    assert after - before == pytest.approx(300, rel=0.1)
    assert before < peak_memory_mb() - len(held) / 2e6


RESIDENT = """
from pathlib import Path

def resident() -> float:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024 / 1e6
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, True),  # this process, by a call
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False),  # the user's own
        ({"GLIBC_TUNABLES": ""}, False),
        ({"LD_PRELOAD": ""}, False),  # another allocator's
    ],
)
def test_freed_tensors_are_kept_unless_the_user_has_decided(given, kept) -> None:
    code = f"""{RESIDENT}
import os
import torch
from dclip_kit.runtime.machine import keep_memory, return_memory
keep_memory(os.environ)
tensor = torch.ones(50_000_000)
full = resident()
del tensor
freed = resident()
return_memory()
print(full, freed, resident())
"""
    done = run("-c", code, **given)
    full, freed, returned = map(float, done.stdout.split())
    assert (full - freed < 50, full - freed > 150) == (kept, not kept)
    assert returned < full - 150


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_processes_started_with_the_variables_keep_freed_tensors() -> None:
    told = run("-m", "dclip_kit.runtime.machine").stdout.split()
    given = dict(word.split("=") for word in told if word.startswith("MALLOC"))
    assert given.keys() == MALLOC.keys()
    code = f"""{RESIDENT}
import torch
tensor = torch.ones(50_000_000)
full = resident()
del tensor
print(full - resident())
"""
    assert float(run("-c", code, **given).stdout) < 50
    assert float(run("-c", code).stdout) > 150


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_return_memory_frees_blocks_below_one_in_use() -> None:
    code = f"""{RESIDENT}
import torch
from dclip_kit.runtime.machine import return_memory

blocks = [torch.ones(25_000) for _ in range(3000)]  # each below what glibc asks the system for
last = blocks.pop()
full = resident()
blocks.clear()
freed = resident()
return_memory()
print(full, freed, resident())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    full, freed, returned = map(float, found.stdout.split())
    assert freed > full - 50  # else there is nothing to be done
    assert returned < full - 250


def test_memory_is_left_alone_without_glibc(monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", None)  # a call would raise
    return_memory()
    environment: dict[str, str] = {}
    keep_memory(environment)
    assert environment.keys() == MALLOC.keys()  # for those who have it
