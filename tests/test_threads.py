"""How many threads PyTorch computes with: what a container may use, in files as Linux has them."""

import os
import subprocess
import sys

import pytest

from dclip_kit import threads
from dclip_kit.threads import allowed_cores, choose_threads, count_workers

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
PRINT = f"""import os, sys, dclip_kit
print(*(os.environ.get(name) for name in {NAMES}), "torch" in sys.modules)"""


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


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["PASSIVE", "10000"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", "None"]),
        ({"GOMP_SPINCOUNT": "7"}, ["None", "7"]),
    ],
)
def test_the_kit_decides_before_torch_is_loaded_unless_the_user_has(given, expected):
    environment = {k: v for k, v in os.environ.items() if k not in NAMES} | given
    done = subprocess.run(
        [sys.executable, "-c", PRINT], env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == [*expected, "False"]


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
