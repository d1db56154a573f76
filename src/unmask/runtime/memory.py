"""What this process frees stays with it, as every step of training or sampling asks for the same memory again.

glibc gives a large block back to the system at once, and gets the next one from it page by page, each page a fault:
up to a third of the time of drawing large batches on a CPU (`benchmarks/memory.py`). Elsewhere nothing is changed.
"""

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Parameters of mallopt(3)."""


def keep_freed_memory() -> None:
    """For the whole process, from now on; so it is for programs to do, and not for a library on being imported."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has it
    if mallopt is not None:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)
        mallopt(TOP_PAD, 64 << 20)
