"""What a figure must be quoted with: the command, the commit of this code, and the machine."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from unmask import __version__


def commit() -> str:
    """The git commit of this code, "+" appended if it was changed since; or the package's version."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", str(here)], cwd=here, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return f"unmask {__version__}"
    return head.stdout.strip() + ("+" if changed.returncode else "")


def environment(device: torch.device) -> dict[str, str | int]:
    """What a figure must be quoted with, and what bitwise repetition depends on."""
    on_cpu = torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    return {
        "command": " ".join([Path(sys.argv[0]).name.replace("__main__.py", "unmask"), *sys.argv[1:]]),
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else str(on_cpu),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
