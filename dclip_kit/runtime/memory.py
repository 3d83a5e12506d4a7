"""What this process has of the machine's memory."""

import ctypes
import sys
from pathlib import Path


def peak_memory_mb() -> float:
    """The most resident memory that this process has had, in MB (10^6 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():  # `getrusage` would count what the parent held when it started this process
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024 / 1e6
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e6
    import resource  # which Windows lacks

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def return_memory() -> None:
    """Gives what was freed back to the system, where the C library would keep it (glibc).

    It keeps freed blocks that lie below one in use, an eighth of a notebook's memory after features
    were extracted. For the end of a long piece of work, not for loops.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)
