"""Sources of text: plain text, one document per line, JSON lines, or a Hugging Face dataset, all read without
normalisation. The last part, or another file, is held out."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from unmask.data.shards.dataset import SplitName
from unmask.data.sources.hub import load_parts
from unmask.data.text.reading import LocatedText, read_documents, read_lines
from unmask.errors import ConfigError, DataError
from unmask.storage.files import escape_line, hash_file

FEW = 20  # with fewer documents, characters are held out instead of documents
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """A file of text in UTF-8, or a folder of such files; a name that ends in .gz is unpacked while reading."""

    path: str
    """The file or folder to train on."""
    test: str | None = None
    """A file or folder to hold out; by default, the last part of `path`."""
    format: Literal["auto", "text", "lines", "jsonl"] = "auto"
    """`text`: one document, or several between separators; `lines`: one per line; `jsonl`: one JSON object per line."""
    field: str = "text"
    """The field of a JSON object that holds the text."""
    separator: str = ""
    """The text between two documents in the format `text`; the space around a document is removed."""
    held_out: float = 0.1
    """Fraction of the documents to hold out; of the characters if there are fewer than 20 documents."""

    def __post_init__(self) -> None:
        _check_share(self.held_out)
        if self.separator and self.format in ("lines", "jsonl"):
            raise ConfigError(f"separator {self.separator!r} is for format text, not {self.format}: leave it out")

    def read_documents(self, part: SplitName) -> Iterator[str]:
        """Yield each document of a split."""
        return (text for _, text in self.read_located(part))

    def read_located(self, part: SplitName) -> Iterator[LocatedText]:
        """Yield each document of a split with its position; raise DataError, with file and line, if it is not text."""
        if self.test is None:
            return hold_out(lambda: self._read_all(self.path), part, self.held_out, self.path)
        path = self.path if part == "train" else self.test
        return _require_some(self._read_all(path), path)

    def hash_files(self) -> tuple[str, ...]:
        """Return the sha256 of every file."""
        paths = [path for name in (self.path, self.test) if name is not None for path in self._list_files(name)]
        return tuple(_hash_file(path) for path in paths)

    def _read_all(self, name: str) -> Iterator[LocatedText]:
        return chain.from_iterable(self._read_file(path) for path in self._list_files(name))

    def _list_files(self, name: str) -> list[Path]:
        path = Path(name).expanduser()
        if not path.is_dir():
            return [path]
        ending = ".jsonl" if self.format == "jsonl" else ".txt"
        found = sorted(file for file in path.rglob("*") if file.name.removesuffix(".gz").endswith(ending))
        if not found:
            raise DataError(f"{escape_line(name)}: no {ending} files in this folder; name one with texts, or a file")
        return found

    def _read_file(self, path: Path) -> Iterator[LocatedText]:
        chosen = self.format
        if chosen == "auto":
            chosen = "jsonl" if path.name.removesuffix(".gz").endswith(".jsonl") else "text"
        if chosen == "text":
            return read_documents(path, self.separator)
        if chosen == "lines":
            return read_lines(path)
        texts = ((where, _parse_field(line, self.field, where)) for where, line in read_lines(path))
        return ((where, text) for where, text in texts if text.strip())


@dataclass(frozen=True, kw_only=True)
class HubText:
    """A text dataset by its name on the Hugging Face Hub, or a folder made by `save_to_disk` or any loader."""

    name: str
    """OWNER/NAME on the Hub, or a folder."""
    subset: str | None = None
    """One of its configurations."""
    split: str = "train"
    """The split to train on."""
    test: str | None = None
    """The split to hold out; by default, the last part of `split`."""
    field: str = "text"
    """The column that holds the text."""
    held_out: float = 0.1
    """Fraction of the documents to hold out; of the characters if there are fewer than 20 documents."""

    def __post_init__(self) -> None:
        _check_share(self.held_out)

    def read_documents(self, part: SplitName) -> Iterator[str]:
        """Yield each document of a split."""
        return (text for _, text in self.read_located(part))

    def read_located(self, part: SplitName) -> Iterator[LocatedText]:
        """Yield each document of a split with its position; raise ConfigError for a missing split or column."""
        if self.test is None:
            rows = self._select_rows(self.split)
            return hold_out(lambda: self._read_all(rows, self.split), part, self.held_out, self.name)
        split = self.split if part == "train" else self.test
        return _require_some(self._read_all(self._select_rows(split), split), f"{self.name}, {split}")

    def hash_files(self) -> tuple[str, ...]:
        """Return a hash of every split, from the fingerprint that `datasets` makes of its content or origin."""
        splits = [split for split in (self.split, self.test) if split is not None]
        return tuple(hashlib.sha256(self._select_rows(split)._fingerprint.encode()).hexdigest() for split in splits)

    def _select_rows(self, split: str) -> Any:
        if not self.name:
            raise ConfigError("which dataset? Give --data.name OWNER/NAME, or a folder made by save_to_disk")
        parts = load_parts(self.name, self.subset)
        if split not in parts:
            raise ConfigError(f"{self.name} has no split {split!r}, but {', '.join(parts)}: set --data.split or .test")
        rows = parts[split]
        if self.field not in rows.features:
            names = ", ".join(rows.features)
            raise ConfigError(f"{self.name}, {split}: no column {self.field!r}, but {names}: set --data.field")
        return rows.select_columns([self.field])

    def _read_all(self, rows: Any, split: str) -> Iterator[LocatedText]:
        cells = chain.from_iterable(batch[self.field] for batch in rows.iter(batch_size=1000))
        for number, cell in enumerate(cells):
            where = f"{self.name}, {split}, row {number}"
            if not isinstance(cell, str):
                raise DataError(f"{where}: {type(cell).__name__} instead of text in {self.field!r}: set --data.field")
            text = _check_text(cell, where)
            if text.strip():
                yield where, text


TextSource = TextFile | HubText


def hold_out(
    whole: Callable[[], Iterator[LocatedText]], part: SplitName, share: float, name: str
) -> Iterator[LocatedText]:
    """Yield one split of the documents: `test` is their last `share` (of the characters below `FEW` documents).

    The documents are read twice, first to count them, so that only one is in memory at a time.
    """
    num = total = 0
    for _, text in whole():
        num, total = num + 1, total + len(text)
    if num >= FEW:
        end = int((1 - share) * num)
        yield from islice(whole(), end) if part == "train" else islice(whole(), end, None)
        return
    rest = int((1 - share) * total)
    for where, text in _require_some(whole(), name):
        kept, rest = min(rest, len(text)), max(rest - len(text), 0)
        chosen = text[:kept] if part == "train" else text[kept:]
        place = f"{where}, from its character {kept} on" if part == "test" and kept else where
        if chosen:
            yield place, chosen


def _parse_field(line: str, field: str, where: str) -> str:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({escape_line(str(error))}); put one object on each line") from error
    if not isinstance(data, dict) or not isinstance(data.get(field), str):
        seen = (
            f"it has {escape_line(', '.join(data)[:200]) or 'nothing'}" if isinstance(data, dict) else "it is no object"
        )
        raise DataError(f"{where}: no text in a field {field!r}, but {seen}; set --data.field")
    return _check_text(data[field], where)


def _check_text(text: str, where: str) -> str:
    """Check text from another format like text from a file."""
    wrong = _NO_TEXT.search(text)
    if wrong:
        raise DataError(f"{where}: it has {wrong.group()!a}, which is no character of a text; remove it")
    return text.replace("\r\n", "\n")


def _require_some(documents: Iterator[LocatedText], name: str) -> Iterator[LocatedText]:
    """Yield the same documents; raise DataError if there are none."""
    first = next(documents, None)
    if first is None:
        raise DataError(f"{escape_line(name)} holds no text: name another file or split")
    yield first
    yield from documents


def _check_share(held_out: float) -> None:
    if not 0 < held_out < 1:
        raise ConfigError(f"held_out is {held_out}; hold out a fraction between 0 and 1, for the validation loss")


def _hash_file(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise DataError(f"{escape_line(str(path))} cannot be read: {error.strerror}; check the path") from error
