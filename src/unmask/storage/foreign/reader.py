"""Read foreign weight files; no other module does.

The first bytes of a file tell its format. Before a tensor is made, checks ensure that nothing in the file can run code
or exhaust the machine.

A torch file is never unpickled. A child process with limits reads the pickle as data (`unpacking`) and copies only the
weights into a safetensors file, which this process maps. `torch.load` with `weights_only=True` is often called safe; it
was broken twice (CVE-2025-32434, CVE-2026-24747), and it limits neither memory nor time.
"""

import errno
import json
import math
import os
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unmask.errors import CheckpointError, DiskError, describe_os_error
from unmask.storage.files import escape_line
from unmask.storage.foreign.unpacking.job import open_without_blocking
from unmask.storage.foreign.unpacking.pickles import MAX_AXES
from unmask.storage.foreign.unpacking.tables import MAX_NAME

MAX_TENSORS = 20_000
MAX_HEADER = 4 << 20
KINDS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Types of safetensors that are read, and the bytes of one number."""
PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that wrappers for many GPUs and compiled models add to every name."""
PROGRAM = "import sys; sys.path.append(sys.argv.pop(1)); from unpacking.job import run_job; run_job()"
LIBRARIES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
"""The only environment variables that a child gets: it must see no keys or tokens."""
PATIENCE = 60
"""Seconds that a child may take, in addition to those for the size of its file."""


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """The content of a foreign file."""

    tensors: dict[str, Tensor]
    opened: tuple[str, ...] = ()
    """The containers in the file that hold the weights."""
    left_out: tuple[str, ...] = ()
    """The other entries beside them."""


def open_foreign(path: Path, *, container: str | None = None) -> dict[str, Tensor]:
    """Map the tensors of a .safetensors, torch (.pth, .pt, .ckpt, .bin) or flax file into memory.

    Writing to the tensors does not change the file.

    Args:
        container: The entry that holds the weights, in a torch file with entries.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe or of another format.
        DiskError: The temporary folder has no room for a copy.
    """
    return read_foreign(path, container=container).tensors


def read_foreign(path: Path, *, container: str | None = None) -> Foreign:
    """Read a file as `open_foreign` does, and also return what was opened and left out."""
    path = Path(path)
    head, size = _read_head(path)
    is_zip = head[:4] == b"PK\x03\x04"
    is_safetensors = head[8:9] == b"{" and not is_zip
    is_torch = is_zip or (head[0] == 0x80 and not is_safetensors)
    if is_safetensors:
        found = Foreign(tensors=_read_safetensors(path))
    elif is_torch:
        found = _read_torch(path, size, container)
    elif head[:1] in (b"\xde", b"\xdf") or 0x81 <= head[0] <= 0x8F:  # tables in msgpack
        from unmask.storage.foreign.flax import read_flax

        found = Foreign(tensors=read_flax(path))
    else:
        raise _make_error(
            path, "neither safetensors, torch nor flax; give one of .safetensors, .pth, .ckpt, .bin, msgpack"
        )
    return Foreign(tensors=_strip_prefixes(path, found.tensors), opened=found.opened, left_out=found.left_out)


def _read_head(path: Path) -> tuple[bytes, int]:
    """Return the first 16 bytes and the size of a regular file."""
    try:
        with open(path, "rb", opener=open_without_blocking) as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise _make_error(path, "not a regular file; give the file of the weights")
            head = file.read(16)
    except (OSError, ValueError) as error:
        reason = describe_os_error(error)
        raise _make_error(path, f"cannot be read ({reason}); give the file of the weights") from error
    if len(head) < 9:
        raise _make_error(path, f"only {len(head)} bytes; get the file again")
    return head, facts.st_size


