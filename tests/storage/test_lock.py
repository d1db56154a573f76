"""The lock of a folder: exclusive, named by its owner, free after a kill, and the same lock as filelock's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unmask.errors import CheckpointError
from unmask.storage.lock import LOCK, lock

HOLD = (
    "import sys; from pathlib import Path; from unmask.storage.lock import lock\n"
    "with lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
)


def test_a_lock_of_another_process_is_named_and_free_after_a_kill(tmp_path: Path) -> None:
    code = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        with pytest.raises(CheckpointError, match=f"in use by another process .pid {owner.pid}"), lock(tmp_path):
            pass
        owner.kill()
    with lock(tmp_path):
        pass


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux says that a process has ended")
def test_what_a_killed_process_left_is_removed_though_no_one_asked_how_it_ended(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as writer:
        left = tmp_path / f".table.csv.tmp-{writer.pid:08x}01234567"
        left.touch()
        with lock(tmp_path):
            assert left.exists()
        writer.kill()
        os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and its id is still taken
        with lock(tmp_path):
            assert not left.exists()


def test_programs_that_use_filelock_respect_the_lock(tmp_path: Path) -> None:
    from filelock import FileLock, Timeout

    with lock(tmp_path), pytest.raises(Timeout):
        FileLock(tmp_path / LOCK).acquire(blocking=False)


def test_the_owner_of_an_earlier_version_is_named(tmp_path: Path) -> None:
    code = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX)\n"
    code += "import os; file.write(f'{os.getpid()}\\n'); file.flush(); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / LOCK)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        with pytest.raises(CheckpointError, match=f"pid {owner.pid}"), lock(tmp_path):
            pass
        owner.kill()
