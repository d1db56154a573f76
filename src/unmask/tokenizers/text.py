"""Text to tokens and back: characters, bytes, or byte-level BPE (GPT-2's, section 2.2 of its report; arXiv 1508.07909).

A text is a row of tokens; a model sees `context` of them at a time. Every vocabulary has an end token, which marks the
end of a text. `unused` lists all other tokens that never occur in a text, so that a sampler never samples them.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt32

from unmask.errors import ConfigError, DataError, check_ranges
from unmask.lazy import Tensor
from unmask.storage.config import load_json
from unmask.storage.files import escape_line
from unmask.tokenizers.bpe import END, Rules, read_rules, train_rules

MAX_FILE = 1 << 26  # bytes
MAX_CONTEXT = 1 << 20
Ids = Sequence[int] | Int[np.ndarray, "l"] | Int[Tensor, "l"]
Documents = Callable[[], Iterator[str]]


@dataclass(frozen=True, kw_only=True)
class Characters:
    """One token per character."""

    alphabet: str = ""
    """All characters, in order of their tokens; if empty, the sorted characters of the training text."""
    context: int = 256
    """Tokens per row of the model."""

    def __post_init__(self) -> None:
        _check_context(self.context)
        twice = [c for c, num in Counter(self.alphabet).items() if num > 1]
        halves = [c for c in self.alphabet if "\ud800" <= c <= "\udfff"]
        if twice or halves:
            raise ConfigError(f"the alphabet has {(twice or halves)[0]!r}, twice or half a character: give each once")


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """One token per byte of UTF-8; 256 tokens encode any text."""

    context: int = 256
    """Tokens per row of the model."""

    def __post_init__(self) -> None:
        _check_context(self.context)


@dataclass(frozen=True, kw_only=True)
class BPE:
    """Byte-level BPE, read from a file or trained on the corpus."""

    file: str = ""
    """A JSON of Hugging Face's `tokenizers`, or a folder or prefix of GPT-2's encoder.json and vocab.bpe."""
    vocab_size: int = 0
    """Number of tokens of a BPE that is trained on the corpus; 0 if a file is given."""
    context: int = 256
    """Tokens per row of the model."""
    rows: int = 0
    """Pad the vocabulary to this number, for faster matrix products (50,257 to 50,304); those are never sampled."""

    def __post_init__(self) -> None:
        _check_context(self.context)
        if self.file and self.vocab_size:
            raise ConfigError(
                f"vocab_size {self.vocab_size} is for training a BPE, but a file is given: add --tokenizer.vocab-size 0"
            )
        if self.vocab_size and self.vocab_size < 257:
            raise ConfigError(f"vocab_size is {self.vocab_size}; 256 bytes and the end token need 257 or more")
        if self.rows < 0:
            raise ConfigError(f"rows is {self.rows}; give 0 for none, or at least the number of tokens")
        check_ranges(self, {"vocab_size": (0, 1 << 24), "rows": (0, 1 << 24)})


TextTokenizerConfig = Characters | Bytes | BPE


class TextTokenizer(ABC):
    """Text to ids 0..vocab_size-1 and back; when decoding, -1 means no token."""

    def __init__(self, context: int, vocab_size: int, end_id: int, unused: tuple[int, ...] = ()):
        self.context, self.vocab_size, self.end_id, self.unused = context, vocab_size, end_id, unused
        self._silent = {-1, end_id, *unused}

    @property
    def grid(self) -> tuple[int, ...]:
        return (self.context,)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of its file, which does not depend on the context."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the content of a `tokenizer.json` that `open_text_tokenizer` reads."""
        return (json.dumps(self.to_json(), ensure_ascii=False, separators=(",", ":")) + "\n").encode()

    def encode(self, text: str) -> Int32[np.ndarray, "l"]:
        """Return its tokens, without an end token; raise DataError, with line and column, for a character it lacks."""
        return self.encode_all([text])[0]

    def decode(self, tokens: Ids) -> str:
        """Return the text; end and unused tokens are left out, and bytes that are not a character become U+FFFD."""
        return self._join([i for i in self._check_ids(tokens) if i not in self._silent])

    def split_pieces(self, tokens: Ids) -> list[str]:
        """Return a printable piece per token: a newline as ↵, part of a character as U+FFFD, no token as nothing."""
        return [
            "" if i < 0 else END if i == self.end_id else make_printable(self._show_piece(i))
            for i in self._check_ids(tokens)
        ]

    def _check_ids(self, tokens: Ids) -> list[int]:
        ids = (tokens.cpu().numpy() if isinstance(tokens, Tensor) else np.asarray(tokens, np.int64)).reshape(-1)
        if ids.size and not -1 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(f"tokens span {ids.min()}..{ids.max()}, beyond the vocabulary of {self.vocab_size}")
        return ids.tolist()

    @abstractmethod
    def encode_all(self, texts: Sequence[str]) -> list[Int32[np.ndarray, "_"]]:
        """Encode each text; faster than `encode` one by one."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return its content as JSON; the context is not part of it."""

    @abstractmethod
    def _join(self, ids: list[int]) -> str: ...

    @abstractmethod
    def _show_piece(self, i: int) -> str: ...


