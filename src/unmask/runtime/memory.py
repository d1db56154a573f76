"""Keep freed memory in the process, because every step of training or sampling allocates the same sizes again; and
measure how much memory is free.

glibc gives a large block back to the system at once, and gets the next one page by page, with a page fault each. This
takes up to a third of the time of sampling large batches on a CPU (`benchmarks/memory.py`). Systems without glibc are
not changed.
"""

import ctypes
import math
import re
import sys
from pathlib import Path

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Parameters of mallopt(3)."""


def keep_freed_memory() -> None:
    """Keep freed memory from now on, in the whole process. Programs call this; a library must not do so at import."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has it
    if mallopt is not None:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)
        mallopt(TOP_PAD, 64 << 20)


def measure_free_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the bytes that this process may still take without swapping, or infinity where the system does not say.

    It is the smaller of the machine's available memory and what is left below the limit of the process's container.
    """
    free = math.inf
    if meminfo.is_file() and (found := re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())):
        free = float(found[1]) * 1024
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        free = min(free, float(limit.read_text()) - float(used.read_text()))
    return free
