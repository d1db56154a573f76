"""Token datasets of images: tokenized once, then read row by row in training from memory-mapped token shards.

A folder holds `train-00000.tokens.npy` [rows, views, l], `train-00000.labels.npy` if there are classes, and
`meta.json`, which is written last: without it the folder is not finished. Only the labels are in memory.
"""

import functools
import hashlib
import io
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Int32, UInt16

from unmask.errors import ConfigError, DataError, DiskError, describe_os_error
from unmask.lazy import Tensor, torch
from unmask.storage.config import read_json, write_json
from unmask.storage.files import hash_file, write_bytes

SplitName = Literal["train", "test"]
"""The two parts of a dataset."""

META = "meta.json"
MAX_JSON = 1 << 26  # bytes
MAX_STORED_VOCAB = 2**31 - 1
OPEN_MAPS = 400  # each holds a file descriptor; a process often has 1,024
MAX_MAPPED = 1 << 28  # bytes of the maps that may be resident
FAULT = 1 << 16  # bytes that Linux maps around each byte it reads

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TOKENS = re.compile(r"(train|test)-\d{5,}\.tokens\.npy")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of tokens, with the file of its labels, `*.labels.npy`, beside it."""

    file: str
    """Name of the file of tokens."""
    rows: int
    """Number of rows."""
    sha256: str
    """SHA-256 of the file of tokens."""
    labels: str | None
    """SHA-256 of the file of labels, or None without classes."""

    def __post_init__(self) -> None:
        if not _TOKENS.fullmatch(self.file):
            raise ConfigError(f"{self.file!r} is not the name of a shard, such as train-00000.tokens.npy")
        if self.rows < 0:
            raise ConfigError(f"{self.file} has {self.rows} rows; give 0 or more")
        for digest in (self.sha256, self.labels):
            if digest is not None and not _SHA256.fullmatch(digest):
                raise ConfigError(f"{self.file}: {digest!r} is not a sha256 in hexadecimal")

    @property
    def labels_file(self) -> str:
        return self.file.replace(".tokens.", ".labels.")


@dataclass(frozen=True, kw_only=True)
class Meta:
    """The content of a finished token dataset."""

    tokenizer: str
    """SHA-256 of the tokenizer that made the tokens."""
    vocab_size: int
    """Number of tokens of the tokenizer."""
    grid: tuple[int, ...]
    """Grid of the tokens of an image."""
    views: tuple[str, ...]
    """Names of the views of each image."""
    classes: tuple[str, ...]
    """Names of the classes; () without labels."""
    source: str
    """The source of the images, JSON as text."""
    train: tuple[Shard, ...]
    """Shards to train on."""
    test: tuple[Shard, ...]
    """Held-out shards."""
    format: Literal["unmask-codes-1"] = "unmask-codes-1"
    """Version of the format."""

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.tokenizer):
            raise ConfigError(f"tokenizer is {self.tokenizer!r}; give its sha256 in hexadecimal")
        if not 1 <= self.vocab_size <= MAX_STORED_VOCAB:
            raise ConfigError(f"vocab_size is {self.vocab_size}; it must be from 1 to {MAX_STORED_VOCAB}")
        if not self.grid or min(self.grid) < 1:
            raise ConfigError(f"grid is {self.grid}; every side must be at least 1")
        if not self.views or len(set(self.views)) < len(self.views):
            raise ConfigError(f"views are {self.views}; name at least one, and each once")
        files = [shard.file for shard in self.train + self.test]
        if len(set(files)) < len(files):
            raise ConfigError("a shard is listed twice; list each once")
        for shard in self.train + self.test:
            if (shard.labels is None) == bool(self.classes):
                raise ConfigError(f"{shard.file}: a shard has labels if, and only if, there are classes")


class TokenShards:
    """One split of a token dataset, read from disk on demand."""

    def __init__(self, folder: Path, meta: Meta, shards: tuple[Shard, ...]):
        self.folder, self.meta = folder, meta
        for shard in shards:
            self._open(shard)  # open every file once, so that a missing one is named before training
        self.shards = tuple(shard for shard in shards if shard.rows)
        self._ends = np.cumsum([shard.rows for shard in self.shards], dtype=np.int64)
        parts = [_read_labels(folder, meta, shard) for shard in self.shards] if meta.classes else []
        self.labels = torch.from_numpy(np.concatenate(parts)) if parts else None
        self._resident = 0  # bytes, at most
        self._map = functools.lru_cache(OPEN_MAPS)(lambda number: self._open(self.shards[number]))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read_rows(
        self, index: Int[Tensor, "b"], device: "torch.device", u: Float[Tensor, "b"] | None = None
    ) -> tuple[Int[Tensor, "b l"], Int[Tensor, "b"] | None]:
        """Read the chosen rows and their classes, int64, to `device`; view floor(u * views) of each, or the first.

        Raises:
            DataError: a token is outside the vocabulary; the error names the file.
        """
        at = index.numpy()
        if len(at) and not 0 <= at.min() <= at.max() < len(self):
            raise IndexError(f"rows {at.min()}..{at.max()} are asked for, but there are {len(self)}")
        num = len(self.meta.views)
        view = np.zeros_like(at) if u is None else (u * num).long().clamp(0, num - 1).numpy()
        order = at.argsort(kind="stable")
        touched, first = np.unique(self._find_shards(at[order]), return_index=True)
        tokens = np.empty((len(at), math.prod(self.meta.grid)), dtype=np.int64)
        for number, here in zip(touched.tolist(), np.split(order, first[1:]), strict=False):
            start = self._ends[number] - self.shards[number].rows
            tokens[here] = self._map(number)[at[here] - start, view[here]]
        self._release(len(at))
        self._check(tokens, at)
        classes = None if self.labels is None else self.labels[index].long().to(device)
        return torch.from_numpy(tokens).to(device), classes

    def _find_shards(self, at: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b"]:
        return np.searchsorted(self._ends, at, side="right")

    def _check(self, tokens: Int[np.ndarray, "b l"], at: Int[np.ndarray, "b"]) -> None:
        """Raise DataError for a damaged shard: on a GPU, an index out of range ends the process without a reason."""
        if not tokens.size or 0 <= tokens.min() <= tokens.max() < self.meta.vocab_size:
            return
        wrong = (tokens < 0) | (tokens >= self.meta.vocab_size)
        shard = self.shards[self._find_shards(at[wrong.any(1)])[0]]
        raise DataError(
            f"{self.folder / shard.file} is damaged: it holds token {tokens[wrong][0]} of a vocabulary of "
            f"{self.meta.vocab_size}; {_suggest(self.folder)}"
        )

    def _release(self, num: int) -> None:
        """Close all maps once `num` more rows may have loaded too much of them into memory.

        The kernel caches what was read while it has room; the process itself stays small.
        """
        self._resident += num * (FAULT + math.prod(self.meta.grid) * choose_token_type(self.meta.vocab_size).itemsize)
        if self._resident > MAX_MAPPED:
            self._map.cache_clear()
            self._resident = 0

    def _open(self, shard: Shard) -> np.memmap:
        shape = (shard.rows, len(self.meta.views), math.prod(self.meta.grid))
        return open_array(self.folder / shard.file, choose_token_type(self.meta.vocab_size), shape)


def choose_token_type(vocab_size: int) -> np.dtype:
    """Return the smallest type of the format that holds 0..vocab_size-1."""
    return np.dtype("<u2") if vocab_size <= 65536 else np.dtype("<i4")


def write_shard(
    folder: Path,
    name: str,
    tokens: UInt16[np.ndarray, "rows views l"] | Int32[np.ndarray, "rows views l"],
    labels: Int32[np.ndarray, "rows"] | None,
) -> Shard:
    """Write `name`.tokens.npy and, given labels, `name`.labels.npy, each completely or not at all.

    The labels are on disk before the tokens, and both before this returns.

    Raises:
        DiskError: a file cannot be written.
    """
    digest = None if labels is None else _write_array(folder / f"{name}.labels.npy", labels)
    file = f"{name}.tokens.npy"
    return Shard(file=file, rows=len(tokens), sha256=_write_array(folder / file, tokens), labels=digest)


def is_sound(folder: Path, shard: Shard) -> bool:
    """Return whether every byte of a shard is as it was written."""
    files = [(shard.file, shard.sha256), (shard.labels_file, shard.labels)]
    try:
        return all(digest is None or hash_file(folder / file) == digest for file, digest in files)
    except OSError as error:
        describe_os_error(error)  # raises where a limit of the process is at fault
        return False


def verify_shards(folder: Path, meta: Meta) -> None:
    """Read every shard once and compare it with its checksum; this takes about 0.6 s per GB.

    Raises:
        DataError: A shard changed since it was written; the message names it.
    """
    for shard in meta.train + meta.test:
        if not is_sound(folder, shard):
            raise DataError(f"{folder / shard.file}: its tokens or labels are not those written; {_suggest(folder)}")


def finish_dataset(folder: Path, meta: Meta) -> None:
    """Open every shard once more, then write meta.json, so that `open_token_dataset` accepts the folder."""
    _open_parts(folder, meta)
    write_json(folder / META, meta)


def open_token_dataset(folder: str | Path) -> tuple[Meta, TokenShards, TokenShards | None]:
    """Open a token dataset: its metadata, its training split, and its held-out split if it has rows.

    Names, types and sizes are checked here, the tokens as they are read.

    Raises:
        DataError: the folder is missing, unfinished or damaged.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; give a token dataset made by unmask tokenize, or with --init images"
        )
    if not (folder / META).exists():
        begun = (folder / "plan.json").exists()
        again = "is not finished: run the same unmask tokenize command again to continue"
        make = "holds no tokens: make them from images with unmask train-tokenizer and unmask tokenize"
        raise DataError(f"{folder} {again if begun else make}")
    try:
        meta = read_json(folder / META, Meta, MAX_JSON)
    except ConfigError as error:
        raise DataError(f"{folder / META} is damaged or of another version ({error}); {_suggest(folder)}") from error
    train, test = _open_parts(folder, meta)
    return meta, train, test if len(test) else None


