"""flax's msgpack files: what the msgpack package writes is read back bit for bit; anything unsound is refused."""

import random
import struct
import time
import tracemalloc
from pathlib import Path

import msgpack
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unmask.errors import CheckpointError
from unmask.storage.foreign.flax import DTYPES, MAX_DEPTH, MAX_ENTRIES, MAX_NAME, UNPACKER_BLOCK, read_flax

CHUNKED = "__msgpack_chunked_array__"


def raw(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def packed(tensor: Tensor) -> msgpack.ExtType:
    """Pack an array as flax does: shape, name of the type, bytes."""
    kind = str(tensor.dtype).removeprefix("torch.")
    return msgpack.ExtType(1, msgpack.packb((tuple(tensor.shape), kind, raw(tensor)), use_bin_type=True))


def flax_bytes(tree: object) -> bytes:
    """`flax.serialization.to_bytes` of nested dictionaries of tensors, by the msgpack package."""
    return msgpack.packb(tree, default=packed, strict_types=True)


def chunked(tensor: Tensor, size: int) -> dict:
    """Split an array as flax does when it is too large for one object."""
    chunks = {str(i): part for i, part in enumerate(tensor.reshape(-1).split(size))}
    return {CHUNKED: True, "shape": {str(i): n for i, n in enumerate(tensor.shape)}, "chunks": chunks}


def read(data: bytes, folder: Path) -> dict[str, Tensor]:
    path = folder / "weights.msgpack"
    path.write_bytes(data)
    return read_flax(path)


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    kinds = {name: (t.dtype, t.shape, raw(t)) for name, t in found.items()}
    return kinds == {name: (t.dtype, t.shape, raw(t)) for name, t in wanted.items()}


def noise(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 100).to(torch.int64).to(kind)


SMALL = {"a": {"kernel": noise(3, 5), "bias": noise(5, kind=torch.bfloat16)}, "b": noise(2, 3, 4, kind=torch.float16)}

# -- sound files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (7, 3), (2, 3, 4, 5)])
def test_every_type_and_shape_is_read(tmp_path, kind, shape):
    tensor = noise(*shape, kind=kind)
    assert same(read(flax_bytes({"params": {"x": {"y": tensor}}}), tmp_path), {"x/y": tensor})


@given(st.recursive(st.integers(1, 4), lambda inner: st.dictionaries(st.text(min_size=1, max_size=5), inner)))
def test_any_tree_is_read(tmp_path_factory, shape):
    def tensors(node):
        return {k: tensors(v) for k, v in node.items()} if isinstance(node, dict) else noise(node)

    def flat(node, way=()):
        if not isinstance(node, dict):
            return [("/".join(way), node)]
        return [found for key, inner in node.items() for found in flat(inner, (*way, key))]

    tree = tensors({"x": shape})
    if len({name for name, _ in flat(tree)}) == len(flat(tree)):  # names may hold a "/" of their own
        assert same(read(flax_bytes(tree), tmp_path_factory.mktemp("tree")), dict(flat(tree)))


def test_names_beside_params_stay_and_an_empty_table_is_nothing(tmp_path):
    tree = {"params": {"w": noise(2)}, "batch_stats": {"w": noise(3)}, "empty": {}}
    assert set(read(flax_bytes(tree), tmp_path)) == {"w", "batch_stats/w"}


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_chunks_are_joined(tmp_path, size):
    whole = noise(4, 3, 2)
    assert same(read(flax_bytes({"a": {"b": chunked(whole, size)}, "c": noise(2)}), tmp_path),
                {"a/b": whole, "c": noise(2)})  # fmt: skip


def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path):
    path = tmp_path / "weights.msgpack"
    path.write_bytes(flax_bytes({"x": noise(1000)}))
    before = path.read_bytes()
    (tensor,) = read_flax(path).values()
    tensor += 1
    assert torch.equal(tensor, noise(1000) + 1)
    assert path.read_bytes() == before


# -- unsound files ----------------------------------------------------------------------------------------------------


def ext(code: int, payload: bytes) -> bytes:
    return b"\x81\xa1w" + msgpack.packb(msgpack.ExtType(code, payload))


def array(shape: object, kind: object, data: object) -> bytes:
    return ext(1, msgpack.packb((shape, kind, data)))


