"""Read a pickle as data.

The opcodes that `torch.save` writes are followed on a stack. But a class is only its name, a call is only a record,
and a tensor is the position of its numbers. So no code can run, whatever the file contains.
"""

import struct
from dataclasses import dataclass, field
from typing import Any

MAX_PICKLE = 8 << 20
"""Maximal bytes of one pickle; a published model with optimizer state needs less than 1 MiB."""
MAX_STEPS = 1_000_000
MAX_AXES = 8
MAX_ELEMENTS = 1 << 40

# Storage class -> (type in safetensors, bytes per number). Quantized and complex numbers are not supported.
STORAGES = {
    "torch.DoubleStorage": ("F64", 8),
    "torch.FloatStorage": ("F32", 4),
    "torch.HalfStorage": ("F16", 2),
    "torch.BFloat16Storage": ("BF16", 2),
    "torch.LongStorage": ("I64", 8),
    "torch.IntStorage": ("I32", 4),
    "torch.ShortStorage": ("I16", 2),
    "torch.CharStorage": ("I8", 1),
    "torch.ByteStorage": ("U8", 1),
    "torch.BoolStorage": ("BOOL", 1),
}
ORDERED = "collections.OrderedDict"
TENSORS = {"torch._utils._rebuild_tensor_v2": (6, 7), "torch._utils._rebuild_tensor": (4, 4)}
PARAMETER = "torch._utils._rebuild_parameter"

