"""The files of CLIP's text model with its projection (arXiv 2103.00020) and of its tokenizer, read as data.

What transformers would make of such a folder, its configurations decide: code to fetch, classes to make, sizes to
allocate. Here they are asked for a few bounded numbers and for four tokens of the vocabulary, and all else in them is
left alone; weights have to fit these numbers before anything is made. What is kept or passed on is what was read.
"""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unmask.errors import CheckpointError, ConfigError, DiskError
from unmask.pretrained.conversion import convert
from unmask.storage.config import from_json, load_json, to_json, write_json
from unmask.storage.files import one_line, write_text
from unmask.storage.foreign.reader import read_tensors
from unmask.storage.weights import write_weights

CONFIG, WEIGHTS = "text_encoder/config.json", "text_encoder/model.safetensors"
VOCABULARY, MERGES = "tokenizer/vocab.json", "tokenizer/merges.txt"
SPECIAL, OLDER_SPECIAL = "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json"
NEEDED = (CONFIG, WEIGHTS, VOCABULARY, MERGES)
FILES = (*NEEDED, SPECIAL, OLDER_SPECIAL)
"""All that is read of a folder; the last two may be missing."""

LONGEST = 8 << 20
"""Bytes of a vocabulary or of its merges; CLIP's have about one million and half of that."""
MOST = {
    "vocab_size": 1 << 18, "hidden_size": 1 << 13, "intermediate_size": 1 << 15, "num_attention_heads": 1 << 8,
    "num_hidden_layers": 64, "max_position_embeddings": 1 << 12, "projection_dim": 1 << 13,
}  # fmt: skip
"""That of ViT-L/14 has 49408, 768, 3072, 12, 12, 77 and 768."""
POSITIONS = "text_model.embeddings.position_ids"
"""0, 1, 2, ..., which older files hold beside the weights."""


@dataclass(frozen=True, kw_only=True)
class TextSizes:
    """What of a config.json counts, by its names, and what transformers takes where one is missing."""

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
        for name, most in MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} is {_short(getattr(self, name))}, and 1 to {most} are possible")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads")
        if not 0 <= self.eos_token_id < self.vocab_size:
            raise ConfigError(
                f"eos_token_id is {_short(self.eos_token_id)}, and the vocabulary has {self.vocab_size} tokens"
            )
        if not 0 < self.layer_norm_eps <= 0.1:
            raise ConfigError(f"layer_norm_eps is {self.layer_norm_eps}, and must be above 0 and at most 0.1")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Tokens with their numbers, the pairs that are merged, first things first, and which tokens are special."""

    ids: dict[str, int]
    merges: tuple[tuple[str, str], ...]
    special: dict[str, str]

    @property
    def end(self) -> int:
        return self.ids[self.special["eos_token"]]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A text model and its tokenizer; `weights` are float32, by the published names."""

    sizes: TextSizes
    weights: dict[str, Tensor]
    vocabulary: Vocabulary


def read_clip(folder: Path) -> Clip:
    """From a folder that holds `text_encoder` and `tokenizer`, of which links are followed; nothing in it is run.

    CheckpointError for a missing file, another network's weights, or a tokenizer of another vocabulary.
    """
    shown = one_line(str(folder))
    for part in NEEDED:
        if not os.path.isfile(folder / part):  # nor a pipe or device, which could be read for ever
            raise CheckpointError(f"{shown}: no {part} there; name a local copy of amused/amused-256 or -512")
    try:
        sizes = _read_sizes(folder / CONFIG)
        vocabulary = _read_vocabulary(folder)
    except ConfigError as error:
        raise CheckpointError(f"{shown}: no CLIP text model ({one_line(str(error))}); copy the folder anew") from error
    theirs, own = (len(vocabulary.ids), vocabulary.end), (sizes.vocab_size, sizes.eos_token_id)
    # With another end CLIP sums up the start. An end of 2 is that of older files, where the highest number counts.
    if theirs[0] != own[0] or (own[1] != theirs[1] and (own[1], theirs[1]) != (2, theirs[0] - 1)):
        raise CheckpointError(
            f"{shown}/tokenizer knows {theirs[0]} tokens and ends with {theirs[1]}, the text model {own[0]} and "
            f"{own[1]}: copy vocab.json and merges.txt of the same model there"
        )
    tensors = read_tensors(folder / WEIGHTS, "that of amused/amused-256 or -512")
    done = convert(
        tensors,
        lambda name, tensor: {} if name == POSITIONS else {name: tensor},
        skeleton(sizes),
        source=one_line(str(folder / WEIGHTS)),
        family="CLIP's text model of its config.json",
    )
    return Clip(sizes=sizes, weights=done.weights, vocabulary=vocabulary)


