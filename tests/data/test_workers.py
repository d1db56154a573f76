"""No worker outlives the process that it works for, however that one ends."""

import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import toy_workers


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGTERM, 143, "unmask: stopped by SIGTERM\n"),
        (signal.SIGKILL, -9, ""),
    ],
)
def test_workers_end_with_their_parent(tmp_path, number, code, line):
    """A lock on its file is free once a worker has ended: to wait for the lock is to wait for the end."""
    command = [sys.executable, toy_workers.__file__, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        locks = [Path(parent.stdout.readline().strip()) for _ in range(2)]
        parent.send_signal(number)
        assert parent.wait(60) == code
        assert parent.stderr.read() == line  # read to its end: the workers hold it too
    for path in locks:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
