"""Processes that must agree, and one that hangs: each named in one line. Two ranks on gloo, without torchrun."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from unmask.errors import RankError
from unmask.runtime.distributed import World, check_agreement, check_equal_weights
from unmask.runtime.heartbeat import TICKS, Heartbeat, read_patience
from unmask.runtime.torchrun import record_cause

ALONE = World(0, 1, torch.device("cpu"))


class Group:
    """Two ranks that run the same code, in which `here` is the World."""

    def __init__(self, code: str, **settings: str):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        program = f"""
import os, signal, sys, torch
from unmask.errors import UnmaskError
from unmask.runtime.distributed import *
from unmask.runtime.distributed import check_equal_weights, barrier, check_agreement, sum_over_ranks
try:
    with join_world("cpu") as here:
{textwrap.indent(textwrap.dedent(code), " " * 8)}
except UnmaskError as error:
    print(f"{{type(error).__name__}}: {{error}}", file=sys.stderr)
    sys.exit(error.exit_code)
"""
        self.ranks = []
        for rank in range(2):
            group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment = {**os.environ, **{k: str(v) for k, v in group.items()}, "OMP_NUM_THREADS": "1", **settings}
            pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            self.ranks.append(subprocess.Popen([sys.executable, "-c", program], env=environment, **pipe))

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *error: object) -> None:
        for rank in self.ranks:
            rank.kill()
            rank.communicate()

    def wait(self, rank: int) -> tuple[int, str]:
        """(exit code, stderr) of a rank."""
        error = self.ranks[rank].communicate(timeout=60)[1]
        return self.ranks[rank].returncode, error


def test_ranks_that_agree_go_on_and_each_difference_is_named():
    code = """
    same, mine = {"recipe": "a", "code": "1"}, torch.arange(6.0)
    check_agreement(same, here)
    check_equal_weights({"w": mine, "b": mine[::2].bfloat16()}, 5, here)
    for facts in ({"recipe": "a", "code": f"{here.rank}"}, {"recipe" * (1 + here.rank): "a"}):
        try:
            check_agreement(facts, here)
        except UnmaskError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
    mine[3] += 3e-7 * here.rank  # one bit
    check_equal_weights({"w": mine}, 5, here)
    """
    with Group(code) as group:
        for rank in range(2):
            exit_code, lines = group.wait(rank)
            one, two, three = lines.splitlines()
            start = "start all processes with the same command, code and data"
            assert one == f"ConfigError: rank 1 and rank 0 differ in code; rank {rank} has {rank}: {start}"
            assert two.startswith("ConfigError: rank 1 and rank 0 differ in the names of the facts, so in the code;")
            assert three.startswith("RankError: after step 5 rank 1 and rank 0 hold different weights, so nothing was")
            assert exit_code == 8


def test_a_stopped_rank_is_named_within_the_patience():
    code = """
    print("ready", flush=True)
    if here.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    sum_over_ranks(torch.ones(1), here)
    """
    with Group(code, UNMASK_RANK_TIMEOUT="1") as group:
        code, error = group.wait(0)
        assert code == 8
        assert error.startswith(
            "unmask: rank 1 has not answered for 1 s: it hangs, or its machine is down; run the same"
        )
        assert error.count("\n") == 1


def test_a_rank_that_works_long_is_not_hung():
    """Rank 0 computes for longer than the patience while rank 1 waits."""
    code = """
    import time
    end = time.monotonic() + (3 if here.rank == 0 else 0)
    while time.monotonic() < end:
        torch.ones(64, 64) @ torch.ones(64, 64)
    sum_over_ranks(torch.ones(1), here)
    barrier(here)
    """
    with Group(code, UNMASK_RANK_TIMEOUT="2") as group:
        assert [group.wait(rank) for rank in (0, 1)] == [(0, ""), (0, "")]


def test_the_rank_that_is_left_says_that_another_has_the_cause():
    code = """
    if here.rank == 1:
        os._exit(3)
    sum_over_ranks(torch.ones(1), here)
    """
    with Group(code) as group:
        code, error = group.wait(0)
        assert (code, error.splitlines()[-1].split(",")[0]) == (8, "RankError: rank 0 lost contact with another rank")


class Shelf:
    """A store in memory."""

    def __init__(self):
        self.values = {}

    def set(self, key, value):
        self.values[key] = value.encode()

    def check(self, keys):
        return all(key in self.values for key in keys)

    def get(self, key):
        return self.values[key]


class Gone(Shelf):
    def set(self, key, value):
        raise RuntimeError("connection reset")


def alarms(store, beats=(), patience=0.05):
    """What a heartbeat of rank 0 of 2 said after its thread ended, or after `beats` of rank 1."""
    said = []
    heartbeat = Heartbeat(store, 0, 2, patience, said.append)
    heartbeat.start()
    for beat in beats:
        store.set("beat/1", beat)
        own = store.values.get("beat/0")
        deadline = time.monotonic() + 20
        while store.values.get("beat/0") == own and not said and time.monotonic() < deadline:
            time.sleep(0.001)
    if not beats:
        heartbeat._thread.join(20)
    heartbeat.stop()
    return said


def test_the_heartbeat_counts_beats_and_not_seconds():
    assert alarms(Shelf(), [str(number) for number in range(TICKS + 3)], patience=1) == []
    assert alarms(Shelf(), ["left"] * (TICKS + 3), patience=1) == []
    (line,) = alarms(Shelf())
    assert line.startswith("rank 1 has not answered for 0.05 s")


def test_a_store_that_is_gone_is_said():
    assert alarms(Gone()) == ["rank 0's machine has not answered for 0.05 s: is it down?"]


@pytest.mark.parametrize(("text", "seconds"), [("2.5", 2.5), ("-1", 300), ("soon", 300), ("nan", 300), ("1e9", 300)])
def test_the_patience_is_minutes_unless_the_environment_says(monkeypatch, text, seconds):
    assert read_patience() == 300
    monkeypatch.setenv("UNMASK_RANK_TIMEOUT", text)
    assert read_patience() == seconds


def test_one_process_agrees_with_itself():
    check_agreement({"recipe": "a"}, ALONE)
    check_equal_weights({"w": torch.full((3,), torch.nan)}, 1, ALONE)


def test_torchrun_takes_the_first_cause_and_no_consequence(tmp_path, monkeypatch):
    """torchrun prints the message of the error file with the earliest date in the last block of its output."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    files = [tmp_path / f"rank-{rank}.json" for rank in (0, 1)]
    lines = ["unmask: rank 0 lost contact with another rank", "unmask: step 3: the loss is nan"]
    for file, line in zip(files, lines, strict=True):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        record_cause(line, is_consequence="contact" in line)
    failures = {
        n: ProcessFailure(local_rank=n, pid=1, exitcode=5, error_file=str(file)) for n, file in enumerate(files)
    }
    message = str(ChildFailedError("unmask", failures))
    assert message.split("Root Cause")[1].count(lines[1]) == 1
    assert lines[0] not in message.split("Root Cause")[1]


def test_without_torchrun_no_file_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    record_cause("unmask: x")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "gone" / "x.json"))
    record_cause("unmask: x")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "x.json"))
    record_cause("unmask: x")
    assert json.loads((tmp_path / "x.json").read_text())["message"]["message"] == "unmask: x"
    assert issubclass(RankError, Exception)
