"""Weight files made to run a program, fill the memory, wait for ever or deceive: by name, as bytes, always the same."""

import io
import json
import random
import struct
import zipfile
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from hostile_pickles import TRUE, pickled, row, storage, table, tensor, text, whole
from safetensors.torch import save as to_safetensors

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
DATA = np.arange(4, dtype=np.float32).tobytes()


def archive(body: bytes, members: dict[str, bytes] | None = None, packed: Iterable[str] = ()) -> bytes:
    """A zip file as torch.save makes it, with `members` besides the pickle."""
    buffer = io.BytesIO()
    inside = {"data.pkl": pickled(body), "version": b"3\n", **({"data/0": DATA} if members is None else members)}
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in inside.items():
            full = name if name.startswith("!") else f"x/{name}"
            method = zipfile.ZIP_DEFLATED if name in packed else zipfile.ZIP_STORED
            file.writestr(full.removeprefix("!"), content, method)
    return buffer.getvalue()


def legacy(body: bytes, keys: Iterable[str] = ("0",), numbers: bytes = struct.pack("<q", 4) + DATA) -> bytes:
    """The format before torch 1.6."""
    machine = table(little_endian=TRUE, protocol_version=whole(1001))
    listed = b"](" + b"".join(map(text, keys)) + b"e"
    return MAGIC + b"".join(map(pickled, (whole(1001), machine, body, listed))) + numbers


def archives() -> Iterator[tuple[str, bytes]]:
    """Zip files that lie about themselves."""
    sound = table(a=tensor())
    plain = archive(sound)
    yield "compressed pickle", archive(sound, packed=["data.pkl"])
    yield "compressed numbers", archive(sound, packed=["data/0"])
    yield (
        "zip bomb",
        archive(table(a=tensor(storage(1 << 24), size=(1 << 24,))), {"data/0": bytes(1 << 26)}, ["data/0"]),
    )
    for bad in ("../data/1", "data/../../1", "data/1/2", "code/x.py", "constants.pkl", "data/\n", "data/1\\..\\2"):
        yield f"member {bad!r}", archive(sound, {"data/0": DATA, bad: b"1"})
    for bad in ("/etc/passwd", "../x/data.pkl", "y/data.pkl", "..", "x", "x/"):
        yield f"top {bad!r}", archive(sound, {"data/0": DATA, f"!{bad}": b"1"})
    yield "no pickle", archive(sound).replace(b"data.pkl", b"beta.pkl")
    yield "no numbers", archive(sound, {})
    yield "short numbers", archive(sound, {"data/0": DATA[:-1]})
    yield "long numbers", archive(sound, {"data/0": DATA + b"1"})
    yield "big-endian", archive(sound, {"data/0": DATA, "byteorder": b"big"})
    yield "long version", archive(sound, {"data/0": DATA, "byteorder": bytes(1 << 20)})
    yield "30,000 members", archive(sound, {f"data/{i}": b"" for i in range(30_000)})
    yield "something before", b"PK\3\4" + bytes(60) + plain
    yield "something behind", plain + b"more"
    yield "nested", archive(sound, {"data/0": plain})
    start = plain.index(b"PK\1\2")
    entry, name = plain.index(b"x/data/0", start) - 46, plain.index(b"x/data/0")
    end = len(plain) - 22
    spots = {
        "flags": (entry + 8, "<H", 1),
        "method": (entry + 10, "<H", 8),
        "checksum": (entry + 16, "<I", 7),
        "packed": (entry + 20, "<I", 99),
        "size": (entry + 24, "<I", 1 << 31),
        "name's length": (entry + 28, "<H", 9),
        "offset": (entry + 42, "<I", 0),
        "far offset": (entry + 42, "<I", 1 << 31),
        "zip64 without a record": (entry + 42, "<I", 0xFFFFFFFF),
        "local method": (name - 22, "<H", 8),
        "local name": (name + 7, "<B", 57),
        "local extra": (name - 2, "<H", 0xFFFF),
        "count": (end + 10, "<H", 9),
        "both counts": (end + 8, "<I", 0x00090009),
        "no members": (end + 8, "<I", 0),
        "disk": (end + 4, "<H", 1),
        "directory's length": (end + 12, "<I", 1 << 30),
        "directory's place": (end + 16, "<I", 0),
        "comment": (end + 20, "<H", 4),
    }
    for what, (at, form, value) in spots.items():
        lying = bytearray(plain)
        struct.pack_into(form, lying, at, value)
        yield f"lying {what}", bytes(lying)
    doubled = archive(sound, {"data/0": DATA, "data/1": DATA[::-1]})
    yield "member twice", doubled.replace(b"x/data/1", b"x/data/0")
    lying = bytearray(doubled)
    second = lying.index(b"x/data/1", lying.index(b"PK\1\2"))
    struct.pack_into("<I", lying, second - 4, doubled.index(b"x/data/0") - 30)
    yield "overlapping members", bytes(lying)


def old_files() -> Iterator[tuple[str, bytes]]:
    """Lies in the format before torch 1.6."""
    sound = table(a=tensor())
    for what, size in (("long", 1 << 40), ("negative", -1), ("short", 3)):
        yield f"{what} storage", legacy(sound, numbers=struct.pack("<q", size) + DATA)
    yield "claimed storage", legacy(table(a=tensor(storage(1 << 39), size=(1 << 39,))))
    yield "no keys", legacy(sound, ())
    yield "key twice", legacy(sound, ("0", "0"), (struct.pack("<q", 4) + DATA) * 2)
    yield "unknown key", legacy(sound, ("0", "7"), (struct.pack("<q", 4) + DATA) * 2)
    yield "more behind", legacy(sound) + b"more"
    yield (
        "view of a storage",
        legacy(table(a=tensor(storage().replace(b"tQ", row(text("v"), whole(0), whole(4)) + b"tQ")))),
    )
    yield "another version", legacy(sound).replace(whole(1001), whole(1002), 1)
    yield "tar", b"storages".ljust(512, b"\0") + bytes(1024)
    yield "protocol 4", b"\x80\x04\x95" + struct.pack("<Q", 4) + b"}\x94."
    yield "protocol 0", b"(dp0\nS'a'\np1\ncos\nsystem\n(S'true'\ntRs."


