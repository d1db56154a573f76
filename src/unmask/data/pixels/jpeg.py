"""Check the compressed data of a JPEG (ITU-T T.81): libjpeg decodes damaged data, too, and Pillow does not say so.

`check_warnings` asks libjpeg-turbo, which warns of most damage, at the speed of decoding and outside Python's lock.
`check_jpeg` finds more, and is slow: it follows every Huffman code without computing a pixel. Damage shifts the codes
after it. Then a block overflows, its mean leaves the range of 8-bit pixels, or the data does not end with the last
block. Damage that changes only a value is not found: a JPEG has no checksum.
"""

import re

import numpy as np
from simplejpeg import decode_jpeg

from . import BadImage
from .frames import Frame, read_codes, read_frame, read_quantization, read_scan
from .scans import check_scan

MAX_SCANS = 100  # as libtiff: thousands of tiny scans would take hours to decode

WARNINGS = ("Corrupt JPEG data", "Premature end of JPEG file", "Inconsistent progression sequence")
"""How libjpeg's warnings of damage begin. The others are about old or odd encoders."""

_MARKER = re.compile(rb"\xff+[^\x00\xff]", re.DOTALL)
_SCAN_END = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")

CHECKED = np.zeros(1 << 22, np.uint32)
"""Tags of the files that were good, so later epochs do not check them again; 16 MiB at most, whatever the dataset."""


def check_jpeg_once(data: bytes, mode: str = "RGB", *, exact: bool = True) -> None:
    """Raise BadImage for damaged data; remember good data for the life of the process.

    Args:
        mode: Pillow's colour mode of the image.
        exact: Follow every code too, at ten times the cost of asking libjpeg.
    """
    key = hash((data, exact))
    place, tag = key % len(CHECKED), (key >> 24 & 0xFFFFFFFF) | 1
    if CHECKED[place] == tag:
        return
    if data.count(b"\xff\xda") > MAX_SCANS:
        raise BadImage(f"more than {MAX_SCANS} scans: save it again")
    check_warnings(data, mode)
    if exact:
        check_jpeg(data)
    CHECKED[place] = tag


def check_warnings(data: bytes, mode: str = "RGB") -> None:
    """Raise BadImage if libjpeg warns of damage. What it cannot decode at all is left to Pillow, which says why."""
    colours = "CMYK" if mode == "CMYK" else "GRAY"
    try:
        # At an eighth of the size every code is still read, and few pixels are computed.
        decode_jpeg(data, colours, min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        said = str(error)
        if said.startswith(WARNINGS):
            reason = said.removeprefix("Corrupt JPEG data: ")
            cut = said.startswith("Premature end")
            raise BadImage("truncated JPEG" if cut else f"damaged (JPEG: {reason})") from error


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
            raise BadImage(
                "truncated JPEG" if at >= len(data) - 1 else "damaged (a JPEG with bytes between its segments)"
            )
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
            read_frame(frame, body, marker == 0xC2)
        elif marker == 0xDB:
            read_quantization(frame, body)
        elif marker == 0xC4:
            read_codes(frame, body)
        elif marker == 0xDD:
            frame.restart = int.from_bytes(body[:2], "big")
        elif marker == 0xDA:
            scans += 1
            if scans > MAX_SCANS:
                raise BadImage(f"more than {MAX_SCANS} scans: save it again")
            end = _SCAN_END.search(data, at)
            if end is None:
                raise BadImage("truncated JPEG")
            check_scan(frame, read_scan(frame, body, data[at : end.start()]))
            at = end.start()


def _check_complete(frame: Frame, scans: int) -> None:
    if not scans:
        raise BadImage("damaged (a JPEG without pixels)")
    if any(bits for missing in frame.precision.values() for bits in missing):
        raise BadImage("truncated JPEG: some of its scans are missing")
