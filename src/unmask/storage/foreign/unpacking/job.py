"""Run the child process: set limits, read one file, and exit without running anything else."""

import json
import os
import stat
import sys
from typing import Any, NoReturn

from .archives import open_torch
from .pickles import Refused
from .tables import find_table, plan, write_tensors

MAX_MEMORY = 1 << 30
"""Bytes of address space for every file size, because no tensor is ever in memory."""
ATTEMPT = 97
"""Exit status of a child that tried to do more than read and write its files."""
ALLOWED_EVENTS = ("object.", "cpython.", "gc.", "sys.excepthook", "sys.unraisablehook", "sys._getframe")


def run_job() -> NoReturn:
    """Run `job IN OUT ANSWER CONTAINER`: write the answer as JSON, and exit with `os._exit`."""
    source, out, answer, container = sys.argv[1:]
    with open(out, "xb") as written, open(answer, "xb") as told:
        said = _do(source, written, container or None)
        told.write(json.dumps(said).encode())
    os._exit(0)


def _do(source: str, written: Any, container: str | None) -> dict[str, Any]:
    try:
        with open(source, "rb", buffering=0, opener=open_without_blocking) as raw:
            facts = os.fstat(raw.fileno())
            if not stat.S_ISREG(facts.st_mode):
                return {"refused": "not a regular file"}
            set_limits(facts.st_size)
            sys.addaudithook(forbid)
            root, parts = open_torch(raw, facts.st_size)
            table = find_table(root, container)
            copies = plan(table.tensors, parts, facts.st_size)
            write_tensors(raw, copies, written)
    except Refused as refusal:
        return {"refused": str(refusal)}
    except MemoryError:
        return {"refused": f"its description takes more than {MAX_MEMORY >> 20} MiB of memory"}
    except OSError as error:
        return {"refused": error.strerror or "cannot be read", "errno": error.errno}
    moved = {copy.name: copy.order for copy in copies if copy.order != sorted(copy.order)}
    return {"opened": table.opened, "left_out": [name[:200] for name in table.left_out[:100]], "moved": moved}


def open_without_blocking(path: str, flags: int) -> int:
    """Open a file without blocking, so that a pipe in its place cannot make us wait forever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def set_limits(size: int) -> None:
    """Limit memory, time and written bytes to what a file of `size` bytes may need; forbid processes and core files.

    Windows has no such limits: there only the time that the parent waits is bounded.
    """
    if sys.platform == "win32":
        return
    import resource

    seconds = 10 + size // (50 << 20)
    wanted = {"AS": MAX_MEMORY, "CPU": seconds, "FSIZE": 2 * size + (64 << 20), "NPROC": 0, "CORE": 0}
    for name, value in wanted.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is None or (name == "AS" and sys.platform == "darwin"):  # macOS has no working limit
            continue
        _, most = resource.getrlimit(kind)
        bound = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (bound, bound))


def forbid(event: str, arguments: tuple[Any, ...]) -> None:
    """Exit on every other event (an audit hook): files are open and modules loaded, so it comes from the file."""
    if not event.startswith(ALLOWED_EVENTS):
        os.write(2, f"attempted {event} {arguments!r:.200}\n".encode("utf-8", "backslashreplace"))
        os._exit(ATTEMPT)
