"""However a command ends, it says one line and leaves with the code of the table in the README."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from unmask import cli
from unmask.cli.ending import finish_in_one_line
from unmask.data.image_files import open_image
from unmask.data.shards.dataset import Shard, is_sound
from unmask.errors import DataError, RankError, ShortageError
from unmask.runtime.shortage import describe_shortage
from unmask.runtime.termination import ENDING


def run(*arguments, **settings):
    """(code, stdout, stderr) of `python -m unmask` in a process of its own."""
    command = [sys.executable, "-m", "unmask", *arguments]
    done = subprocess.run(command, text=True, check=False, timeout=120, **{"stderr": subprocess.PIPE, **settings})
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("module", ["torch", "tyro"])
def test_ctrl_c_during_the_imports_is_one_line(tmp_path, module):
    """A module that the imports reach early (torch) or late (tyro), and that gets the signal as it is imported."""
    (tmp_path / f"{module}.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    assert run("models", env={**os.environ, "PYTHONPATH": path}) == (130, None, "unmask: interrupted\n")


def test_a_reader_that_left_ends_the_command_with_141_and_no_word():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run("models", stdout=writer) == (141, None, "")
    finally:
        os.close(writer)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
@pytest.mark.parametrize("command", ["--help", "schedule"])
def test_output_that_cannot_be_written_is_named(command):
    with open("/dev/full", "w") as full:
        code, _, error = run(command, stdout=full)
    assert (code, error) == (
        6,
        "unmask: the output: No space left on device; what was written before is kept\n",
    )


def end(monkeypatch, capsys, act, command="models"):
    """(code, line) of a command that does `act`."""
    monkeypatch.setitem(cli.COMMANDS, command, lambda arguments: act())
    with pytest.raises(SystemExit) as stop:
        cli.main([command])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return stop.value.code, error.removeprefix("unmask: ").rstrip("\n")


def throw(error):
    raise error


SHORTAGES = [
    (MemoryError(), "not enough memory"),
    (MemoryError("Unable to allocate 2.00 GiB for an array"), "not enough memory for 2.00 GiB more"),
    (OSError(12, "Cannot allocate memory"), "not enough memory"),
    (
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to "
                     "allocate 4398046511104 bytes. Error code 12"),
        "not enough memory for 4,096.0 GiB more",
    ),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."), "not enough memory for 2.00 MiB more"),
    (RuntimeError("can't start new thread"), "not enough memory"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "line"), SHORTAGES)
def test_a_shortage_of_memory_is_7_and_says_what_to_lower(monkeypatch, capsys, error, line):
    assert describe_shortage(error) == line
    advice = "raise --training.accumulate, or lower --training.batch-size or the sizes under --model"
    assert end(monkeypatch, capsys, lambda: throw(error), "train") == (7, f"{line}: {advice}")


@pytest.mark.parametrize("make", [lambda: torch.empty(1 << 60), lambda: np.empty(1 << 58)])
def test_real_shortages_are_recognised(make):
    with pytest.raises((MemoryError, RuntimeError)) as error:
        make()
    assert "not enough memory" in describe_shortage(error.value)


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "models", lambda arguments: throw(RuntimeError("sizes do not match")))
    with pytest.raises(RuntimeError, match="sizes do not match"):
        cli.main(["models"])
    assert describe_shortage(ValueError("out of memory")) is None


@pytest.mark.parametrize(
    ("act", "code", "line"),
    [
        (lambda: throw(DataError("x is damaged")), 3, "x is damaged"),
        (lambda: throw(RankError("rank 1 hangs")), 8, "rank 1 hangs"),
        (lambda: throw(KeyboardInterrupt()), 130, "interrupted"),
        (lambda: signal.raise_signal(signal.SIGTERM), 143, "stopped by SIGTERM"),
        (lambda: signal.raise_signal(signal.SIGUSR1), 128 + signal.SIGUSR1, "stopped by SIGUSR1"),
        (lambda: signal.raise_signal(signal.SIGUSR2), 128 + signal.SIGUSR2, "stopped by SIGUSR2"),
        (lambda: signal.raise_signal(signal.SIGHUP), 129, "stopped by SIGHUP"),
        (lambda: throw(OSError(5, "Input/output error", "a.bin")), 6, "a.bin: Input/output error; what was written"),
        (
            lambda: throw(OSError(24, "Too many open files", "a")),
            7,
            "a: too many open files: raise the limit, as with ulimit -n",
        ),
    ],
)
def test_codes_and_lines(monkeypatch, capsys, act, code, line):
    before = [signal.getsignal(number) for number in ENDING]
    found, said = end(monkeypatch, capsys, act)
    assert found == code
    assert said.startswith(line)
    assert [signal.getsignal(number) for number in ENDING] == before


@pytest.mark.parametrize(("number", "line"), [(24, "a.png: too many open files: raise"), (12, "a.png: not enough mem")])
def test_a_limit_of_the_process_is_not_blamed_on_a_file(tmp_path, monkeypatch, number, line):
    """Otherwise a picture would be left out of the data, and a sound shard would be written again."""

    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number), "a.png")

    monkeypatch.setattr("unmask.data.shards.dataset.hash_file", refuse)
    shard = Shard(file="train-00000.tokens.npy", rows=1, sha256="0" * 64, labels=None)
    with pytest.raises(ShortageError, match=line):
        is_sound(Path("codes"), shard)
    (tmp_path / "a.png").write_text("not empty")
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ShortageError, match=line):
        open_image(tmp_path / "a.png")


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch):
    """As nohup does it for SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with finish_in_one_line("train"):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_path_that_is_not_utf_8_is_refused_at_the_start(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "digits", "--out", os.fsdecode(b"runs/caf\xe9")])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "unmask: runs/caf\\udce9: this is not UTF-8; rename the file or the folder\n"
