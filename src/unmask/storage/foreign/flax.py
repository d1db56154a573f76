"""Read weights from msgpack files of flax (`flax.serialization.to_bytes`), without JAX.

The package msgpack reads the objects. This module walks the tables itself, so that nothing but tables by name, arrays,
and arrays in numbered chunks is ever built, and no size in the file is trusted.
"""

import math
import mmap
from pathlib import Path

import msgpack
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
UNPACKER_BLOCK = 1 << 20

FLOATS = ("bfloat16", "float16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES: dict[str, torch.dtype] = {kind: getattr(torch, kind) for kind in (*FLOATS, *INTEGERS)}

Leaves = dict[str, Tensor | int]
"""Arrays, and the plain numbers that only the shape of a chunked array has, by their path."""


class _Unsound(ValueError):
    """The file is not one of weights."""


def read_flax(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a flax file. A name is the path from the top, joined by "/", without a first "params/".

    Raises:
        CheckpointError: The file is missing, damaged or holds something else.
    """
    shown = escape_line(str(path))
    if not path.is_file():
        raise CheckpointError(f"{shown}: no such file; give a flax msgpack file")
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).read_all()
    except _Unsound as error:
        raise CheckpointError(f"{shown}: {error}; fetch the file again, as flax.serialization wrote it") from error
    except (OSError, ValueError) as error:  # an empty file gives a ValueError
        raise CheckpointError(
            f"{shown}: cannot be read ({escape_line(str(error))}); give a flax msgpack file"
        ) from error


class _Reader:
    """Walk the tables of a file; `data` is the mapped file."""

    def __init__(self, data: mmap.mmap):
        self.data, self.entries = data, 0
        self.unpacker = msgpack.Unpacker(
            data,
            read_size=UNPACKER_BLOCK,
            max_buffer_size=len(data) + UNPACKER_BLOCK,
            raw=True,
            max_array_len=0,
            max_map_len=MAX_ENTRIES,
        )

    def make_error(self, what: str) -> _Unsound:
        return _Unsound(f"byte {self.unpacker.tell()}: {what}")

    def read_all(self) -> dict[str, Tensor]:
        """Read the whole file."""
        if not self.is_at_table():
            raise self.make_error("no table of weights")
        tensors: dict[str, Tensor] = {}
        for name, leaf in self.read_table("", MAX_DEPTH).items():
            short = name.removeprefix("params/")
            if not isinstance(leaf, Tensor):
                raise self.make_error(f"{escape_line(short)} is a plain number and not an array")
            if short in tensors:
                raise self.make_error(f"there are two of {escape_line(short)}")
            tensors[short] = leaf
        if self.unpacker.tell() != len(self.data):
            raise self.make_error("more bytes after the end of the weights")
        return tensors

    def is_at_table(self) -> bool:
        """Return whether the next object is a table, by its first byte."""
        at = self.unpacker.tell()
        return at < len(self.data) and (0x80 <= self.data[at] <= 0x8F or self.data[at] in (0xDE, 0xDF))

    def read_object(self) -> object:
        """Read the next object, which must not be a table."""
        if self.is_at_table():
            raise self.make_error("a table as a name")
        try:
            return self.unpacker.unpack()
        except (ValueError, msgpack.UnpackException) as error:
            raise self.make_error(f"no sound object of msgpack ({escape_line(str(error)) or 'it is cut'})") from error

    def read_table(self, name: str, depth: int) -> Leaves:
        """Read all entries at any depth below the table `name`, and join chunked arrays."""
        try:
            size = self.unpacker.read_map_header()
        except (ValueError, msgpack.UnpackException) as error:
            raise self.make_error(f"no sound table ({escape_line(str(error)) or 'it is cut'})") from error
        self.entries += size
        if not depth or self.entries > MAX_ENTRIES:
            limit = f"more than {MAX_ENTRIES} entries" if depth else f"tables nested more than {MAX_DEPTH} deep"
            raise self.make_error(limit)
        found: Leaves = {}
        for _ in range(size):
            full = self.read_name(f"{name}/" if name else "")
            inner = self.read_table(full, depth - 1) if self.is_at_table() else {full: self.read_leaf(full)}
            if not found.keys().isdisjoint(inner):
                raise self.make_error(f"there are two of {escape_line(full)}")
            found |= inner
        return {name: self.join_chunks(name, found)} if name and f"{name}/{CHUNKED}" in found else found

    def read_name(self, above: str) -> str:
        key = self.read_object()
        try:
            full = above + key.decode() if isinstance(key, bytes) and key else ""
        except UnicodeDecodeError as error:
            raise self.make_error("a name that is not UTF-8") from error
        if not 0 < len(full) <= MAX_NAME:
            raise self.make_error(f"a name that is not a text of 1 to {MAX_NAME} characters with those above it")
        return full

    def read_leaf(self, full: str) -> Tensor | int:
        leaf = self.read_object()
        if isinstance(leaf, int):
            return leaf
        if not isinstance(leaf, msgpack.ExtType):
            raise self.make_error(f"{escape_line(full)} is {type(leaf).__name__} and not an array")
        if leaf.code != NDARRAY:
            raise self.make_error(f"{escape_line(full)} is an object of type {leaf.code}, not an array")
        return self.make_tensor(full, *self.split_array(full, leaf.data))

    def split_array(self, full: str, data: bytes) -> tuple[list[int], str, bytes]:
        """Split an array into its shape, the name of its type, and its numbers in C order."""
        lists: list[object] = []

        def count_lists(items: list[object]) -> list[object]:
            lists.append(items)
            if len(lists) > 2:  # the shape and the whole; more would cost memory
                raise ValueError("lists within lists")
            return items

        try:
            shape, kind, numbers = msgpack.unpackb(
                data, raw=True, list_hook=count_lists, max_array_len=max(3, MAX_AXES), max_map_len=0, max_ext_len=0
            )
            if not all(type(size) is int and size >= 0 for size in shape) or not isinstance(numbers, bytes):
                raise ValueError("no shape, or no numbers")
            return shape, kind.decode(), numbers
        except (ValueError, TypeError, AttributeError, msgpack.UnpackException) as error:
            reason = escape_line(str(error))
            raise self.make_error(
                f"{escape_line(full)} is not shape (of up to {MAX_AXES} sizes), type and numbers: {reason}"
            ) from error

    def make_tensor(self, full: str, shape: list[int], kind: str, numbers: bytes) -> Tensor:
        """Return a tensor; raise _Unsound if it is empty or its bytes do not agree with its shape."""
        if kind not in DTYPES:
            raise self.make_error(f"an array of {escape_line(kind[:40])}, and only {', '.join(DTYPES)} can be read")
        if len(numbers) != math.prod(shape) * DTYPES[kind].itemsize or not numbers:
            raise self.make_error(
                f"{escape_line(full)}: an array of shape {shape} and type {kind} in {len(numbers)} bytes"
            )
        return torch.frombuffer(bytearray(numbers), dtype=DTYPES[kind]).reshape(shape)

    def join_chunks(self, name: str, found: Leaves) -> Tensor:
        """Join a chunked array: the tables `shape` (of numbers) and `chunks` (of arrays), both numbered from "0"."""
        lists: dict[str, list[Tensor | int]] = {"shape": [], "chunks": []}
        for key, items in lists.items():
            while f"{name}/{key}/{len(items)}" in found:
                items.append(found[f"{name}/{key}/{len(items)}"])
        shape = [item for item in lists["shape"] if isinstance(item, int)]
        chunks = [item for item in lists["chunks"] if isinstance(item, Tensor)]
        sound = len(shape) + len(chunks) + 1 == len(found) and len({chunk.dtype for chunk in chunks}) == 1
        numel = sum(chunk.numel() for chunk in chunks)
        if not sound or len(shape) > MAX_AXES or min(shape, default=1) < 0 or math.prod(shape) != numel:
            raise self.make_error(
                f"{escape_line(name)} is not a valid array in chunks: they must be numbered, of one type, and fill it"
            )
        return torch.cat([chunk.reshape(-1) for chunk in chunks]).reshape(shape)
