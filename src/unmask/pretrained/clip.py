"""Read and write the files of CLIP's text model with its projection (arXiv 2103.00020) and of its tokenizer, as data.

If transformers opened such a folder, the configuration files would decide which code to fetch, which classes to build
and how much memory to allocate. This module reads only a few bounded numbers and four tokens of the vocabulary from
them, and ignores the rest. The weights must fit these numbers before anything is built. Whatever is kept or passed on
is what this module read.
"""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unmask.errors import CheckpointError, ConfigError, DiskError, describe_os_error
from unmask.pretrained.conversion import convert_tensors
from unmask.storage.config import from_json, load_json, to_json, write_json
from unmask.storage.files import escape_line, write_text
from unmask.storage.foreign.reader import read_tensors
from unmask.storage.weights import write_weights

TEXT_CONFIG, TEXT_WEIGHTS = "text_encoder/config.json", "text_encoder/model.safetensors"
VOCABULARY, MERGES = "tokenizer/vocab.json", "tokenizer/merges.txt"
SPECIAL_TOKENS, OLDER_SPECIAL_TOKENS = "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json"
NEEDED_FILES = (TEXT_CONFIG, TEXT_WEIGHTS, VOCABULARY, MERGES)
FILES = (*NEEDED_FILES, SPECIAL_TOKENS, OLDER_SPECIAL_TOKENS)
"""All files that are read; the last two may be missing."""

MAX_VOCABULARY_BYTES = 8 << 20
"""Largest size of vocab.json or merges.txt; CLIP's have about 1 MB and 0.5 MB."""
MAX_TEXT_SIZES = {
    "vocab_size": 1 << 18, "hidden_size": 1 << 13, "intermediate_size": 1 << 15, "num_attention_heads": 1 << 8,
    "num_hidden_layers": 64, "max_position_embeddings": 1 << 12, "projection_dim": 1 << 13,
}  # fmt: skip
"""Largest values of a config.json; ViT-L/14 has 49408, 768, 3072, 12, 12, 77 and 768."""
POSITION_IDS = "text_model.embeddings.position_ids"
"""The numbers 0, 1, 2, ..., which older files hold beside the weights."""


