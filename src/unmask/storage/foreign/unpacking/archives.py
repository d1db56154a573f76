"""Find the numbers in a torch file: in uncompressed members of a zip archive, or behind the pickles (before torch 1.6).

Every position is checked against the size of the file before it is used.
"""

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

from .pickles import MAX_PICKLE, Refused, Storage, describe

MAX_MEMBERS = 20_000
MAX_DIRECTORY = 8 << 20
COPY_SIZE = 1 << 20
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickle of torch's magic number, which begins a file of the older format."""
ARCHIVE_MEMBER = re.compile(
    r"[^/\\\x00-\x1f]{1,255}/(data\.pkl|data/\w{1,40}|byteorder|version|\.data/serialization_id|\.(format_version|storage_alignment))"
)
MAX_SMALL = 4096
"""Maximal bytes of a member that holds neither the pickle nor numbers."""


@dataclass(frozen=True)
class Span:
    """`size` bytes of the file from `start`; `crc` is their CRC-32, or 0 if the file has none."""

    start: int
    size: int
    crc: int


def open_torch(file: BinaryIO, size: int) -> tuple[Any, dict[str, Span]]:
    """Return the content of a torch file, as its pickle describes it, and the position of each storage by key."""
    file.seek(0)
    head = file.read(len(LEGACY))
    if head == LEGACY:
        return _open_legacy(file, size)
    if head[:4] != b"PK\x03\x04":
        raise Refused("not a file of torch.save; give one of .safetensors, .pth, .pt, .ckpt or .bin")
    return _open_zip(file, size)


def compute_checksum(file: BinaryIO, part: Span) -> int:
    """Return the CRC-32 of a part."""
    file.seek(part.start)
    crc, left = 0, part.size
    while left:
        block = file.read(min(left, COPY_SIZE))
        if not block:
            raise Refused("the file became shorter while it was read")
        crc, left = zlib.crc32(block, crc), left - len(block)
    return crc


# -- zip --


def _open_zip(file: BinaryIO, size: int) -> tuple[Any, dict[str, Span]]:
    members = _list_members(file, size)
    tops = {name.split("/")[0] for name in members}
    if len(tops) != 1:
        raise Refused(f"an archive of {len(tops)} folders, where torch.save makes one")
    inside = {name.partition("/")[2]: part for name, part in members.items()}
    if "data.pkl" not in inside:
        raise Refused("a zip archive without data.pkl, so it holds no weights of torch; give the file of the weights")
    for name, part in inside.items():
        if not name.startswith("data/") and part.size > (MAX_PICKLE if name == "data.pkl" else MAX_SMALL):
            raise Refused(f"its member {name} has {part.size} bytes, too many for what it is")
    if "byteorder" in inside and _read_member(file, inside["byteorder"]) != b"little":
        raise Refused("its numbers are big-endian; save it on an ordinary machine")
    root, _, storages = describe(_read_member(file, inside["data.pkl"]))
    parts = {name[len("data/") :]: part for name, part in inside.items() if name.startswith("data/")}
    for key, storage in storages.items():
        if key not in parts or parts[key].size != storage.numel * storage.width:
            has = f"{parts[key].size} bytes" if key in parts else "no member"
            raise Refused(
                f"its pickle gives storage {key[:40]!r} {storage.numel} numbers of {storage.kind}, but it has {has}"
            )
    return root, parts


def _read_member(file: BinaryIO, part: Span) -> bytes:
    file.seek(part.start)
    data = file.read(part.size)
    if len(data) != part.size or (part.crc and zlib.crc32(data) != part.crc):
        raise Refused("its pickle is damaged: the checksum differs; get the file again")
    return data


def _list_members(file: BinaryIO, size: int) -> dict[str, Span]:
    """Return the members by name; raise Refused unless they fill the file in order, without overlap."""
    count, start, length = _find_directory(file, size)
    file.seek(start)
    directory, at = file.read(length), 0
    found: dict[str, Span] = {}
    spans = []
    for _ in range(count):
        name, header, part, at = _read_entry(file, directory, at)
        if name in found:
            raise Refused(f"its archive has two members {name}")
        found[name] = part
        spans.append((header, part))
    if at != length:
        raise Refused("its archive's directory is not as long as it says")
    end = 0
    for header, part in sorted(spans, key=lambda span: span[0]):
        if header < end or (not end and header):
            raise Refused("its archive has overlapping members, or data before them; get the file again")
        end = part.start + part.size
    if end > start:
        raise Refused("its archive says that a member is longer than the file")
    return found


