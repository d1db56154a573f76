"""Read weights from msgpack files of flax (`flax.serialization.to_bytes`), without JAX and without unpacking the file.

The file is mapped into memory. Its whole structure is checked before the first tensor is made. Of msgpack, only what
weights need is understood: tables by name, arrays, and arrays in numbered chunks.
"""

import math
import mmap
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unmask.errors import CheckpointError
from unmask.storage.files import escape_line
from unmask.storage.foreign.unpacking.pickles import MAX_AXES
from unmask.storage.foreign.unpacking.tables import MAX_NAME

MAX_DEPTH = 32
MAX_ENTRIES = 20_000
NDARRAY = 1
"""The type code of an array in flax. The other codes, for complex numbers and NumPy scalars, are not weights."""
CHUNKED = "__msgpack_chunked_array__"

FLOATS = ("bfloat16", "float16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES: dict[str, torch.dtype] = {kind: getattr(torch, kind) for kind in (*FLOATS, *INTEGERS)}

# First byte of an object -> its kind, and how many bytes hold its size or value (github.com/msgpack/msgpack).
SIZED = {0xC4: "bytes", 0xC7: "typed", 0xCC: "integer", 0xD9: "text"}
FOLLOWED = {first + i: (kind, 1 << i) for first, kind in SIZED.items() for i in range(4 if kind == "integer" else 3)}
FOLLOWED |= {0xDC: ("list", 2), 0xDD: ("list", 4), 0xDE: ("table", 2), 0xDF: ("table", 4)}


@dataclass(frozen=True)
class Array:
    """The position of an array in the file: `parts` are the (offset, bytes) of its numbers."""

    at: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Number:
    """A plain number; only the shape of a chunked array contains them."""

    at: int
    value: int


Leaves = dict[str, Array | Number]


def read_flax(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a flax file. A name is the path from the top, joined by "/", without a first "params/".

    A tensor with aligned bytes is a view of the mapped file, and writing to it does not change the file. Other tensors
    are copies.

    Raises:
        CheckpointError: The file is missing or damaged; raised before a tensor is made.
    """
    shown = escape_line(str(path))
    if not path.is_file():
        raise CheckpointError(f"{shown}: no such file; give a flax msgpack file")
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:  # an empty file gives a ValueError
        raise CheckpointError(
            f"{shown}: cannot be read ({escape_line(str(error))}); give a flax msgpack file"
        ) from error
    arrays: dict[str, Array] = {}
    reader = _Reader(data, shown)
    for name, leaf in reader.read_all().items():
        short = name.removeprefix("params/")
        if not isinstance(leaf, Array):
            raise reader.make_error(leaf.at, f"{escape_line(short)} is a plain number and not an array")
        if short in arrays:
            raise reader.make_error(leaf.at, f"there are two of {escape_line(short)}")
        arrays[short] = leaf
    return {name: _make_tensor(data, array) for name, array in arrays.items()}


def _make_tensor(data: mmap.mmap, array: Array) -> Tensor:
    (start, nbytes), *more = array.parts
    if not more and start % array.dtype.itemsize == 0:
        count = nbytes // array.dtype.itemsize
        return torch.frombuffer(data, dtype=array.dtype, count=count, offset=start).reshape(array.shape)
    whole = torch.empty(sum(n for _, n in array.parts), dtype=torch.uint8)
    to = 0
    for start, nbytes in array.parts:
        whole[to : to + nbytes] = torch.frombuffer(data, dtype=torch.uint8, count=nbytes, offset=start)
        to += nbytes
    return whole.view(array.dtype).reshape(array.shape)


class _Reader:
    """Read from byte `at` on. No size in the file is trusted before it is checked against the bytes that are left."""

    def __init__(self, data: mmap.mmap, shown: str):
        self.data, self.shown, self.at, self.entries = data, shown, 0, 0

    def make_error(self, at: int, what: str) -> CheckpointError:
        return CheckpointError(f"{self.shown}: byte {at}: {what}; fetch the file again, as flax.serialization wrote it")

    def take(self, size: int) -> int:
        """Skip the next `size` bytes and return where they start."""
        start, left = self.at, len(self.data) - self.at
        if size > left:
            raise self.make_error(start, f"{size} bytes should follow, and {left} are left")
        self.at += size
        return start

    def read_head(self) -> tuple[str, int]:
        """Read the kind of the next object, and its size or value."""
        start = self.take(1)
        byte = self.data[start]
        if byte < 0x80:
            return "integer", byte
        if byte < 0xC0:
            return ("table", byte & 15) if byte < 0x90 else ("list", byte & 15) if byte < 0xA0 else ("text", byte & 31)
        if byte == 0xC3:  # True, which marks chunked arrays
            return "integer", 1
        if 0xD4 <= byte <= 0xD8:
            return "typed", 1 << (byte - 0xD4)
        if byte not in FOLLOWED:
            raise self.make_error(start, f"code 0x{byte:02x} does not occur in files of weights")
        kind, width = FOLLOWED[byte]
        value = self.take(width)
        return kind, int.from_bytes(self.data[value : value + width], "big")

    def expect(self, *kinds: str) -> int:
        """Return the size or value of the next object, which must be of one of these kinds."""
        start = self.at
        kind, size = self.read_head()
        if kind not in kinds:
            raise self.make_error(start, f"{kind} where {kinds[0]} should be")
        return size

    def read_text(self, limit: int) -> str:
        start, size = self.at, self.expect("text", "bytes")
        if not 0 < size <= limit:
            raise self.make_error(start, f"a name of {size} bytes, and 1 to {limit} are possible")
        first = self.take(size)
        try:
            return self.data[first : self.at].decode()
        except UnicodeDecodeError as error:
            raise self.make_error(start, "a name that is not UTF-8") from error

    def read_all(self) -> Leaves:
        """Read the whole file."""
        leaves = self.read_table("", self.expect("table"), MAX_DEPTH)
        if self.at != len(self.data):
            raise self.make_error(self.at, f"{len(self.data) - self.at} bytes after the end of the weights")
        return leaves

    def read_table(self, name: str, size: int, depth: int) -> Leaves:
        """Read `size` entries at any depth below the table `name`, and join chunked arrays."""
        self.entries += size
        if not depth or self.entries > MAX_ENTRIES:
            limit = f"more than {MAX_ENTRIES} entries" if depth else f"tables nested more than {MAX_DEPTH} deep"
            raise self.make_error(self.at, limit)
        found: Leaves = {}
        for _ in range(size):
            start, key = self.at, self.read_text(MAX_NAME)
            full = f"{name}/{key}" if name else key
            if len(full) > MAX_NAME:
                raise self.make_error(start, f"a name of {len(full)} characters, and {MAX_NAME} are possible")
            inner = self.read_entry(full, depth)
            if not found.keys().isdisjoint(inner):
                raise self.make_error(start, f"there are two of {escape_line(full)}")
            found |= inner
        return {name: self.join_chunks(name, found)} if name and f"{name}/{CHUNKED}" in found else found

    def read_entry(self, full: str, depth: int) -> Leaves:
        start = self.at
        kind, size = self.read_head()
        if kind == "table":
            return self.read_table(full, size, depth - 1)
        if kind == "typed":
            return {full: self.read_array(size)}
        if kind == "integer":
            return {full: Number(start, size)}
        raise self.make_error(start, f"{escape_line(full)} is {kind} and not an array")

    def read_array(self, size: int) -> Array:
        """Read an extension object of `size` bytes: code, then a list of shape, type name, and numbers in C order."""
        start = self.take(1)
        if self.data[start] != NDARRAY:
            raise self.make_error(start, f"an object of type {self.data[start]}, not an array")
        end = self.take(size) + size
        self.at -= size
        if self.expect("list") != 3:
            raise self.make_error(start, "an array that is not shape, type and numbers")
        axes = self.expect("list")
        if axes > MAX_AXES:
            raise self.make_error(start, f"an array of {axes} axes, and {MAX_AXES} are possible")
        shape = tuple(self.expect("integer") for _ in range(axes))
        kind = self.read_text(16)
        nbytes = self.expect("bytes", "text")
        array = self.check_array(start, shape, kind, ((self.take(nbytes), nbytes),))
        if self.at != end:
            raise self.make_error(start, f"an array of {self.at - start - 1} bytes in an object of {size}")
        return array

    def join_chunks(self, name: str, found: Leaves) -> Array:
        """Join a chunked array: the tables `shape` (of numbers) and `chunks` (of arrays), both numbered from "0"."""
        start = found[f"{name}/{CHUNKED}"].at
        lists: dict[str, list[Array | Number]] = {"shape": [], "chunks": []}
        for key, items in lists.items():
            while f"{name}/{key}/{len(items)}" in found:
                items.append(found[f"{name}/{key}/{len(items)}"])
        shape = tuple(item.value for item in lists["shape"] if isinstance(item, Number))
        chunks = [item for item in lists["chunks"] if isinstance(item, Array)]
        kinds = {chunk.dtype for chunk in chunks}
        if len(shape) + len(chunks) + 1 != len(found) or len(kinds) != 1 or len(shape) > MAX_AXES:
            raise self.make_error(
                start, f"{escape_line(name)} is not a valid array in chunks: they must be numbered and of one type"
            )
        parts = tuple(part for chunk in chunks for part in chunk.parts)
        return self.check_array(start, shape, str(kinds.pop()).removeprefix("torch."), parts)

    def check_array(self, at: int, shape: tuple[int, ...], kind: str, parts: tuple[tuple[int, int], ...]) -> Array:
        """Return the array; raise CheckpointError if it is empty or its bytes do not agree with its shape."""
        if kind not in DTYPES:
            raise self.make_error(at, f"an array of {escape_line(kind)}, and only {', '.join(DTYPES)} can be read")
        dtype, nbytes = DTYPES[kind], sum(n for _, n in parts)
        if nbytes != math.prod(shape) * dtype.itemsize or not nbytes:
            raise self.make_error(at, f"an array of shape {shape} and type {kind} in {nbytes} bytes")
        return Array(at, dtype, shape, parts)