@dataclass(frozen=True, kw_only=True)
class TextSizes:
    """The entries of config.json that are read, under their names there, with the defaults of transformers."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407

    def __post_init__(self) -> None:
        for name, most in MAX_TEXT_SIZES.items():
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} is {_shorten(getattr(self, name))}, and 1 to {most} are possible")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of the {self.num_attention_heads} heads"
            )
        if not 0 <= self.eos_token_id < self.vocab_size:
            raise ConfigError(
                f"eos_token_id is {_shorten(self.eos_token_id)}, and the vocabulary has {self.vocab_size} tokens"
            )
        if not 0 < self.layer_norm_eps <= 0.1:
            raise ConfigError(f"layer_norm_eps is {self.layer_norm_eps}, and must be above 0 and at most 0.1")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The vocabulary of a tokenizer."""

    ids: dict[str, int]
    """Number of each token."""
    merges: tuple[tuple[str, str], ...]
    """Pairs of tokens that are merged, in this order."""
    special: dict[str, str]
    """The tokens for start, end, unknown words and padding, under the names of transformers."""

    @property
    def end(self) -> int:
        """Number of the token that ends a text."""
        return self.ids[self.special["eos_token"]]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A text model and its tokenizer."""

    sizes: TextSizes
    """Sizes of the text model."""
    weights: dict[str, Tensor]
    """Weights in float32, under the published names."""
    vocabulary: Vocabulary
    """The tokenizer."""


def read_clip(folder: Path) -> Clip:
    """Read a folder that holds `text_encoder` and `tokenizer`. This follows links and runs nothing from the folder.

    Raises CheckpointError for a missing file, weights of another network, or a tokenizer of another vocabulary.
    """
    shown = escape_line(str(folder))
    for part in NEEDED_FILES:
        if not os.path.isfile(folder / part):  # a pipe or device is refused: reading it may never end
            raise CheckpointError(f"{shown}: no {part} there; name a local copy of amused/amused-256 or -512")
    try:
        sizes = _read_sizes(folder / TEXT_CONFIG)
        vocabulary = _read_vocabulary(folder)
    except ConfigError as error:
        raise CheckpointError(
            f"{shown}: not a CLIP text model ({escape_line(str(error))}): copy the folder again"
        ) from error
    count, end = len(vocabulary.ids), vocabulary.end
    # With a wrong end, CLIP would pool the start token. Older files have an end of 2 and mean the highest number.
    is_older = (sizes.eos_token_id, end) == (2, count - 1)
    if count != sizes.vocab_size or (end != sizes.eos_token_id and not is_older):
        raise CheckpointError(
            f"{shown}/tokenizer knows {count} tokens and ends with {end}, the text model {sizes.vocab_size} and "
            f"{sizes.eos_token_id}: copy vocab.json and merges.txt of the same model there"
        )
    tensors = read_tensors(folder / TEXT_WEIGHTS, "that of amused/amused-256 or -512")
    done = convert_tensors(
        tensors,
        lambda name, tensor: {} if name == POSITION_IDS else {name: tensor},
        build_skeleton(sizes),
        source=escape_line(str(folder / TEXT_WEIGHTS)),
        family="CLIP's text model of its config.json",
    )
    return Clip(sizes=sizes, weights=done.weights, vocabulary=vocabulary)


def write_clip(clip: Clip, folder: Path) -> None:
    """Write a folder that `read_clip` reads, each file completely or not at all, over older files. Raises DiskError."""
    (folder / TEXT_CONFIG).parent.mkdir(parents=True, exist_ok=True)
    named = {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model"}
    write_weights(clip.weights, folder / TEXT_WEIGHTS)
    write_json(folder / TEXT_CONFIG, {**named, **to_json(clip.sizes)})
    write_vocabulary(clip.vocabulary, folder)


def write_vocabulary(vocabulary: Vocabulary, folder: Path) -> None:
    """Write the folder `tokenizer`, as transformers reads it. Raises DiskError."""
    (folder / VOCABULARY).parent.mkdir(parents=True, exist_ok=True)
    write_json(folder / VOCABULARY, vocabulary.ids)
    write_json(folder / SPECIAL_TOKENS, {"tokenizer_class": "CLIPTokenizer", **vocabulary.special})
    merges = folder / MERGES
    try:
        (folder / OLDER_SPECIAL_TOKENS).unlink(missing_ok=True)  # it would take precedence
        write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in vocabulary.merges), merges)
    except OSError as error:
        raise DiskError(
            f"cannot write {merges}: {describe_os_error(error)}; free or repair the disk, then try again"
        ) from error


def build_skeleton(sizes: TextSizes) -> nn.Module:
    """Build modules with the names and shapes of the published weights, without memory; they compute nothing."""
    width = sizes.hidden_size

    def layer() -> nn.Module:
        mixed = {f"{part}_proj": nn.Linear(width, width) for part in ("q", "k", "v", "out")}
        wide = {"fc1": nn.Linear(width, sizes.intermediate_size), "fc2": nn.Linear(sizes.intermediate_size, width)}
        norms = {f"layer_norm{i}": nn.LayerNorm(width) for i in (1, 2)}
        return nn.ModuleDict({"self_attn": nn.ModuleDict(mixed), "mlp": nn.ModuleDict(wide), **norms})

    with torch.device("meta"):
        tables = {
            "token_embedding": nn.Embedding(sizes.vocab_size, width),
            "position_embedding": nn.Embedding(sizes.max_position_embeddings, width),
        }
        layers = nn.ModuleList(layer() for _ in range(sizes.num_hidden_layers))
        text = {
            "embeddings": nn.ModuleDict(tables),
            "encoder": nn.ModuleDict({"layers": layers}),
            "final_layer_norm": nn.LayerNorm(width),
        }
        projection = nn.Linear(width, sizes.projection_dim, bias=False)
        return nn.ModuleDict({"text_model": nn.ModuleDict(text), "text_projection": projection})


def _read_sizes(path: Path) -> TextSizes:
    data = _check_table(path, load_json(path))
    known = {field.name for field in fields(TextSizes)}
    return from_json(TextSizes, {name: value for name, value in data.items() if name in known}, str(path))


def _read_vocabulary(folder: Path) -> Vocabulary:
    path = folder / VOCABULARY
    ids = _check_table(path, load_json(path, MAX_VOCABULARY_BYTES))
    if any(type(number) is not int for number in ids.values()) or sorted(ids.values()) != list(range(len(ids))):
        raise ConfigError(f"{path}: the tokens are not numbered from 0, each once")
    for word in ids:
        if not word.isprintable() or " " in word or not word:
            raise ConfigError(
                f"{path}: {_shorten(word)} is no token of CLIP: a token has no spaces or control characters"
            )
    return Vocabulary(ids=ids, merges=_read_merges(folder / MERGES, ids), special=_read_special(folder, ids))


def _read_merges(path: Path, ids: dict[str, int]) -> tuple[tuple[str, str], ...]:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_VOCABULARY_BYTES + 1)
        lines = data.decode().replace("\r\n", "\n").split("\n")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {describe_os_error(error)}") from error
    if len(data) > MAX_VOCABULARY_BYTES:
        raise ConfigError(f"{path} is longer than {MAX_VOCABULARY_BYTES} bytes")
    merges = []
    for number, line in enumerate(lines):
        if not line or line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not {*pair, "".join(pair)} <= ids.keys():
            raise ConfigError(
                f"{path}: line {number + 1}, {_shorten(line)}, does not merge two tokens of vocab.json into a third"
            )
        merges.append((pair[0], pair[1]))
    return tuple(merges)


def _read_special(folder: Path, ids: dict[str, int]) -> dict[str, str]:
    """Read the tokens for start, end, unknown words and padding.

    Like transformers, this prefers the older file if both files have the older format.
    """
    found, older = (
        _check_table(folder / name, load_json(folder / name)) if os.path.isfile(folder / name) else {}
        for name in (SPECIAL_TOKENS, OLDER_SPECIAL_TOKENS)
    )
    if "added_tokens_decoder" not in found:
        found = {**found, **older}
    special = {"bos_token": "<|startoftext|>"}
    special |= dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    for name in special:
        entry = found.get(name, special[name])
        word = entry.get("content") if isinstance(entry, dict) else entry
        if not isinstance(word, str) or word not in ids:
            raise ConfigError(f"{folder / SPECIAL_TOKENS}: the {name} {_shorten(word)} is not in vocab.json")
        special[name] = word
    return special


def _check_table(path: Path, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return data


def _shorten(value: Any) -> str:
    return repr(value)[:60]