LYING = {
    "empty": b"",
    "a list": msgpack.packb([1, 2]),
    "a number": b"\x07",
    "no names": b"\x81\x01\x02",
    "empty name": flax_bytes({"": noise(2)}),
    "no UTF-8": b"\x81\xa1\xff" + flax_bytes({"w": noise(2)})[3:],
    "long name": flax_bytes({"x" * (MAX_NAME + 1): noise(2)}),
    "long way": flax_bytes({"x" * 300: {"y" * 300: noise(2)}}),
    "too deep": b"\x81\xa1a" * (MAX_DEPTH + 1) + b"\x80",
    "depth bomb": b"\x81\xa1a" * 200_000,
    "many entries": b"\xdf" + struct.pack(">I", 2**32 - 1) + flax_bytes({"w": noise(2)})[1:],
    "too many entries": flax_bytes({"a": {str(i): {} for i in range(MAX_ENTRIES + 1)}}),
    "long text": b"\x81\xdb\xff\xff\xff\xff" + bytes(100),
    "long object": b"\x81\xa1w\xc9\xff\xff\xff\xff\x01" + bytes(100),
    "long numbers": ext(1, b"\x93\x91\x04\xa5uint8\xc6\xff\xff\xff\xff" + bytes(4)),
    "complex": ext(2, msgpack.packb((1.0, 2.0))),
    "scalar": ext(3, msgpack.packb(((), "float32", bytes(4)))),
    "timestamp": b"\x81\xa1w\xd7\xff" + bytes(8),
    "objects": array((2,), "object", bytes(16)),
    "structured": array((2,), "[('a', '<f4')]", bytes(8)),
    "float8": array((2,), "float8_e4m3fn", bytes(2)),
    "no type": array((2,), 5, bytes(8)),
    "no shape": array(2, "float32", bytes(8)),
    "no numbers": array((2,), "float32", [1.0, 2.0]),
    "negative": array((-1, -2), "float32", bytes(8)),
    "huge": array((2**62, 2**62), "float32", bytes(8)),
    "wraps to 8 bytes": array((2**63, 2, 2), "float32", bytes(8)),
    "nothing times much": array((0, 2**63), "float32", b""),
    "axes": array((1,) * 9, "float32", bytes(4)),
    "too few": array((3,), "float32", bytes(8)),
    "too many": array((1,), "float32", bytes(8)),
    "four parts": ext(1, msgpack.packb(((1,), "float32", bytes(4), 1))),
    "more in the object": ext(1, msgpack.packb(((1,), "float32", bytes(4))) + b"\x00"),
    "less in the object": b"\x82\xa1w\xc7\x0f\x01\x93\x91\x01\xa7float32\xc4\x04" + bytes(4) + b"\xa1v\x80",
    "a float": msgpack.packb({"lr": 0.5}),
    "nothing": msgpack.packb({"w": None}),
    "text": msgpack.packb({"w": "import os"}),
    "list": msgpack.packb({"w": [1]}),
    "step": msgpack.packb({"step": 3}),
    "unused code": b"\x81\xa1w\xc1",
    "twice": b"\x82" + flax_bytes({"w": noise(2)})[1:] * 2,
    "twice by params": flax_bytes({"params": {"w": noise(2)}, "w": noise(2)}),
    "twice by slash": flax_bytes({"a": {"b": noise(2)}, "a/b": noise(2)}),
    "bytes after": flax_bytes({"w": noise(2)}) + b"\x00",
    "chunks at the top": flax_bytes(chunked(noise(4), 2)),
    "no chunks": flax_bytes({"w": {CHUNKED: True, "shape": {"0": 0}, "chunks": {}}}),
    "a gap": flax_bytes({"w": {**chunked(noise(4), 2), "chunks": {"0": noise(2), "2": noise(2)}}}),
    "chunk too few": flax_bytes({"w": {**chunked(noise(4), 2), "chunks": {"0": noise(2)}}}),
    "two types": flax_bytes({"w": {**chunked(noise(4), 2), "chunks": {"0": noise(2), "1": noise(2).int()}}}),
    "a chunk of a number": flax_bytes({"w": {**chunked(noise(4), 2), "chunks": {"0": 3}}}),
    "array for shape": flax_bytes({"w": {**chunked(noise(4), 2), "shape": {"0": noise(1)}}}),
    "axes of chunks": flax_bytes({"w": {**chunked(noise(4), 2), "shape": {str(i): 1 for i in range(9)}}}),
    "lists in a name": b"\x81" + b"\xdd\x00\x00\x00\x02" * 400 + bytes(100),
    "tables in a name": b"\x81" + b"\x81\xa1a" * 400 + bytes(100),
    "lists in a shape": ext(1, b"\x93" + b"\x98" * 900 + b"\x90" * 100_000),
    "many lists": ext(1, b"\x93\x98" + b"\x98\x90\x90\x90\x90\x90\x90\x90\x90" * 8),
    "strange part": flax_bytes({"w": {**chunked(noise(4), 2), "code": noise(1)}}),
}