def _make_error(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{escape_line(str(path))}: {escape_line(reason)}")


def _strip_prefixes(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the prefixes of wrappers removed from their names."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = name
        while short.startswith(PREFIXES):
            short = short.partition(".")[2]
        if not short.isprintable() or not short:
            raise _make_error(path, f"a tensor is named {name[:100]!r}, which is not a printable name")
        if short in found:
            raise _make_error(path, f"two tensors are {short} once {' and '.join(PREFIXES)} are left out")
        found[short] = tensor
    return found


# -- torch --


def _read_torch(path: Path, size: int, container: str | None) -> Foreign:
    try:
        with tempfile.TemporaryDirectory(prefix="unmask-weights-") as name:
            answer = _unpack(path, size, container, Path(name))
            tensors = _read_safetensors(Path(name) / "weights", path)  # mapped, so the file may be removed
    except OSError as error:
        where = escape_line(tempfile.gettempdir())
        raise DiskError(f"{where}: {describe_os_error(error)}; free room for a copy, or set TMPDIR") from error
    for moved, order in answer["moved"].items():
        tensors[moved] = tensors[moved].permute([order.index(axis) for axis in range(len(order))])
    return Foreign(tensors=tensors, opened=tuple(answer["opened"]), left_out=tuple(answer["left_out"]))


def _unpack(path: Path, size: int, container: str | None, folder: Path) -> dict[str, Any]:
    """Run a child that copies the weights to `folder`/weights, and return its answer."""
    code = [sys.executable, "-I", "-S", "-c", PROGRAM, str(Path(__file__).parent)]
    files = [os.path.abspath(path), str(folder / "weights"), str(folder / "answer"), container or ""]
    seconds = PATIENCE + size / (10 << 20)
    try:
        with open(folder / "errors", "wb") as errors:
            done = subprocess.run(
                [*code, *files],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={name: os.environ[name] for name in LIBRARIES if name in os.environ},
                cwd=folder,
                timeout=seconds,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        raise _make_error(path, f"could not be read in {seconds:.0f} s; get the file again") from error
    try:
        answer: dict[str, Any] | None = json.loads((folder / "answer").read_bytes()) if done.returncode == 0 else None
    except (OSError, ValueError):
        answer = None
    if answer is None:
        said = (folder / "errors").read_bytes()[-1000:].decode("utf-8", "replace").strip().splitlines() or ["nothing"]
        raise _make_error(path, f"the process that read it ended with status {done.returncode}: {said[-1][-200:]}")
    if answer.get("errno") == errno.ENOSPC:
        raise OSError(errno.ENOSPC, answer["refused"])
    if "refused" in answer:
        advice = "" if ";" in answer["refused"] else "; get the file again, or a .safetensors file of the same weights"
        raise _make_error(path, answer["refused"] + advice)
    return answer


# -- safetensors --


def _read_safetensors(path: Path, shown: Path | None = None) -> dict[str, Tensor]:
    shown = shown or path
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER:
                raise _make_error(shown, f"its header has {length} bytes, and {MAX_HEADER} are possible")
            header = json.loads(file.read(length), object_pairs_hook=_refuse_repeats)
        _check_header(header, size - 8 - length)
        tensors = load_file(path)
    except RecursionError as error:
        raise _make_error(shown, "its header is nested too deep; get the file again") from error
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise _make_error(shown, f"damaged or not a safetensors file ({error}); get the file again") from error
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bool and tensor.view(torch.uint8).max() > 1:
            raise _make_error(shown, f"{name} holds truth values that are neither 0 nor 1; get the file again")
    return tensors


def _check_header(header: Any, size: int) -> None:
    """Raise ValueError unless the tensors fill `size` bytes without gaps, each with the bytes of its shape."""
    if not isinstance(header, dict) or not 0 < len(header) <= MAX_TENSORS:
        raise ValueError(f"no table of 1 to {MAX_TENSORS} tensors")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    spans = []
    for name, entry in entries.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"} or len(name) > MAX_NAME:
            raise ValueError(f"the entry {name[:100]!r} is not type, shape and place")
        shape, offsets = entry["shape"], entry["data_offsets"]
        if entry["dtype"] not in KINDS:
            raise ValueError(f"{name} is of type {str(entry['dtype'])[:40]}; {', '.join(KINDS)} can be read")
        if not _are_counts(shape) or not _are_counts(offsets) or len(shape) > MAX_AXES or len(offsets) != 2:
            raise ValueError(f"{name} has no shape of up to {MAX_AXES} sizes or no place")
        if math.prod(shape) * KINDS[entry["dtype"]] != offsets[1] - offsets[0] or not math.prod(shape):
            raise ValueError(f"{name} with shape {shape} has {offsets[1] - offsets[0]} bytes")
        spans.append(tuple(offsets))
    ends = [0, *(end for _, end in sorted(spans))]
    if ends[:-1] != [start for start, _ in sorted(spans)] or ends[-1] != size:
        raise ValueError("its tensors overlap, leave gaps, or do not end with the file")


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name is repeated")
    return table


def read_tensors(path: Path, source: str) -> dict[str, Tensor]:
    """Return the tensors of a foreign file by name, without running code of the file.

    Args:
        source: Where to get a good file, for the error message.

    Raises:
        CheckpointError: As `open_foreign`.
    """
    try:
        return open_foreign(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; get {source}") from error
