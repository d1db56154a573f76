"""Keep freed memory in the process, because every step of training or sampling allocates the same sizes again; and
measure how much memory is free.

glibc gives a large block back to the system at once, and gets the next one page by page, with a page fault each. This
takes up to a third of the time of sampling large batches on a CPU (`benchmarks/memory.py`). Systems without glibc are
not changed.
"""

import contextlib
import ctypes
import math
import os
import re
import sys
from pathlib import Path, PurePosixPath

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


def measure_free_memory(
    meminfo: Path = Path("/proc/meminfo"),
    cgroup: Path = Path("/sys/fs/cgroup"),
    groups: Path = Path("/proc/self/cgroup"),
) -> float:
    """Return the bytes that this process may still take without swapping, or infinity where the system does not say.

    It is the smallest of the machine's available memory and of what is left below the limit of each control group that
    this process is in, such as a container's, a scheduler's or a service's. Other processes may share it.
    """
    free = math.inf
    if meminfo.is_file() and (found := re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())):
        free = float(found[1]) * 1024
    places = {cgroup, cgroup / "memory"}
    for line in os.fsdecode(groups.read_bytes()).splitlines() if groups.is_file() else []:
        _, controllers, path = line.split(":", 2)
        tops = [cgroup / "memory"] if "memory" in controllers.split(",") else []  # version 1
        if not controllers:  # version 2, alone or beside version 1
            tops = [cgroup, cgroup / "unified"]
        inside = PurePosixPath(path.lstrip("/"))
        places |= {top / place for top in tops for place in (inside, *inside.parents)}
    return min([free, *map(_measure_group, places)])


def _measure_group(folder: Path) -> float:
    """Return the bytes below the limit of one control group, of version 2 or 1, or infinity without a limit."""
    for limit, used, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            left = float(int((folder / limit).read_text())) - float((folder / used).read_text())
            # Cached files count as used there, and the kernel gives them up when memory is short.
            stat = folder / "memory.stat"
            text = stat.read_text() if stat.is_file() else ""
            return left + sum(map(float, re.findall(rf"(?m)^{prefix}(?:in)?active_file (\d+)$", text)))
    return math.inf


def measure_address_space(statm: Path = Path("/proc/self/statm")) -> float:
    """Return the bytes that `ulimit -v` leaves to this process alone, or infinity without such a limit."""
    if sys.platform == "win32":
        return math.inf
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return math.inf
    pages = int(statm.read_text().split()[0]) if statm.is_file() else 0
    return float(limit - pages * resource.getpagesize())