def refused(data: bytes, folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(data, folder)
    message = str(caught.value)
    assert message.isprintable(), message
    assert "weights.msgpack" in message
    assert len(message) < 1000
    return message


@pytest.mark.parametrize("name", LYING)
def test_what_is_no_weights_is_refused_in_one_line(tmp_path, name):
    message = refused(LYING[name], tmp_path)
    assert name == "empty" or ("byte " in message and "fetch the file again" in message)


def test_the_message_says_what_and_where(tmp_path):
    assert "byte 25: w is an object of type 2" in refused(LYING["complex"], tmp_path)
    assert "float8_e4m3fn" in refused(LYING["float8"], tmp_path)
    assert f"nested more than {MAX_DEPTH} deep" in refused(LYING["depth bomb"], tmp_path)
    assert "\\n" in refused(msgpack.packb({"a\nb": None, "c": 1}).replace(b"\xc0", b"\x05"), tmp_path)


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(CheckpointError, match="no such file"):
            read_flax(path)


def read_or_refuse(data: bytes, folder: Path) -> dict[str, Tensor]:
    path = folder / "weights.msgpack"
    path.write_bytes(data)
    try:
        return read_flax(path)
    except CheckpointError as error:
        return {} if str(error).isprintable() else {"broken line": noise(1 << 20)}


def mutants(data: bytes, seed: int) -> list[bytes]:
    """Cut, with flipped bits, with four bytes that lie, and with pieces moved."""
    draw = random.Random(seed)
    found = [data[: draw.randrange(len(data))] for _ in range(60)]
    for _ in range(140):
        flipped = bytearray(data)
        for _ in range(draw.choice([1, 1, 3])):
            flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        found.append(bytes(flipped))
    for lie in [
        b"\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff",
        b"\xc9\xff\xff\xff",
        b"\xdf\xff\xff\xff",
        b"\xdd\x10\0\0",
    ] * 16:
        place = draw.randrange(len(data))
        found.append(data[:place] + lie + data[place + len(lie) :])
    for _ in range(40):
        a, b = sorted((draw.randrange(len(data)), draw.randrange(len(data))))
        found.append(data[:b] + data[a:])
    return found


HEADS = ["df ffffffff", "81 dd ffffffff", "81 a177 dd ffffffff", "81 a177 c9 ffffffff 01", "81 a177 c6 ffffffff"]


@pytest.mark.parametrize("head", list(map(bytes.fromhex, HEADS)), ids=HEADS)
def test_a_hostile_length_takes_no_memory(tmp_path, head):
    data = head + b"\x90" * (1 << 16)
    tracemalloc.start()
    refused(data, tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 4 * len(data) + 2 * UNPACKER_BLOCK
    tracemalloc.stop()


def test_damaged_files_are_read_or_refused_fast_and_in_little_memory(tmp_path):
    tree = {"params": {f"layer_{i}": {"kernel": noise(9, 7), "bias": noise(7), "scale": noise(3).half()}
                       for i in range(6)} | {"big": chunked(noise(50), 16)}}  # fmt: skip
    data = flax_bytes(tree)
    read_in = refused_in = 0
    for i, mutant in enumerate(mutants(data, seed=0)):
        begin = time.process_time()
        if i % 8 == 0:  # tracing is slow
            tracemalloc.start()
        tensors = read_or_refuse(mutant, tmp_path)
        assert (
            not tracemalloc.is_tracing()
            or tracemalloc.get_traced_memory()[1] < 4 * len(data) + 2 * UNPACKER_BLOCK + 200_000
        )
        tracemalloc.stop()
        assert sum(t.nbytes for t in tensors.values()) <= len(mutant)
        assert time.process_time() - begin < 1
        read_in, refused_in = read_in + bool(tensors), refused_in + (not tensors)
    assert read_in + refused_in == 320
    assert min(read_in, refused_in) > 50  # flipped numbers are still numbers; what is cut is refused


@given(st.binary(max_size=60))
def test_no_bytes_at_all_break_it(tmp_path_factory, tail):
    folder = tmp_path_factory.mktemp("bytes")
    for start in (b"", b"\x81\xa1w", b"\x81\xa1w\xc7\x20\x01\x93", b"\x81\xa1w\xc7\x20\x01\x93\x91\x02\xa7float32"):
        assert "broken line" not in read_or_refuse(start + tail, folder)