class CharacterTokenizer(TextTokenizer):
    """Token i is the i-th character of the alphabet; the last token is the end token."""

    def __init__(self, alphabet: str, context: int):
        super().__init__(context, len(alphabet) + 1, len(alphabet))
        self.alphabet = alphabet
        self._ids = np.full(0x110000, -1, np.int32)
        self._ids[_list_code_points(alphabet)] = np.arange(len(alphabet))

    def encode_all(self, texts: Sequence[str]) -> list[Int32[np.ndarray, "_"]]:
        return [self._encode(text) for text in texts]

    def to_json(self) -> dict[str, Any]:
        return {"type": "Characters", "alphabet": self.alphabet}

    def _encode(self, text: str) -> Int32[np.ndarray, "l"]:
        ids = self._ids[_list_code_points(text)]
        if ids.size and ids.min() < 0:
            raise describe_outside(text, int((ids < 0).argmax()), "the alphabet")
        return ids

    def _join(self, ids: list[int]) -> str:
        return "".join(map(self._show_piece, ids))

    def _show_piece(self, i: int) -> str:
        return self.alphabet[i]


class ByteTokenizer(TextTokenizer):
    """Tokens are the bytes of UTF-8; 256 is the end token."""

    def __init__(self, context: int):
        super().__init__(context, 257, 256)

    def encode_all(self, texts: Sequence[str]) -> list[Int32[np.ndarray, "_"]]:
        return [np.frombuffer(to_utf8(text), np.uint8).astype(np.int32) for text in texts]

    def to_json(self) -> dict[str, Any]:
        return {"type": "Bytes"}

    def _join(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def _show_piece(self, i: int) -> str:
        return bytes([i]).decode(errors="replace")


class BPETokenizer(TextTokenizer):
    """Tokens of a learned vocabulary, by Hugging Face's `tokenizers`; also the library's other models."""

    def __init__(self, rules: Rules, context: int, rows: int = 0):
        num = rules.num_tokens
        if rows and rows < num:
            raise ConfigError(f"rows is {rows}, but the tokenizer has {num} tokens: give 0, or at least as many")
        rows = max(rows, num)
        super().__init__(context, rows, rules.end_id, (*rules.unused, *range(num, rows)))
        self.rules = rules

    def encode_all(self, texts: Sequence[str]) -> list[Int32[np.ndarray, "_"]]:
        for text in texts:
            to_utf8(text)
        found = self.rules.encode(texts)
        for text, ids in zip(texts, found, strict=True):
            place = self.rules.find_lost(text, ids)
            if place is not None:
                raise describe_outside(text, place, "the tokenizer's vocabulary")
        return found

    def to_json(self) -> dict[str, Any]:
        return {"type": "BPE", "rows": self.vocab_size, "tokenizer": self.rules.data}

    def _join(self, ids: list[int]) -> str:
        return self.rules.decode(ids)

    def _show_piece(self, i: int) -> str:
        return self.rules.get_piece(i)


def build_tokenizer(config: TextTokenizerConfig, documents: Documents) -> TextTokenizer:
    """Build the tokenizer of a config; `documents` yields the training corpus, read only if needed to learn from."""
    if isinstance(config, Bytes):
        return ByteTokenizer(config.context)
    if isinstance(config, Characters):
        return CharacterTokenizer(config.alphabet or _collect_alphabet(documents), config.context)
    if config.file:
        return BPETokenizer(read_rules(config.file, MAX_FILE), config.context, config.rows)
    if not config.vocab_size:
        raise ConfigError("no BPE chosen: give --tokenizer.file, or --tokenizer.vocab-size to train one on the corpus")
    return BPETokenizer(train_rules(documents(), config.vocab_size), config.context, config.rows)


def open_text_tokenizer(path: Path, context: int) -> TextTokenizer:
    """Read the tokenizer that `to_bytes` wrote; raise DataError if the file is of another kind or damaged."""
    _check_context(context)
    try:
        return _rebuild(load_json(path, MAX_FILE), path, context)
    except ConfigError as error:
        raise DataError(
            f"{escape_line(str(error))}: restore the tokenizer.json that was made with the tokens"
        ) from error


def _rebuild(data: Any, path: Path, context: int) -> TextTokenizer:
    match data:
        case {"type": "Bytes", **rest} if not rest:
            return ByteTokenizer(context)
        case {"type": "Characters", "alphabet": str(alphabet), **rest} if alphabet and not rest:
            return CharacterTokenizer(Characters(alphabet=alphabet).alphabet, context)
        case {"type": "BPE", "rows": int(rows), "tokenizer": dict(content), **rest} if not rest:
            return BPETokenizer(Rules(content, str(path)), context, rows)
    raise DataError(
        f"{escape_line(str(path))} is not a text tokenizer of ours: restore it; other files go to BPE's file"
    )


def to_utf8(text: str) -> bytes:
    """Encode in UTF-8; raise DataError, with line and column, for half of a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise describe_outside(text, error.start, "Unicode's characters") from error


def describe_outside(text: str, place: int, what: str) -> DataError:
    """Return the error that names a character that cannot be encoded, with its line and column."""
    line, column = text.count("\n", 0, place) + 1, place - text.rfind("\n", 0, place)
    return DataError(
        f"character {text[place]!a} (U+{ord(text[place]):04X}) at line {line}, column {column} is not one of {what}: "
        "remove it, or use the bytes tokenizer or one whose vocabulary has it"
    )


def make_printable(piece: str) -> str:
    """Return a text in one printable line; a newline becomes ↵."""
    return escape_line(piece.replace("\n", "↵"))


def _collect_alphabet(documents: Documents) -> str:
    found: set[str] = set()
    for text in documents():
        found.update(text)
    if not found:
        raise DataError("the training text is empty: there is no alphabet to take from it")
    return "".join(sorted(found))


def _list_code_points(text: str) -> UInt32[np.ndarray, "l"]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _check_context(context: int) -> None:
    if context < 1:
        raise ConfigError(f"context is {context}; a row holds at least 1 token")
    if context > MAX_CONTEXT:
        raise ConfigError(f"context is {context}; a row holds at most {MAX_CONTEXT:,} tokens")
