"""Check the compressed data of a JPEG (ITU-T T.81): libjpeg decodes damaged data all the same, and Pillow does not say so.

`check_jpeg` follows every Huffman code without computing a pixel. Damage shifts the codes after it. Then a block
overflows, its mean leaves the range of 8-bit pixels, or the data does not end with the last block. Damage that changes
only a value is not found: a JPEG has no checksum.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from . import BadImage

MAX_SCANS = 100  # as libtiff: thousands of tiny scans would take hours to decode
PORTION = 1 << 15  # bytes whose codes are looked up at a time, so memory does not grow with the file
OVERLAP = 1 << 12  # and the bytes after them that one more MCU can reach: at most 10 blocks of 1,665 bits
PAD = 8  # bytes after a segment, in which no code exists
STOP = 255  # ends a block: an end-of-block code has 128, no code or a wrong one has STOP
END = 128
MAX_MEAN = 1024  # of a block, less 128 and times 8
OVERSHOOT = 256  # some encoders put white above 255 beside edges, in brightness alone

_MARKER = re.compile(rb"\xff+[^\x00\xff]", re.DOTALL)
_SCAN_END = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
_RESTART = re.compile(rb"\xff+([\xd0-\xd7])")
_STUFFED = re.compile(rb"\xff+\x00")

Lookup = NDArray[np.uint8]


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


CHECKED = np.zeros(1 << 22, np.uint32)
"""Tags of the files that were good, so later epochs do not check them again; 16 MiB at most, whatever the dataset."""


def check_jpeg_once(data: bytes) -> None:
    """Like `check_jpeg`, but remember good data for the life of the process."""
    key = hash(data)
    place, tag = key % len(CHECKED), (key >> 24 & 0xFFFFFFFF) | 1
    if CHECKED[place] != tag:
        check_jpeg(data)
        CHECKED[place] = tag


def check_jpeg(data: bytes) -> None:
    """Raise BadImage if the compressed data does not fit the frame; arithmetic coding is not checked."""
    try:
        _follow_markers(data)
    except (ArithmeticError, LookupError, ValueError) as error:
        raise BadImage("damaged (JPEG markers that contradict each other)") from error


def _follow_markers(data: bytes) -> None:
    frame, at, scans = Frame(), 2, 0
    while True:
        found = _MARKER.match(data, at)
        if found is None:
            raise BadImage("truncated JPEG" if at >= len(data) - 1 else "damaged (a JPEG with bytes between its segments)")
        marker, at = data[found.end() - 1], found.end()
        if marker == 0xD9:
            _check_complete(frame, scans)
            return
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        body = data[at + 2 : at + length]
        at += length
        if 0xC9 <= marker <= 0xCF and marker != 0xCC and not frame.components:
            return  # arithmetic coding
        if marker in (0xC0, 0xC1, 0xC2) or 0xC9 <= marker <= 0xCB:
            _read_frame(frame, body, marker == 0xC2)
        elif marker == 0xDB:
            _read_quantization(frame, body)
        elif marker == 0xC4:
            _read_codes(frame, body)
        elif marker == 0xDD:
            frame.restart = int.from_bytes(body[:2], "big")
        elif marker == 0xDA:
            scans += 1
            if scans > MAX_SCANS:
                raise BadImage(f"more than {MAX_SCANS} scans: save it again")
            end = _SCAN_END.search(data, at)
            if end is None:
                raise BadImage("truncated JPEG")
            _check_scan(frame, _read_scan(frame, body, data[at : end.start()]))
            at = end.start()


def _check_complete(frame: Frame, scans: int) -> None:
    if not scans:
        raise BadImage("damaged (a JPEG without pixels)")
    if any(bits for missing in frame.precision.values() for bits in missing):
        raise BadImage("truncated JPEG: some of its scans are missing")


def _read_frame(frame: Frame, body: bytes, progressive: bool) -> None:
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


def _read_quantization(frame: Frame, body: bytes) -> None:
    while body:
        wide = body[0] >> 4
        frame.quantization[body[0] & 15] = int.from_bytes(body[1 : 2 + bool(wide)], "big")
        body = body[129 if wide else 65 :]


def _read_codes(frame: Frame, body: bytes) -> None:
    while body:
        counts = body[1:17]
        frame.codes[body[0]] = counts, body[17 : 17 + sum(counts)]
        body = body[17 + sum(counts) :]


def _read_scan(frame: Frame, body: bytes, data: bytes) -> Scan:
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


@lru_cache(64)
def _expand(counts: bytes, symbols: bytes) -> tuple[Lookup, Lookup]:
    """Return length and symbol of the code that each of the 65,536 16-bit windows begins with; 0 and 0 for no code."""
    lengths = np.repeat(np.arange(1, 17, dtype=np.uint8), np.frombuffer(counts, np.uint8))
    values = np.frombuffer(symbols, np.uint8)
    spans = 1 << (16 - lengths.astype(np.int64))
    rest = 65536 - int(spans.sum())
    if rest < 0 or len(values) != len(lengths):
        raise ValueError("no such code")
    zero = np.zeros(rest, np.uint8)
    return np.concatenate([np.repeat(lengths, spans), zero]), np.concatenate([np.repeat(values, spans), zero])


@lru_cache(64)
def _expand_mean(counts: bytes, symbols: bytes) -> tuple[Lookup, Lookup, Lookup]:
    """Return (bits of code and value together, bits of the code, bits of the value) of a mean's difference."""
    lengths, sizes = _expand(counts, symbols)
    lengths = np.where(sizes > 11, np.uint8(0), lengths)
    return np.where(lengths > 0, lengths + sizes, np.uint8(24)), lengths, sizes  # no code: go on, to reach an end


