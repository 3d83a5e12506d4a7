"""The machine: threads, how they wait, and memory.

Importing the kit changes no setting. `python -m dclip_kit` makes its own before PyTorch is loaded;
other programs get the same from `env $(python -m dclip_kit.runtime.machine) jupyter lab`.
"""

import ctypes
import os
import sys
from collections.abc import Callable, MutableMapping
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup/cpu.max")
# glibc's settings: no block is mapped by itself, and a process keeps up to 1 GiB that it has freed.
# Beside each, its number for `mallopt`.
MALLOC = {
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**30),
    "MALLOC_TOP_PAD_": (-2, 2**26),
}
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", *MALLOC)


def allowed_cores(file: Path = CGROUP) -> float | None:
    """How many cores this container may use; None if it may use all of the machine's.

    Args:
        file: Linux's quota and period, in microseconds.
    """
    try:
        quota, period = map(int, file.read_text(encoding="ascii").split())
        return quota / period
    except (OSError, ValueError, ZeroDivisionError):  # no container, or "max"
        return None


def count_workers(most: int = 16) -> int:
    """How many threads should read pictures: one for each core that this process has.

    Args:
        most: beyond this many, threads wait for Python's lock instead of decoding.
    """
    siblings = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(max(2, int(allowed_cores() or os.cpu_count() or 2) // siblings), most)


def choose_threads(environment: MutableMapping[str, str], file: Path = CGROUP) -> None:
    """Sets OpenMP's variables where the user has not set them.

    By default, threads that wait for each other spin for a long time. Beside another busy program,
    or in a container that may use fewer cores than it sees (as on Binder), they then wait for
    threads that are not running: training on two cores became ten times slower. Sleeping at once is
    no better, since waking up takes longer than much of their work. So they spin for about a tenth
    of a millisecond and then sleep, and there are no more of them than usable cores.

    Args:
        environment: `os.environ`, before torch is imported.
        file: as in `allowed_cores`.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys():
        # GNU's OpenMP, which PyTorch uses on Linux, reads the second; others read the first.
        environment.update({"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"})
    cores = allowed_cores(file)
    if cores is not None and cores < (os.cpu_count() or 1):
        environment.setdefault("OMP_NUM_THREADS", str(max(1, int(cores))))


def keep_memory(environment: MutableMapping[str, str]) -> None:
    """Makes the C library (glibc) reuse freed memory, in this process and those it starts.

    By default, each tensor of more than 32 MB is mapped anew and unmapped when it is freed, so that
    the system has to clear all of its pages again: where page faults are dear, as in a sandboxed
    container, that took half of an EfficientNet's time, and a twentieth of a ViT-B/32's. What the
    user has set, of this or of another allocator, stays.

    Args:
        environment: `os.environ`.
    """
    if {*MALLOC, "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"} & environment.keys():
        return
    set_option = _find_in_glibc("mallopt")
    for name, (option, value) in MALLOC.items():
        environment[name] = str(value)
        if set_option:
            set_option(option, value)


def peak_memory_mb(status: Path = Path("/proc/self/status")) -> float:
    """The most resident memory that this process has used, in MB (10^6 bytes).

    Args:
        status: the file in which Linux says it; elsewhere there is none.
    """
    if status.exists():  # `getrusage` would count what the parent held when it started this process
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if "VmHWM" in fields:  # some sandboxes have no such line
            return int(fields["VmHWM"].split()[0]) * 1024 / 1e6
    import psutil  # it comes with accelerate

    now = psutil.Process().memory_info()
    return getattr(now, "peak_wset", now.rss) / 1e6  # macOS remembers no peak


def return_memory() -> None:
    """Returns freed memory to the system, where the C library (glibc) would keep it.

    glibc keeps freed blocks that lie below one in use: an eighth of a notebook's memory after
    extracting features. Call it after a long piece of work, not in loops.
    """
    if trim := _find_in_glibc("malloc_trim"):
        trim(0)


def _find_in_glibc(function: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None


if __name__ == "__main__":
    choose_threads(os.environ)
    keep_memory(os.environ)
    print(*(f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ))