def write_clip(clip: Clip, folder: Path) -> None:
    """What `read_clip` reads, each file whole or not at all; older ones make way. Raises DiskError."""
    (folder / CONFIG).parent.mkdir(parents=True, exist_ok=True)
    named = {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model"}
    write_weights(clip.weights, folder / WEIGHTS)
    write_json(folder / CONFIG, {**named, **to_json(clip.sizes)})
    write_vocabulary(clip.vocabulary, folder)


def write_vocabulary(vocabulary: Vocabulary, folder: Path) -> None:
    """The folder `tokenizer`, as transformers reads it."""
    (folder / VOCABULARY).parent.mkdir(parents=True, exist_ok=True)
    write_json(folder / VOCABULARY, vocabulary.ids)
    write_json(folder / SPECIAL, {"tokenizer_class": "CLIPTokenizer", **vocabulary.special})
    merges = folder / MERGES
    try:
        (folder / OLDER_SPECIAL).unlink(missing_ok=True)  # as it would count for more
        write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in vocabulary.merges), merges)
    except OSError as error:
        raise DiskError(f"cannot write {merges}: {error.strerror}; free or mend the disk, then try again") from error


def skeleton(sizes: TextSizes) -> nn.Module:
    """The names and shapes of the published weights, without memory for them; it computes nothing."""
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
    data = _table(path, load_json(path))
    known = {field.name for field in fields(TextSizes)}
    return from_json(TextSizes, {name: value for name, value in data.items() if name in known}, str(path))


def _read_vocabulary(folder: Path) -> Vocabulary:
    path = folder / VOCABULARY
    ids = _table(path, load_json(path, LONGEST))
    if any(type(number) is not int for number in ids.values()) or sorted(ids.values()) != list(range(len(ids))):
        raise ConfigError(f"{path}: the tokens are not numbered from 0, each once")
    for word in ids:
        if not word.isprintable() or " " in word or not word:
            raise ConfigError(f"{path}: {_short(word)} is no token of CLIP, which has neither spaces nor controls")
    return Vocabulary(ids=ids, merges=_read_merges(folder / MERGES, ids), special=_read_special(folder, ids))


def _read_merges(path: Path, ids: dict[str, int]) -> tuple[tuple[str, str], ...]:
    try:
        with open(path, "rb") as file:
            data = file.read(LONGEST + 1)
        lines = data.decode().replace("\r\n", "\n").split("\n")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > LONGEST:
        raise ConfigError(f"{path} is longer than {LONGEST} bytes")
    merges = []
    for number, line in enumerate(lines):
        if not line or line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not {*pair, "".join(pair)} <= ids.keys():
            raise ConfigError(
                f"{path}: line {number + 1}, {_short(line)}, merges no two tokens of vocab.json to a third"
            )
        merges.append((pair[0], pair[1]))
    return tuple(merges)


def _read_special(folder: Path, ids: dict[str, int]) -> dict[str, str]:
    """The tokens of start, end, unknown and padding; as with transformers, the older file counts if both are old."""
    found, older = (
        _table(folder / name, load_json(folder / name)) if os.path.isfile(folder / name) else {}
        for name in (SPECIAL, OLDER_SPECIAL)
    )
    if "added_tokens_decoder" not in found:
        found = {**found, **older}
    special = {"bos_token": "<|startoftext|>"}
    special |= dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    for name in special:
        said = found.get(name, special[name])
        word = said.get("content") if isinstance(said, dict) else said
        if not isinstance(word, str) or word not in ids:
            raise ConfigError(f"{folder / SPECIAL}: the {name} {_short(word)} is not in vocab.json")
        special[name] = word
    return special


def _table(path: Path, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no table")
    return data


def _short(value: Any) -> str:
    return repr(value)[:60]
