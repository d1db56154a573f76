"""Lock a folder with filelock: the system releases the lock however the process ends, on Windows too."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unmask.errors import CheckpointError, DiskError, describe_os_error
from unmask.storage.files import is_process_dead, remove_temporary_files

LOCK = ".lock"
"""The lock file, with the id of the process that holds it, after an empty line."""
OWNER_AT = 1 if sys.platform == "win32" else 0
"""Where the id is read from. Windows forbids others to read the locked byte, which is the first."""


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
            os.lseek(descriptor, OWNER_AT, os.SEEK_SET)
            owner = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            if time.monotonic() >= deadline or not _is_dead(owner):
                raise CheckpointError(
                    f"{run} is in use by another process (pid {owner}); wait for it, or choose another run directory"
                )
            time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"\n{os.getpid()}\n".encode())
        remove_temporary_files(run)
        try:
            yield
        finally:
            if not keep and sys.platform != "win32":
                (run / LOCK).unlink(missing_ok=True)  # while it is held: the next owner sees that it is gone
    finally:
        os.close(descriptor)
    if not keep and sys.platform == "win32":
        with suppress(OSError):  # Windows removes no open file, so another process may hold it by now
            (run / LOCK).unlink(missing_ok=True)


def remove_killed_writes(folder: Path) -> None:
    """Remove what killed writes left half-written in a folder, unless another process holds it."""
    with suppress(CheckpointError), lock(folder, patience=0.0, keep=False):
        pass


def _open_lock_file(run: Path) -> int:
    try:
        run.mkdir(parents=True, exist_ok=True)
        return os.open(run / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    except OSError as error:
        raise DiskError(
            f"cannot write in {run}: {describe_os_error(error)}; choose a writable run directory"
        ) from error


def _try_lock(descriptor: int) -> bool:
    from filelock import lock_descriptor  # takes 0.07 s, and only writers need it

    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        raise DiskError(
            f"this file system cannot lock the run directory: {describe_os_error(error)}; use another one"
        ) from error


def _is_dead(owner: str) -> bool:
    """Return whether `owner` is the id of a process that no longer runs on this machine."""
    return owner.isdigit() and is_process_dead(int(owner))