def _find_directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Return the number of members, and start and length of the directory, which must end with the file."""
    file.seek(max(0, size - 98))
    tail = file.read(98)
    last = tail[-22:]
    if len(last) != 22 or last[:4] != b"PK\x05\x06" or last[-2:] != b"\0\0":
        raise Refused("its archive is incomplete, or data follows it; get the file again")
    disks, _, here, count, length, start = struct.unpack("<4H2I", last[4:20])
    end, locator = size - 22, tail[-42:-22]
    if locator[:4] == b"PK\x06\x07":
        record, end = tail[:-42], size - 98
        if len(record) != 56 or record[:4] != b"PK\x06\x06" or struct.unpack("<Q", locator[8:16])[0] != end:
            raise Refused("its archive's end is damaged; get the file again")
        disks, _, here, count, length, start = struct.unpack("<2I4Q", record[16:])
    if disks or here != count or start + length != end:
        raise Refused("its archive's directory is not where it says; get the file again")
    if not 0 < count <= MAX_MEMBERS or length > MAX_DIRECTORY:
        raise Refused(f"an archive of {count} members, and 1 to {MAX_MEMBERS} are possible")
    return count, start, length


def _read_entry(file: BinaryIO, directory: bytes, at: int) -> tuple[str, int, Span, int]:
    """Return name, header offset and content of the member described at `at`, and where the next description starts."""
    fixed = directory[at : at + 46]
    if len(fixed) != 46 or fixed[:4] != b"PK\x01\x02":
        raise Refused("its archive's directory is damaged; get the file again")
    flags, method = struct.unpack("<2H", fixed[8:12])
    crc, packed, size, names, extras, comments = struct.unpack("<3I3H", fixed[16:34])
    header = struct.unpack("<I", fixed[42:46])[0]
    raw = directory[at + 46 : at + 46 + names]
    extra = directory[at + 46 + names : at + 46 + names + extras]
    size, packed, header = _widen(extra, size, packed, header)
    name = raw.decode("utf-8", "backslashreplace")
    if not ARCHIVE_MEMBER.fullmatch(name) or name.startswith(("./", "../")):
        what = "TorchScript, which is code" if re.search(r"/(code/|constants\.pkl)", name) else "no weights of torch"
        raise Refused(f"its archive has a member {name[:200]!r}: {what}")
    if method or packed != size or flags & 1:
        raise Refused(
            f"its member {name} is compressed or encrypted, which torch.save never does; save it again with torch.save"
        )
    file.seek(header)
    local = file.read(30 + names)
    if len(local) != 30 + names or local[:4] != b"PK\x03\x04" or local[30:] != raw or local[8:10] != b"\0\0":
        raise Refused(f"its archive's directory does not agree with the header of {name}")
    start = header + 30 + sum(struct.unpack("<2H", local[26:30]))
    return name, header, Span(start, size, crc), at + 46 + names + extras + comments


def _widen(extra: bytes, *fields: int) -> list[int]:
    """Replace fields of 0xFFFFFFFF: sizes and offsets of 4 GiB and more are in an extra field, in 8 bytes each."""
    wide, values = b"", list(fields)
    while len(extra) >= 4:
        kind, length = struct.unpack("<2H", extra[:4])
        wide = extra[4 : 4 + length] if kind == 1 else wide
        extra = extra[4 + length :]
    for i, value in enumerate(values):
        if value == 0xFFFFFFFF:
            if len(wide) < 8:
                raise Refused("its archive's directory lacks a size; get the file again")
            values[i], wide = struct.unpack("<Q", wide[:8])[0], wide[8:]
    return values


# -- before torch 1.6 --


def _open_legacy(file: BinaryIO, size: int) -> tuple[Any, dict[str, Span]]:
    """Read pickles of magic number, version, machine, object and storage keys; then the storages in that order."""
    file.seek(0)
    head, at, pickles = file.read(2 * MAX_PICKLE), 0, []
    storages: dict[str, Storage] = {}
    for _ in range(5):
        value, at, mentioned = describe(head, at)
        pickles.append(value)
        storages |= mentioned
    _, version, machine, root, keys = pickles
    if version != 1001 or type(machine) is not dict or machine.get("little_endian") is not True:
        raise Refused("a file of another version of torch.save, or of a big-endian machine; save it again")
    if type(keys) is not list or not all(isinstance(key, str | int) for key in keys) or len(keys) > MAX_MEMBERS:
        raise Refused(f"its list of storages is damaged, or longer than {MAX_MEMBERS}")
    parts: dict[str, Span] = {}
    for key in map(str, keys):
        if key not in storages or key in parts:
            raise Refused("its list of storages does not agree with its tensors")
        file.seek(at)
        count, width = int.from_bytes(file.read(8), "little"), storages[key].width
        parts[key] = Span(at + 8, count * width, 0)
        at += 8 + count * width
        if count != storages[key].numel or at > size:
            raise Refused("a storage is not as long as its tensors say; get the file again")
    if at != size:
        raise Refused("its numbers end before the file does; get the file again")
    if len(parts) != len(storages):
        raise Refused("its list of storages does not agree with its tensors")
    return root, parts
