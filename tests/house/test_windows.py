"""Every module is imported, and a model samples, on a system that has only what Windows has."""

import subprocess
import sys
from pathlib import Path

BARE = """
import os, signal, subprocess, sys
import filelock, gradio, matplotlib.pyplot, PIL.Image, torch, torch.distributed.fsdp, torch.nn.parallel
for module in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[module] = None  # importing it raises ImportError
for name in ("O_NOFOLLOW", "O_NONBLOCK", "pread", "pwrite", "geteuid", "getuid", "sched_getaffinity", "kill"):
    delattr(os, name)
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL"):
    delattr(signal, name)
sys.platform = "win32"

import importlib, pathlib, pkgutil
import unmask
for found in pkgutil.walk_packages(unmask.__path__, "unmask."):
    if "unpacking" not in found.name and "pixels.job" not in found.name and not found.name.endswith("__main__"):
        importlib.import_module(found.name)

import unmask.cli
unmask.cli.main(["sample", sys.argv[1], "--num", "1", "--steps", "2", "--out", sys.argv[2]])
"""


def test_everything_is_imported_and_samples_without_posix(tmp_path: Path) -> None:
    export = Path(__file__).parents[1] / "fixtures" / "earlier" / "export"
    subprocess.run([sys.executable, "-c", BARE, str(export), str(tmp_path / "out.png")], check=True)
    assert (tmp_path / "out.png").is_file()
