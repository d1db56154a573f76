"""Make the first run: `unmask demo` in a process of its own, line by line."""

import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from unmask.errors import ConfigError

SECONDS_TO_END = 10
"""How long a process may take to end when it is asked to."""
DEMO_FLAGS: tuple[str, ...] = ()
"""More flags of `unmask demo`."""


def write_demo_command(out: Path, device: str = "auto") -> list[str]:
    """Return the command of a demo that leaves its run in `out`."""
    return [sys.executable, "-u", "-m", "unmask", "demo", "--out", str(out), "--device", device, *DEMO_FLAGS]


def stream_lines(command: Sequence[str], stop: threading.Event) -> Iterator[str]:
    """Run a command and yield its lines; it is ended when `stop` is set, or when the iterator is closed.

    Raises:
        ConfigError: It failed; with its last line.
    """
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_pump_lines, args=(child, lines), daemon=True).start()
    line: str | None
    last, has_ended = "", False
    try:
        while not (has_ended or stop.is_set()):
            try:
                line = lines.get(timeout=0.2)
            except queue.Empty:
                continue
            has_ended = line is None
            if line is not None:
                last = line or last
                yield line
        if has_ended:
            child.wait()
    finally:
        stop_child(child)
    if has_ended and child.returncode:
        raise ConfigError(f"the process ended with exit code {child.returncode}: {last}")


def _pump_lines(child: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            lines.put(line.rstrip())
    lines.put(None)


def stop_child(child: "subprocess.Popen[str]") -> None:
    """End a process: ask it to, and end it by force after SECONDS_TO_END."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