@lru_cache(64)
def _expand_rest(counts: bytes, symbols: bytes) -> tuple[Lookup, Lookup]:
    """Return (bits of code and value together, coefficients passed: END or STOP if the block ends) of a baseline code."""
    lengths, values = _expand(counts, symbols)
    runs, sizes = values >> 4, values & 15
    passed = runs + np.uint8(1)
    passed[(sizes == 0) & (runs == 0)] = END
    passed[(lengths == 0) | (sizes > 10) | ((sizes == 0) & (runs > 0) & (runs < 15))] = STOP
    return lengths + sizes, passed


class Portions:
    """The 16-bit windows at every bit of a scan, a portion at a time."""

    def __init__(self, scan: Scan):
        self.scan = scan
        self.base = self.stop = 0  # in bits
        self.ends = np.array([end for _, end in scan.segments])

    def move(self, at: int) -> None:
        """Go to the portion that begins at the byte of bit `at`."""
        part = np.frombuffer(self.scan.data, np.uint8, offset=at >> 3)[: PORTION + OVERLAP]
        self.base, self.stop = at & ~7, (at & ~7) + 8 * min(PORTION, len(part))
        wide = np.concatenate([part, np.full(2, 255, np.uint8)]).astype(np.uint32)
        words = wide[:-2] << 16 | wide[1:-1] << 8 | wide[2:]
        self.windows = (words[:, None] >> np.arange(8, 0, -1, dtype=np.uint32) & 0xFFFF).astype(np.intp).reshape(-1)
        pads = (self.ends[:, None] + np.arange(8 * PAD) - self.base).reshape(-1)
        self.pads = pads[(pads >= 0) & (pads < len(self.windows))]

    def look_up(self, table: Lookup, pad: int) -> bytes:
        """Return the table's entry at every bit, and `pad` where no data is."""
        found = table.take(self.windows)
        found[self.pads] = pad
        return found.tobytes()


