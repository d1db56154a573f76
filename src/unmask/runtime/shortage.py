"""Recognise a shortage of memory or of disk space, if possible before the work begins."""

import errno
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.errors import DiskError, ShortageError
from unmask.runtime.memory import measure_address_space, measure_free_memory

if TYPE_CHECKING:
    import torch

_SHORTAGE = re.compile(
    r"(?i)can.t allocate memory|not enough memory|out of memory|bad_alloc|start new thread|size calculation overflowed"
)
"""What torch says when memory is short, or when a size is beyond any memory."""
_SIZE = re.compile(r"(?i)allocate ([\d.]+) ?(bytes|[KMGTPE]iB)")


def describe_shortage(error: BaseException) -> str | None:
    """Return that there is not enough memory, with the size that was asked for, if that is what the error says."""
    text = str(error)
    known = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if not known and not (isinstance(error, RuntimeError) and _SHORTAGE.search(text)):
        return None
    size = _SIZE.search(text)
    if size is None:
        return "not enough memory"
    number, unit = size.groups()
    return f"not enough memory for {format_bytes(int(number)) if unit == 'bytes' else f'{number} {unit}'} more"


def format_bytes(number: int | float) -> str:
    """Return a size in GiB, or in MiB below one GiB."""
    return f"{number / (1 << 30):,.1f} GiB" if number >= 1 << 30 else f"{number / (1 << 20):,.1f} MiB"


def check_memory(needed: int | float, device: "torch.device", advice: str) -> None:
    """Raise ShortageError, with the advice, if a device has less than `needed` bytes free for each process on it."""
    free = measure_free_memory()
    if device.type == "cuda":
        import torch  # the command line ends by this module, also where it needed no torch

        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "cpu":
        free = min(free / int(os.environ.get("LOCAL_WORLD_SIZE", "1")), measure_address_space())
    if needed > free:
        raise ShortageError(
            f"this needs at least {format_bytes(needed)} of memory ({device}), and {format_bytes(free)} are free: "
            f"{advice}"
        )


def check_disk(needed: int | float, folder: Path, advice: str) -> None:
    """Raise DiskError, with the advice, if the disk of a folder, there or to come, has less than `needed` bytes."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise DiskError(
            f"{folder}: this needs {format_bytes(needed)} of disk space, and {format_bytes(free)} are free: {advice}"
        )
