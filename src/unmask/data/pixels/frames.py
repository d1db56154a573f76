"""What the markers of a JPEG say (ITU-T T.81, annex B): frame, tables, and the parts of each scan."""

import re
from dataclasses import dataclass, field

from . import BadImage

PAD = 8  # bytes after a segment, in which no code exists

_RESTART = re.compile(rb"\xff+([\xd0-\xd7])")
_STUFFED = re.compile(rb"\xff+\x00")


@dataclass(frozen=True)
class Component:
    """A colour component of the frame: sampling factors, quantization table, and its size in blocks."""

    horizontal: int
    vertical: int
    quantization: int
    blocks: tuple[int, int]  # height and width when it is alone in a scan


@dataclass
class Frame:
    """What the markers have said so far."""

    progressive: bool = False
    mcus: int = 0
    components: dict[int, Component] = field(default_factory=dict)
    quantization: dict[int, int] = field(default_factory=dict)  # of the mean
    codes: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    restart: int = 0
    precision: dict[int, list[int]] = field(default_factory=dict)  # bits still missing of each coefficient
    history: dict[int, list[int]] = field(default_factory=dict)  # of each block, a bit for each nonzero coefficient


@dataclass(frozen=True)
class Scan:
    """One scan: its components, their Huffman tables, and the coefficients and bits that it holds."""

    components: tuple[int, ...]
    tables: tuple[int, ...]
    first: int
    last: int
    high: int
    low: int
    data: bytes
    segments: tuple[tuple[int, int], ...]  # start and end in bits, between restart markers


def read_frame(frame: Frame, body: bytes, progressive: bool) -> None:
    if frame.components:
        raise ValueError("a second frame")
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    parts = [body[6 + 3 * i : 9 + 3 * i] for i in range(body[5])]
    tallest, widest = max(p[1] & 15 for p in parts), max(p[1] >> 4 for p in parts)
    frame.progressive = progressive
    frame.mcus = -(-height // (8 * tallest)) * -(-width // (8 * widest))
    for part in parts:
        across, down = part[1] >> 4, part[1] & 15
        rows, columns = -(-height * down // (8 * tallest)), -(-width * across // (8 * widest))
        frame.components[part[0]] = Component(across, down, part[2], (rows, columns))
        frame.precision[part[0]] = [99] * 64


def read_quantization(frame: Frame, body: bytes) -> None:
    while body:
        wide = body[0] >> 4
        frame.quantization[body[0] & 15] = int.from_bytes(body[1 : 2 + bool(wide)], "big")
        body = body[129 if wide else 65 :]


def read_codes(frame: Frame, body: bytes) -> None:
    while body:
        counts = body[1:17]
        frame.codes[body[0]] = counts, body[17 : 17 + sum(counts)]
        body = body[17 + sum(counts) :]


def read_scan(frame: Frame, body: bytes, data: bytes) -> Scan:
    count = body[0]
    names = tuple(body[1 + 2 * i] for i in range(count))
    tables = tuple(body[2 + 2 * i] for i in range(count))
    first, last, steps = body[1 + 2 * count : 4 + 2 * count]
    if not frame.progressive:
        first, last, steps = 0, 63, 0
    if last > 63 or first > last or (frame.progressive and first == 0 and last) or (first and count > 1):
        raise ValueError("no such part of the coefficients")
    pieces, start, segments = [], 0, []
    marks = list(_RESTART.finditer(data))
    if any(mark[1][0] != 0xD0 + i % 8 for i, mark in enumerate(marks)):
        raise BadImage("damaged (a part of the JPEG between two restart markers is missing)")
    for begin, end in zip([0, *(m.end() for m in marks)], [*(m.start() for m in marks), len(data)], strict=True):
        piece = _STUFFED.sub(b"\xff", data[begin:end])
        segments.append((8 * start, 8 * (start + len(piece))))
        pieces += [piece, b"\xff" * PAD]
        start += len(piece) + PAD
    if len(segments) > 1 and segments[-1][0] == segments[-1][1]:
        segments.pop()  # some encoders end with a restart marker
    return Scan(names, tables, first, last, steps >> 4, steps & 15, b"".join(pieces), tuple(segments))