def _check_scan(frame: Frame, scan: Scan) -> None:
    parts = [frame.components[name] for name in scan.components]
    alone = len(parts) == 1
    total = parts[0].blocks[0] * parts[0].blocks[1] if alone else frame.mcus
    step = frame.restart or total
    if len(scan.segments) != -(-total // step):
        raise BadImage("damaged (restart markers of the JPEG are missing or too many)")
    for name in scan.components:
        missing = frame.precision[name]
        if any(bits != (scan.high if scan.high else 99) for bits in missing[scan.first : scan.last + 1]):
            raise ValueError("a part that is given twice, or refined before it is given")
        missing[scan.first : scan.last + 1] = [scan.low] * (scan.last + 1 - scan.first)
    counts = [min(step, total - done) for done in range(0, total, step)]
    if scan.first:
        _follow_band(frame, scan, counts)
    elif scan.high:  # one more bit of each mean
        each = 1 if alone else sum(part.horizontal * part.vertical for part in parts)
        for (start, end), count in zip(scan.segments, counts, strict=True):
            _check_end(start + each * count, end)
    else:
        _follow_means(frame, scan, parts, counts)


def _check_end(at: int, end: int) -> None:
    if at > end:
        raise BadImage("damaged (the compressed data of the JPEG ends before its last block)")
    if end - at >= 8:
        raise BadImage("damaged (compressed data of the JPEG is left over after its last block)")


def _follow_means(frame: Frame, scan: Scan, parts: list[Component], counts: list[int]) -> None:
    """Follow a baseline scan, or the first scan of the means of a progressive one."""
    order: list[int] = []
    for place, part in enumerate(parts):
        order += [place] * (1 if len(parts) == 1 else part.horizontal * part.vertical)
    means = [_expand_mean(*frame.codes[table >> 4]) for table in scan.tables]
    rests = [None if frame.progressive else _expand_rest(*frame.codes[16 | (table & 15)]) for table in scan.tables]
    portions = Portions(scan)
    starts: list[int] = []
    passed: list[int] = []
    found: list[NDArray[np.int64]] = []
    tables: list[tuple[bytes, bytes, bytes]] = []
    for (at, end), left in zip(scan.segments, counts, strict=True):
        while left:
            if at >= portions.stop:
                found.append(_read_means(portions, starts, order, means))
                starts.clear()
                portions.move(at)
                tables = _look_up(portions, means, rests, order)
            if at >= end:
                _check_end(end + 1, end)
            here, stop = at - portions.base, min(portions.stop, end) - portions.base
            while left and here < stop:
                left -= 1
                for mean, bits, steps in tables:
                    starts.append(here)
                    here += mean[here]
                    k = 1
                    while k < 64:
                        k += steps[here]
                        here += bits[here]
                    passed.append(k)
            at = here + portions.base
        _check_end(at, end)
    found.append(_read_means(portions, starts, order, means))
    ended = np.array(passed)
    if ((ended > 64) & ((ended < END + 1) | (ended > END + 63))).any():
        raise BadImage("damaged (a block of the JPEG has more than 64 coefficients or no valid code)")
    _check_means(frame, scan, parts, counts, order, np.concatenate(found))


def _look_up(portions: Portions, means: list, rests: list, order: list[int]) -> list[tuple[bytes, bytes, bytes]]:
    """Return, for each block of an MCU, the entries of its tables at every bit."""
    mean = {id(table): portions.look_up(table[0], 0) for table in means}  # components may share tables
    rest = {id(table): (portions.look_up(table[0], 0), portions.look_up(table[1], STOP)) for table in rests if table}
    size = len(portions.windows)
    rest[id(None)] = b"\0" * size, bytes([END]) * size  # the scan holds means only: nothing to pass
    return [(mean[id(means[place])], *rest[id(rests[place])]) for place in order]


def _read_means(
    portions: Portions, starts: list[int], order: list[int], means: list[tuple[Lookup, Lookup, Lookup]]
) -> NDArray[np.int64]:
    """Return the differences of the means whose codes are at `starts`."""
    if not starts:
        return np.zeros(0, np.int64)
    at = np.array(starts)
    which = np.resize(np.array(order), len(at))
    lengths, sizes = np.zeros(len(at), np.int64), np.zeros(len(at), np.int64)
    for place, (_, length, size) in enumerate(means):
        chosen = which == place
        window = portions.windows[at[chosen]]
        lengths[chosen], sizes[chosen] = length[window], size[window]
    if not lengths.all():
        raise BadImage("damaged (no valid code in the JPEG)")
    bits = portions.windows[np.minimum(at + lengths, len(portions.windows) - 1)] >> (16 - sizes)
    return np.where((sizes > 0) & (bits < 1 << np.maximum(sizes - 1, 0)), bits - (1 << sizes) + 1, bits)


def _check_means(
    frame: Frame, scan: Scan, parts: list[Component], counts: list[int], order: list[int], means: NDArray[np.int64]
) -> None:
    """Raise BadImage if the mean of a block is far outside the range of 8-bit pixels."""
    segment = np.repeat(np.arange(len(counts)), np.array(counts) * len(order))
    which = np.resize(np.array(order), len(means))
    first_part = next(iter(frame.components.values()))
    for place, part in enumerate(parts):
        own, where = means[which == place], segment[which == place]
        sums = np.cumsum(own)
        first = np.searchsorted(where, np.arange(len(counts)))  # the sums begin at 0 in each segment
        sums -= (sums - own)[first][where]
        scale = frame.quantization[part.quantization]
        sums = (sums << scan.low) * scale
        slack = scale << scan.low
        top = MAX_MEAN + slack + (OVERSHOOT if part is first_part or len(frame.components) != 3 else 0)
        if sums.min() < -MAX_MEAN - slack or sums.max() > top:
            raise BadImage("damaged (a block of the JPEG is brighter than white or darker than black)")


def _follow_band(frame: Frame, scan: Scan, counts: list[int]) -> None:
    """Follow a progressive scan of the coefficients first..last of one component."""
    name = scan.components[0]
    rows, columns = frame.components[name].blocks
    history = frame.history.setdefault(name, [0] * (rows * columns))
    lengths, symbols = _expand(*frame.codes[16 | (scan.tables[0] & 15)])
    portions, block = Portions(scan), 0
    codes = values = b""
    for (at, end), count in zip(scan.segments, counts, strict=True):
        blocks, run = range(block, block + count), 0
        block += count
        for i in blocks:
            if at >= portions.stop and at < end:
                portions.move(at)
                codes, values = portions.look_up(lengths, 0), portions.look_up(symbols, 0)
            if run and not history[i]:
                run -= 1
                continue
            if at >= end and not run:
                _check_end(end + 1, end)
            here = at - portions.base
            follow = _refine_block if scan.high else _follow_block
            here, run, history[i] = follow(scan, portions, codes, values, here, run, history[i])
            at = here + portions.base
        if run:
            raise BadImage("damaged (a run of empty blocks in the JPEG goes past the last one)")
        _check_end(at, end)


def _read_run(portions: Portions, here: int, size: int) -> int:
    """Return the number of blocks whose band ends here, this one included."""
    return (1 << size) + (int(portions.windows[here]) >> (16 - size) if size else 0)


def _follow_block(
    scan: Scan, portions: Portions, codes: bytes, values: bytes, here: int, run: int, known: int
) -> tuple[int, int, int]:
    """Follow the first scan of a block's band; return the place, the run of empty blocks left, and its history."""
    if run:
        return here, run - 1, known
    k = scan.first
    while k <= scan.last:
        length, symbol = codes[here], values[here]
        skip, size = symbol >> 4, symbol & 15
        if not length or size > 10:
            raise BadImage("damaged (no valid code in the JPEG)")
        here += length
        if not size and skip < 15:
            return here + skip, _read_run(portions, here, skip) - 1, known
        k += skip
        if k > scan.last:
            raise BadImage("damaged (a block of the JPEG has too many coefficients)")
        if size:
            known |= 1 << k
        here += size
        k += 1
    return here, 0, known


def _refine_block(
    scan: Scan, portions: Portions, codes: bytes, values: bytes, here: int, run: int, known: int
) -> tuple[int, int, int]:
    """Follow one more bit of a block's band: one for each coefficient that is nonzero already, and new ones."""
    band = known & ((2 << scan.last) - 1)
    k, grown = scan.first, known
    while not run and k <= scan.last:
        length, symbol = codes[here], values[here]
        skip, size = symbol >> 4, symbol & 15
        if not length or size > 1:
            raise BadImage("damaged (no valid code in the JPEG)")
        here += length
        if not size and skip < 15:
            run = _read_run(portions, here, skip)
            here += skip
            break
        here += size  # its sign
        while k <= scan.last:
            if band >> k & 1:
                here += 1
            elif skip:
                skip -= 1
            else:
                break
            k += 1
        if size and k > scan.last:
            raise BadImage("damaged (a block of the JPEG has too many coefficients)")
        grown |= size << k
        k += 1
    if run:
        return here + (band >> k).bit_count(), run - 1, grown
    return here, 0, grown
