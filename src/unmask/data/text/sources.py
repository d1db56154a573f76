"""Sources of text: plain text, one document per line, JSON, CSV, Parquet, or a Hugging Face dataset, all read without
normalisation. Some documents, a split by name, or another file are held out."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from unmask.data.identity import draw_by_key, hash_encoded
from unmask.data.pictures import Arrangement
from unmask.data.shards.dataset import SplitName
from unmask.data.sources.hub import load_parts
from unmask.data.text.listing import ListedTexts, TextFormat, find_format, list_texts
from unmask.data.text.reading import LocatedText, read_documents, read_lines
from unmask.data.text.tables import LocatedCell, check_cell, read_csv, read_json_lines, read_json_texts, read_parquet
from unmask.errors import ConfigError, DataError, describe_os_error
from unmask.storage.files import escape_line, hash_file
from unmask.storage.remote import fetch_remote, is_remote, list_remote

FEW = 20  # with fewer documents, characters are held out instead of documents
TABLES = {"jsonl": read_json_lines, "json": read_json_texts, "csv": read_csv, "parquet": read_parquet}


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """A file of text in UTF-8, or a folder of such files; a name that ends in .gz is unpacked while reading.

    Hidden files are skipped. If a folder holds files or folders called `train` and `val` (valid, validation, dev), or
    `test`, these are the two sets and nothing else is held out.
    """

    path: str
    """The file or folder to train on, or addresses of files such as "s3://bucket/part-{0..9}.txt"."""
    test: str | None = None
    """A file or folder to hold out; by default the folder's own split val or test, or else a part of `path`."""
    format: Literal["auto", "text", "lines", "jsonl", "json", "csv", "parquet"] = "auto"
    """How the file holds documents: text between separators, or one per line, object or row; auto goes by the name."""
    field: str = "text"
    """The field of a JSON object, or the column, that holds the text."""
    separator: str = ""
    """The text between two documents in the format `text`; the space around a document is removed."""
    held_out: float = 0.1
    """Fraction of the documents to hold out; of the characters if there are fewer than 20 documents."""
    arrange: Arrangement = "content"
    """Hold out documents by their content, or (runs of early versions) the last ones."""

    def __post_init__(self) -> None:
        _check_share(self.held_out)
        if self.separator and self.format not in ("auto", "text"):
            raise ConfigError(f"separator {self.separator!r} is for format text, not {self.format}: leave it out")

    def read_documents(self, part: SplitName) -> Iterator[str]:
        """Yield each document of a split."""
        return (text for _, text in self.read_located(part))

    def read_located(self, part: SplitName) -> Iterator[LocatedText]:
        """Yield each document of a split with its position; raise DataError, with file and line, if it is not text."""
        listed = self._list()
        if listed.test is None:
            whole = lambda: keep_texts(self._read_all(listed.train))  # noqa: E731
            return hold_out(whole, part, self.held_out, self.path, self.arrange)
        paths, name = (listed.train, self.path) if part == "train" else (listed.test, self.test or self.path)
        return _require_some(keep_texts(self._read_all(paths)), name)

    def list_files(self) -> list[tuple[str, str]]:
        """Return the name of every file that is read, training files first, and its sha256."""
        listed = self._list()
        train = [(_name_file(path, self.path), _hash_file(path)) for path in listed.train]
        return train + [(_name_file(path, self.test or self.path), _hash_file(path)) for path in listed.test or ()]

    def list_left_out(self) -> list[str]:
        """Return a line for each file that is not read, and one on the rows without a text. Reads every row."""
        listed = self._list()
        paths = [path for path in (*listed.train, *(listed.test or ())) if self._choose_format(path) in TABLES]
        return [*map(str, listed.left_out), *describe_empty_rows(self._read_all(paths), self.field)]

    def forget_paths(self) -> "TextFile":
        """Return the source without where it lies: how the text is read, and whether a second file is held out."""
        return replace(self, path="", test=None if self.test is None else "")

    def _list(self) -> ListedTexts:
        train = self._list_below(self.path, split=self.test is None)
        if self.test is None:
            return train
        test = self._list_below(self.test, split=False)
        return ListedTexts(train=train.train, test=test.train, left_out=(*train.left_out, *test.left_out))

    def _list_below(self, name: str, *, split: bool) -> ListedTexts:
        if is_remote(name):
            return ListedTexts(train=tuple(map(fetch_remote, list_remote(name))))
        path = Path(name).expanduser()
        if not path.is_dir():
            return ListedTexts(train=(path,))
        return list_texts(path, None if self.format == "auto" else self.format, split=split)

    def _choose_format(self, path: Path) -> TextFormat:
        return (find_format(path) or "text") if self.format == "auto" else self.format

    def _read_all(self, paths: Iterable[Path]) -> Iterator[LocatedCell]:
        return chain.from_iterable(self._read_file(path) for path in paths)

    def _read_file(self, path: Path) -> Iterator[LocatedText] | Iterator[LocatedCell]:
        chosen = self._choose_format(path)
        if chosen in TABLES:
            return TABLES[chosen](path, self.field)
        return read_lines(path) if chosen == "lines" else read_documents(path, self.separator)


