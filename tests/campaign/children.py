"""Run work in forked children of a process that has imported everything: what it said, how it ended, what it cost."""

import contextlib
import gc
import json
import os
import re
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tallies import Result, lose

from unmask.cli import main

GIB = 1 << 30
CHUNK = 50
"""Attempts of one child in `run_items`."""


@dataclass(frozen=True)
class Ending:
    """How a child ended."""

    code: int
    """Its exit code; minus the signal that killed it."""
    text: str
    """What it printed on both streams."""
    errors: str
    """What it printed on stderr."""
    seconds: float
    peak: int
    """Largest resident memory, in bytes; it counts what the parent had at the fork."""
    timed_out: bool = False

    @property
    def is_one_line(self) -> bool:
        """Whether it refused as the product should: one line on stderr that says what and what to do."""
        lines = [line for line in self.errors.splitlines() if line.startswith("unmask: ")]
        return self.code > 0 and len(lines) == 1 and "Traceback" not in self.text

    @property
    def is_crash(self) -> bool:
        """Whether it ended in a way that no user should see."""
        return self.timed_out or self.code < 0 or "Traceback" in self.text or (self.code > 0 and not self.is_one_line)

    @property
    def last_line(self) -> str:
        lines = [line for line in self.text.splitlines() if line.strip()]
        return "timed out" if self.timed_out else (lines[-1][:240] if lines else f"nothing said, code {self.code}")


def run_child(
    task: Callable[[], None],
    folder: Path,
    *,
    timeout: float = 120.0,
    strike: tuple[float, int] | None = None,
    memory: int | None = None,
) -> Ending:
    """Run `task` in a forked child whose current folder is `folder`, and kill the rest of its group at the end.

    Args:
        timeout: Seconds until it is killed.
        strike: Seconds after which it gets a signal, and which.
        memory: Bytes by which its address space may grow.
    """
    out, err = folder.parent / f"{folder.name}.out", folder.parent / f"{folder.name}.err"
    began = time.monotonic()
    child = os.fork()
    if not child:
        _live(task, folder, out, err, memory)
    timed_out = False
    handle = os.pidfd_open(child)
    try:
        if strike is not None and not select.select([handle], [], [], strike[0])[0]:
            os.kill(child, strike[1])
        left = max(0.0, began + timeout - time.monotonic())
        if not select.select([handle], [], [], left)[0]:
            timed_out = True
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(handle)
    _, status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - began
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    said, errors = (path.read_text("utf-8", "replace") if path.exists() else "" for path in (out, err))
    code = os.waitstatus_to_exitcode(status)
    return Ending(code, said + errors, errors, seconds, usage.ru_maxrss * 1024, timed_out)


def _live(task: Callable[[], None], folder: Path, out: Path, err: Path, memory: int | None) -> None:
    """Be the child; never returns."""
    code = 1
    try:
        os.setsid()
        gc.freeze()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
        if memory is not None:
            limit_memory(memory)
        try:
            task()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except KeyboardInterrupt:
            os.write(2, b"Traceback: KeyboardInterrupt outside main\n")
            code = 130
        except BaseException:  # noqa: BLE001 - a child reports whatever ended it, as Python would
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def limit_memory(growth: int) -> None:
    """Let this process's address space grow by so many bytes at most."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + growth, now + growth))


def run_command(words: list[str], folder: Path, **options) -> Ending:
    """Run one command of unmask in a child."""
    return run_child(lambda: main(list(words)), folder, **options)


def run_commands(commands: list[list[str]], folder: Path, **options) -> Ending:
    """Run commands one after another in one child, up to the first that fails."""

    def task() -> None:
        for words in commands:
            main(list(words))

    return run_child(task, folder, **options)


def run_items(
    attempt: Callable[[int], Result], count: int, folder: Path, *, seconds: int = 20, memory: int = 2 * GIB
) -> Iterator[Result]:
    """Make attempts 0, 1, ... in a child each of which lives as long as it can; a death is blamed on its attempt.

    Args:
        attempt: Makes one attempt. What it raises is a loss.
        seconds: Time of one attempt; then the child is killed.
        memory: Bytes by which the child may grow.
    """
    start, log = 0, folder.parent / f"{folder.name}.items"
    while start < count:
        log.write_text("")
        first, last = start, min(count, start + CHUNK)
        ending = run_child(lambda a=first, b=last: _attempt_all(attempt, a, b, log, seconds), folder,
                           timeout=seconds * CHUNK, memory=memory)  # fmt: skip
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        for row in rows:
            yield Result(*row)
        start = first + len(rows)
        if start < last:
            what = "hang" if ending.code == -signal.SIGALRM else "death"
            yield lose(what, f"attempt {start}: {what}, code {ending.code}: {ending.last_line}")
            start += 1


def _attempt_all(attempt: Callable[[int], Result], first: int, last: int, log: Path, seconds: int) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for index in range(first, last):
        signal.alarm(seconds)
        try:
            result = attempt(index)
        except Exception as error:  # noqa: BLE001 - whatever escapes is what the campaign looks for
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            result = lose("exception", f"attempt {index}: {type(error).__name__} at {where}: {str(error)[:160]}")
        signal.alarm(0)
        os.write(descriptor, json.dumps([result.fate, result.how, result.note]).encode() + b"\n")


def mask_numbers(text: str) -> set[str]:
    """Return the lines of a text without their numbers, so that other losses are no other lines."""
    return {re.sub(r"[\d.]+|[━╸╺]+", "#", line).strip() for line in text.splitlines() if line.strip()}
