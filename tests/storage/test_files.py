"""A file is written whole or not at all, whatever fails and whenever the process ends."""

import os
import re
import signal
import stat
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.errors import DiskError
from unmask.storage.config import load_json, write_json
from unmask.storage.files import escape_line, hash_file, move_into_place, write_atomic, write_bytes, write_text
from unmask.storage.weights import write_weights

NAME = "table.csv"
TEMPORARY = re.compile(rf"\.{re.escape(NAME)}\.tmp-[0-9a-f]{{16}}")
CALLS = ("open", "write", "fstat", "fsync", "replace")


class Crash(BaseException):
    """Not an error of the disk: as KeyboardInterrupt, it passes every `except OSError`."""


def failing(name: str, number: int, error: BaseException):
    """Patch os.`name`, or the write inside the block, to fail at its n-th call."""
    real, left = getattr(os, name), [number]

    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise error
        return real(*args, **kwargs)

    return mock.patch.object(os, name, call)


def write_in_pieces(data: bytes, path: Path) -> None:
    """Write one byte a call, so that a failure may come after any of them."""
    with write_atomic(path) as temporary, open(temporary, "r+b", buffering=0) as file:
        for i in range(len(data)):
            os.write(file.fileno(), data[i : i + 1])


@given(
    old=st.none() | st.binary(max_size=20),
    new=st.binary(min_size=1, max_size=20),
    name=st.sampled_from(CALLS),
    number=st.integers(1, 4),
    crash=st.booleans(),
)
def test_a_failure_leaves_the_old_file_or_the_whole_new_one_and_nothing_else(
    tmp_path_factory, old, new, name, number, crash
):
    folder = tmp_path_factory.mktemp("files")
    path = folder / NAME
    if old is not None:
        path.write_bytes(old)
    error = Crash() if crash else OSError(28, "No space left on device")
    try:
        with failing(name, number, error):
            write_in_pieces(new, path)
        done = True
    except (Crash, OSError):
        done = False
    there = path.read_bytes() if path.exists() else None
    assert there in ([new] if done else [old, new])
    renamed = (name == "fsync" and number == 2) or (name == "open" and number >= 3)  # the sync of the folder
    assert done or renamed or there == old
    assert [entry.name for entry in folder.iterdir()] == ([] if there is None else [NAME])


def fail_within(temporary: Path, fails: type[BaseException]) -> None:
    temporary.write_text("half of it")
    raise fails


@pytest.mark.parametrize("fails", [KeyboardInterrupt, ValueError, OSError])
def test_an_error_of_the_block_itself_is_passed_on(tmp_path, fails):
    path = tmp_path / NAME
    write_text("old", path)
    with pytest.raises(fails), write_atomic(path) as temporary:
        fail_within(temporary, fails)
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_what_a_kill_leaves_is_hidden_and_names_the_process(tmp_path):
    path = tmp_path / NAME
    for number in (1, 2):
        path.write_text("old")
        child = os.fork()
        if child == 0:
            calls = []

            def sync(descriptor, calls=calls, number=number):
                calls.append(descriptor)
                if len(calls) == number:
                    os.kill(os.getpid(), signal.SIGKILL)

            os.fsync = sync
            try:
                write_text("new", path)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        left = [entry.name for entry in tmp_path.iterdir() if entry != path]
        assert path.read_text() == ("old" if number == 1 else "new")
        assert len(left) == 2 - number
        assert all(TEMPORARY.fullmatch(name) and int(name[-16:-8], 16) == child for name in left)
        for name in left:
            (tmp_path / name).unlink()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_every_file_gets_the_permissions_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text("x", tmp_path / "text")
        write_bytes(b"x", tmp_path / "bytes", durable=False)
        write_json(tmp_path / "json", {})
        write_weights({"x": torch.ones(2)}, tmp_path / "x.safetensors")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in tmp_path.iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize(("durable", "syncs"), [(True, ["file", "folder"]), (False, [])])
def test_a_durable_file_is_synced_before_its_name_and_its_folder_after(tmp_path, durable, syncs):
    kinds, path = [], tmp_path / NAME

    def sync(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        assert path.exists() == is_folder
        kinds.append("folder" if is_folder else "file")

    with mock.patch.object(os, "fsync", sync):
        write_bytes(b"x", path, durable=durable)
    assert kinds == syncs


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / NAME
    with write_atomic(path) as first, write_atomic(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert [*tmp_path.iterdir()] == [path]


def test_a_file_made_elsewhere_takes_the_place_of_an_old_one(tmp_path):
    part, path = tmp_path / "x.part", tmp_path / "x"
    part.write_text("new")
    path.write_text("old")
    move_into_place(part, path)
    assert path.read_text() == "new"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("write", [
    lambda path: write_json(path, {"new": 1}), lambda path: write_weights({"x": torch.ones(2)}, path),
], ids=["json", "weights"])  # fmt: skip
@pytest.mark.parametrize("name", CALLS[2:])
def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path, write, name):
    path = tmp_path / "x"
    write_json(path, {"old": 1})
    with (
        failing(name, 1, OSError(28, "No space left on device")),
        pytest.raises(DiskError, match=r"cannot write .*No space") as caught,
    ):
        write(path)
    assert "\n" not in str(caught.value)
    assert load_json(path) == {"old": 1}
    assert [*tmp_path.iterdir()] == [path]


def test_text_on_one_line():
    assert escape_line("a\nb\x1b[0mé\ud800") == "a\\nb\\x1b[0mé\\ud800"


def test_the_sha256_of_a_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert hash_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
