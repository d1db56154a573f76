"""Learned vocabularies, run by Hugging Face's `tokenizers`: byte-level BPE as in GPT-2, trained or read from its two
files, and any JSON of that library. Text that a vocabulary cannot encode is found and named, never lost in silence."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from jaxtyping import Int32

from unmask.errors import ConfigError, DataError
from unmask.storage.config import load_json
from unmask.storage.files import escape_line

END = "<|endoftext|>"
END_TOKENS = (END, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
"""Names of the end token in published vocabularies; a vocabulary without one of these gets the first."""

MAX_BPE_VOCAB = 1 << 22
MAX_CHUNK = 1 << 18  # characters that are encoded at once, where the rules allow a split
GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))  # GPT-2's two files, and their later names
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# GPT-2's expression never joins a newline to either neighbour if neither of them is a space.
_CUT = re.compile(r"(?<=\S)\n(?=\S)")


class Rules:
    """A tokenizer of the library `tokenizers`. Special tokens in a text count as plain text; `name` is for errors."""

    def __init__(self, data: dict[str, Any], name: str):
        self.data, self.name = data, escape_line(name)
        self._rules = _build_rules(data, self.name)
        vocab = self._rules.get_vocab(with_added_tokens=True)
        end = next((token for token in END_TOKENS if token in vocab), END)
        with _Refusals(self.name):
            self._rules.add_special_tokens([end])
        vocab = self._rules.get_vocab(with_added_tokens=True)
        self.end_id, self.num_tokens = vocab[end], max(vocab.values()) + 1
        if self.num_tokens > MAX_BPE_VOCAB:
            raise DataError(
                f"{self.name} has token {self.num_tokens - 1}; more than {MAX_BPE_VOCAB} tokens is no vocabulary"
            )
        added = self._rules.get_added_tokens_decoder()
        special = {i for i, token in added.items() if token.special}
        unknown = {vocab[token] for token in (data["model"].get("unk_token"),) if token in vocab}
        unknown |= {i for i in (data["model"].get("unk_id"),) if i is not None}
        holes = set(range(self.num_tokens)) - set(vocab.values())
        self.unused = tuple(sorted((special | unknown | holes) - {self.end_id}))
        self._banned = np.zeros(self.num_tokens, bool)
        self._banned[[self.end_id, *self.unused]] = True
        plain = (data.get("normalizer"), data.get("pre_tokenizer"), len(special)) == (None, BYTE_LEVEL, len(added))
        self._byte_level = plain and set(_import_library().pre_tokenizers.ByteLevel.alphabet()) <= vocab.keys()

    def encode(self, texts: Sequence[str]) -> list[Int32[np.ndarray, "_"]]:
        """Return the ids of each text; they do not depend on the other texts."""
        short = [i for i, text in enumerate(texts) if len(text) <= MAX_CHUNK or not self._byte_level]
        found = dict(zip(short, self._encode_batch([texts[i] for i in short]), strict=True))
        return [found[i] if i in found else self._encode_long(text) for i, text in enumerate(texts)]

    def find_lost(self, text: str, ids: Int32[np.ndarray, "l"]) -> int | None:
        """Return the position of the first character that these ids do not encode, or None."""
        if self._byte_level and not self._banned[ids].any():
            return None
        encoding = self._rules.encode(text, add_special_tokens=False)
        spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        banned = self._banned[np.array(encoding.ids, np.int64)]
        if banned.any():
            return int(spans[banned.argmax(), 0])
        depth = np.zeros(len(text) + 1, np.int64)
        np.add.at(depth, spans[:, 0], 1)
        np.add.at(depth, spans[:, 1], -1)
        bare = np.flatnonzero(depth[:-1].cumsum() == 0).tolist()
        return next((place for place in bare if not text[place].isspace()), None)

    def decode(self, ids: list[int]) -> str:
        """Return the text of these ids, with special tokens by name."""
        return self._rules.decode(ids, skip_special_tokens=False)

    def _encode_long(self, text: str) -> Int32[np.ndarray, "l"]:
        parts, some = [], []
        for part in split_text(text):
            some.append(part)
            if len(some) == 16:
                parts += self._encode_batch(some)
                some = []
        return np.concatenate(parts + self._encode_batch(some))

    def _encode_batch(self, texts: list[str]) -> list[Int32[np.ndarray, "_"]]:
        with _Refusals(self.name):
            encodings = self._rules.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]


def split_text(text: str) -> Iterator[str]:
    """Split a text where GPT-2's tokenizer allows it, into parts slightly longer than `MAX_CHUNK` characters."""
    start = 0
    while len(text) - start > MAX_CHUNK:
        found = _CUT.search(text, start + MAX_CHUNK)
        if found is None:
            break
        yield text[start : found.end()]
        start = found.end()
    yield text[start:]


