"""Read text files in blocks. Bytes that are not UTF-8, NUL bytes and endless lines are refused with their position;
nothing is repaired or left out."""

import codecs
import gzip
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from unmask.errors import DataError, describe_os_error
from unmask.storage.files import escape_line

LocatedText = tuple[str, str]
"""The position of a text, for errors, and the text."""

READ_BYTES = 1 << 20  # bytes per read
MAX_LINE = 1 << 26  # characters
BOM = codecs.BOM_UTF8


def read_documents(path: Path, separator: str) -> Iterator[LocatedText]:
    """Yield the documents between separators, stripped, without empty ones; without a separator, the whole text."""
    if not separator:
        text = "".join(read_blocks(path))
        if text.strip():
            yield escape_line(str(path)), text
        return
    line = 1
    for piece in _split(read_blocks(path), separator):
        begin = len(piece) - len(piece.lstrip())
        if begin < len(piece):
            where = f"{escape_line(str(path))}, document at line {line + piece.count(chr(10), 0, begin)}"
            yield where, piece.strip()
        line += piece.count("\n") + separator.count("\n")


def read_lines(path: Path) -> Iterator[LocatedText]:
    """Yield the lines that are not blank, without line ends; raise DataError for one over `MAX_LINE` characters."""
    name = escape_line(str(path))
    return ((f"{name}, line {number}", line) for number, line in read_numbered_lines(path) if line.strip())


def read_numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number of each line, from 1, and the line without its end; raise DataError as `read_lines` does."""
    held: list[str] = []
    size, number = 0, 1
    for block in chain(read_blocks(path), ["\n"]):
        first, *others = block.split("\n")
        held.append(first)
        size += len(first)
        if size > MAX_LINE:
            raise DataError(
                f"{escape_line(str(path))}, line {number}: more than {MAX_LINE} characters; put each document on a "
                "line by itself, or read the file as text"
            )
        if not others:
            continue
        for line in ("".join(held), *others[:-1]):
            yield number, line
            number += 1
        held, size = others[-1:], len(others[-1])


def read_blocks(path: Path) -> Iterator[str]:
    """Yield the text of a file in blocks, without byte-order mark, \\r\\n as \\n; raise DataError if it is not text."""
    pending, offset, line = b"", 0, 1
    for raw in chain(_read_raw(path), [b""]):
        data = pending + raw
        if not offset and data.startswith(BOM):
            data, offset = data[len(BOM) :], len(BOM)
        nul = data.find(0)
        if nul >= 0:
            at = f"line {line + data.count(10, 0, nul)} (byte {offset + nul})"
            raise DataError(
                f"{escape_line(str(path))}, {at}: a NUL byte, which no text has; clean it, or save it as UTF-8"
            )
        try:
            text, used = codecs.utf_8_decode(data, "strict", not raw)
        except UnicodeDecodeError as error:
            at = f"byte {offset + error.start} (line {line + data.count(10, 0, error.start)})"
            raise DataError(
                f"{escape_line(str(path))}, {at}: {error.reason}, so not UTF-8; convert it to that"
            ) from error
        if raw and text.endswith("\r"):  # its \n may come with the next block
            text, used = text[:-1], used - 1
        pending, offset, line = data[used:], offset + used, line + text.count("\n")
        if text:
            yield text.replace("\r\n", "\n")


def _read_raw(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            while block := file.read(READ_BYTES):
                yield block
    except (OSError, EOFError, zlib.error) as error:
        reason = describe_os_error(error)
        raise DataError(
            f"{escape_line(str(path))} cannot be read: {reason}; check the path, or get it again"
        ) from error


def _split(blocks: Iterator[str], separator: str) -> Iterator[str]:
    """Yield `"".join(blocks).split(separator)` with only one piece in memory."""
    held: list[str] = []
    edge = ""  # may be the start of a separator
    for block in blocks:
        first, *others = (edge + block).split(separator)
        if others:
            yield "".join([*held, first])
            yield from others[:-1]
            held, first = [], others[-1]
        kept = max(len(first) - len(separator) + 1, 0)
        held.append(first[:kept])
        edge = first[kept:]
    yield "".join([*held, edge])
