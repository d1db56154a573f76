"""Lock a folder with `flock`: the kernel releases the lock however the process ends."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unmask.errors import CheckpointError, DiskError, describe_os_error
from unmask.storage.files import is_process_dead, remove_temporary_files

LOCK = ".lock"
"""The lock file, with the id of the process that holds it."""


@contextmanager
def lock(run: Path, *, patience: float = 10.0, keep: bool = True) -> Iterator[None]:
    """Hold the folder `run` for this process, and remove what killed writes left half-written in it.

    Args:
        patience: Seconds to wait for the data workers of a killed owner, which share its lock and live a few seconds
            longer. There is no wait for a living owner.
        keep: Leave the lock file there. False removes it at the end, from a folder that goes elsewhere.

    Raises:
        CheckpointError: Another process holds the folder.
        DiskError: The folder cannot be created or locked.
    """
    descriptor = _open_lock_file(run)
    try:
        deadline = time.monotonic() + patience
        while not _try_lock(descriptor) or not os.fstat(descriptor).st_nlink:
            if not os.fstat(descriptor).st_nlink:  # the owner before has removed it: take the next one
                os.close(descriptor)
                descriptor = _open_lock_file(run)
                continue
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            if time.monotonic() >= deadline or not _is_dead(owner):
                raise CheckpointError(
                    f"{run} is in use by another process (pid {owner}); wait for it, or choose another run directory"
                )
            time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        remove_temporary_files(run)
        try:
            yield
        finally:
            if not keep:
                (run / LOCK).unlink(missing_ok=True)  # while it is held: the next owner sees that it is gone
    finally:
        os.close(descriptor)


def remove_killed_writes(folder: Path) -> None:
    """Remove what killed writes left half-written in a folder, unless another process holds it."""
    with suppress(CheckpointError), lock(folder, patience=0.0, keep=False):
        pass


def _open_lock_file(run: Path) -> int:
    try:
        run.mkdir(parents=True, exist_ok=True)
        return os.open(run / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise DiskError(
            f"cannot write in {run}: {describe_os_error(error)}; choose a writable run directory"
        ) from error


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise DiskError(
            f"this file system cannot lock the run directory: {describe_os_error(error)}; use another one"
        ) from error
    return True


def _is_dead(owner: str) -> bool:
    """Return whether `owner` is the id of a process that no longer runs on this machine."""
    return owner.isdigit() and is_process_dead(int(owner))
