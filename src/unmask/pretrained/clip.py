"""Load CLIP's text model with its projection (arXiv 2103.00020) and its tokenizer with transformers, and save them.

transformers reads local safetensors and runs no code of the folder. A configuration could still name an attention
kernel to fetch, or sizes that fill the memory. So only a few bounded numbers of the network's configuration are passed
on, and the weights file must be large enough for them.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch

from unmask.errors import CheckpointError, ConfigError, DiskError, describe_os_error
from unmask.storage.config import from_json, load_json, to_json, write_json
from unmask.storage.files import escape_line, write_bytes
from unmask.storage.foreign.transformers_files import link_plain_files, list_transformers_errors, silence_transformers
from unmask.storage.weights import write_weights

TEXT_CONFIG, TEXT_WEIGHTS = "text_encoder/config.json", "text_encoder/model.safetensors"
VOCABULARY, MERGES = "tokenizer/vocab.json", "tokenizer/merges.txt"
NEEDED_FILES = (TEXT_CONFIG, TEXT_WEIGHTS, VOCABULARY, MERGES)
OPTIONAL_FILES = ("tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json")
FILES = (*NEEDED_FILES, *OPTIONAL_FILES)
"""All files that are read."""
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "added_tokens_decoder")
"""What is read of the configuration of a tokenizer."""

MAX_TOKENIZER_BYTES = 8 << 20
"""Largest size of a file of the tokenizer; CLIP's have about 1 MB and 0.5 MB."""
MAX_TEXT_SIZES = {
    "vocab_size": 1 << 18, "hidden_size": 1 << 13, "intermediate_size": 1 << 15, "num_attention_heads": 1 << 8,
    "num_hidden_layers": 64, "max_position_embeddings": 1 << 12, "projection_dim": 1 << 13,
}  # fmt: skip
"""Largest values of a config.json; ViT-L/14 has 49408, 768, 3072, 12, 12, 77 and 768."""
SETTINGS: dict[str, Any] = {"bos_token_id": None, "pad_token_id": None}
"""Settings that no file decides: no token number except the end, the only one needed."""


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
                raise ConfigError(f"{name} is {repr(getattr(self, name))[:60]}, and 1 to {most} are possible")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of the {self.num_attention_heads} heads"
            )
        if not 0 <= self.eos_token_id < self.vocab_size:
            raise ConfigError(
                f"eos_token_id is {repr(self.eos_token_id)[:60]}, and the vocabulary has {self.vocab_size} tokens"
            )
        if not 0 < self.layer_norm_eps <= 0.1:
            raise ConfigError(f"layer_norm_eps is {self.layer_norm_eps}, and must be above 0 and at most 0.1")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A text model and its tokenizer."""

    sizes: TextSizes
    """Sizes of the text model."""
    encoder: Any
    """The text model in float32, a transformers.CLIPTextModelWithProjection."""
    tokenizer: Any
    """The tokenizer, a transformers.CLIPTokenizer."""
    files: dict[str, bytes]
    """The files of the tokenizer, as they were read."""


def read_clip(folder: Path) -> Clip:
    """Load a folder that holds `text_encoder` and `tokenizer`, through links, without a download.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: A file is missing, or holds weights of another network or a tokenizer of another vocabulary.
    """
    require_transformers()
    shown = escape_line(str(folder))
    for part in NEEDED_FILES:
        if not os.path.isfile(folder / part):  # a pipe or device is refused: reading it may never end
            raise CheckpointError(f"{shown}: no {part} there; name a local copy of amused/amused-256 or -512")
    try:
        sizes = _read_sizes(folder / TEXT_CONFIG)
        files = {name: _read_small(folder / name) for name in FILES[2:] if os.path.isfile(folder / name)}
        _check_vocabulary(folder, files)
    except ConfigError as error:
        raise CheckpointError(
            f"{shown}: not a CLIP text model ({escape_line(str(error))}): copy the folder again"
        ) from error
    try:
        encoder, tokenizer = _load_encoder(folder / TEXT_WEIGHTS, sizes), _load_tokenizer(files)
    except list_transformers_errors() as error:
        reason = escape_line((str(error).strip() or type(error).__name__).splitlines()[0])[:300]
        raise CheckpointError(
            f"{shown}: transformers cannot load a CLIP text model from it ({reason}): copy the folder again"
        ) from error
    if None in (tokenizer.bos_token_id, tokenizer.pad_token_id):
        raise CheckpointError(f"{shown}/tokenizer has no token for start or padding: copy the folder again")
    count, end = len(tokenizer), tokenizer.eos_token_id
    # With a wrong end, CLIP would pool the start token. Older files have an end of 2 and mean the highest number.
    is_older = (sizes.eos_token_id, end) == (2, count - 1)
    if count != sizes.vocab_size or (end != sizes.eos_token_id and not is_older):
        raise CheckpointError(
            f"{shown}/tokenizer knows {count} tokens and ends with {end}, the text model {sizes.vocab_size} and "
            f"{sizes.eos_token_id}: copy vocab.json and merges.txt of the same model there"
        )
    return Clip(sizes=sizes, encoder=encoder, tokenizer=tokenizer, files=files)


def write_clip(clip: Clip, folder: Path) -> None:
    """Write a folder that `read_clip` reads, each file completely or not at all, over older files. Raises DiskError."""
    named = {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model"}
    try:
        for name in FILES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if name in clip.files:
                write_bytes(clip.files[name], folder / name)
            elif name in OPTIONAL_FILES:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(
            f"cannot write {folder}: {describe_os_error(error)}; free or repair the disk, then try again"
        ) from error
    write_weights(dict(clip.encoder.named_parameters()), folder / TEXT_WEIGHTS)
    write_json(folder / TEXT_CONFIG, {**named, **to_json(clip.sizes)})


def require_transformers() -> None:
    """Raise ConfigError unless transformers is installed."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise ConfigError("prompts need transformers: pip install 'unmask[prompts]'") from error


