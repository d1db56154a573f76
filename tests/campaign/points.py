"""Strike at one file-system call of a process: kill it there, or let the call fail, or let the write after it fail."""

import builtins
import errno
import io
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import safetensors.torch

CALLS = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "ftruncate", "pwrite", "write", "open", "link")
SAVING = ("training/checkpoint.py", "training/runfolder.py", "training/saving.py")
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT
UNSEEN = ("/dev/", "/proc/", "/sys/", "/etc/", "/tmp/matplotlib", "pipe:")
STANDARD = (0, 1, 2)


class Points:
    """Patches the calls of this process for good: use it in a child. Numbers its calls from 1, and strikes at `at`.

    `strike` is called as strike(how, call): `call` makes the call, `how` is "open", "write" or another name.
    """

    def __init__(self, at: int = 0, strike: Callable[[str, Callable[[], object], list[Path]], object] | None = None):
        self.at, self.strike = at, strike
        self.seen: list[tuple[str, bool]] = []
        self.here = os.getpid()

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self._wrap(name, getattr(os, name)))
        opened = self._wrap_open(io.open)
        io.open = builtins.open = opened
        real = safetensors.torch.serialize_file
        safetensors.torch.serialize_file = self._wrap("serialize", real)

    def write(self, path: Path) -> None:
        """Leave the calls that were seen in a file."""
        self.at = 0
        path.write_text(json.dumps(self.seen))

    def _meet(self, name: str, call: Callable[[], object], paths: list[Path]) -> object:
        if os.getpid() != self.here:
            return call()
        self.seen.append((name, _is_saving()))
        if len(self.seen) != self.at or self.strike is None:
            return call()
        return self.strike(name, call, paths)

    def _wrap(self, name: str, real: Callable) -> Callable:
        def call(*args, **kwargs):
            if name == "open" and not (len(args) > 1 and args[1] & WRITE_FLAGS):
                return real(*args, **kwargs)
            if name in ("write", "pwrite", "ftruncate") and args[0] in STANDARD:
                return real(*args, **kwargs)
            paths = [Path(os.fsdecode(a)) for a in args if isinstance(a, str | os.PathLike)]
            if any(str(path).startswith(UNSEEN) for path in paths):
                return real(*args, **kwargs)
            return self._meet(name, lambda: real(*args, **kwargs), paths)

        return call

    def _wrap_open(self, real: Callable) -> Callable:
        def call(file, mode="r", *args, **kwargs):
            if isinstance(file, int) or not set(mode) & set("wax+") or str(file).startswith(UNSEEN):
                return real(file, mode, *args, **kwargs)
            return self._meet("file", lambda: real(file, mode, *args, **kwargs), [Path(os.fsdecode(file))])

        return call


def _is_saving() -> bool:
    """Whether a checkpoint is being written by the caller."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.endswith(SAVING):
            return True
        frame = frame.f_back
    return False


def kill_here(dice: random.Random) -> Callable:
    """A strike: SIGKILL before or after the call, or with a file half-written."""

    def strike(name: str, call: Callable[[], object], paths: list[Path]) -> object:
        if dice.random() < 0.6:
            call()
            if name == "serialize" and dice.random() < 0.7:
                for path in (p for p in paths if p.exists()):
                    os.truncate(path, dice.randrange(path.stat().st_size + 1))
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    return strike


def fail_here(number: int, dice: random.Random) -> Callable:
    """A strike: the call fails once with this error; an open file may open, and fail at its first write."""

    def strike(name: str, call: Callable[[], object], paths: list[Path]) -> object:
        failure = OSError(number, os.strerror(number), *map(str, paths[:1]))
        if name == "file" and number in (errno.ENOSPC, errno.EIO) and dice.random() < 0.6:
            return FailingFile(call(), failure)
        if name == "serialize":  # the Rust side reports a failure as text
            raise safetensors.SafetensorError(f"I/O error: {os.strerror(number)} (os error {number})")
        raise failure

    return strike


class FailingFile:
    """An open file whose first write fails."""

    def __init__(self, file, failure: OSError):
        self._file, self._failure = file, failure

    def write(self, data):
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return self._file.write(data)

    def __getattr__(self, name):
        if name == "fileno":  # or a library writes past us
            raise AttributeError(name)
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def __iter__(self):
        return iter(self._file)


def run_with_points(task: Callable[[], None], points: Points, trace: Path) -> Callable[[], None]:
    """Return the task with its calls counted; they are left in `trace`."""

    def run() -> None:
        points.here = os.getpid()
        points.install()
        try:
            task()
        finally:
            points.write(trace)

    return run