def check_tokenizer(meta: Meta, sha256: str) -> None:
    """Raise DataError unless the tokenizer with this sha256 made the tokens."""
    if meta.tokenizer != sha256:
        raise DataError(
            f"the tokens were made by tokenizer {meta.tokenizer[:12]}, but this one is {sha256[:12]}: "
            "use the one that lies beside the tokens, or tokenize again into another folder"
        )


def _open_parts(folder: Path, meta: Meta) -> tuple[TokenShards, TokenShards]:
    train, test = TokenShards(folder, meta, meta.train), TokenShards(folder, meta, meta.test)
    if not len(train):
        raise DataError(f"{folder} holds no training tokens: there is nothing to train on")
    return train, test


def _read_labels(folder: Path, meta: Meta, shard: Shard) -> Int32[np.ndarray, "rows"]:
    path = folder / shard.labels_file
    labels = np.array(open_array(path, np.dtype("<i4"), (shard.rows,)))
    if not 0 <= labels.min() <= labels.max() < len(meta.classes):
        span = f"{labels.min()}..{labels.max()} of {len(meta.classes)} classes"
        raise DataError(f"{path} is damaged: its labels span {span}; {_suggest(folder)}")
    return labels


def open_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """Map a .npy file of this type and shape; compare its header without parsing it, since it may be foreign."""
    expected = io.BytesIO()
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(expected, header)
    magic, text = expected.getvalue()[:8], expected.getvalue()[10:].strip()
    try:
        with open(path, "rb") as file:
            start = file.read(10)
            length = int.from_bytes(start[8:], "little")  # NumPy pads the text by an amount that depends on its version
            found = file.read(length).strip()
            size = os.fstat(file.fileno()).st_size
            whole = 10 + length + math.prod(shape) * dtype.itemsize
            if start[:8] == magic and found == text and size == whole:
                return np.memmap(file, dtype, "r", 10 + length, shape)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; {_suggest(path.parent)}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {describe_os_error(error)}; {_suggest(path.parent)}") from error
    if found == text:
        raise DataError(f"{path} has {size} bytes instead of {whole}; {_suggest(path.parent)}")
    raise DataError(f"{path} is damaged or another shard: it does not hold {dtype} {shape}; {_suggest(path.parent)}")


def _suggest(folder: Path) -> str:
    return f"restore it, or run the command that made {folder} again, which mends it"


def _write_array(path: Path, array: np.ndarray) -> str:
    """Write through a temporary name; return the file's sha256."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    try:
        write_bytes(buffer.getbuffer(), path)
    except OSError as error:
        kept = "what was finished there is kept: free or mend the disk, then run the same command again"
        raise DiskError(f"cannot write {path}: {describe_os_error(error)}; {kept}") from error
    return hashlib.sha256(buffer.getbuffer()).hexdigest()
