"""The record beside each metric names the code and the machine that produced it."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import unmask
from unmask.runtime.provenance import describe_environment, describe_processor

ONE = "processor\t: 0\ncpu family\t: {}\nmodel\t\t: {}\nmodel name\t: AMD EPYC\nflags\t\t: a:b c\n\n"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (ONE.format(25, 17) + ONE.format(26, 2), "AMD EPYC (family 25, model 17)"),
        (ONE.format(26, 2), "AMD EPYC (family 26, model 2)"),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n\n", platform.machine()),
        ("", platform.machine()),
        (None, platform.processor() or platform.machine()),
    ],
    ids=["two cores", "another of the same name", "as on ARM", "empty", "another system"],
)
def test_processors_of_one_name_are_told_apart(written, name, tmp_path):
    info = tmp_path / "cpuinfo"
    if written is not None:
        info.write_text(written)
    assert describe_processor(info) == name


def test_an_environment_is_known_whatever_this_torch_knows_of_the_cpu(monkeypatch):
    """torch 2.10 has no torch.cpu.get_capabilities."""
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    told = describe_environment(torch.device("cpu"))
    assert re.fullmatch(r"[0-9a-f]{40}\+?|unmask .+", str(told["commit"]))
    assert all(told[key] for key in ("command", "torch", "python", "hardware", "threads", "processes"))


def test_an_installed_copy_does_not_report_the_repository_around_it(tmp_path):
    """As in a virtual environment inside the user's own repository: git ignores or does not track the package."""
    copy = tmp_path / ".venv/site/unmask"
    (copy / "runtime").mkdir(parents=True)
    shutil.copy(Path(unmask.__file__).parent / "runtime/provenance.py", copy / "runtime")
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@here"]
    (tmp_path / "mine.txt").write_text("mine")
    for words in (["init", "-q"], ["add", "mine.txt"], ["commit", "-qm", "Mine"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    code = "import provenance; print(provenance.find_commit())"
    env = {**os.environ, "PYTHONPATH": str(copy / "runtime")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("unmask "), done.stdout
    subprocess.run([*git, "add", "-f", ".venv"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-qm", "Vendor"], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == head.stdout