@dataclass(frozen=True, kw_only=True)
class HubText:
    """A text dataset by its name on the Hugging Face Hub, or a folder made by `save_to_disk` or any loader."""

    name: str
    """OWNER/NAME on the Hub, or a folder."""
    subset: str | None = None
    """One of the dataset's configurations; if unset, its default."""
    split: str = "train"
    """The split to train on."""
    test: str | None = None
    """The split to hold out; by default, a part of `split`."""
    field: str = "text"
    """The column that holds the text."""
    held_out: float = 0.1
    """Fraction of the documents to hold out; of the characters if there are fewer than 20 documents."""
    arrange: Arrangement = "content"
    """Hold out documents by their content, or (runs of early versions) the last ones."""

    def __post_init__(self) -> None:
        _check_share(self.held_out)

    def read_documents(self, part: SplitName) -> Iterator[str]:
        """Yield each document of a split."""
        return (text for _, text in self.read_located(part))

    def read_located(self, part: SplitName) -> Iterator[LocatedText]:
        """Yield each document of a split with its position; raise ConfigError for a missing split or column."""
        if self.test is None:
            rows = self._select_rows(self.split)
            whole = lambda: keep_texts(self._read_all(rows, self.split))  # noqa: E731
            return hold_out(whole, part, self.held_out, self.name, self.arrange)
        split = self.split if part == "train" else self.test
        return _require_some(keep_texts(self._read_all(self._select_rows(split), split)), f"{self.name}, {split}")

    def list_files(self) -> list[tuple[str, str]]:
        """Return every split and a hash, from the fingerprint that `datasets` makes of its content or origin."""
        splits = [split for split in (self.split, self.test) if split is not None]
        return [(split, hashlib.sha256(self._select_rows(split)._fingerprint.encode()).hexdigest()) for split in splits]

    def list_left_out(self) -> list[str]:
        """Return a line for each split that is not read, and one on the rows without a text. Reads every row."""
        splits = [split for split in (self.split, self.test) if split is not None]
        others = [split for split in load_parts(self.name, self.subset) if split not in splits]
        unused = [f"{self.name}, {split}: only {', '.join(splits)} is read; see --data.test" for split in others]
        rows = chain.from_iterable(self._read_all(self._select_rows(split), split) for split in splits)
        return [*unused, *describe_empty_rows(rows, self.field)]

    def forget_paths(self) -> "HubText":
        """Return the source itself: its name says what it is."""
        return self

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

    def _read_all(self, rows: Any, split: str) -> Iterator[LocatedCell]:
        cells = chain.from_iterable(batch[self.field] for batch in rows.iter(batch_size=1000))
        for number, cell in enumerate(cells):
            where = f"{self.name}, {split}, row {number}"
            yield where, check_cell(cell, where)


TextSource = TextFile | HubText


def hold_out(
    whole: Callable[[], Iterator[LocatedText]], part: SplitName, share: float, name: str, arrange: Arrangement
) -> Iterator[LocatedText]:
    """Yield one split of the documents; about the fraction `share` is the split `test`.

    The content of each document decides whether it is held out, so adding documents moves no other; if chance holds
    out none, the nearest one is. With `arrange` "position", the last documents are held out. Below `FEW` documents the
    last characters are, with either.

    The documents are read twice, first to count them, so that only one is in memory at a time.
    """
    num = total = held = nearest = 0
    least = 2.0
    for _, text in whole():
        num, total = num + 1, total + len(text)
        if arrange == "content":
            u = draw_by_content(text)
            held, nearest = held + (u < share), 1 if u < least else nearest + (u == least)
            least = min(least, u)
    if num >= FEW and arrange == "content":
        below = share if held else math.nextafter(least, 2.0)
        if num in (held, nearest):
            raise DataError(f"{escape_line(name)}: all {num} documents would be held out: add some, or lower held_out")
        for where, text in whole():
            if (draw_by_content(text) < below) == (part == "test"):
                yield where, text
        return
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


def draw_by_content(text: str) -> float:
    """Return a number in [0, 1] that the text decides."""
    return draw_by_key(hash_encoded(text.encode("utf-8", "surrogatepass"), whole=True), 0)


def keep_texts(rows: Iterable[LocatedCell]) -> Iterator[LocatedText]:
    """Yield the rows that have a text: not null, and not blank."""
    return ((where, text) for where, text in rows if text is not None and text.strip())


def describe_empty_rows(rows: Iterable[LocatedCell], field: str) -> list[str]:
    """Return a line with the number of rows whose text is null or blank and the first of them; [] if all have one."""
    num, first = 0, ""
    for where, text in rows:
        if text is None or not text.strip():
            num, first = num + 1, first or f"{where}: {'null' if text is None else 'blank'} in {field!r}"
    return [f"{num:,} row{'s' * (num > 1)} without a text, the first {first}"] if num else []


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


def _name_file(path: Path, top: str) -> str:
    root = path if is_remote(top) else Path(top).expanduser()
    return path.relative_to(root).as_posix() if path != root else path.name


def _hash_file(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise DataError(
            f"{escape_line(str(path))} cannot be read: {describe_os_error(error)}; check the path"
        ) from error