def read_rules(file: str, max_bytes: int) -> Rules:
    """Read a JSON of `tokenizers`, or a folder or prefix of GPT-2's two files; raise DataError if not valid."""
    path = Path(file).expanduser()
    if path.is_file():
        return Rules(_read_json(path, max_bytes), str(path))
    if (path / "tokenizer.json").is_file():
        return Rules(_read_json(path / "tokenizer.json", max_bytes), str(path))
    for join in ("/", "", "_", "-", "."):
        for vocab, merges in GPT2_FILES:
            pair = Path(f"{path}{join}{vocab}"), Path(f"{path}{join}{merges}")
            if all(part.is_file() for part in pair):
                return Rules(_build_gpt2(_read_json(pair[0], max_bytes), _read_merges(pair[1], max_bytes)), str(path))
    raise DataError(
        f"{escape_line(file)}: no tokenizer there; give a JSON of tokenizers, or a folder or prefix of GPT-2's "
        "encoder.json and vocab.bpe"
    )


def train_rules(documents: Iterator[str], vocab_size: int) -> Rules:
    """Train a byte-level BPE of exactly `vocab_size` tokens, end token 0; raise DataError if the text is too short."""
    library = _import_library()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rules = library.Tokenizer(library.models.BPE())
    rules.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.train_from_iterator((part for text in documents for part in split_text(text)), trainer)
    model = json.loads(rules.to_str())["model"]
    if len(model["vocab"]) != vocab_size:
        count = len(model["vocab"])
        raise DataError(f"the corpus gives a BPE of {count} tokens, not {vocab_size}: lower vocab_size, or add text")
    return Rules(_build_gpt2(model["vocab"], model["merges"]), "the trained BPE")


class _Refusals:
    """Raise DataError for what `tokenizers` refuses: it raises bare Exception, or Rust's panic for some damage."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is Exception or (kind is not None and kind.__name__ == "PanicException"):
            reason = escape_line(str(error)[:200])
            raise DataError(f"{self.name} is not a tokenizer that can be used ({reason}): get it again") from error


def _import_library() -> ModuleType:
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError("BPE needs Hugging Face's tokenizers: pip install 'unmask[text]'") from error
    return tokenizers


def _build_rules(data: dict[str, Any], name: str) -> Any:
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise DataError(f"{name} is not a JSON of tokenizers: it has no model; give one, or a folder of GPT-2's files")
    library = _import_library()
    with _Refusals(name):
        text = json.dumps(data, ensure_ascii=False)
        rules = library.Tokenizer.from_str(text.encode("utf-8", "replace").decode())
    rules.encode_special_tokens = True
    rules.no_truncation()
    rules.no_padding()
    if data["model"].get("dropout"):
        rules.model.dropout = None  # training noise of language models; tokens must be the same each time
    if not rules.get_vocab(with_added_tokens=True):
        raise DataError(f"{name} has no tokens at all: get it again")
    return rules


def _read_json(path: Path, max_bytes: int) -> Any:
    try:
        return load_json(path, max_bytes)
    except ConfigError as error:
        raise DataError(f"{escape_line(str(error))}: get the tokenizer again") from error


def _read_merges(path: Path, max_bytes: int) -> list[list[str]]:
    try:
        with open(path, "rb") as file:
            body = file.read(max_bytes + 1)
        lines = body.decode().split("\n") if len(body) <= max_bytes else None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{escape_line(str(path))} cannot be read ({error}): get it again") from error
    if lines is None:
        raise DataError(f"{escape_line(str(path))} is longer than {max_bytes} bytes: it is no list of merges")
    merges = []
    for number, line in enumerate(lines, 1):
        pair = line.rstrip("\r").split(" ")
        if line.strip() and not (number == 1 and line.startswith("#version")):
            merges.append(pair)
            if len(pair) != 2 or not all(pair):
                raise DataError(f"{escape_line(str(path))}, line {number}: not a merge of two tokens: get it again")
    return merges


def _build_gpt2(vocab: Any, merges: Any) -> dict[str, Any]:
    """Build the full JSON of a GPT-2 tokenizer: its two files leave the other settings to the program."""
    if not isinstance(vocab, dict):
        raise DataError("the vocabulary is not an object of tokens and ids: get GPT-2's encoder.json again")
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model: dict[str, Any] = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocab.get(END, len(vocab)), "content": END, **special}],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {**model, "vocab": vocab, "merges": merges},
    }
