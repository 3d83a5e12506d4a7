"""How many threads PyTorch computes with, and how they wait; decided before it is loaded.

Importing the kit changes nothing. `python -m dclip_kit` decides for itself; what starts notebooks
and other programs asks this module, which prints the variables for a shell:
`env $(python -m dclip_kit.runtime.threads) jupyter lab`.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")


def allowed_cores(folder: Path = CGROUPS) -> float | None:
    """The share of the machine's cores that this container may use, in cores; None: all of them.

    Args:
        folder: where Linux says so: in cpu.max, or in cpu/cpu.cfs_*_us before its second version.
    """
    try:
        words = (folder / "cpu.max").read_text(encoding="ascii").split()
    except OSError:
        try:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            words = [(folder / "cpu" / name).read_text(encoding="ascii").strip() for name in names]
        except OSError:
            return None
    limited = len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and words[1] != "0"
    return int(words[0]) / int(words[1]) if limited else None


def count_workers(most: int = 16) -> int:
    """Threads that read: a processor each, of those that this process shares with its siblings.

    Args:
        most: more of them would wait for Python's lock instead of decoding.
    """
    siblings = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = int(allowed_cores() or os.cpu_count() or 2)
    return min(max(2, cores // siblings), most)


def choose_threads(environment: MutableMapping[str, str], folder: Path = CGROUPS) -> None:
    """Sets OpenMP's variables, those that the user has not set.

    Threads that wait for each other spin by default, for long. Beside any other busy program, or
    where a container may use fewer cores than it sees (as on Binder), each then waits for one that
    is not running: training on two cores became ten times slower. Sleeping at once is not better:
    waking up takes longer than much of what they have to do. So they spin for about a tenth of a
    millisecond and then sleep, and there are no more of them than cores to use.

    Args:
        environment: `os.environ`, before torch is imported.
        folder: as in `allowed_cores`.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys():
        # GNU's OpenMP, which PyTorch has on Linux, goes by the second, and others by the first.
        environment.update({"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"})
    cores = allowed_cores(folder)
    if cores is not None and cores < (os.cpu_count() or 1):
        environment.setdefault("OMP_NUM_THREADS", str(max(1, int(cores))))


if __name__ == "__main__":
    choose_threads(os.environ)
    print(*(f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ))
