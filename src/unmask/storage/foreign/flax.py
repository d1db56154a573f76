"""Weights from flax's msgpack files (`flax.serialization.to_bytes`), without JAX and without unpacking a whole file.

The file is mapped into memory. Its structure is checked to the end before the first tensor is made, and of all that
msgpack can say only what weights need is understood: tables by name, arrays, and arrays in numbered chunks.
"""

import math
import mmap
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unmask.errors import CheckpointError
from unmask.storage.files import one_line

MAX_DEPTH = 32
MAX_NAME = 512
"""Characters of a tensor's name, those of the tables around it included."""
MAX_ENTRIES = 20_000
MAX_AXES = 8
NDARRAY = 1
"""flax's type code of an array; its others, of complex numbers and NumPy scalars, are no weights."""
CHUNKED = "__msgpack_chunked_array__"

FLOATS = ("bfloat16", "float16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES: dict[str, torch.dtype] = {kind: getattr(torch, kind) for kind in (*FLOATS, *INTEGERS)}

# First byte of an object -> what it is, and in how many bytes its size or value follows (github.com/msgpack/msgpack).
SIZED = {0xC4: "bytes", 0xC7: "typed", 0xCC: "integer", 0xD9: "text"}
FOLLOWED = {first + i: (kind, 1 << i) for first, kind in SIZED.items() for i in range(4 if kind == "integer" else 3)}
FOLLOWED |= {0xDC: ("list", 2), 0xDD: ("list", 4), 0xDE: ("table", 2), 0xDF: ("table", 4)}


@dataclass(frozen=True)
class Array:
    """Where the numbers of an array are in the file: (offset, bytes) of each part."""

    at: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Number:
    """A plain number; only the shape of a chunked array has them."""

    at: int
    value: int


Leaves = dict[str, Array | Number]


def read_flax(path: Path) -> dict[str, Tensor]:
    """All tensors of a flax file, named by the way to them from the top, joined by "/"; a first "params/" is left out.

    A tensor whose bytes lie aligned is a view of the mapped file, and writing to it does not change the file; any other
    is a copy. CheckpointError, before a tensor is made, if the file is anything but sound.
    """
    shown = one_line(str(path))
    if not path.is_file():
        raise CheckpointError(f"{shown}: no such file; give a flax msgpack file")
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:  # of an empty file, a ValueError
        raise CheckpointError(f"{shown}: cannot be read ({one_line(str(error))}); give a flax msgpack file") from error
    arrays: dict[str, Array] = {}
    reader = _Reader(data, shown)
    for name, leaf in reader.everything().items():
        short = name.removeprefix("params/")
        if not isinstance(leaf, Array):
            raise reader.refusal(leaf.at, f"{one_line(short)} is a plain number, no array")
        if short in arrays:
            raise reader.refusal(leaf.at, f"there are two of {one_line(short)}")
        arrays[short] = leaf
    return {name: _tensor(data, array) for name, array in arrays.items()}


def _tensor(data: mmap.mmap, array: Array) -> Tensor:
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
    """Reads on from byte `at`; nothing is allocated on the word of the file alone."""

    def __init__(self, data: mmap.mmap, shown: str):
        self.data, self.shown, self.at, self.entries = data, shown, 0, 0

    def refusal(self, at: int, what: str) -> CheckpointError:
        return CheckpointError(f"{self.shown}: byte {at}: {what}; fetch the file again, as flax.serialization wrote it")

    def take(self, size: int) -> int:
        """Where the next `size` bytes start."""
        start, left = self.at, len(self.data) - self.at
        if size > left:
            raise self.refusal(start, f"{size} bytes should follow, and {left} are left")
        self.at += size
        return start

    def head(self) -> tuple[str, int]:
        """What comes next, and its size or value."""
        start = self.take(1)
        byte = self.data[start]
        if byte < 0x80:
            return "integer", byte
        if byte < 0xC0:
            return ("table", byte & 15) if byte < 0x90 else ("list", byte & 15) if byte < 0xA0 else ("text", byte & 31)
        if byte == 0xC3:  # a true, which marks chunked arrays
            return "integer", 1
        if 0xD4 <= byte <= 0xD8:
            return "typed", 1 << (byte - 0xD4)
        if byte not in FOLLOWED:
            raise self.refusal(start, f"code 0x{byte:02x} is nothing that weights consist of")
        kind, width = FOLLOWED[byte]
        value = self.take(width)
        return kind, int.from_bytes(self.data[value : value + width], "big")

    def expect(self, *kinds: str) -> int:
        """The size or value of the next object, which must be of one of these kinds."""
        start = self.at
        kind, size = self.head()
        if kind not in kinds:
            raise self.refusal(start, f"{kind} where {kinds[0]} should be")
        return size

    def text(self, limit: int) -> str:
        start, size = self.at, self.expect("text", "bytes")
        if not 0 < size <= limit:
            raise self.refusal(start, f"a name of {size} bytes, and 1 to {limit} are possible")
        first = self.take(size)
        try:
            return self.data[first : self.at].decode()
        except UnicodeDecodeError as error:
            raise self.refusal(start, "a name that is no UTF-8") from error

    def everything(self) -> Leaves:
        """The whole file."""
        leaves = self.table("", self.expect("table"), MAX_DEPTH)
        if self.at != len(self.data):
            raise self.refusal(self.at, f"{len(self.data) - self.at} bytes after the end of the weights")
        return leaves

    def table(self, name: str, size: int, depth: int) -> Leaves:
        """What `size` entries hold, at any depth below the table `name`; a chunked array is put together."""
        self.entries += size
        if not depth or self.entries > MAX_ENTRIES:
            limit = f"more than {MAX_ENTRIES} entries" if depth else f"tables nested more than {MAX_DEPTH} deep"
            raise self.refusal(self.at, limit)
        found: Leaves = {}
        for _ in range(size):
            start, key = self.at, self.text(MAX_NAME)
            full = f"{name}/{key}" if name else key
            if len(full) > MAX_NAME:
                raise self.refusal(start, f"a name of {len(full)} characters, and {MAX_NAME} are possible")
            inner = self.entry(full, depth)
            if not found.keys().isdisjoint(inner):
                raise self.refusal(start, f"there are two of {one_line(full)}")
            found |= inner
        return {name: self.joined(name, found)} if name and f"{name}/{CHUNKED}" in found else found

    def entry(self, full: str, depth: int) -> Leaves:
        start = self.at
        kind, size = self.head()
        if kind == "table":
            return self.table(full, size, depth - 1)
        if kind == "typed":
            return {full: self.array(size)}
        if kind == "integer":
            return {full: Number(start, size)}
        raise self.refusal(start, f"{one_line(full)} is {kind}, no array")

    def array(self, size: int) -> Array:
        """An extension object of `size` bytes: code, then a list of shape, type by name, and numbers in C order."""
        start = self.take(1)
        if self.data[start] != NDARRAY:
            raise self.refusal(start, f"an object of type {self.data[start]}, no array")
        end = self.take(size) + size
        self.at -= size
        if self.expect("list") != 3:
            raise self.refusal(start, "an array that is not shape, type and numbers")
        axes = self.expect("list")
        if axes > MAX_AXES:
            raise self.refusal(start, f"an array of {axes} axes, and {MAX_AXES} are possible")
        shape = tuple(self.expect("integer") for _ in range(axes))
        kind = self.text(16)
        nbytes = self.expect("bytes", "text")
        array = self.checked(start, shape, kind, ((self.take(nbytes), nbytes),))
        if self.at != end:
            raise self.refusal(start, f"an array of {self.at - start - 1} bytes in an object of {size}")
        return array

    def joined(self, name: str, found: Leaves) -> Array:
        """A chunked array: tables `shape` and `chunks`, numbered from "0" on, of numbers and of arrays."""
        start = found[f"{name}/{CHUNKED}"].at
        lists: dict[str, list[Array | Number]] = {"shape": [], "chunks": []}
        for key, items in lists.items():
            while f"{name}/{key}/{len(items)}" in found:
                items.append(found[f"{name}/{key}/{len(items)}"])
        shape = tuple(item.value for item in lists["shape"] if isinstance(item, Number))
        chunks = [item for item in lists["chunks"] if isinstance(item, Array)]
        kinds = {chunk.dtype for chunk in chunks}
        if len(shape) + len(chunks) + 1 != len(found) or len(kinds) != 1 or len(shape) > MAX_AXES:
            raise self.refusal(start, f"{one_line(name)} is no array in chunks: they must be numbered and of one type")
        parts = tuple(part for chunk in chunks for part in chunk.parts)
        return self.checked(start, shape, str(kinds.pop()).removeprefix("torch."), parts)

    def checked(self, at: int, shape: tuple[int, ...], kind: str, parts: tuple[tuple[int, int], ...]) -> Array:
        """The array, if it has as many bytes as its shape says, and is not empty."""
        if kind not in DTYPES:
            raise self.refusal(at, f"an array of {one_line(kind)}, and only {', '.join(DTYPES)} can be read")
        dtype, nbytes = DTYPES[kind], sum(n for _, n in parts)
        if nbytes != math.prod(shape) * dtype.itemsize or not nbytes:
            raise self.refusal(at, f"an array of shape {shape} and type {kind} in {nbytes} bytes")
        return Array(at, dtype, shape, parts)
