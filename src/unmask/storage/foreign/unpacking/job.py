"""The child process itself: limits first, then one file, then an end that runs nothing."""

import json
import os
import resource
import stat
import sys
from typing import Any, NoReturn

from .archives import open_torch
from .pickles import Refused
from .tables import find_table, plan, write_tensors

MAX_MEMORY = 1 << 30
"""Bytes of address space, whatever the file's size: no tensor is ever in memory."""
ATTEMPT = 97
"""Exit status of a child that was about to do something besides reading and writing its two files."""
ALLOWED_EVENTS = ("object.", "cpython.", "gc.", "sys.excepthook", "sys.unraisablehook", "sys._getframe")


def main() -> NoReturn:
    """`job IN OUT ANSWER CONTAINER`: answer with JSON, and leave by `os._exit`."""
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
    """Opens a pipe that was put in the file's place without waiting for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def set_limits(size: int) -> None:
    """Bound memory, time and the bytes written to what a file of this size may need; no processes, no core file."""
    seconds = 10 + size // (50 << 20)
    wanted = {"AS": MAX_MEMORY, "CPU": seconds, "FSIZE": 2 * size + (64 << 20), "NPROC": 0, "CORE": 0}
    for name, value in wanted.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is None or (name == "AS" and sys.platform == "darwin"):  # which has none that works
            continue
        _, most = resource.getrlimit(kind)
        bound = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (bound, bound))


def forbid(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: all files are open and all modules loaded, so whatever is attempted now comes from the file."""
    if not event.startswith(ALLOWED_EVENTS):
        os.write(2, f"attempted {event} {arguments!r:.200}\n".encode("utf-8", "backslashreplace"))
        os._exit(ATTEMPT)
