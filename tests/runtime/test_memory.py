"""Freed memory stays with the command line's process: the system is asked for it once."""

import ctypes
import os
import resource
import subprocess
import sys

import pytest
import torch

from unmask import cli
from unmask.errors import ShortageError
from unmask.runtime import shortage
from unmask.runtime.memory import measure_address_space, measure_free_memory

CHILD = """
import resource, sys
import torch
from unmask.runtime.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
faults = []
for _ in range(40):  # the kernel may take pages away in between, for reasons of its own
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


def test_cached_files_of_a_container_count_as_free(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    assert measure_free_memory(tmp_path / "none", tmp_path) == 100
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 250\nactive_file 50\n")
    assert measure_free_memory(tmp_path / "none", tmp_path) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert measure_free_memory(tmp_path / "none", tmp_path) == float("inf")


def make_group(folder, limit, used, stat, *, version):
    folder.mkdir(parents=True, exist_ok=True)
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    for name, text in zip((*names, "memory.stat"), (limit, used, stat), strict=True):
        (folder / name).write_text(f"{text}\n")


@pytest.mark.parametrize("top", ["", "unified"])
def test_the_tightest_group_up_to_the_root_counts(tmp_path, top):
    """As a scheduler or a service sets it, not only a container."""
    groups = tmp_path / "groups"
    groups.write_text("3:cpuset:/elsewhere\n0::/jobs/job:1/step\n")
    make_group(tmp_path / top / "jobs/job:1/step", "max", 10, "inactive_file 5", version=2)
    make_group(tmp_path / top / "jobs/job:1", 1000, 900, "inactive_file 30\nactive_file 20", version=2)
    make_group(tmp_path / top / "jobs", 5000, 900, "inactive_file 0", version=2)
    make_group(tmp_path / top / "elsewhere", 1, 1, "inactive_file 0", version=2)
    assert measure_free_memory(tmp_path / "none", tmp_path, groups) == 150


def test_groups_of_version_1_count_with_all_below_them(tmp_path):
    groups = tmp_path / "groups"
    groups.write_text("4:cpu,memory:/jobs/one\n0::/\n")
    unlimited = 9223372036854771712
    make_group(tmp_path / "memory", unlimited, 900, "total_inactive_file 0", version=1)
    stat = "inactive_file 7\ntotal_inactive_file 30\ntotal_active_file 20"
    make_group(tmp_path / "memory/jobs", 1000, 900, stat, version=1)
    make_group(tmp_path / "memory/jobs/one", unlimited, 5, "total_inactive_file 0", version=1)
    assert measure_free_memory(tmp_path / "none", tmp_path, groups) == 150
    groups.write_text("4:memory:/of/another/namespace\n")  # in a container the top is its own group
    make_group(tmp_path / "memory", 500, 100, "total_inactive_file 0", version=1)
    assert measure_free_memory(tmp_path / "none", tmp_path, groups) == 400


def test_a_limit_on_the_address_space_is_of_each_process(tmp_path, monkeypatch):
    statm = tmp_path / "statm"
    statm.write_text("10 5 5 1 0 5 0\n")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: {resource.RLIMIT_AS: (1 << 20, -1)}[kind])
    assert measure_address_space(statm) == (1 << 20) - 10 * resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, -1))
    assert measure_address_space(statm) == float("inf")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(shortage, "measure_free_memory", lambda: 4000.0)
    monkeypatch.setattr(shortage, "measure_address_space", lambda: 900.0)
    shortage.check_memory(900, torch.device("cpu"), "")
    with pytest.raises(ShortageError):
        shortage.check_memory(901, torch.device("cpu"), "")
