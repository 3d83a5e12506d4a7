import platform
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from dclip_kit.runtime.memory import peak_memory_mb, return_memory


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_millions_of_bytes(platform, unit, monkeypatch) -> None:
    """Where no /proc tells it."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak_memory_mb() == pytest.approx(peak * unit / 1e6, rel=0.05)


def test_windows_says_its_own_peak(monkeypatch) -> None:
    """Where there is neither /proc nor the module `resource`."""
    told = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=123_000_000))
    monkeypatch.setattr(psutil, "Process", lambda: told)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(Path, "exists", lambda path: False)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory_mb() == 123


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_peak_memory_is_of_this_process_alone() -> None:
    held = bytearray(b"1") * 600_000_000  # by the parent: not the child's
    code = """
from dclip_kit.runtime.memory import peak_memory_mb
print(peak_memory_mb())
more = bytearray(b"1") * 300_000_000
print(peak_memory_mb())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(float, found.stdout.split())
    assert after - before == pytest.approx(300, rel=0.1)
    assert before < peak_memory_mb() - len(held) / 2e6


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_goes_back_although_some_above_it_is_in_use() -> None:
    code = """
from pathlib import Path
import torch
from dclip_kit.runtime.memory import return_memory

def resident() -> float:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024 / 1e6

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


def test_a_system_that_has_nothing_to_return_is_left_alone(monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert return_memory() is None