# -- safetensors and flax --


def header(text_or_table: object, numbers: bytes = DATA, length: int | None = None) -> bytes:
    raw = text_or_table if isinstance(text_or_table, bytes) else json.dumps(text_or_table).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + numbers


def entry(kind: str = "F32", shape: object = (4,), offsets: object = (0, 16), **more: object) -> dict:
    return {"a": {"dtype": kind, "shape": shape, "data_offsets": offsets, **more}}


def safetensors_files() -> Iterator[tuple[str, bytes]]:
    for length in (1 << 63, (1 << 64) - 1, 1 << 40, 100 << 20, 1000, 1, 0):
        yield f"header of {length}", header(entry(), length=length)
    wrong = {
        "overlap": entry() | {"b": entry()["a"]},
        "gap": entry(offsets=(4, 20)),
        "backwards": entry(offsets=(16, 0)),
        "negative": entry(offsets=(-16, 0)),
        "beyond": entry(offsets=(0, 1 << 60), shape=(1 << 58,)),
        "type lie": entry("F64"),
        "narrow lie": entry("U8"),
        "unknown type": entry("F7"),
        "number type": entry(32),
        "complex": entry("C64", (2,)),
        "eight bits": entry("F8_E4M3", (16,)),
        "no numbers": entry(shape=(0, 1 << 62)),
        "negative shape": entry(shape=(-2, -2)),
        "fractions": entry(shape=(4.0,)),
        "truth": entry(shape=(4, True)),
        "overflow": entry(shape=(1 << 32, 1 << 32, 4)),
        "axes": entry(shape=(4, *(1,) * 99)),
        "text": entry(shape="4"),
        "three offsets": entry(offsets=(0, 8, 16)),
        "more fields": entry(code="x"),
        "no table": [1],
        "nothing": {},
        "entry": {"a": 3},
        "null": None,
        "long name": {"a" * 5000: entry()["a"]},
        "metadata": {"__metadata__": {"a": [1]}, **entry()},
        "100,000 names": {f"a{i}": entry()["a"] for i in range(10**5)},
        "escape": {"a\n\x1b": entry()["a"]},
        "truth of 2": entry("BOOL", (16,)),
    }
    yield from ((f"safetensors: {name}", header(value)) for name, value in wrong.items())
    raw = json.dumps(entry()).encode()
    yield "name twice", header(raw[:-1] + b"," + raw[1:])
    yield "deep JSON", header(b'{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}")
    yield "deep tables", header(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
    yield "not UTF-8", header(b'{"\xff\xfe":1}')
    yield "long number", header(raw.replace(b"16]", b"1" * 6000 + b"]"))
    yield "NaN", header(raw.replace(b"16]", b"NaN]"))
    yield "more behind", header(entry(), DATA + b"x")


def flax_file() -> bytes:
    array = b"\x93\x91\x04\xa7float32\xc4\x10" + DATA
    return b"\x81\xa6params\x82" + b"".join(
        n + b"\xc7" + bytes([len(array)]) + b"\x01" + array for n in (b"\xa1a", b"\xa1b")
    )


def flax_files() -> Iterator[tuple[str, bytes]]:
    sound = flax_file()
    yield "deep flax", b"\x81\xa1a" * 100_000 + b"\x01" + bytes(9)
    yield "deep flax list", b"\x81\xa1a" + b"\x91" * 100_000
    yield "wide flax", b"\xdf\xff\xff\xff\xff" + sound
    yield "flax text bomb", b"\x81\xdb\xff\xff\xff\xff" + sound
    yield "flax pickle", sound.replace(b"\x01\x93", b"\x07\x93")
    yield "flax object", sound.replace(b"float32", b"object_")
    yield "flax shape", sound.replace(b"\x91\x04", b"\x91\x7f")
    yield "flax name twice", sound.replace(b"\xa1b", b"\xa1a")


def sound_files() -> dict[str, bytes]:
    """One file of each format, as its own library writes it; with optimizer state where there can be one."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(size, generator=generator) for name, size in (("a", (5, 7)), ("b", (3,)), ("c", ()))}
    moments = {"state": {0: {"exp_avg": torch.zeros(5, 7)}}, "param_groups": [{"lr": 1e-4}]}
    found = {"safetensors": to_safetensors(weights), "flax": flax_file()}
    for name, is_zip in (("zip", True), ("legacy", False)):
        buffer = io.BytesIO()
        held = {"iter": 3, "model_state_dict": weights, "optimizer_state_dict": moments}
        torch.save(held, buffer, _use_new_zipfile_serialization=is_zip)
        found[name] = buffer.getvalue()
    return found


def cut(sound: bytes, points: int, rng: random.Random) -> list[bytes]:
    """The file cut off at so many places, its first and last byte among them."""
    return [sound[:at] for at in {1, len(sound) - 1, *(rng.randrange(len(sound)) for _ in range(points - 2))}]


def flipped(sound: bytes, times: int, rng: random.Random) -> list[bytes]:
    """The file with one bit turned."""
    found = []
    for at in (rng.randrange(len(sound)) for _ in range(times)):
        found.append(sound[:at] + bytes([sound[at] ^ 1 << rng.randrange(8)]) + sound[at + 1 :])
    return found