def _load_tokenizer(files: Mapping[str, bytes]) -> Any:
    """Load the tokenizer from these files alone: a folder may hold others that transformers would read."""
    from transformers import CLIPTokenizer

    with silence_transformers(), tempfile.TemporaryDirectory(prefix="unmask-words-") as own:
        for name, data in files.items():
            (Path(own) / Path(name).name).write_bytes(data)
        return CLIPTokenizer.from_pretrained(own, local_files_only=True)


def _load_encoder(path: Path, sizes: TextSizes) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    shown = escape_line(str(path))
    config = CLIPTextConfig(**to_json(sizes), **SETTINGS)
    with torch.device("meta"):
        count = sum(p.numel() for p in CLIPTextModelWithProjection(config).parameters())
    if path.stat().st_size < 2 * count:  # of missing weights, transformers would allocate and fill all
        raise CheckpointError(
            f"{shown} is too small for the {count:,} parameters of its config.json: get that of amused/amused-256 or "
            "-512"
        )
    with silence_transformers(), link_plain_files(path.parent, [path.name]) as own:
        loaded: Any = CLIPTextModelWithProjection.from_pretrained(
            own,
            config=config,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are in the report, and refused
            output_loading_info=True,
        )
    encoder, info = loaded
    wrong = sorted(str(name) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind])
    encoder = encoder.float().requires_grad_(False).eval()
    wrong += [name for name, value in encoder.named_parameters() if not wrong and not value.isfinite().all()]
    if wrong:
        raise CheckpointError(
            f"{shown}: {len(wrong)} tensors are missing, unknown, of another shape or not finite, first "
            f"{escape_line(wrong[0])}: get that of amused/amused-256 or -512"
        )
    return encoder


def _read_sizes(path: Path) -> TextSizes:
    data = load_json(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    known = {field.name for field in fields(TextSizes)}
    return from_json(TextSizes, {name: value for name, value in data.items() if name in known}, str(path))


def _check_vocabulary(folder: Path, files: Mapping[str, bytes]) -> None:
    """Raise ConfigError unless tokens are numbered from 0, and merges are two tokens that make a third."""
    ids = json.loads(files[VOCABULARY])
    if any(type(number) is not int for number in ids.values()) or sorted(ids.values()) != list(range(len(ids))):
        raise ConfigError(f"{folder / VOCABULARY}: the tokens are not numbered from 0, each once")
    try:
        lines = files[MERGES].decode().replace("\r\n", "\n").split("\n")
    except ValueError as error:
        raise ConfigError(f"{folder / MERGES} is not UTF-8") from error
    for number, line in enumerate(lines, 1):
        pair = line.split(" ")
        if line and not line.startswith("#version") and not (len(pair) == 2 and {*pair, "".join(pair)} <= ids.keys()):
            raise ConfigError(f"{folder / MERGES}: line {number} does not merge two tokens of vocab.json into a third")


def _read_small(path: Path) -> bytes:
    """Read a file of the tokenizer, and of its configuration the special tokens alone.

    ConfigError if it is too long, or no JSON object where it must be one.
    """
    data = load_json(path, MAX_TOKENIZER_BYTES) if path.suffix == ".json" else {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    if path.name in map(os.path.basename, OPTIONAL_FILES):
        return json.dumps({name: data[name] for name in SPECIAL if name in data}).encode()
    try:
        with open(path, "rb") as file:
            body = file.read(MAX_TOKENIZER_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {describe_os_error(error)}") from error
    if len(body) > MAX_TOKENIZER_BYTES:
        raise ConfigError(f"{path} is longer than {MAX_TOKENIZER_BYTES} bytes")
    return body