# What trainers store beside the weights. No such object is created. A file that names anything else is refused: it
# could do nothing here, but no weights need it.
HARMLESS = {
    *(
        f"{top}.{name}"
        for top in ("builtins", "__builtin__")
        for name in ("set", "dict", "list", "int", "float", "str")
    ),
    "_codecs.encode",
    "argparse.Namespace",
    "collections.Counter",
    "collections.defaultdict",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.Path",
    "pathlib.PosixPath",
    "torch.Size",
    "torch.device",
    "typing.Any",
    *(f"torch.{kind}" for kind in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")),
}
HARMLESS_PACKAGES = ("pytorch_lightning.", "lightning.", "omegaconf.", "numpy.random.")


class Refused(Exception):
    """A file is not read; the message says why, without the name of the file."""


@dataclass(frozen=True)
class Global:
    """The name of a class or function."""

    name: str


@dataclass(eq=False)
class Opaque:
    """A harmless object that is not a weight and was not created."""

    name: str


@dataclass(frozen=True)
class Storage:
    """`numel` numbers under a `key`; `kind` is their type in safetensors, `width` the bytes of one number."""

    key: str
    kind: str
    width: int
    numel: int


@dataclass(frozen=True)
class Stored:
    """A tensor: `shape` numbers of a storage, from `offset`, in steps of `stride`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class _Machine:
    data: bytes
    at: int
    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)

    def take(self, size: int) -> bytes:
        part = self.data[self.at : self.at + size]
        if len(part) != size:
            raise Refused("its pickle ends too early")
        self.at += size
        return part

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def read_line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 512)
        if end < 0:
            raise Refused("its pickle names a class without an end")
        return self.take(end + 1 - self.at)[:-1].decode()

    def take_since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def store(self, target: Any, items: list[Any]) -> None:
        if type(target) is Opaque:
            return
        if type(target) is not dict or len(items) % 2:
            raise Refused("its pickle sets items of something that is not a table")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int | float | bytes | Global | None):
                raise Refused("its pickle has a table whose keys are not names")
            target[key] = value

    def extend(self, target: Any, items: list[Any]) -> None:
        if type(target) is not list:
            raise Refused("its pickle appends to something that is not a list")
        target.extend(items)


def describe(data: bytes, start: int = 0) -> tuple[Any, int, dict[str, Storage]]:
    """Return the content of the pickle at `start`, the offset of its end, and its storages by key.

    Raises:
        Refused: The pickle is damaged, too long, or contains something that no weights need.
    """
    machine = _Machine(data[: start + MAX_PICKLE], start)
    try:
        for _ in range(MAX_STEPS):
            code = machine.take(1)[0]
            if code == 0x2E:  # STOP
                return machine.stack.pop(), machine.at, machine.storages
            _step(machine, code)
    except (IndexError, KeyError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"its pickle is damaged near byte {machine.at}") from error
    raise Refused(f"its pickle takes more than {MAX_STEPS} steps")


def _step(m: _Machine, code: int) -> None:
    stack = m.stack
    if code in VALUES:
        value = VALUES[code](m)
        m.stack.append(value)  # m.stack, not `stack`: a tuple ends the stack above its mark
    elif code in NOTES:
        NOTES[code](m)
    elif 0x85 <= code <= 0x87:  # TUPLE1, TUPLE2, TUPLE3
        size = code - 0x84
        if len(stack) < size:
            raise Refused("its pickle makes a tuple of nothing")
        stack[-size:] = [tuple(stack[-size:])]
    elif code == 0x28:  # MARK
        m.marks.append(stack)
        m.stack = []
    elif code == 0x52 or code == 0x81:  # REDUCE, NEWOBJ
        arguments, called = stack.pop(), stack.pop()
        stack.append(_call(called, arguments))
    elif code == 0x51:  # BINPERSID
        storage = _make_storage(stack.pop())
        if m.storages.setdefault(storage.key, storage) != storage:
            raise Refused(f"its pickle describes the storage {storage.key[:40]!r} in two ways")
        stack.append(storage)
    else:
        raise Refused(f"its pickle has the opcode 0x{code:02x}, which torch.save does not write")


def _put(m: _Machine, form: str) -> None:
    m.memo[m.number(form)] = m.stack[-1]


def _build(m: _Machine) -> None:
    m.stack.pop()
    if type(m.stack[-1]) not in (
        dict,
        Opaque,
    ):  # attributes of tables (their version) and of objects that are not created
        raise Refused("its pickle sets the state of something that has none")


# opcode -> what it pushes
VALUES = {
    0x4E: lambda m: None,
    0x88: lambda m: True,
    0x89: lambda m: False,
    0x5D: lambda m: [],
    0x7D: lambda m: {},
    0x29: lambda m: (),
    0x8F: lambda m: Opaque("set"),
    0x4A: lambda m: m.number("<i"),
    0x4B: lambda m: m.number("B"),
    0x4D: lambda m: m.number("<H"),
    0x8A: lambda m: int.from_bytes(m.take(m.number("B")), "little", signed=True),
    0x47: lambda m: m.number(">d"),
    0x58: lambda m: m.take(m.number("<I")).decode("utf-8", "surrogatepass"),
    0x55: lambda m: _decode_old_text(m.take(m.number("B"))),
    0x54: lambda m: _decode_old_text(m.take(m.number("<I"))),
    0x63: lambda m: _make_global(m.read_line(), m.read_line()),
    0x74: lambda m: tuple(m.take_since_mark()),
    0x68: lambda m: m.memo[m.number("B")],
    0x6A: lambda m: m.memo[m.number("<I")],
}
# opcode -> what it does with the stack
NOTES = {
    0x80: lambda m: m.take(1),
    0x71: lambda m: _put(m, "B"),
    0x72: lambda m: _put(m, "<I"),
    0x62: _build,
    0x73: lambda m: _set_item(m),
    0x75: lambda m: _use_after_mark(m, m.store),
    0x61: lambda m: _append(m),
    0x65: lambda m: _use_after_mark(m, m.extend),
}


def _use_after_mark(m: _Machine, use: Any) -> None:
    items = m.take_since_mark()
    use(m.stack[-1], items)


def _set_item(m: _Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    m.store(m.stack[-1], [key, value])


def _append(m: _Machine) -> None:
    item = m.stack.pop()
    m.extend(m.stack[-1], [item])


def _decode_old_text(raw: bytes) -> str | bytes:
    """Return text of Python 2 if it is ASCII, otherwise bytes: Python 2 had one type for both."""
    return raw.decode() if raw.isascii() else raw


def _make_global(module: str, name: str) -> Global:
    full = f"{module}.{name}"
    known = full in STORAGES or full in TENSORS or full in (ORDERED, PARAMETER) or full in HARMLESS
    if not known and not full.startswith(HARMLESS_PACKAGES):
        kind = "a kind of tensor or object that is not read" if full.startswith("torch.") else "which no weights need"
        raise Refused(f"its pickle names {full[:200]}, {kind}; do not load it elsewhere, ask for safetensors")
    return Global(full)


def _call(called: Any, arguments: Any) -> Any:
    if type(called) is not Global or type(arguments) is not tuple:
        raise Refused("its pickle calls something that is not a class")
    name = called.name
    if name == ORDERED and not arguments:
        return {}
    if name in TENSORS:
        return _make_stored(arguments, *TENSORS[name])
    if name == PARAMETER and arguments and type(arguments[0]) is Stored:
        return arguments[0]
    if name in STORAGES or name == PARAMETER:
        raise Refused(f"its pickle makes a {name} by hand")
    return Opaque(name)


def _make_storage(identity: Any) -> Storage:
    if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
        raise Refused("its pickle refers to something outside that is not a storage")
    kind, key, _, numel = identity[1:5]
    if type(kind) is not Global or kind.name not in STORAGES or not _is_count(numel):
        raise Refused("its pickle describes a storage of an unknown type or size")
    if identity[5:] not in ((), (None,)) or not isinstance(key, str | int):
        raise Refused("its pickle describes a storage within another, as torch did before 2017; save it again")
    return Storage(str(key), *STORAGES[kind.name], numel)


def _make_stored(arguments: tuple[Any, ...], least: int, most: int) -> Stored:
    if not least <= len(arguments) <= most or type(arguments[0]) is not Storage:
        raise Refused("its pickle describes a tensor without a storage")
    storage, offset, shape, stride = arguments[:4]
    if type(shape) is not tuple or type(stride) is not tuple or len(shape) != len(stride) or len(shape) > MAX_AXES:
        raise Refused(f"its pickle describes a tensor without 0 to {MAX_AXES} sizes and as many strides")
    if not all(map(_is_count, (offset, *shape, *stride))):
        raise Refused("its pickle describes a tensor with negative or enormous sizes")
    return Stored(storage, offset, shape, stride)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_ELEMENTS
