"""Rows of tokens from memory-mapped flat arrays: windows of a stream of documents, or one document per row. Tokens are
checked as they are read, and few of them stay in memory."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.data.shards.dataset import FAULT, MAX_MAPPED, choose_token_type, open_array
from unmask.data.text.sources import SplitName
from unmask.errors import ConfigError, DataError
from unmask.storage.files import escape_line

Packing = Literal["stream", "documents"]
START = np.dtype("<i8")

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class TextPart:
    """The size of one split, and the sha256 of its two files."""

    documents: int
    """Number of documents."""
    tokens: int
    """Number of tokens, with the end tokens."""
    characters: int
    """Number of characters."""
    bytes: int
    """Number of bytes in UTF-8."""
    sha256: str
    """SHA-256 of the tokens' file."""
    starts: str
    """SHA-256 of the file with the start of each document."""

    def __post_init__(self) -> None:
        if not 0 <= self.documents <= self.tokens:
            raise ConfigError(f"{self.documents} documents in {self.tokens} tokens; each has at least its end token")
        for digest in (self.sha256, self.starts):
            if not _SHA256.fullmatch(digest):
                raise ConfigError(f"{digest!r} is not a sha256 in hexadecimal")


@dataclass(frozen=True, kw_only=True)
class TextMeta:
    """The content of a finished token dataset of texts."""

    tokenizer: str
    """SHA-256 of tokenizer.json."""
    vocab_size: int
    """Number of tokens of the tokenizer."""
    source: str
    """The source of the texts, JSON as text."""
    files: tuple[str, ...]
    """SHA-256 of every source file."""
    train: TextPart
    """The training split."""
    test: TextPart
    """The held-out split."""
    names: tuple[str, ...] = ()
    """The name of every source file, below the folder; () in datasets made before names were kept."""
    digest: str = ""
    """SHA-256 of all other fields; "" in datasets made before it was kept."""
    format: Literal["unmask-text-1"] = "unmask-text-1"
    """Version of the format."""

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.tokenizer):
            raise ConfigError(f"tokenizer is {self.tokenizer!r}; give its sha256 in hexadecimal")
        if self.vocab_size < 2:
            raise ConfigError(
                f"vocab_size is {self.vocab_size}; it must be at least 2, for one token and the end token"
            )

    def get_part(self, name: SplitName) -> TextPart:
        """Return one of the two splits."""
        return self.train if name == "train" else self.test


class TextSet:
    """One split as rows of `context` tokens, read from disk on demand.

    With the packing `stream`, row i begins at token i * context, and documents follow one another. With `documents`,
    row i is document i with its end token, padded with -1; a longer document is cut to a window.
    """

    def __init__(self, folder: Path, meta: TextMeta, part: SplitName, context: int, packing: Packing = "stream"):
        if context < 1:
            raise ConfigError(f"context is {context}; a row holds at least 1 token")
        self.folder, self.meta, self.part, self.context, self.packing = folder, meta, part, context, packing
        self._num = meta.get_part(part).tokens
        self._tokens, self._starts = open_part(folder, meta, part)
        self._resident = 0  # bytes, at most
        if not len(self):
            raise DataError(
                f"{escape_line(str(folder))}: the {part} part has {self._num} tokens, fewer than a context of "
                f"{context}: "
                "give more text, hold out another share, or lower the context"
            )

    def __len__(self) -> int:
        return self._num // self.context if self.packing == "stream" else self.meta.get_part(self.part).documents

    def read_rows(
        self, index: Int[Tensor, "b"], device: torch.device, u: Float[Tensor, "b"] | None = None
    ) -> tuple[Int[Tensor, "b l"], None]:
        """Read the chosen rows, int64, to `device`.

        Noise `u` in [0, 1) shifts a window: in a stream by less than a context, in a longer document to anywhere.

        Raises:
            DataError: the file is damaged; the error names it.
        """
        at = index.numpy()
        if len(at) and not 0 <= at.min() <= at.max() < len(self):
            raise IndexError(f"rows {at.min()}..{at.max()} are asked for, but there are {len(self)}")
        noise = np.zeros(len(at)) if u is None else u.double().numpy()
        first, stop = self._find_windows(at, noise)
        places = first[:, None] + np.arange(self.context)
        tokens = self._tokens[np.minimum(places, stop[:, None] - 1)].astype(np.int64)
        self._release(len(at))
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.meta.vocab_size:
            raise self._describe_damage(
                f"tokens {tokens.min()}..{tokens.max()} of a vocabulary of {self.meta.vocab_size}"
            )
        tokens[places >= stop[:, None]] = -1
        return torch.from_numpy(tokens).to(device), None

    def _find_windows(
        self, at: Int[np.ndarray, "b"], noise: Float[np.ndarray, "b"]
    ) -> tuple[Int[np.ndarray, "b"], Int[np.ndarray, "b"]]:
        """Return the first token of each row, and the one after its last."""
        if self.packing == "stream":
            first = at * self.context
            choices = np.minimum(self.context, self._num - self.context - first + 1)
            first = first + _choose(choices, noise)
            return first, first + self.context
        first, stop = np.array(self._starts[at]), np.array(self._starts[at + 1])
        if len(at) and not (first.min() >= 0 and (first < stop).all() and stop.max() <= self._num):
            raise self._describe_damage("documents that do not follow one another")
        return first + _choose(np.maximum(stop - first - self.context + 1, 1), noise), stop

    def _release(self, num: int) -> None:
        """Map the files again once `num` more rows may have loaded too much of them into memory."""
        touched = self.context * self._tokens.itemsize + FAULT
        self._resident += num * touched * (1 if self.packing == "stream" else 2)
        if self._resident > MAX_MAPPED:
            self._tokens, self._starts = open_part(self.folder, self.meta, self.part)
            self._resident = 0

    def _describe_damage(self, what: str) -> DataError:
        where = escape_line(str(self.folder / f"{self.part}.tokens.npy"))
        return DataError(f"{where} or its starts are damaged: {what}; tokenize the text again, which mends it")


def open_part(folder: Path, meta: TextMeta, part: SplitName) -> tuple[np.memmap, np.memmap]:
    """Map the tokens and the document starts of one split."""
    there = meta.get_part(part)
    tokens = open_array(folder / f"{part}.tokens.npy", choose_token_type(meta.vocab_size), (there.tokens,))
    return tokens, open_array(folder / f"{part}.starts.npy", START, (there.documents + 1,))


def _choose(choices: Int[np.ndarray, "b"], noise: Float[np.ndarray, "b"]) -> Int[np.ndarray, "b"]:
    """Return floor(noise * choices), clipped below `choices`, as single precision may round the noise up to 1."""
    return np.clip((noise * choices).astype(np.int64), 0, choices - 1)
