"""Record the command, the commit and the hardware of a result."""

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def find_commit() -> str:
    """Return the git commit of this code, with "+" if files changed since.

    Return the package version without git, and for a package that is installed inside a repository of something else,
    which does not track this file.
    """
    here = Path(__file__).parent
    try:
        tracked = ["git", "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, cwd=here, capture_output=True, check=True)
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", str(here)], cwd=here, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return f"unmask {version('unmask')}"
    return head.stdout.strip() + ("+" if changed.returncode else "")


def describe_version() -> str:
    """Return the version of the package and, in a checkout, the commit."""
    installed, commit = f"unmask {version('unmask')}", find_commit()
    return installed if commit == installed else f"{installed} (commit {commit})"


def describe_processor(info: Path = Path("/proc/cpuinfo")) -> str:
    """Return the name of the CPU, on Linux with its family and model: clouds use one name for very different CPUs."""
    if not info.is_file():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in info.read_text(errors="replace").split("\n\n")[0].splitlines())
    facts = {name.strip(): value.strip() for name, _, value in lines}
    if "model name" not in facts:
        return platform.machine()
    return f"{facts['model name']} (family {facts.get('cpu family')}, model {facts.get('model')})"


def describe_environment(device: "torch.device") -> dict[str, str | int]:
    """Return the command, commit, versions, hardware, threads and processes: bitwise repetition depends on them."""
    import torch  # the version is found without it

    return {
        "command": " ".join([Path(sys.argv[0]).name.replace("__main__.py", "unmask"), *sys.argv[1:]]),
        "commit": find_commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else describe_processor(),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
