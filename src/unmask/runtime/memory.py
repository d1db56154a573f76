"""Keep freed memory in the process, because every step of training or sampling allocates the same sizes again.

glibc gives a large block back to the system at once, and gets the next one page by page, with a page fault each. This
takes up to a third of the time of sampling large batches on a CPU (`benchmarks/memory.py`). Systems without glibc are
not changed.
"""

import ctypes
import sys

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
