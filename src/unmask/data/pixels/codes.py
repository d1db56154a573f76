"""The Huffman codes of a JPEG at every bit of a scan (ITU-T T.81, annexes C and F)."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .frames import PAD, Scan

SPAN = 1 << 15  # bytes whose codes are looked up at a time, so memory does not grow with the file
OVERLAP = 1 << 12  # and the bytes after them that one more MCU can reach: at most 10 blocks of 1,665 bits
STOP = 255  # ends a block: an end-of-block code has LAST, no code or a wrong one has STOP
LAST = 128

Lookup = NDArray[np.uint8]


@lru_cache(64)
def build_code_table(counts: bytes, symbols: bytes) -> tuple[Lookup, Lookup]:
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
def build_mean_table(counts: bytes, symbols: bytes) -> tuple[Lookup, Lookup, Lookup]:
    """Return (bits of code and value together, bits of the code, bits of the value) of a mean's difference."""
    lengths, sizes = build_code_table(counts, symbols)
    lengths = np.where(sizes > 11, np.uint8(0), lengths)
    return np.where(lengths > 0, lengths + sizes, np.uint8(24)), lengths, sizes  # no code: go on, to reach an end


@lru_cache(64)
def build_rest_table(counts: bytes, symbols: bytes) -> tuple[Lookup, Lookup]:
    """Return, for a baseline code, its bits with its value, and the coefficients passed; LAST or STOP ends a block."""
    lengths, values = build_code_table(counts, symbols)
    runs, sizes = values >> 4, values & 15
    passed = (runs + 1).astype(np.uint8)
    passed[(sizes == 0) & (runs == 0)] = LAST
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
        part = np.frombuffer(self.scan.data, np.uint8, offset=at >> 3)[: SPAN + OVERLAP]
        self.base, self.stop = at & ~7, (at & ~7) + 8 * min(SPAN, len(part))
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
