"""Read texts from rows: JSON lines, a JSON array, or a column of CSV or Parquet. A row without a text has None."""

import csv
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from unmask.data.text.reading import MAX_LINE, read_blocks, read_lines, read_numbered_lines
from unmask.errors import ConfigError, DataError
from unmask.storage.files import escape_line

LocatedCell = tuple[str, str | None]
"""The position of a row, for errors, and its text; None for null."""

ROWS_AT_ONCE = 1000  # rows of Parquet that are decoded together
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def read_json_lines(path: Path, field: str) -> Iterator[LocatedCell]:
    """Yield the field of the JSON object on each line that is not blank."""
    for where, line in read_lines(path):
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({escape_line(str(error))}); put one object on each line") from error
        yield where, _select_field(data, field, where)


def read_json_texts(path: Path, field: str) -> Iterator[LocatedCell]:
    """Yield the texts of a JSON array of strings or objects; read a file that begins with no [ as JSON lines."""
    if next((block.lstrip()[0] for block in read_blocks(path) if block.strip()), "") != "[":
        yield from read_json_lines(path, field)
        return
    name = escape_line(str(path))
    blocks, size = [], 0
    for block in read_blocks(path):
        blocks.append(block)
        size += len(block)
        if size > MAX_LINE:
            raise DataError(f"{name}: a JSON array of more than {MAX_LINE} characters; save it as JSON lines (.jsonl)")
    try:
        items = json.loads("".join(blocks))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{name}: not JSON ({escape_line(str(error))}); give one array of strings or objects, or one object a line"
        ) from error
    for number, item in enumerate(items, 1):
        where = f"{name}, item {number}"
        plain = item is None or isinstance(item, str)
        yield where, check_cell(item, where) if plain else _select_field(item, field, where)


def read_csv(path: Path, field: str) -> Iterator[LocatedCell]:
    """Yield a column of a CSV or TSV file, by its name in the first row; a quoted cell may hold line ends."""
    name, tabs = escape_line(str(path)), ".tsv" in path.suffixes[-2:]
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE))
    rows = csv.reader(
        (line + "\n" for _, line in read_numbered_lines(path)), delimiter="\t" if tabs else ",", strict=True
    )
    head: list[str] | None = None
    line = 1
    try:
        for row in rows:
            where, line = f"{name}, line {line}", rows.line_num + 1
            if not row:
                continue
            if head is None:
                head = row
                place = _find_column(head, field, name)
            elif len(row) != len(head):
                quote = "a cell that holds the separator, a quote or a line end"
                raise DataError(f"{where}: {len(row)} cells in a table of {len(head)} columns; put {quote} in quotes")
            else:
                yield where, check_cell(row[place], where)
    except csv.Error as error:
        raise DataError(f"{name}, row from line {line}: {error}; close each quote, and double one inside") from error


def read_parquet(path: Path, field: str) -> Iterator[LocatedCell]:
    """Yield a column of a Parquet file; raise ConfigError if pyarrow is not installed."""
    name = escape_line(str(path))
    try:
        import pyarrow as arrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ConfigError(f"{name}: it takes pyarrow to read Parquet: pip install 'unmask[data]'") from error
    try:
        with ParquetFile(path) as file:
            _find_column(list(file.schema_arrow.names), field, name)
            batches = (batch.column(0).to_pylist() for batch in file.iter_batches(ROWS_AT_ONCE, columns=[field]))
            for number, cell in enumerate(chain.from_iterable(batches), 1):
                yield f"{name}, row {number}", check_cell(cell, f"{name}, row {number}")
    except (OSError, arrow.ArrowException) as error:
        reason = escape_line(" ".join(str(error).split())[:200])
        raise DataError(f"{name} cannot be read as Parquet: {reason}; check the file, or get it again") from error


def check_cell(cell: object, where: str) -> str | None:
    """Return a cell as text from a file would be read, None for null; raise DataError if it is something else."""
    if cell is None:
        return None
    if not isinstance(cell, str):
        raise DataError(f"{where}: {type(cell).__name__} instead of text: set --data.field to the column of the text")
    wrong = _NO_TEXT.search(cell)
    if wrong:
        raise DataError(f"{where}: it has {wrong.group()!a}, which is no character of a text; remove it")
    return cell.replace("\r\n", "\n")


def _select_field(data: Any, field: str, where: str) -> str | None:
    if isinstance(data, dict) and field in data and (data[field] is None or isinstance(data[field], str)):
        return check_cell(data[field], where)
    seen = "it is no object"
    if isinstance(data, dict):
        names = escape_line(", ".join(data)[:200]) or "nothing"
        seen = f"{type(data[field]).__name__} there" if field in data else f"it has {names}"
    raise DataError(f"{where}: no text in a field {field!r}, but {seen}; set --data.field")


def _find_column(names: list[str], field: str, where: str) -> int:
    if names.count(field) == 1:
        return names.index(field)
    if field in names:
        raise DataError(f"{where}: {names.count(field)} columns are called {field!r}; rename all but one")
    seen = escape_line(", ".join(names)[:200]) or "nothing"
    raise DataError(f"{where}: no column {field!r}, but {seen}; set --data.field")
