"""Find the table of weights in a torch file, and copy it into a safetensors file, one tensor after the other.

So neither optimizer state nor a second copy is ever in memory.
"""

import json
import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

from .archives import COPY_SIZE, Span, compute_checksum
from .pickles import Refused, Stored

CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "params")
AVERAGES = ("ema", "ema_state_dict", "model_ema", "ema_model", "ema_params")
MAX_NAME = 512
"""Characters of the name of a tensor, with the names of the tables around it."""


@dataclass(frozen=True)
class WeightTable:
    """Tensors by name."""

    tensors: dict[str, Stored]
    opened: tuple[str, ...]
    """The entries that lead to the tensors."""
    left_out: tuple[str, ...]
    """The other entries on the way."""


@dataclass(frozen=True)
class Copy:
    """A tensor to copy: `part` of the file holds it in the order of memory, with its axes sorted by `order`."""

    name: str
    kind: str
    width: int
    shape: list[int]
    order: list[int]
    part: Span
    whole: Span


def find_table(root: Any, container: str | None) -> WeightTable:
    """Return the only table of tensors in known containers, or the one in `container` ("a" or "a/b").

    `container` is ignored if the file holds nothing but the weights.
    """
    opened: list[str] = []
    left_out: list[str] = []
    wanted = container.split("/") if container else []
    for _ in range(4):
        if type(root) is not dict:
            raise Refused(f"holds no table{_describe_path(opened)}; give the file of the weights")
        held = [key for key in root if isinstance(key, str)]
        known = [key for key in held if key in CONTAINERS + AVERAGES and type(root[key]) is dict]
        if not opened and not known and wanted and wanted[0] not in held and _holds_tensors(root):
            wanted = []  # the file holds only the weights, so there is no entry to choose
        if not wanted and not known:
            return WeightTable(_check_tensors(root, _describe_path(opened)), tuple(opened), tuple(left_out))
        if wanted and wanted[0] not in held:
            raise Refused(f"holds no {wanted[0]!r}{_describe_path(opened)}, but {_list_some(held)}")
        if not wanted and len(known) > 1:
            raise Refused(f"holds weights in {' and '.join(known)}: choose one, container={known[0]!r} for example")
        chosen = wanted.pop(0) if wanted else known[0]
        left_out += ["/".join([*opened, key]) for key in held if key != chosen]
        opened.append(chosen)
        root = root[chosen]
    raise Refused(f"holds no table of tensors{_describe_path(opened)}; give the file of the weights")


def _holds_tensors(table: dict[Any, Any]) -> bool:
    return any(type(entry) is Stored for entry in table.values())


def _check_tensors(table: dict[Any, Any], where: str) -> dict[str, Stored]:
    if not _holds_tensors(table):
        held = [key for key in table if isinstance(key, str)]
        raise Refused(f"holds {_list_some(held)}{where}, and no entry that is known to hold weights")
    for name, entry in table.items():
        if type(name) is not str or not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise Refused(f"holds a tensor whose name is not a text of 1 to {MAX_NAME} printable characters{where}")
        if type(entry) is not Stored:
            raise Refused(f"holds {name!r} among the tensors{where}, which is {type(entry).__name__} and not a tensor")
    return table


def _describe_path(opened: list[str]) -> str:
    return f" in {'/'.join(opened)}" if opened else ""


def _list_some(names: list[str]) -> str:
    return ", ".join(name[:40] for name in names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "-"


def plan(tensors: dict[str, Stored], parts: dict[str, Span], size: int) -> list[Copy]:
    """Return what to copy from where, the widest numbers first.

    Raises:
        Refused: A tensor is a view that repeats numbers, has gaps or lies outside its storage.
    """
    copies = [_plan_copy(name, stored, parts) for name, stored in tensors.items()]
    total = sum(copy.part.size for copy in copies)
    if total > 2 * size:
        raise Refused(f"its tensors take {total} bytes of a file that has {size}: views of each other; save copies")
    return sorted(copies, key=lambda copy: -copy.width)


def _plan_copy(name: str, stored: Stored, parts: dict[str, Span]) -> Copy:
    storage, shape = stored.storage, stored.shape
    if storage.key not in parts:
        raise Refused(f"lacks the numbers of {name}; get the file again")
    numel = math.prod(shape)
    if not numel:
        raise Refused(f"holds {name} with shape {list(shape)}, which is empty")
    order = sorted(range(len(shape)), key=lambda axis: (-stored.stride[axis], shape[axis] == 1))
    step = 1
    for axis in reversed(order):
        if shape[axis] > 1 and stored.stride[axis] != step:
            problem = "repeats numbers" if stored.stride[axis] < step else "leaves numbers out"
            raise Refused(f"holds {name} as a view that {problem}: strides {list(stored.stride)}; save a copy of it")
        step *= shape[axis]
    if stored.offset + numel > storage.numel:
        raise Refused(f"holds {name} as numbers {stored.offset} to {stored.offset + numel} of {storage.numel}")
    whole = parts[storage.key]
    part = Span(whole.start + stored.offset * storage.width, numel * storage.width, whole.crc)
    return Copy(name, storage.kind, storage.width, [shape[axis] for axis in order], order, part, whole)


def write_tensors(file: BinaryIO, copies: list[Copy], out: BinaryIO) -> None:
    """Write a safetensors file of the tensors, with axes in the order of memory, and verify their checksums."""
    header: dict[str, Any] = {}
    at = 0
    for copy in copies:
        header[copy.name] = {"dtype": copy.kind, "shape": copy.shape, "data_offsets": [at, at + copy.part.size]}
        at += copy.part.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    out.write(struct.pack("<Q", len(text)) + text)
    checked = set()
    for copy in copies:
        crc = _copy_bytes(file, copy, out)
        if not copy.whole.crc or copy.whole.start in checked:
            continue
        if (crc if copy.part.size == copy.whole.size else compute_checksum(file, copy.whole)) != copy.whole.crc:
            raise Refused(f"holds {copy.name} damaged: its checksum differs; get the file again")
        checked.add(copy.whole.start)
    out.flush()


def _copy_bytes(file: BinaryIO, copy: Copy, out: BinaryIO) -> int:
    """Copy the bytes of a tensor and return their checksum."""
    file.seek(copy.part.start)
    crc, left = 0, copy.part.size
    while left:
        block = file.read(min(left, COPY_SIZE))
        if not block:
            raise Refused(f"ends within {copy.name}; get the file again")
        if copy.kind == "BOOL" and block.translate(None, b"\0\1"):
            raise Refused(f"holds {copy.name} with truth values that are neither 0 nor 1")
        out.write(block)
        crc, left = zlib.crc32(block, crc), left - len(block)
    return crc
