"""Freed memory stays with the command line's process: the system is asked for it once."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from unmask import cli

CHILD = """
import resource, sys
import torch
from unmask.runtime.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults), max(faults))
"""


def faults(how):
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))
    }
    code = [sys.executable, "-c", CHILD, how]
    told = subprocess.run(code, check=True, capture_output=True, text=True, timeout=100, env=env)
    return [int(number) for number in told.stdout.split()]


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="page faults of freed memory: only glibc keeps it"
)
def test_memory_is_asked_for_once():
    """Without it, the same 64 MiB are new each time; with large pages a fault may be 2 MiB."""
    fewest, _ = faults("given back")
    assert fewest >= 16
    fewest, most = faults("kept")
    assert fewest <= 2
    assert most >= 16


def test_every_command_runs_so(monkeypatch, capsys):
    told = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: told.append(1))
    cli.main(["models"])
    assert told == [1]
    assert "besnier-256" in capsys.readouterr().out


def test_where_there_is_no_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr("unmask.runtime.memory.ctypes.CDLL", lambda _: object())
    cli.keep_freed_memory()
    monkeypatch.setattr("unmask.runtime.memory.sys.platform", "darwin")
    monkeypatch.setattr("unmask.runtime.memory.ctypes.CDLL", None)
    cli.keep_freed_memory()
    assert torch.ones(3).sum() == 3
